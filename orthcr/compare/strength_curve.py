"""The accuracy of models at each strength s, from the pretrained CLIP (s = 0) to the trained one (s = 1).

    orthcr strength --model-dir OUT [OUT ...] [--output-dir DIR] [--root DATA]

The tests of a model depend on its training:

- base classes: the base and the new classes;
- a source of xd and dg: the source, its variants and its targets;
- any other: the data set of the training.

OrthCR has a second path, the straight line between the same weights (WiSE-FT, Wortsman et al. 2022). A method without a
strength is a point. Writes curve.md, curve.json and pictures. Test images are read once for all models, and nothing is
chosen by them.
"""

import argparse
import contextlib
import io
import os.path as osp
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, pstdev

import torch
from tabulate import tabulate

from dassl import palette
from dassl.command import command
from dassl.engine import TRAINER_REGISTRY
from dassl.files import atomic_write
from dassl.utils import progress, write_json
from datasets import benchmarks
from orthcr.run.config import CONFIGS, read_run, strength_key
from orthcr.run.spec import RunSpec
from orthcr.run.trained import check_is_training, load_trained
from trainers.orthcr import OrthogonalCLIP
from trainers.shared.strength import AUTO, TRIED, read_choice

HELD = 2**31  # bytes of test images in memory, shared by all models; a larger data set is read again for each model
PLACES = (  # of a label beside its point: right, left, above, below, then farther off, in points
    (5, 4, "left"), (5, -5, "left"), (-5, 4, "right"), (-5, -5, "right"), (0, 8, "center"), (0, -9, "center"),
    (9, 9, "left"), (-9, 9, "right"), (9, -10, "left"), (-9, -10, "right"), (0, 15, "center"), (0, -16, "center"),
)  # fmt: skip
PATHS = ("geodesic", "line")  # Cayley(s Q); W + s (W' - W)
ZERO = "zero-shot"
NAMES = {
    "base": "base classes",
    "new": "new classes",
    "variants": "variants, average",
    "others": "other data sets, average",
}


@dataclass
class Model:
    """A training, and its accuracies."""

    folder: str
    config: dict = field(repr=False)
    chosen: float | None = None  # the strength that "auto" chooses
    right: dict[tuple, float] = field(default_factory=dict)  # {(path, s, data set, classes): percent}

    @property
    def trainer(self) -> str:
        """The name of the method."""
        return self.config["TRAINER.NAME"]

    @property
    def trained(self) -> tuple[str, str, int]:
        """The data of the training: (data set, classes, shots)."""
        return tuple(self.config[f"DATASET.{key}"] for key in ("NAME", "SUBSAMPLE_CLASSES", "NUM_SHOTS"))

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.config["SEED"]

    @property
    def tests(self) -> list[tuple[str, str]]:
        """The tests of the model: [(data set, classes), ...]."""
        name, classes, _ = self.trained
        if classes == "base":
            return [(name, "base"), (name, "new")]
        shifted = [row.name for row in (*benchmarks.variants(name), *benchmarks.targets(name))]
        return [(dataset, classes) for dataset in (name, *shifted)]


# ------------------------------------------------------------------ measuring


def measure(models: list[Model], strengths: Iterable[float], root: str | None, split: str) -> None:
    """Fill in the chosen strength of each model, and its accuracy at each strength on all its tests with images.

    Args:
        models: get `chosen` and `right`.
        strengths: from 0 to 1.
        root: folder of the data sets; None: as in the trainings.
        split: test or val.
    """
    tests = list(dict.fromkeys(test for model in models for test in model.tests))
    pairs = [(test, model) for test in tests for model in models if test in model.tests]
    cache = {}
    with progress(total=len(pairs), desc="models x data sets") as bar:
        for test, model in pairs:
            with contextlib.redirect_stdout(io.StringIO()):
                if model.chosen is None and strength_key(model.trainer):
                    choice = read_choice(model.folder) or load_trainer(model, model.tests[0], root).choose(None)
                    model.chosen = choice["strength"]
                trainer = load_trainer(model, test, root, split)
            batches = images_of(trainer, test, cache, split)
            if batches:
                measure_test(trainer, model, test, batches, sorted({*strengths, model.chosen or 0.0}))
            bar.update()


