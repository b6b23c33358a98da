"""The tables and pictures of docs/results.md, from the output of `make compare`.

    python -m scripts.results [output/compare]

Writes the tables of the report to docs/results_tables.md, the summary and the ranks of OrthCR into docs/results.md,
and copies the pictures of the report to docs/compare_*.png.
"""

import argparse
import shutil
import sys
from pathlib import Path

from tabulate import tabulate

from dassl.infrastructure.command import command
from orthcr.reports.comparison import costs_of, headline
from orthcr.reports.ranking import is_tie
from orthcr.reports.tables import TIE, Cell, Table, format_mean, tables
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
    text = format_mean(list(cell.values.values()))
    return f"**{text}**" if round(cell.mean, 2) == round(best, 2) else text


def main_columns(tables_by_protocol: dict[str, Table]) -> dict[str, dict[str, Cell]]:
    """Return the main figures: cells by method, by the head of the column.

    Args:
        tables_by_protocol: the tables by protocol.
    """
    base2new = [
        cell
        for cell in tables_by_protocol["base2new"].cells
        if cell.target == tables_by_protocol["base2new"].cells[0].target
    ]
    columns = [{c.method: c for c in base2new if c.classes == name} for name in ("base", "new")]
    columns += [headline(tables_by_protocol[protocol])[1] for protocol in ("base2new", "fewshot", "xd", "dg")]
    return dict(zip(HEADS[1:7], columns, strict=True))


def format_summary(tables_by_protocol: dict[str, Table]) -> str:
    """Return the main figures of each method as Markdown, methods with the highest H first.

    Args:
        tables_by_protocol: the tables by protocol.
    """
    columns = list(main_columns(tables_by_protocol).values())
    best = [max((cell.mean for cell in column.values() if cell.values), default=0.0) for column in columns]
    costs = costs_of(tables_by_protocol["base2new"])
    methods = list(dict.fromkeys(method for column in columns for method in column))
    methods.sort(key=lambda method: -columns[2][method].mean if method in columns[2] else 0.0)
    rows = []
    for method in methods:
        cells = [format_cell(column.get(method), top) for column, top in zip(columns, best, strict=True)]
        cost = costs.get(method)
        rows.append([method, *cells, f"{cost.params:,}" if cost else "", f"{cost.seconds:.0f}" if cost else ""])
    align = ["left", *["right"] * (len(HEADS) - 1)]
    return tabulate(rows, HEADS, "github", colalign=align, disable_numparse=True)


def format_ranks(columns: dict[str, dict[str, Cell]], method: str) -> str:
    """Return the place of a method in each column as Markdown: its rank, the best method, the difference, the ties.

    Args:
        columns: cells by method, by the head of the column.
        method: the label of its row.
    """
    rows = []
    for head, column in columns.items():
        cells = {name: cell for name, cell in column.items() if cell.values}
        if method not in cells:
            continue
        best = max(cells, key=lambda name: cells[name].mean)
        cell_of_method = cells[method]
        rank = 1 + sum(cell.mean > cell_of_method.mean for cell in cells.values())
        if best == method:
            difference = ""
        else:
            seeds = [seed for seed in cell_of_method.values if seed is not None]
            values = cells[best].values
            paired_differences = [
                cell_of_method.values[seed] - values.get(seed, values.get(None, cells[best].mean)) for seed in seeds
            ]
            difference = format_mean(paired_differences, sign="+")
            if is_tie(values, cell_of_method.values):
                difference += f" {TIE}"
        ties = [name for name, cell in cells.items() if name != best and is_tie(cells[best].values, cell.values)]
        row = [
            head,
            f"{rank} of {len(cells)}",
            f"{cell_of_method.mean:.1f}",
            f"{best} {cells[best].mean:.1f}",
            difference,
        ]
        rows.append([*row, ", ".join(sorted(ties))])
    heads = ["column", "rank", method, "best", f"{method} - best", f"{TIE} with the best"]
    return tabulate(rows, heads, "github", colalign=("left", *["right"] * 4, "left"), disable_numparse=True)


def main(argv: list[str] | None = None) -> None:
    """Write the page and copy the pictures."""
    flags = argparse.ArgumentParser(prog="python -m scripts.results", description=__doc__.split("\n")[0])
    flags.add_argument("folder", nargs="?", type=Path, default=Path("output/compare"), help="default: output/compare")
    folder = flags.parse_args(argv).folder
    tables_by_protocol = {table.protocol: table for table in tables(collect([folder])[0])}
    missing = {"base2new", "fewshot", "xd", "dg"} - set(tables_by_protocol)
    if missing:
        raise ValueError(f"{folder} has no results of {', '.join(sorted(missing))}: finish `make compare` first")
    intro = (
        "# Results of all methods: the tables\n\nWritten by `python -m scripts.results` from `make compare`. Mean ± "
        "population standard deviation over the seeds, in percent; the best of a column in bold. The summary: "
        "[results.md](results.md)."
    )
    parts = [intro, *(table.text(markdown=True) for table in tables_by_protocol.values())]
    (DOCS / "results_tables.md").write_text("\n\n".join(parts) + "\n")
    page = (DOCS / "results.md").read_text()
    page = replace_block(page, "summary", format_summary(tables_by_protocol))
    for name, method in (("standing", "OrthCR"), ("standing at half", "OrthCR (s=0.5)")):
        page = replace_block(page, name, format_ranks(main_columns(tables_by_protocol), method))
    (DOCS / "results.md").write_text(page)
    for name, file in PICTURES.items():
        shutil.copy(folder / file, DOCS / f"compare_{name}.png")


def replace_block(page: str, name: str, content: str) -> str:
    """Return a page of Markdown with new content between the comments `<!-- name -->` and `<!-- end -->`.

    Raises:
        ValueError: the page has no such comments.
    """
    prefix, start, content_and_suffix = page.partition(f"<!-- {name} -->\n")
    _, end, suffix = content_and_suffix.partition("<!-- end -->\n")
    if not start or not end:
        raise ValueError(
            f'docs/results.md has no block "{name}": put <!-- {name} --> and <!-- end --> on lines of their own'
        )
    return f"{prefix}{start}\n{content}\n\n{end}{suffix}"


if __name__ == "__main__":
    sys.exit(command(main, "interrupted", 1))
