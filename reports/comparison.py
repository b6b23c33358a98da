"""The comparison of methods: tables, pictures and report.html of a tree of results."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from dassl.files import atomic_write, visible

from .methods import by_method
from .names import AVERAGE
from .page import Entry, figure, grid, page, section
from .pictures import KINDS, beside, plain, plt, save, styles_of
from .published import PUBLISHED
from .report import write_report
from .runs import STRENGTH, Run
from .tables import ECE, Cell, Table

HINT = """Accuracy in percent, mean ± population standard deviation over the seeds; the best of each column in bold. A
column head sorts by it. ECE: expected calibration error in percent, of 15 bins of the confidence, the lower the better:
the mean over the columns of the row, without the source; of several numbers of shots at the largest."""


class Cost(NamedTuple):
    """What a training of a method takes."""

    params: int
    seconds: float


def compare(
    paths: Iterable[str | Path],
    out: Path,
    seeds: Iterable[int] | None = None,
    outdated: Mapping[Path, str] | None = None,
) -> list[Table]:
    """`write_report`, and in `out` also report.html with more pictures. Takes and raises what it does."""
    tables, left_out = write_report(paths, seeds, out, outdated)
    styles = styles_of([cell for table in tables for cell in table.cells])
    sections = []
    for table in tables:
        costs, figures = costs_of(table), []
        for name, fig, caption in (
            ("plane", plane(table, styles), plane.__doc__),
            ("gain", gain(table, styles), gain.__doc__),
            ("costs", against_costs(table, costs, styles), against_costs.__doc__),
        ):
            if fig:
                figures.append(figure(save(fig, out / f"{table.slug}_{name}.png"), caption.split("\n")[0]))
        if table.protocol in KINDS:
            figures.append(figure(out / f"{table.slug}.png", KINDS[table.protocol].__doc__.split("\n")[0]))
        sections.append(section(table.title, [*grids(table, costs), *figures], table.notes))
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
    """A table of the averages, with the costs; then one for each data set or column, folded."""
    if table.source:
        lines = {titles[-1]: line for titles, line in table.lines.items()}
        ece = {titles[-1]: cell for titles, cell in table.ece.items()}
        return [methods_grid(table, "", table.heads[1:], lines, ece, costs)]
    heads, data_sets = table.heads[2:], list(dict.fromkeys(titles[0] for titles in table.lines))

    def of(name: str) -> dict[str, list]:
        return {titles[-1]: line for titles, line in table.lines.items() if titles[0] == name}

    def calibration_of(name: str) -> dict[str, Cell]:
        return {titles[-1]: cell for titles, cell in table.ece.items() if titles[0] == name}

    made = [methods_grid(table, data_sets[-1], heads, of(data_sets[-1]), calibration_of(data_sets[-1]), costs)]
    others = data_sets[:-1]
    if table.protocol == "fewshot":
        made += [methods_grid(table, name, heads, of(name), calibration_of(name), folded=True) for name in others]
    else:
        for place, head in enumerate(heads):
            columns = [of(name) for name in data_sets]
            methods = dict.fromkeys(method for column in columns for method in column)
            lines = {m: [column[m][place] if m in column else None for column in columns] for m in methods}
            made += [methods_grid(table, head, data_sets, lines, {}, folded=True)] if others else []
    return made


def methods_grid(
    table: Table,
    caption: str,
    heads: list[str],
    lines: dict[str, list[Cell | None]],
    ece: dict[str, Cell],
    costs: dict[str, Cost] | None = None,
    folded: bool = False,
) -> str:
    """A row for each method. Args: ece: by method, for one more column; costs: for two more."""
    best, rows = table.best, []
    known = [head for head in heads if any(head in row for row in table.published.values())] if not folded else []
    for method, line in lines.items():
        row = [Entry(method)] + [entry(cell, cell in best) for cell in line]
        row += [entry(ece.get(method), False)] if ece else []
        row += [Entry(f"{x:.2f}" if x else "", x) for x in (table.published.get(method, {}).get(h) for h in known)]
        if costs:
            cost = costs.get(method)
            row += [Entry(f"{cost.params:,}", cost.params) if cost else Entry("")]
            row += [Entry(f"{cost.seconds:.0f}", cost.seconds) if cost else Entry("")]
        rows.append(row)
    more = [ECE] * bool(ece)
    more += [PUBLISHED if head == AVERAGE else f"{head}, published" for head in known]
    more += ["trained parameters", "seconds of training"] if costs else []
    return grid(["method", *heads, *more], rows, caption, folded)


def entry(cell: Cell | None, best: bool) -> Entry:
    if not cell or not cell.values:
        return Entry(cell.text if cell else "")
    return Entry(cell.text, cell.mean, best)


def costs_of(table: Table) -> dict[str, Cost]:
    """Of each method: trained parameters, and mean seconds of its trainings with the most shots.

    What was only evaluated at a strength costs what its training did.
    """
    found, trainings = {}, [run for run in table.runs if run.seconds is not None]
    for label, members in by_method(table.runs, []).items():
        alike = set(map(but_strength, members))
        own = [run for run in members if run.seconds is not None] or [
            run for run in trainings if but_strength(run) in alike
        ]
        if not own:
            continue
        own = [run for run in own if run.seed is None or run.trained.shots == most_shots(own)]
        found[label.text] = Cost(own[0].params, mean(run.seconds for run in own) if label.trained else 0.0)
    return found


def but_strength(run: Run) -> tuple:
    return run.family, tuple(pair for pair in run.settings if not pair[0].endswith(STRENGTH))


def most_shots(runs: list[Run]) -> int:
    return max(run.trained.shots for run in runs if run.trained)


# ------------------------------------------------------------------ pictures


def headline(table: Table) -> tuple[str, dict[str, Cell]]:
    """The one figure of each method: of the average if there is one; H, or with the most shots."""
    cells = [cell for cell in table.cells if cell.values and not cell.partial]
    cells = [cell for cell in cells if cell.target == AVERAGE] or [c for c in cells if c.target != table.source]
    shots = max((cell.shots or 0 for cell in cells), default=0)
    named = {"base2new": "harmonic mean", "fewshot": f"accuracy at {shots} shots"}.get(table.protocol, "accuracy")
    metric = "H" if table.protocol == "base2new" else "accuracy"
    kept = {c.method: c for c in cells if c.metric == metric and c.shots in (None, shots)}
    name = next((f"{named} on {cell.name}" if cell.target != AVERAGE else f"average {named}" for cell in cells), named)
    return name, kept


def plane(table: Table, styles: dict[str, dict]):
    """Accuracy on new classes against that on base classes; on a dashed line their harmonic mean is the same."""
    if table.protocol != "base2new":
        return None
    cells = [cell for cell in table.cells if cell.values and not cell.partial]
    target = table.cells[-1].target  # the average if there is one
    points = {}
    for method in dict.fromkeys(cell.method for cell in cells):
        mine = {cell.classes: cell for cell in cells if (cell.method, cell.target) == (method, target)}
        if "base" in mine and "new" in mine:
            points[method] = mine["base"], mine["new"]
    if len(points) < 2:
        return None
    fig, ax = plt.subplots(figsize=(8.5, 6))
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
    beside(ax, {method: (base.mean, new.mean) for method, (base, new) in points.items()}, styles)
    return fig


def gain(table: Table, styles: dict[str, dict]):
    """How much accuracy each method adds to zero-shot CLIP on each data set, in percentage points."""
    shown = [cell for cell in table.cells if cell.values]
    if table.protocol == "fewshot":
        most = max((cell.shots or 0 for cell in shown), default=0)
        shown = [cell for cell in shown if cell.shots in (None, most)]
    zero = [cell for cell in shown if cell.shots is None]
    names = [cell.method for cell in zero]
    reference = "ZeroshotCLIP" if "ZeroshotCLIP" in names else next(iter(names), None)
    less = {(c.target, c.classes, c.metric): c.mean for c in zero if c.method == reference}
    found = [c for c in shown if c.method != reference and (c.target, c.classes, c.metric) in less]
    if not found:
        return None
    rows = list(dict.fromkeys((c.target, c.classes, c.metric) for c in found))
    if len({target for target, _, _ in rows}) > 1 and table.protocol == "base2new":
        rows = [row for row in rows if row[2] == "H"]  # with base and new there would be three times as many
    kinds = {"base": "base classes", "new": "new classes", "": "harmonic mean"}
    several, short = len({row[0] for row in rows}) > 1, {c.target: c.name for c in found}
    heads = [short[target] if several else kinds.get(classes, short[target]) for target, classes, _ in rows]
    methods = list(dict.fromkeys(c.method for c in found))
    more = np.full((len(methods), len(rows)), np.nan)
    for c in found:
        if (key := (c.target, c.classes, c.metric)) in rows:
            more[methods.index(c.method), rows.index(key)] = c.mean - less[key]
    more, methods = zip(
        *sorted(zip(more.tolist(), methods, strict=True), key=lambda row: -np.nan_to_num(row[0][-1])), strict=True
    )
    width = 0.6 + 0.09 * min(36, max(map(len, methods))) + 0.78 * len(rows)
    size = max(5.5, width), 1.0 + 0.34 * len(methods)
    fig, ax = plt.subplots(figsize=size)
    most = max(1.0, np.nanmax(np.abs(more)))
    ax.imshow(more, cmap="PuOr_r", vmin=-1.8 * most, vmax=1.8 * most, aspect="auto")
    for k, row in enumerate(more):
        for j, value in enumerate(row):
            if not np.isnan(value):
                ax.text(j, k, f"{round(value, 1) + 0.0:+.1f}", ha="center", va="center", fontsize=9, color="k")
    ax.set_xticks(
        range(len(rows)), plain(heads), rotation=0 if max(map(len, heads)) * len(heads) < 75 else 30, ha="center"
    )
    ax.set_yticks(range(len(methods)), plain(methods))
    ax.set_title(f"percentage points above {reference}", fontsize=11, loc="right")  # over the names, too
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return fig


def log_ticks(low: float, high: float, most: int = 6) -> dict[float, str]:
    """Return {tick: label} of a logarithmic axis: at most `most`, powers of ten where there are three of them."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = {10.0**k: f"$10^{{{k}}}$" for k in powers if low <= 10.0**k <= high}
    if len(ticks) < 3:
        between = [m * 10.0**k for k in powers for m in (1, 2, 5)]
        ticks = {x: f"{x:,.0f}" if x >= 1 else f"{x:g}" for x in between if low <= x <= high}
    step = -(-len(ticks) // most)
    return dict(list(ticks.items())[:: max(1, step)])


def against_costs(table: Table, costs: dict[str, Cost], styles: dict[str, dict]):
    """Accuracy against trained parameters and against the seconds of a training."""
    name, cells = headline(table)
    cells = {method: cell for method, cell in cells.items() if method in costs}
    if sum(costs[method].seconds > 0 for method in cells) < 2:
        return None
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for ax, what, label in zip(axes, Cost._fields, ("trained parameters", "seconds of training"), strict=True):
        values = {method: getattr(costs[method], what) for method in cells}
        least = min(value for value in values.values() if value > 0) if any(values.values()) else 1
        none = 10 ** (np.floor(np.log10(least)) - 0.7)  # where 0 stands on the logarithmic axis
        points = {method: (value or none, cells[method].mean) for method, value in values.items()}
        for method, (x, y) in points.items():
            style = styles[method]
            ax.errorbar(x, y, cells[method].std, color=style["color"], lw=1, alpha=0.5)
            ax.plot(x, y, style["marker"], color=style["color"], ms=8, mec="w", zorder=3)
        ax.set_xscale("log")
        ax.set_xlabel(label)
        most = max(*values.values(), least)
        ticks = log_ticks(least / 3, 1.5 * most)
        if not all(values.values()):
            ax.set_xlim(none / 2, 3 * most)
            ax.axvline(none * 2.2, color="k", lw=0.7, ls=":")
            ticks = {none: "0"} | {x: text for x, text in ticks.items() if x > none * 4}
        ax.set_xticks(list(ticks), list(ticks.values()))
        ax.minorticks_off()  # whose labels would overlap where the axis is shorter than a decade
    axes[0].set_ylabel(f"{name}, %")
    beside(axes[1], points, styles)
    return fig
