"""OrthCR's parts on the test images of Shapes: base-to-new, seeds 1-3, each regularizer at its own best val setting.

    python scripts/ablation.py [--output-dir output/ablation]

The last column is the harmonic mean less that of OrthCR as configured, paired by seed.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean, pstdev

from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from demo import SEEDS, base_to_new  # noqa: E402

from report import spread  # noqa: E402

CASES = {  # the settings are those in bold in docs/tuning.md
    "OrthCR": [],
    "no regularizer": ["TRAINER.ORTHCR.REG", "none", "OPTIM.LR", "0.0005"],
    "self_kl (OrthSR)": ["TRAINER.ORTHCR.REG", "self_kl", "TRAINER.ORTHCR.LAMBDA", "1.0"],
    "cross_ce": ["TRAINER.ORTHCR.REG", "cross_ce", "TRAINER.ORTHCR.LAMBDA", "0.25"],
    "no Cutout": ["INPUT.TRANSFORMS", "['random_resized_crop', 'normalize']"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=ROOT / "output" / "ablation")
    out = parser.parse_args().output_dir
    runs = {}
    for case, seed in tqdm([(case, seed) for case in CASES for seed in SEEDS], "ablation", unit="run"):
        runs[case, seed] = base_to_new(
            "OrthCR", seed, out / case.split(" (")[0].replace(" ", "_") / f"seed{seed}", *CASES[case]
        )
    rows = []
    for case in CASES:
        of = [runs[case, seed] for seed in SEEDS]
        less = [runs[case, seed]["hm"] - runs["OrthCR", seed]["hm"] for seed in SEEDS]
        figures = [spread([r[key] for r in of]) for key in ("base", "new", "hm")]
        rows.append([case, *figures, f"{mean(less):+.1f} ± {pstdev(less):.1f}" if case != "OrthCR" else ""])
    print(
        tabulate(rows, ["", "base", "new", "harmonic mean", "less OrthCR"], "github", colalign=("left", *["right"] * 4))
    )


if __name__ == "__main__":
    main()
