"""What a strength does: accuracy along s from the pretrained CLIP to the trained one, on all that a model is tested on.

    python -m experiments.strength --model-dir OUT [OUT ...] [--output-dir DIR] [--root DATA]

A model trained on the base classes is tested on base and new classes, one of a source on its variants and on the other
data sets, any other on what it was trained on. Of OrthCR there is a second path, the straight line between the same
weights (WiSE-FT, Wortsman et al. 2022). Models of methods that have no strength are points. Writes curve.md, curve.json
and pictures. Test images are read once for all models, and nothing is chosen by them.
"""

import argparse
import contextlib
import io
import os.path as osp
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, pstdev

import torch
from tabulate import tabulate

from dassl import palette
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.files import atomic_write
from dassl.utils import progress, write_json
from datasets import benchmarks
from trainers.orthcr import OrthogonalCLIP
from trainers.shared.strength import AUTO, TRIED, read_choice

from .command import command
from .config import CONFIGS, read_run, setup_cfg, strength_key
from .flags import parse

HELD = 2**31  # bytes of test images that are kept for all models; of larger data sets they are read for each
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
    """A training, and what is measured of it."""

    folder: str
    config: dict = field(repr=False)
    chosen: float | None = None  # "auto"
    right: dict[tuple, float] = field(default_factory=dict)  # {(path, s, data set, classes): percent}

    @property
    def trainer(self) -> str:
        return self.config["TRAINER.NAME"]

    @property
    def trained(self) -> tuple[str, str, int]:
        return tuple(self.config[f"DATASET.{key}"] for key in ("NAME", "SUBSAMPLE_CLASSES", "NUM_SHOTS"))

    @property
    def seed(self) -> int:
        return self.config["SEED"]

    @property
    def tests(self) -> list[tuple[str, str]]:
        """(data set, classes)."""
        name, classes, _ = self.trained
        if classes == "base":
            return [(name, "base"), (name, "new")]
        away = [row.name for row in (*benchmarks.variants(name), *benchmarks.targets(name))]
        return [(target, classes) for target in (name, *away)]


# ------------------------------------------------------------------ measuring


def measure(models: list[Model], strengths: Iterable[float], root: str | None, split: str) -> None:
    """Fills in what was chosen, and the accuracy of each model at each strength on all its tests that have images."""
    tests = list(dict.fromkeys(test for model in models for test in model.tests))
    pairs = [(test, model) for test in tests for model in models if test in model.tests]
    held = {}
    with progress(total=len(pairs), desc="models x data sets") as bar:
        for test, model in pairs:
            with contextlib.redirect_stdout(io.StringIO()):
                if model.chosen is None and strength_key(model.trainer):
                    choice = read_choice(model.folder) or built(model, model.tests[0], root).choose(None)
                    model.chosen = choice["strength"]
                trainer = built(model, test, root, split)
            batches = images_of(trainer, test, held, split)
            if batches:
                along(trainer, model, test, batches, sorted({*strengths, model.chosen or 0.0}))
            bar.update()


def built(model: Model, test: tuple[str, str], root: str | None, split: str = "test"):
    """The trained model on a test's classes and images; with the split val on all that there are."""
    dataset, classes = test
    argv = ["--eval-only", "--model-dir", model.folder, "--trainer", model.trainer]
    argv += ["--strength", "1"] if strength_key(model.trainer) else []
    argv += ["--root", root] if root else []
    if dataset != model.trained[0]:
        argv += ["--dataset-config-file", str(CONFIGS / "datasets" / f"{benchmarks.find(dataset).stem}.yaml")]
    pairs = ["VERBOSE", "False", "DATASET.SUBSAMPLE_CLASSES", classes, "TEST.SPLIT", split]
    pairs += ["DATASET.NUM_SHOTS", "-1"] * (split == "val")
    trainer = build_trainer(setup_cfg(parse([*argv, *pairs])))
    trainer.load_model(model.folder)
    return trainer


