"""The tables of runs: for each protocol, a value for each method, data set, column and seed."""

import html
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import mean, pstdev

from tabulate import tabulate

from dassl.infrastructure.files import visible
from datasets.catalogue import in_order, short
from orthcr.reports.names import AVERAGE, images
from orthcr.reports.published import BASE_TO_NEW, PUBLISHED, SOURCE, averages
from orthcr.reports.ranking import agreement, format_agreement, is_tie, ranks
from orthcr.reports.runs import Run
from orthcr.reports.selections import Selection, selections
from orthcr.reports.settings import Label, by_method

ECE = "ECE"  # head of the expected calibration error: see `calibration`
RANK = "rank"  # head of the mean rank over data sets: see `Table.rank`
TIE = "†"
TIE_NOTE = f"{TIE} not significantly below the best of the column (t-test paired over seeds, p >= 0.05)"
MAX_DIFFERENCE = 0.1  # percentage points: largest difference of two results of one model that count as the same result


def harmonic_mean(base: float, new: float) -> float:
    return 2 * base * new / (base + new) if base + new else 0.0


def spread(values: list[float], digits: int = 1, sign: str = "") -> str:
    """Return "mean ± population standard deviation"; of one value the value alone. With the sign "+", +1.0 for 1."""
    text = f"{mean(values):{sign}.{digits}f}"
    if len(values) > 1:
        text += f" ± {pstdev(values):.{digits}f}"
    return text


@dataclass(frozen=True)
class Cell:
    """One figure of a table, in percent, for each seed."""

    protocol: str  # base2new, new, fewshot, xd or dg
    method: str  # label of the row
    source: str  # data set of the training; "": zero-shot
    target: str  # data set of the evaluation, or "average"
    classes: str
    shots: int | None  # None: zero-shot
    metric: str
    values: dict[int | None, float]  # by seed; None: the key of zero-shot, which has no seed
    missing: tuple[int, ...] = ()  # seeds
    partial: bool = False  # an average over fewer data sets than the table has

    @property
    def mean(self) -> float:
        return mean(self.values.values())

    @property
    def std(self) -> float:
        return pstdev(self.values.values())

    @property
    def name(self) -> str:
        """The data set's name in tables and pictures."""
        return short(self.target)

    @property
    def text(self) -> str:
        if not self.values:
            return "-"
        return spread(list(self.values.values()), 2) + ("*" if self.missing or self.partial else "")


