"""The declarations of a config's keys, with defaults and allowed values: Dassl's, this project's and each method's."""

import importlib
import pkgutil
import sys

from yacs.config import CfgNode

from dassl.config import flatten
from dassl.config.defaults import KEYS
from dassl.config.keys import Key, values
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation import EVALUATOR_REGISTRY
from trainers.base import extend_cfg, node_of

PROJECT_KEYS = {  # keys that Dassl does not have, or has with another default
    "DATASET": {
        "SUBSAMPLE_CLASSES": Key("all", choices=("all", "base", "new")),
        "ROOT": "data",
        "IMAGES": "",  # for the data set Images: a folder, a CSV or a JSON
        "SKIP_UNREADABLE": False,  # leave out the images of IMAGES that cannot be read; False: refuse them
        "VAL": Key(-1.0, low=-1),  # val images of IMAGES: a fraction below 1, or a number of each class; negative: 0.2
        "ALL_TEST": False,  # evaluate all images of IMAGES that TEST.SPLIT names; images without a split count as test
        "CLASSES": Key([], of=str),  # with ALL_TEST: the classes to choose from; they include the classes of the images
        "FEW_SHOT_SPLIT": "",  # JSON lines file with the training images, in place of the few-shot draw by SEED
        "SPLIT_SHA256": Key([], of=str),  # checksums of FEW_SHOT_SPLIT and its val file, written by the run
        # order of the few-shot draw. dassl: train, then val, as CoOp; val_first: val, then train, as CLIP-LoRA's code
        "SAMPLING": Key("dassl", choices=("dassl", "val_first")),
        "FEATURE_CACHE": "",  # folder for frozen features, which runs share; "": none
        "FEATURE_CACHE_GIB": Key(4.0, above=0),  # largest size of that folder
    },
    "TRAIN": {
        # trackers that record the scalars of a run; wandb and mlflow also record its config, result and pictures
        "TRACKER": Key(["tensorboard"], choices=("tensorboard", "wandb", "mlflow"))
    },
    "SEED": Key(1, below=2**32),
}
CACHE_KEYS = ("DATASET.FEATURE_CACHE", "DATASET.FEATURE_CACHE_GIB")
NEVER_OF_MODEL = (*CACHE_KEYS, "TRAIN.TRACKER")  # not inherited from a model, which may come from anybody
COOP_KEYS = {  # keys that CoOp's train.py declares, for trainers written for CoOp
    "COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"},
    "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
}


def discover(package) -> None:
    """Import every module of `trainers` or `datasets`, so that it registers itself; print a line if one fails."""
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"{package.__name__}.{module.name}")
        except Exception as error:  # one user's file with a missing dependency must not stop all the others
            print(f"{package.__name__}/{module.name}.py is skipped: {type(error).__name__}: {error}", file=sys.stderr)


def default_cfg(trainer: str) -> CfgNode:
    """Return the defaults of Dassl, of this project and of every registered method.

    Args:
        trainer: name of the trainer of the run.
    """
    cfg = CfgNode(values(merge_nested(KEYS, PROJECT_KEYS)))
    extend_cfg(cfg, trainer)
    return cfg


def declarations_of(trainer: str, with_data: bool = True) -> dict:
    """Return the declaration of each key of `default_cfg(trainer)`: its default and its allowed values.

    Args:
        trainer: name of the method whose keys are included.
        with_data: whether names of data sets are checked.
    """
    registry_choices = {
        "DATASET": {"NAME": Key("", choices=DATASET_REGISTRY.registered_names())} if with_data else {},
        "TEST": {"EVALUATOR": Key("Classification", choices=EVALUATOR_REGISTRY.registered_names())},
    }
    common_keys = merge_nested(merge_nested(KEYS, PROJECT_KEYS), registry_choices)
    method = TRAINER_REGISTRY.get(trainer)
    if is_foreign(trainer):
        return common_keys
    return merge_nested(merge_nested(common_keys, method.root), {"TRAINER": {node_of(method): method.defaults}})


def merge_nested(base: dict, override: dict) -> dict:
    """Merge two nested dicts; `override` has precedence."""
    merged = {**base, **override}
    nested_keys = [key for key in base.keys() & override.keys() if isinstance(base[key], dict)]
    return merged | {key: merge_nested(base[key], override[key]) for key in nested_keys}


def is_foreign(trainer: str) -> bool:
    """Return whether a trainer is written for the original Dassl. Such a trainer declares no defaults."""
    return not hasattr(TRAINER_REGISTRY.get(trainer), "defaults")


def strength_key(trainer: str) -> str:
    """Return TRAINER.<NODE>.STRENGTH for a method that has a strength, else ""."""
    method = TRAINER_REGISTRY.get(trainer) if trainer in TRAINER_REGISTRY.registered_names() else None
    return f"TRAINER.{node_of(method)}.STRENGTH" if "STRENGTH" in getattr(method, "defaults", {}) else ""


def descriptions_key(trainer: str) -> str:
    """Return TRAINER.<NODE>.DESCRIPTIONS for a method that takes descriptions of the classes, else ""."""
    method = TRAINER_REGISTRY.get(trainer)
    return f"TRAINER.{node_of(method)}.DESCRIPTIONS" if "DESCRIPTIONS" in getattr(method, "defaults", {}) else ""


def config_values(cfg: CfgNode) -> dict:
    """Return {dotted key: value} of a config as in its `config.yaml`: sorted by key, with lists instead of tuples."""
    leaves = sorted(flatten(cfg).items(), key=lambda leaf: leaf[0].split("."))
    return {key: convert_tuples(value) for key, value in leaves}


def convert_tuples(value: object) -> object:
    """Replace the tuples in a value by lists."""
    return [convert_tuples(item) for item in value] if isinstance(value, (list, tuple)) else value