def images_of(trainer, test: tuple[str, str], held: dict, split: str):
    """The batches as tensors, of the last test alone; the loader itself if they are too large; None: no images."""
    loader = trainer.val_loader if split == "val" else trainer.test_loader
    size = tuple(trainer.cfg.INPUT.SIZE)
    if loader is None or 12 * size[0] * size[1] * len(loader.dataset) > HELD:
        return loader
    key = (test, size, trainer.cfg.INPUT.INTERPOLATION)
    if key not in held:
        held.clear()
        held[key] = list(loader)
    return held[key]


def along(trainer, model: Model, test: tuple[str, str], batches, strengths: list[float]) -> None:
    if not strength_key(model.trainer):
        trainer.set_model_mode("eval")
        pairs = list(map(trainer.parse_batch_test, batches))
        right = sum(int((trainer.model_inference(image).argmax(1) == label).sum()) for image, label in pairs)
        model.right[("geodesic", 1.0, *test)] = 100 * right / sum(len(label) for _, label in pairs)
        return
    for path in PATHS[: 1 + isinstance(trainer.model, OrthogonalCLIP)]:
        if path == "line":
            straighten(trainer.model)
            strengths = [s for s in strengths if 0 < s < 1]  # at its ends it is the other path
        right, n = trainer.right_at(strengths, batches)
        model.right |= {(path, s, *test): 100 * count / n for s, count in right.items()}


def straighten(model: OrthogonalCLIP) -> None:
    """Makes its strength WiSE-FT's: W + s (W' - W)."""
    model.strength = 1.0
    ends = model.merged()

    def merged(*encoders: str) -> dict[str, dict[str, torch.Tensor]]:
        starts = {e: model.encoders[e] for e in encoders or model.encoders}
        return {
            e: {p: torch.lerp(start.get_parameter(p).to(end), end, model.strength) for p, end in ends[e].items()}
            for e, start in starts.items()
        }

    model.merged = merged


# ------------------------------------------------------------------ figures


def section(model: Model) -> tuple[str, str]:
    """(protocol, data set) of the table that it belongs to."""
    name, classes, _ = model.trained
    if classes == "base":
        return "base-to-new", name
    return "transfer" if len(model.tests) > 1 else "few-shot", name


def figures(model: Model, path: str, s: float) -> dict[str, float]:
    """The columns of its table, in percent; nothing where it was not measured."""
    got = {(name, classes): right for (p, at, name, classes), right in model.right.items() if (p, at) == (path, s)}
    kind, source = section(model)
    if not got:
        return {}
    if kind == "base-to-new":
        base, new = (got[test] for test in model.tests)
        return {"base": base, "new": new, "H": 2 * base * new / (base + new)}
    by_name = {name: right for (name, _), right in got.items()}
    if kind == "few-shot":
        shots = model.trained[2]
        return {f"{shots} shot{'s' * (shots > 1)}": by_name[source]}
    groups = {"variants": benchmarks.variants(source), "others": benchmarks.targets(source)}
    found = {head: [by_name[row.name] for row in rows if row.name in by_name] for head, rows in groups.items()}
    averages = {head: mean(values) for head, values in found.items() if values}
    names = {benchmarks.short(name): right for name, right in by_name.items()}
    return {benchmarks.short(source): by_name[source], **averages} | names


def rows_of(models: list[Model], strengths: list[float]) -> dict[str, dict[str, dict[int, float]]]:
    """{method at a strength: {column: {seed: percent}}} of the models of one section."""
    rows = defaultdict(lambda: defaultdict(dict))

    def add(name: str, model: Model, path: str, s: float) -> None:
        for head, value in figures(model, path, s).items():
            rows[name][head][model.seed] = value

    for model in models:  # the same for all of one template
        add(ZERO, model, "geodesic", 0.0)
    for trainer in dict.fromkeys(model.trainer for model in models):
        mine = [model for model in models if model.trainer == trainer]
        trains = getattr(TRAINER_REGISTRY.get(trainer), "learner", True)
        for model in mine:
            if model.chosen is None:
                add(trainer if trains else ZERO, model, "geodesic", 1.0)
        for path in PATHS:
            for s in strengths:
                for model in mine:
                    if model.chosen is not None and s > 0:
                        add(f"{trainer}, {'line, ' * (path == 'line')}s = {s:g}", model, path, s)
        for model in mine:
            if model.chosen is not None:
                add(f'{trainer}, "{AUTO}"', model, "geodesic", model.chosen)
    return {name: row for name, row in rows.items() if row}


