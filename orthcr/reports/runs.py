"""Runs read from `results.json`: method, training data, evaluation data and accuracy."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from dassl.infrastructure.files import read_json, read_text, visible
from orthcr.key_roles import describes_method

SHA256 = ".DESCRIPTIONS_SHA256"
STRENGTH = ".STRENGTH"  # end of the key that may differ between a training and its evaluation
FULL = "1.0"  # strength of the whole update
MODEL_SPLIT = "Images split"  # name of a user's own images that are listed in the split file of the model's directory


class UnusableResult(ValueError):
    """A results or log file that has no usable result; the message is the reason."""


class TrainingData(NamedTuple):
    """The training data of a model, and its seed."""

    dataset: str
    classes: str  # all, base or new
    shots: int  # -1: all images
    seed: int

    @classmethod
    def of(cls, dataset, classes, shots, seed) -> "TrainingData":
        """Return the training data from the values in a file; shots below 1 stand for all images."""
        shots = int(shots)
        return cls(dataset, classes, shots if shots > 0 else -1, int(seed))


@dataclass(frozen=True)
class Run:
    """One training or evaluation with its test result."""

    trainer: str
    backbone: str
    settings: tuple[tuple[str, str], ...]  # sorted (dotted config key, value) of the method
    trained: TrainingData | None  # None: zero-shot, or still unknown before `tree.add_model`
    dataset: str  # data set of the evaluation
    classes: str  # classes of the evaluation
    accuracy: float | None  # percent; None: the run is not tested or not finished
    path: Path  # results.json or log.txt
    code: str = ""  # name of another code base; "": this repository
    model_dir: str | None = None  # directory of the evaluated model, "" if the file lacks it; None in a training
    model: Path | None = None  # resolved directory of the training; None: there is none here
    params: int = 0  # number of trained parameters
    seconds: float | None = None  # duration of the training; None: an evaluation, or the file lacks it
    ece: float | None = None  # expected calibration error in percent; None: the file lacks it
    test_seed: int | None = None  # seed of a method that adapts at test time

    @property
    def seed(self) -> int | None:
        """The seed of the training, or of the adaptation at test time; None without both."""
        return self.trained.seed if self.trained else self.test_seed

    @property
    def family(self) -> tuple[str, str, str]:
        """Trainer, backbone and code: equal for methods that differ only in settings."""
        return self.trainer, self.backbone, self.code

    @property
    def description(self) -> str:
        """A description of the run in words, without its seed."""
        training = "zero-shot"
        if self.trained:
            training = f"trained on {self.trained.classes} classes of {self.trained.dataset}"
        return f"{self.trainer}, {training}, evaluated on {self.classes} classes of {self.dataset}"


def read_results(path: Path) -> Run:
    """Return the run of a `results.json`. For older files, read the config from `config.yaml` in the same folder.

    Raises:
        UnusableResult: the file is malformed, or its result is not of the test split.
    """
    try:
        results = read_json(path)
        config = results["config"] if "config" in results else read_config(path.with_name("config.yaml"))
        return run_of(results, config, path)
    except UnusableResult:
        raise
    except KeyError as error:
        raise UnusableResult(f"malformed: it has no {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        raise UnusableResult(f"malformed: {' '.join(str(error).split())}") from None


def run_of(results: dict, config: dict, path: Path) -> Run:
    """Return the run that a `results.json` describes.

    Args:
        results: its content.
        config: dotted keys and values of the run.
        path: path of the file.

    Raises:
        UnusableResult: a value is malformed, or the result is not of the test split. A malformed file may also raise
            other errors.
    """
    training = training_of(results)
    if results.get("split") == "val":
        raise UnusableResult("evaluated on val")
    trainer, dataset = name_in(results, "trainer"), name_in(results, "dataset")
    is_evaluation = bool(results["eval_only"] and training)
    # an older evaluation has no config of its model; `tree.add_model` looks for the training
    trained_config = results.get("model_config") if is_evaluation else config
    settings = method_settings(trained_config or config, trainer, bool(training))
    settings = with_strength(settings, method_settings(config, trainer, bool(training)))
    if dataset == "Images":
        dataset = own_images(config)
    if training and training.dataset == "Images" and trained_config is not None:
        training = training._replace(dataset=own_images(trained_config))
        dataset = training.dataset if dataset == MODEL_SPLIT else dataset
    return Run(
        trainer=trainer,
        backbone=name_in(results, "backbone"),
        settings=settings,
        trained=training,
        dataset=dataset,
        classes=name_in(results, "classes"),
        accuracy=number_in(results, "accuracy", 100),
        path=path,
        model_dir=str(results.get("model_dir") or "") if is_evaluation else None,
        model=path.parent.resolve() if training and not is_evaluation else None,
        params=int(results["trainable_params"]),
        seconds=None if results["eval_only"] else number_in(results, "seconds", 1e12),
        ece=number_in(results, "ece", 100),
        test_seed=int(results["seed"]) if results.get("adapts") is True and not training else None,
    )


def training_of(results: dict) -> TrainingData | None:
    """Return the training data of a run's model; None for zero-shot."""
    trained_on = results["trained_on"]
    if trained_on:
        names = {key: name_in(trained_on, key) for key in ("dataset", "classes")}
        return TrainingData.of(**names, shots=trained_on["shots"], seed=trained_on["seed"])
    if results.get("trained", results["trainable_params"]):
        raise UnusableResult("its model's training data are unknown, because the model's directory has no config.yaml")
    return None


