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
from orthcr.reports.names import AVERAGE, format_shots
from orthcr.reports.published import BASE_TO_NEW, PUBLISHED, SOURCE, averages
from orthcr.reports.ranking import agreement, format_agreement, is_tie, ranks
from orthcr.reports.runs import Run
from orthcr.reports.selections import Selection, selections
from orthcr.reports.settings import Label, group_by_method

ECE = "ECE"  # heading of the expected calibration error
RANK = "rank"  # heading of the mean rank over data sets: see `Table.rank`
TIE = "†"
TIE_NOTE = f"{TIE} not significantly below the best of the column (t-test paired over seeds, p >= 0.05)"
MAX_DIFFERENCE = 0.1  # percentage points; two results of one model that differ by more contradict each other


def harmonic_mean(base: float, new: float) -> float:
    return 2 * base * new / (base + new) if base + new else 0.0


def format_mean(values: list[float], digits: int = 1, sign: str = "") -> str:
    """Return "mean ± population standard deviation", or only the mean of a single value.

    Args:
        values: one or more numbers.
        digits: number of decimals.
        sign: "+" to write positive means with a sign.
    """
    text = f"{mean(values):{sign}.{digits}f}"
    if len(values) > 1:
        text += f" ± {pstdev(values):.{digits}f}"
    return text


@dataclass(frozen=True)
class Cell:
    """One figure of a table: a value in percent for each seed."""

    protocol: str  # base2new, new, fewshot, xd or dg
    method: str  # label of the row
    source: str  # data set of the training; "": zero-shot
    target: str  # data set of the evaluation, or "average"
    classes: str
    shots: int | None  # None: zero-shot
    metric: str
    values: dict[int | None, float]  # {seed: value}; zero-shot has the key None
    missing: tuple[int, ...] = ()  # seeds without a value
    is_partial: bool = False  # whether an average is over fewer data sets than the table has

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
        return format_mean(list(self.values.values()), 2) + ("*" if self.missing or self.is_partial else "")


