"""The accuracy of models at each strength s, from the pretrained CLIP (s = 0) to the trained one (s = 1).

    orthcr strength --model-dir OUT [OUT ...] [--output-dir DIR] [--root DATA]

The tests of a model depend on its training:

- a model of base classes is tested on the base and on the new classes;
- a model of a source of xd and dg is tested on the source, its variants and its targets;
- any other model is tested on its own data set.

OrthCR has a second path: the straight line between the same weights (WiSE-FT, Wortsman et al. 2022). A method without a
strength is one point. The command writes curve.md, curve.json and pictures (orthcr/reports/strength_tables.py). Test
images are read once for all models, and nothing is selected on them.
"""

import argparse
import contextlib
import io
import os.path as osp
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import trainers
from dassl.infrastructure.command import command
from dassl.utils import progress
from datasets import catalogue
from orthcr.reports.strength_tables import GEODESIC, LINE, Point, write_curves
from orthcr.run.config_files import CONFIGS, read_run
from orthcr.run.declarations import discover, strength_key
from orthcr.run.spec import RunSpec
from orthcr.run.trained import check_is_training, load_trained
from trainers.orthcr import OrthogonalCLIP
from trainers.shared.strength import TRIED, read_selection

MAX_CACHE_BYTES = 2**31  # test images in memory, for all models; a larger data set is read again for each model


@dataclass(frozen=True)
class Model:
    """A training."""

    folder: str
    trainer: str
    seed: int
    training_data: tuple[str, str, int]  # data set, classes and shots

    @property
    def tests(self) -> list[tuple[str, str]]:
        """The tests of the model: [(data set, classes), ...]."""
        name, classes, _ = self.training_data
        if classes == "base":
            return [(name, "base"), (name, "new")]
        shifted_names = [row.name for row in (*catalogue.variants(name), *catalogue.targets(name))]
        return [(dataset, classes) for dataset in (name, *shifted_names)]


# ------------------------------------------------------------------ measuring


def measure(models: list[Model], strengths: Iterable[float], root: str | None, split: str) -> list[Point]:
    """Return the accuracies of each model on all its tests, at each strength and at the strength that "auto" selects.

    Tests whose images are missing are left out, except the first test of a model.

    Args:
        models: the trainings.
        strengths: numbers from 0 to 1.
        root: folder of the data sets; None: as in the trainings.
        split: test or val.

    Raises:
        ValueError: the data set of a training has no images in that split.
    """
    discover(trainers)  # `strength_key` looks at the classes of the trainers
    tests = list(dict.fromkeys(test for model in models for test in model.tests))
    pairs = [(test, model) for test in tests for model in models if test in model.tests]
    accuracies = {model.folder: defaultdict(dict) for model in models}  # of each model, {(path, s): {test: percent}}
    selections, cache = {}, {}
    with progress(total=len(pairs), desc="models x data sets") as bar:
        for test, model in pairs:
            with contextlib.redirect_stdout(io.StringIO()):
                if model.folder not in selections:
                    selections[model.folder] = select_strength(model, root)
                trainer = load_trainer(model, test, root, split)
            batches = images_of(trainer, test, cache, split)
            if not batches and test == model.tests[0]:
                raise ValueError(f"{test[0]}, the data of {model.folder}, has no {split} images: give another --split")
            if batches:
                candidates = sorted({*strengths, selections[model.folder] or 0.0})
                for key, accuracy in measure_test(trainer, batches, candidates).items():
                    accuracies[model.folder][key][test] = accuracy
            bar.update()
    points = []
    for m in models:
        for (path, s), test_accuracies in accuracies[m.folder].items():
            selection = selections[m.folder]
            points.append(Point(m.folder, m.trainer, m.seed, m.training_data, selection, path, s, test_accuracies))
    return points


def select_strength(model: Model, root: str | None) -> float | None:
    """Return the strength that "auto" selects for a model; None for a method without a strength."""
    if not strength_key(model.trainer):
        return None
    selection = read_selection(model.folder) or load_trainer(model, model.tests[0], root).select_strength(None)
    return selection["strength"]


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
    if dataset != model.training_data[0]:
        file = CONFIGS / "datasets" / f"{catalogue.find(dataset).stem}.yaml"
        spec = replace(spec, dataset_config_file=str(file))
    if split == "val":
        spec = replace(spec, shots=-1)
    return load_trained(spec)


