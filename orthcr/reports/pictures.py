"""Pictures of the protocols' tables, and the style of all pictures."""

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

MAX_BAR_METHODS = 8  # largest number of methods in a picture with bars for each data set
# positions of a text near its point: horizontal and vertical offset in points, and alignment
SIDE_PLACES = ((5, 4, "left"), (5, -5, "left"), (-5, 4, "right"), (-5, -5, "right"))
LABEL_PLACES = (*SIDE_PLACES, (0, 8, "center"), (0, -9, "center"))
plt.rc("axes.spines", top=False, right=False)
plt.rc("axes", axisbelow=True, grid=True)
plt.rcParams.update({"grid.alpha": 0.25, "font.size": 11, "legend.frameon": False, "figure.dpi": 110})


def draw(tables: list[Table], folder: Path) -> list[Path]:
    """Draw each table into a PNG file in `folder`, except the table of trainings on new classes.

    Returns:
        The paths of the files.
    """
    all_styles = styles_of([cell for table in tables for cell in table.cells])
    paths = []
    for table in tables:
        if table.protocol in KINDS:
            styles = {method: all_styles[method] for method in dict.fromkeys(cell.method for cell in table.cells)}
            with plt.rc_context({"text.parse_math": False}):  # "$" in a name is no formula
                paths.append(save(KINDS[table.protocol](table.cells, styles), folder / f"{table.slug}.png"))
    return paths


def save(fig, path: Path) -> Path:
    if not fig.legends:  # a figure with a legend already has its layout
        fig.tight_layout()
    with atomic_write(path) as f:
        fig.savefig(f, format="png")
    plt.close(fig)
    return path


def styles_of(cells: list[Cell]) -> dict[str, dict]:
    """Return the colour, marker and hatch of each method, in the order of the cells; see `orthcr.reports.palette`."""
    is_trained = {cell.method: cell.shots is not None for cell in cells}
    return palette.styles_of(is_trained, untrained=[method for method in is_trained if not is_trained[method]])


class Label(NamedTuple):
    """A text at a point of a picture."""

    text: str
    point: tuple[float, float]  # data coordinates
    colour: str


def label_beside_axes(ax, labels: list[Label]) -> None:
    """Write the text of each point to the right of the axes, sorted by height, with a line to the point."""
    height = ax.figure.get_size_inches()[1] * 0.8  # inches
    labels = sorted(labels, key=lambda label: label.point[1])
    ax.figure.canvas.draw()
    heights = [ax.transAxes.inverted().transform(ax.transData.transform(label.point))[1] for label in labels]
    gap = min(0.19 / height, 1 / len(labels))
    for _ in range(200):  # move overlapping texts apart, within the axes
        for k in range(len(heights) - 1):
            overlap = heights[k] + gap - heights[k + 1]
            if overlap > 0:
                heights[k], heights[k + 1] = heights[k] - overlap / 2, heights[k + 1] + overlap / 2
        low, high = max(0.0, -heights[0]), max(0.0, heights[-1] - 1)
        heights = [y + low - high for y in heights] if not (low and high) else heights
    for (text, point, colour), y in zip(labels, heights, strict=True):
        style = {"color": colour}
        line = {"arrowstyle": "-", "lw": 0.7, "alpha": 0.6, "shrinkA": 1, "shrinkB": 5, "relpos": (0, 0.5), **style}
        position = {"xytext": (1.03, y), "textcoords": "axes fraction", "arrowprops": line}
        ax.annotate(*escape_dollars([text]), point, va="center", fontsize=9.5, annotation_clip=False, **position)


def label_points(ax, labels: list[Label]) -> None:
    """Write each text near its point, where it covers no text and no marker; leave it out if there is no room.

    The figure must have been drawn, so that its layout is fixed. Earlier labels have precedence.
    """
    axes_box = Bbox.from_extents(*ax.bbox.min, *(ax.bbox.max + 12))  # labels may extend beyond the top and the right
    boxes = []
    for line in ax.lines:
        if line.get_marker() not in ("", "None"):
            boxes += [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in ax.transData.transform(line.get_xydata())]
    for text, point, colour in labels:
        halo = [withStroke(linewidth=2.5, foreground="white")]  # keeps the text readable over lines
        style = {"color": colour, "fontsize": 8, "va": "center", "textcoords": "offset points", "path_effects": halo}
        annotation = ax.annotate(*escape_dollars([text]), point, (0, 0), **style)
        for distance, (x, y, side) in product((1, 1.9), LABEL_PLACES):
            annotation.set(position=(distance * x, distance * y), ha=side)
            box = annotation.get_window_extent()
            if axes_box.contains(*box.min) and axes_box.contains(*box.max) and not box.count_overlaps(boxes):
                boxes.append(box)
                break
        else:
            annotation.remove()