def load_trainer(model: Model, test: tuple[str, str], root: str | None, split: str = "test"):
    """Return a trainer with the trained model and the classes and images of a test.

    Args:
        model: the training.
        test: (data set, classes).
        root: folder of the data sets; None: as in the training.
        split: test or val; all val images are loaded, not a few-shot sample.
    """
    dataset, classes = test
    spec = RunSpec(
        trainer=model.trainer,
        eval_only=True,
        model_dir=model.folder,
        root=root,
        classes=classes,
        split=split,
        opts=("VERBOSE", "False"),
    )
    if strength_key(model.trainer):
        spec = replace(spec, strength="1")
    if dataset != model.trained[0]:
        file = CONFIGS / "datasets" / f"{benchmarks.find(dataset).stem}.yaml"
        spec = replace(spec, dataset_config_file=str(file))
    if split == "val":
        spec = replace(spec, shots=-1)
    return load_trained(spec)


def images_of(trainer, test: tuple[str, str], cache: dict, split: str):
    """Return the batches of a test, from memory if they fit; None without images.

    Args:
        trainer: with the loaders of the test.
        test: (data set, classes).
        cache: of the batches of one test; this replaces its content.
        split: test or val.
    """
    loader = trainer.val_loader if split == "val" else trainer.test_loader
    size = tuple(trainer.cfg.INPUT.SIZE)
    if loader is None or 12 * size[0] * size[1] * len(loader.dataset) > HELD:
        return loader
    key = (test, size, trainer.cfg.INPUT.INTERPOLATION)
    if key not in cache:
        cache.clear()
        cache[key] = list(loader)
    return cache[key]


def measure_test(trainer, model: Model, test: tuple[str, str], batches, strengths: list[float]) -> None:
    """Fill in the accuracies of a model on one test, at each strength of each path."""
    if not strength_key(model.trainer):
        trainer.set_model_mode("eval")
        pairs = list(map(trainer.parse_batch_test, batches))
        right = sum(int((trainer.model_inference(image).argmax(1) == label).sum()) for image, label in pairs)
        model.right[("geodesic", 1.0, *test)] = 100 * right / sum(len(label) for _, label in pairs)
        return
    for path in PATHS if isinstance(trainer.model, OrthogonalCLIP) else PATHS[:1]:
        if path == "line":
            straighten(trainer.model)
            strengths = [s for s in strengths if 0 < s < 1]  # both paths have the same ends
        right, n = trainer.right_at(strengths, batches)
        model.right |= {(path, s, *test): 100 * count / n for s, count in right.items()}


def straighten(model: OrthogonalCLIP) -> None:
    """Replace the path of a model by WiSE-FT's line: W + s (W' - W)."""
    model.strength = 1.0
    ends = model.merged()

    def merged(*encoders: str) -> dict[str, dict[str, torch.Tensor]]:
        result = {}
        for name in encoders or model.encoders:
            start = model.encoders[name]
            result[name] = {
                key: torch.lerp(start.get_parameter(key).to(end), end, model.strength)
                for key, end in ends[name].items()
            }
        return result

    model.merged = merged


# ------------------------------------------------------------------ figures


def section(model: Model) -> tuple[str, str]:
    """Return (protocol, data set) of the table that a model belongs to."""
    name, classes, _ = model.trained
    if classes == "base":
        return "base-to-new", name
    return "transfer" if len(model.tests) > 1 else "few-shot", name


