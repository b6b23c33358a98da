"""train.py's command line: what a run leaves, and one clear line for every bad input."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from clip import clip
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dassl.config import read_config
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import locked
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import config_values
from orthcr.run.flags import parse
from orthcr.run.runner import main
from trainers.shared import backbones

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "configs"
RESULT_KEYS = set(
    """trainer dataset classes seed shots backbone eval_only model_dir trained trained_on split accuracy error_rate
    macro_f1 ece trainable_params learning_rate seconds peak_memory_mib processes device versions git_revision config
    model_config sha256""".split()
)
TUNED_KEYS = RESULT_KEYS | {"strength", "rotation_degrees"}  # of OrthCR
FAST = {"OrthCR": ["TRAINER.ORTHCR.LAYERS", "[-1]", "TRAINER.ORTHCR.BLOCK_SIZE", "16"], "CoOp": [], "ZeroshotCLIP": []}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(root, out, trainer="OrthCR", classes="base", epochs=2, flags=(), opts=()):
    """The command line of the README with the tiny config."""
    return [
        "--root",
        str(root),
        "--seed",
        "1",
        "--trainer",
        trainer,
        "--dataset-config-file",
        str(CONFIGS / "datasets" / "shapes.yaml"),
        "--config-file",
        str(CONFIGS / "trainers" / trainer / "tiny.yaml"),
        "--output-dir",
        str(out),
        *flags,
        "DATASET.NUM_SHOTS",
        "4",
        "DATASET.SUBSAMPLE_CLASSES",
        classes,
        "OPTIM.MAX_EPOCH",
        str(epochs),
        "VERBOSE",
        "False",
        *FAST[trainer],
        *opts,
    ]


def shell(*argv):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(REPO / "train.py"), *argv], env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """Output directories, by trainer, of finished two-epoch runs on base classes; not to be changed."""
    outs = {}
    for trainer in ("OrthCR", "CoOp"):
        outs[trainer] = tmp_path_factory.mktemp(trainer)
        argv = command(pictures, outs[trainer], trainer, opts=["TRAIN.CHECKPOINT_FREQ", "1"])
        torch.set_num_threads(1)
        assert main(argv) == 0
    return outs


def read(path):
    return json.loads(Path(path).read_text())


# ------------------------------------------------------------------ the two commands


def test_train_on_base_then_evaluate_on_new_from_the_shell(trained, pictures, tmp_path):
    """A training from the shell is in test_distributed and test_repo."""
    out, new = trained["OrthCR"], tmp_path / "new"
    flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "2"]
    process = shell(*command(pictures, new, classes="new", flags=flags))
    assert process.returncode == 0, process.stderr
    results = read(out / "results.json"), read(new / "results.json")
    assert [r["classes"] for r in results] == ["base", "new"]
    assert all(r.keys() == TUNED_KEYS and 30 < r["accuracy"] < 95 for r in results)
    assert f"* accuracy: {results[1]['accuracy']:.1f}%\n" in process.stdout


@pytest.mark.parametrize("trainer, folder", [("OrthCR", "rotations"), ("CoOp", "prompt_learner")])
def test_what_a_training_leaves(trainer, folder, trained, pictures):
    out = trained[trainer]
    assert {p.name for p in out.iterdir()} == {
        "config.yaml",
        "classes.json",
        "log.txt",
        "results.json",
        "tensorboard",
        folder,
    }
    assert len(read(out / "classes.json")) == 20
    assert {p.name for p in (out / folder).iterdir()} == {"checkpoint", "model.pth.tar-1", "model.pth.tar-2"}

    result = read(out / "results.json")
    assert result.keys() == (TUNED_KEYS if trainer == "OrthCR" else RESULT_KEYS)
    wanted = {
        "trainer": trainer,
        "dataset": "Shapes",
        "classes": "base",
        "seed": 1,
        "shots": 4,
        "backbone": "tiny",
        "eval_only": False,
        "trained_on": {"dataset": "Shapes", "classes": "base", "seed": 1, "shots": 4},
        "split": "test",
    }
    assert {key: result[key] for key in wanted} == wanted
    assert result["trained"] and result["model_config"] is None
    assert result["error_rate"] == pytest.approx(100 - result["accuracy"])
    assert result["trainable_params"] > 0 and result["seconds"] > 0 and result["peak_memory_mib"] > 50
    assert result["versions"]["torch"] == torch.__version__

    cfg = setup_cfg(parse(command(pictures, out, trainer, opts=["TRAIN.CHECKPOINT_FREQ", "1"])))
    assert read_config(str(out / "config.yaml")) == config_values(cfg) == result["config"]

    log = (out / "log.txt").read_text()
    assert f"* accuracy: {result['accuracy']:.1f}%\n" in log and "epoch [2/2] batch [2/2]" in log and "\r" not in log
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/acc", "train/lr", "test/accuracy"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("train/loss")] == [0, 1, 2, 3]
    assert events.Scalars("test/accuracy")[0].value == pytest.approx(result["accuracy"])


def snapshot(folder, but=()):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(but)}


def test_evaluating_into_the_same_directory_keeps_the_results_of_the_training(trained, pictures, capsys):
    out = trained["OrthCR"]
    before = snapshot(out)
    for flags in (["--output-dir", str(out)], []):  # asked for, and by default
        argv = ["--root", str(pictures), "--eval-only", "--model-dir", str(out), "--load-epoch", "2", *flags]
        assert main([*argv, "DATASET.SUBSAMPLE_CLASSES", "new"]) == 0
        assert snapshot(out).items() >= before.items()
        result = read(out / "eval" / "Shapes-new-test" / "results.json")
        assert result["eval_only"] and result["classes"] == "new" and result["trainer"] == "OrthCR"
        assert result["trained_on"] == {"dataset": "Shapes", "classes": "base", "seed": 1, "shots": 4}
        assert result["shots"] == 4 and result["trained"]
        assert result["model_config"] == read(out / "results.json")["config"]
        assert result["config"]["DATASET.SUBSAMPLE_CLASSES"] == "new"
    assert "the results of the training stay" in capsys.readouterr().out


def test_a_run_of_an_older_version_goes_on(trained, pictures, tmp_path):
    """Its config.yaml lacks keys that came since."""
    out = tmp_path / "OUT"
    shutil.copytree(trained["CoOp"], out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    for section, key in (("DATASET", "ALL_TEST"), ("DATASET", "CLASSES"), ("INPUT", "EXIF_TRANSPOSE")):
        del config[section][key]
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(command(pictures, out, "CoOp", opts=["TRAIN.CHECKPOINT_FREQ", "1"])) == 0
    assert main(command(pictures, out, "CoOp", opts=["INPUT.EXIF_TRANSPOSE", "True"])) == 1


def test_load_epoch(trained, pictures, tmp_path, capsys):
    for epoch in (1, 2, None):
        flags = ["--eval-only", "--model-dir", str(trained["CoOp"]), *(["--load-epoch", str(epoch)] if epoch else [])]
        assert main(command(pictures, tmp_path, "CoOp", flags=flags)) == 0
        assert f'model.pth.tar-{epoch or 2}" (epoch = {epoch or 2})' in capsys.readouterr().out
    assert read(tmp_path / "results.json")["accuracy"] == read(trained["CoOp"] / "results.json")["accuracy"]


def test_evaluation_takes_seed_and_root_of_the_training(pictures, tmp_path, monkeypatch):
    argv = command(pictures, tmp_path / "out", "CoOp", epochs=1)
    argv[argv.index("--seed") + 1] = "3"
    assert main(argv) == 0
    monkeypatch.chdir(tmp_path)
    cfg = setup_cfg(parse(["--eval-only", "--model-dir", str(tmp_path / "out")]))
    assert (cfg.SEED, cfg.DATASET.ROOT) == (3, str(pictures))


def test_a_finished_run_is_not_trained_again(trained, pictures, monkeypatch):
    out = trained["CoOp"]
    before, result = snapshot(out, but=("events", "log", "results")), read(out / "results.json")

    def never(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(TRAINER_REGISTRY.get("CoOp"), "forward_backward", never)
    assert main(command(pictures, out, "CoOp", opts=["TRAIN.CHECKPOINT_FREQ", "1"])) == 0
    assert snapshot(out, but=("events", "log", "results")) == before
    again = read(out / "results.json")
    for key in ("accuracy", "macro_f1", "seconds", "trainable_params"):
        assert again[key] == result[key]


def test_no_train_builds_only(pictures, tmp_path):
    assert main(command(pictures, tmp_path, "CoOp", flags=["--no-train"])) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"log.txt", "config.yaml", "classes.json"}


# ------------------------------------------------------------------ bad input


@pytest.fixture
def fails(capsys):
    """fails(argv, "words", ...): the run ends with a non-zero code and one line that has all of these words."""

    def fails(argv, *words):
        stdout = sys.stdout
        code = main([str(word) for word in argv])
        assert sys.stdout is stdout, "the console is given back"
        told(code, capsys.readouterr().err, *words)

    return fails


def told(code, stderr, *words):
    assert code not in (0, None), "exit code"
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    for word in words:
        assert str(word) in line, f"{word!r} is not in: {line}"


@pytest.fixture
def pets(tmp_path):
    """(root, folder) of an OxfordPets of four classes with real pictures."""
    folder = tmp_path / "data" / "oxford_pets"
    split = {
        part: [[f"{k}_{part}{i}.jpg", k, f"cat_{k}"] for k in range(4) for i in range(n)]
        for part, n in (("train", 4), ("val", 1), ("test", 1))
    }
    (folder / "images").mkdir(parents=True)
    for path, label, _ in sum(split.values(), []):
        Image.effect_noise((40, 40), 10 + 20 * label).convert("RGB").save(folder / "images" / path)
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    return tmp_path / "data", folder


def pets_command(root, out, *opts, trainer="CoOp"):
    return [
        "--root",
        root,
        "--output-dir",
        out,
        "--trainer",
        trainer,
        "--dataset-config-file",
        CONFIGS / "datasets" / "oxford_pets.yaml",
        "DATASET.NUM_SHOTS",
        "4",
        "VERBOSE",
        "False",
        *opts,
    ]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--trainer", "OrthRC"], ['"OrthRC"', '"OrthCR"', "CoOp"]),
        (["DATASET.NAME", "Shape"], ['"Shape"', '"Shapes"']),
        (["OPTIM.LRR", "1"], ['"OPTIM.LRR"', '"OPTIM.LR"', "on the command line"]),
        (["TRAINER.ORTHCR.LAMDA", "1"], ['"TRAINER.ORTHCR.LAMBDA"']),
        (["OPTIM.LR"], ["KEY VALUE"]),
        (["OPTIM.LR", "fast"], ["OPTIM.LR", "float", "fast"]),
        (["TRAINER.ORTHCR.REG", "crosskl"], ['"crosskl"', '"cross_kl"']),
        (["--backbone", "ViT-B/61"], ['"ViT-B/61"', "ViT-B/16", "tiny", "MODEL.BACKBONE.NAME"]),
        (["--backbone", str(CONFIGS / "datasets" / "shapes.yaml")], ["shapes.yaml", "no CLIP in OpenAI"]),
        (["DATASET.SUBSAMPLE_CLASSES", "old"], ['"old"', "all, base, new"]),
        (["INPUT.SIZE", "(224, 224)"], ["INPUT.SIZE", "(224, 224)", "(32, 32)", "--config-file"]),
        (["--config-file", "no.yaml"], ["no.yaml"]),
        (["--eval-only", "--model-dir", "no_such_run"], ["no_such_run", "--model-dir"]),
    ],
    ids=lambda v: v[0] if isinstance(v[0], str) and v[0].isupper() else None,
)
def test_wrong_names_and_values(argv, words, fails, pictures, tmp_path):
    root = [] if argv[0] == "OPTIM.LR" else ["--root", str(pictures)]
    fails([*root, "--output-dir", tmp_path / "out", *argv], *words)
    assert not (tmp_path / "out" / "config.yaml").exists(), "nothing that a later run is held to"


def test_unknown_key_in_a_file(fails, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("OPTIM:\n  MAX_EPOCHS: 3\n")
    fails(["--config-file", file], '"OPTIM.MAX_EPOCHS"', '"OPTIM.MAX_EPOCH"', file)
    file.write_text("OPTIM: [3\n")
    fails(["--dataset-config-file", file], "Bad YAML", file, "line 2")


def test_missing_data(fails, tmp_path, pets):
    root, folder = pets
    fails(pets_command(tmp_path / "nowhere", tmp_path / "out"), tmp_path / "nowhere", "OxfordPets", "--root")
    split = folder / "split_zhou_OxfordPets.json"
    text = split.read_text()
    for name in ("0_train0", "1_train1", "2_test0", "3_val0"):
        (folder / "images" / f"{name}.jpg").unlink()
    fails(
        pets_command(root, tmp_path / "out", "DATASET.NUM_SHOTS", "-1"),
        "4 of the 24",
        split,
        *(folder / "images" / f"{n}.jpg" for n in ("0_train0", "1_train1", "3_val0")),
    )
    split.write_text(text[:100])
    fails(pets_command(root, tmp_path / "out"), split, '"train": [[path, label, class name]')
    split.unlink()
    fails(pets_command(root, tmp_path / "out"), split, "put CoOp's split_zhou_OxfordPets.json there")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_truncated_picture(part, workers, fails, tmp_path, pets):
    root, folder = pets
    picture = folder / "images" / f"2_{part}0.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    opts = ["DATALOADER.NUM_WORKERS", workers, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", part == "train"]
    fails(pets_command(root, tmp_path / "out", *opts), picture, "truncated", "intact copy")
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text(), "for whoever wants to know more"


def evaluate(model_dir, pictures, out, *opts, trainer="OrthCR", epoch="2"):
    flags = ["--eval-only", "--model-dir", str(model_dir), "--load-epoch", epoch]
    return command(pictures, out, trainer, flags=flags, opts=opts)


def test_models_that_do_not_fit(trained, pictures, fails, tmp_path):
    out = tmp_path / "out"
    orthcr, coop = trained["OrthCR"], trained["CoOp"]
    fails(evaluate(orthcr, pictures, out, epoch="7"), "epoch 7", orthcr / "rotations", "[1, 2]", "--load-epoch")
    fails(evaluate(coop, pictures, out), coop, "CoOp", "OrthCR", "--model-dir")
    for key, value in (("BLOCK_SIZE", "32"), ("LAYERS", "[0]")):
        argv = evaluate(orthcr, pictures, out, f"TRAINER.ORTHCR.{key}", value)
        fails(argv, orthcr, f"TRAINER.ORTHCR.{key}", "trained with", value.strip("[]"))
    (orthcr / "config.yaml").rename(tmp_path / "config.yaml")  # as if it came from another code base
    argv = evaluate(orthcr, pictures, out, "TRAINER.ORTHCR.BLOCK_SIZE", "32")
    fails(argv, orthcr / "rotations" / "model.pth.tar-2", "does not fit", "upper.")
    (tmp_path / "config.yaml").rename(orthcr / "config.yaml")
    assert not (out / "results.json").exists()


@pytest.fixture
def bare_model(trained, tmp_path):
    """A checkpoint of CoOp without a config, as other code bases leave it."""
    file = tmp_path / "model" / "prompt_learner" / "model.pth.tar-2"
    file.parent.mkdir(parents=True)
    file.write_bytes((trained["CoOp"] / "prompt_learner" / "model.pth.tar-2").read_bytes())
    return file


def test_a_model_without_a_config(bare_model, pictures, fails, tmp_path):
    argv = evaluate(tmp_path / "model", pictures, tmp_path / "out")
    fails(argv, '"rotations"', tmp_path / "model", "['prompt_learner']", "another trainer")
    assert main(evaluate(tmp_path / "model", pictures, tmp_path / "out", trainer="CoOp")) == 0


@pytest.mark.parametrize("kept", [0, 0.02, 0.6, 0.97])
def test_a_truncated_checkpoint(kept, bare_model, pictures, fails, tmp_path):
    file, whole = bare_model, bare_model.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    fails(evaluate(tmp_path / "model", pictures, tmp_path / "out", trainer="CoOp"), file, "cut off")
    fails(command(pictures, tmp_path / "model", "CoOp"), file, "cut off")  # nor is it trained over


def test_other_settings_into_the_same_directory(trained, pictures, fails):
    out = trained["CoOp"]
    before = snapshot(out)
    was = read_config(str(out / "config.yaml"))["OPTIM.LR"]
    fails(command(pictures, out, "CoOp", opts=["OPTIM.LR", "0.5"]), out, "OPTIM.LR", was, "not 0.5", "--output-dir")
    fails(command(pictures, out, "OrthCR"), out, "--output-dir")
    assert snapshot(out) == before


def test_an_output_directory_that_cannot_be(pictures, fails, tmp_path):
    (tmp_path / "file").touch()
    fails(command(pictures, tmp_path / "file" / "out"), tmp_path / "file" / "out", "--output-dir")
    fails(command(pictures, tmp_path / "file"), tmp_path / "file", "--output-dir")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_that_is_not_there(fails, tmp_path):
    fails(["--output-dir", tmp_path, "USE_CUDA", "True"], "USE_CUDA", "no CUDA device", "CPU")


def test_weights_that_cannot_be_downloaded(pictures, fails, tmp_path, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = f"http://127.0.0.1:{port}/{64 * '0'}/ViT-B-32.pt"
    monkeypatch.setitem(clip._MODELS, "ViT-B/32", url)
    monkeypatch.setattr(backbones, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(clip._download, "__defaults__", (str(tmp_path / "cache"),))
    argv = ["--root", pictures, "--output-dir", tmp_path / "out", "--trainer", "ZeroshotCLIP", "--backbone", "ViT-B/32"]
    fails(argv, url, tmp_path / "cache" / "ViT-B-32.pt", "ViT-B/32", "by hand")


def test_nothing_to_resume(pictures, fails, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = ["--resume", str(tmp_path / "empty")]
    fails(command(pictures, tmp_path / "out", "CoOp", flags=flags), tmp_path / "empty", "prompt_learner", "--resume")
    assert main(command(pictures, tmp_path / "out", "CoOp", epochs=2, opts=["TEST.NO_TEST", "True"])) == 0


def test_two_runs_in_one_directory(pictures, fails, tmp_path):
    """The second is refused before it writes anything; it may go on when the first has ended."""
    argv = command(pictures, tmp_path, "ZeroshotCLIP")
    with locked(tmp_path, ""):
        fails(argv, "another run is using it", tmp_path, "--output-dir")
    assert not list(tmp_path.iterdir()) and main(argv) == 0


def test_a_loss_that_is_not_finite(pictures, fails, tmp_path, monkeypatch):
    def losses(self, image, label):
        logits = self.model(image)
        return {"ce": logits.sum() / 0}, logits

    monkeypatch.setattr(TRAINER_REGISTRY.get("CoOp"), "losses", losses)
    argv = command(pictures, tmp_path, "CoOp")
    fails(argv, "OPTIM.LR", "epoch 1", tmp_path)


def test_an_error_is_not_lost_below_the_config(pictures, tmp_path, capsys):
    argv = command(pictures, tmp_path / "out", opts=["VERBOSE", "True"])
    assert main([*argv, "TRAINER.ORTHCR.BLOCK_SIZE", "48"]) == 1
    done = capsys.readouterr()
    assert "** Config **" not in done.out and len(done.out.splitlines()) < 40 and "BLOCK_SIZE 48" in done.err
    assert main([*argv, "TEST.NO_TEST", "True"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("** Config **") < shown.index("epoch [1/2]") and "System info" in shown
    evaluation = ["--eval-only", "--model-dir", str(tmp_path / "out"), "--load-epoch", "7", *argv]
    evaluation[evaluation.index("--output-dir") + 1] = str(tmp_path / "eval")
    assert main(evaluation) == 1
    done = capsys.readouterr()
    assert "** Config **" not in done.out and "no checkpoint of epoch 7" in done.err


def test_from_the_shell(tmp_path):
    argv = ["--root", "nowhere", "--dataset-config-file", str(CONFIGS / "datasets" / "dtd.yaml")]
    process = shell("--output-dir", str(tmp_path / "out"), *argv)
    assert process.returncode == 1
    told(process.returncode, process.stderr, "nowhere", "--root")
