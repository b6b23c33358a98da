"""What a strength does to every weight method: the tables and pictures of docs/strength.md, on the embedded data.

    python scripts/strength.py [--trainers OrthCR FullFT CLIPLoRA OrthSR] [--points CoOp] [--output-dir output/strength]

Trains each as `benchmark.py` does, by all four protocols with seeds 1, 2, 3, in the same folders, so that a finished
benchmark's `--output-dir` needs no training; then `python -m experiments.strength` with all these models. Given again,
it goes on where it was.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from dassl.command import command  # noqa: E402
from experiments.benchmark import plan, registered  # noqa: E402
from experiments.flags import NAMES, arguments  # noqa: E402
from experiments.plans import Job, execute, parser  # noqa: E402
from experiments.protocols import Method  # noqa: E402
from experiments.strength import curve  # noqa: E402

TRAINERS = ("OrthCR", "OrthSR", "FullFT", "CLIPLoRA")


def main(argv: list[str] | None = None) -> list[str]:
    """Returns a line for each training that failed."""
    made = parser(__doc__, "strength")
    made.add_argument("--trainers", nargs="+", default=list(TRAINERS), help=f"default: {' '.join(TRAINERS)}")
    made.add_argument("--points", nargs="*", default=[], help="other methods, as points")
    made.add_argument("--protocol", nargs="+", default=list(NAMES), choices=NAMES, help="default: all four")
    made.add_argument("--root", type=Path, default=ROOT / "data", help="folder of the data sets")
    args = made.parse_args(argv)
    words = ["--root", str(args.root), "--output-dir", str(args.output_dir), "--shots", "1", "4", "16"]
    methods = list(map(Method, registered([*args.trainers, *args.points])))
    jobs = plan(methods, [NAMES[name] for name in args.protocol], arguments(words))
    trainings = [Job(job.runs[:1], job.seconds, job.kind) for job in jobs]
    failed = execute(trainings, args.workers, "strength")
    if not failed:
        print(curve([job.runs[0].folder for job in trainings], args.output_dir / "strength", str(args.root)))
    return failed


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: the same command goes on with the runs that were under way", 1))
