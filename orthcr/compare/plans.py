"""Plans and their execution. A plan is a list of jobs. A job is the training of one model and its tests, in order.

`execute` makes all runs, one after the other or in parallel. It reads the results of finished runs instead of making
them again, so that an interrupted plan is resumed by the same command.
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
from orthcr.compare.command_line import parse_count
from orthcr.compare.display import Display, newest_log
from orthcr.compare.engines import TRIES, run_locally
from orthcr.key_roles import MACHINE
from orthcr.run.checks import check_same_run
from orthcr.run.config import setup_cfg
from orthcr.run.runner import run
from orthcr.run.spec import RunSpec

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan."""

    name: str  # for messages
    spec: RunSpec

    @property
    def folder(self) -> Path:
        """The output directory."""
        return Path(self.spec.output_dir)

    @property
    def model(self) -> Path | None:
        """The output directory of the training whose model is evaluated; None for a training."""
        return Path(self.spec.model_dir) if self.spec.eval_only else None

    def with_strength(self, s: str) -> "PlannedRun":
        """Return the evaluation of the same model on the same test at another strength."""
        model = self.model or self.folder
        folder = model / f"s{s}" / (self.folder.relative_to(model) if self.model else "own")
        changes = {"strength": s, "output_dir": str(folder), "eval_only": True, "model_dir": str(model)}
        return PlannedRun(f"{self.name} s={s}", replace(self.spec, **changes))


@dataclass(frozen=True)
class Job:
    """A job: the training of one model and all its tests, in order."""

    runs: tuple[PlannedRun, ...]
    seconds: float = 1.0  # expected duration in any unit; the longest job begins first
    kind: str = ""  # jobs of one kind have durations proportional to `seconds`; for the estimate of the time left


def make_run(planned_run: PlannedRun, quiet: bool = False) -> dict:
    """Make a run, unless it is finished; return the content of its `results.json`.

    A finished evaluation that is older than its model is made again.

    Args:
        planned_run: the run.
        quiet: whether to print nothing; log.txt has all lines.

    Raises:
        FileNotFoundError: the training of the model is not finished.
        ValueError, OSError: the run fails, or a finished run has other settings.
    """
    result_file = planned_run.folder / "results.json"
    model = planned_run.model and planned_run.model / "results.json"
    if model and not model.exists():
        raise FileNotFoundError(f"there is no finished training in {planned_run.model}: train this model first")
    with hide_output() if quiet else nullcontext():
        if not result_file.exists() or model and result_file.stat().st_mtime < model.stat().st_mtime:
            wait_for(planned_run.folder)
            return run(planned_run.spec)
        check_same_run(setup_cfg(planned_run.spec), MACHINE)
    try:
        results = read_json(result_file)
        check_results(results, result_file)
        return results
    except ValueError as error:
        raise ValueError(f"{error}; or remove it, and give the same command again") from error


def check_results(results: object, path: Path) -> None:
    """Raise ValueError if the content of a `results.json` lacks the entries that a plan reads."""
    if not isinstance(results, dict) or not isinstance(results.get("classes", ""), str):
        raise ValueError(f"{path} is not what train.py wrote: put an intact copy there")
    accuracy = results.get("accuracy", 0.0)
    if type(accuracy) not in (int, float) or not 0 <= accuracy <= 100:
        raise ValueError(f"{path} has the accuracy {accuracy!r}: put an intact copy there")


@contextmanager
def hide_output() -> Iterator[None]:
    """Hide all output, including progress bars, which would disturb the plan's display."""
    with open(os.devnull, "w", errors="replace") as devnull, redirect_stdout(devnull), redirect_stderr(devnull):
        yield


def wait_for(folder: Path, seconds: float = 20.0) -> None:
    """Wait until no process works in a folder, for example a run of a killed plan.

    Args:
        folder: output directory of the run.
        seconds: longest time to wait.
    """
    deadline = time.time() + seconds
    while folder.exists() and time.time() < deadline:
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
    pairs = zip(job.runs, results, strict=True)
    return "\n".join(f"{planned_run.name}: {format_accuracy(content)}" for planned_run, content in pairs)


def execute(
    plan: list[Job],
    workers: int = 0,
    title: str = "",
    on_job_done: Callable[[Job, list[dict]], str | None] = describe_results,
    engine: Callable | None = None,
) -> list[str]:
    """Make all runs of a plan; return a line for each job that failed.

    A failed job does not stop the others. Ctrl-C and SIGTERM end all workers.

    Args:
        plan: the jobs.
        workers: number of processes with one thread each; 0: make the runs in this process and show their output.
        title: title of the display on the terminal.
        on_job_done: called in this process with each finished job and the contents of its runs' `results.json`. It
            returns the text to print.
        engine: a function of `engines`, instead of these workers; called with the work and the jobs.
    """
    failures = []
    plan = sorted(plan, key=lambda job: -job.seconds)
    if not workers and not engine:
        for job in plan:
            results, failure = make_job(job, quiet=False)
            if failure:
                failures.append(failure)
                continue
            text = on_job_done(job, results)
            if text:
                print(text)
        return failures
    engine = engine or partial(run_locally, slots=[""] * workers)
    with exit_on_sigterm(), Display(plan, title) as display, closing(engine(make_job, plan)) as outcomes:
        for outcome in outcomes:
            if outcome:
                job, result = outcome
                results, failure = ([], describe_crash(job, result)) if isinstance(result, Exception) else result
                display.end_job(job, is_failure=bool(failure))
                if failure:
                    failures.append(failure)
                    text = f"failed: {failure}"
                else:
                    text = on_job_done(job, results)
                if text:
                    display.print_line(text)
            display.refresh()
    return failures


def make_job(job: Job, quiet: bool = True) -> tuple[list[dict], str]:
    """Make the runs of a job until one fails; return the results, and a line about the failure or ""."""
    results = []
    for planned_run in job.runs:
        try:
            results.append(make_run(planned_run, quiet))
        except USER_ERRORS as error:
            return results, f"{planned_run.name}: {one_line(error)}"
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
    """Let SIGTERM raise SystemExit in this process, so that the engine is closed."""
    previous_handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def make_parser(description: str, folder: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that all scripts with a plan have.

    Args:
        description: text for --help.
        folder: name of the folder below output/ that is the default of --output-dir.
    """
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--output-dir", type=Path, default=ROOT / "output" / folder)
    cores = min(os.cpu_count() or 1, 8)
    workers_help = "number of processes; default: one a core, at most 8"
    result.add_argument("--workers", type=parse_count, default=cores, help=workers_help)
    return result
