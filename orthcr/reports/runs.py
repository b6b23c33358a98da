"""A run: its method, its training and evaluation data, and its accuracy; read from `results.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from dassl.infrastructure.files import read_json, read_text, visible
from orthcr.key_roles import describes_method

SHA256 = ".DESCRIPTIONS_SHA256"
STRENGTH = ".STRENGTH"  # end of the key whose value in an evaluation may differ from that in the training
FULL = "1.0"  # the strength of a model as it was trained
MODEL_SPLIT = "Images split"  # a user's own images, as the split file in the model's directory lists them


class LeftOut(ValueError):
    """The reason why a file gives no run."""


class Trained(NamedTuple):
    """The training data of a model, and its seed."""

    dataset: str
    classes: str  # all, base or new
    shots: int  # -1: all images
    seed: int

    @classmethod
    def of(cls, dataset, classes, shots, seed) -> "Trained":
        """Return the training data from the values that a run wrote; shots below 1 are all images."""
        shots = int(shots)
        return cls(dataset, classes, shots if shots > 0 else -1, int(seed))


@dataclass(frozen=True)
class Run:
    """One training or evaluation with its test result."""

    trainer: str
    backbone: str
    settings: tuple[tuple[str, str], ...]  # of the method: dotted config keys and values, sorted
    trained: Trained | None  # None: zero-shot (or, before `tree.with_model`, not known yet)
    dataset: str  # evaluated on
    classes: str
    accuracy: float | None  # percent; None: not tested, or unfinished
    path: Path  # results.json or log.txt
    code: str = ""  # "": this repository, or the name of another one
    model_dir: str | None = None  # of an evaluation: directory of its model, "" if it was not written; else None
    model: Path | None = None  # resolved directory of the training; None: it is not here
    params: int = 0  # trained
    seconds: float | None = None  # of the training; None: an evaluation, or not written
    ece: float | None = None  # expected calibration error, percent; None: not written
    test_seed: int | None = None  # of a method that adapts at test time

    @property
    def seed(self) -> int | None:
        """The seed of the training, or of the adaptation at test time; None for others."""
        return self.trained.seed if self.trained else self.test_seed

    @property
    def family(self) -> tuple[str, str, str]:
        """Trainer, backbone and code: the same for methods that differ in settings only."""
        return self.trainer, self.backbone, self.code

    @property
    def description(self) -> str:
        """A description of the run in words, without its seed."""
        training = "zero-shot"
        if self.trained:
            training = f"trained on {self.trained.classes} classes of {self.trained.dataset}"
        return f"{self.trainer}, {training}, evaluated on {self.classes} classes of {self.dataset}"


def read_results(path: Path) -> Run:
    """Return the run of a `results.json`; older ones lack the config, which is in the `config.yaml` beside it.

    Raises:
        LeftOut: the file is malformed, or its result is not of the test split.
    """
    try:
        results = read_json(path)
        config = results["config"] if "config" in results else read_config(path.with_name("config.yaml"))
        return run_of(results, config, path)
    except LeftOut:
        raise
    except KeyError as error:
        raise LeftOut(f"malformed: it has no {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        raise LeftOut(f"malformed: {' '.join(str(error).split())}") from None


def run_of(results: dict, config: dict, path: Path) -> Run:
    """Return the run that a `results.json` describes.

    Args:
        results: its content.
        config: dotted keys and values of the run.
        path: path of the file.

    Raises:
        LeftOut: a value is malformed, or the result is not of the test split. Other errors stand for malformed values,
            too: the file may be of anybody.
    """
    trained = training_of(results)
    if results.get("split") == "val":
        raise LeftOut("evaluated on val")
    trainer, dataset = name_in(results, "trainer"), name_in(results, "dataset")
    is_evaluation = bool(results["eval_only"] and trained)
    # an older evaluation has no config of its model; `tree.with_model` looks for the training
    trained_config = results.get("model_config") if is_evaluation else config
    settings = method_settings(trained_config or config, trainer, bool(trained))
    settings = at_strength(settings, method_settings(config, trainer, bool(trained)))
    if dataset == "Images":
        dataset = own_images(config)
    if trained and trained.dataset == "Images" and trained_config is not None:
        trained = trained._replace(dataset=own_images(trained_config))
        dataset = trained.dataset if dataset == MODEL_SPLIT else dataset
    return Run(
        trainer=trainer,
        backbone=name_in(results, "backbone"),
        settings=settings,
        trained=trained,
        dataset=dataset,
        classes=name_in(results, "classes"),
        accuracy=number_in(results, "accuracy", 100),
        path=path,
        model_dir=str(results.get("model_dir") or "") if is_evaluation else None,
        model=path.parent.resolve() if trained and not is_evaluation else None,
        params=int(results["trainable_params"]),
        seconds=None if results["eval_only"] else number_in(results, "seconds", 1e12),
        ece=number_in(results, "ece", 100),
        test_seed=int(results["seed"]) if results.get("adapts") is True and not trained else None,
    )


def training_of(results: dict) -> Trained | None:
    """Return the training data of a run's model; None for zero-shot."""
    trained_on = results["trained_on"]
    if trained_on:
        names = {key: name_in(trained_on, key) for key in ("dataset", "classes")}
        return Trained.of(**names, shots=trained_on["shots"], seed=trained_on["seed"])
    if results.get("trained", results["trainable_params"]):
        raise LeftOut("the training data of its model are unknown: the model's directory has no config.yaml")
    return None


