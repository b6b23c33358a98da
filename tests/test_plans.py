"""The one runner of all plans: side by side or not, one that fails, going on, and being stopped."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dassl.infrastructure.command import command
from orthcr.compare import plans
from orthcr.compare.plans import Job, execute
from orthcr.compare.stages import Method, Stages
from orthcr.reports.pictures import save

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = {name: importlib.import_module(f"scripts.{name}") for name in ("run", "demo", "tune", "ablation")}


def test_in_processes(tmp_path, data_root, capsys):
    """A job that fails is named and the others go on; given again, what is finished is read."""
    m = Stages(Method("ZeroshotCLIP"), data_root, tmp_path / "out")
    good = Job((m.base2new_train("patterns", 1), m.base2new_test("patterns", 1)))
    bad = Job((m.fewshot("dtd", 1, 16), m.fewshot("patterns", 1, 16)), seconds=5)
    found = []
    failed = execute([good, bad], workers=2, on_job_done=lambda job, results: found.append((job, results)))
    (line,) = failed
    assert line.startswith("ZeroshotCLIP fewshot dtd 1 16: ") and "--root" in line
    assert not (tmp_path / "out" / "fewshot" / "patterns").exists(), "what follows in the job that failed"
    ((job, results),) = found
    assert job == good and [r["classes"] for r in results] == ["base", "new"]
    assert all(r["device"] == "CPU, 1 threads" for r in results) or "CPU" not in results[0]["device"]
    capsys.readouterr()
    assert execute([good], workers=0) == []
    assert capsys.readouterr().out == "".join(
        f"ZeroshotCLIP base2new_{part} patterns 1: {r['accuracy']:.1f}\n"
        for part, r in zip(("train", "test"), results, strict=True)
    )


def test_one_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    def fewshot(planned, quiet):
        shots = int(planned.folder.parent.name.removeprefix("shots"))
        if shots == 2:
            raise OSError("the disk")
        return {"accuracy": 10.0 * shots}

    monkeypatch.setattr(plans, "make_run", fewshot)
    assert command(lambda: SCRIPTS["run"].main(["CoOp", "fewshot", "dtd", "1"])) == 1
    done = capsys.readouterr()
    assert done.err == "error: CoOp fewshot dtd 1 2: the disk\n"
    assert done.out.split("\n")[1:] == [f"CoOp fewshot dtd 1 {k}: {10 * k:.1f}" for k in (1, 4, 8, 16)] + [""]


def inline(work, jobs, slots):
    """An engine that does everything at once in this process."""
    for job in jobs:
        yield job, work(job)
        yield None


@pytest.mark.parametrize("name", ["demo", "tune", "ablation"])
def test_every_script_uses_it(name, monkeypatch, tmp_path, capsys):
    """What fails is named at the end, one line each, after everything else was done."""
    made = []

    def make(planned, quiet):
        made.append(planned)
        if "seed2" in str(planned.folder) and planned.spec.trainer == "OrthCR" and planned.model is None:
            raise OSError("the disk")
        results = {
            "trainer": planned.spec.trainer,
            "dataset": "Shapes",
            "seed": len(made),
            "accuracy": 50.0,
            "seconds": 1.0,
        }
        return results | {"trainable_params": 0, "device": "CPU", "versions": {"torch": "2"}}

    monkeypatch.setattr(plans, "run_locally", inline)
    monkeypatch.setattr(plans, "make_run", make)
    monkeypatch.setattr(SCRIPTS["tune"], "RESULTS_FILE", tmp_path / "tuning.json")
    words = ["OrthCR", "CoOp"] if name == "tune" else []
    assert command(lambda: SCRIPTS[name].main([*words, "--output-dir", str(tmp_path)])) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == {"demo": 1, "tune": 8, "ablation": 13}[name]
    assert all(line.startswith("error: OrthCR ") and line.endswith(" shapes 2: the disk") for line in errors)
    assert len({planned.folder for planned in made}) == len(made)
    runs = {"demo": 18, "tune": 16 * 2 * 3, "ablation": 78}[name]
    assert len(made) == runs - len(errors) * (2 if name == "tune" else 1), "all but the tests of the models that failed"
    if name == "tune":
        assert len(json.loads((tmp_path / "tuning.json").read_text())) == 2 * 16 - 8
        assert "## CoOp" in (tmp_path / "tuning.md").read_text()


def test_what_ends_a_plan_early_is_one_line(capsys):
    def stopped():
        raise KeyboardInterrupt

    assert command(stopped, "interrupted: go on", 1) == 1 and command(stopped) == 130
    assert capsys.readouterr().err == "interrupted: go on\n"
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 / 0)


@pytest.mark.parametrize(("stop", "after"), [(signal.SIGINT, 0), (signal.SIGINT, 1.5), (signal.SIGTERM, 1)])
def test_the_embedded_run_can_be_stopped(stop, after, tmp_path):
    """At any time, with all its workers, and without a traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `make test &` would have it ignored
    words = ["--protocol", "domain_generalization", "--trainers", "CoOp", "OrthCR", "--output-dir", tmp_path]
    words = [sys.executable, REPO / "benchmark.py", *words, "--workers", "2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline().startswith("30 runs of 2 methods")
    time.sleep(after)
    os.killpg(process.pid, stop) if stop == signal.SIGINT else process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == (130 if stop == signal.SIGINT else 143) and "Traceback" not in err, err
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.killpg(process.pid, 0)  # nobody is left in its group
            time.sleep(0.1)


def test_how_stable_a_training_is_said_to_be(tmp_path):
    stability = importlib.import_module("scripts.stability")
    steps = np.arange(1, 6) * 10
    curves = {"OrthCR": [10, 94, 95.1, 80, 100], "FullFT": [96, 50, 60, 70, 100], "CLIPLoRA": [1, 2, 3, 4, 5]}
    found = {
        (name, factor, seed): (50 + 10 * (factor == 10) * (name == "FullFT"), (steps, np.array(curve)))
        for name, curve in curves.items() for factor in stability.FACTORS for seed in (1, 2, 3)
    }  # fmt: skip
    told = stability.table(found, dict.fromkeys(curves, 0.5))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()[2:]]
    assert [row[-2:] for row in rows] == [["0.0", "30.0 ± 0.0"], ["10.0", "10.0 ± 0.0"], ["0.0", "50.0 ± 0.0"]]
    assert save(stability.draw_picture(found), tmp_path / "x.png").stat().st_size > 10_000
