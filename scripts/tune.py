"""Tunes every method on the `val` split of Shapes, 8 settings each, and writes the outcome to docs/tuning.md.

    python scripts/tune.py [METHOD ...]       # 8 x 3 runs a method; finished settings are not run again

A setting is trained on 16 shots of the base classes with seeds 1, 2, 3 and judged by the harmonic mean of its
accuracy on the val images of the base and of the new classes. No test image is looked at.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from report import harmonic_mean  # noqa: E402

ABLATION = {"OPTIM.LR": [5e-4], "TRAINER.ORTHCR.LAMBDA": [0.25, 1.0]}
GRIDS = {  # method -> (trainer, fixed settings, grid): 8 settings a method; 2 for the regularizers that are no default
    "OrthCR": (
        "OrthCR",
        ["TRAINER.ORTHCR.REG", "cross_kl"],
        {"OPTIM.LR": [2e-4, 5e-4], "TRAINER.ORTHCR.LAMBDA": [0.25, 1.0], "TRAINER.ORTHCR.TAU": [1.0, 4.0]},
    ),
    "CoOp": (
        "CoOp",
        [],
        {"OPTIM.LR": [0.002, 0.01, 0.05, 0.2], "TRAINER.COOP.N_CTX": [0, 4]},
    ),  # 0: from the words "a photo of a"
    "OrthCR none": (
        "OrthCR",
        ["TRAINER.ORTHCR.REG", "none"],
        {"OPTIM.LR": [1e-4, 2e-4, 5e-4, 1e-3], "OPTIM.MAX_EPOCH": [20, 40]},
    ),
    "OrthCR self_kl": ("OrthCR", ["TRAINER.ORTHCR.REG", "self_kl", "TRAINER.ORTHCR.TAU", "4.0"], ABLATION),
    "OrthCR cross_ce": ("OrthCR", ["TRAINER.ORTHCR.REG", "cross_ce"], ABLATION),
    # only narrowed the ranges above
    "First pass: OrthCR, 20 epochs": (
        "OrthCR",
        ["TRAINER.ORTHCR.REG", "cross_kl", "OPTIM.MAX_EPOCH", "20"],
        {"OPTIM.LR": [2e-4, 5e-4, 1e-3, 2e-3], "TRAINER.ORTHCR.LAMBDA": [0.05, 0.25, 1.0, 4.0]},
    ),
    "First pass: OrthCR none": (
        "OrthCR",
        ["TRAINER.ORTHCR.REG", "none"],
        {"OPTIM.LR": [2e-4, 5e-4, 1e-3], "OPTIM.MAX_EPOCH": [5, 10]},
    ),
}
SEEDS = (1, 2, 3)


def job(task: tuple[str, dict, int, str]) -> dict:
    """Trains one setting with one seed; returns its accuracies on val."""
    method, setting, seed, out = task
    import torch

    from train import parse, run

    torch.set_num_threads(1)
    trainer, fixed, _ = GRIDS[method]
    words = [str(w) for item in setting.items() for w in item]
    if trainer == "CoOp":
        words += ["TRAINER.COOP.CTX_INIT", "a photo of a" if setting["TRAINER.COOP.N_CTX"] == 0 else ""]
    folder = f"{out}/{method}/{'_'.join(words[1::2]).replace(' ', '-')}/seed{seed}".replace(" ", "_")
    common = ["--trainer", trainer, "--seed", str(seed), "--root", str(ROOT / "data")]
    with open(os.devnull, "w") as null, redirect_stdout(null):
        base = ["DATASET.SUBSAMPLE_CLASSES", "base", "TEST.NO_TEST", "True"]
        run(parse([*common, "--output-dir", folder, *fixed, *words, *base]))
        acc = {}
        for classes in ("base", "new"):
            ask = [
                "DATASET.SUBSAMPLE_CLASSES",
                classes,
                "DATASET.NUM_SHOTS",
                "-1",
                "TEST.SPLIT",
                "val",
                "TEST.NO_TEST",
                "False",
            ]
            acc[classes] = run(parse([*common, "--eval-only", "--model-dir", folder, *ask]))["accuracy"]
    return {"method": method, "setting": setting, "seed": seed, **acc}


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=list(GRIDS), help=f"of {list(GRIDS)}")
    parser.add_argument("--out", default=str(ROOT / "output" / "tune"))
    args = parser.parse_args()

    kept = ROOT / "docs" / "tuning.json"
    done = json.loads(kept.read_text()) if kept.exists() else []
    known = {(d["method"], json.dumps(d["setting"]), d["seed"]) for d in done}
    tasks = []
    for method in args.methods:
        grid = GRIDS[method][2]
        for values in itertools.product(*grid.values()):
            setting = dict(zip(grid, values, strict=True))
            tasks += [(method, setting, s, args.out) for s in SEEDS if (method, json.dumps(setting), s) not in known]
    # spawn, one thread each: two runs side by side are faster than one run on two cores
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for result in tqdm(pool.map(job, tasks), "tuning", total=len(tasks)):
            done.append(result)
            kept.write_text(json.dumps(done, indent=0))
    (ROOT / "docs" / "tuning.md").write_text(page(done))


def page(done: list[dict]) -> str:
    """Markdown: a table a method, mean of the seeds in percent, the best setting in bold."""
    intro = __doc__.split("\n\n")[-1].strip()
    text = [
        f"# Tuning\n\nWritten by `python scripts/tune.py`. {intro}\n\nEverything else is as in "
        "`configs/trainers/*/tiny.yaml`. Accuracies on val in percent, mean of 3 seeds; the best setting in bold. For "
        'CoOp, `N_CTX 0` means a context that starts from the words "a photo of a".\n'
    ]
    for method, (_, _, grid) in GRIDS.items():
        rows = []
        for values in itertools.product(*grid.values()):
            runs = [d for d in done if d["method"] == method and list(d["setting"].values()) == list(values)]
            if runs:
                h = mean(harmonic_mean(d["base"], d["new"]) for d in runs)
                rows.append([*values, mean(d["base"] for d in runs), mean(d["new"] for d in runs), h])
        best = max((row[-1] for row in rows), default=0)
        for row in rows:
            row[-3:] = [f"**{x:.1f}**" if row[-1] == best else f"{x:.1f}" for x in row[-3:]]
        text.append(f"## {method}\n\n" + tabulate(rows, [*grid, "base", "new", "H"], "github") + "\n")
    return "\n".join(text)


if __name__ == "__main__":
    main()
