"""What pictures show: one look for each method, and no label over another."""

import itertools
import random

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from benchmarks.pictures import STYLES
from dassl.engine import TRAINER_REGISTRY
from datasets import catalogue
from orthcr.reports import comparison, palette, pictures, strength_tables, training
from orthcr.reports.comparison import Cost, draw_costs
from orthcr.reports.palette import METHODS, colour_of, styles_of
from orthcr.reports.tables import Cell, Table
from orthcr.run.declarations import discover

CELL = {"protocol": "fewshot", "source": "A", "target": "A", "classes": "", "shots": 16, "metric": "accuracy"}
CELL["values"] = {1: 70.0, 2: 71.0}
TUNED = ("OrthCR", "FullFT", "CLIPLoRA", "OrthSR")
STRENGTHS = [0.0, 0.25, 0.5, 0.75, 1.0]


def alike(styles, *keys):
    looks = [tuple(style[key] for key in keys) for style in styles.values()]
    return len(looks) - len(set(looks))


# ------------------------------------------------------------------ one table of colours


def test_every_method_here_has_a_look_of_its_own():
    import trainers

    discover(trainers)
    named = {name for name in TRAINER_REGISTRY.registered_names() if trainers.__name__ in module_of(name)}
    assert named <= set(METHODS), named - set(METHODS)
    for keys in ((0, 1), (0, 2)):
        looks = [tuple(style[key] for key in keys) for name, style in METHODS.items()]
        assert len(set(looks)) == len(looks)


def module_of(name):
    return TRAINER_REGISTRY.get(name).__module__.split(".")


@pytest.mark.parametrize("_", range(20))
def test_a_method_looks_the_same_in_every_picture(_):
    """Whatever else is in it; a second setting of it, and a method of somebody else, look otherwise."""
    names = random.sample(sorted(METHODS), random.randint(1, len(METHODS)))
    grey = [name for name in names if METHODS[name][0] == palette.GREY]
    others = [f"{name} (s=0.5)" for name in names if name not in grey]
    labels = [*names, *random.sample([*others, "Mine", "Yours"], random.randint(0, min(5, len(others))))]
    random.shuffle(labels)
    styles = styles_of(labels, untrained=grey)
    assert list(styles) == labels
    for name in names:
        assert tuple(styles[name].values()) == METHODS[name]
    for label in set(labels) & set(others):
        assert styles[label]["color"] == colour_of(palette.method_of(label))
    assert not alike(styles, "color", "marker") and not alike(styles, "color", "hatch")


def test_the_pictures_of_all_modules_take_their_colours_there(tmp_path):
    cells = [Cell(method=name, **CELL) for name in ("CoOp", "OrthCR", "FullFT", "CLIPLoRA")]
    drawn = {name: style["color"] for name, style in pictures.styles_of(cells).items()}
    assert drawn == {name: colour_of(name) for name in drawn}
    assert STYLES["reference"][0] == palette.GREY
    fig, ax = plt.subplots()
    points = [point for point in made_points(random.Random()) if point.section[0] == "transfer"]
    rows = strength_tables.rows_of(points, [0.0, 0.5, 1.0])
    strength_tables.draw_curves(ax, rows, "Shapes", "variants", styles_of([*TUNED, "ZeroshotCLIP"], ["ZeroshotCLIP"]))
    lines = {line.get_label(): to_hex(line.get_color()) for line in ax.lines}
    plt.close(fig)
    for name in TUNED:
        assert lines[name] == lines[f"{name}, straight line"] == colour_of(name)
    for module in (pictures, comparison, training, strength_tables):
        assert "#" + "e69f00" not in open(module.__file__, encoding="utf-8").read()


# ------------------------------------------------------------------ labels of curves


def made_points(rng):
    """Points of four methods whose curves lie nearly on each other, in two sections."""
    targets = [row.name for row in (*catalogue.variants("Shapes"), *catalogue.targets("Shapes"))]
    tests = {"base": [("Shapes", "base"), ("Shapes", "new")], "all": [(name, "all") for name in ("Shapes", *targets)]}
    paths = (strength_tables.GEODESIC, strength_tables.LINE)
    points = []
    for classes, trainer, path, s in itertools.product(tests, TUNED, paths, STRENGTHS):
        accuracies = {test: 60 + 25 * s - 8 * s * s + rng.uniform(0, 0.8 * s) for test in tests[classes]}
        trained = ("Shapes", classes, 16)
        points.append(strength_tables.Point("OUT", trainer, 1, trained, 0.5, path, s, accuracies))
    return points


def test_no_label_of_a_curve_covers_another(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    paths = strength_tables.draw(made_points(random.Random()), STRENGTHS, tmp_path)
    monkeypatch.undo()
    assert tmp_path / "overview.png" in paths
    total = 0
    for fig in kept:
        legend, (width, _) = fig.legends[0].get_window_extent(), fig.canvas.get_width_height()
        assert 0 <= legend.x0 and legend.x1 <= width
        for ax in (ax for ax in fig.axes if ax.lines):
            boxes = [text.get_window_extent() for text in ax.texts]
            curves = [line.get_xydata() for line in ax.lines if line.get_marker()]
            points = ax.transData.transform(np.concatenate(curves))
            total += len(boxes)
            for a, b in itertools.combinations(boxes, 2):
                assert not a.overlaps(b)
            assert not any(box.contains(*xy) for box in boxes for xy in points)
    assert total > 2 * len(kept), "most strengths are still told"
    for fig in kept:
        plt.close(fig)


# ------------------------------------------------------------------ the picture of costs


@pytest.mark.parametrize(
    ("params", "seconds"),
    [
        ((0, 256, 4096, 2_000_000), (0, 6, 30, 90)),
        ((2_100, 2_300, 9_000, 9_100), (26.0, 31.0, 34.0, 44.0)),  # within a decade
        ((0, 2_100, 2_100, 2_100), (0.0, 30.0, 30.0, 30.0)),
        ((0, 1, 10_000, 300_000_000), (0, 0.2, 1e4, 1e6)),
    ],
)
def test_ticks_of_costs_do_not_overlap(params, seconds):
    names = ["ZeroshotCLIP", "CoOp", "OrthCR", "FullFT"]
    cells = [Cell(method=name, **CELL | {"shots": 16 if n else None}) for name, n in zip(names, params, strict=True)]
    costs = {name: Cost(n, s) for name, n, s in zip(names, params, seconds, strict=True)}
    lines = {(cell.method,): [cell] for cell in cells}
    table = Table("fewshot", "few", "T", [], lines, [], [])
    fig = draw_costs(table, costs, pictures.styles_of(cells))
    fig.tight_layout()
    fig.canvas.draw()
    for ax in fig.axes:
        low, high = ax.get_xlim()
        shown = [t for t in ax.get_xticklabels(which="both") if t.get_text() and low <= t.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in shown]
        assert len(boxes) >= 2
        for a, b in itertools.pairwise(sorted(boxes, key=lambda box: box.x0)):
            assert a.x1 < b.x0, [t.get_text() for t in shown]
    plt.close(fig)
