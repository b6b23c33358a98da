"""The controls of OrthCR on the embedded data: with and without Cutout, with and without the regularizer.

    python -m scripts.controls [--output-dir output/controls]

Trains OrthCR, OrthSR, BlockFT, FullFT and CLIPLoRA with their tuned settings, seeds 1, 2, 3, in all four protocols, and
prints their main figures, those of the transfers at strength 0.5. Only the settings named in a row differ from
`tiny.yaml`; the reviewed configurations have `tiny_published.yaml`. CLIPLoRA has no regularizer. The same command given
again resumes.
"""

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

import trainers
from dassl.infrastructure.command import command
from orthcr.compare.command_line import NAMES, parse_arguments
from orthcr.compare.plans import Job, execute, make_parser
from orthcr.compare.schedule import make_plan
from orthcr.compare.stages import Method
from orthcr.reports.tables import Cell, format_mean, tables
from orthcr.reports.tree import collect
from orthcr.run.declarations import discover
from scripts.results import HEADS, main_columns

ROOT = Path(__file__).resolve().parents[1]
REGULARIZED = ("OrthCR", "OrthSR", "BlockFT", "FullFT")
# that of OrthCR; by itself FullFT has none
REGULARIZER_OF_FULLFT = ("TRAINER.FULLFT.REG", "cross_kl", "TRAINER.FULLFT.LAMBDA", "0.25", "TRAINER.FULLFT.TAU", "4.0")
TRANSFERS = ("other data", "other styles")
PUBLISHED = ("OrthSR", "OrthCR")  # that have tiny_published.yaml


def method_groups() -> dict[str, list[Method]]:
    """Return the methods of each group of rows, by the name of its folder."""
    return {
        "regularizer": [
            *(Method(name) for name in REGULARIZED if name != "FullFT"),
            Method("FullFT", opts=REGULARIZER_OF_FULLFT),
            Method("CLIPLoRA"),
        ],
        "no_regularizer": [Method(name, opts=(f"TRAINER.{name.upper()}.REG", "none")) for name in REGULARIZED],
        "published": [Method(name, "tiny_published") for name in PUBLISHED],
    }


def jobs_of(methods: list[Method], folder: Path, root: Path) -> list[Job]:
    """Return the jobs of a group: all four protocols, with and without Cutout."""
    words = ["--root", str(root), "--output-dir", str(folder), "--shots", "16", "--cutout", "with", "without"]
    words += ["--strength", "0.5"]  # that of the files for transfer, which the reviewed configurations do not have
    return make_plan(methods, list(NAMES.values()), parse_arguments(words))


def rows_of(folder: Path, group: str) -> list[list[str]]:
    """Return the rows of a group: method, Cutout, regularizer, and the main figures.

    Base-to-new and few-shot figures are at full strength, those of the transfers at strength 0.5.
    """
    rows = []
    for word, has_cutout in (("with", "yes"), ("without", "no")):
        tables_of_group = {table.protocol: table for table in tables(collect([folder / f"{word}_cutout"])[0])}
        figures = {}
        for head, column in main_columns(tables_of_group).items():
            for label, cell in column.items():
                is_half = "s=0.5" in label
                if is_half == (head in TRANSFERS):
                    figures.setdefault(label.partition(" (")[0], {})[head] = cell
        for name, cells in figures.items():
            has_regularizer = "no" if name == "CLIPLoRA" or group == "no_regularizer" else "yes"
            label = f"{name} as reviewed" if group == "published" else name
            rows.append([label, has_cutout, has_regularizer, *(format_figure(cells.get(head)) for head in HEADS[1:7])])
    return rows


def format_figure(cell: Cell | None) -> str:
    """Return mean ± deviation over the seeds, or "" for a missing figure."""
    return format_mean(list(cell.values.values())) if cell and cell.values else ""


def main(argv: list[str] | None = None) -> list[str]:
    """Make all runs and print the table; return a line for each run that failed."""
    flags: argparse.ArgumentParser = make_parser(__doc__, "controls")
    flags.add_argument("--root", type=Path, default=ROOT / "data", help="folder of the data sets")
    names = list(method_groups())
    flags.add_argument("--groups", nargs="+", default=names, choices=names, help="default: all")
    args = flags.parse_args(argv)
    discover(trainers)
    folders = {group: args.output_dir / group for group in args.groups}
    jobs = [job for group in args.groups for job in jobs_of(method_groups()[group], folders[group], args.root)]
    failures = execute(jobs, args.workers, "controls")
    if not failures:
        rows = [row for group, folder in folders.items() for row in rows_of(folder, group)]
        heads = ["method", "Cutout", "regularizer", *HEADS[1:7]]
        align = ["left"] * 3 + ["right"] * 6
        print(tabulate(sorted(rows), heads, "github", colalign=align, disable_numparse=True))
    return failures


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: give the same command again to resume the runs", 1))