@dataclass(frozen=True)
class Table:
    """The table of a protocol; `str()` is its text for the terminal."""

    protocol: str
    slug: str  # name for a file
    title: str
    heads: list[str]  # of a row's titles, then of its cells
    lines: dict[tuple[str, ...], list[Cell | None]]  # cells of each row, by its titles; the last title is a method
    notes: list[str]
    runs: list[Run] = field(repr=False)  # those that the table shows
    source: str = ""  # training data set of all; "": each run was trained on the data set of its evaluation
    published: dict[str, dict[str, float]] = field(default_factory=dict)  # averages by method and head
    ece: dict[tuple[str, ...], Cell] = field(default_factory=dict)  # calibration errors of the rows that have one

    @property
    def cells(self) -> list[Cell]:
        return [cell for line in self.lines.values() for cell in line if cell]

    @property
    def rows(self) -> list[list[str]]:
        return [[*titles, *(cell.text if cell else "" for cell in line)] for titles, line in self.lines.items()]

    def columns(self) -> list[list[Cell]]:
        """Return a list for each column and data set: its cells with values, without averages over fewer data sets."""
        columns = defaultdict(list)
        for titles, line in self.lines.items():
            for k, cell in enumerate(line):
                if cell and cell.values and not cell.partial:
                    columns[titles[:-1], k].append(cell)
        return list(columns.values())

    @property
    def best(self) -> list[Cell]:
        """The cells with the highest mean of their column: several if equal, none in a column with one method."""
        best = []
        for cells in self.columns():
            if len(cells) > 1:
                top = max(round(cell.mean, 2) for cell in cells)
                best += [cell for cell in cells if round(cell.mean, 2) == top]
        return best

    @property
    def ties(self) -> list[Cell]:
        """The cells that are not significantly below the best of their column: see `ranking.is_tie`."""
        best, ties = self.best, []
        for cells in self.columns():
            top = max(cells, key=lambda cell: cell.mean)
            ties += [c for c in cells if c is not top and c not in best and is_tie(top.values, c.values)]
        return ties

    @property
    def rank(self) -> dict[tuple[str, ...], list[float]]:
        """The ranks of each method, one a data set, by the titles of the row that shows their mean.

        The ranks are by H, or by the accuracy with the most shots; the training data set of a transfer does not count.
        """
        columns = {}
        for cells in self.columns():
            first = cells[0]
            if first.target not in (AVERAGE, self.source):
                columns[first.target] = {cell.method: cell.mean for cell in cells}  # the last column: H, most shots
        if len(columns) < 2:
            return {}
        ranks_by_method = ranks(columns.values())
        rows = [titles for titles in self.lines if titles[:-1] in ((), (AVERAGE,))]
        return {
            titles: ranks_by_method[titles[-1]]
            for titles in rows
            if titles[-1] in ranks_by_method and len(ranks_by_method) > 1
        }

    @property
    def agreements(self) -> list[str]:
        """A sentence for base, new and H: how far the order of the methods is that of the published averages."""
        last = list(self.lines)[-1][:-1] if self.lines else ()
        lines = {titles[-1]: line for titles, line in self.lines.items() if titles[:-1] == last}
        sentences = []
        for k, head in enumerate(("base", "new", "H") if self.protocol == "base2new" else ()):
            cells = {method: line[k] for method, line in lines.items()}
            measured = {method: cell.mean for method, cell in cells.items() if cell and cell.values}
            figures = agreement(measured, {method: row[k] for method, row in BASE_TO_NEW.items()})
            if figures:
                sentences.append(format_agreement(head, figures))
        return sentences

    def text(self, markdown: bool = False) -> str:
        """Return the title, the table and the notes."""
        grid = self.grid("github" if markdown else "simple_outline")
        return section(self.title, [grid], self.all_notes() if markdown else self.notes, markdown)

    def all_notes(self) -> list[str]:
        """Return the notes, with those on ties, ranks and the order of published averages."""
        notes = list(self.notes)
        if self.ties:
            notes.append(TIE_NOTE)
        if self.rank:
            notes.append(f"{RANK}: mean over the data sets ± population standard deviation, 1 for the best method")
        return notes + self.agreements

    def grid(self, form: str) -> str:
        """Return the table alone, in a format of tabulate; in Markdown ("github") the best figures are bold."""
        rows, heads = self.rows, self.heads
        if form == "github":
            best, ties = self.best, self.ties
            rows, heads = [list(map(in_markdown, row)) for row in rows], list(map(in_markdown, heads))
            for row, line in zip(rows, self.lines.values(), strict=True):
                for k, cell in enumerate(line, len(row) - len(line)):
                    if cell and cell in best:
                        row[k] = f"**{row[k]}**"
                    elif cell and cell in ties:
                        row[k] += f" {TIE}"
            rank = self.rank
            if rank:
                heads = [*heads, RANK]
                texts = [spread(rank[titles]) if titles in rank else "" for titles in self.lines]
                rows = [[*row, text] for row, text in zip(rows, texts, strict=True)]
        if self.ece:
            heads = [*heads, ECE]
            cells = map(self.ece.get, self.lines)
            rows = [[*row, cell.text if cell else ""] for row, cell in zip(rows, cells, strict=True)]
        if self.published:
            heads = [*heads, PUBLISHED]
            rows = [[*row, format_published(self, titles)] for row, titles in zip(rows, self.lines, strict=True)]
        if self.protocol in ("xd", "dg") and form == "simple_outline":
            # a column for each target would be too wide for a terminal
            rows = [[text.replace(" ± ", "\n± ") for text in row] for row in rows]
        align = ["right"] * len(heads)
        for k, head in enumerate(self.heads):
            if head in ("method", "data set"):
                align[k] = "left"
        return tabulate(rows, heads, form, colalign=align, disable_numparse=True)

    __str__ = text


