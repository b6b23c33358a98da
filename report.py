"""Tables and pictures of any tree of results.

    python report.py OUT [OUT ...] [--seeds 1 2 3] [--output-dir DIR]

Reads the `results.json` of this code base and the `log.txt` of CoOp, CoCoOp, MaPLe, PromptSRC and their like on the
original Dassl. What a model was trained and evaluated on is read from what the runs wrote. Directory names count only
where a log names a model that is not there, and only if they are those of CoOp's scripts. A run of which it cannot be
told is named and left out. Validation results never enter.

Mean ± population standard deviation over the seeds, as CoOp's parse_test_res.py; accuracies in percent. H is the
harmonic mean of base and new accuracy, seed by seed; in the average over data sets it is that of the averages, as in
papers.
"""

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from reports.runs import Run, Trained
from reports.tables import Table, harmonic_mean, of_seeds, section, spread, tables
from reports.tree import collect

__all__ = ["Run", "Table", "Trained", "collect", "harmonic_mean", "make", "spread", "tables", "write"]


def make(
    paths: Iterable[str | Path], seeds: Iterable[int] | None = None, output_dir: str | Path | None = None
) -> list[Table]:
    """Prints the tables of the trees `paths`; writes report.md, report.csv and a PNG of each to `output_dir`.

    Raises as `collect`, and ValueError also if no table can be made.
    """
    left_out = []
    runs = of_seeds(collect(paths, left_out), seeds)
    made = tables(runs, seeds)
    left_out += without_table(runs, made)
    if not made:
        raise ValueError(left_out[0] if left_out else f"no run has one of the seeds {', '.join(map(str, seeds))}")
    print(as_text(made, left_out), end="")
    if output_dir:
        from dassl.utils import atomic_write  # with torch, which takes seconds
        from reports.pictures import draw

        output_dir = Path(output_dir)
        for name, text in (("report.md", as_text(made, left_out, markdown=True)), ("report.csv", as_csv(made))):
            with atomic_write(output_dir / name) as f:
                f.write(text.encode())
        draw(made, output_dir)
    return made


def write(folder: str | Path) -> list[Table]:
    """Prints the tables of the runs in `folder` and writes them there."""
    return make([folder], output_dir=folder)


def without_table(runs: list[Run], made: list[Table]) -> list[str]:
    """A line for each kind of result that no table takes."""
    taken = {run for table in made for run in table.runs}
    kinds = Counter(run.what for run in runs if run not in taken)
    return [f"in no table: {kind} ({count} result{'s' * (count > 1)})" for kind, count in kinds.items()]


def as_text(made: list[Table], left_out: list[str], markdown: bool = False) -> str:
    last = [section("Left out", [], left_out, markdown)] if left_out else []
    return "\n\n".join([*(table.text(markdown) for table in made), *last]) + "\n"


def as_csv(made: list[Table]) -> str:
    """All figures of all tables, one a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow("protocol method source target classes shots metric mean std n seeds missing".split())
    for c in (cell for table in made for cell in table.cells):
        figures = [f"{c.mean:.4f}", f"{c.std:.4f}"] if c.values else ["", ""]
        seeds = [" ".join(str(seed) for seed in some if seed is not None) for some in (c.values, c.missing)]
        what = [c.protocol, c.method, c.source, c.target, c.classes, c.shots or 0, c.metric]
        writer.writerow([*what, *figures, len(c.values), *seeds])
    return out.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="OUT", help="directories with results, at any depth")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these, and each is expected; default: those found")
    parser.add_argument("--output-dir", metavar="DIR", help="for report.md, report.csv and a picture of each table")
    args = parser.parse_args(argv)
    try:
        make(args.paths, args.seeds, args.output_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