def draw_bars(ax, groups: list[list], styles: dict[str, dict], places: list[float], names: list[str]) -> None:
    """Draw the cells of each group as bars, one for each method, with ± std and, if there is room, the value.

    Args:
        ax: axes.
        groups: cells of each group.
        styles: styles of the methods, in the order of the bars.
        places: x coordinate of each group.
        names: names of the groups, written below the axis.
    """
    width = 0.84 / len(styles)
    room = ax.figure.get_size_inches()[0] * 0.86 * width / (places[-1] - places[0] + 1)  # inches of one bar
    for x_group, group in zip(places, groups, strict=True):
        for k, (method, style) in enumerate(styles.items()):
            cell = next((c for c in group if c.method == method and c.values), None)
            if cell is None:
                continue
            x = x_group + (k - (len(styles) - 1) / 2) * width
            ax.bar(x, cell.mean, width * 0.92, **bar_style(style))
            if cell.std:
                ax.errorbar(x, cell.mean, cell.std, color="k", capsize=min(3, 20 * room), lw=1)
            if room > 0.17:  # else the values would overlap
                gap, size, turn = (1.2, 9, 0) if room > 0.34 else (2.4, 8, 90)
                y = cell.mean + cell.std + gap
                ax.text(x, y, f"{cell.mean:.1f}", ha="center", va="bottom", fontsize=size, rotation=turn)
    ax.set_xticks(places, escape_dollars(names))
    ax.set(ylabel="accuracy, %", ylim=(0, 108), yticks=range(0, 101, 20), xlim=(places[0] - 0.6, places[-1] + 0.6))
    ax.grid(axis="x", visible=False)


