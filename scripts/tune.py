"""The tuning of every method on the `val` split of Shapes, 8 settings each, and its table in docs/tuning.md.

    python -m scripts.tune [METHOD ...]       # 8 x 2 runs a method; finished settings are not run again

A setting is trained on 16 shots of the base classes with seeds 1 and 2 and judged by the harmonic mean of its
accuracy on the val images of the base and of the new classes. No test image is looked at.
"""

import itertools
import json
import re
import sys
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from dassl.infrastructure.command import command
from orthcr.compare.plans import Job, execute, make_parser
from orthcr.compare.stages import Method, Stages
from orthcr.reports.tables import harmonic_mean

ROOT = Path(__file__).resolve().parents[1]

REG, TAU, LAMBDA = "TRAINER.ORTHCR.REG", "TRAINER.ORTHCR.TAU", "TRAINER.ORTHCR.LAMBDA"
LR, EPOCHS, N_CTX = "OPTIM.LR", "OPTIM.MAX_EPOCH", "TRAINER.COOP.N_CTX"  # N_CTX 0: from the words "a photo of a"
BATCH = "DATALOADER.TRAIN_X.BATCH_SIZE"
# Heading, which begins with the trainer's name -> (fixed settings, grid): 8 settings each, the published values of a
# key among them; 2 for the regularizers that are no default. TipAdapter is not trained: it searches on val by itself
GRIDS = {
    "OrthCR": ([REG, "cross_kl"], {LR: [2e-4, 5e-4], LAMBDA: [0.25, 1.0], TAU: [1.0, 4.0]}),
    "CoOp": ([], {LR: [0.002, 0.01, 0.05, 0.2], N_CTX: [0, 4]}),
    "CoCoOp": ([], {LR: [0.002, 0.01, 0.05, 0.2], EPOCHS: [10, 20]}),
    "KgCoOp": ([], {LR: [0.002, 0.05], "TRAINER.COOP.W": [0.5, 1.0, 4.0, 8.0]}),
    "ProGrad": ([], {LR: [0.002, 0.01, 0.05, 0.2], "LOSS.LAMBDA": [0.8, 1.0]}),
    "MaPLe": ([], {LR: [0.0035, 0.01, 0.03, 0.1], "TRAINER.MAPLE.PROMPT_DEPTH": [2, 3]}),
    "IVLP": ([], {LR: [0.0025, 0.01, 0.03, 0.1], "TRAINER.IVLP.PROMPT_DEPTH_VISION": [1, 3]}),
    "VPT": ([], {LR: [0.0025, 0.01, 0.03, 0.1], "TRAINER.VPT.N_CTX_VISION": [4, 8]}),
    "PromptSRC": ([], {LR: [0.0025, 0.01, 0.03, 0.1], "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT": [5.0, 25.0]}),
    "MMRL": ([], {LR: [0.001, 0.003], "TRAINER.MMRL.REG_WEIGHT": [0.2, 0.5, 2.0, 7.0]}),
    "MMRLpp": ([], {LR: [0.001, 0.003], "TRAINER.MMRLpp.REG_WEIGHT": [0.2, 0.5, 2.0, 7.0]}),
    "TCP": ([], {LR: [0.002, 0.005], "TRAINER.COOP.W": [0.5, 2.0, 8.0, 16.0]}),
    "MMA": ([], {LR: [0.0015, 0.005, 0.015, 0.05], EPOCHS: [5, 20]}),
    "DePT": ([], {LR: [0.0035, 0.01, 0.02, 0.05], "TRAINER.LINEAR_PROBE.WEIGHT": [0.3, 0.7]}),
    "CoPrompt": ([], {LR: [0.0035, 0.01, 0.03, 0.1], "TRAINER.W": [1.0, 8.0]}),
    "CLIP_SVD": ([], {LR: [5e-4, 2e-3, 5e-3, 0.02], EPOCHS: [20, 40]}),
    "TwoStageFS": ([], {LR: [5e-4, 2e-3, 5e-3, 0.02], "TRAINER.TWOSTAGEFS.N_ITERS_FRAC": [0.4, 0.6]}),
    "CLIP_Adapter": ([], {LR: [0.002, 0.01, 0.05, 0.2], "TRAINER.CLIP_ADAPTER.RATIO": [0.2, 0.6]}),
    "TipAdapterF": ([], {LR: [3e-4, 0.001, 0.003, 0.01], EPOCHS: [20, 50]}),
    "LinearProbe": (
        [],
        {LR: [0.01, 0.1], "TRAINER.ADAPTER.INIT": ["ZS", "TR"], "TRAINER.ADAPTER.CONSTRAINT": ["none", "l2"]},
    ),
    "CLIPLoRA": ([], {LR: [2e-4, 5e-4, 2e-3, 5e-3], "TRAINER.CLIPLORA.R": [2, 8]}),
    "FullFT": ([], {LR: [1e-5, 3e-5, 1e-4, 3e-4], EPOCHS: [20, 40]}),
    "BlockFT": ([], {LR: [1e-4, 2e-4, 5e-4, 1e-3], "TRAINER.BLOCKFT.HALF": [False, True]}),
    "OrthSR": ([], {LR: [2e-4, 5e-4], "TRAINER.ORTHSR.LAMBDA": [0.25, 1.0], "TRAINER.ORTHSR.TAU": [1.0, 4.0]}),
    "OrthCR none": ([REG, "none"], {LR: [1e-4, 2e-4, 5e-4, 1e-3], EPOCHS: [20, 40]}),
    "OrthCR self_kl": ([REG, "self_kl", TAU, "4.0"], {LR: [5e-4], LAMBDA: [0.25, 1.0]}),
    "OrthCR cross_ce": ([REG, "cross_ce"], {LR: [5e-4], LAMBDA: [0.25, 1.0]}),
    "OrthSR as reviewed": ([], {LR: [1e-4, 2e-4, 5e-4, 1e-3], EPOCHS: [20, 40]}),
    "OrthCR as reviewed": ([], {LR: [1e-4, 2e-4, 5e-4, 1e-3], EPOCHS: [20, 40]}),
    # which rate transfers to other numbers of steps: docs/methods.md#how-far-it-turns
    "OrthCR, 100 steps, 10 epochs": ([EPOCHS, "10"], {LR: [5e-4, 1e-3, 2e-3, 4e-3]}),
    "OrthCR, 400 steps": ([], {LR: [1.25e-4, 2.5e-4, 5e-4, 1e-3]}),
    "OrthCR, 1600 steps, batch 8": ([BATCH, "8"], {LR: [6e-5, 1.25e-4, 2.5e-4, 5e-4]}),
    "OrthCR, 1600 steps, 160 epochs": ([EPOCHS, "160"], {LR: [6e-5, 1.25e-4, 2.5e-4, 5e-4]}),
    # only narrowed the ranges above
    "OrthCR, first pass, 20 epochs": (
        [REG, "cross_kl", EPOCHS, "20"],
        {LR: [2e-4, 5e-4, 1e-3, 2e-3], LAMBDA: [0.05, 0.25, 1.0, 4.0]},
    ),
    "OrthCR none, first pass": ([REG, "none"], {LR: [2e-4, 5e-4, 1e-3], EPOCHS: [5, 10]}),
}
FILES = {"OrthSR as reviewed": "tiny_published", "OrthCR as reviewed": "tiny_published"}  # the others have tiny.yaml
SEEDS = (1, 2)
RESULTS_FILE = ROOT / "docs" / "tuning.json"  # also has a third seed of OrthCR and CoOp, from a tuning with three seeds


