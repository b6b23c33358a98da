"""The tables of directories of results: on the terminal, and as files."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dassl.infrastructure.files import atomic_write, spreadsheet_cell
from orthcr.reports.runs import Run
from orthcr.reports.tables import Table, of_seeds, section, tables
from orthcr.reports.tree import collect


class Report(NamedTuple):
    """The tables of a report, and a line for each result that no table has."""

    tables: list[Table]
    left_out: list[str]


def write_report(
    paths: Iterable[str | Path],
    seeds: Iterable[int] | None = None,
    output_dir: str | Path | None = None,
    outdated: Mapping[Path, str] | None = None,
) -> Report:
    """Print the tables of the results below `paths`; write report.md, report.csv, runs.csv and a PNG of each table.

    Args:
        paths: directories, of one run or of any number.
        seeds: only these count; None: every seed.
        output_dir: directory of the files; None: write none.
        outdated: directories whose results are left out, and the reason. If there are no other results, the report
            has no table and replaces an earlier one, which is no longer true.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: there is no result, or no table can be made.
    """
    every_run, left_out = collect(paths, outdated)
    runs = of_seeds(every_run, seeds)
    every = tables(runs, seeds)
    made = [table for table in every if table.cells]
    left_out += [note for table in every if not table.cells for note in table.notes]  # results that disagree
    left_out += without_table(runs, every)
    if not made and not outdated:
        raise ValueError(left_out[0] if left_out else f"no run has one of the seeds {', '.join(map(str, seeds))}")
    print(as_text(made, left_out), end="")
    if output_dir:
        from orthcr.reports.pictures import draw

        output_dir = Path(output_dir)
        files = {
            "report.md": as_text(made, left_out, markdown=True),
            "report.csv": as_csv(made),
            "runs.csv": rows(runs),
        }
        for name, text in files.items():
            with atomic_write(output_dir / name) as f:
                f.write(text.encode())
        draw(made, output_dir)
    return Report(made, left_out)


def without_table(runs: list[Run], made: list[Table]) -> list[str]:
    """Return a line for each kind of result that no table has."""
    in_tables = {run for table in made for run in table.runs}
    kinds = Counter(run.description for run in runs if run not in in_tables)
    lines = []
    for kind, count in kinds.items():
        results = "1 result" if count == 1 else f"{count} results"
        lines.append(f"in no table: {kind} ({results})")
    return lines


def as_text(made: list[Table], left_out: list[str], markdown: bool = False) -> str:
    last = [section("Left out", [], left_out, markdown)] if left_out else []
    return "\n\n".join([*(table.text(markdown) for table in made), *last]) + "\n"


def as_csv(made: list[Table]) -> str:
    """Return the figures of the tables as CSV, one a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow("protocol method source target classes shots metric mean std n seeds missing".split())
    for c in (cell for table in made for cell in (*table.cells, *table.ece.values())):
        figures = [f"{c.mean:.4f}", f"{c.std:.4f}"] if c.values else ["", ""]
        seeds = " ".join(str(seed) for seed in c.values if seed is not None)
        missing = " ".join(map(str, c.missing))
        names = [spreadsheet_cell(name) for name in (c.protocol, c.method, c.source, c.target, c.classes)]
        writer.writerow([*names, c.shots or 0, c.metric, *figures, len(c.values), seeds, missing])
    return out.getvalue()


def rows(runs: list[Run]) -> str:
    """Return CSV with a line for each run: its method, training, evaluation and result."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = (
        "trainer backbone trained_on trained_classes shots seed evaluated_on classes accuracy ece params seconds path"
    )
    writer.writerow(head.split())
    for run in runs:
        trained = run.trained[:3] if run.trained else ("", "", 0)
        results = (run.accuracy, run.ece, run.params, run.seconds, str(run.path))
        values = (run.trainer, run.backbone, *trained, run.seed, run.dataset, run.classes, *results)
        writer.writerow([spreadsheet_cell(value) if isinstance(value, str) else value for value in values])
    return out.getvalue()
