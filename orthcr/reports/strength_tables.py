"""The report of `orthcr strength`: tables and pictures of the accuracy at each strength."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from dassl.infrastructure.files import atomic_write, write_json
from datasets import catalogue
from orthcr.reports.names import format_shots
from orthcr.reports.palette import GREY, colour_of, styles_of
from orthcr.reports.pictures import Label, draw_legend_of_axes, escape_dollars, label_points, plt, save
from orthcr.reports.tables import escape_markdown, format_mean, harmonic_mean, section

GEODESIC, LINE = "geodesic", "line"  # the paths Cayley(s Q) and W + s (W' - W)
ZEROSHOT = "ZeroshotCLIP"
ZERO = "zero-shot"  # row of the points at strength 0 and of ZEROSHOT
AXES = {  # names of columns that are not data sets; overview.png also has their pictures
    "base": "base classes",
    "new": "new classes",
    "variants": "variants, average",
    "others": "other data sets, average",
}


@dataclass(frozen=True)
class Point:
    """The accuracies of a trained model at one strength of a path."""

    model_dir: str
    trainer: str
    seed: int
    trained: tuple[str, str, int]  # data set, classes and shots of the training
    auto: float | None  # strength that "auto" selects; None: the method has no strength
    path: str  # GEODESIC or LINE
    strength: float
    accuracies: dict[tuple[str, str], float]  # {(data set, classes): percent}

    @property
    def section(self) -> tuple[str, str]:
        """The section of the report: (protocol, data set of the training)."""
        source, classes, _ = self.trained
        if classes == "base":
            return "base-to-new", source
        has_targets = catalogue.variants(source) or catalogue.targets(source)
        return "transfer" if has_targets else "few-shot", source

    @property
    def row(self) -> str:
        """The name of the row in the table."""
        if self.strength == 0 or self.trainer == ZEROSHOT:
            return ZERO
        if self.auto is None:
            return self.trainer
        path = ", line" if self.path == LINE else ""
        return f"{self.trainer}{path}, s = {self.strength:g}"

    @cached_property
    def columns(self) -> dict[str, float]:
        """The accuracies in the columns of the table: {heading: percent}."""
        protocol, source = self.section
        if protocol == "base-to-new":
            base, new = (self.accuracies[source, classes] for classes in ("base", "new"))
            return {"base": base, "new": new, "H": harmonic_mean(base, new)}
        accuracy_by_name = {name: accuracy for (name, _), accuracy in self.accuracies.items()}
        if protocol == "few-shot":
            return {format_shots(self.trained[2]): accuracy_by_name[source]}
        columns = {catalogue.short(source): accuracy_by_name[source]}
        groups = {"variants": catalogue.variants(source), "others": catalogue.targets(source)}
        for head, rows in groups.items():
            group = [accuracy_by_name[row.name] for row in rows if row.name in accuracy_by_name]
            if group:
                columns[head] = mean(group)
        return columns | {catalogue.short(name): accuracy for name, accuracy in accuracy_by_name.items()}


def write_curves(points: list[Point], strengths: list[float], out: Path) -> str:
    """Write curve.json, curve.md and the pictures to `out`, and return the tables in Markdown.

    Args:
        points: points at all measured strengths.
        strengths: strengths that get a row and a point of the curves.
        out: folder for the files.
    """
    write_json(records(points), out / "curve.json")
    text = page(points, strengths)
    with atomic_write(out / "curve.md") as f:
        f.write(text.encode())
    draw(points, strengths, out)
    return text


def group_points(points: Iterable[Point], attribute: str) -> dict:
    """Return {value of an attribute: points}."""
    groups = defaultdict(list)
    for point in points:
        groups[getattr(point, attribute)].append(point)
    return dict(groups)


def records(points: list[Point]) -> list[dict]:
    """Return the content of curve.json: a record for each accuracy."""
    result = []
    for members in group_points(points, "model_dir").values():
        for test, p in product(members[0].accuracies, members):
            record = asdict(p)
            accuracy = record.pop("accuracies")[test]
            result.append(record | {"dataset": test[0], "classes": test[1], "accuracy": accuracy})
    return result


# ------------------------------------------------------------------ tables


def page(points: list[Point], strengths: list[float]) -> str:
    """Return curve.md. A section has its table, the selected strengths, and the gain of the geodesic over the line."""
    sections = []
    for (protocol, source), members in group_points(points, "section").items():
        parts = [table(rows_of(members, strengths))]
        choices = []
        for p in (p for p in members if p.path == GEODESIC and p.strength == p.auto):
            shots = f", {format_shots(p.trained[2])}" if protocol == "few-shot" else ""
            choices.append(f"{p.trainer}, seed {p.seed}{shots}: {p.auto:g}")
        if choices:
            parts.append(f'Selected by "auto": {"; ".join(choices)}.')
        gain = gain_table(members, strengths)
        if gain:
            parts += ["Accuracy on the geodesic minus accuracy on the line between the same weights:", gain]
        sections.append(section(f"{protocol}: {catalogue.short(source)}", parts, [], markdown=True))
    return "\n\n".join(sections) + "\n"


def rows_of(points: list[Point], strengths: list[float]) -> dict[str, list[Point]]:
    """Return {row: points} of a section: zero-shot, then each method at these strengths and at the one of "auto"."""
    rows = {ZERO: [p for p in points if p.row == ZERO]}
    for trainer, members in group_points(points, "trainer").items():
        for p in sorted(members, key=lambda p: (p.path, p.strength)):
            if p.row != ZERO and p.strength in strengths:
                rows.setdefault(p.row, []).append(p)
        rows[f'{trainer}, "auto"'] = [p for p in members if p.path == GEODESIC and p.strength == p.auto]
    return {name: row for name, row in rows.items() if row}


def heads_of(rows: dict[str, list[Point]]) -> list[str]:
    return list(dict.fromkeys(head for row in rows.values() for p in row for head in p.columns))


def values(row: list[Point], head: str) -> list[float]:
    """Return the accuracies of a column in percent, one for each seed, as zero-shot models of a seed are equal."""
    return list({p.seed: p.columns[head] for p in row if head in p.columns}.values())


def table(rows: dict[str, list[Point]]) -> str:
    """Return a table in Markdown, with mean ± population standard deviation over the seeds."""
    heads, lines = heads_of(rows), []
    for name, row in rows.items():
        cells = [values(row, head) for head in heads]
        lines.append([escape_markdown(name), *(format_mean(cell) if cell else "" for cell in cells)])
    align = ["left", *["right"] * len(heads)]
    return tabulate(lines, ["", *map(escape_markdown, heads)], "github", colalign=align, disable_numparse=True)


def gain_table(points: list[Point], strengths: list[float]) -> str:
    """Return a table in Markdown: accuracies on the geodesic minus those on the line; "" if there is no line."""
    curve = {(p.model_dir, p.strength): p.columns for p in points if p.path == GEODESIC}
    lines = group_points((p for p in points if p.path == LINE and p.strength in strengths), "strength")
    targets = {catalogue.short(name) for p in points for name, _ in p.accuracies if name != p.trained[0]}
    heads = [head for head in heads_of(lines) if head not in targets]
    rows = []
    for s, members in sorted(lines.items()):
        row = [f"{s:g}"]
        for head in heads:
            pairs = [(curve[p.model_dir, s][head], p.columns[head]) for p in members if head in p.columns]
            row.append(format_mean([curve_accuracy - line_accuracy for curve_accuracy, line_accuracy in pairs], 2, "+"))
        rows.append(row)
    return tabulate(rows, ["s", *map(escape_markdown, heads)], "github", disable_numparse=True) if rows else ""


# ------------------------------------------------------------------ pictures


def draw(points: list[Point], strengths: list[float], folder: Path) -> list[Path]:
    """Draw curves over s of the accuracy under distribution shift against the in-distribution accuracy.

    Each base-to-new and each transfer section has a picture of all its targets. overview.png has the averages.

    Returns:
        The PNG files.
    """
    pictures, averages = {}, []
    for (protocol, source), members in group_points(points, "section").items():
        rows = rows_of(members, strengths)
        home, *heads = [head for head in heads_of(rows) if head != "H"]
        if protocol != "few-shot" and heads:
            panels = [(rows, home, head) for head in heads]
            pictures[f"{protocol.replace('-', '_')}_{source}"] = panels
            averages += [panel for panel in panels if panel[-1] in AXES]
    if len(averages) > 1:
        pictures["overview"] = averages
    methods = list(dict.fromkeys([*(p.trainer for p in points), ZEROSHOT]))
    styles = styles_of(methods, untrained=[method for method in methods if colour_of(method) == GREY])
    with plt.rc_context({"text.parse_math": False}):
        return [save(draw_picture(panels, styles), folder / f"{name}.png") for name, panels in pictures.items()]


def draw_picture(panels: list[tuple], styles: dict[str, dict]):
    """Draw panels, each given as (rows, column of the x axis, column of the y axis)."""
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    size = (7.0 if columns == 1 else 3.6 * columns, 4.6 if lines == 1 else 3.2 * lines)
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    labels = {ax: draw_curves(ax, *panel, styles) for ax, panel in zip(axes.flat, panels, strict=False)}
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    draw_legend_of_axes(fig)
    fig.canvas.draw()
    for ax, panel_labels in labels.items():
        label_points(ax, panel_labels)
    return fig


def draw_curves(ax, rows: dict[str, list[Point]], home: str, head: str, styles: dict[str, dict]) -> list[Label]:
    """Draw the curves of one panel, the column `head` over the column `home`; return the labels of their points."""
    places = {name: tuple(mean(values(row, column)) for column in (home, head)) for name, row in rows.items()}
    zero, labels, curve_rows = places.get(ZERO), [], defaultdict(list)
    for name, row in rows.items():
        if name == row[0].row != ZERO:  # skips the row of "auto"
            curve_rows[row[0].trainer, row[0].path].append(row[0])
    for (trainer, path), members in curve_rows.items():
        colour = styles[trainer]["color"]
        style = {"color": colour, "marker": styles[trainer]["marker"], "ms": 5, "label": trainer}
        line = [places[p.row] for p in members]
        if members[0].auto is None:
            style["ls"] = ""
        elif path == GEODESIC:
            line = [zero, *line]
            labels += [Label(f"{p.strength:g}", places[p.row], colour) for p in members]
        else:  # the line has the same ends as the geodesic
            line = [zero, *line, places[f"{trainer}, s = 1"]]
            style |= {"ls": "--", "marker": "", "lw": 1, "label": f"{trainer}, straight line"}
        ax.plot(*zip(*line, strict=True), **style)
    if zero:
        style = styles[ZEROSHOT]
        ax.plot(*zero, style["marker"], color=style["color"], label=ZERO, zorder=3)
    ax.set_xlabel(*escape_dollars([f"{AXES.get(home, home)}, %"]))
    ax.set_ylabel(*escape_dollars([f"{AXES.get(head, head)}, %"]))
    return labels