def figures(model: Model, path: str, s: float) -> dict[str, float]:
    """Return a model's columns in its table, {column: percent}; empty if it was not measured.

    Args:
        model: after `measure`.
        path: of `PATHS`.
        s: strength.
    """
    accuracies = {}
    for (key_path, key_s, name, classes), accuracy in model.right.items():
        if (key_path, key_s) == (path, s):
            accuracies[name, classes] = accuracy
    kind, source = section(model)
    if not accuracies:
        return {}
    if kind == "base-to-new":
        base, new = (accuracies[test] for test in model.tests)
        return {"base": base, "new": new, "H": 2 * base * new / (base + new)}
    by_name = {name: accuracy for (name, _), accuracy in accuracies.items()}
    if kind == "few-shot":
        shots = model.trained[2]
        return {f"{shots} shots" if shots > 1 else f"{shots} shot": by_name[source]}
    columns = {benchmarks.short(source): by_name[source]}
    groups = {"variants": benchmarks.variants(source), "others": benchmarks.targets(source)}
    for head, rows in groups.items():
        values = [by_name[row.name] for row in rows if row.name in by_name]
        if values:
            columns[head] = mean(values)
    columns.update({benchmarks.short(name): accuracy for name, accuracy in by_name.items()})
    return columns


def row_name(trainer: str, path: str, s: float) -> str:
    """Return the name of a row: a method at a strength of a path."""
    return f"{trainer}, line, s = {s:g}" if path == "line" else f"{trainer}, s = {s:g}"


