"""The comparison of methods: tables, pictures and report.html from directories of results."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from dassl.infrastructure.files import atomic_write, visible
from orthcr.reports.names import AVERAGE
from orthcr.reports.page import Entry, figure, grid, page, section
from orthcr.reports.pictures import CAPTIONS, KINDS, Label, escape_dollars, label_beside_axes, plt, save, styles_of
from orthcr.reports.published import PUBLISHED
from orthcr.reports.report import write_report
from orthcr.reports.runs import STRENGTH, Run
from orthcr.reports.settings import group_by_method
from orthcr.reports.tables import ECE, RANK, TIE, Cell, Table, format_mean

HINT = """Accuracy in percent, mean ± population standard deviation over the seeds; the best of each column is bold.
Click a column head to sort by it. ECE: expected calibration error in percent, 15 bins of the confidence, lower is
better. It is the mean over the columns of the row, without the source, or the value at the most shots."""
PLANE_CAPTION = (
    "Accuracy on new classes against accuracy on base classes. A dashed line joins points of equal harmonic mean."
)
GAIN_CAPTION = "Accuracy of each method minus that of zero-shot CLIP on each data set, in percentage points."
COSTS_CAPTION = "Accuracy against trained parameters and against the seconds of a training."


class Cost(NamedTuple):
    """The cost of a method: trained parameters, and seconds of a training."""

    params: int
    seconds: float


def compare(
    paths: Iterable[str | Path],
    out: Path,
    seeds: Iterable[int] | None = None,
    outdated: Mapping[Path, str] | None = None,
) -> list[Table]:
    """Call `write_report`, then add report.html and its pictures to `out`.

    The arguments and the errors are those of `write_report`.
    """
    tables, left_out = write_report(paths, seeds, out, outdated)
    styles = styles_of([cell for table in tables for cell in table.cells])
    sections = []
    for table in tables:
        costs, figures = costs_of(table), []
        for name, fig, caption in (
            ("plane", draw_plane(table, styles), PLANE_CAPTION),
            ("gain", draw_gains(table, styles), GAIN_CAPTION),
            ("costs", draw_costs(table, costs, styles), COSTS_CAPTION),
        ):
            if fig:
                figures.append(figure(save(fig, out / f"{table.slug}_{name}.png"), caption))
        if table.protocol in KINDS:
            figures.append(figure(out / f"{table.slug}.png", CAPTIONS[table.protocol]))
        sections.append(section(table.title, [*grids(table, costs), *figures], table.all_notes()))
    if left_out:
        sections.append(section("Left out", [], [visible(line) for line in left_out]))
    methods = dict.fromkeys(cell.method for table in tables for cell in table.cells)
    text = (
        f"{len(methods)} methods: {', '.join(methods)}. {HINT}" if methods else "No result has the settings asked for."
    )
    with atomic_write(out / "report.html") as f:
        f.write(page("Comparison of methods", text, sections).encode())
    print(f"\n{out / 'report.html'}; beside it report.md, report.csv and the pictures")
    return tables


# ------------------------------------------------------------------ tables


def grids(table: Table, costs: dict[str, Cost]) -> list[str]:
    """Return a table with the averages and the costs, then a folded table for each data set or column."""
    if table.source:
        lines = {titles[-1]: line for titles, line in table.lines.items()}
        ece = {titles[-1]: cell for titles, cell in table.ece.items()}
        return [methods_grid(table, "", table.heads[1:], lines, ece, costs)]
    heads = table.heads[2:]
    data_sets = list(dict.fromkeys(titles[0] for titles in table.lines))

    def lines_of(name: str) -> dict[str, list]:
        return {titles[-1]: line for titles, line in table.lines.items() if titles[0] == name}

    def calibration_of(name: str) -> dict[str, Cell]:
        return {titles[-1]: cell for titles, cell in table.ece.items() if titles[0] == name}

    *other_data_sets, last_data_set = data_sets
    parts = [methods_grid(table, last_data_set, heads, lines_of(last_data_set), calibration_of(last_data_set), costs)]
    if table.protocol == "fewshot":
        for name in other_data_sets:
            parts.append(methods_grid(table, name, heads, lines_of(name), calibration_of(name), is_folded=True))
    elif other_data_sets:
        columns = [lines_of(name) for name in data_sets]
        methods = dict.fromkeys(method for column in columns for method in column)
        for k, head in enumerate(heads):
            lines = {m: [column[m][k] if m in column else None for column in columns] for m in methods}
            parts.append(methods_grid(table, head, data_sets, lines, {}, is_folded=True))
    return parts


def methods_grid(
    table: Table,
    caption: str,
    heads: list[str],
    lines: dict[str, list[Cell | None]],
    ece: dict[str, Cell],
    costs: dict[str, Cost] | None = None,
    is_folded: bool = False,
) -> str:
    """Return a table with a row for each method.

    Args:
        table: table with the best cells, the ranks and the published averages.
        caption: text above the table.
        heads: headings of the columns of cells.
        lines: {method: cells}.
        ece: {method: calibration error}; empty: no such column.
        costs: {method: cost}; None: no such columns.
        is_folded: whether to show the table only after a click, without published averages.
    """
    best_cells, ties, rows = table.best, table.ties, []
    rank = {} if is_folded else {titles[-1]: values for titles, values in table.rank.items()}
    published_heads = []
    if not is_folded:
        published_heads = [head for head in heads if any(head in row for row in table.published.values())]
    for method, line in lines.items():
        row = [Entry(method)] + [make_entry(cell, cell in best_cells, cell in ties) for cell in line]
        if rank:
            row.append(Entry(format_mean(rank[method]), mean(rank[method])) if method in rank else Entry(""))
        if ece:
            row.append(make_entry(ece.get(method)))
        for head in published_heads:
            value = table.published.get(method, {}).get(head)
            row.append(Entry(f"{value:.2f}" if value else "", value))
        if costs:
            cost = costs.get(method)
            row.append(Entry(f"{cost.params:,}", cost.params) if cost else Entry(""))
            row.append(Entry(f"{cost.seconds:.0f}", cost.seconds) if cost else Entry(""))
        rows.append(row)
    more_heads = [RANK] if rank else []
    more_heads += [ECE] if ece else []
    more_heads += [PUBLISHED if head == AVERAGE else f"{head}, published" for head in published_heads]
    if costs:
        more_heads += ["trained parameters", "seconds of training"]
    return grid(["method", *heads, *more_heads], rows, caption, is_folded)


def make_entry(cell: Cell | None, is_best: bool = False, is_tie: bool = False) -> Entry:
    if not cell or not cell.values:
        return Entry(cell.text if cell else "")
    return Entry(f"{cell.text} {TIE}" if is_tie else cell.text, cell.mean, is_best)


def costs_of(table: Table) -> dict[str, Cost]:
    """Return {method: cost}; the seconds are a mean over its trainings with the most shots.

    A method that is an evaluation at another strength has the cost of its training.
    """
    costs = {}
    trainings = [run for run in table.runs if run.seconds is not None]
    methods, _ = group_by_method(table.runs)
    for label, members in methods.items():
        timed = [run for run in members if run.seconds is not None]
        if not timed:
            keys = set(map(key_without_strength, members))
            timed = [run for run in trainings if key_without_strength(run) in keys]
        if not timed:
            continue
        shots = most_shots(timed)
        timed = [run for run in timed if run.trained is None or run.trained.shots == shots]
        seconds = mean(run.seconds for run in timed) if label.is_trained else 0.0
        costs[label.text] = Cost(timed[0].params, seconds)
    return costs


def key_without_strength(run: Run) -> tuple:
    return run.family, tuple(pair for pair in run.settings if not pair[0].endswith(STRENGTH))


def most_shots(runs: list[Run]) -> int:
    return max((run.trained.shots for run in runs if run.trained), default=0)


# ------------------------------------------------------------------ pictures


def headline(table: Table) -> tuple[str, dict[str, Cell]]:
    """Return the name of the main figure of a table, and {method: its cell}.

    The main figure is H, or the accuracy with the most shots. It is averaged if the table has an average.
    """
    cells = [cell for cell in table.cells if cell.values and not cell.is_partial]
    cells = [cell for cell in cells if cell.target == AVERAGE] or [c for c in cells if c.target != table.source]
    shots = max((cell.shots or 0 for cell in cells), default=0)
    metric, name = "accuracy", "accuracy"
    if table.protocol == "base2new":
        metric, name = "H", "harmonic mean"
    elif table.protocol == "fewshot":
        name = f"accuracy at {shots} shots"
    if cells:
        target = cells[0].target
        name = f"average {name}" if target == AVERAGE else f"{name} on {cells[0].name}"
    return name, {c.method: c for c in cells if c.metric == metric and c.shots in (None, shots)}


def draw_plane(table: Table, styles: dict[str, dict]):
    """Draw the accuracy on new classes against the accuracy on base classes, with lines of equal harmonic mean.

    Returns:
        The figure; None if the table is not of base-to-new, or has fewer than two methods.
    """
    if table.protocol != "base2new":
        return None
    cells = [cell for cell in table.cells if cell.values and not cell.is_partial]
    target = table.cells[-1].target  # the average if there is one
    points = {}
    for method in dict.fromkeys(cell.method for cell in cells):
        cell_of_classes = {cell.classes: cell for cell in cells if (cell.method, cell.target) == (method, target)}
        if "base" in cell_of_classes and "new" in cell_of_classes:
            points[method] = cell_of_classes["base"], cell_of_classes["new"]
    if len(points) < 2:
        return None
    fig, ax = plt.subplots(figsize=(8.5, max(6.0, 0.2 * len(points))))
    edges = []
    for pair in zip(*points.values(), strict=True):
        low, high = min(c.mean - c.std for c in pair), max(c.mean + c.std for c in pair)
        gap = 0.06 * max(high - low, 2.0)
        edges.append((max(0.1, low - gap), min(100.0, high + gap)))
    (left, right), (low, high) = edges
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(low, high, 200))
    lines = ax.contour(x, y, 2 * x * y / (x + y), 7, colors="k", linestyles="--", linewidths=0.7, alpha=0.45)
    ax.clabel(lines, fmt="H %.4g", fontsize=8)
    ax.grid(visible=False)
    for method, (base, new) in points.items():
        style = styles[method]
        ax.errorbar(base.mean, new.mean, new.std, base.std, color=style["color"], lw=1, alpha=0.5)
        ax.plot(base.mean, new.mean, style["marker"], color=style["color"], ms=9, mec="w", zorder=3)
    ax.set(xlabel="accuracy on base classes, %", ylabel="accuracy on new classes, %", xlim=edges[0], ylim=edges[1])
    label_beside_axes(ax, [Label(m, (base.mean, new.mean), styles[m]["color"]) for m, (base, new) in points.items()])
    return fig


def draw_gains(table: Table, styles: dict[str, dict]):
    """Draw the difference of each method from zero-shot CLIP on each data set, in percentage points.

    Returns:
        The figure; None if there is no zero-shot result to compare with.
    """
    cells = [cell for cell in table.cells if cell.values]
    if table.protocol == "fewshot":
        max_shots = max((cell.shots or 0 for cell in cells), default=0)
        cells = [cell for cell in cells if cell.shots in (None, max_shots)]
    zero_shot = [cell for cell in cells if cell.shots is None]
    names = [cell.method for cell in zero_shot]
    reference = "ZeroshotCLIP" if "ZeroshotCLIP" in names or not names else names[0]
    baseline = {column_of(c): c.mean for c in zero_shot if c.method == reference}
    compared_cells = [c for c in cells if c.method != reference and column_of(c) in baseline]
    if not compared_cells:
        return None
    columns = list(dict.fromkeys(map(column_of, compared_cells)))
    if len({target for target, _, _ in columns}) > 1 and table.protocol == "base2new":
        columns = [column for column in columns if column[2] == "H"]  # leaves out base and new
    kinds = {"base": "base classes", "new": "new classes", "": "harmonic mean"}
    one_target = len({target for target, _, _ in columns}) == 1
    titles = {c.target: c.name for c in compared_cells}
    heads = [kinds.get(classes, titles[target]) if one_target else titles[target] for target, classes, _ in columns]
    methods = list(dict.fromkeys(c.method for c in compared_cells))
    gains = np.full((len(methods), len(columns)), np.nan)
    for c in compared_cells:
        column = column_of(c)
        if column in columns:
            gains[methods.index(c.method), columns.index(column)] = c.mean - baseline[column]
    order = np.argsort(-np.nan_to_num(gains[:, -1]), kind="stable")
    gains, methods = gains[order], [methods[k] for k in order]
    width = 0.6 + 0.09 * min(36, max(map(len, methods))) + 0.78 * len(columns)
    fig, ax = plt.subplots(figsize=(max(5.5, width), 1.0 + 0.34 * len(methods)))
    limit = 1.8 * max(1.0, np.nanmax(np.abs(gains)))
    ax.imshow(gains, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for k, row in enumerate(gains):
        for j, value in enumerate(row):
            if not np.isnan(value):
                ax.text(j, k, f"{round(value, 1) + 0.0:+.1f}", ha="center", va="center", fontsize=9, color="k")
    turn = 0 if max(map(len, heads)) * len(heads) < 75 else 30
    ax.set_xticks(range(len(columns)), escape_dollars(heads), rotation=turn, ha="center")
    ax.set_yticks(range(len(methods)), escape_dollars(methods))
    ax.set_title(f"percentage points above {reference}", fontsize=11, loc="right")
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return fig


def column_of(cell: Cell) -> tuple[str, str, str]:
    return cell.target, cell.classes, cell.metric


def log_ticks(low: float, high: float, max_ticks: int = 6) -> dict[float, str]:
    """Return {tick: label} of a logarithmic axis, at powers of ten if there are three or more of them.

    Args:
        low: lower end of the axis.
        high: upper end of the axis.
        max_ticks: largest number of ticks.
    """
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = {10.0**k: f"$10^{{{k}}}$" for k in powers if low <= 10.0**k <= high}
    if len(ticks) < 3:
        candidates = [m * 10.0**k for k in powers for m in (1, 2, 5)]
        ticks = {x: f"{x:,.0f}" if x >= 1 else f"{x:g}" for x in candidates if low <= x <= high}
    step = -(-len(ticks) // max_ticks)
    return dict(list(ticks.items())[:: max(1, step)])


def draw_costs(table: Table, costs: dict[str, Cost], styles: dict[str, dict]):
    """Draw the accuracy against the trained parameters and against the seconds of a training.

    Returns:
        The figure; None if fewer than two methods have been trained.
    """
    name, cells = headline(table)
    cells = {method: cell for method, cell in cells.items() if method in costs}
    if sum(costs[method].seconds > 0 for method in cells) < 2:
        return None
    fig, axes = plt.subplots(1, 2, figsize=(11, max(4.6, 0.2 * len(cells))), sharey=True)
    for ax, quantity, label in zip(axes, Cost._fields, ("trained parameters", "seconds of training"), strict=True):
        values = {method: getattr(costs[method], quantity) for method in cells}
        smallest = min((value for value in values.values() if value > 0), default=1)
        zero = 10 ** (np.floor(np.log10(smallest)) - 0.7)  # the position of 0, which a logarithmic axis does not have
        points = {method: (value or zero, cells[method].mean) for method, value in values.items()}
        for method, (x, y) in points.items():
            style = styles[method]
            ax.errorbar(x, y, cells[method].std, color=style["color"], lw=1, alpha=0.5)
            ax.plot(x, y, style["marker"], color=style["color"], ms=8, mec="w", zorder=3)
        ax.set_xscale("log")
        ax.set_xlabel(label)
        largest = max(*values.values(), smallest)
        ticks = log_ticks(smallest / 3, 1.5 * largest)
        if not all(values.values()):
            ax.set_xlim(zero / 2, 3 * largest)
            ax.axvline(zero * 2.2, color="k", lw=0.7, ls=":")
            ticks = {zero: "0"} | {x: text for x, text in ticks.items() if x > zero * 4}
        ax.set_xticks(list(ticks), list(ticks.values()))
        ax.minorticks_off()  # their labels would overlap on an axis shorter than a decade
    axes[0].set_ylabel(f"{name}, %")
    label_beside_axes(axes[1], [Label(method, point, styles[method]["color"]) for method, point in points.items()])
    return fig