def images_of(trainer, test: tuple[str, str], cache: dict, split: str):
    """Return the batches of a test, from `cache` if they fit into memory; None if there are no images.

    Args:
        trainer: with the loaders of the test.
        test: (data set, classes).
        cache: batches of the last test; this function replaces them.
        split: test or val.
    """
    loader = trainer.val_loader if split == "val" else trainer.test_loader
    size = tuple(trainer.cfg.INPUT.SIZE)
    if loader is None or 12 * size[0] * size[1] * len(loader.dataset) > MAX_CACHE_BYTES:
        return loader
    key = (test, size, trainer.cfg.INPUT.INTERPOLATION, trainer.cfg.INPUT.RESIZE)
    if key not in cache:
        cache.clear()
        cache[key] = list(loader)
    return cache[key]


def measure_test(trainer, batches, strengths: list[float]) -> dict[tuple[str, float], float]:
    """Return the accuracies of a model on one test, in percent, at each (path, strength)."""
    if not strength_key(trainer.cfg.TRAINER.NAME):
        trainer.set_model_mode("eval")
        pairs = list(map(trainer.parse_batch_test, batches))
        n_correct = sum(int((trainer.model_inference(image).argmax(1) == label).sum()) for image, label in pairs)
        return {(GEODESIC, 1.0): 100 * n_correct / sum(len(label) for _, label in pairs)}
    n_correct, n = trainer.count_correct(strengths, batches)
    accuracies = {(GEODESIC, s): 100 * count / n for s, count in n_correct.items()}
    if isinstance(trainer.model, OrthogonalCLIP):
        straighten(trainer.model)
        inner = [s for s in strengths if 0 < s < 1]  # at 0 and 1 both paths have the same weights
        n_correct, n = trainer.count_correct(inner, batches)
        accuracies |= {(LINE, s): 100 * count / n for s, count in n_correct.items()}
    return accuracies


def straighten(model: OrthogonalCLIP) -> None:
    """Replace the path of a model by WiSE-FT's line: W + s (W' - W)."""
    model.strength = 1.0
    ends = model.merge_weights()

    def merge_weights(*encoders: str) -> dict[str, dict[str, torch.Tensor]]:
        result = {}
        for name in encoders or model.encoders:
            start = model.encoders[name]
            result[name] = {
                key: torch.lerp(start.get_parameter(key).to(end), end, model.strength)
                for key, end in ends[name].items()
            }
        return result

    model.merge_weights = merge_weights


# ------------------------------------------------------------------ the command


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--model-dir", nargs="+", required=True, help="output directories of trainings")
    result.add_argument("--output-dir", type=Path, default=Path("output", "strength"))
    result.add_argument("--root", help="folder of the data sets; default: as in the trainings")
    result.add_argument(
        "--split", choices=["test", "val"], default="test", help="val leaves out data sets without val images"
    )
    result.add_argument("--strengths", nargs="+", type=float, default=list(TRIED), help="default: 0 0.25 0.5 0.75 1")
    return result


def write_curve(
    folders: Iterable[str], out: Path, root: str | None = None, strengths: Iterable[float] = TRIED, split: str = "test"
) -> str:
    """Measure models, write curve.md, curve.json and the pictures, and return the tables in Markdown.

    Args:
        folders: output directories of trainings.
        out: folder of the files.
        root: folder of the data sets; None: as in the trainings.
        strengths: numbers from 0 to 1; 0 and 1 are added.
        split: test or val.

    Raises:
        ValueError: a strength is out of range.
        FileNotFoundError: a folder has no training.
    """
    strengths = sorted({0.0, *strengths, 1.0})
    out_of_range = [s for s in strengths if not 0 <= s <= 1]
    if out_of_range:
        raise ValueError(f"--strengths must be from 0 to 1 (got {out_of_range[0]:g}): give numbers in this range")
    models = []
    for folder in dict.fromkeys(map(str, folders)):
        check_is_training(folder)
        config = read_run(osp.join(folder, "config.yaml"))
        training_data = tuple(config[f"DATASET.{key}"] for key in ("NAME", "SUBSAMPLE_CLASSES", "NUM_SHOTS"))
        models.append(Model(folder, config["TRAINER.NAME"], config["SEED"], training_data))
    return write_curves(measure(models, strengths, root, split), strengths, out)


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = make_parser().parse_args(argv)
        print(write_curve(args.model_dir, args.output_dir, args.root, args.strengths, args.split))
        print(f"{args.output_dir}: curve.md, curve.json and pictures")

    return command(work)
