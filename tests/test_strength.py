"""The strength of a change of weights: its path from zero-shot CLIP on, how "auto" is chosen, that nothing mixes."""

import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from orthcr_tools import NAMES, TEMPLATE, as64, block_diagonal, node, orthogonal, textbook, turn
from trees import ours

import predict
import trainers
from dassl.config.keys import Key
from dassl.data.data_manager import DatasetWrapper
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import read_json
from orthcr.compare import strength_curve
from orthcr.compare.command_line import parse_arguments
from orthcr.compare.schedule import make_plan
from orthcr.compare.stages import Method
from orthcr.compare.strength_curve import straighten, write_curve
from orthcr.deploy.predictor import Predictor
from orthcr.reports.strength_tables import GEODESIC, LINE, Point, gain_table, rows_of, values
from orthcr.reports.tables import tables
from orthcr.reports.tree import collect
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import discover
from orthcr.run.flags import parse
from orthcr.run.runner import main, run
from trainers.block_ft import BlockCLIP
from trainers.clip_lora import LowRankCLIP
from trainers.clip_svd import SingularCLIP
from trainers.full_ft import FreeCLIP
from trainers.shared.strength import format_selection, one_standard_error, read_selection, select
from trainers.tuned import TunedTrainer

TUNED = ["OrthCR", "OrthSR", "FullFT", "BlockFT", "CLIPLoRA"]
BETWEEN = [0.0, 0.25, 0.6, 1.0]
PATHS = (GEODESIC, LINE)


def lora(model, **changes):
    extra = SimpleNamespace(**vars(node(**changes)), R=3, ALPHA=2.0, DROPOUT=0.0, LOGIT_SCALE=0.0)
    return LowRankCLIP(extra, model, NAMES, TEMPLATE)


def svd(model, **changes):
    return SingularCLIP(SimpleNamespace(**vars(node(**changes)), LOGIT_SCALE=0.0), model, NAMES, TEMPLATE)


def full(model, **changes):
    return FreeCLIP(node(**changes), model, NAMES, TEMPLATE)


def block(model, **changes):
    return BlockCLIP(node(HALF=False, **changes), model, NAMES, TEMPLATE)


def moved(model, seed=1):
    """Random values in all that is trained."""
    generator = torch.Generator().manual_seed(seed)
    trained = [p for n, p in model.named_parameters() if not n.startswith(("image_encoder.", "text_encoder."))]
    with torch.no_grad():
        for p in trained:
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return model


# ------------------------------------------------------------------ the path


@pytest.mark.parametrize("make", [orthogonal, lora, full, block, svd])
def test_the_ends_are_zero_shot_clip_and_what_was_trained_to_the_bit(random_clip, noise, make):
    model, plain, image = moved(make(random_clip())).eval(), make(random_clip()).eval(), noise(3, 3, 32, 32)
    with torch.no_grad():
        tuned = model(image)
        model.strength = 0.0
        assert torch.equal(model.encode_image(image), model.frozen_image(image))
        assert torch.equal(model.encode_text(), model.frozen_text)
        assert torch.equal(model(image), plain(image)) and not torch.equal(model(image), tuned)
        for weights in (model.merge_weights()[encoder] for encoder in ("image", "text")):
            assert weights
        model.strength = 1.0
        assert torch.equal(model(image), tuned)


@pytest.mark.parametrize("s", BETWEEN)
def test_orthcr_turns_by_cayley_of_s_q(random_clip, s):
    model = turn(orthogonal(random_clip().double()).double(), 1.0)
    model.strength = s
    merged = model.merge_weights()
    for name, (encoder, parameter, rows) in model.places.items():
        r = block_diagonal(textbook(s * as64(model.rotations.upper[name]), 16))
        w, changed = as64(model.frozen_weight(name)), as64(merged[encoder][parameter][rows])
        np.testing.assert_allclose(changed, w @ r, atol=1e-10 * np.abs(w).max(), rtol=0)
        np.testing.assert_allclose(changed @ changed.T, w @ w.T, atol=1e-10 * np.abs(w @ w.T).max(), rtol=0)
        np.testing.assert_allclose(r.T @ r, np.eye(len(r)), atol=1e-12)