def settings(heading: str) -> list[dict]:
    """Return each point of a heading's grid."""
    grid = GRIDS[heading][1]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def make_job(heading: str, setting: dict, seed: int, out: Path) -> Job:
    """Return a training on the base classes, and its evaluations on the val images of the base and the new classes.

    Args:
        heading: one of `GRIDS`.
        setting: a point of its grid.
        seed: seed of the training.
        out: output directory.
    """
    trainer, fixed_settings = re.match(r"\w+", heading)[0], GRIDS[heading][0]
    words = [str(word) for item in setting.items() for word in item]
    if trainer == "CoOp":
        words += ["TRAINER.COOP.CTX_INIT", "a photo of a" if setting[N_CTX] == 0 else ""]
    name = "_".join(words[1::2]).replace(" ", "-")
    folder = out / heading.replace(" ", "_") / name / f"seed{seed}"
    stages = Stages(Method(trainer, FILES.get(heading, ""), (*fixed_settings, *words)), ROOT / "data", out)
    runs = [stages.plan_run("base_train", folder, "shapes", seed, "base", opts=("TEST.NO_TEST", "True"))]
    val_options = ("DATASET.NUM_SHOTS", "-1", "TEST.SPLIT", "val", "TEST.NO_TEST", "False")
    for classes in ("base", "new"):
        test_dir = folder / "eval" / f"Shapes-{classes}-val"
        runs.append(
            stages.plan_run(f"{classes}_val", test_dir, "shapes", seed, classes, model=folder, opts=val_options)
        )
    return Job(tuple(runs))