def sections_of(models: list[Model]) -> dict[tuple[str, str], list[Model]]:
    found = defaultdict(list)
    for model in models:
        found[section(model)].append(model)
    return dict(found)


def table(rows: dict[str, dict[str, dict[int, float]]]) -> str:
    """Markdown: mean ± population standard deviation over the seeds."""
    heads = list(dict.fromkeys(head for row in rows.values() for head in row))

    def cell(values: dict[int, float]) -> str:
        spread = f" ± {pstdev(values.values()):.1f}" if len(values) > 1 else ""
        return f"{mean(values.values()):.1f}{spread}" if values else ""

    lines = [[name, *(cell(row.get(head, {})) for head in heads)] for name, row in rows.items()]
    align = ["left", *["right"] * len(heads)]
    return tabulate(lines, ["", *heads], "github", colalign=align, disable_numparse=True)


def gained(models: list[Model], strengths: list[float]) -> str:
    """Markdown: the geodesic less the line, of the same models, mean ± standard deviation over them."""
    lines, heads = [], []
    for s in (s for s in strengths if 0 < s < 1):
        pairs = [(figures(m, "geodesic", s), figures(m, "line", s)) for m in models]
        pairs = [(curve, line) for curve, line in pairs if line]
        if pairs:
            single = {benchmarks.short(name) for m in models for name, _ in m.tests[1:]}  # targets
            heads = [head for head in dict.fromkeys(head for curve, _ in pairs for head in curve) if head not in single]
            less = [[curve[head] - line[head] for curve, line in pairs if head in curve] for head in heads]
            lines.append([f"{s:g}", *(f"{mean(some):+.2f} ± {pstdev(some):.2f}" for some in less)])
    return tabulate(lines, ["s", *heads], "github", disable_numparse=True) if lines else ""


def page(models: list[Model], strengths: list[float]) -> str:
    told = []
    for (kind, source), mine in sections_of(models).items():
        told += [f"## {kind}: {benchmarks.short(source)}", table(rows_of(mine, strengths))]
        chosen = [
            f"{m.trainer}, seed {m.seed}{f', {m.trained[2]} shots' * (kind == 'few-shot')}: {m.chosen:g}"
            for m in mine
            if m.chosen is not None
        ]
        told += [f'Chosen by "{AUTO}": {"; ".join(chosen)}.'] if chosen else []
        brought = gained(mine, strengths)
        told += ["What the geodesic brings over the line between the same weights:", brought] if brought else []
    return "\n\n".join(told) + "\n"


# ------------------------------------------------------------------ pictures


def draw(models: list[Model], strengths: list[float], folder: Path) -> list[Path]:
    """Accuracy away against accuracy at home, s along the curves: for each base-to-new and each transfer a picture of
    all targets, and overview.png of the averages.
    """
    pictures, averages = {}, []
    for (kind, source), mine in sections_of(models).items():
        if kind != "few-shot":
            rows = rows_of(mine, strengths)
            home, *away = [head for head in next(iter(rows.values())) if head != "H"]
            panels = [(mine, rows, home, head) for head in away]
            pictures[f"{kind.replace('-', '_')}_{source}"] = panels
            averages += [panel for panel in panels if panel[-1] in NAMES]
    pictures |= {"overview": averages} if len(averages) > 1 else {}
    return [picture(panels, strengths, folder / f"{name}.png") for name, panels in pictures.items()]


