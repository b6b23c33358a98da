"""All four protocols on the embedded data sets: ZeroshotCLIP, CoOp and OrthCR, seeds 1-3, 16 shots, real training.

    python scripts/protocols.py [base2new fewshot xd dg] [--output-dir output/protocols]

Base-to-new and the source of the transfers are Shapes, few-shot is Digits. Ends with a table and a picture of each,
written to report.md, report.csv and *.png in the output directory, too. Given again, it goes on where it was.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from experiments.command import command  # noqa: E402
from experiments.plans import Job, execute, parser  # noqa: E402
from experiments.protocols import PROTOCOLS, SEEDS, SHOTS, Method, Stages, targets, variants  # noqa: E402
from reports.report import make  # noqa: E402

# The source has twice the classes of base-to-new: half the epochs are as many steps, as papers train it for fewer, too
XD_OPTS = {"CoOp": ("OPTIM.MAX_EPOCH", "25"), "OrthCR": ("OPTIM.MAX_EPOCH", "20")}
SECONDS = {"ZeroshotCLIP": 0.0, "CoOp": 17.0, "OrthCR": 45.0}  # of 20 classes x 16 shots here; for the ETA only


def plan(protocols: list[str], out: Path) -> list[Job]:
    jobs = []
    for trainer, seconds in SECONDS.items():
        stages = Stages(Method(trainer), ROOT / "data", out)
        transfer = Stages(Method(trainer, opts=XD_OPTS.get(trainer, ())), ROOT / "data", out)
        for seed in SEEDS if seconds else SEEDS[:1]:
            if "base2new" in protocols:
                runs = stages.base2new_train("shapes", seed), stages.base2new_test("shapes", seed)
                jobs.append(Job(runs, seconds + 3))
            if "fewshot" in protocols:
                for shots in SHOTS if seconds else [16]:
                    jobs.append(Job((stages.fewshot("digits", seed, shots),), seconds * shots / 32 + 2))
            tests = [transfer.xd_test(name, seed) for name in targets("shapes") if "xd" in protocols]
            tests += [transfer.dg_test(name, seed) for name in variants("shapes") if "dg" in protocols]
            if tests:
                jobs.append(Job((transfer.xd_train("shapes", seed), *tests), seconds + 12))
    return jobs


def main(argv: list[str] | None = None) -> list[str]:
    """Returns a line for each model that failed."""
    arguments = parser(__doc__, "protocols")
    arguments.add_argument("protocols", nargs="*", help=f"of {', '.join(PROTOCOLS)}; default: all")
    args = arguments.parse_args(argv)
    if set(args.protocols) - set(PROTOCOLS):
        arguments.error(f"a protocol is one of {', '.join(PROTOCOLS)}")
    jobs = plan(args.protocols or PROTOCOLS, args.output_dir)
    runs = sum(len(job.runs) for job in jobs)
    print(f"{runs} runs on embedded data, {args.workers} at a time: some minutes on 2 CPU cores", flush=True)
    failed = execute(jobs, args.workers, "protocols")
    if not failed:
        make([args.output_dir], output_dir=args.output_dir)
        print(f"\n{args.output_dir}: report.md, report.csv and a picture of each table")
    return failed


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: make protocols goes on with the runs that were under way", 1))
