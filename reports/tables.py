"""From runs to tables: for each protocol, a value for each method, data set, column and seed."""

import html
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean, pstdev

from tabulate import tabulate

from dassl.files import visible
from datasets.benchmarks import in_order, short

from .methods import by_method
from .names import AVERAGE, images
from .protocols import Selection, selections
from .published import PUBLISHED, SOURCE, averages
from .runs import Run

ECE = "ECE"  # head of the expected calibration error: see `calibration`
SAME = 0.1  # percentage points: two results of one model that are as near are one result, computed twice


def harmonic_mean(base: float, new: float) -> float:
    return 2 * base * new / (base + new) if base + new else 0.0


def spread(values: list[float], digits: int = 1) -> str:
    """Mean ± population standard deviation; of one value the value."""
    return f"{mean(values):.{digits}f}" + (f" ± {pstdev(values):.{digits}f}" if len(values) > 1 else "")


@dataclass(frozen=True)
class Cell:
    """One figure of a table, in percent, for each seed."""

    protocol: str  # base2new, new, fewshot, xd or dg
    method: str  # as the row is called
    source: str  # trained on; "": zero-shot
    target: str  # evaluated on, or "average"
    classes: str
    shots: int | None  # None: zero-shot
    metric: str
    values: dict[int | None, float]  # by seed; None: no seed plays a part
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
        """The data set as tables and pictures call it."""
        return short(self.target)

    @property
    def text(self) -> str:
        if not self.values:
            return "-"
        return spread(list(self.values.values()), 2) + ("*" if self.missing or self.partial else "")


@dataclass(frozen=True)
class Table:
    """A protocol's table; `str()` is what the terminal shows."""

    protocol: str
    slug: str  # name for a file
    title: str
    heads: list[str]  # of a row's titles, then of its cells
    lines: dict[
        tuple[str, ...], list[Cell | None]
    ]  # the cells of each row, by its titles, of which the last is a method
    notes: list[str]
    runs: list[Run] = field(repr=False)  # that have a place in it
    source: str = ""  # what all were trained on; "": each on the data set that it is evaluated on
    published: dict[str, dict[str, float]] = field(default_factory=dict)  # averages, of {method: {head}}; not of runs
    ece: dict[tuple[str, ...], Cell] = field(default_factory=dict)  # of rows where it is known; no column of accuracies

    @property
    def cells(self) -> list[Cell]:
        return [cell for line in self.lines.values() for cell in line if cell]

    @property
    def rows(self) -> list[list[str]]:
        return [[*titles, *(cell.text if cell else "" for cell in line)] for titles, line in self.lines.items()]

    @property
    def best(self) -> list[Cell]:
        """The highest of the methods in each column on each data set, if there are others; of equals all."""
        rivals = defaultdict(list)
        for titles, line in self.lines.items():
            for place, cell in enumerate(line):
                if cell and cell.values and not cell.partial:
                    rivals[titles[:-1], place].append(cell)
        found = []
        for cells in rivals.values():
            top = max(round(cell.mean, 2) for cell in cells)
            found += [cell for cell in cells if round(cell.mean, 2) == top] if len(cells) > 1 else []
        return found

    def text(self, markdown: bool = False) -> str:
        """Title, table and what is missing."""
        return section(self.title, [self.grid("github" if markdown else "simple_outline")], self.notes, markdown)

    def grid(self, form: str) -> str:
        """The table alone, in a format of tabulate's; in Markdown the best figures are bold."""
        rows, heads, best = self.rows, self.heads, self.best
        if form == "github":
            rows, heads = [list(map(in_markdown, row)) for row in rows], list(map(in_markdown, heads))
            marks = [[bool(cell) and cell in best for cell in line] for line in self.lines.values()]
            rows = [
                [
                    *row[: -len(own)],
                    *(f"**{text}**" if mark else text for text, mark in zip(row[-len(own) :], own, strict=True)),
                ]
                for row, own in zip(rows, marks, strict=True)
            ]
        if self.ece:
            heads = [*heads, ECE]
            cells = map(self.ece.get, self.lines)
            rows = [[*row, cell.text if cell else ""] for row, cell in zip(rows, cells, strict=True)]
        if self.published:
            heads = [*heads, PUBLISHED]
            rows = [[*row, told(self, titles)] for row, titles in zip(rows, self.lines, strict=True)]
        if self.protocol in ("xd", "dg") and form == "simple_outline":  # one column a target: too wide for a terminal
            rows = [[text.replace(" ± ", "\n± ") for text in row] for row in rows]
        align = [
            "left" if head in ("method", "data set") else "right" for head in [*self.heads, *heads[len(self.heads) :]]
        ]
        return tabulate(rows, heads, form, colalign=align, disable_numparse=True)

    __str__ = text


