"""The checks of a run before it begins: of its settings, its model and its directories."""

import contextlib
import glob
import os.path as osp

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.infrastructure import distributed
from dassl.infrastructure.files import protected
from orthcr.key_roles import BY_CHECKSUM, EVALUATION, MACHINE, MAY_DIFFER_FROM_MODEL, is_one_of

from .config_files import read_run
from .declarations import config_values, default_cfg, is_foreign
from .spec import RunSpec

MAY_DIFFER = (*MACHINE, *EVALUATION)  # between a run and its continuation


def check_model_dir(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Raise an error if there is no model, or if it was trained with another trainer, backbone or method setting.

    With another template or class-token position, the checkpoint could be loaded, but the accuracy would be wrong. The
    model of another code base has no config.yaml, and its checkpoint is checked when it is loaded.
    """
    if spec.model_dir and not osp.isdir(spec.model_dir):
        raise FileNotFoundError(f"there is no {spec.model_dir}: give the --output-dir of a training as --model-dir")
    changes = []
    for key, value in config_values(cfg).items():
        model_value = model_config.get(key, value)
        is_compared = key == "MODEL.BACKBONE.NAME" or key.startswith("TRAINER.")
        if is_compared and not is_one_of(key, MAY_DIFFER_FROM_MODEL) and model_value != value:
            changes.append(f'{key} "{model_value}", not "{value}"')
    if changes:
        problem = f"the model in {spec.model_dir} was trained with {', '.join(changes)}"
        raise ValueError(f"{problem}: give the same here, or another --model-dir")


def check_domains(cfg: CfgNode) -> None:
    """Raise ValueError if domains are given for a data set without domains."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not dataset.__module__.startswith("datasets.") or dataset.domains:
        return
    for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS"):
        if cfg.DATASET[key]:
            advice = f"leave out DATASET.{key} (--{key.lower().replace('_', '-')})"
            raise ValueError(f"{cfg.DATASET.NAME} has no domains (got {', '.join(cfg.DATASET[key])}): {advice}")


def check_inside(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Raise ValueError if files in the model's directory would make this run write outside of its output directory.

    The directory may come from somebody else.
    """
    out, model = cfg.OUTPUT_DIR, spec.model_dir or osp.join(cfg.OUTPUT_DIR, "none")
    relative = osp.relpath(out, model)
    if relative[:2] != ".." and osp.realpath(out) != osp.normpath(osp.join(osp.realpath(model), relative)):
        raise ValueError(f"{out} lies behind a link: give another --output-dir")
    root, dataset = foreign_root(cfg, spec, model_config), DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if root and getattr(dataset, "is_drawn", False):
        if not osp.exists(osp.join(root, dataset.dataset_dir, dataset.split_file)):
            reason = f"{cfg.DATASET.NAME} is not in {root}, the folder of the training"
            raise ValueError(f"{reason}: give a --root, where it will be drawn")


def foreign_root(cfg: CfgNode, spec: RunSpec, model_config: dict) -> str:
    """Return DATASET.ROOT if it is set by the config in the model's directory only, which may be untrusted; else ""."""
    root = cfg.DATASET.ROOT
    is_users_choice = (
        spec.root or "DATASET.ROOT" in spec.opts[::2] or root == default_cfg(cfg.TRAINER.NAME).DATASET.ROOT
    )
    return "" if is_users_choice or model_config.get("DATASET.ROOT") != root else root


def protect_data(cfg: CfgNode, spec: RunSpec, model_config: dict) -> contextlib.AbstractContextManager:
    """Return a context that forbids writing into a `foreign_root`, except into the output and model directories."""
    root = foreign_root(cfg, spec, model_config) if spec.eval_only else ""
    if not root:
        return contextlib.nullcontext()
    return protected(root, but=[folder for folder in (cfg.OUTPUT_DIR, spec.model_dir) if folder])


def check_no_training(cfg: CfgNode) -> None:
    """Raise ValueError if the output directory holds a training."""
    if glob.glob(osp.join(glob.escape(cfg.OUTPUT_DIR), "*", "model*.pth.tar*")):
        raise ValueError(f"{cfg.OUTPUT_DIR} holds a training run and its results: choose another --output-dir")


def check_same_strength(cfg: CfgNode) -> None:
    """Raise ValueError if the output directory holds results at another strength."""
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path) or not osp.exists(osp.join(cfg.OUTPUT_DIR, "results.json")):
        return
    old_config, new_config = read_run(path), config_values(cfg)
    for key in old_config.keys() & new_config.keys():
        if key.endswith(".STRENGTH") and old_config[key] != new_config[key]:
            problem = f"{cfg.OUTPUT_DIR} holds results with {key} {old_config[key]}, not {new_config[key]}"
            raise ValueError(f"{problem}: choose another --output-dir, or remove that one")


def check_same_run(cfg: CfgNode, ignored_keys: tuple[str, ...] = MAY_DIFFER) -> None:
    """Raise ValueError if the output directory holds a run with other settings."""
    changes = differences(cfg, ignored_keys)
    if changes:
        problem = f"{cfg.OUTPUT_DIR} holds a run with {', '.join(changes)}"
        raise ValueError(f"{problem}: choose another --output-dir, or remove that one")


def differences(cfg: CfgNode, ignored_keys: tuple[str, ...] = MAY_DIFFER) -> list[str]:
    """Return "KEY old value, not new value" for each setting that differs from the run in the output directory.

    Args:
        cfg: config of the new run.
        ignored_keys: keys that are not compared.
    """
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path):
        return []
    old_config, new_config = read_run(path), config_values(cfg)
    default = config_values(default_cfg(cfg.TRAINER.NAME))  # older runs lack newer keys
    lines = []
    for key in sorted(old_config.keys() | new_config.keys()):
        old_value, new_value = (config.get(key, default.get(key)) for config in (old_config, new_config))
        if not is_one_of(key, (*ignored_keys, *BY_CHECKSUM)) and old_value != new_value:
            lines.append(f"{key} {format_value(old_value)}, not {format_value(new_value)}")
    return lines


def format_value(value: object) -> str:
    """Return a value for a message."""
    return '""' if value == "" else str(value)


def check_evaluation(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Raise an error if the settings contradict the model, or if the output directory cannot take an evaluation."""
    check_model_dir(cfg, spec, model_config)
    check_inside(cfg, spec, model_config)
    check_no_training(cfg)
    check_same_strength(cfg)


def check_processes(cfg: CfgNode) -> None:
    """Raise ValueError if there are more processes than GPUs, or if the trainer cannot use several processes."""
    distributed.check_devices(cfg.USE_CUDA)
    if distributed.size() > 1 and is_foreign(cfg.TRAINER.NAME):
        raise ValueError(f"{cfg.TRAINER.NAME} is written for one process: start it without torchrun")
