"""A day in the life of a hostile output directory: each file in it is replaced by malicious ones in turn.

Whatever it is then used for (the same training, an evaluation, predictions, a report), nothing in it runs, nothing is
written outside, and what is wrong is one line.
"""

import json
import math
import os
import pickle
import shutil

import pytest
import torch
import yaml
from own_photos import COLOURS, SMALL, make_photos

from dassl.infrastructure.files import add_checksum
from orthcr.run.runner import main as train
from predict import main as predict
from report import main as report

SCRIPT = "<script>alert(1)</script>\x1b[31m\x1b]0;title\x07\u202e"
FILES = "config.yaml", "classes.json", "split.json", "results.json", "log.txt", "rotations/checkpoint"
CHECKPOINT = "rotations/model.pth.tar-2"


class Runs:
    """Writes the file `ran` when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def by_pickle(path, home):
    path.write_bytes(pickle.dumps(Runs()))


def by_torch(path, home):
    torch.save({"state_dict": Runs(), "epoch": 2, "TRAINER": Runs()}, path)


def by_tag(path, home):
    path.write_text('TRAINER: !!python/object/apply:os.system ["touch ran"]\n')


def laughs(path, home):
    """Twenty thousand keys in 300 bytes; 40 more would be more than any memory holds."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for k in range(1, 5):
        lines.append(f"a{k}: &a{k} {{{', '.join(f'k{i}: *a{k - 1}' for i in range(10))}}}")
    path.write_text("\n".join(lines) + "\n")


def itself(path, home):
    path.write_text("a: &a {b: *a}\n")


def escapes(path, home):
    path.write_text(json.dumps(["../../outside/mine.txt", "/etc/passwd"]))


def link(path, home):
    path.unlink()
    path.symlink_to(home / "outside" / "mine.txt")


def link_to_nothing(path, home):
    path.unlink()
    path.symlink_to(home / "outside" / "new")


def huge(path, home):
    os.truncate(path, 1 << 40)


