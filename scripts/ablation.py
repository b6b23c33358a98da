"""Ablation of OrthCR's parts on the test images of Shapes: base-to-new, seeds 1-3.

    python -m scripts.ablation [--output-dir output/ablation]

Each regularizer has its own best setting on val. Every other case differs from OrthCR's configuration in one key. The
last column is the harmonic mean minus that of OrthCR, paired by seed. The same command given again resumes.
"""

import sys
from pathlib import Path
from statistics import mean, pstdev

from tabulate import tabulate

from dassl.infrastructure.command import command
from orthcr.compare.plans import Job, execute, make_parser
from orthcr.compare.stages import SEEDS, Method, Stages
from orthcr.reports.tables import format_mean, harmonic_mean

ROOT = Path(__file__).resolve().parents[1]

KEY = "TRAINER.ORTHCR."
CASES = {  # regularizers have the settings in bold in docs/tuning.md
    "OrthCR": (),
    "REG none": (KEY + "REG", "none", "OPTIM.LR", "0.0005"),
    "REG self_kl": (KEY + "REG", "self_kl", KEY + "LAMBDA", "1.0"),
    "REG cross_ce": (KEY + "REG", "cross_ce", KEY + "LAMBDA", "0.25"),
    "LAMBDA 1": (KEY + "LAMBDA", "1.0"),
    "LAMBDA 4": (KEY + "LAMBDA", "4.0"),
    "BLOCK_SIZE 16": (KEY + "BLOCK_SIZE", "16"),
    "BLOCK_SIZE 0, whole": (KEY + "BLOCK_SIZE", "0"),
    "attention only": (KEY + "WEIGHTS", "['q', 'k', 'v', 'out']"),
    "MLP only": (KEY + "WEIGHTS", "['c_fc', 'c_proj']"),
    "image only": (KEY + "ENCODERS", "['image']"),
    "text only": (KEY + "ENCODERS", "['text']"),
    "no Cutout": ("INPUT.TRANSFORMS", "['random_resized_crop', 'normalize']"),
}


def main(argv: list[str] | None = None) -> list[str]:
    """Run the ablation and print its table; return a line for each case and seed that failed."""
    args = make_parser(__doc__, "ablation").parse_args(argv)
    jobs, accuracies = {}, {}  # accuracies: {(case, seed): (base, new, harmonic mean)}
    for case, opts in CASES.items():
        folder = args.output_dir / case.replace(",", "").replace(" ", "_")
        stages = Stages(Method("OrthCR", opts=opts), ROOT / "data", folder)
        for seed in SEEDS:
            jobs[Job((stages.base2new_train("shapes", seed), stages.base2new_test("shapes", seed)))] = case, seed

    def on_job_done(job: Job, results: list[dict]) -> str:
        base, new = (r["accuracy"] for r in results)
        case, seed = jobs[job]
        h = harmonic_mean(base, new)
        accuracies[case, seed] = base, new, h
        return f"{case}, seed {seed}: base {base:.1f}  new {new:.1f}  H {h:.1f}"

    failures = execute(list(jobs), args.workers, "ablation", on_job_done)
    if failures:
        return failures
    rows = []
    for case in CASES:
        figures = [format_mean(values) for values in zip(*(accuracies[case, seed] for seed in SEEDS), strict=True)]
        gain = ""
        if case != "OrthCR":
            gains = [accuracies[case, seed][2] - accuracies["OrthCR", seed][2] for seed in SEEDS]
            gain = f"{mean(gains):+.1f} ± {pstdev(gains):.1f}"
        rows.append([case, *figures, gain])
    heads = ["", "base", "new", "harmonic mean", "less OrthCR"]
    print(tabulate(rows, heads, "github", colalign=("left", *["right"] * 4)))
    return []


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: give the same command again to resume the runs", 1))