def picture(panels: list[tuple], strengths: list[float], path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    size = {"figsize": (5.2 * columns if columns == 1 else 3.6 * columns, 4.6 if lines == 1 else 3.2 * lines)}
    fig, axes = plt.subplots(lines, columns, squeeze=False, layout="constrained", **size)
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
    for ax, of_panel in labels.items():
        label_points(ax, of_panel)
    with atomic_write(path) as f:
        fig.savefig(f, format="png", dpi=110)
    plt.close(fig)
    return path


def curves(ax, models: list[Model], rows: dict, strengths: list[float], home: str, head: str) -> dict:
    """Draw the curves of one panel; return {point: (its strength, colour)}, for `label_points`."""

    def point(name: str) -> tuple[float, float]:
        return tuple(mean(rows[name][of].values()) for of in (home, head))

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
            names = {s: f"{trainer}, {'line, ' * (path == 'line')}s = {s:g}" for s in strengths if s > 0}
            at = {s: point(name) for s, name in names.items() if name in rows}
            if not at:
                continue
            ends = [point(f"{trainer}, s = {max(names):g}")] if path == "line" else []
            x, y = zip(*([zero] if zero else []), *at.values(), *ends, strict=True)
            style = {"ls": "--", "marker": "", "lw": 1} if path == "line" else {"marker": "o", "ms": 4}
            ax.plot(x, y, color=colour, label=trainer + ", straight line" * (path == "line"), **style)
            if path == "geodesic":
                labels |= {xy: (f"{s:g}", colour) for s, xy in at.items()}
    if zero:
        ax.plot(*zero, "s", color=palette.GREY, label=ZERO, zorder=3)
    return labels


def label_points(ax, labels: dict[tuple[float, float], tuple[str, str]]) -> None:
    """Write a text beside each point, where it covers no other text and no point; where there is no room, none.

    The figure is laid out already.

    Args:
        labels: {point: (text, colour)}.
    """
    from matplotlib.transforms import Bbox

    renderer, placed = ax.figure.canvas.get_renderer(), []
    for xy in labels:
        x, y = ax.transData.transform(xy)
        placed.append(Bbox.from_bounds(x - 4, y - 4, 8, 8))
    for xy, (text, colour) in labels.items():
        for dx, dy, where in PLACES:
            style = {"fontsize": 8, "color": colour, "ha": where, "va": "center", "textcoords": "offset points"}
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
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model-dir", nargs="+", required=True, help="output directories of trainings")
    made.add_argument("--output-dir", type=Path, default=Path("output", "strength"))
    made.add_argument("--root", help="folder of the data sets; default: those of the trainings")
    made.add_argument("--split", choices=["test", "val"], default="test", help="val: of those data sets that have one")
    made.add_argument("--strengths", nargs="+", type=float, default=list(TRIED), help="default: 0 0.25 0.5 0.75 1")
    return made


def curve(
    folders: Iterable[str], out: Path, root: str | None = None, strengths: Iterable[float] = TRIED, split: str = "test"
) -> str:
    """Measures, writes everything into `out`, and returns the tables in Markdown."""
    strengths = sorted({0.0, *strengths, 1.0})
    wrong = [s for s in strengths if not 0 <= s <= 1]
    if wrong:
        raise ValueError(f"--strengths has {wrong[0]:g}: a strength is from 0 to 1")
    models = []
    for folder in dict.fromkeys(map(str, folders)):
        if not osp.exists(osp.join(folder, "config.yaml")):
            raise FileNotFoundError(f"{folder} has no config.yaml: give the --output-dir of a training")
        models.append(Model(folder, read_run(osp.join(folder, "config.yaml"))))
    measure(models, strengths, root, split)
    rows = [
        {"model_dir": m.folder, "trainer": m.trainer, "seed": m.seed, "trained": m.trained, "auto": m.chosen}
        | dict(zip(("path", "strength", "dataset", "classes"), key, strict=True))
        | {"accuracy": accuracy}
        for m in models
        for key, accuracy in m.right.items()
    ]
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


if __name__ == "__main__":
    sys.exit(main())