def name_in(record: dict, key: str) -> str:
    """Return a name from a record, safe to print on a terminal."""
    name = record[key]
    if not isinstance(name, str) or len(name) >= 256:
        raise UnusableResult(f"malformed: {key} is {str(name)[:300]}, which is not a name")
    return visible(name)


def number_in(record: dict, key: str, limit: float) -> float | None:
    """Return a number from a record, which must be from 0 to `limit`; None if the record lacks it."""
    number = record.get(key)
    if number is not None and not 0 <= number <= limit:
        raise UnusableResult(f"malformed: {key} is {number}, which is not between 0 and {limit:g}")
    return number


def own_images(config: dict) -> str:
    """Return a data-set name for a user's own images, with the name of their folder."""
    return f"Images {visible(Path(config.get('DATASET.IMAGES') or '').stem)}"


def read_config(path: Path) -> dict:
    """Return {dotted key: value} of a config file; {} if there is no such file.

    Raises:
        UnusableResult: the file is nested so deep that flattening it would fill the memory.
    """
    tree = yaml.load(read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if path.exists() else {}
    config = {}
    for _ in range(10_000):  # dassl.config.flatten would import torch
        if not tree:
            return config
        key, value = tree.popitem()
        if isinstance(value, dict):
            tree |= {f"{key}.{name}": leaf for name, leaf in value.items()}
        elif isinstance(value, list) and any(isinstance(leaf, (dict, list, tuple)) for leaf in value):
            break
        else:
            config[key] = value
    raise UnusableResult(f"{path} is no config of a run")


def with_strength(settings: tuple[tuple[str, str], ...], evaluation_settings: tuple[tuple[str, str], ...]):
    """Return the settings of a model with the strength of its evaluation.

    Args:
        settings: keys and values of the training.
        evaluation_settings: keys and values of the evaluation.
    """
    result = dict(settings)
    for key, value in evaluation_settings:
        if key.endswith(STRENGTH):
            result[key] = value
    return tuple(sorted(result.items()))


def setting(run: Run, key: str) -> str:
    """Return the value of a setting; for a run that lacks it, 1.0 if it is a strength, else "?"."""
    default = FULL if key.endswith(STRENGTH) else "?"
    return dict(run.settings).get(key, default)


def method_settings(config: dict, trainer: str, is_trained: bool) -> tuple[tuple[str, str], ...]:
    """Return the part of a config that describes the method.

    Args:
        config: dotted keys and values.
        trainer: name of the method.
        is_trained: whether the method is trained. A zero-shot result depends on MODEL and the method's node only.
    """
    split_file = config.get("DATASET.FEW_SHOT_SPLIT")
    if split_file is not None:  # the path differs by seed and shots
        config = config | {"DATASET.FEW_SHOT_SPLIT": "of a file" if split_file else "drawn"}
    keys = [key for key in sorted(config) if describes_method(key)]
    for key in [key for key in config if key.endswith(SHA256)]:  # compare files by content, not by path
        config = config | {key.removesuffix("_SHA256"): str(config[key])[:8]}
    if not is_trained:
        keys = [key for key in keys if key.startswith(("MODEL.", f"TRAINER.{trainer.upper()}."))]
    return tuple((visible(key), visible(config[key])) for key in keys)
