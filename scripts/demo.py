"""Base-to-new on the embedded Shapes: ZeroshotCLIP, CoOp and OrthCR, seeds 1-3, 16 shots, real training.

    python scripts/demo.py [--output-dir output/demo]

Writes summary.json, report.html and the runs themselves; ends with a table. Given again, it goes on where it was.
"""

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean

from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from report import harmonic_mean, spread  # noqa: E402

METHODS = ("ZeroshotCLIP", "CoOp", "OrthCR")
SEEDS = (1, 2, 3)


def base_to_new(trainer: str, seed: int, out: Path, *opts: str) -> dict:
    """Trains on the base classes, evaluates on base and new; what is printed goes to the runs' log.txt only."""
    from train import parse, run

    common = ["--trainer", trainer, "--seed", str(seed), "--root", str(ROOT / "data")]
    with open(os.devnull, "w") as null, redirect_stdout(null):
        base = run(parse([*common, "--output-dir", str(out), "DATASET.SUBSAMPLE_CLASSES", "base", *opts]))
        model = ["--eval-only", "--model-dir", str(out), "--output-dir", str(out / "new")]
        new = run(parse([*common, *model, "DATASET.SUBSAMPLE_CLASSES", "new"]))
    return {
        "trainer": trainer,
        "dataset": base["dataset"],
        "seed": seed,
        "base": base["accuracy"],
        "new": new["accuracy"],
        "hm": harmonic_mean(base["accuracy"], new["accuracy"]),
        "trainable_params": base["trainable_params"],
        "seconds": base["seconds"],
    }


def table(summary: list[dict], form: str = "simple_outline") -> str:
    """One row a method: mean ± population standard deviation over the seeds."""
    rows = []
    for trainer in dict.fromkeys(s["trainer"] for s in summary):
        runs = [s for s in summary if s["trainer"] == trainer]
        figures = [spread([s[key] for s in runs]) for key in ("base", "new", "hm")]
        rows.append([trainer, *figures, f"{runs[0]['trainable_params']:,}", f"{mean(s['seconds'] for s in runs):.0f}"])
    heads = ["method", "base", "new", "harmonic mean", "trained parameters", "seconds"]
    return tabulate(rows, heads, form, colalign=("left", *["right"] * 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=ROOT / "output" / "demo")
    out = parser.parse_args().output_dir
    print("Base-to-new on Shapes, 16 shots, tiny CLIP: 3 methods x 3 seeds, a few minutes on 2 CPU cores", flush=True)
    import demo_report

    from dassl.utils import write_json

    jobs = [(trainer, seed) for trainer in METHODS for seed in SEEDS]
    summary = []
    bar = tqdm(jobs, desc="demo", unit="run", disable=None)
    for trainer, seed in bar:
        summary.append(base_to_new(trainer, seed, out / trainer / f"seed{seed}"))
        s = summary[-1]
        tqdm.write(
            f"[{len(summary)}/{len(jobs)}] {trainer} seed {seed}: base {s['base']:.1f}  new {s['new']:.1f}  "
            f"H {s['hm']:.1f}  ({s['seconds']:.0f} s)"
        )
        sys.stdout.flush()
    write_json(summary, str(out / "summary.json"))
    demo_report.write(summary, out, table(summary, "html"))
    print(
        f"\n{table(summary)}\n\nmean ± standard deviation over seeds {', '.join(map(str, SEEDS))}; accuracy in percent"
    )
    print(f"{out / 'summary.json'}\n{out / 'report.html'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # a directory with runs of other settings, a full disk: one line
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: make demo goes on with the run that was under way")
