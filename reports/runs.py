"""One run: what was trained on what, evaluated on what, how well; read from `results.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from dassl.files import read_json, read_text, visible

# Config keys that tell nothing about the method: where and on what it ran, and what is in a Run anyway
NO_METHOD = tuple(
    "OUTPUT_DIR RESUME SEED VERBOSE VERSION USE_CUDA DATASET. DATALOADER.NUM_WORKERS DATALOADER.TEST. TRAIN. TEST. "
    "TRAINER.NAME MODEL.BACKBONE.NAME".split()
)
MODEL_SPLIT = "Images split"  # a user's own images as split and kept in the model's directory


class LeftOut(ValueError):
    """Why a file gives no run."""


class Trained(NamedTuple):
    """What a model was trained on."""

    dataset: str
    classes: str  # all, base or new
    shots: int  # -1: all images
    seed: int

    @classmethod
    def of(cls, dataset, classes, shots, seed) -> "Trained":
        """Of what a run wrote; any number of shots below 1 is all images."""
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
    accuracy: float | None  # percent; None: not tested, or not finished
    path: Path  # results.json or log.txt
    code: str = ""  # "": this repository, or the name of another one
    model_dir: str | None = None  # of an evaluation: where its model is, "" if that was not written; else None
    model: Path | None = None  # directory of the training, if that was found; resolved
    params: int = 0  # trained
    seconds: float | None = None  # of the training; None: an evaluation, or not written
    ece: float | None = None  # expected calibration error, percent; None: not written

    @property
    def seed(self) -> int | None:
        return self.trained and self.trained.seed

    @property
    def family(self) -> tuple[str, str, str]:
        """What methods that differ in settings only have in common."""
        return self.trainer, self.backbone, self.code

    @property
    def what(self) -> str:
        """In words, but for the seed."""
        on = self.trained and f"trained on {self.trained.classes} classes of {self.trained.dataset}"
        return f"{self.trainer}, {on or 'zero-shot'}, evaluated on {self.classes} classes of {self.dataset}"


def read_results(path: Path) -> Run:
    """The run of a `results.json`; of older ones, which lack the config, also of the `config.yaml` beside it.

    Raises LeftOut.
    """
    try:
        results = read_json(path)
        config = results["config"] if "config" in results else read_config(path.with_name("config.yaml"))
        trained, accuracy = results["trained_on"], results.get("accuracy")
        trainer, backbone, dataset, classes = (results[k] for k in ("trainer", "backbone", "dataset", "classes"))
        if trained:
            trained = Trained.of(*(trained[key] for key in Trained._fields))
        elif results.get("trained", results["trainable_params"]):
            raise LeftOut("it cannot be told what its model was trained on, whose directory has no config.yaml")
        if results.get("split") == "val":
            raise LeftOut("evaluated on val")
        names = [trainer, backbone, dataset, classes, *(trained or ())[:2]]
        if not all(isinstance(name, str) and len(name) < 256 for name in names):
            raise LeftOut(f"malformed: not all of {str(names)[:300]} are names")
        trainer, backbone, dataset, classes = map(visible, names[:4])
        trained = trained and Trained(*map(visible, names[4:]), *trained[2:])
        if accuracy is not None and not 0 <= accuracy <= 100:
            raise LeftOut(f"malformed: its accuracy is {accuracy}")
        ece = results.get("ece")
        if ece is not None and not 0 <= ece <= 100:
            raise LeftOut(f"malformed: its calibration error is {ece}")
        evaluation = results["eval_only"] and trained
        # None: of an older evaluation; then `tree.with_model` finds it
        trained_config = results.get("model_config") if evaluation else config
        settings = method_settings(trained_config or config, trainer, bool(trained))
        if dataset == "Images":
            dataset = own_images(config)
        if trained and trained.dataset == "Images" and trained_config is not None:
            trained = trained._replace(dataset=own_images(trained_config))
            dataset = trained.dataset if dataset == MODEL_SPLIT else dataset
        model_dir = str(results.get("model_dir") or "") if evaluation else None
        cost = int(results["trainable_params"]), None if results["eval_only"] else results.get("seconds")
        if cost[1] is not None and not 0 <= cost[1] < 1e12:
            raise LeftOut(f"malformed: it took {cost[1]} seconds")
    except LeftOut:
        raise
    except KeyError as error:
        raise LeftOut(f"malformed: it has no {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        raise LeftOut(f"malformed: {' '.join(str(error).split())}") from None
    model = path.parent.resolve() if trained and not evaluation else None
    return Run(trainer, backbone, settings, trained, dataset, classes, accuracy, path, "", model_dir, model, *cost, ece)


def own_images(config: dict) -> str:
    """A user's own images are told apart by their folder."""
    return f"Images {visible(Path(config.get('DATASET.IMAGES') or '').stem)}"


def read_config(path: Path) -> dict:
    """Dotted keys and values; nothing if there is no such file."""
    tree = yaml.load(read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if path.exists() else {}
    flat = {}
    for _ in range(10_000):  # not dassl.config.flatten, with which torch is imported
        if not tree:
            return flat
        key, value = tree.popitem()
        if isinstance(value, dict):
            tree |= {f"{key}.{name}": leaf for name, leaf in value.items()}
        elif isinstance(value, list) and any(isinstance(leaf, (dict, list)) for leaf in value):
            break
        else:
            flat[key] = value
    raise LeftOut(f"{path} is no config of a run")  # but made to fill the memory


def method_settings(config: dict, trainer: str, trained: bool) -> tuple[tuple[str, str], ...]:
    """The config without what does not belong to the method; without training only what concerns the model."""
    mine = "" if trained else ("MODEL.", f"TRAINER.{trainer.upper()}.")
    keys = [key for key in sorted(config) if key == "TEST.FINAL_MODEL" or not key.startswith(NO_METHOD)]
    keys = [key for key in keys if key.startswith(mine) and not key.endswith((".PREC", ".MONITOR"))]
    return tuple((visible(key), visible(config[key])) for key in keys)
