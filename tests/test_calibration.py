"""Calibration: the error against a plain loop, the temperature against a grid, and what a run makes of both."""

import json
import math

import numpy as np
import pytest
import torch

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation import build_evaluator
from dassl.metrics import confidence, expected_calibration_error, fit_temperature
from dassl.metrics.calibration import cross_entropy
from dassl.utils import read_json, write_json
from orthcr import calibrate
from orthcr.deploy.predictor import Predictor
from orthcr.run import temperature
from orthcr.run.runner import main

# ------------------------------------------------------------------ the error


def test_the_error_by_hand():
    """Of 15 bins three hold an image: (0.8, 13/15], (14/15, 1] and (0.4, 7/15]."""
    sure, right = torch.tensor([0.85, 0.86, 0.95, 1.0, 0.45]), torch.tensor([True, False, True, True, False])
    gaps = abs(1 - 0.85 - 0.86), abs(2 - 0.95 - 1.0), abs(0 - 0.45)
    assert expected_calibration_error(sure.double(), right) == pytest.approx(100 * sum(gaps) / 5, abs=1e-5)
    assert expected_calibration_error(torch.ones(7), torch.ones(7, dtype=torch.bool)) == 0
    assert expected_calibration_error(torch.ones(7), torch.zeros(7, dtype=torch.bool)) == 100


def test_the_edge_of_a_bin_is_below():
    """1/3 = 5/15 belongs to (4/15, 5/15]: with 0.3 it makes one bin, in which 1 of 2 is right."""
    third = torch.tensor([1 / 3, 0.3], dtype=torch.float64)
    assert expected_calibration_error(third, torch.tensor([True, False])) == pytest.approx(
        100 * abs(1 - 1 / 3 - 0.3) / 2, abs=1e-10
    )


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_error_against_a_plain_loop(bins):
    rng = np.random.default_rng()
    sure, right = rng.uniform(size=500), rng.uniform(size=500) < 0.6
    wanted = 0.0
    for b in range(bins):
        inside = [k for k in range(500) if b / bins < sure[k] <= (b + 1) / bins]
        if inside:
            wanted += len(inside) / 500 * abs(right[inside].mean() - sure[inside].mean())
    got = expected_calibration_error(torch.from_numpy(sure), torch.from_numpy(right), bins)
    assert got == pytest.approx(100 * wanted, abs=1e-10)


def test_confidence():
    z = np.random.default_rng().normal(size=(20, 7))
    p = np.exp(z / 2.5) / np.exp(z / 2.5).sum(1, keepdims=True)
    np.testing.assert_allclose(confidence(torch.from_numpy(z), 2.5).numpy(), p.max(1), rtol=1e-12)
    assert confidence(torch.from_numpy(z).half()).dtype == torch.float32


# ------------------------------------------------------------------ the temperature


