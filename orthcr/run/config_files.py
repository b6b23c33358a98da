"""The config files of a run: those of its model, its data set and its method."""

import os.path as osp
from pathlib import Path

from dassl.config import read_config, read_layers
from dassl.engine import TRAINER_REGISTRY
from trainers.base import nodes_of

from .declarations import is_foreign, strength_key
from .spec import RunSpec

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def config_files(spec: RunSpec) -> list[str]:
    """Return the config files, later over earlier."""
    data, method = resolve_path(spec.dataset_config_file), resolve_path(spec.config_file)
    if model_file(spec) and not (method and data):
        paths = [model_file(spec), data, method]
    else:
        paths = [data or str(CONFIGS / "datasets" / "shapes.yaml"), method or tiny_file(spec.trainer)]
    return [path for path in paths if path]


def model_file(spec: RunSpec) -> str:
    """Return the config file of the model to evaluate; "" in a training, or if the model is of another code base."""
    path = osp.join(spec.model_dir, "config.yaml")
    return path if spec.eval_only and spec.model_dir and osp.exists(path) else ""


def resolve_path(path: str) -> str:
    """Return a path, or the same path below this clone if it exists only there, so that `configs/...` always works."""
    clone_path = CONFIGS.parent / path
    return str(clone_path) if path and not osp.exists(path) and clone_path.exists() else path


def tiny_file(trainer: str) -> str:
    """Return tiny.yaml of the method, of its nearest parent, or of the backbone; "" for a trainer written for Dassl."""
    owner = owner_of("tiny", trainer)
    if owner:
        return str(CONFIGS / "trainers" / owner / "tiny.yaml")
    return "" if is_foreign(trainer) else str(CONFIGS / "backbones" / "tiny.yaml")


def owner_of(stem: str, trainer: str) -> str:
    """Return the trainer, or its nearest parent, that has a file STEM.yaml in configs/trainers; "" if none has.

    Args:
        stem: glob pattern for the name of the file without its ending.
        trainer: name of the method.
    """
    names = [cls.__name__ for cls in lineage(TRAINER_REGISTRY.get(trainer))]
    return next((name for name in names if list((CONFIGS / "trainers" / name).glob(f"{stem}.yaml"))), "")


def lineage(method: type) -> list[type]:
    """Return the classes whose settings a method may inherit: itself, its parents, and `settings_of`."""
    settings_of = getattr(method, "settings_of", "")
    return [*method.__mro__, *([TRAINER_REGISTRY.get(settings_of)] if settings_of else [])]


def parent_of(file: str, method: type) -> type | None:
    """Return the parent of a method that has the name of the config file's folder; None if there is none."""
    return next((cls for cls in lineage(method)[1:] if cls.__name__ == Path(file).absolute().parent.name), None)


def check_own_files(spec: RunSpec) -> None:
    """Raise ValueError if a file in the method's own folder sets keys of another method, as a copied file does."""
    nodes = nodes_of(TRAINER_REGISTRY.get(spec.trainer))
    for path, keys in (layer for file in config_files(spec) for layer in read_layers(file)):
        folder = Path(path).absolute().parent
        other_keys = [key for key in keys if key.startswith("TRAINER.") and key.split(".")[1] not in ("NAME", *nodes)]
        if other_keys and (folder.parent.name, folder.name) == ("trainers", spec.trainer):
            problem = f'{other_keys[0]} in "{path}" has no effect: the keys of {spec.trainer} are in TRAINER.{nodes[0]}'
            raise ValueError(f"{problem}: rename it, or remove it")


def read_model_config(spec: RunSpec) -> dict:
    """Return the dotted config of the model to evaluate; {} in a training, or if the model is of another code base."""
    file = model_file(spec)
    return read_run(file) if file else {}


def read_run(path: str) -> dict:
    """Return the dotted config of a run; the strength is 1.0 if the run is older than the key STRENGTH."""
    config = read_config(path)
    key = strength_key(config["TRAINER.NAME"])
    return {key: 1.0} | config if key else config


def strength_of(trainer: str, model_config: dict) -> float | str:
    """Return STRENGTH from the model's config; 1.0 for checkpoints of other code bases."""
    return model_config.get(strength_key(trainer), 1.0)
