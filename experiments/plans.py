"""A plan is a list of jobs, a job the runs of one model in order; `execute` makes all of them, side by side or not.

Given again, the same plan goes on where it was: finished runs are read, not made again.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

import torch
from tqdm import tqdm

from dassl.utils import read_json

from .command import USER_ERRORS
from .config import parse, setup_cfg
from .run import MAY_DIFFER, check_same_run, run

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class PlannedRun:
    name: str  # as it is told
    folder: Path
    argv: tuple[str, ...]  # of train.py
    model: Path | None = None  # folder of the training whose model it evaluates


@dataclass(frozen=True)
class Job:
    runs: tuple[PlannedRun, ...]
    seconds: float = 1.0  # expected, in any unit: the longest begins first, and the bar shows what remains


def make(planned: PlannedRun, quiet: bool = False) -> dict:
    """What its `results.json` holds: made now unless it is finished, with these settings, and newer than its model.

    Raises ValueError or OSError as `run`; FileNotFoundError if the model to be evaluated is not there.
    """
    done = planned.folder / "results.json"
    model = planned.model and planned.model / "results.json"
    if model and not model.exists():
        raise FileNotFoundError(f"there is no finished training in {planned.model}: train it first")
    args = parse(list(planned.argv))
    with open(os.devnull, "w") as null, redirect_stdout(null if quiet else sys.stdout):  # log.txt has it all
        if not done.exists() or model and done.stat().st_mtime < model.stat().st_mtime:
            return run(args)
        check_same_run(setup_cfg(args), tuple(key for key in MAY_DIFFER if key != "TEST."))
    try:
        return read_json(done)
    except ValueError as error:
        raise ValueError(f"{error}; or remove it, and the run is finished again") from error


def told(results: dict) -> str:
    return f"{results['accuracy']:.1f}" if "accuracy" in results else "trained, not tested"


def tell(job: Job, results: list[dict]) -> None:
    for planned, r in zip(job.runs, results, strict=True):
        tqdm.write(f"{planned.name}: {told(r)}")


def execute(
    plan: list[Job], workers: int = 0, title: str = "", done: Callable[[Job, list[dict]], None] = tell
) -> list[str]:
    """Makes all runs of a plan; returns a line for each job that failed, which the others do not wait for.

    Args:
        workers: processes of one thread each; 0: this process, with all that the runs print.
        title: of the progress bar.
        done: called in this process with each finished job and what the `results.json` of its runs hold.

    Raises OSError if a worker was killed. Ctrl-C and SIGTERM end all workers.
    """
    failed = []

    def take(job: Job, results: list[dict], failure: str) -> None:
        if failure:
            failed.append(failure)
        else:
            done(job, results)

    plan = sorted(plan, key=lambda job: -job.seconds)
    if not workers:
        for job in plan:
            take(job, *make_job(job, quiet=False))
        return failed
    context, bar_format = get_context("spawn"), "{l_bar}{bar}| [{elapsed}<{remaining}]"
    try:
        with (
            ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            tqdm(total=sum(job.seconds for job in plan), desc=title, disable=None, bar_format=bar_format) as bar,
            none_left_behind(),
        ):
            with signals_held():
                jobs = {pool.submit(make_job, job, quiet=True): job for job in plan}
            for future in as_completed(jobs):
                take(jobs[future], *future.result())
                bar.update(jobs[future].seconds)
    except BrokenExecutor as error:
        raise OSError("a worker was killed, perhaps for want of memory: give fewer --workers") from error
    return failed


def make_job(job: Job, quiet: bool) -> tuple[list[dict], str]:
    """The results of its runs up to the first that fails, and a line on that one, or ""."""
    results = []
    for planned in job.runs:
        try:
            results.append(make(planned, quiet))
        except USER_ERRORS as error:
            return results, f"{planned.name}: {error}"
    return results, ""


@contextmanager
def none_left_behind() -> Iterator[None]:
    """Whatever ends this process early, Ctrl-C and SIGTERM among it, ends the workers first."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except BaseException:
        for child in active_children():  # a pool without workers gives up what is queued
            child.terminate()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def signals_held() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back while processes are started; those never get a SIGINT, which this one answers."""
    held = []
    before = {number: signal.signal(number, lambda n, _: held.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new processes inherit this
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for number, handler in before.items():
        signal.signal(number, handler)
    for number in held:
        signal.raise_signal(number)


def parser(description: str, folder: str) -> argparse.ArgumentParser:
    """What the scripts that execute a plan take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output-dir", type=Path, default=ROOT / "output" / folder)
    cores = min(os.cpu_count() or 1, 8)
    made.add_argument("--workers", type=count, default=cores, help="processes, default: one a core, at most 8")
    return made


def count(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"1 or more, not {word}")
    return int(word)
