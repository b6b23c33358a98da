"""A study of the stability of OrthCR's training against two controls: full fine-tuning of the same weights, and LoRA.

    python -m scripts.stability [--output-dir output/stability]

The protocol is base-to-new on Shapes, seeds 1-3, at five learning rates from a tenth to ten times that of `tiny.yaml`,
everything else as there. Two figures are compared:

- the steps until training first has 95 % of its final accuracy, at the configured rate;
- the range of the harmonic mean on the test images over the rates.

Writes stability.png. The same command given again resumes.
"""

import sys
from pathlib import Path
from statistics import mean

import numpy as np
from tabulate import tabulate

from dassl.infrastructure.command import command
from orthcr.compare.plans import Job, execute, make_parser
from orthcr.compare.stages import SEEDS, Method, Stages
from orthcr.reports.palette import colour_of
from orthcr.reports.pictures import plt, save
from orthcr.reports.tables import format_mean, harmonic_mean
from orthcr.reports.training import read_curves
from orthcr.run.config import setup_cfg

ROOT = Path(__file__).resolve().parents[1]

TRAINERS = ("OrthCR", "FullFT", "CLIPLoRA")
FACTORS = (0.1, 0.32, 1.0, 3.2, 10.0)  # of the configured learning rate


def read_epochs(folder: Path, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps done after each epoch, and its training accuracy in percent, the mean over its batches."""
    values = read_curves(folder)["train/acc"][1]
    batches = len(values) // epochs
    return np.arange(1, epochs + 1) * batches, values[batches - 1 :: batches]


def steps_to_95(steps: np.ndarray, accuracy: np.ndarray) -> int:
    """Return the steps after which the accuracy first is 95 % of the final one."""
    return int(steps[np.argmax(accuracy >= 0.95 * accuracy[-1])])


def main(argv: list[str] | None = None) -> list[str]:
    """Run the study, print its table and draw its picture; return a line for each training that failed."""
    args = make_parser(__doc__, "stability").parse_args(argv)
    jobs, measurements, rates = {}, {}, {}  # measured: {(trainer, factor, seed): (harmonic mean, (steps, accuracies))}
    for trainer in TRAINERS:
        planned_run = Stages(Method(trainer), ROOT / "data", args.output_dir).base2new_train("shapes", SEEDS[0])
        rates[trainer] = setup_cfg(planned_run.spec).OPTIM.LR
        for factor in FACTORS:
            opts = ("OPTIM.LR", f"{factor * rates[trainer]:.3g}")
            stages = Stages(Method(trainer, opts=opts), ROOT / "data", args.output_dir / f"{trainer}_x{factor:g}")
            for seed in SEEDS:
                job = Job((stages.base2new_train("shapes", seed), stages.base2new_test("shapes", seed)))
                jobs[job] = trainer, factor, seed

    def on_job_done(job: Job, results: list[dict]) -> str:
        base, new = (r["accuracy"] for r in results)
        curve = read_epochs(job.runs[0].folder, results[0]["config"]["OPTIM.MAX_EPOCH"])
        h = harmonic_mean(base, new)
        trainer, factor, seed = jobs[job]
        measurements[trainer, factor, seed] = h, curve
        return f"{trainer}, {factor:g} x the rate, seed {seed}: H {h:.1f}"

    failures = execute(list(jobs), args.workers, "stability", on_job_done)
    if failures:
        return failures
    print(table(measurements, rates))
    save(draw_picture(measurements), args.output_dir / "stability.png")
    return []


def table(measurements: dict, rates: dict[str, float]) -> str:
    """Return a table in Markdown: H at each rate, its range over the rates, and the steps to 95 % of the accuracy.

    Args:
        measurements: {(trainer, factor, seed): (harmonic mean, (steps, accuracies))}.
        rates: the configured learning rate of each trainer.
    """
    rows = []
    for trainer in TRAINERS:
        h = [mean(measurements[trainer, factor, seed][0] for seed in SEEDS) for factor in FACTORS]
        steps = [float(steps_to_95(*measurements[trainer, 1.0, seed][1])) for seed in SEEDS]
        cells = [f"{x:.1f}" for x in (*h, max(h) - min(h))]
        rows.append([trainer, f"{rates[trainer]:g}", *cells, format_mean(steps)])
    heads = ["", "rate", *[f"H at x {factor:g}" for factor in FACTORS], "range of H", "steps to 95 %"]
    return tabulate(rows, heads, "github", disable_numparse=True, colalign=("left", *["right"] * (len(heads) - 1)))


def draw_picture(measurements: dict):
    """Draw H over the rate, and the training accuracy over the steps.

    Lines are means. The left bands have all seeds, the right ones all seeds and rates.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for trainer in TRAINERS:
        colour = colour_of(trainer)
        h = np.array([[measurements[trainer, factor, seed][0] for seed in SEEDS] for factor in FACTORS])
        left.plot(FACTORS, h.mean(1), "o-", color=colour, label=trainer)
        left.fill_between(FACTORS, h.min(1), h.max(1), color=colour, alpha=0.2, lw=0)
        steps = measurements[trainer, 1.0, SEEDS[0]][1][0]
        accuracies = np.array([measurements[trainer, factor, seed][1][1] for factor in FACTORS for seed in SEEDS])
        at_configured_rate = np.mean([measurements[trainer, 1.0, seed][1][1] for seed in SEEDS], axis=0)
        right.plot(steps, at_configured_rate, color=colour, label=trainer)
        right.fill_between(steps, accuracies.min(0), accuracies.max(0), color=colour, alpha=0.12, lw=0)
    left.set(xscale="log", xlabel="learning rate, times the configured one", ylabel="H on the test images, %")
    right.set(xlabel="steps", ylabel="training accuracy, %", ylim=(0, 100))
    left.legend()
    return fig


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: give the same command again to resume the runs", 1))
