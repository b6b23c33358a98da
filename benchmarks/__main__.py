"""Measures training steps and evaluations beside the originals' formulation: time, memory, and what was predicted.

    python -m benchmarks                                              the most telling cases first, 20 minutes
    python -m benchmarks --trainers CoOp --classes 50 --minutes 4     some of them
    python -m benchmarks --full                                       all, for as long as it takes

CLIP's architecture with random weights. After each case, results.json, table.md and the pictures are written; the same
command goes on with the cases that are missing.
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

from dassl.command import command
from dassl.streams import progress

from . import flops
from .cases import BATCHES, CLASSES, SETTINGS, Case, plan

ROOT = Path(__file__).resolve().parents[1]
START = 12  # s until a case's process has its trainer
RATE = {"cpu": 60, "cuda": 10_000}  # GFLOP/s, until the first case says better


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--trainers", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES)
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="of training; evaluation has 32 and 100")
    parser.add_argument("--prec", nargs="+", help="fp32, amp, bf16; default: fp32 on a CPU, fp32 and bf16 on CUDA")
    parser.add_argument("--backbones", nargs="+", choices=list(flops.BACKBONES), default=list(flops.BACKBONES))
    parser.add_argument("--steps", type=int, default=3, help="rounds of both formulations, at most; gives medians")
    parser.add_argument("--minutes", type=float, default=20, help="cases for which no time is left are listed")
    parser.add_argument("--full", action="store_true", help="no limit of time")
    parser.add_argument("--output-dir", default="output/bench")
    return parser.parse_args(argv)


class Pace:
    """How long cases take: START and their operations at `rate`, times what those measured took beyond that.

    Args:
        steps: rounds of a case, at most.
        rate: GFLOP a second.
        share: s after which a case begins no further round.
    """

    def __init__(self, steps: int, rate: float, share: float):
        self.steps, self.rate, self.share = steps, rate, share
        self.taken = self.told = 1.0  # s, of what was measured, and as `plain` had it

    def plain(self, case: Case, skip: str) -> float:
        reference, ours = case.measured
        once = (ours + (0 if skip else reference)) / self.rate
        warm = once if case.kind == "train" else 0  # the step of which the memory is measured
        return START + warm + once * min(self.steps, 1 + max(0, self.share - warm) // once)

    def expected(self, case: Case, skip: str) -> float:
        """Seconds of a case; `skip`: why its reference is not run, if so."""
        return self.plain(case, skip) * self.taken / self.told

    def learn(self, case: Case, skip: str, seconds: float) -> None:
        self.taken += seconds
        self.told += self.plain(case, skip)


def main(argv: list[str] | None = None) -> list[str]:
    """A line for each case that failed."""
    args = parse(argv)
    import torch  # not above: it takes seconds, and --help needs none

    from experiments.run import git_revision

    from .pictures import draw
    from .results import Results

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "CPU, seconds of the process with one thread"
    versions = {"torch": f"torch {torch.__version__}", "commit": f"commit {git_revision()}"}
    folder = Path(args.output_dir)
    results = Results(folder, {"device": device, **versions})
    cases = plan(args.trainers, args.classes, args.batch, args.prec or ["fp32", "bf16"][: 1 + cuda], args.backbones)
    cases = [case for case in cases if case not in results.cases]
    limit = float("inf") if args.full else 60 * args.minutes
    pace = Pace(args.steps, RATE["cuda" if cuda else "cpu"], min(limit, 1200) / 10)
    failed = work_off(cases, results, pace, limit, cuda)
    print(f"\n{results.text()}")
    for path in draw(results, folder):
        print(path)
    print(f"Results are in {folder}")
    return failed


def work_off(cases: list[Case], results, pace: Pace, limit: float, cuda: bool) -> list[str]:
    """Measures those cases for which there is time, s, and writes what is known after each; a line for each failure."""
    from .measure import random_clip

    end, failed = time.time() + limit, []
    with tempfile.TemporaryDirectory() as scratch, progress(total=len(cases), unit="case") as bar:
        for k, case in enumerate(cases):
            begun, skip = time.time(), too_large(case, free_memory(cuda))
            if begun + pace.expected(case, skip) > end:
                results.left_out[case] = "no time was left"
                continue
            bar.set_postfix_str(str(case))
            task = {"weights": random_clip(case.backbone, Path(scratch)), "steps": pace.steps, "seconds": pace.share}
            measured, wrong = run({**case._asdict(), **task, "skip": skip})
            if wrong:
                failed.append(f"{case}: {wrong}")
                results.left_out[case] = f"failed ({wrong})"
                tqdm.write(failed[-1])
            else:
                results.cases[case] = {**measured, "predicted": case.predicted, "date": date()}
                pace.learn(case, skip, time.time() - begun)
                wanted = sum(pace.expected(other, too_large(other, free_memory(cuda))) for other in cases[k + 1 :])
                minutes = max(0, min(wanted, end - time.time())) / 60
                tqdm.write(f"[{k + 1} of {len(cases)}, {minutes:.0f} min left] {results.line(case)}")
            results.write()
            sys.stdout.flush()
            bar.update(k + 1 - bar.n)
    results.write()
    return failed


def run(task: dict) -> tuple[dict, str]:
    """What a case's process measured, or why it failed."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.measure", json.dumps(task)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), ""
    if done.returncode < 0:
        return {}, f"ended by signal {-done.returncode}, which is most often for want of memory"
    return {}, (done.stderr.strip().splitlines() or ["without a word"])[-1][:300]


def too_large(case: Case, free: float) -> str:
    """Why the reference's training step cannot be run, if so; free: GiB."""
    if case.kind == "eval":
        return ""
    itemsize = 4 if case.prec == "fp32" else 3  # LayerNorms and sums stay in fp32
    need = flops.reference_memory(case.trainer, case.backbone, case.classes, case.batch, itemsize)
    return f"needs about {need:.0f} GiB, {free:.0f} GiB were free" if need > 0.9 * free else ""


def free_memory(cuda: bool) -> float:
    """GiB of the GPU, or of the machine without what can be given back."""
    if cuda:
        import torch

        return torch.cuda.mem_get_info()[0] / 2**30
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20
    except OSError:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def date() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: the same command goes on"))