def rows_of(models: list[Model], strengths: list[float]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the rows of one section's table: {method at a strength: {column: {seed: percent}}}.

    Args:
        models: of the section.
        strengths: in the order of the rows.
    """
    rows = defaultdict(lambda: defaultdict(dict))

    def add(name: str, model: Model, path: str, s: float) -> None:
        for head, value in figures(model, path, s).items():
            rows[name][head][model.seed] = value

    for model in models:  # all models of one template have the same zero-shot accuracy
        add(ZERO, model, "geodesic", 0.0)
    for trainer in dict.fromkeys(model.trainer for model in models):
        without_strength = [model for model in models if model.trainer == trainer and model.chosen is None]
        with_strength = [model for model in models if model.trainer == trainer and model.chosen is not None]
        trains = getattr(TRAINER_REGISTRY.get(trainer), "learner", True)
        for model in without_strength:
            add(trainer if trains else ZERO, model, "geodesic", 1.0)
        for path in PATHS:
            for s in strengths:
                for model in with_strength:
                    if s > 0:
                        add(row_name(trainer, path, s), model, path, s)
        for model in with_strength:
            add(f'{trainer}, "{AUTO}"', model, "geodesic", model.chosen)
    return {name: row for name, row in rows.items() if row}


def sections_of(models: list[Model]) -> dict[tuple[str, str], list[Model]]:
    """Return the models of each section."""
    sections = defaultdict(list)
    for model in models:
        sections[section(model)].append(model)
    return dict(sections)


def table(rows: dict[str, dict[str, dict[int, float]]]) -> str:
    """Return a table in Markdown: mean ± population standard deviation over the seeds."""
    heads = list(dict.fromkeys(head for row in rows.values() for head in row))

    def cell(values: dict[int, float]) -> str:
        spread = f" ± {pstdev(values.values()):.1f}" if len(values) > 1 else ""
        return f"{mean(values.values()):.1f}{spread}" if values else ""

    lines = [[name, *(cell(row.get(head, {})) for head in heads)] for name, row in rows.items()]
    align = ["left", *["right"] * len(heads)]
    return tabulate(lines, ["", *heads], "github", colalign=align, disable_numparse=True)


def gained(models: list[Model], strengths: list[float]) -> str:
    """Return a table in Markdown: the geodesic minus the line of the same models, mean ± standard deviation."""
    lines, heads = [], []
    single = {benchmarks.short(name) for m in models for name, _ in m.tests[1:]}  # columns of one target each
    for s in strengths:
        if not 0 < s < 1:
            continue
        pairs = [(figures(m, "geodesic", s), figures(m, "line", s)) for m in models]
        pairs = [(curve, line) for curve, line in pairs if line]
        if not pairs:
            continue
        heads = [head for head in dict.fromkeys(head for curve, _ in pairs for head in curve) if head not in single]
        cells = [f"{s:g}"]
        for head in heads:
            gains = [curve[head] - line[head] for curve, line in pairs if head in curve]
            cells.append(f"{mean(gains):+.2f} ± {pstdev(gains):.2f}")
        lines.append(cells)
    return tabulate(lines, ["s", *heads], "github", disable_numparse=True) if lines else ""


def page(models: list[Model], strengths: list[float]) -> str:
    """Return curve.md: for each section its table, the chosen strengths, and the gain of the geodesic."""
    paragraphs = []
    for (kind, source), members in sections_of(models).items():
        paragraphs += [f"## {kind}: {benchmarks.short(source)}", table(rows_of(members, strengths))]
        choices = []
        for m in members:
            if m.chosen is not None:
                shots = f", {m.trained[2]} shots" if kind == "few-shot" else ""
                choices.append(f"{m.trainer}, seed {m.seed}{shots}: {m.chosen:g}")
        if choices:
            paragraphs.append(f'Chosen by "{AUTO}": {"; ".join(choices)}.')
        gains = gained(members, strengths)
        if gains:
            paragraphs += ["What the geodesic brings over the line between the same weights:", gains]
    return "\n\n".join(paragraphs) + "\n"


# ------------------------------------------------------------------ pictures


def draw(models: list[Model], strengths: list[float], folder: Path) -> list[Path]:
    """Draw the accuracy under distribution shift over the accuracy in distribution, s along the curves.

    Each base-to-new and each transfer section gets a picture of all targets; overview.png has the averages.

    Returns:
        The PNG files.
    """
    pictures, averages = {}, []
    for (kind, source), members in sections_of(models).items():
        if kind != "few-shot":
            rows = rows_of(members, strengths)
            first_row = list(rows.values())[0]
            home, *targets = [head for head in first_row if head != "H"]
            panels = [(members, rows, home, head) for head in targets]
            pictures[f"{kind.replace('-', '_')}_{source}"] = panels
            averages += [panel for panel in panels if panel[-1] in NAMES]
    if len(averages) > 1:
        pictures["overview"] = averages
    return [picture(panels, strengths, folder / f"{name}.png") for name, panels in pictures.items()]


def picture(panels: list[tuple], strengths: list[float], path: Path) -> Path:
    """Draw panels into one PNG file and return its path.

    Args:
        panels: (models, rows, column of the x axis, column of the y axis).
        strengths: in order along the curves.
        path: of the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    width = 5.2 if columns == 1 else 3.6 * columns
    height = 4.6 if lines == 1 else 3.2 * lines
    fig, axes = plt.subplots(lines, columns, squeeze=False, layout="constrained", figsize=(width, height))
    labels = {}
    for ax, (models, rows, home, head) in zip(axes.flat, panels, strict=False):
        labels[ax] = curves(ax, models, rows, strengths, home, head)
        ax.set(xlabel=f"{NAMES.get(home, home)}, %", ylabel=f"{NAMES.get(head, head)}, %")
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    handles, names = axes.flat[0].get_legend_handles_labels()
    room = int(8 * fig.get_size_inches()[0] / (5 + max(map(len, names))))  # 8 letters an inch
    fig.legend(handles, names, loc="outside upper center", ncols=max(1, min(room, len(names))), frameon=False)
    fig.canvas.draw()
    for ax, panel_labels in labels.items():
        label_points(ax, panel_labels)
    with atomic_write(path) as f:
        fig.savefig(f, format="png", dpi=110)
    plt.close(fig)
    return path


def curves(ax, models: list[Model], rows: dict, strengths: list[float], home: str, head: str) -> dict:
    """Draw the curves of one panel; return {point: (its strength, colour)} for `label_points`.

    Args:
        ax: axes of the panel.
        models: of the section.
        rows: of `rows_of`.
        strengths: in order along the curves.
        home: column of the x axis.
        head: column of the y axis.
    """

    def point(name: str) -> tuple[float, float]:
        return tuple(mean(rows[name][column].values()) for column in (home, head))

    trainers = list(dict.fromkeys(model.trainer for model in models))
    styles = palette.styles_of(trainers)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    zero = point(ZERO) if ZERO in rows else None
    labels = {}  # {point: (its strength, colour)}
    for trainer in trainers:
        colour, marker = styles[trainer]["color"], styles[trainer]["marker"]
        if trainer in rows:
            ax.plot(*point(trainer), marker, color=colour, label=trainer)
        for path in PATHS:
            names = {s: row_name(trainer, path, s) for s in strengths if s > 0}
            points = {s: point(name) for s, name in names.items() if name in rows}
            if not points:
                continue
            curve_points = [zero] if zero else []
            curve_points += points.values()
            if path == "line":  # its end is that of the geodesic
                curve_points.append(point(row_name(trainer, "geodesic", max(names))))
                style = {"ls": "--", "marker": "", "lw": 1, "label": f"{trainer}, straight line"}
            else:
                style = {"marker": "o", "ms": 4, "label": trainer}
            x, y = zip(*curve_points, strict=True)
            ax.plot(x, y, color=colour, **style)
            if path == "geodesic":
                labels |= {xy: (f"{s:g}", colour) for s, xy in points.items()}
    if zero:
        ax.plot(*zero, "s", color=palette.GREY, label=ZERO, zorder=3)
    return labels


def label_points(ax, labels: dict[tuple[float, float], tuple[str, str]]) -> None:
    """Write a text beside each point that has room for it without covering another text or point.

    Args:
        ax: axes in a figure after its layout.
        labels: {point: (text, colour)}.
    """
    from matplotlib.transforms import Bbox

    renderer, placed = ax.figure.canvas.get_renderer(), []
    for xy in labels:
        x, y = ax.transData.transform(xy)
        placed.append(Bbox.from_bounds(x - 4, y - 4, 8, 8))
    for xy, (text, colour) in labels.items():
        for dx, dy, alignment in PLACES:
            style = {"fontsize": 8, "color": colour, "ha": alignment, "va": "center", "textcoords": "offset points"}
            label = ax.annotate(text, xy, (dx, dy), **style)
            label.set_in_layout(False)
            box = label.get_window_extent(renderer)
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 + 12 and ax.bbox.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in placed):
                placed.append(box)
                break
            label.remove()


