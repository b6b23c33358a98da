"""The report on directories of results: tables on the terminal and in files."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dassl.infrastructure.files import atomic_write, spreadsheet_cell
from orthcr.reports.runs import Run
from orthcr.reports.tables import Table, section, select_seeds, tables
from orthcr.reports.tree import collect


class Report(NamedTuple):
    """The tables of a report, and a line for each result that is in no table."""

    tables: list[Table]
    left_out: list[str]


def write_report(
    paths: Iterable[str | Path],
    seeds: Iterable[int] | None = None,
    output_dir: str | Path | None = None,
    outdated: Mapping[Path, str] | None = None,
) -> Report:
    """Print the tables of the results in and below `paths`; write report.md, report.csv, runs.csv and pictures.

    Args:
        paths: directories with one or more runs.
        seeds: seeds that count; None: all.
        output_dir: directory for the files; None: write no files.
        outdated: {directory: reason} for results to leave out. If there are no other results, a report without tables
            replaces an earlier one.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: there is no result, or no table can be made.
    """
    every_run, left_out = collect(paths, outdated)
    runs = select_seeds(every_run, seeds)
    all_tables = tables(runs, seeds)
    shown_tables = [table for table in all_tables if table.cells]
    left_out += [note for table in all_tables if not table.cells for note in table.notes]  # contradictory results
    left_out += describe_unused(runs, all_tables)
    if not shown_tables and not outdated:
        raise ValueError(left_out[0] if left_out else f"no run has one of the seeds {', '.join(map(str, seeds))}")
    print(format_text(shown_tables, left_out), end="")
    if output_dir:
        from orthcr.reports.pictures import draw

        output_dir = Path(output_dir)
        files = {
            "report.md": format_text(shown_tables, left_out, markdown=True),
            "report.csv": format_csv(shown_tables),
            "runs.csv": format_runs(runs),
        }
        for name, text in files.items():
            with atomic_write(output_dir / name) as f:
                f.write(text.encode())
        draw(shown_tables, output_dir)
    return Report(shown_tables, left_out)


def describe_unused(runs: list[Run], tables: list[Table]) -> list[str]:
    """Return a line for each kind of result that is in no table."""
    used_runs = {run for table in tables for run in table.runs}
    kinds = Counter(run.description for run in runs if run not in used_runs)
    lines = []
    for kind, count in kinds.items():
        results = "1 result" if count == 1 else f"{count} results"
        lines.append(f"in no table: {kind} ({results})")
    return lines


def format_text(tables: list[Table], left_out: list[str], markdown: bool = False) -> str:
    last_section = [section("Left out", [], left_out, markdown)] if left_out else []
    return "\n\n".join([*(table.text(markdown) for table in tables), *last_section]) + "\n"


def format_csv(tables: list[Table]) -> str:
    """Return the figures of the tables as CSV, one figure a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow("protocol method source target classes shots metric mean std n seeds missing".split())
    for c in (cell for table in tables for cell in (*table.cells, *table.ece.values())):
        figures = [f"{c.mean:.4f}", f"{c.std:.4f}"] if c.values else ["", ""]
        seeds = " ".join(str(seed) for seed in c.values if seed is not None)
        missing = " ".join(map(str, c.missing))
        names = [spreadsheet_cell(name) for name in (c.protocol, c.method, c.source, c.target, c.classes)]
        writer.writerow([*names, c.shots or 0, c.metric, *figures, len(c.values), seeds, missing])
    return out.getvalue()


def format_runs(runs: list[Run]) -> str:
    """Return the runs as CSV, one run a line: method, training, evaluation and result."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = (
        "trainer backbone trained_on trained_classes shots seed evaluated_on classes accuracy ece params seconds path"
    )
    writer.writerow(head.split())
    for run in runs:
        training = run.trained[:3] if run.trained else ("", "", 0)
        results = (run.accuracy, run.ece, run.params, run.seconds, str(run.path))
        values = (run.trainer, run.backbone, *training, run.seed, run.dataset, run.classes, *results)
        writer.writerow([spreadsheet_cell(value) if isinstance(value, str) else value for value in values])
    return out.getvalue()