def cut(path, home):
    os.truncate(path, path.stat().st_size // 2)


def empty(path, home):
    os.truncate(path, 0)


def deep(path, home):
    path.write_text("[" * 3_000)


def not_finite(path, home):
    path.write_text('{"accuracy": NaN, "trained_on": Infinity, "train": [["a", NaN, "b"]], "val": [], "test": []}')


def script(path, home):
    path.write_text(json.dumps({"trainer": SCRIPT, "train": [[SCRIPT, 0, SCRIPT]], SCRIPT: SCRIPT}))


def pipe(path, home):
    path.unlink()
    os.mkfifo(path)


def folder(path, home):
    path.unlink()
    path.mkdir()


MALICE = [link, link_to_nothing, huge, cut, empty, deep, pipe, folder, script, not_finite]
WHOLE = ("config.yaml", "results.json")  # with every malice; the other files with every third, as one reader reads all
PAIRS = [(f, m) for i, f in enumerate(FILES) for k, m in enumerate(MALICE) if f in WHOLE or (i + k) % 3 == 0]
PAIRS.remove(("config.yaml", link_to_nothing))  # a model of another code base has none
PAIRS += [("config.yaml", malice) for malice in (by_pickle, by_tag, laughs, itself, escapes)]
PAIRS += [(CHECKPOINT, malice) for malice in (by_pickle, by_torch, link, huge, cut, empty, pipe)]


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A directory with photos, a training on them in OUT, and a folder that is nobody's business."""
    home = tmp_path_factory.mktemp("day")
    make_photos(home / "photos", n=4, classes=dict(list(COLOURS.items())[:2]))
    (home / "outside").mkdir()
    (home / "outside" / "mine.txt").write_text("mine\n")
    assert train(training(home / "photos", home / "OUT")) == 0
    return home


def training(photos, out):
    return ["--images", str(photos), "--output-dir", str(out), *SMALL, "OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False"]


@pytest.fixture
def hostile(day, tmp_path, monkeypatch):
    """Its OUT to be spoilt, with the outside beside it; the current directory is there."""
    for name in ("OUT", "outside"):
        shutil.copytree(day / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use(day, home, capfd, only=()):
    """Uses OUT for all that it can be used for, or `only` for these; returns {use: line of the error, or ""}."""
    image = str(next((day / "photos").rglob("*.png")))
    uses = {
        "report": lambda: report([str(home / "OUT"), "--output-dir", str(home / "tables")]),
        "predict": lambda: predict(["--model-dir", str(home / "OUT"), image]),
        "evaluate": lambda: train(["--eval-only", "--model-dir", str(home / "OUT"), "VERBOSE", "False"]),
        "train": lambda: train(training(day / "photos", home / "OUT")),  # last: it writes some files anew
    }
    said = {}
    for name in only or uses:
        capfd.readouterr()
        status = uses[name]()
        out, err = capfd.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert status == len(errors) <= 1, (name, status, err)
        assert "Traceback" not in out + err and "\x1b" not in out + err and "\u202e" not in out + err, name
        said[name] = errors[0] if errors else ""
        assert not (home / "ran").exists(), name
        assert [p.name for p in (home / "outside").iterdir()] == ["mine.txt"], name
        assert (home / "outside" / "mine.txt").read_text() == "mine\n", name
    assert {p.name for p in home.iterdir()} <= {"OUT", "outside", "tables"}
    for path in (home / "tables").glob("report.*"):
        text = path.read_text()
        assert "\x1b" not in text and (path.suffix != ".md" or "<script" not in text)
    return said


@pytest.mark.parametrize("file, malice", PAIRS, ids=lambda word: getattr(word, "__name__", word))
def test_each_file_in_turn(file, malice, day, hostile, capfd):
    malice(hostile / "OUT" / file, hostile)
    model = file in ("config.yaml", "classes.json", "split.json", CHECKPOINT)
    said = use(day, hostile, capfd, () if model else ("report", "train"))
    if malice is not link_to_nothing:  # as if it were not there
        refused = ("predict", "evaluate", "train") if model else ("report",) if file == "results.json" else ()
        assert all(said[name] for name in refused), said


def spoil_config(home, **changes):
    path = home / "OUT" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        (config[section] if section else config)[leaf] = value
    path.write_bytes(add_checksum(yaml.safe_dump(config), ".yaml"))  # whoever changes it can compute a checksum, too


@pytest.mark.parametrize(
    "changes",
    [
        {"OUTPUT_DIR": "outside/here", "RESUME": "outside"},
        {"DATASET__NAME": "Shapes", "DATASET__ROOT": "outside", "DATASET__IMAGES": ""},
        {
            "DATASET__NAME": "Shapes",
            "DATASET__ROOT": "outside/deep/er",
            "DATASET__SUBSAMPLE_CLASSES": "x/../../outside/x",
        },
        {"DATASET__IMAGES": "outside/mine.txt"},
        {"TRAINER": {"NAME": SCRIPT}},
        {SCRIPT: SCRIPT},
    ],
    ids=str,
)
def test_a_config_that_leads_outside(changes, day, hostile, capfd):
    spoil_config(hostile, **changes)
    use(day, hostile, capfd)


def test_a_backbone_that_would_run_code(day, hostile, capfd):
    evil = hostile / "OUT" / "clip.pt"
    for make in (by_pickle, by_torch):
        make(evil, hostile)
        for key in ("BACKBONE", "INIT_WEIGHTS"):
            spoil_config(hostile, MODEL__BACKBONE={"NAME": str(evil) if key == "BACKBONE" else "tiny"})
            spoil_config(hostile, MODEL__INIT_WEIGHTS=str(evil) if key == "INIT_WEIGHTS" else "")
            assert use(day, hostile, capfd)["predict"]


@pytest.mark.parametrize(
    "changes",
    [
        {"state_dict": [1]},
        {"state_dict": {"image_0_q": "x"}},
        {"rng": {"python": 1, "torch": torch.zeros(3), "numpy": ()}},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"scheduler": [1, 2]},
        {"best_result": "x"},
    ],
    ids=str,
)
def test_a_checkpoint_of_nonsense(changes, day, hostile, capfd):
    path = hostile / "OUT" / "rotations" / "model.pth.tar-2"
    torch.save(torch.load(path, weights_only=True) | changes, path)
    assert str(path) in use(day, hostile, capfd)["train"]


def test_weights_that_are_not_finite(day, hostile, capfd):
    path = hostile / "OUT" / "rotations" / "model.pth.tar-2"
    kept = torch.load(path, weights_only=True)
    next(iter(kept["state_dict"].values()))[0] = math.nan
    torch.save(kept, path)
    said = use(day, hostile, capfd)
    assert all("infinity or NaN" in said[name] for name in ("train", "evaluate", "predict"))


@pytest.mark.parametrize("name", ["rotations", "tensorboard", "eval"])
def test_folders_that_lead_outside(name, day, hostile, capfd):
    if (hostile / "OUT" / name).exists():
        shutil.rmtree(hostile / "OUT" / name)
    (hostile / "OUT" / name).symlink_to(hostile / "outside")
    said = use(day, hostile, capfd)
    assert "link" in said["evaluate" if name == "eval" else "train"]