@pytest.mark.parametrize("s", BETWEEN)
def test_the_others_go_straight(random_clip, s):
    for make in (lora, full, block, svd):
        model = moved(make(random_clip().double()).double())
        model.strength = s
        merged = model.merge_weights()
        for name, (encoder, parameter, rows) in model.places.items():
            w, changed = as64(model.frozen_weight(name)), as64(merged[encoder][parameter][rows])
            if make is lora:
                a, b = (as64(factors[name]) for factors in (model.lora.w_lora_A, model.lora.w_lora_B))
                end = w + 2 / np.sqrt(3) * b @ a
            elif make is svd:
                u, _, vt = map(as64, model.svd.factors(name))
                end = u @ np.diag(as64(model.svd.vector_S[name])) @ vt
            elif make is full:
                end = as64(model.weights[name])
            else:
                end = w @ (np.eye(w.shape[1]) + block_diagonal(as64(model.blocks[name])))
            assert not np.allclose(w, end)
            np.testing.assert_allclose(changed, w + s * (end - w), atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [orthogonal, lora, full, block, svd])
def test_training_is_always_at_full_strength_and_evaluation_alike_on_both_ways(random_clip, noise, make):
    model, image = moved(make(random_clip().double()).double()), noise(2, 3, 32, 32).double()
    full_strength = model.train()(image)
    model.strength = 0.3
    assert torch.equal(model(image), full_strength)
    model.eval()
    with torch.no_grad():
        merged = model(image)
    assert not torch.allclose(merged, full_strength)
    torch.testing.assert_close(model(image), merged, atol=1e-10, rtol=0)  # with gradients, by activations


def test_what_was_kept_of_another_strength_is_forgotten(random_clip, noise):
    model, image = moved(orthogonal(random_clip())).eval(), noise(2, 3, 32, 32)
    with torch.no_grad():
        first = model(image)
        model.strength = 0.5
        half = model(image)
        model.strength = 1.0
        assert torch.equal(model(image), first) and not torch.equal(half, first)


