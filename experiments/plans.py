"""A plan is a list of jobs, a job the runs of one model in order; `execute` makes all of them, side by side or not.

Given again, the same plan goes on where it was: finished runs are read, not made again.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dassl.command import USER_ERRORS
from dassl.utils import locked, read_json

from .config import setup_cfg
from .display import Display, newest_log
from .engines import TRIES, local
from .flags import count, parse
from .run import MAY_DIFFER, check_same_run, run

ROOT = Path(__file__).resolve().parents[1]
FINISHED_MAY_DIFFER = tuple(key for key in MAY_DIFFER if not key.startswith("TEST."))  # of a run with its results


@dataclass(frozen=True)
class PlannedRun:
    name: str  # as it is told
    folder: Path
    argv: tuple[str, ...]  # of train.py
    model: Path | None = None  # folder of the training whose model it evaluates

    def at_strength(self, s: str) -> "PlannedRun":
        """The same model tested on the same at another strength."""
        model = self.model or self.folder
        folder = model / f"s{s}" / (self.folder.relative_to(model) if self.model else "own")
        argv = ["--strength", s, *self.argv]
        argv[argv.index("--output-dir") + 1] = str(folder)
        argv[:0] = () if self.model else ("--eval-only", "--model-dir", str(model))
        return PlannedRun(f"{self.name} s={s}", folder, tuple(argv), model)


@dataclass(frozen=True)
class Job:
    runs: tuple[PlannedRun, ...]
    seconds: float = 1.0  # expected, in any unit: the longest begins first
    kind: str = ""  # jobs of one kind take as long as their `seconds` say; what remains is estimated from it


def make_run(planned: PlannedRun, quiet: bool = False) -> dict:
    """What its `results.json` holds: made now unless it is finished, with these settings, and newer than its model.

    Raises ValueError or OSError as `run`; FileNotFoundError if the model to be evaluated is not there.
    """
    done = planned.folder / "results.json"
    model = planned.model and planned.model / "results.json"
    if model and not model.exists():
        raise FileNotFoundError(f"there is no finished training in {planned.model}: train it first")
    args = parse(list(planned.argv))
    with (
        open(os.devnull, "w", errors="replace") as null,
        silent(null) if quiet else nullcontext(),
    ):  # log.txt has it all
        if not done.exists() or model and done.stat().st_mtime < model.stat().st_mtime:
            wait_for(planned.folder)
            return run(args)
        check_same_run(setup_cfg(args), FINISHED_MAY_DIFFER)
    try:
        return read_json(done)
    except ValueError as error:
        raise ValueError(f"{error}; or remove it, and the run is finished again") from error


@contextmanager
def silent(null) -> Iterator[None]:
    """Not even a bar is shown, which would stand in the way of the plan's display."""
    with redirect_stdout(null), redirect_stderr(null):
        yield


def wait_for(folder: Path, seconds: float = 20.0) -> None:
    """Until nobody is at work in `folder`: what a plan that was killed had begun may be about to end."""
    until = time.time() + seconds
    while folder.exists() and time.time() < until:
        try:
            with locked(folder, ""):
                return
        except BlockingIOError:
            time.sleep(0.1)


def told(results: dict) -> str:
    return f"{results['accuracy']:.1f}" if "accuracy" in results else "trained, not tested"


def tell(job: Job, results: list[dict]) -> str:
    return "\n".join(f"{planned.name}: {told(r)}" for planned, r in zip(job.runs, results, strict=True))


def execute(
    plan: list[Job],
    workers: int = 0,
    title: str = "",
    done: Callable[[Job, list[dict]], str | None] = tell,
    engine: Callable | None = None,
) -> list[str]:
    """Makes all runs of a plan; returns a line for each job that failed, which the others do not wait for.

    Args:
        workers: processes of one thread each; 0: this process, with all that the runs print.
        title: of what the terminal shows.
        done: called in this process with each finished job and what the `results.json` of its runs hold; returns what
            is to be told of it.
        engine: of `engines`, instead of these workers; called with the work and the jobs.

    Ctrl-C and SIGTERM end all workers.
    """
    failed = []
    plan = sorted(plan, key=lambda job: -job.seconds)
    if not workers and not engine:
        for job in plan:
            results, failure = make_job(job, quiet=False)
            if failure:
                failed.append(failure)
            elif text := done(job, results):
                print(text)
        return failed
    engine = engine or partial(local, slots=[""] * workers)
    with sigterm_ends_it(), Display(plan, title) as display, closing(engine(make_job, plan)) as outcomes:
        for outcome in outcomes:
            if outcome:
                job, result = outcome
                results, failure = ([], crash(job, result)) if isinstance(result, Exception) else result
                display.ended(job, failed=bool(failure))
                if failure:
                    failed.append(failure)
                    display.line(f"failed: {failure}")
                elif text := done(job, results):
                    display.line(text)
            display.refresh()
    return failed


def make_job(job: Job, quiet: bool = True) -> tuple[list[dict], str]:
    """The results of its runs up to the first that fails, and a line on that one, or ""."""
    results = []
    for planned in job.runs:
        try:
            results.append(make_run(planned, quiet))
        except USER_ERRORS as error:
            return results, f"{planned.name}: {error}"
    if quiet and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # other processes share the GPU
    return results, ""


def crash(job: Job, error: Exception) -> str:
    """What was killed or raised what no user can mend: the run, where its log is, and how that ends."""
    at = next((run for run in job.runs if not (run.folder / "results.json").exists()), job.runs[-1])
    said = (str(error).strip().splitlines() or [""])[-1]
    what = said if isinstance(error, ChildProcessError) else f"{type(error).__name__}: {said}"
    log = newest_log(at.folder, 0)
    if not log:
        return f"{at.name}: {what}, {TRIES} times; it left no log in {at.folder}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    return "\n    ".join([f"{at.name}: {what}, {TRIES} times; {log} ends with", *lines])


@contextmanager
def sigterm_ends_it() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parser(description: str, folder: str) -> argparse.ArgumentParser:
    """What the scripts that execute a plan take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output-dir", type=Path, default=ROOT / "output" / folder)
    cores = min(os.cpu_count() or 1, 8)
    made.add_argument("--workers", type=count, default=cores, help="processes, default: one a core, at most 8")
    return made
