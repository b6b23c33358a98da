"""The figures of `python -m benchmarks.costs`, each in its smallest form: what it says of itself holds."""

import json
import subprocess
import sys

import pytest
import torch
from clip.model import CLIP

from benchmarks import costs, measure
from benchmarks.cases import Case
from benchmarks.steps import Steps, places


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """With a CLIP "small" of a ViT-B's depth, so that the YAMLs fit; `said` has what is told to be running."""
    monkeypatch.setattr(measure, "JPEGS", 2)
    torch.manual_seed(0)
    torch.save(CLIP(32, 224, 12, 128, 32, 77, 49408, 128, 2, 12).state_dict(), tmp_path / "small.pt")
    return costs.Bench(tmp_path, lambda text: None)


def test_the_share_of_rotations_is_that_of_a_step_without(bench):
    (row,) = costs.measure_rotations(bench, "small", classes=3, batches=(2,), rounds=1)
    assert 0 < row["without, s"] and row["share, %"] == pytest.approx(100 - 100 * row["without, s"] / row["step, s"])


def test_without_rotations_a_step_is_that_of_the_frozen_clip(bench):
    trainer = bench.build(Case("train", "OrthCR", "small", 3, 2, "fp32"))
    model, image = trainer.model.train(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for upper in model.rotations.parameters():
            upper.normal_(std=0.1)
        frozen = model.logits(model.frozen_image(image), model.frozen_text)
    with costs.remove_rotations():
        z, *_ = model.all_logits(image)
    z.sum().backward()
    torch.testing.assert_close(z, frozen, rtol=1e-4, atol=1e-4)
    assert not any(upper.grad.any() for upper in model.rotations.parameters())
    assert not torch.allclose(model.all_logits(image)[0], frozen, atol=1e-2)


def test_the_reviewed_configuration_beside_the_default(bench):
    default, published = costs.compare_published(bench, ("OrthSR",), "small", classes=3, batch=2, rounds=1)
    assert (default["block sizes"], published["block sizes"]) == ("64", "32, 128")  # width 128
    pairs = 2 * 12 * (4 * 32 * 31 // 2 + 4 * 128 * 127 // 2)
    assert published["trained numbers"] == pairs and default["trained numbers"] == 2 * 12 * 18 * 64 * 63 // 2
    for row in (default, published):
        assert 0 < row["R, s"] < row["step, s"]
        assert row["peak, MiB"] * 2**20 > 4 * (4 * row["trained numbers"])  # with their gradients and AdamW's moments


def test_what_is_merged_is_what_was_trained(bench):
    plain, merged, unmerged, first = costs.compare_merged(bench, "small", classes=3, batch=2, rounds=1, deviation=0.1)
    off = "logits off merged's, at most"
    assert merged[off] == first[off] == 0 and unmerged[off] < 1e-4 < 1e-3 < plain[off]
    assert merged["same class"] == unmerged["same class"] == "2 of 2"
    for row in (plain, merged, unmerged, first):
        assert row["s a batch"] > 0 and row["ratio to plain"] == pytest.approx(row["s a batch"] / plain["s a batch"])


def test_loading_has_a_row_for_each_epoch_and_batch(bench):
    rows = costs.measure_loading(bench, "CoOp", "small", 3, batches=(1, 2), test_batch=3, images=4, rounds=2)
    heads = [(row["what"], row["batch"]) for row in rows]
    train = [(f"training, {which}", batch) for batch in (1, 2) for which in ("first epoch", "later epochs")]
    assert heads == [*train, ("evaluation", 3)]
    for row in rows:
        reading, model = row["reading, ms"], row["model, ms"]
        assert reading > 0 and model > 0 and row["reading, %"] == pytest.approx(100 * reading / (reading + model))
        assert row["images/s"] == pytest.approx(1000 / (reading + model))
        assert row["read alone"] == pytest.approx(1000 / reading)
        assert 20 < row["kB a file"] < 150
    for first, later in (rows[:2], rows[2:4]):
        assert first["model, ms"] == later["model, ms"]  # one step, two epochs


def test_one_process_and_two(bench):
    one, two = costs.compare_processes(bench, "CoOp", "small", classes=3, batch=2, rounds=1)
    assert (one["processes"], two["processes"], one["ratio"], one["ratio of walls"]) == (1, 2, 1, 1)
    assert two["ratio"] == pytest.approx(two["CPU s of each"] / one["CPU s of each"])


def test_a_compiled_step_beside_a_plain_one(bench, monkeypatch):
    """Without the compiler, which takes minutes: steps of told lengths, compiled ones slow at first."""
    told = {False: [(3, 4), (2, 2), (2.0, 2.5)], True: [(40, 60), (5, 5), (1.5, 2.0)]}
    seen = []

    class Told:
        def __init__(self, opts, env):
            self.left = iter(told[bool(opts)])
            seen.append((opts, env))

        def ready(self):
            return self

        def __call__(self):
            return {"step": next(self.left)}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(costs.Bench, "steps", lambda self, case, opts=(), n=1, env=None: Told(opts, env))
    (row,) = costs.compare_compiled(bench, ("CoOp",), "small", rounds=1)
    assert (row["plain s"], row["compiled s"], row["plain / compiled"]) == (2.0, 1.5, pytest.approx(4 / 3))
    assert (row["to compile, CPU s"], row["wall s"]) == (40, 59)
    assert (row["break-even, steps"], row["by the wall's"]) == (80, 118)
    assert seen[1][0] == ["TRAIN.COMPILE", "True"] and seen[1][1]["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    told[True][-1] = (2.0, 2.6)
    (row,) = costs.compare_compiled(bench, ("CoOp",), "small", rounds=1)
    assert row["break-even, steps"] == row["by the wall's"] == "never"


@pytest.mark.parametrize("extra, plain, fast, steps", [(10, 3, 2, 10), (1, 1, 0.7, 4), (5, 2, 2, "never")])
def test_break_even(extra, plain, fast, steps):
    assert costs.break_even(extra, plain, fast) == steps


# -------------------------------------------------------------------- steps in other processes


def test_a_child_that_ended_says_why(bench, monkeypatch):
    program = bench.folder / "ends"
    program.write_text("#!/bin/sh\necho Traceback >&2\necho 'ValueError: no such thing' >&2\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr("benchmarks.steps.sys.executable", str(program))
    with pytest.raises(ChildProcessError, match="has ended: ValueError: no such thing"):
        with Steps(Case("train", "CoOp", "small", 3, 2, "fp32"), "nowhere.pt", n=2) as steps:
            steps()
    assert all(process.poll() is not None for process in steps.processes)


def test_children_that_were_waited_for_are_counted():
    before = measure.cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    assert measure.cpu_seconds() - before >= 0.3


def test_processes_find_each_other():
    first, second = places(2)
    assert places(1) == [{}] and (first["RANK"], second["RANK"], first["WORLD_SIZE"]) == ("0", "1", "2")
    assert first["MASTER_PORT"] == second["MASTER_PORT"]


# -------------------------------------------------------------------- the command


def test_the_command_adds_to_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(costs, "FIGURES", {"one": lambda bench: [{"a": 0.12345, "b": "x"}], "two": lambda bench: []})
    costs.main(["one", "--output-dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert "**one**" in out and "| 0.123 | x   |" in out
    costs.main(["--output-dir", str(tmp_path)])
    kept = json.loads((tmp_path / "costs.json").read_text())
    assert [entry["name"] for entry in kept] == ["one", "one", "two"]
    assert kept[0]["rows"] == [{"a": 0.12345, "b": "x"}] and kept[0].keys() >= {"device", "torch", "commit", "load"}
    with pytest.raises(SystemExit):
        costs.main(["three"])
    assert "three: no such figure" in capsys.readouterr().err