def main(argv: list[str] | None = None) -> list[str]:
    """Run the tuning and write its tables; return a line for each setting and seed that failed."""
    flags = make_parser(__doc__, "tune")
    flags.add_argument("methods", nargs="*", help=f"of {list(GRIDS)}; default: all")
    args = flags.parse_intermixed_args(argv)
    unknown_headings = [heading for heading in args.methods if heading not in GRIDS]
    if unknown_headings:
        flags.error(f"there is no {unknown_headings[0]}, only {', '.join(GRIDS)}")

    tuning = json.loads(RESULTS_FILE.read_text()) if RESULTS_FILE.exists() else []
    finished = {(t["method"], json.dumps(t["setting"]), t["seed"]) for t in tuning}
    jobs = {}
    for seed, heading in itertools.product(SEEDS, args.methods or GRIDS):  # seeds outside: an early stop ends a seed
        for setting in settings(heading):
            if (heading, json.dumps(setting), seed) not in finished:
                row = {"method": heading, "setting": setting, "seed": seed}
                jobs[make_job(heading, setting, seed, args.output_dir)] = row

    def on_job_done(job: Job, results: list[dict]) -> None:
        tuning.append(jobs[job] | {"base": results[1]["accuracy"], "new": results[2]["accuracy"]})
        RESULTS_FILE.write_text(json.dumps(tuning, indent=0))

    failures = execute(list(jobs), args.workers, "tuning", on_job_done)
    RESULTS_FILE.with_suffix(".md").write_text(page(tuning))
    return failures


def page(results: list[dict]) -> str:
    """Return docs/tuning.md: a table for each method, mean of the seeds in percent, the best setting in bold."""
    intro = __doc__.split("\n\n")[-1].strip()
    text = [
        f"# Tuning\n\nWritten by `python -m scripts.tune`. {intro}\n\nEverything else is as in "
        "`configs/trainers/*/tiny.yaml`. Accuracies on val in percent, mean of the seeds; the best in bold. For "
        'CoOp, `N_CTX 0` means a context that starts from the words "a photo of a". Before, '
        "OrthCR alone had a first pass of 16 settings and its regularizer none one of 6, at the end of the page.\n"
    ]
    for heading, (_, grid) in GRIDS.items():
        rows = []
        for setting in settings(heading):
            runs = [t for t in results if (t["method"], t["setting"]) == (heading, setting) and t["seed"] in SEEDS]
            if runs:
                h = fmean(harmonic_mean(t["base"], t["new"]) for t in runs)
                rows.append([*setting.values(), fmean(t["base"] for t in runs), fmean(t["new"] for t in runs), h])
        if not rows:
            continue
        best = max(row[-1] for row in rows)
        seeds = {t["seed"] for t in results if t["method"] == heading} & set(SEEDS)
        for row in rows:
            row[-3:] = [f"**{x:.1f}**" if row[-1] == best else f"{x:.1f}" for x in row[-3:]]
        note = "" if seeds == set(SEEDS) else f"Seeds so far: {', '.join(map(str, sorted(seeds)))}.\n\n"
        text.append(f"## {heading}\n\n{note}" + tabulate(rows, [*grid, "base", "new", "H"], "github") + "\n")
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: give the same command again to resume the runs", 1))
