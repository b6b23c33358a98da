"""The tables and pictures of docs/strength.md: every weight method at each strength, on the embedded data.

    python -m scripts.strength_curves [--trainers OrthCR FullFT CLIPLoRA OrthSR] [--points CoOp] [--output-dir DIR]

It trains each method as `benchmark.py` does, by all four protocols with seeds 1, 2, 3, in the same folders. With the
`--output-dir` of a finished benchmark nothing is trained. Then it does what `orthcr strength` does, with all
these models. The same command given again resumes.
"""

import sys
from pathlib import Path

from dassl.infrastructure.command import command
from orthcr.compare.command_line import NAMES, parse_arguments
from orthcr.compare.methods import registered_trainers
from orthcr.compare.plans import Job, execute, make_parser
from orthcr.compare.schedule import make_plan
from orthcr.compare.stages import Method
from orthcr.compare.strength_curve import write_curve

ROOT = Path(__file__).resolve().parents[1]

TRAINERS = ("OrthCR", "OrthSR", "FullFT", "CLIPLoRA")


def main(argv: list[str] | None = None) -> list[str]:
    """Train the models and measure them at each strength; return a line for each training that failed."""
    flags = make_parser(__doc__, "strength")
    flags.add_argument("--trainers", nargs="+", default=list(TRAINERS), help=f"default: {' '.join(TRAINERS)}")
    flags.add_argument("--points", nargs="*", default=[], help="other methods, as points")
    flags.add_argument("--protocol", nargs="+", default=list(NAMES), choices=NAMES, help="default: all four")
    flags.add_argument("--root", type=Path, default=ROOT / "data", help="folder of the data sets")
    args = flags.parse_args(argv)
    words = ["--root", str(args.root), "--output-dir", str(args.output_dir), "--shots", "1", "4", "16"]
    methods = list(map(Method, registered_trainers([*args.trainers, *args.points])))
    jobs = make_plan(methods, [NAMES[name] for name in args.protocol], parse_arguments(words))
    trainings = [Job(job.runs[:1], job.seconds, job.kind) for job in jobs]
    failures = execute(trainings, args.workers, "strength")
    if not failures:
        print(write_curve([job.runs[0].folder for job in trainings], args.output_dir / "strength", str(args.root)))
    return failures


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: give the same command again to resume the runs", 1))
