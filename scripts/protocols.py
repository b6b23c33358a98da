"""All four protocols on the embedded data sets: ZeroshotCLIP, CoOp and OrthCR, seeds 1-3, 16 shots, real training.

    python scripts/protocols.py [base2new fewshot xd dg] [--output-dir output/protocols]

Base-to-new and the source of the transfers are Shapes, few-shot is Digits. Ends with a table and a picture of each,
written to report.md, report.csv and *.png in the output directory, too. Given again, it goes on where it was.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path

import run
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("ZeroshotCLIP", "CoOp", "OrthCR")
KINDS = ("base2new", "fewshot", "xd", "dg")
# The source has twice the classes of base-to-new: half the epochs are as many steps, as papers train it for fewer, too
XD_OPTS = {"CoOp": ("OPTIM.MAX_EPOCH", "25"), "OrthCR": ("OPTIM.MAX_EPOCH", "20")}
SECONDS = {"ZeroshotCLIP": 0.0, "CoOp": 17.0, "OrthCR": 45.0}  # of 20 classes x 16 shots here; for the ETA only


def plan(kinds: list[str]) -> list[tuple[float, str, list[tuple]]]:
    """(expected seconds, trainer, [(protocol, argument, ...), ...]): runs of one model, in order; the longest first."""
    jobs = []
    for trainer in METHODS:
        trained = SECONDS[trainer] > 0
        for seed in run.SEEDS if trained else run.SEEDS[:1]:
            if "base2new" in kinds:
                jobs.append(
                    (
                        SECONDS[trainer] + 3,
                        trainer,
                        [("base2new_train", "shapes", seed), ("base2new_test", "shapes", seed)],
                    )
                )
            if "fewshot" in kinds:
                for shots in run.SHOTS if trained else [16]:
                    jobs.append((SECONDS[trainer] * shots / 32 + 2, trainer, [("fewshot", "digits", seed, shots)]))
            tests = [("xd_test", name, seed) for name in run.SOURCES["shapes"] if "xd" in kinds]
            tests += [("dg_test", name, seed) for name in run.variants("shapes") if "dg" in kinds]
            if tests:
                jobs.append((SECONDS[trainer] + 12, trainer, [("xd_train", "shapes", seed), *tests]))
    return sorted(jobs, key=lambda job: -job[0])


def work(trainer: str, runs: list[tuple], out: str) -> list[str]:
    """Does the runs of one model, in a process of its own; returns a line for each."""
    import torch

    torch.set_num_threads(1)  # small tensors: two processes of one thread do more than one of two
    lines = []
    for protocol, *arguments in runs:
        opts = XD_OPTS.get(trainer, ()) if protocol == "xd_train" else ()
        method = run.Method(trainer, data=str(ROOT / "data"), out=Path(out), opts=opts, quiet=True)
        results = getattr(method, protocol)(*arguments)
        lines.append(f"{trainer} {protocol} {' '.join(map(str, arguments))}: {run.told(results)}")
    return lines


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


def run_all(jobs: list[tuple[float, str, list[tuple]]], out: Path, workers: int) -> None:
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(
            total=sum(seconds for seconds, *_ in jobs),
            desc="protocols",
            disable=None,
            bar_format="{l_bar}{bar}| [{elapsed}<{remaining}]",
        ) as bar,
    ):
        try:
            with signals_held():
                futures = {pool.submit(work, trainer, runs, str(out)): seconds for seconds, trainer, runs in jobs}
            for future in as_completed(futures):
                for line in future.result():
                    tqdm.write(line)
                bar.update(futures[future])
        except BaseException:
            for child in active_children():  # a pool without workers gives up what is queued
                child.terminate()
            raise


def main() -> None:
    import report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="PROTOCOL", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "output" / "protocols")
    parser.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes, default: one a core"
    )
    args = parser.parse_args()
    unknown = sorted(set(args.kinds) - set(KINDS))
    if unknown or args.workers < 1:
        parser.error(f"PROTOCOL is one of {', '.join(KINDS)}, and --workers 1 or more")
    jobs = plan(args.kinds or list(KINDS))
    count = sum(len(runs) for *_, runs in jobs)
    print(f"{count} runs on embedded data, {args.workers} at a time: some minutes on 2 CPU cores", flush=True)
    run_all(jobs, args.output_dir, args.workers)
    report.write(args.output_dir)
    print(f"\n{args.output_dir}: report.md, report.csv and a picture of each table")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the workers would stay
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except BrokenExecutor:
        sys.exit("error: a worker was killed, perhaps for want of memory: give fewer --workers")
    except KeyboardInterrupt:
        sys.exit("interrupted: make protocols goes on with the runs that were under way")