def draw_legend(fig, handles: list, names: list[str]) -> None:
    """Enlarge the figure and draw the legend above it."""
    width, height = fig.get_size_inches()
    columns = max(1, min(len(names), int(width * 9 / (max(map(len, names)) + 5))))
    extra_height = 0.24 * -(-len(names) // columns) + 0.1  # inches
    fig.set_size_inches(width, height + extra_height)
    fig.legend(handles, escape_dollars(names), ncol=columns, loc="upper center", borderaxespad=0.2)
    fig.tight_layout(rect=(0, 0, 1, height / (height + extra_height)))


def draw_legend_of_axes(fig) -> None:
    """Draw a legend with one entry for each label in the figure."""
    handles = {label: handle for ax in fig.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    draw_legend(fig, list(handles.values()), list(handles))


def escape_dollars(names: Iterable[str]) -> list[str]:
    """Shorten names to 36 letters and escape "$", which begins a formula in matplotlib."""
    return [(name if len(name) <= 36 else name[:35] + "…").replace("$", r"\$") for name in names]


def bar_style(style: dict) -> dict:
    return {"facecolor": style["color"], "hatch": style["hatch"], "edgecolor": "white", "linewidth": 0}


def patches(styles: dict[str, dict]) -> list:
    return [plt.Rectangle((0, 0), 1, 1, **bar_style(style)) for style in styles.values()]


def draw_base_to_new(cells: list[Cell], styles: dict[str, dict]):
    """Draw base, new and H of every method as bars; for several data sets, in three panels."""
    datasets = list(dict.fromkeys(cell.target for cell in cells))
    kinds = {"base classes": "base", "new classes": "new", "harmonic mean": "H"}
    groups = [[c for c in cells if (c.classes or c.metric) == kind] for kind in kinds.values()]
    if len(styles) > MAX_BAR_METHODS:
        last_cells = [[c for c in group if c.target == datasets[-1]] for group in groups]
        return draw_ranked_bars(dict(zip(kinds, last_cells, strict=True)), styles)
    if len(datasets) == 1:
        fig, ax = plt.subplots(figsize=(8, 4))
        draw_bars(ax, groups, styles, [0, 1, 2], list(kinds))
    else:
        fig, axes = plt.subplots(3, 1, figsize=(11, 9), sharex=True)
        for ax, title, group in zip(axes, kinds, groups, strict=True):
            draw_bars_by_target(ax, group, styles, datasets)
            ax.set_ylabel(f"{title}, %")
    draw_legend(fig, patches(styles), list(styles))
    return fig


def draw_bars_by_target(ax, cells: list, styles: dict[str, dict], targets: list[str], has_source: bool = False) -> None:
    """Draw bars for each data set; the source and the average have a grey background.

    Args:
        ax: axes.
        cells: cells of any data sets and methods.
        styles: styles of the methods.
        targets: data sets in their order; only the last may be "average".
        has_source: whether the first of `targets` is the source.
    """
    has_average = targets[-1] == AVERAGE
    names = [next(c.name for c in cells if c.target == target) for target in targets]
    places = [float(k) for k in range(len(targets))]
    shaded_places = []
    if has_source:
        names[0] += "\n(source)"
        places[1:] = [x + 0.4 for x in places[1:]]
        shaded_places.append(places[0])
    if has_average:
        places[-1] += 0.4
        shaded_places.append(places[-1])
    for x in shaded_places:
        ax.axvspan(x - 0.55, x + 0.55, color="k", alpha=0.05, lw=0)
    draw_bars(ax, [[c for c in cells if c.target == target] for target in targets], styles, places, names)
    if len(targets) * max(map(len, names)) > 100:
        ax.tick_params("x", labelsize=9)


def draw_ranked_bars(panels: dict[str, list[Cell]], styles: dict[str, dict]):
    """Draw a panel for each group of cells, with a bar for each method; the best method of the last is on top."""
    last_accuracies = {cell.method: cell.mean for cell in list(panels.values())[-1] if cell.values}
    methods = sorted(styles, key=lambda method: last_accuracies.get(method, -1))
    fig, axes = plt.subplots(1, len(panels), figsize=(11, 0.8 + 0.3 * len(methods)), sharey=True, squeeze=False)
    for ax, (title, cells) in zip(axes[0], panels.items(), strict=True):
        for cell in (cell for cell in cells if cell.values):
            y = methods.index(cell.method)
            ax.barh(y, cell.mean, 0.72, **bar_style(styles[cell.method]))
            ax.errorbar(cell.mean, y, xerr=cell.std or None, color="k", capsize=2, lw=1)
            ax.text(cell.mean + cell.std + 1.5, y, f"{cell.mean:.1f}", va="center", fontsize=9)
        ax.set(title=title, xlim=(0, 112), xticks=range(0, 101, 20), xlabel="%")
        ax.set_yticks(range(len(methods)), escape_dollars(methods))
        ax.grid(axis="y", visible=False)
    return fig


def draw_transfer(cells: list[Cell], styles: dict[str, dict]):
    """Draw bars of every method on the source, on each target and on the average of the targets."""
    names = list(dict.fromkeys(cell.target for cell in cells))
    if len(styles) > MAX_BAR_METHODS:
        ends = {f"{c.name} (source)" if c.target == names[0] else c.name: c.target for c in cells}
        ends = {title: name for title, name in ends.items() if name in (names[0], names[-1])}
        return draw_ranked_bars({title: [c for c in cells if c.target == name] for title, name in ends.items()}, styles)
    fig, ax = plt.subplots(figsize=(11 if len(names) * len(styles) > 12 else 8, 4.4))
    draw_bars_by_target(ax, cells, styles, names, has_source=True)
    draw_legend(fig, patches(styles), list(styles))
    return fig


def draw_few_shot(cells: list[Cell], styles: dict[str, dict]):
    """Draw the accuracy against the shots, with a band of ± std and a star at 0 for zero-shot; the average is first."""
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
        lowest_panel = [ax for ax in axes[:, column] if ax.get_visible()][-1]
        lowest_panel.set_xlabel("labelled images a class")
        lowest_panel.tick_params("x", labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy, %")
    draw_legend_of_axes(fig)
    return fig


# {protocol: function that draws its table}
KINDS = {"base2new": draw_base_to_new, "fewshot": draw_few_shot, "xd": draw_transfer, "dg": draw_transfer}
TRANSFER_CAPTION = "Accuracy of every method on the source, on each target and on the average of the targets."
CAPTIONS = {
    "base2new": "Base, new and H of every method. Several data sets have one panel for each of the three.",
    "fewshot": "Accuracy by shots, with a band of ± std. Zero-shot is the star at 0. An average comes first.",
    "xd": TRANSFER_CAPTION,
    "dg": TRANSFER_CAPTION,
}
