"""The tables and pictures of docs/results.md, from the output of `make compare`.

    python -m scripts.results [output/compare]

Writes docs/results_tables.md, a summary and the tables of the report, and copies its pictures to docs/compare_*.png.
"""

import argparse
import shutil
import sys
from pathlib import Path

from tabulate import tabulate

from dassl.infrastructure.command import command
from orthcr.reports.comparison import costs_of, headline
from orthcr.reports.tables import Cell, Table, spread, tables
from orthcr.reports.tree import collect

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEADS = ("method", "base", "new", "H", "16 shots", "other data", "other styles", "trained numbers", "seconds")
PICTURES = {  # name in docs/ -> file of the report
    "base2new": "base2new_16shots_plane.png",
    "costs": "base2new_16shots_costs.png",
    "fewshot": "fewshot.png",
    "cross_dataset": "xd_Shapes_16shots_gain.png",
    "domain_generalization": "dg_Shapes_16shots_gain.png",
}


def format_cell(cell: Cell | None, best: float) -> str:
    if not cell or not cell.values:
        return ""
    text = spread(list(cell.values.values()))
    return f"**{text}**" if round(cell.mean, 2) == round(best, 2) else text


def summary(made: dict[str, Table]) -> str:
    """Return the main figures of each method as Markdown, methods with the highest H first.

    Args:
        made: the tables by protocol.
    """
    base2new = [cell for cell in made["base2new"].cells if cell.target == made["base2new"].cells[0].target]
    columns = [{c.method: c for c in base2new if c.classes == name} for name in ("base", "new")]
    columns += [headline(made[protocol])[1] for protocol in ("base2new", "fewshot", "xd", "dg")]
    best = [max((cell.mean for cell in column.values() if cell.values), default=0.0) for column in columns]
    costs = costs_of(made["base2new"])
    methods = list(dict.fromkeys(method for column in columns for method in column))
    methods.sort(key=lambda method: -columns[2][method].mean if method in columns[2] else 0.0)
    rows = []
    for method in methods:
        cells = [format_cell(column.get(method), top) for column, top in zip(columns, best, strict=True)]
        cost = costs.get(method)
        rows.append([method, *cells, f"{cost.params:,}" if cost else "", f"{cost.seconds:.0f}" if cost else ""])
    align = ["left", *["right"] * (len(HEADS) - 1)]
    return tabulate(rows, HEADS, "github", colalign=align, disable_numparse=True)


def main(argv: list[str] | None = None) -> None:
    """Write the page and copy the pictures."""
    flags = argparse.ArgumentParser(prog="python -m scripts.results", description=__doc__.split("\n")[0])
    flags.add_argument("folder", nargs="?", type=Path, default=Path("output/compare"), help="default: output/compare")
    folder = flags.parse_args(argv).folder
    made = {table.protocol: table for table in tables(collect([folder]))}
    missing = {"base2new", "fewshot", "xd", "dg"} - set(made)
    if missing:
        raise ValueError(f"{folder} has no results of {', '.join(sorted(missing))}: finish `make compare` first")
    text = [
        "# Results of all methods: the tables\n\nWritten by `python -m scripts.results` from `make compare`. Mean ± "
        "population standard deviation over the seeds, in percent; the best of a column in bold. What they say: "
        "[results.md](results.md).",
        "## Summary",
        summary(made),
        "Trained numbers and seconds are those of a training of base-to-new.",
        *(table.text(markdown=True) for table in made.values()),
    ]
    (DOCS / "results_tables.md").write_text("\n\n".join(text) + "\n")
    for name, file in PICTURES.items():
        shutil.copy(folder / file, DOCS / f"compare_{name}.png")


if __name__ == "__main__":
    sys.exit(command(main, "interrupted", 1))