# ------------------------------------------------------------------ the command


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--model-dir", nargs="+", required=True, help="output directories of trainings")
    result.add_argument("--output-dir", type=Path, default=Path("output", "strength"))
    result.add_argument("--root", help="folder of the data sets; default: as in the trainings")
    result.add_argument(
        "--split", choices=["test", "val"], default="test", help="val: data sets without one are left out"
    )
    result.add_argument("--strengths", nargs="+", type=float, default=list(TRIED), help="default: 0 0.25 0.5 0.75 1")
    return result


def curve(
    folders: Iterable[str], out: Path, root: str | None = None, strengths: Iterable[float] = TRIED, split: str = "test"
) -> str:
    """Measure models, write curve.md, curve.json and the pictures, and return the tables in Markdown.

    Args:
        folders: output directories of trainings.
        out: folder of the files.
        root: folder of the data sets; None: as in the trainings.
        strengths: from 0 to 1; 0 and 1 are added.
        split: test or val.

    Raises:
        ValueError: a strength is out of range.
        FileNotFoundError: a folder has no training.
    """
    strengths = sorted({0.0, *strengths, 1.0})
    wrong = [s for s in strengths if not 0 <= s <= 1]
    if wrong:
        raise ValueError(f"--strengths must be from 0 to 1 (got {wrong[0]:g})")
    models = []
    for folder in dict.fromkeys(map(str, folders)):
        check_is_training(folder)
        models.append(Model(folder, read_run(osp.join(folder, "config.yaml"))))
    measure(models, strengths, root, split)
    rows = []
    for m in models:
        for (path, strength, dataset, classes), accuracy in m.right.items():
            row = {"model_dir": m.folder, "trainer": m.trainer, "seed": m.seed, "trained": m.trained, "auto": m.chosen}
            row.update(path=path, strength=strength, dataset=dataset, classes=classes, accuracy=accuracy)
            rows.append(row)
    text = page(models, strengths)
    write_json(rows, out / "curve.json")
    with atomic_write(out / "curve.md") as f:
        f.write(text.encode())
    draw(models, strengths, out)
    return text


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = parser().parse_args(argv)
        print(curve(args.model_dir, args.output_dir, args.root, args.strengths, args.split))
        print(f"{args.output_dir}: curve.md, curve.json and pictures")

    return command(work)
