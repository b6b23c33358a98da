"""Plans and their execution. A plan is a list of jobs, a job the runs of one model in order.

`execute` makes all runs, one after the other or side by side. The same plan executed again resumes: finished runs are
read, not made again.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from dassl.infrastructure.command import USER_ERRORS, one_line
from dassl.utils import locked, read_json
from orthcr.compare.command_line import count
from orthcr.compare.display import Display, newest_log
from orthcr.compare.engines import TRIES, local
from orthcr.key_roles import MACHINE
from orthcr.run.checks import check_same_run
from orthcr.run.config import setup_cfg
from orthcr.run.runner import run
from orthcr.run.spec import RunSpec

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PlannedRun:
    """A run to be made."""

    name: str  # in messages
    spec: RunSpec

    @property
    def folder(self) -> Path:
        """The output directory."""
        return Path(self.spec.output_dir)

    @property
    def model(self) -> Path | None:
        """The output directory of the training whose model is evaluated; None for a training."""
        return Path(self.spec.model_dir) if self.spec.eval_only else None

    def at_strength(self, s: str) -> "PlannedRun":
        """Return the evaluation of the same model on the same test at another strength."""
        model = self.model or self.folder
        folder = model / f"s{s}" / (self.folder.relative_to(model) if self.model else "own")
        changes = {"strength": s, "output_dir": str(folder), "eval_only": True, "model_dir": str(model)}
        return PlannedRun(f"{self.name} s={s}", replace(self.spec, **changes))


@dataclass(frozen=True)
class Job:
    """A job: the runs of one model, in order."""

    runs: tuple[PlannedRun, ...]
    seconds: float = 1.0  # expected duration, in any unit: the longest job begins first
    kind: str = ""  # within a kind, durations are proportional to `seconds`: the display estimates the time left by it


def make_run(planned: PlannedRun, quiet: bool = False) -> dict:
    """Make a run, unless it is finished; return the content of its `results.json`.

    A finished evaluation that is older than its model is made again.

    Args:
        planned: the run.
        quiet: print nothing; log.txt has all lines.

    Raises:
        FileNotFoundError: the model to be evaluated is not there.
        ValueError, OSError: as `run`, or a finished run has other settings.
    """
    done = planned.folder / "results.json"
    model = planned.model and planned.model / "results.json"
    if model and not model.exists():
        raise FileNotFoundError(f"there is no finished training in {planned.model}: train it first")
    with hide_output() if quiet else nullcontext():
        if not done.exists() or model and done.stat().st_mtime < model.stat().st_mtime:
            wait_for(planned.folder)
            return run(planned.spec)
        check_same_run(setup_cfg(planned.spec), MACHINE)
    try:
        results = read_json(done)
        check_results(results, done)
        return results
    except ValueError as error:
        raise ValueError(f"{error}; or remove it, and the run is finished again") from error


def check_results(results: object, path: Path) -> None:
    """Raise ValueError if a `results.json` does not hold what a plan reads of it."""
    if not isinstance(results, dict) or not isinstance(results.get("classes", ""), str):
        raise ValueError(f"{path} is not what train.py wrote: put an intact copy there")
    accuracy = results.get("accuracy", 0.0)
    if type(accuracy) not in (int, float) or not 0 <= accuracy <= 100:
        raise ValueError(f"{path} has the accuracy {accuracy!r}: put an intact copy there")


@contextmanager
def hide_output() -> Iterator[None]:
    """Hide all that is printed, also progress bars, which would disturb the plan's display."""
    with open(os.devnull, "w", errors="replace") as null, redirect_stdout(null), redirect_stderr(null):
        yield


def wait_for(folder: Path, seconds: float = 20.0) -> None:
    """Wait until no process works in a folder: a run of a killed plan may be about to end.

    Args:
        folder: output directory of the run.
        seconds: longest time to wait.
    """
    until = time.time() + seconds
    while folder.exists() and time.time() < until:
        try:
            with locked(folder, ""):
                return
        except BlockingIOError:
            time.sleep(0.1)


def format_accuracy(results: dict) -> str:
    """Return the accuracy of a run for a message."""
    return f"{results['accuracy']:.1f}" if "accuracy" in results else "trained, not tested"


def describe_results(job: Job, results: list[dict]) -> str:
    """Return a line with the accuracy of each run of a job."""
    return "\n".join(f"{planned.name}: {format_accuracy(r)}" for planned, r in zip(job.runs, results, strict=True))


def execute(
    plan: list[Job],
    workers: int = 0,
    title: str = "",
    done: Callable[[Job, list[dict]], str | None] = describe_results,
    engine: Callable | None = None,
) -> list[str]:
    """Make all runs of a plan; return a line for each job that failed.

    A failed job does not stop the others. Ctrl-C and SIGTERM end all workers.

    Args:
        plan: the jobs.
        workers: processes of one thread each; 0: this process, which shows the output of the runs.
        title: of the display on the terminal.
        done: called in this process with each finished job and the contents of its runs' `results.json`; returns the
            text to print.
        engine: of `engines`, instead of these workers; called with the work and the jobs.
    """
    failed = []
    plan = sorted(plan, key=lambda job: -job.seconds)
    if not workers and not engine:
        for job in plan:
            results, failure = make_job(job, quiet=False)
            if failure:
                failed.append(failure)
                continue
            text = done(job, results)
            if text:
                print(text)
        return failed
    engine = engine or partial(local, slots=[""] * workers)
    with exit_on_sigterm(), Display(plan, title) as display, closing(engine(make_job, plan)) as outcomes:
        for outcome in outcomes:
            if outcome:
                job, result = outcome
                results, failure = ([], describe_crash(job, result)) if isinstance(result, Exception) else result
                display.ended(job, failed=bool(failure))
                if failure:
                    failed.append(failure)
                    text = f"failed: {failure}"
                else:
                    text = done(job, results)
                if text:
                    display.line(text)
            display.refresh()
    return failed


def make_job(job: Job, quiet: bool = True) -> tuple[list[dict], str]:
    """Make the runs of a job up to the first that fails; return their results and a line for the failure, or ""."""
    results = []
    for planned in job.runs:
        try:
            results.append(make_run(planned, quiet))
        except USER_ERRORS as error:
            return results, f"{planned.name}: {one_line(error)}"
    if quiet and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # other processes share the GPU
    return results, ""


def describe_crash(job: Job, error: Exception) -> str:
    """Describe a crashed job: its run, the cause, and the end of its log."""
    crashed_run = next((run for run in job.runs if not (run.folder / "results.json").exists()), job.runs[-1])
    cause = (str(error).strip().splitlines() or [""])[-1]
    if not isinstance(error, ChildProcessError):
        cause = f"{type(error).__name__}: {cause}"
    log = newest_log(crashed_run.folder, 0)
    if not log:
        return f"{crashed_run.name} failed {TRIES} times: {cause}. It left no log in {crashed_run.folder}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    return "\n    ".join([f"{crashed_run.name} failed {TRIES} times: {cause}. The end of {log}:", *lines])


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an exit, so that the engine is closed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parser(description: str, folder: str) -> argparse.ArgumentParser:
    """Return the parser of the flags that all scripts with a plan have.

    Args:
        description: for --help.
        folder: below output/, the default of --output-dir.
    """
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--output-dir", type=Path, default=ROOT / "output" / folder)
    cores = min(os.cpu_count() or 1, 8)
    result.add_argument("--workers", type=count, default=cores, help="processes, default: one a core, at most 8")
    return result