@dataclass(frozen=True)
class Table:
    """The table of a protocol. `str()` gives its text for the terminal."""

    protocol: str
    slug: str  # table's name in file names
    title: str
    heads: list[str]  # headings of the titles of a row, then of its cells
    lines: dict[tuple[str, ...], list[Cell | None]]  # {titles of a row: its cells}; the last title is a method
    notes: list[str]
    runs: list[Run] = field(repr=False)  # runs in the table
    source: str = ""  # training data set of all runs; "": each run was trained on the data set of its evaluation
    published: dict[str, dict[str, float]] = field(default_factory=dict)  # {method: {heading: average}}
    ece: dict[tuple[str, ...], Cell] = field(default_factory=dict)  # {titles of a row: its calibration error}

    @property
    def cells(self) -> list[Cell]:
        return [cell for line in self.lines.values() for cell in line if cell]

    @property
    def rows(self) -> list[list[str]]:
        return [[*titles, *(cell.text if cell else "" for cell in line)] for titles, line in self.lines.items()]

    def columns(self) -> list[list[Cell]]:
        """Return the cells of each column and data set that have values and are not partial."""
        columns = defaultdict(list)
        for titles, line in self.lines.items():
            for k, cell in enumerate(line):
                if cell and cell.values and not cell.is_partial:
                    columns[titles[:-1], k].append(cell)
        return list(columns.values())

    @property
    def best(self) -> list[Cell]:
        """The cells with the highest mean of their column, including equal ones; none in a column with one method."""
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
        """The ranks of each method on the data sets: {titles of the row that shows their mean: ranks}.

        Methods are ranked by H, or by the accuracy with the most shots. The source of a transfer does not count.
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
        """Sentences on the agreement of base, new and H with the order of the published averages."""
        last_titles = list(self.lines)[-1][:-1] if self.lines else ()
        lines = {titles[-1]: line for titles, line in self.lines.items() if titles[:-1] == last_titles}
        sentences = []
        for k, head in enumerate(("base", "new", "H") if self.protocol == "base2new" else ()):
            cells = {method: line[k] for method, line in lines.items()}
            accuracies = {method: cell.mean for method, cell in cells.items() if cell and cell.values}
            figures = agreement(accuracies, {method: row[k] for method, row in BASE_TO_NEW.items()})
            if figures:
                sentences.append(format_agreement(head, figures))
        return sentences

    def text(self, markdown: bool = False) -> str:
        """Return the title, the table and the notes."""
        grid = self.grid("github" if markdown else "simple_outline")
        return section(self.title, [grid], self.all_notes() if markdown else self.notes, markdown)

    def all_notes(self) -> list[str]:
        """Return the notes, including those on ties, ranks and the order of the published averages."""
        notes = list(self.notes)
        if self.ties:
            notes.append(TIE_NOTE)
        if self.rank:
            notes.append(f"{RANK}: mean over the data sets ± population standard deviation, 1 for the best method")
        return notes + self.agreements

    def grid(self, form: str) -> str:
        """Return the table without title and notes, in a format of tabulate; "github" has bold best figures."""
        rows, heads = self.rows, self.heads
        if form == "github":
            best, ties = self.best, self.ties
            rows, heads = [list(map(escape_markdown, row)) for row in rows], list(map(escape_markdown, heads))
            for row, line in zip(rows, self.lines.values(), strict=True):
                for k, cell in enumerate(line, len(row) - len(line)):
                    if cell and cell in best:
                        row[k] = f"**{row[k]}**"
                    elif cell and cell in ties:
                        row[k] += f" {TIE}"
            rank = self.rank
            if rank:
                heads = [*heads, RANK]
                texts = [format_mean(rank[titles]) if titles in rank else "" for titles in self.lines]
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
    """Return the published averages for a row; "" if it is not a row of averages."""
    if titles[:-1] not in ((), (AVERAGE,)):
        return ""
    return " / ".join(f"{value:.2f}" for value in table.published.get(titles[-1], {}).values())


def section(title: str, body: list[str], notes: list[str], markdown: bool) -> str:
    """Return a title, a body and notes as text or Markdown.

    Args:
        title: text that will be escaped, because it may have names from untrusted files.
        body: parts that are not escaped.
        notes: texts that will be escaped.
        markdown: whether to return Markdown.
    """
    title, notes = visible(title), [visible(note) for note in notes]
    if not markdown:
        return "\n".join([title, *body, *notes])
    parts = [f"## {escape_markdown(title)}", *body]
    if notes:
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in notes))
    return "\n\n".join(parts)


def escape_markdown(text: str) -> str:
    """Escape HTML, ends of table cells and links in a text."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("](", "]\\(")


def tables(runs: list[Run], seeds: Iterable[int] | None = None) -> list[Table]:
    """Return a table for each protocol that has runs.

    Args:
        runs: result of `tree.collect`.
        seeds: seeds of the tables, which each method should have; None: every seed that a method of the table has.
    """
    seeds = sorted(set(seeds or ()))
    return [make_table(selection, seeds) for selection in selections(select_seeds(runs, seeds))]


def select_seeds(runs: list[Run], seeds: Iterable[int] | None) -> list[Run]:
    return [run for run in runs if run.trained is None or not seeds or run.seed in seeds]


def make_table(selection: Selection, seeds: list[int]) -> Table:
    """Return the table of a selection.

    Args:
        selection: the runs and the columns.
        seeds: seeds that each method should have; empty: every seed that a trained method has.
    """
    seeds = seeds or sorted({run.seed for run in selection.runs if run.trained})
    targets = in_order({run.dataset for run in selection.runs} - {selection.source})
    methods, notes = group_by_method(selection.runs)
    cells, errors = {}, {}
    for label, every_run in methods.items():
        runs, contradictions = drop_contradictory(every_run, label.text)
        figures = compute_accuracies(runs, selection, targets, label.is_trained)
        method_cells = make_cells(figures, selection, targets, label, seeds)
        cells |= method_cells
        errors |= make_ece_cells(runs, selection, targets, label)
        notes += contradictions + describe_gaps(method_cells, selection, targets)
    heads, lines, ece = lay_out(selection, targets, cells, errors)
    if any(cell.values and (cell.missing or cell.is_partial) for line in lines.values() for cell in line if cell):
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
    """Return {(data set or "average", label, heading): cell} of one method.

    Args:
        figures: result of `compute_accuracies`.
        selection: the runs and the columns.
        targets: data sets of the table, without the source.
        label: label of the method.
        seeds: seeds that a trained method should have.
    """
    cells = {}
    for (target, head), values in figures.items():
        column = selection.columns[head]
        cell = Cell(selection.protocol, label.text, "", target, column.classes, None, column.metric, values)
        if label.is_trained:
            cell = replace(
                cell,
                source=selection.source or target,
                shots=selection.shots if column.shots is None else column.shots,
                missing=tuple(seed for seed in seeds if seed not in values),
            )
        if target == AVERAGE and values:
            cell = replace(cell, is_partial=any(not figures.get((t, head)) for t in targets))
        cells[target, label, head] = cell
    return cells


def make_ece_cells(
    runs: list[Run], selection: Selection, targets: list[str], label: Label
) -> dict[tuple[str, Label], Cell]:
    """Return {(data set or "average", label): calibration error} of one method; see `make_cells` for the arguments."""
    cells = {}
    for target, values in compute_ece(runs, selection, targets, label.is_trained).items():
        cell = Cell(selection.protocol, label.text, "", target, "", None, ECE, values)
        if label.is_trained:
            last_column = list(selection.columns.values())[-1]  # the last column has the most shots
            cell = replace(cell, source=selection.source or target, shots=selection.shots or last_column.shots)
        if values:
            cells[target, label] = cell
    return cells


def describe_gaps(cells: dict[tuple[str, Label, str], Cell], selection: Selection, targets: list[str]) -> list[str]:
    """Return a line for each cell of a method that lacks seeds or data sets."""
    notes = []
    for (target, label, head), cell in cells.items():
        name = f"{label.text} on {target}" if selection.source else f"{label.text} on {target}, {head}"
        if cell.is_partial:
            missing_targets = [t for t in targets if (t, label, head) not in cells or not cells[t, label, head].values]
            notes.append(f"{name}: without {', '.join(missing_targets)}")
        elif target != AVERAGE and cell.metric != "H" and (cell.missing or not cell.values):
            notes.append(f"{name}: {format_missing(cell.missing)}")
    return notes


def lay_out(
    selection: Selection,
    targets: list[str],
    cells: dict[tuple[str, Label, str], Cell],
    errors: dict[tuple[str, Label], Cell],
) -> tuple[list[str], dict[tuple[str, ...], list[Cell | None]], dict[tuple[str, ...], Cell]]:
    """Return the headings of the table, the cells of each row, and the calibration errors of rows that have one.

    With one training data set, rows are methods and columns are data sets. Else each data set has its own rows.

    Args:
        selection: the runs and the columns.
        targets: data sets of the table, without the source.
        cells: {(data set, label, heading): cell} of all methods.
        errors: {(data set, label): calibration error} of all methods.
    """
    labels = dict.fromkeys(label for _, label, _ in cells)
    shown_targets = list(targets)
    if selection.source:
        shown_targets.insert(0, selection.source)
    if len(targets) > 1:
        shown_targets.append(AVERAGE)
    lines, ece = {}, {}
    if selection.source:
        heads = ["method", *map(short, shown_targets)]
        for label in labels:
            lines[label.text,] = [cells.get((t, label, head)) for t in shown_targets for head in selection.columns]
            ece[label.text,] = errors.get((shown_targets[-1], label))
    else:
        heads = ["data set", "method", *selection.columns]
        for target in shown_targets:
            for label in labels:
                titles = short(target), label.text
                lines[titles] = [cells.get((target, label, head)) for head in selection.columns]
                ece[titles] = errors.get((target, label))
    lines = {titles: line for titles, line in lines.items() if any(line)}
    return heads, lines, {titles: cell for titles, cell in ece.items() if cell}


def make_slug(selection: Selection) -> str:
    """Return a valid file name for a table."""
    words = [selection.protocol]
    if selection.source:
        words.append(selection.source)
    if selection.shots:
        words.append(format_shots(selection.shots).replace(" ", ""))
    return re.sub(r"[^\w.-]", "_", "_".join(words))[:100]


def compute_accuracies(
    runs: list[Run], selection: Selection, targets: list[str], is_trained: bool
) -> dict[tuple[str, str], dict]:
    """Return {(data set or "average", heading): {seed: percent}} of one method.

    Args:
        runs: runs of the method.
        selection: the runs and the columns.
        targets: data sets of the table; data sets without a run are left out.
        is_trained: whether the method is trained, not zero-shot.
    """
    datasets = [target for target in targets if selection.source or any(run.dataset == target for run in runs)]
    values = {}
    for head, column in selection.columns.items():
        if column.metric == "H" or not column.suits(is_trained):
            continue
        for target in [selection.source, *datasets] if selection.source else datasets:
            values[target, head] = {r.seed: r.accuracy for r in runs if r.dataset == target and column.takes(r)}
        if len(targets) > 1:
            columns = [values[target, head] for target in datasets if values[target, head]]
            values[AVERAGE, head] = average_by_seed(columns)
    if "H" in selection.columns:
        # the average H is the harmonic mean of the average base and new, if both are over the same data sets
        have_same_data_sets = all(bool(values[target, "base"]) == bool(values[target, "new"]) for target in datasets)
        for target in [target for target, head in values if head == "base"]:
            base, new = values[target, "base"], values[target, "new"]
            seeds = [seed for seed in base if seed in new and (have_same_data_sets or target != AVERAGE)]
            values[target, "H"] = {seed: harmonic_mean(base[seed], new[seed]) for seed in seeds}
    return values


def average_by_seed(columns: list[dict[int | None, float]]) -> dict[int | None, float]:
    """Return {seed: mean of the columns} for the seeds that all columns have."""
    if not columns:
        return {}
    seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
    return {seed: mean(column[seed] for column in columns) for seed in seeds}


def compute_ece(runs: list[Run], selection: Selection, targets: list[str], is_trained: bool) -> dict[str, dict]:
    """Return {data set or "average": {seed: ECE in percent}} of one method.

    The ECE of a data set is the mean over its columns, or the one at the most shots. A seed counts only if each of its
    accuracies has an ECE. The average leaves out the source.

    Args:
        runs: runs of the method.
        selection: the runs and the columns.
        targets: data sets of the table, without the source.
        is_trained: whether the method is trained, not zero-shot.
    """
    columns = [c for c in selection.columns.values() if c.metric != "H" and c.suits(is_trained)]
    columns = columns[-1:] if selection.protocol == "fewshot" else columns
    errors = {}
    for target in targets:
        per_seed = defaultdict(list)
        for run in runs:
            if run.dataset == target and any(c.takes(run) for c in columns):
                per_seed[run.seed].append(run.ece)
        errors[target] = {
            seed: mean(eces) for seed, eces in per_seed.items() if len(eces) == len(columns) and None not in eces
        }
    if len(targets) > 1:
        errors[AVERAGE] = average_by_seed(list(errors.values()))
    return errors


def drop_contradictory(runs: list[Run], label: str) -> tuple[list[Run], list[str]]:
    """Return one run for each combination of training and evaluation data, and a line for each contradiction.

    Args:
        runs: runs of one method.
        label: name of the method.
    """
    groups = defaultdict(list)
    for run in runs:
        groups[run.seed, run.trained, run.dataset, run.classes].append(run)
    kept_runs, notes = [], []
    for (number, _, dataset, classes), same_runs in groups.items():
        low, high = min(same_runs, key=accuracy), max(same_runs, key=accuracy)
        if high.accuracy - low.accuracy > MAX_DIFFERENCE:
            seed = "" if number is None else f", seed {number}"
            results = ", ".join(f"{run.accuracy:.2f} in {run.path.parent}" for run in (low, high))
            name = f"{label} on {dataset}, {classes}{seed}"
            notes.append(f"{name} has different results and is left out: {results}")
        else:
            kept_runs.append(same_runs[0])
    return kept_runs, notes


def accuracy(run: Run) -> float:
    return run.accuracy


def cost_table(runs: Iterable[Run], form: str = "simple_outline") -> str:
    """Return a table with the trained parameters and the mean duration of a training of each method."""
    rows = []
    methods, _ = group_by_method([run for run in runs if run.seconds is not None])
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