def name_in(record: dict, key: str) -> str:
    """Return a name in a record, for a terminal."""
    name = record[key]
    if not isinstance(name, str) or len(name) >= 256:
        raise LeftOut(f"malformed: {key} is {str(name)[:300]}, which is no name")
    return visible(name)


def number_in(record: dict, key: str, highest: float) -> float | None:
    """Return a number in a record, from 0 to the highest, or None if it is not there."""
    number = record.get(key)
    if number is not None and not 0 <= number <= highest:
        raise LeftOut(f"malformed: {key} is {number}, which is not between 0 and {highest:g}")
    return number


def own_images(config: dict) -> str:
    """Return the name of a user's own images, which has the name of their folder."""
    return f"Images {visible(Path(config.get('DATASET.IMAGES') or '').stem)}"


def read_config(path: Path) -> dict:
    """Return the dotted keys and values of a config file; nothing if there is no such file.

    Raises:
        LeftOut: the file is nested too deep. Unfolding it would fill the memory.
    """
    tree = yaml.load(read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if path.exists() else {}
    flat = {}
    for _ in range(10_000):  # dassl.config.flatten would import torch
        if not tree:
            return flat
        key, value = tree.popitem()
        if isinstance(value, dict):
            tree |= {f"{key}.{name}": leaf for name, leaf in value.items()}
        elif isinstance(value, list) and any(isinstance(leaf, (dict, list, tuple)) for leaf in value):
            break
        else:
            flat[key] = value
    raise LeftOut(f"{path} is no config of a run")


def at_strength(settings: tuple[tuple[str, str], ...], evaluated: tuple[tuple[str, str], ...]):
    """Return the settings of a model with the strength of its evaluation.

    Args:
        settings: keys and values of the training.
        evaluated: keys and values of the evaluation.
    """
    merged = dict(settings)
    for key, value in evaluated:
        if key.endswith(STRENGTH):
            merged[key] = value
    return tuple(sorted(merged.items()))


def setting(run: Run, key: str) -> str:
    """Return the value of a setting; "?" if an older run lacks it. A run without a strength has the full one, 1.0."""
    default = FULL if key.endswith(STRENGTH) else "?"
    return dict(run.settings).get(key, default)


def method_settings(config: dict, trainer: str, trained: bool) -> tuple[tuple[str, str], ...]:
    """Return the part of a config that describes the method.

    Args:
        config: dotted keys and values.
        trainer: name of the method.
        trained: False: only MODEL and the node of the method count, as a zero-shot result depends on nothing else.
    """
    by_file = config.get("DATASET.FEW_SHOT_SPLIT")
    if by_file is not None:  # the path differs by seed and shots
        config = config | {"DATASET.FEW_SHOT_SPLIT": "of a file" if by_file else "drawn"}
    keys = [key for key in sorted(config) if describes_method(key)]
    for key in [key for key in config if key.endswith(SHA256)]:  # of two equal files the paths may differ
        config = config | {key.removesuffix("_SHA256"): str(config[key])[:8]}
    if not trained:
        keys = [key for key in keys if key.startswith(("MODEL.", f"TRAINER.{trainer.upper()}."))]
    return tuple((visible(key), visible(config[key])) for key in keys)
