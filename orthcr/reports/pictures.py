"""A picture of each protocol's table, and the style of all pictures."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402
from matplotlib.transforms import Bbox  # noqa: E402

from dassl.infrastructure.files import atomic_write  # noqa: E402
from orthcr.reports import palette  # noqa: E402
from orthcr.reports.names import AVERAGE  # noqa: E402
from orthcr.reports.tables import Cell, Table  # noqa: E402

MANY = 8  # methods: with more, bars by data set would be too thin
# places of a text beside its point: offset in points, and the side of the text that is there
NEAR = ((5, 4, "left"), (5, -5, "left"), (-5, 4, "right"), (-5, -5, "right"), (0, 8, "center"), (0, -9, "center"))
plt.rc("axes.spines", top=False, right=False)
plt.rc("axes", axisbelow=True, grid=True)
plt.rcParams.update({"grid.alpha": 0.25, "font.size": 11, "legend.frameon": False, "figure.dpi": 110})


def draw(tables: list[Table], folder: Path) -> list[Path]:
    """Draw each table but that of the new classes into a PNG file in `folder`.

    Returns:
        The paths of the files.
    """
    everywhere = styles_of([cell for table in tables for cell in table.cells])
    paths = []
    for table in tables:
        if table.protocol in KINDS:
            styles = {method: everywhere[method] for method in dict.fromkeys(cell.method for cell in table.cells)}
            with plt.rc_context({"text.parse_math": False}):  # "$" in a name is no formula
                paths.append(save(KINDS[table.protocol](table.cells, styles), folder / f"{table.slug}.png"))
    return paths


def save(fig, path: Path) -> Path:
    if not fig.legends:  # else it is laid out below the legend
        fig.tight_layout()
    with atomic_write(path) as f:
        fig.savefig(f, format="png")
    plt.close(fig)
    return path


def styles_of(cells: list[Cell]) -> dict[str, dict]:
    """Return the colour, marker and hatch of each method, in the order of the cells; see `orthcr.reports.palette`."""
    trained = {cell.method: cell.shots is not None for cell in cells}
    return palette.styles_of(trained, untrained=[method for method in trained if not trained[method]])


class Label(NamedTuple):
    """A text at a point of a picture."""

    text: str
    point: tuple[float, float]  # in data
    colour: str


def beside(ax, labels: list[Label]) -> None:
    """Write the text of each point to the right of the axes, in the order of their heights, with a line to it."""
    height = ax.figure.get_size_inches()[1] * 0.8  # inches
    labels = sorted(labels, key=lambda label: label.point[1])
    ax.figure.canvas.draw()
    at = [ax.transAxes.inverted().transform(ax.transData.transform(label.point))[1] for label in labels]
    gap = min(0.19 / height, 1 / len(labels))
    for _ in range(200):  # push texts apart that are too near, within the axes
        for k in range(len(at) - 1):
            over = at[k] + gap - at[k + 1]
            if over > 0:
                at[k], at[k + 1] = at[k] - over / 2, at[k + 1] + over / 2
        low, high = max(0.0, -at[0]), max(0.0, at[-1] - 1)
        at = [y + low - high for y in at] if not (low and high) else at
    for (text, point, colour), y in zip(labels, at, strict=True):
        style = {"color": colour}
        line = {"arrowstyle": "-", "lw": 0.7, "alpha": 0.6, "shrinkA": 1, "shrinkB": 5, "relpos": (0, 0.5), **style}
        position = {"xytext": (1.03, y), "textcoords": "axes fraction", "arrowprops": line}
        ax.annotate(*escape_dollars([text]), point, va="center", fontsize=9.5, annotation_clip=False, **position)


def near(ax, labels: list[Label]) -> None:
    """Write each text next to its point, where it covers no other text or marker; leave it out if it has no room.

    The figure must be drawn, which fixes its layout. The first labels have precedence.
    """
    inside = Bbox.from_extents(*ax.bbox.min, *(ax.bbox.max + 12))  # ticks are to the left and below
    boxes = []
    for line in ax.lines:
        if line.get_marker() not in ("", "None"):
            boxes += [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in ax.transData.transform(line.get_xydata())]
    for text, point, colour in labels:
        halo = [withStroke(linewidth=2.5, foreground="white")]  # a line behind the text does not strike it through
        style = {"color": colour, "fontsize": 8, "va": "center", "textcoords": "offset points", "path_effects": halo}
        written = ax.annotate(*escape_dollars([text]), point, (0, 0), **style)
        for distance, (x, y, side) in product((1, 1.9), NEAR):
            written.set(position=(distance * x, distance * y), ha=side)
            box = written.get_window_extent()
            if inside.contains(*box.min) and inside.contains(*box.max) and not box.count_overlaps(boxes):
                boxes.append(box)
                break
        else:
            written.remove()


def bars(ax, groups: list[list], styles: dict[str, dict], places: list[float], names: list[str]) -> None:
    """Draw each group of cells as bars, one for each method, with ± std and, if there is room, the figure.

    Args:
        ax: axes.
        groups: cells of each group.
        styles: styles of the methods, in the order of the bars.
        places: x coordinate of each group.
        names: names of the groups, below the axis.
    """
    width = 0.84 / len(styles)
    room = ax.figure.get_size_inches()[0] * 0.86 * width / (places[-1] - places[0] + 1)  # inches of one bar
    for x_group, group in zip(places, groups, strict=True):
        for k, (method, style) in enumerate(styles.items()):
            cell = next((c for c in group if c.method == method and c.values), None)
            if cell is None:
                continue
            x = x_group + (k - (len(styles) - 1) / 2) * width
            ax.bar(x, cell.mean, width * 0.92, **filled(style))
            if cell.std:
                ax.errorbar(x, cell.mean, cell.std, color="k", capsize=min(3, 20 * room), lw=1)
            if room > 0.17:  # else they would overlap
                gap, size, turn = (1.2, 9, 0) if room > 0.34 else (2.4, 8, 90)
                y = cell.mean + cell.std + gap
                ax.text(x, y, f"{cell.mean:.1f}", ha="center", va="bottom", fontsize=size, rotation=turn)
    ax.set_xticks(places, escape_dollars(names))
    ax.set(ylabel="accuracy, %", ylim=(0, 108), yticks=range(0, 101, 20), xlim=(places[0] - 0.6, places[-1] + 0.6))
    ax.grid(axis="x", visible=False)


def legend(fig, handles: list, names: list[str]) -> None:
    """Draw the legend above the figure, which grows by the lines of the legend."""
    width, height = fig.get_size_inches()
    columns = max(1, min(len(names), int(width * 9 / (max(map(len, names)) + 5))))
    extra = 0.24 * -(-len(names) // columns) + 0.1  # inches
    fig.set_size_inches(width, height + extra)
    fig.legend(handles, escape_dollars(names), ncol=columns, loc="upper center", borderaxespad=0.2)
    fig.tight_layout(rect=(0, 0, 1, height / (height + extra)))


def legend_of_axes(fig) -> None:
    """Draw the legend of all labelled curves, each once."""
    handles = {label: handle for ax in fig.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    legend(fig, list(handles.values()), list(handles))


def escape_dollars(names: Iterable[str]) -> list[str]:
    """Return names of at most 36 letters, in which a "$" begins no formula."""
    return [(name if len(name) <= 36 else name[:35] + "…").replace("$", r"\$") for name in names]


def filled(style: dict) -> dict:
    return {"facecolor": style["color"], "hatch": style["hatch"], "edgecolor": "white", "linewidth": 0}


def patches(styles: dict[str, dict]) -> list:
    return [plt.Rectangle((0, 0), 1, 1, **filled(style)) for style in styles.values()]


def base_to_new(cells: list[Cell], styles: dict[str, dict]):
    """Draw base, new and H of every method as bars; several data sets have one panel for each of the three."""
    datasets = list(dict.fromkeys(cell.target for cell in cells))
    kinds = {"base classes": "base", "new classes": "new", "harmonic mean": "H"}
    groups = [[c for c in cells if (c.classes or c.metric) == kind] for kind in kinds.values()]
    if len(styles) > MANY:
        last = [[c for c in group if c.target == datasets[-1]] for group in groups]
        return draw_ranked_bars(dict(zip(kinds, last, strict=True)), styles)
    if len(datasets) == 1:
        fig, ax = plt.subplots(figsize=(8, 4))
        bars(ax, groups, styles, [0, 1, 2], list(kinds))
    else:
        fig, axes = plt.subplots(3, 1, figsize=(11, 9), sharex=True)
        for ax, title, group in zip(axes, kinds, groups, strict=True):
            by_target(ax, group, styles, datasets)
            ax.set_ylabel(f"{title}, %")
    legend(fig, patches(styles), list(styles))
    return fig


def by_target(ax, cells: list, styles: dict[str, dict], targets: list[str], source: bool = False) -> None:
    """Draw bars by data set, with the source and the average set off.

    Args:
        ax: axes.
        cells: cells of any data sets and methods.
        styles: styles of the methods.
        targets: data sets in their order; "average" can only be the last.
        source: the first of `targets` is the source.
    """
    average = targets[-1] == AVERAGE
    names = [next(c.name for c in cells if c.target == target) for target in targets]
    places = [float(k) for k in range(len(targets))]
    shaded = []
    if source:
        names[0] += "\n(source)"
        places[1:] = [x + 0.4 for x in places[1:]]
        shaded.append(places[0])
    if average:
        places[-1] += 0.4
        shaded.append(places[-1])
    for x in shaded:
        ax.axvspan(x - 0.55, x + 0.55, color="k", alpha=0.05, lw=0)
    bars(ax, [[c for c in cells if c.target == target] for target in targets], styles, places, names)
    if len(targets) * max(map(len, names)) > 100:
        ax.tick_params("x", labelsize=9)


def draw_ranked_bars(panels: dict[str, list[Cell]], styles: dict[str, dict]):
    """Draw a panel for each group of cells with a bar for each method, the best of the last group on top."""
    last = {cell.method: cell.mean for cell in list(panels.values())[-1] if cell.values}
    methods = sorted(styles, key=lambda method: last.get(method, -1))
    fig, axes = plt.subplots(1, len(panels), figsize=(11, 0.8 + 0.3 * len(methods)), sharey=True, squeeze=False)
    for ax, (title, cells) in zip(axes[0], panels.items(), strict=True):
        for cell in (cell for cell in cells if cell.values):
            y = methods.index(cell.method)
            ax.barh(y, cell.mean, 0.72, **filled(styles[cell.method]))
            ax.errorbar(cell.mean, y, xerr=cell.std or None, color="k", capsize=2, lw=1)
            ax.text(cell.mean + cell.std + 1.5, y, f"{cell.mean:.1f}", va="center", fontsize=9)
        ax.set(title=title, xlim=(0, 112), xticks=range(0, 101, 20), xlabel="%")
        ax.set_yticks(range(len(methods)), escape_dollars(methods))
        ax.grid(axis="y", visible=False)
    return fig


def transfer(cells: list[Cell], styles: dict[str, dict]):
    """Draw bars of every method on the source, on each target and on the average of the targets."""
    names = list(dict.fromkeys(cell.target for cell in cells))
    if len(styles) > MANY:
        ends = {f"{c.name} (source)" if c.target == names[0] else c.name: c.target for c in cells}
        ends = {title: name for title, name in ends.items() if name in (names[0], names[-1])}
        return draw_ranked_bars({title: [c for c in cells if c.target == name] for title, name in ends.items()}, styles)
    fig, ax = plt.subplots(figsize=(11 if len(names) * len(styles) > 12 else 8, 4.4))
    by_target(ax, cells, styles, names, source=True)
    legend(fig, patches(styles), list(styles))
    return fig


def few_shot(cells: list[Cell], styles: dict[str, dict]):
    """Draw the accuracy by shots, with a band of ± std; zero-shot is the star at 0. An average comes first."""
    datasets = list(dict.fromkeys(cell.target for cell in cells))
    datasets.sort(key=lambda name: name != AVERAGE)
    shots = sorted({cell.shots or 0 for cell in cells}, key=lambda k: (k < 0, k))  # -1, all images, comes last
    columns = min(len(datasets), 3)
    rows = -(-len(datasets) // columns)
    size = (7, 4.6) if columns == 1 else (11, 3.1 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True)
    for ax, dataset in zip(axes.flat, datasets, strict=False):
        for method, style in styles.items():
            curve = [c for c in cells if c.method == method and c.target == dataset and c.values]
            curve.sort(key=lambda c: shots.index(c.shots or 0))
            x = [shots.index(c.shots or 0) for c in curve]
            if curve and curve[0].shots is None:
                ax.axhline(curve[0].mean, color=style["color"], ls=":", lw=1)
                ax.plot(x, curve[0].mean, "*", color=style["color"], ms=14, label=method, zorder=3)
            elif curve:
                ax.plot(x, [c.mean for c in curve], color=style["color"], marker=style["marker"], ms=5, label=method)
                low, high = [c.mean - c.std for c in curve], [c.mean + c.std for c in curve]
                ax.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
        name = next(c.name for c in cells if c.target == dataset)
        ax.set_title(*escape_dollars([name]), fontsize=11, weight="bold" if name == AVERAGE else None)
        ax.set_xticks(range(len(shots)), ["all" if k < 0 else k for k in shots])
        ax.set_xlim(-0.4, len(shots) - 0.6)
    for ax in axes.flat[len(datasets) :]:
        ax.set_visible(False)
    for column in range(columns):  # the lowest panel of each column
        last = [ax for ax in axes[:, column] if ax.get_visible()][-1]
        last.set_xlabel("labelled images a class")
        last.tick_params("x", labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy, %")
    legend_of_axes(fig)
    return fig


KINDS = {"base2new": base_to_new, "fewshot": few_shot, "xd": transfer, "dg": transfer}  # by protocol
TRANSFER_CAPTION = "Accuracy of every method on the source, on each target and on the average of the targets."
CAPTIONS = {
    "base2new": "Base, new and H of every method. Several data sets have one panel for each of the three.",
    "fewshot": "Accuracy by shots, with a band of ± std. Zero-shot is the star at 0. An average comes first.",
    "xd": TRANSFER_CAPTION,
    "dg": TRANSFER_CAPTION,
}