def test_the_straight_line_between_rotated_weights(random_clip):
    model, s = turn(orthogonal(random_clip()), 1.0).eval(), 0.3
    ends = model.merge_weights()
    straighten(model)
    model.strength = s
    for encoder, weights in model.merge_weights().items():
        for name, changed in weights.items():
            w = model.encoders[encoder].get_parameter(name)
            torch.testing.assert_close(changed, (1 - s) * w + s * ends[encoder][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("b", [16, 0])
def test_degrees_are_those_of_the_singular_values_of_q(random_clip, b):
    model = turn(orthogonal(random_clip(), BLOCK_SIZE=b), 0.2)
    angles = []
    for name, (_, size) in model.rotations.sizes.items():
        row, col = np.triu_indices(size, 1)
        for upper in as64(model.rotations.upper[name]):
            q = np.zeros((size, size))
            q[row, col] = upper
            values = np.linalg.svd(q - q.T, compute_uv=False)  # in pairs
            angles += np.degrees(2 * np.arctan(values[::2])).tolist()
    given = model.degrees()
    assert given == pytest.approx({"mean": np.mean(angles), "max": np.max(angles)}, abs=1e-6)
    assert 0 < given["mean"] < given["max"] < 180


def test_degrees_of_a_known_turn(random_clip):
    model = orthogonal(random_clip())
    assert model.degrees() == pytest.approx({"mean": 0, "max": 0}, abs=1e-5)
    name = next(iter(model.rotations.upper))
    with torch.no_grad():
        model.rotations.upper[name][0, 0] = np.tan(np.radians(50) / 2)  # one plane of all
    planes = sum(m * (b // 2) for m, b in model.rotations.sizes.values())
    assert model.degrees() == pytest.approx({"mean": 50 / planes, "max": 50}, abs=1e-4)


# ------------------------------------------------------------------ "auto"


@pytest.mark.parametrize(
    "right, n, wanted",
    [
        ({0: 50, 0.25: 80, 0.5: 87, 0.75: 90, 1: 91}, 100, 0.75),  # 91 % +- 2.86: 88.1 suffice
        ({0: 50, 0.25: 80, 0.5: 89, 0.75: 90, 1: 91}, 100, 0.5),
        ({0: 90, 0.25: 90, 0.5: 90, 0.75: 90, 1: 90}, 100, 0.0),
        ({0: 1, 0.25: 9, 0.5: 10, 0.75: 10, 1: 3}, 10, 0.5),  # no error at 100 %
        ({0: 0, 0.25: 0, 0.5: 0, 0.75: 0, 1: 0}, 10, 0.0),
        ({0: 65, 0.25: 70, 0.5: 75, 0.75: 80, 1: 10}, 100, 0.75),  # 80 % +- 4: 76
        ({0: 65, 0.25: 70, 0.5: 76, 0.75: 80, 1: 10}, 100, 0.5),
    ],
)
def test_the_one_standard_error_rule(right, n, wanted):
    assert one_standard_error(right, n) == wanted
    chosen = select(right, n, 3)
    best = max(right.values()) / n
    assert chosen["strength"] == wanted and chosen["val_images"] == n and chosen["epoch"] == 3
    assert chosen["standard_error"] == pytest.approx(100 * (best * (1 - best) / n) ** 0.5)
    assert f"Strength {wanted:g}: the smallest within one standard error" in format_selection(chosen)
    assert [float(word[:-1]) for word in format_selection(chosen).splitlines()[1].split()[1:]] == [
        pytest.approx(100 * count / n, abs=0.051) for count in right.values()
    ]


SMALL = (
    "USE_CUDA False OPTIM.MAX_EPOCH 2 OPTIM.LR 0.003 DATASET.NUM_SHOTS 2 OPTIM.WARMUP_EPOCH -1 VERBOSE False".split()
)
BASE = ("DATASET.SUBSAMPLE_CLASSES", "base")
VAL = 40  # images: two of each of 20 classes


def train(root, out, *pairs, trainer="OrthCR"):
    """On the base classes, two steps with a rate that moves them."""
    node = f"TRAINER.{trainer.upper()}"
    argv = ["--root", root, "--output-dir", out, "--trainer", trainer, *SMALL, *BASE, f"{node}.LAYERS", "[-1]", *pairs]
    return run(parse([str(word) for word in argv]))


def evaluate(root, model, out, *words):
    argv = ["--eval-only", "--model-dir", model, "--root", root, "--output-dir", out, *words]
    return run(parse([str(word) for word in argv]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures):
    """A model of OrthCR with a fixed strength; not to be changed."""
    out = tmp_path_factory.mktemp("strength") / "OUT"
    train(pictures, out, "TRAINER.ORTHCR.STRENGTH", 1.0)
    return out


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "OUT")


@pytest.mark.parametrize("trainer", TUNED)
def test_auto_is_chosen_kept_and_said_before_the_test(pictures, tmp_path, capsys, trainer):
    out = tmp_path / "OUT"
    results = train(pictures, out, f"TRAINER.{trainer.upper()}.STRENGTH", "auto", trainer=trainer)
    said, chosen = capsys.readouterr().out, read_selection(out)
    assert results["strength"] == chosen["strength"] and results["strength_choice"] == chosen
    assert chosen["val_images"] == VAL and chosen["epoch"] == 2
    right = {float(s): round(VAL / 100 * accuracy) for s, accuracy in chosen["val_accuracy"].items()}
    assert list(right) == [0, 0.25, 0.5, 0.75, 1] and chosen["strength"] == one_standard_error(right, VAL)
    assert said.index(format_selection(chosen)) < said.index("Evaluate on the *test* set")
    again = evaluate(pictures, out, tmp_path / "again")  # takes what was kept
    assert again["accuracy"] == results["accuracy"] and again["strength"] == chosen["strength"]
    if trainer in ("OrthCR", "OrthSR"):
        assert 0 < results["rotation_degrees"]["mean"] < results["rotation_degrees"]["max"] < 180
        assert "Weights were rotated by" in said
    else:
        assert "rotation_degrees" not in results and "Weights were rotated" not in said


def test_a_later_choice_looks_at_the_val_images_of_the_training_alone(pictures, model, tmp_path, monkeypatch):
    """In an evaluation on the new classes."""
    read, seen = DatasetWrapper.read, []
    monkeypatch.setattr(DatasetWrapper, "read", lambda self, path: seen.append(path) or read(self, path))
    selects = TunedTrainer.select_strength
    val = read_json(pictures / "shapes" / "split_fewshot" / "shot_2-seed_1.json")["val"]
    names = read_json(model / "classes.json")
    wanted = sorted(str(pictures / "shapes" / "images" / path) for path, _, name in val if name in names)

    def select_strength(self, epoch):
        assert not seen
        selection = selects(self, epoch)
        assert sorted(seen) == wanted and len(wanted) == VAL
        return selection

    monkeypatch.setattr(TunedTrainer, "select_strength", select_strength)
    result = evaluate(pictures, model, tmp_path / "new", "--strength", "auto", "DATASET.SUBSAMPLE_CLASSES", "new")
    assert result["strength_choice"] == read_selection(model) and result["classes"] == "new"
    assert seen[VAL:] and all("test_" in path for path in seen[VAL:])


def test_no_test_image_is_looked_at_for_the_choice(pictures, tmp_path):
    """They cannot be read: the choice is made and kept, and only the test then fails."""
    root = shutil.copytree(pictures, tmp_path / "data")
    for path in (root / "shapes" / "images").rglob("test_*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(OSError):
        train(root, tmp_path / "OUT", "TRAINER.ORTHCR.STRENGTH", "auto")
    assert read_selection(tmp_path / "OUT")["val_images"] == VAL


def test_auto_of_a_model_whose_data_are_gone_is_one_line(model, tmp_path, capsys):
    argv = ["--eval-only", "--model-dir", model, "--root", tmp_path / "nothing", "--strength", "auto"]
    config = model / "config.yaml"
    lines = [line for line in config.read_text().splitlines(True) if "sha256" not in line]
    config.write_text("".join(lines).replace("NAME: Shapes", "NAME: DescribableTextures"))
    assert main([*map(str, argv), "--dataset-config-file", "configs/datasets/digits.yaml"]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "not available" in error[0] and "--strength 0.5" in error[0]
    with pytest.raises(ValueError, match="none was selected in .*give a number"):
        Predictor(model, strength="auto")


def test_a_choice_is_for_the_epoch_that_it_was_made_for(model):
    (model / "strength.json").write_text(json.dumps({"strength": 0.25, "epoch": 2}))
    assert read_selection(model)["strength"] == read_selection(model, 2)["strength"] == 0.25
    assert read_selection(model, 1) is None


@pytest.mark.parametrize("content", ['{"strength": 7}', '{"strength": "x"}', "[1]", "{"])
def test_a_damaged_choice_is_one_line(model, content, one_line):
    (model / "strength.json").write_text(content)
    with pytest.raises(ValueError) as error:
        read_selection(model)
    assert "strength.json" in one_line(error)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize("value", ["1.5", "-0.1", "Auto ", "nan", "[1]", "half", "True", "None"])
def test_what_is_no_strength_is_one_line(value, one_line):
    for words in (["--strength", value], ["TRAINER.ORTHCR.STRENGTH", value]):
        if value.startswith("-") and words[0] == "--strength":
            words = [f"--strength={value}"]
        with pytest.raises(ValueError) as error:
            setup_cfg(parse(words))
        assert "TRAINER.ORTHCR.STRENGTH" in one_line(error)


@pytest.fixture
def by_default(monkeypatch):
    """by_default(s): gives the key of all tuned methods another default."""
    discover(trainers)

    def change(s):
        for name in TUNED:
            key = Key(s, of=float, low=0, high=1, word="auto")
            monkeypatch.setitem(TRAINER_REGISTRY.get(name).defaults, "STRENGTH", key)

    return change


@pytest.mark.parametrize("default", [1.0, "auto"])
@pytest.mark.parametrize("trainer", TUNED)
@pytest.mark.parametrize("value, wanted", [("1", 1.0), ("0", 0.0), ("0.3", 0.3), ("auto", "auto")])
def test_what_is_a_strength(trainer, value, wanted, default, by_default):
    by_default(default)
    assert setup_cfg(parse(["--trainer", trainer])).TRAINER[trainer.upper()].STRENGTH == default
    node = setup_cfg(parse(["--trainer", trainer, "--strength", value])).TRAINER[trainer.upper()]
    assert node.STRENGTH == wanted and type(node.STRENGTH) is type(wanted)


def test_methods_that_change_no_weights_take_none(one_line):
    with pytest.raises(ValueError) as error:
        setup_cfg(parse(["--trainer", "CoOp", "--strength", "0.5"]))
    assert "CoOp takes no --strength" in one_line(error)


def test_a_run_from_before_there_was_a_strength_has_all_of_it(model, pictures, tmp_path, by_default):
    """Whatever the default is."""
    by_default(0.5)
    config = model / "config.yaml"
    lines = [line for line in config.read_text().splitlines(True) if "STRENGTH" not in line and "sha256" not in line]
    config.write_text("".join(lines))
    trained = read_json(model / "results.json")["accuracy"]
    files = [
        "--dataset-config-file",
        "configs/datasets/shapes.yaml",
        "--config-file",
        "configs/trainers/OrthCR/tiny.yaml",
    ]
    files += ["TRAINER.ORTHCR.LAYERS", "[-1]", *BASE]
    for k, words in enumerate(([], files)):
        results = evaluate(pictures, model, tmp_path / f"E{k}", *words)
        assert results["strength"] == 1.0 and results["accuracy"] == trained
        assert results["config"]["TRAINER.ORTHCR.STRENGTH"] == 1.0
    with pytest.raises(ValueError, match="STRENGTH 1.0, not 0.5"):  # the training is not taken for one with another
        train(pictures, model, "TRAINER.ORTHCR.STRENGTH", 0.5)


# ------------------------------------------------------------------ no mixing


def test_results_of_two_strengths_are_never_mixed(model, pictures, tmp_path):
    first = evaluate(pictures, model, tmp_path / "E", "--strength", "0.5")
    with pytest.raises(ValueError, match=r"holds results with TRAINER.ORTHCR.STRENGTH 0.5, not 0.25: choose another"):
        evaluate(pictures, model, tmp_path / "E", "--strength", "0.25")
    assert read_json(tmp_path / "E" / "results.json") == json.loads(json.dumps(first))
    assert first["model_config"]["TRAINER.ORTHCR.STRENGTH"] == 1 and first["config"]["TRAINER.ORTHCR.STRENGTH"] == 0.5
    argv = ["--eval-only", "--model-dir", str(model), "--root", str(pictures)]
    given = [[], ["--strength", "0.5"], ["--strength", "auto"]]
    assert len({setup_cfg(parse([*argv, *words])).OUTPUT_DIR for words in given}) == 3


def test_the_same_strength_in_evaluation_and_prediction(model, pictures, capsys):
    image = str(next((pictures / "shapes" / "images").rglob("test_*.png")))
    top = {}
    for s in (0.0, 0.5, 1.0):
        predictor = Predictor(model, strength=s)
        (p,) = predictor(image)
        top[s] = p.top
        assert predictor.trainer.model.strength == s
        assert predict.main([image, "--model-dir", str(model), "--strength", str(s), "--json"]) == 0
        assert f"{p.probability:.3f}"[:4] in capsys.readouterr().out
    assert top[0.0] != top[0.5] != top[1.0] and next(Predictor(model)(image)).top == top[1.0]
    assert predict.main([image, "--model-dir", str(model), "--strength", "2"]) == 1
    assert "must be a number" in capsys.readouterr().err


KEY = "TRAINER.ORTHCR.STRENGTH"


@pytest.mark.parametrize("training", [{KEY: 1.0}, {}], ids=["as now", "before there was a strength"])
def test_a_report_keeps_strengths_apart(tmp_path, training):
    on, rows = ("Shapes", "base", 16, 1), {"OrthCR (s=0.5)": (70.0, 60.0), "OrthCR": (80.0, 50.0)}
    config = {"TRAINER.NAME": "OrthCR", "OPTIM.LR": 0.1}
    out = ours(tmp_path / "OUT", "OrthCR", on, "Shapes", "base", 80.0, config=config | training)
    ours(out / "new", "OrthCR", on, "Shapes", "new", 50.0, eval_only=True, config=config | training)
    for classes, right in zip(("base", "new"), rows["OrthCR (s=0.5)"], strict=True):
        folder, at = out / "s0.5" / classes, {"config": config | {KEY: 0.5}, "model_config": config | {KEY: 1.0}}
        ours(folder, "OrthCR", on, "Shapes", classes, right, eval_only=True, model_dir=str(out))
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps(results | at))
    (table,) = tables(collect([tmp_path])[0])
    for name, wanted in rows.items():
        line = table.lines["Shapes", name]
        assert [cell.mean for cell in line[:2]] == pytest.approx(wanted)
    assert len(table.lines) == 2


def test_a_strength_below_1_is_named_also_where_it_is_the_only_one(tmp_path):
    on, config = ("Shapes", "all", 16, 1), {"TRAINER.NAME": "OrthCR", KEY: 0.5}
    ours(tmp_path / "OUT", "OrthCR", on, "Shapes", "all", 80.0, config=config)
    ours(tmp_path / "full", "FullFT", on, "Shapes", "all", 81.0, config={"TRAINER.FULLFT.STRENGTH": 1.0})
    (table,) = tables(collect([tmp_path])[0])
    assert {titles[-1] for titles in table.lines} == {"OrthCR (s=0.5)", "FullFT"}


def test_a_plan_has_a_folder_for_each_strength(tmp_path):
    words = ["--protocol", "base2new", "cross_dataset", "--trainers", "OrthCR", "CoOp", "--seeds", "1"]
    args = parse_arguments([*words, "--output-dir", str(tmp_path), "--strength", "0.5", "auto"])
    plain = parse_arguments([*words, "--output-dir", str(tmp_path)])
    plans = [
        [run for job in make_plan([Method("OrthCR"), Method("CoOp")], ["base2new", "xd"], a) for run in job.runs]
        for a in (args, plain)
    ]
    assert {run for run in plans[1]} < {run for run in plans[0]}
    more = [run for run in plans[0] if run not in plans[1]]
    runs = [run for run in plans[1] if run.name.startswith("OrthCR")]
    transfers = [run for run in runs if "xd" in run.folder.parts]  # whose settings have the strength 0.5
    assert len(more) == 2 * len(runs) - len(transfers) and len(transfers) == 6
    assert len({run.folder for run in plans[0]}) == len(plans[0])
    for run_ in more:
        given = run_.spec
        assert given.eval_only and given.strength in ("0.5", "auto") and given.output_dir == str(run_.folder)
        assert str(run_.model) == given.model_dir and f"s{given.strength}" in run_.folder.parts
    with pytest.raises(SystemExit):
        parse_arguments([*words, "--strength", "1.5"])


# ------------------------------------------------------------------ the curve


def test_the_curve_has_the_figures_of_evaluations(trained, pictures, tmp_path, monkeypatch):
    text = write_curve([trained], tmp_path / "C", str(pictures), [0.5])
    rows = read_json(tmp_path / "C" / "curve.json")
    found = {(row["path"], row["strength"], row["classes"]): row["accuracy"] for row in rows}
    assert {s for path, s, _ in found if path == "geodesic"} >= {0.0, 0.5, 1.0}
    assert {s for path, s, _ in found if path == "line"} >= {0.5} and {row["dataset"] for row in rows} == {"Shapes"}
    assert found["geodesic", 1.0, "base"] == read_json(trained / "results.json")["accuracy"]
    new = ["DATASET.SUBSAMPLE_CLASSES", "new"]
    half = evaluate(pictures, trained, tmp_path / "half", "--strength", "0.5", *new)
    zero = evaluate(pictures, trained, tmp_path / "zero", "--strength", "0", *new)
    assert found["geodesic", 0.5, "new"] == half["accuracy"] and found["geodesic", 0.0, "new"] == zero["accuracy"]
    b, n = found["geodesic", 1.0, "base"], found["geodesic", 1.0, "new"]
    row = next(line for line in text.splitlines() if line.startswith("| OrthCR, s = 1 "))
    assert [float(cell) for cell in row.split("|")[2:5]] == pytest.approx([b, n, 2 * b * n / (b + n)], abs=0.051)
    assert {path.name for path in (tmp_path / "C").iterdir()} == {"curve.json", "curve.md", "base_to_new_Shapes.png"}
    assert not (trained / "strength.json").exists()  # nothing is written beside the model
    with pytest.raises(ValueError, match="from 0 to 1"):
        write_curve([trained], tmp_path / "C", None, [2.0])
    monkeypatch.setattr(strength_curve, "images_of", lambda *_: None)
    with pytest.raises(ValueError, match="Shapes, the data of .*, has no val images: give another --split"):
        write_curve([trained], tmp_path / "C", str(pictures), [0.5], "val")


def test_averages_and_what_the_geodesic_brings_by_hand():
    styles = [f"Shapes{style}" for style in ("Fog", "Night", "Neon", "Scribble")]
    others = ["Colours", "Compositions", "Digits", "Outlines", "Patterns"]
    draw, at = np.random.default_rng(), {}
    points = []
    for seed, path, s in itertools.product((1, 2), PATHS, (0.0, 0.5, 1.0)):
        at[seed, path, s] = {name: draw.uniform(9, 99) for name in ("Shapes", *styles, *others)}
        accuracies = {(name, "all"): accuracy for name, accuracy in at[seed, path, s].items()}
        points.append(Point(f"OUT{seed}", "OrthCR", seed, ("Shapes", "all", 16), 0.5, path, s, accuracies))
    rows = rows_of(points, [0.0, 0.5, 1.0])
    for head, names in (("Shapes", ["Shapes"]), ("variants", styles), ("others", others), ("Neon", styles[2:3])):
        for name, path in (("s = 0.5", "geodesic"), ('"auto"', "geodesic"), ("line, s = 0.5", "line")):
            wanted = [np.mean([at[seed, path, 0.5][each] for each in names]) for seed in (1, 2)]
            assert values(rows[f"OrthCR, {name}"], head) == pytest.approx(wanted)
    curve, line = ([np.mean([at[seed, path, 0.5][each] for each in others]) for seed in (1, 2)] for path in PATHS)
    last = gain_table(points, [0.0, 0.5]).splitlines()[-1].split("|")[-2].split("±")
    less = np.subtract(curve, line)
    assert [float(x) for x in last] == pytest.approx([less.mean(), less.std()], abs=0.0051)