def noisy(n=300, classes=6, scale=1.0, seed=None):
    """Logits `scale` times those of which the labels are drawn: the temperature is near `scale`."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = [rng.choice(classes, p=row) for row in p]
    return torch.from_numpy(z * scale), torch.tensor(labels)


@pytest.mark.parametrize("scale", [0.01, 0.7, 3.0, 200.0])
def test_the_temperature_against_a_grid(scale):
    z, labels = noisy(scale=scale)
    t = fit_temperature(z, labels)
    grid = t * torch.logspace(-1, 1, 2001, dtype=torch.float64)
    losses = [-(z / x).log_softmax(1)[range(300), labels].mean().item() for x in grid]
    assert grid[int(np.argmin(losses))] == pytest.approx(t, rel=1e-9), "the middle of the grid is the least"
    assert t == pytest.approx(scale, rel=0.4)
    b = torch.tensor(1 / t, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(b * z, labels).backward()
    assert abs(b.grad.item()) < 1e-10 * scale, "the slope at the minimum"


def test_the_temperature_of_scaled_logits_is_scaled():
    z, labels = noisy()
    assert fit_temperature(30 * z, labels) == pytest.approx(30 * fit_temperature(z, labels), rel=1e-10)
    assert fit_temperature(z + torch.randn(300, 1), labels) == pytest.approx(fit_temperature(z, labels), rel=1e-10)


def test_a_temperature_that_is_none(one_line):
    z = torch.randn(9, 4)
    for labels, told in ((z.argmax(1), "every image is right"), (z.argmin(1), "no better than chance")):
        with pytest.raises(ValueError, match=told) as caught:
            fit_temperature(z, labels)
        one_line(caught)
    z[3, 1] = -math.inf
    with pytest.raises(ValueError, match="infinite"):
        fit_temperature(z, z.argmin(1))


# ------------------------------------------------------------------ the evaluator


def test_the_evaluator_tells_both(capsys):
    evaluator = build_evaluator(get_cfg_default())
    z, labels = noisy(scale=4.0)
    evaluator.keep_scores = True

    def evaluate():
        evaluator.reset()
        for k in range(0, 300, 37):
            evaluator.process(z[k : k + 37], labels[k : k + 37])
        return evaluator.evaluate()

    plain, right = evaluate(), z.argmax(1) == labels
    assert plain["ece"] == pytest.approx(expected_calibration_error(z.softmax(1).amax(1), right), abs=1e-10)
    assert "temperature" not in plain and torch.equal(evaluator.scores, z)
    assert f"%\n* ece: {plain['ece']:.1f}%\n" in capsys.readouterr().out
    evaluator.temperature = 4.0
    tempered = evaluate()
    assert tempered["ece"] == pytest.approx(expected_calibration_error((z / 4).softmax(1).amax(1), right), abs=1e-10)
    assert tempered["ece"] < plain["ece"] and tempered["temperature"] == 4.0
    assert [tempered[key] for key in ("accuracy", "macro_f1")] == [plain[key] for key in ("accuracy", "macro_f1")]
    assert list(tempered)[:4] == ["accuracy", "error_rate", "macro_f1", "ece"]
    assert "* temperature: 4.000\n" in capsys.readouterr().out


# ------------------------------------------------------------------ runs


def words(pictures, out, *more):
    flags = ["--trainer", "CoOp", "--root", str(pictures), "--output-dir", str(out), "VERBOSE", "False"]
    small = ["DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0", "USE_CUDA", "False"]
    return [*flags, *small, "DATASET.SUBSAMPLE_CLASSES", "base", *map(str, more)]


@pytest.fixture(scope="module")
def calibrated(pictures, tmp_path_factory):
    """A training with TEST.CALIBRATE."""
    out = tmp_path_factory.mktemp("calibrated") / "OUT"
    assert main(words(pictures, out, "TEST.CALIBRATE", "True")) == 0
    return out


def evaluate(pictures, out, to, *more):
    words = ["--eval-only", "--model-dir", str(out), "--root", str(pictures), "--output-dir", str(to), *map(str, more)]
    assert main(words) == 0
    return read_json(to / "results.json")


def test_a_training_keeps_its_temperature(calibrated, pictures, tmp_path, capsys):
    kept, results = (read_json(calibrated / name) for name in ("temperature.json", "results.json"))
    t = kept["temperature"]
    assert kept["images"] == 20 * 4, "val of a few-shot run: four images a class"
    assert kept["cross_entropy"]["after"] < kept["cross_entropy"]["before"] and results["temperature"] == t

    # the same figures from an evaluation of it, in which T is known beforehand; and of other classes, too
    again = evaluate(pictures, calibrated, tmp_path / "same")
    assert [again[k] for k in ("accuracy", "temperature")] == [results[k] for k in ("accuracy", "temperature")]
    assert again["ece"] == pytest.approx(results["ece"], abs=1e-4)
    assert evaluate(pictures, calibrated, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new")["temperature"] == t

    # on val, by an evaluator that knows nothing of a temperature: the cross-entropy of the logits is as it says
    val = evaluate(pictures, calibrated, tmp_path / "val", "TEST.SPLIT", "val")
    assert val["ece"] == pytest.approx(kept["ece"]["after"], abs=1e-4)

    # without it: other probabilities, the same accuracy
    (calibrated / "temperature.json").rename(tmp_path / "kept.json")
    without = evaluate(pictures, calibrated, tmp_path / "without")
    (tmp_path / "kept.json").rename(calibrated / "temperature.json")
    assert "temperature" not in without and without["accuracy"] == results["accuracy"]
    assert without["ece"] != pytest.approx(results["ece"], abs=1e-3)


def test_a_finished_training_is_calibrated_without_training(calibrated, pictures, tmp_path, capsys):
    """And to the same T; without TEST.CALIBRATE a training keeps none."""
    out = tmp_path / "OUT"
    assert main(words(pictures, out)) == 0
    results = read_json(out / "results.json")
    assert not (out / "temperature.json").exists() and "temperature" not in results
    assert evaluate(pictures, out, tmp_path / "before")["ece"] == pytest.approx(results["ece"], abs=1e-4)
    capsys.readouterr()
    assert calibrate.main(["--model-dir", str(out), "--root", str(pictures)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Temperature ") and "fitted on 80 val images" in said and said.count("\n") == 1
    both = [read_json(folder / "temperature.json")["temperature"] for folder in (out, calibrated)]
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    assert read_json(out / "results.json") == results
    assert main(words(pictures, out, "TEST.CALIBRATE", "True")) == 0, "the finished training, asked for it later"


def test_probabilities_are_calibrated(calibrated, pictures):
    image = sorted((pictures / "shapes" / "images").rglob("*.png"))[7]
    predictor = Predictor(calibrated, device="cpu")
    t = predictor.temperature
    assert t == read_json(calibrated / "temperature.json")["temperature"]
    (with_t,) = predictor(image, every=True)
    predictor.temperature = None
    (without,) = predictor(image, every=True)
    assert with_t.classname == without.classname
    log = np.log(without.every) / t
    np.testing.assert_allclose(with_t.every, np.exp(log) / np.exp(log).sum(), rtol=1e-4)


def test_a_temperature_is_of_its_checkpoint(calibrated, pictures, tmp_path, capsys):
    """Of another training in that directory, it is not used; a damaged file is an error."""
    path, whole = calibrated / "temperature.json", (calibrated / "temperature.json").read_bytes()
    try:
        kept = read_json(path)
        write_json({**kept, "of": {**kept["of"], "checkpoints": {"prompt_learner": "0" * 64}}}, path, seal=True)
        assert Predictor(calibrated).temperature is None
        assert "is for another checkpoint or strength" in capsys.readouterr().err
        for bad in (whole[:-9], whole.replace(b'"val"', b'"vax"'), b"[]", b'{"temperature": -1, "of": {}}'):
            path.write_bytes(bad)
            with pytest.raises(ValueError, match="temperature.json"):
                Predictor(calibrated)
    finally:
        path.write_bytes(whole)


def test_val_that_tells_nothing_ends_no_training(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(temperature, "compute_logits", lambda *args: (torch.eye(3), torch.arange(3)))
    assert main(words(pictures, tmp_path / "OUT", "TEST.CALIBRATE", "True")) == 0
    assert "TEST.CALIBRATE: no temperature can be found: every image is right" in capsys.readouterr().out
    assert not (tmp_path / "OUT" / "temperature.json").exists()
    assert calibrate.main(["--model-dir", str(tmp_path / "OUT"), "--root", str(pictures)]) == 1
    assert capsys.readouterr().err == (
        "error: no temperature can be found: every image is right, so the surer the better\n"
    )
    assert calibrate.main(["--model-dir", str(tmp_path)]) == 1
    assert "has no config.yaml" in capsys.readouterr().err


def test_no_test_image_is_looked_at(calibrated, pictures, monkeypatch, capsys):
    seen = []
    cls = TRAINER_REGISTRY.get("CoOp")
    parse = cls.parse_batch_test
    monkeypatch.setattr(cls, "parse_batch_test", lambda self, b: seen.extend(b["impath"]) or parse(self, b))
    assert calibrate.main(["--model-dir", str(calibrated), "--root", str(pictures)]) == 0
    split = json.loads((pictures / "shapes" / "split.json").read_text())
    val = {f"{pictures}/shapes/images/{path}" for path, _, _ in split["val"]}
    assert len(seen) == 80 and set(seen) <= val


def test_the_loss_is_torchs():
    z, labels = noisy(seed=3)
    assert cross_entropy(z, labels, 2.0) == pytest.approx(
        -(z / 2).log_softmax(1)[range(len(z)), labels].mean().item(), rel=1e-12
    )
