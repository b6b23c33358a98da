"""A study on val of OrthCR's REACH: does it transfer to other numbers of steps, batches, epochs and data sets?

    python -m scripts.reach [--output-dir output/reach]

REACH is rate x sqrt(steps). Each case is trained with four values of it and seeds 1 and 2, everything else as in
`tiny.yaml`. The table has the accuracy on val (Shapes: the harmonic mean of base and new classes) with the mean angle
in degrees by which the weights were rotated. No test image is looked at. The same command given again resumes.
"""

import sys
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from dassl.infrastructure.command import command
from orthcr.compare.plans import Job, execute, make_parser
from orthcr.compare.stages import Method, Stages
from orthcr.reports.tables import harmonic_mean

ROOT = Path(__file__).resolve().parents[1]

SEEDS = (1, 2)
REACHES = (0.0025, 0.005, 0.01, 0.02)
CASES = {  # (data set, shots, batch, epochs)
    "Shapes, 16 shots, batch 4, 20 epochs": ("shapes", 16, 4, 20),
    "Digits, 16 shots, batch 32, 10 epochs": ("digits", 16, 32, 10),
    "Digits, 16 shots, batch 32, 40 epochs": ("digits", 16, 32, 40),
    "Digits, 16 shots, batch 4, 40 epochs": ("digits", 16, 4, 40),
    "Digits, 4 shots, batch 32, 40 epochs": ("digits", 4, 32, 40),
}


def make_job(case: str, reach: float, seed: int, out: Path) -> Job:
    """Return a training and its evaluations on val, for Shapes of the base and the new classes.

    Args:
        case: one of `CASES`.
        reach: value of REACH.
        seed: seed of the training.
        out: output directory.
    """
    dataset, shots, batch, epochs = CASES[case]
    opts = ("TRAINER.ORTHCR.REACH", f"{reach:g}", "DATALOADER.TRAIN_X.BATCH_SIZE", f"{batch}")
    stages = Stages(Method("OrthCR", opts=(*opts, "OPTIM.MAX_EPOCH", f"{epochs}")), ROOT / "data", out)
    folder = out / case.replace(",", "").replace(" ", "_") / f"{reach:g}" / f"seed{seed}"
    trained_on, tested_on = ("base", ("base", "new")) if dataset == "shapes" else ("all", ("all",))
    words = ("DATASET.NUM_SHOTS", f"{shots}", "TEST.NO_TEST", "True")
    runs = [stages.plan_run("train", folder, dataset, seed, trained_on, opts=words)]
    val_options = ("DATASET.NUM_SHOTS", "-1", "TEST.SPLIT", "val", "TEST.NO_TEST", "False")
    for classes in tested_on:
        test_dir = folder / "eval" / classes
        runs.append(stages.plan_run(f"{classes}_val", test_dir, dataset, seed, classes, model=folder, opts=val_options))
    return Job(tuple(runs))


def main(argv: list[str] | None = None) -> list[str]:
    """Run the study and print its table; return a line for each training that failed."""
    args = make_parser(__doc__, "reach").parse_args(argv)
    jobs = {make_job(c, r, s, args.output_dir): (c, r, s) for s in SEEDS for c in CASES for r in REACHES}
    measurements = {}  # {(case, reach, seed): (accuracy, degrees)}

    def on_job_done(job: Job, results: list[dict]) -> str:
        training, *tests = results
        accuracies = [r["accuracy"] for r in tests]
        accuracy = harmonic_mean(*accuracies) if len(accuracies) > 1 else accuracies[0]
        degrees = training["rotation_degrees"]["mean"]
        case, reach, seed = jobs[job]
        measurements[case, reach, seed] = accuracy, degrees
        return f"{case}, reach {reach:g}, seed {seed}: {accuracy:.1f}, rotated by {degrees:.1f} degrees"

    failures = execute(list(jobs), args.workers, "reach", on_job_done)
    if failures:
        return failures
    rows = []
    for case in CASES:
        means = []
        for reach in REACHES:
            accuracies, angles = zip(*(measurements[case, reach, seed] for seed in SEEDS), strict=True)
            means.append((fmean(accuracies), fmean(angles)))
        cells = []
        for accuracy, degrees in means:
            text = f"{accuracy:.1f}"
            if (accuracy, degrees) == max(means):
                text = f"**{text}**"
            cells.append(f"{text} ({degrees:.1f})")
        rows.append([case, *cells])
    print(tabulate(rows, ["", *map(str, REACHES)], "github", disable_numparse=True))
    return []


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: give the same command again to resume the runs", 1))