def told(table: Table, titles: tuple[str, ...]) -> str:
    """The published averages of a row, if it is one of averages."""
    known = table.published.get(titles[-1], {}) if titles[:-1] in ((), (AVERAGE,)) else {}
    return " / ".join(f"{value:.2f}" for value in known.values())


def section(title: str, body: list[str], notes: list[str], markdown: bool) -> str:
    """Args: body: as it is to be shown; the title and the notes may hold any text, as names from foreign files."""
    title, notes = visible(title), [visible(note) for note in notes]
    if not markdown:
        return "\n".join([title, *body, *notes])
    notes = ["\n".join(f"- {in_markdown(note)}" for note in notes)] * bool(notes)
    return "\n\n".join([f"## {in_markdown(title)}", *body, *notes])


def in_markdown(text: str) -> str:
    """Text in which nothing is markup, neither HTML nor a cell's end nor a link."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("](", "]\\(")


def tables(runs: list[Run], seeds: Iterable[int] | None = None) -> list[Table]:
    """Every table that the runs allow.

    Args:
        runs: of `tree.collect`.
        seeds: only these count, and each is expected; None: all, and of a table those that any method in it has.
    """
    seeds = sorted(set(seeds or ()))
    return [make_table(selection, seeds) for selection in selections(of_seeds(runs, seeds))]


def of_seeds(runs: list[Run], seeds: Iterable[int] | None) -> list[Run]:
    return [run for run in runs if run.trained is None or not seeds or run.seed in seeds]


def make_table(s: Selection, seeds: list[int]) -> Table:
    """Args: seeds: expected; none: all that any trained method has."""
    notes, cells, errors = [], {}, {}
    seeds = seeds or sorted({run.seed for run in s.runs if run.trained})
    targets = in_order({run.dataset for run in s.runs} - {s.source})
    for label, runs in by_method(s.runs, notes).items():
        kept = agreeing(runs, label.text, notes)
        values = figures(kept, s, targets, label.trained)
        for target, found in calibration(kept, s, targets, label.trained).items():
            shots = s.shots or next(reversed(s.columns.values())).shots  # none but the largest
            what = (s.source or target) * label.trained, target, "", shots if label.trained else None, ECE
            errors[target, label] = Cell(s.protocol, label.text, *what, found) if found else None
        for (target, head), found in values.items():
            column = s.columns[head]
            missing = tuple(seed for seed in seeds if label.trained and seed not in found)
            without = [t for t in targets if not values.get((t, head))] if target == AVERAGE and found else []
            shots = (s.shots if column.shots is None else column.shots) if label.trained else None
            what = (s.source or target) * label.trained, target, column.classes, shots, column.metric
            cells[target, label, head] = Cell(s.protocol, label.text, *what, found, missing, bool(without))
            place = f"{label.text} on {target}" + f", {head}" * (not s.source)
            if without:
                notes.append(f"{place}: without {', '.join(without)}")
            elif target != AVERAGE and column.metric != "H" and (missing or not found):
                notes.append(f"{place}: {lacks(missing)}")

    labels = dict.fromkeys(label for _, label, _ in cells)
    shown = [s.source] * bool(s.source) + targets + [AVERAGE] * (len(targets) > 1)
    if s.source:
        heads = ["method", *map(short, shown)]
        lines = {(m.text,): [cells.get((t, m, head)) for t in shown for head in s.columns] for m in labels}
        ece = {(m.text,): errors.get((shown[-1], m)) for m in labels}
    else:
        heads = ["data set", "method", *s.columns]
        lines = {(short(t), m.text): [cells.get((t, m, head)) for head in s.columns] for t in shown for m in labels}
        ece = {(short(t), m.text): errors.get((t, m)) for t in shown for m in labels}
    lines = {titles: line for titles, line in lines.items() if any(line)}
    cells = [cell for line in lines.values() for cell in line if cell]
    marked = any(cell.values and (cell.missing or cell.partial) for cell in cells)
    notes = ["* over fewer seeds or data sets:"] * marked + notes
    slug = "_".join(filter(None, [s.protocol, s.source, s.shots and images(s.shots).replace(" ", "")]))
    slug = re.sub(r"[^\w.-]", "_", slug)[:100]  # a name of a file, whatever the source is called
    taken = [r for r in s.runs if any(c.takes(r) and c.suits(r.trained is not None) for c in s.columns.values())]
    known = averages(s.protocol, s.source, targets, s.shots, taken)
    ece = {titles: cell for titles, cell in ece.items() if cell}
    notes += [SOURCE] * bool(known)
    return Table(s.protocol, slug, s.title, heads, lines, notes, taken, s.source, known, ece)


def figures(runs: list[Run], s: Selection, targets: list[str], trained: bool) -> dict[tuple[str, str], dict]:
    """{(data set or "average", head): {seed: percent}} of one method; nothing of data sets that it has no run of."""
    mine = [target for target in targets if s.source or any(run.dataset == target for run in runs)]
    values = {}
    for head, column in s.columns.items():
        if column.metric == "H" or not column.suits(trained):
            continue
        for target in [s.source] * bool(s.source) + mine:
            values[target, head] = {r.seed: r.accuracy for r in runs if r.dataset == target and column.takes(r)}
        full = [values[target, head] for target in mine if values[target, head]]
        if len(targets) > 1:  # seed by seed, over the seeds that all have
            seeds = [seed for seed in (full[0] if full else ()) if all(seed in found for found in full)]
            values[AVERAGE, head] = {seed: mean(found[seed] for found in full) for seed in seeds}
    if "H" in s.columns:  # of the average: that of the averages, if both are over the same data sets
        comparable = all(bool(values[target, "base"]) == bool(values[target, "new"]) for target in mine)
        for target in [target for target, head in values if head == "base"]:
            base, new = values[target, "base"], values[target, "new"]
            seeds = [seed for seed in base if seed in new and (comparable or target != AVERAGE)]
            values[target, "H"] = {seed: harmonic_mean(base[seed], new[seed]) for seed in seeds}
    return values


def calibration(runs: list[Run], s: Selection, targets: list[str], trained: bool) -> dict[str, dict]:
    """{data set or "average": {seed: ECE in percent}} of one method, where every figure of that seed has one.

    On a data set the mean over the columns, base and new; of several numbers of shots the largest. The average is over
    the data sets that accuracies are averaged over: not the source.
    """
    columns = [c for c in s.columns.values() if c.metric != "H" and c.suits(trained)]
    columns = columns[-1:] if s.protocol == "fewshot" else columns
    found = {}
    for target in targets:
        per_seed = defaultdict(list)
        for run in runs:
            if run.dataset == target and any(c.takes(run) for c in columns):
                per_seed[run.seed].append(run.ece)
        found[target] = {
            seed: mean(each) for seed, each in per_seed.items() if len(each) == len(columns) and None not in each
        }
    if len(targets) > 1:
        seeds = [seed for seed in found[targets[0]] if all(seed in of for of in found.values())]
        found[AVERAGE] = {seed: mean(of[seed] for of in found.values()) for seed in seeds}
    return found


def agreeing(runs: list[Run], label: str, notes: list[str]) -> list[Run]:
    """One run for each training and what it was evaluated on; none, but a note, if several contradict each other."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.trained, run.dataset, run.classes].append(run)
    kept = []
    for (trained, dataset, classes), same in groups.items():
        low, high = (choose(same, key=lambda r: r.accuracy) for choose in (min, max))
        if high.accuracy - low.accuracy > SAME:
            seed = f", seed {trained.seed}" if trained else ""
            both = ", ".join(f"{run.accuracy:.2f} in {run.path.parent}" for run in (low, high))
            notes.append(f"{label} on {dataset}, {classes}{seed} has several results and is left out: {both}")
        else:
            kept.append(same[0])
    return kept


def costs(runs: Iterable[Run], form: str = "simple_outline") -> str:
    """What a training of each method takes: its trained parameters, and seconds, the mean over the trainings."""
    rows = []
    for label, own in by_method([run for run in runs if run.seconds is not None], []).items():
        rows.append([label.text, f"{own[0].params:,}", f"{mean(run.seconds for run in own):.0f}"])
    heads = ["method", "trained parameters", "seconds of training"]
    return tabulate(rows, heads, form, colalign=["left", "right", "right"], disable_numparse=True)


def lacks(seeds: tuple[int, ...]) -> str:
    many = len(seeds) > 1
    return f"seed{'s' * many} {', '.join(map(str, seeds))} {'are' if many else 'is'} missing" if seeds else "missing"
