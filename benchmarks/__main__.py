"""Measure time and memory of training steps and evaluations, beside the originals' formulation and the prediction.

    python -m benchmarks                                              the most important cases first, 20 minutes
    python -m benchmarks --trainers CoOp --classes 50 --minutes 4     a part of them
    python -m benchmarks --full                                       all cases, without a limit of time

CLIP has its architecture and random weights. After each case, results.json and table.md are written; the pictures are
drawn at the end. The same command goes on with the missing cases.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

from dassl.infrastructure.command import command
from dassl.infrastructure.streams import progress

from .cases import BACKBONES, BATCHES, CLASSES, SETTINGS, Case, plan_cases

ROOT = Path(__file__).resolve().parents[1]
START = 12  # s from the start of a case's process until its trainer is built
RATE = {"cpu": 60, "cuda": 10_000}  # GFLOP/s, a guess that the first case corrects


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--trainers", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES)
    parser.add_argument(
        "--batch", nargs="+", type=int, default=BATCHES, help="training; evaluation has 32 and 100, TPT 1 and 4"
    )
    parser.add_argument("--prec", nargs="+", help="fp32, amp, bf16; default: fp32 on a CPU, fp32 and bf16 on CUDA")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--steps", type=int, default=3, help="largest number of rounds, of which medians are taken")
    parser.add_argument("--minutes", type=float, default=20, help="time limit; cases that do not fit are listed")
    parser.add_argument("--full", action="store_true", help="no time limit")
    parser.add_argument("--output-dir", default="output/bench")
    return parser.parse_args(argv)


class Pace:
    """The expected seconds of cases, corrected by the seconds of the cases that are done.

    A case is expected to take START and its operations at `rate`, times the ratio of measured to expected seconds. Its
    `costs` are those of `counts.count`.

    Args:
        steps: largest number of rounds of a case.
        rate: GFLOP a second.
        share: s after which a case begins no further round.
    """

    def __init__(self, steps: int, rate: float, share: float):
        self.steps, self.rate, self.share = steps, rate, share
        self.measured_seconds = self.guessed_seconds = 1.0

    def guess(self, case: Case, costs: dict, skip: str) -> float:
        forms = ["ours"] if skip else ["ours", "reference"]
        step_seconds = sum(costs[form].round for form in forms) / self.rate
        warm_up = 0 if case.kind == "eval" else step_seconds  # the step of which the memory is measured
        return START + warm_up + step_seconds * min(self.steps, 1 + max(0, self.share - warm_up) // step_seconds)

    def expected(self, case: Case, costs: dict, skip: str) -> float:
        """Return the expected seconds of a case.

        Args:
            case: the case.
            costs: its costs.
            skip: reason why its reference is not run; "": it is run.
        """
        return self.guess(case, costs, skip) * self.measured_seconds / self.guessed_seconds

    def learn(self, case: Case, costs: dict, skip: str, seconds: float) -> None:
        self.measured_seconds += seconds
        self.guessed_seconds += self.guess(case, costs, skip)


def main(argv: list[str] | None = None) -> list[str]:
    """Measure the cases of a command, and return a line for each case that failed."""
    args = parse(argv)
    import torch  # here, because it takes seconds and --help does not need it

    from orthcr.run.results import git_revision

    from .pictures import draw
    from .results import Results

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "CPU, seconds of the process with one thread"
    versions = {"torch": f"torch {torch.__version__}", "commit": f"commit {git_revision()}"}
    folder = Path(args.output_dir)
    results = Results(folder, {"device": device, **versions})
    precisions = args.prec or (["fp32", "bf16"] if cuda else ["fp32"])
    cases = plan_cases(args.trainers, args.classes, args.batch, precisions, args.backbones)
    cases = [case for case in cases if case not in results.cases]
    limit = float("inf") if args.full else 60 * args.minutes
    pace = Pace(args.steps, RATE["cuda" if cuda else "cpu"], min(limit, 1200) / 10)
    failures = work_off(cases, results, pace, limit, cuda)
    print(f"\n{results.text()}")
    for path in draw(results, folder):
        print(path)
    print(f"Results are in {folder}")
    return failures


def work_off(cases: list[Case], results, pace: Pace, limit: float, cuda: bool) -> list[str]:
    """Measure the cases for which there is time, and write the results after each.

    Args:
        cases: in their order.
        results: get the measurements, and the reasons of cases that are left out.
        pace: the expected seconds of a case.
        limit: seconds for all cases.
        cuda: they run on a GPU.

    Returns:
        A line for each case that failed.
    """
    from .counts import count
    from .measure import random_clip

    end, failures = time.time() + limit, []
    with tempfile.TemporaryDirectory() as scratch, progress(total=len(cases), unit="case") as bar:
        for k, case in enumerate(cases):
            start = time.time()
            costs = count(case) if start < end else None
            skip = too_large(case, costs, free_memory(cuda)) if costs else ""
            if not costs or start + pace.expected(case, costs, skip) > end:
                results.left_out[case] = "no time was left"
                continue
            bar.set_postfix_str(str(case))
            task = {"weights": random_clip(case.backbone, Path(scratch)), "steps": pace.steps, "seconds": pace.share}
            measurement, error = run({**case._asdict(), **task, "skip": skip})
            if error:
                failures.append(f"{case}: {error}")
                results.left_out[case] = f"failed ({error})"
                tqdm.write(failures[-1])
            else:
                costs_of_case = {form: {"gflop": cost.gflop, "gib": cost.gib} for form, cost in costs.items()}
                results.cases[case] = {**measurement, "counted": costs_of_case, "date": date()}
                pace.learn(case, costs, skip, time.time() - start)
                time_left = "" if limit == float("inf") else f", {max(0, end - time.time()) / 60:.0f} min left"
                tqdm.write(f"[{k + 1} of {len(cases)}{time_left}] {results.line(case)}")
            results.write()
            sys.stdout.flush()
            bar.update(k + 1 - bar.n)
    results.write()
    return failures


def run(task: dict) -> tuple[dict, str]:
    """Run a case in a process.

    Args:
        task: name of a task of `benchmarks.measure`.

    Returns:
        The measurement, and the reason if the process failed.
    """
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.measure", json.dumps(task)]
    process = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1]), ""
    if process.returncode < 0:
        return {}, f"ended by signal {-process.returncode}, which is most often for want of memory"
    lines = process.stderr.strip().splitlines() or ["without a word"]
    return {}, lines[-1][:300]


def too_large(case: Case, costs: dict, free_gib: float) -> str:
    """Return the reason why the reference's step with gradients cannot be run, or an empty text.

    Args:
        case: the case.
        costs: its costs.
        free_gib: memory in GiB.
    """
    if case.kind == "eval":
        return ""
    needed_gib = costs["reference"].gib
    return f"needs about {needed_gib:.0f} GiB, {free_gib:.0f} GiB were free" if needed_gib > 0.9 * free_gib else ""


def free_memory(cuda: bool) -> float:
    """Return the free memory of the GPU, or the available memory of the machine, in GiB."""
    if cuda:
        import torch

        return torch.cuda.mem_get_info()[0] / 2**30
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20  # from KiB
    except OSError:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def date() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: the same command goes on"))