def format_published(table: Table, titles: tuple[str, ...]) -> str:
    """Return the published averages of a row; an empty text if the row is not one of averages."""
    if titles[:-1] not in ((), (AVERAGE,)):
        return ""
    return " / ".join(f"{value:.2f}" for value in table.published.get(titles[-1], {}).values())


def section(title: str, body: list[str], notes: list[str], markdown: bool) -> str:
    """Return a title, a body and notes as text or Markdown.

    Args:
        title: any text, as names from foreign files; it is escaped.
        body: parts that are shown unchanged.
        notes: any text; they are escaped.
        markdown: the format.
    """
    title, notes = visible(title), [visible(note) for note in notes]
    if not markdown:
        return "\n".join([title, *body, *notes])
    parts = [f"## {in_markdown(title)}", *body]
    if notes:
        parts.append("\n".join(f"- {in_markdown(note)}" for note in notes))
    return "\n\n".join(parts)


def in_markdown(text: str) -> str:
    """Return a text with its markup escaped: HTML, ends of cells and links."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("](", "]\\(")


def tables(runs: list[Run], seeds: Iterable[int] | None = None) -> list[Table]:
    """Return every table that the runs allow.

    Args:
        runs: result of `tree.collect`.
        seeds: only these count, and each method must have them; None: every seed that a method of the table has.
    """
    seeds = sorted(set(seeds or ()))
    return [make_table(selection, seeds) for selection in selections(of_seeds(runs, seeds))]


def of_seeds(runs: list[Run], seeds: Iterable[int] | None) -> list[Run]:
    return [run for run in runs if run.trained is None or not seeds or run.seed in seeds]


def make_table(selection: Selection, seeds: list[int]) -> Table:
    """Return the table of a selection.

    Args:
        selection: the runs and the columns.
        seeds: those that each method must have; empty: every seed that a trained method has.
    """
    seeds = seeds or sorted({run.seed for run in selection.runs if run.trained})
    targets = in_order({run.dataset for run in selection.runs} - {selection.source})
    methods, notes = by_method(selection.runs)
    cells, errors = {}, {}
    for label, every_run in methods.items():
        runs, contradictions = drop_contradictory(every_run, label.text)
        figures = compute_accuracies(runs, selection, targets, label.trained)
        method_cells = make_cells(figures, selection, targets, label, seeds)
        cells |= method_cells
        errors |= make_ece_cells(runs, selection, targets, label)
        notes += contradictions + notes_on(method_cells, selection, targets)
    heads, lines, ece = lay_out(selection, targets, cells, errors)
    if any(cell.values and (cell.missing or cell.partial) for line in lines.values() for cell in line if cell):
        notes.insert(0, "* over fewer seeds or data sets:")
    columns = selection.columns.values()
    shown_runs = [r for r in selection.runs if any(c.takes(r) and c.suits(r.trained is not None) for c in columns)]
    published = averages(selection.protocol, selection.source, targets, selection.shots, shown_runs)
    if published:
        notes.append(SOURCE)
    return Table(
        protocol=selection.protocol,
        slug=make_slug(selection),
        title=selection.title,
        heads=heads,
        lines=lines,
        notes=notes,
        runs=shown_runs,
        source=selection.source,
        published=published,
        ece=ece,
    )


def make_cells(
    figures: dict[tuple[str, str], dict], selection: Selection, targets: list[str], label: Label, seeds: list[int]
) -> dict[tuple[str, Label, str], Cell]:
    """Return the cells of one method, by data set or "average", label and head.

    Args:
        figures: result of `compute_accuracies`.
        selection: the runs and the columns.
        targets: data sets of the table, without the source.
        label: label of the method.
        seeds: those that a trained method must have.
    """
    cells = {}
    for (target, head), by_seed in figures.items():
        column = selection.columns[head]
        cell = Cell(selection.protocol, label.text, "", target, column.classes, None, column.metric, by_seed)
        if label.trained:
            cell = replace(
                cell,
                source=selection.source or target,
                shots=selection.shots if column.shots is None else column.shots,
                missing=tuple(seed for seed in seeds if seed not in by_seed),
            )
        if target == AVERAGE and by_seed:
            cell = replace(cell, partial=any(not figures.get((t, head)) for t in targets))
        cells[target, label, head] = cell
    return cells


def make_ece_cells(
    runs: list[Run], selection: Selection, targets: list[str], label: Label
) -> dict[tuple[str, Label], Cell]:
    """Return the calibration errors of one method, by data set or "average" and label; arguments as above."""
    cells = {}
    for target, by_seed in compute_ece(runs, selection, targets, label.trained).items():
        cell = Cell(selection.protocol, label.text, "", target, "", None, ECE, by_seed)
        if label.trained:
            last = list(selection.columns.values())[-1]  # the last column has the most shots
            cell = replace(cell, source=selection.source or target, shots=selection.shots or last.shots)
        if by_seed:
            cells[target, label] = cell
    return cells


def notes_on(cells: dict[tuple[str, Label, str], Cell], selection: Selection, targets: list[str]) -> list[str]:
    """Return a line for each cell of a method that lacks seeds or data sets."""
    notes = []
    for (target, label, head), cell in cells.items():
        name = f"{label.text} on {target}" if selection.source else f"{label.text} on {target}, {head}"
        if cell.partial:
            without = [t for t in targets if (t, label, head) not in cells or not cells[t, label, head].values]
            notes.append(f"{name}: without {', '.join(without)}")
        elif target != AVERAGE and cell.metric != "H" and (cell.missing or not cell.values):
            notes.append(f"{name}: {format_missing(cell.missing)}")
    return notes


def lay_out(
    selection: Selection,
    targets: list[str],
    cells: dict[tuple[str, Label, str], Cell],
    errors: dict[tuple[str, Label], Cell],
) -> tuple[list[str], dict[tuple[str, ...], list[Cell | None]], dict[tuple[str, ...], Cell]]:
    """Return the heads of the table, the cells of each row, and the calibration error of each row that has one.

    With one training data set the rows are methods and the columns data sets; else each data set has its own rows.

    Args:
        selection: the runs and the columns.
        targets: data sets of the table, without the source.
        cells: cells of all methods, by data set, label and head.
        errors: their calibration errors, by data set and label.
    """
    labels = dict.fromkeys(label for _, label, _ in cells)
    shown = list(targets)
    if selection.source:
        shown.insert(0, selection.source)
    if len(targets) > 1:
        shown.append(AVERAGE)
    lines, ece = {}, {}
    if selection.source:
        heads = ["method", *map(short, shown)]
        for label in labels:
            lines[label.text,] = [cells.get((t, label, head)) for t in shown for head in selection.columns]
            ece[label.text,] = errors.get((shown[-1], label))
    else:
        heads = ["data set", "method", *selection.columns]
        for target in shown:
            for label in labels:
                titles = short(target), label.text
                lines[titles] = [cells.get((target, label, head)) for head in selection.columns]
                ece[titles] = errors.get((target, label))
    lines = {titles: line for titles, line in lines.items() if any(line)}
    return heads, lines, {titles: cell for titles, cell in ece.items() if cell}


def make_slug(selection: Selection) -> str:
    """Return a name for the files of a table, which is valid whatever the name of the source."""
    words = [selection.protocol]
    if selection.source:
        words.append(selection.source)
    if selection.shots:
        words.append(images(selection.shots).replace(" ", ""))
    return re.sub(r"[^\w.-]", "_", "_".join(words))[:100]


def compute_accuracies(
    runs: list[Run], selection: Selection, targets: list[str], trained: bool
) -> dict[tuple[str, str], dict]:
    """Return the percent of one method by (data set or "average", head) and seed.

    Args:
        runs: runs of the method.
        selection: the runs and the columns.
        targets: data sets of the table; those without a run are left out.
        trained: the method is trained, not zero-shot.
    """
    datasets = [target for target in targets if selection.source or any(run.dataset == target for run in runs)]
    values = {}
    for head, column in selection.columns.items():
        if column.metric == "H" or not column.suits(trained):
            continue
        for target in [selection.source, *datasets] if selection.source else datasets:
            values[target, head] = {r.seed: r.accuracy for r in runs if r.dataset == target and column.takes(r)}
        if len(targets) > 1:
            columns = [values[target, head] for target in datasets if values[target, head]]
            values[AVERAGE, head] = average_by_seed(columns)
    if "H" in selection.columns:
        # H of the average is computed of the averages, if both are over the same data sets
        comparable = all(bool(values[target, "base"]) == bool(values[target, "new"]) for target in datasets)
        for target in [target for target, head in values if head == "base"]:
            base, new = values[target, "base"], values[target, "new"]
            seeds = [seed for seed in base if seed in new and (comparable or target != AVERAGE)]
            values[target, "H"] = {seed: harmonic_mean(base[seed], new[seed]) for seed in seeds}
    return values


def average_by_seed(columns: list[dict[int | None, float]]) -> dict[int | None, float]:
    """Return the mean of the columns for each seed that all of them have."""
    if not columns:
        return {}
    seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
    return {seed: mean(column[seed] for column in columns) for seed in seeds}


def compute_ece(runs: list[Run], selection: Selection, targets: list[str], trained: bool) -> dict[str, dict]:
    """Return the ECE of one method in percent, by data set or "average" and by seed.

    A seed counts if each of its accuracies has an ECE. On a data set it is the mean over the columns, base and new;
    with several numbers of shots it is taken at the largest. The average leaves out the source, as that of accuracies.

    Args:
        runs: runs of the method.
        selection: the runs and the columns.
        targets: data sets of the table, without the source.
        trained: the method is trained, not zero-shot.
    """
    columns = [c for c in selection.columns.values() if c.metric != "H" and c.suits(trained)]
    columns = columns[-1:] if selection.protocol == "fewshot" else columns
    errors = {}
    for target in targets:
        per_seed = defaultdict(list)
        for run in runs:
            if run.dataset == target and any(c.takes(run) for c in columns):
                per_seed[run.seed].append(run.ece)
        errors[target] = {
            seed: mean(each) for seed, each in per_seed.items() if len(each) == len(columns) and None not in each
        }
    if len(targets) > 1:
        errors[AVERAGE] = average_by_seed(list(errors.values()))
    return errors


def drop_contradictory(runs: list[Run], label: str) -> tuple[list[Run], list[str]]:
    """Return one run for each training and evaluation data, and a line for each with contradictory results.

    Args:
        runs: runs of one method.
        label: name of the method.
    """
    groups = defaultdict(list)
    for run in runs:
        groups[run.seed, run.trained, run.dataset, run.classes].append(run)
    agreed, notes = [], []
    for (number, _, dataset, classes), same in groups.items():
        low, high = min(same, key=accuracy), max(same, key=accuracy)
        if high.accuracy - low.accuracy > MAX_DIFFERENCE:
            seed = "" if number is None else f", seed {number}"
            both = ", ".join(f"{run.accuracy:.2f} in {run.path.parent}" for run in (low, high))
            notes.append(f"{label} on {dataset}, {classes}{seed} has several results and is left out: {both}")
        else:
            agreed.append(same[0])
    return agreed, notes


def accuracy(run: Run) -> float:
    return run.accuracy


def costs(runs: Iterable[Run], form: str = "simple_outline") -> str:
    """Return a table of the trained parameters and the mean seconds of a training of each method."""
    rows = []
    methods, _ = by_method([run for run in runs if run.seconds is not None])
    for label, trainings in methods.items():
        rows.append([label.text, f"{trainings[0].params:,}", f"{mean(run.seconds for run in trainings):.0f}"])
    heads = ["method", "trained parameters", "seconds of training"]
    return tabulate(rows, heads, form, colalign=["left", "right", "right"], disable_numparse=True)


def format_missing(seeds: tuple[int, ...]) -> str:
    if not seeds:
        return "missing"
    if len(seeds) == 1:
        return f"seed {seeds[0]} is missing"
    return f"seeds {', '.join(map(str, seeds))} are missing"
