"""The config of a run, merged from the defaults, the files and the command line.

Precedence, later over earlier:

1. the defaults;
2. in an evaluation, the config of the model in --model-dir: a key without a new value is as in training;
3. --dataset-config-file;
4. --config-file; a method without a YAML file inherits its parent's;
5. the flags;
6. the image settings of the backbone;
7. KEY VALUE pairs.

If an evaluation has both files, as CoOp's commands have, step 2 is left out. The trainer and the strength still come
from the model, and settings of the method that contradict the model are an error.
"""

import glob
import importlib
import os.path as osp
from dataclasses import replace

import torch
from yacs.config import CfgNode

import trainers
from dassl.config import check_config, clean_cfg, flatten, merge_config, resolve_aliases
from dassl.config.keys import format_value
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import epochs
from dassl.infrastructure.console import say
from dassl.utils import check_availability
from trainers.base import node_of, nodes_of
from trainers.shared.backbones import check_no_download, from_anywhere

from .companion_files import record_descriptions, record_few_shot_split
from .config_files import check_own_files, config_files, model_file, read_model_config, strength_of
from .declarations import (
    CACHE_KEYS,
    COOP_KEYS,
    NEVER_OF_MODEL,
    PROJECT_KEYS,
    declarations_of,
    default_cfg,
    discover,
    is_foreign,
    strength_key,
)
from .pairs import check_pairs, pairs_of_backbone, pairs_of_flags
from .precedence import check_trainer_of_files, inherit_settings, resolve_deciding_keys
from .spec import RunSpec
from .trackers import check_trackers

LONGEST_PATH = 3000  # characters of the output directory; systems allow about 4,000 for a file in it
UNSET = {
    "USE_CUDA": None,
    "OUTPUT_DIR": "",
    "RESUME": "",
}  # keys of one run on one machine; a model's are not inherited


def setup_cfg(spec: RunSpec, with_data: bool = True) -> CfgNode:
    """Return the merged, frozen config of a run.

    Args:
        spec: the run.
        with_data: whether a data set will be built. False: the package `datasets` is not imported. In a user's program,
            this may be the name of Hugging Face's package.

    Raises:
        FileNotFoundError: a config file does not exist.
        ValueError: a key, a name or a value is wrong; the message has the nearest name.
    """
    discover(trainers)
    if with_data:
        discover(importlib.import_module("datasets"))
    model_config, is_named = read_model_config(spec), bool(spec.trainer)
    spec = replace(spec, trainer=spec.trainer or model_config.get("TRAINER.NAME") or "OrthCR")
    check_availability(spec.trainer, TRAINER_REGISTRY.registered_names())
    cfg = initial_config(spec, model_config)
    merge_files(cfg, spec)
    if not is_named:
        check_trainer_of_files(cfg, spec, model_config)
    merge_command_line(cfg, spec, model_config)
    if not is_foreign(spec.trainer):
        check_own_files(spec)
        resolve_deciding_keys(cfg, spec)
    check_values(cfg, spec, with_data)
    set_backbone(cfg, spec, model_config)
    set_output_dir(cfg, spec, model_config)
    if not is_foreign(spec.trainer):
        drop_unused_nodes(cfg)
    check_resume(cfg)
    check_feature_cache(cfg, spec)
    if with_data:
        record_few_shot_split(cfg, model_config)
    record_descriptions(cfg, spec, model_config)
    cfg.freeze()
    return cfg


def initial_config(spec: RunSpec, model_config: dict) -> CfgNode:
    """Return the config before any file is merged: the defaults and, in an evaluation, the strength of the model."""
    cfg = default_cfg(spec.trainer)
    cfg.update(UNSET)
    if spec.eval_only and strength_key(spec.trainer):
        cfg.TRAINER[node_of(TRAINER_REGISTRY.get(spec.trainer))].STRENGTH = strength_of(spec.trainer, model_config)
    if is_foreign(spec.trainer):
        for node, keys in COOP_KEYS.items():
            cfg.TRAINER.setdefault(node, CfgNode(keys))
    return cfg


def merge_files(cfg: CfgNode, spec: RunSpec) -> None:
    """Merge the config files of a run, later over earlier."""
    for file in config_files(spec):
        merge_config(cfg, file, allow_new=new_keys(spec.trainer))
        inherit_settings(cfg, file, spec.trainer)
        if file == model_file(spec):  # the evaluation does not inherit the device and the folders of the training
            cfg.update(UNSET)
            default = flatten(default_cfg(spec.trainer))
            merge_config(cfg, [word for key in NEVER_OF_MODEL for word in (key, default[key])])


def merge_command_line(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Merge the flags, the image settings of the backbone, and the KEY VALUE pairs."""
    merge_config(cfg, pairs_of_flags(spec, cfg))
    if not is_foreign(spec.trainer):
        merge_config(cfg, pairs_of_backbone(cfg, spec, model_config))
    merge_config(cfg, spec.opts, allow_new=new_keys(spec.trainer))
    check_pairs(cfg, spec)


def new_keys(trainer: str) -> tuple[str, ...]:
    """Return the nodes that may have undeclared keys: TRAINER for a trainer written for Dassl, which declares none."""
    return ("TRAINER",) if is_foreign(trainer) else ()


def check_values(cfg: CfgNode, spec: RunSpec, with_data: bool) -> None:
    """Choose the device, replace aliases by their values, and raise ValueError for a value that is not allowed."""
    cfg.USE_CUDA = torch.cuda.is_available() if cfg.USE_CUDA is None else cfg.USE_CUDA
    keys = declarations_of(spec.trainer, with_data)
    resolve_aliases(cfg, keys)
    check_config(cfg, keys)
    if cfg.USE_CUDA and not torch.cuda.is_available():
        raise ValueError("USE_CUDA is True, but PyTorch finds no CUDA device: leave it out to run on the CPU")
    check_trackers(cfg)
    if not spec.eval_only:
        check_training(cfg)
    if not is_foreign(spec.trainer):
        adapt_to_clip(cfg)


def check_training(cfg: CfgNode) -> None:
    """Raise ValueError for settings that are allowed in an evaluation, but not in a training."""
    if cfg.OPTIM.LR == 0:
        raise ValueError("OPTIM.LR must be above 0 in a training (got 0): to test without training give --eval-only")
    if cfg.DATASET.SAMPLING != "dassl" and cfg.DATASET.NUM_SHOTS < 1:
        problem = f"DATASET.SAMPLING {cfg.DATASET.SAMPLING} has no effect without few shots"
        raise ValueError(f"{problem}: give a DATASET.NUM_SHOTS, or leave it out")


def adapt_to_clip(cfg: CfgNode) -> None:
    """Add CLIP's normalization to the transforms; raise ValueError for settings of Dassl that do not apply to CLIP."""
    views = min(cfg.DATALOADER.K_TRANSFORMS, TRAINER_REGISTRY.get(cfg.TRAINER.NAME).views)
    for key, value in (("INPUT.NO_TRANSFORM", False), ("DATALOADER.K_TRANSFORMS", views), ("MODEL.HEAD.NAME", "")):
        if flatten(cfg)[key] != value:
            reason = f"{format_value(flatten(cfg)[key])} is for other trainers"
            raise ValueError(f"{key} must be {format_value(value)} for {cfg.TRAINER.NAME}, which adapts CLIP: {reason}")
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        cfg.INPUT.TRANSFORMS = (*cfg.INPUT.TRANSFORMS, "normalize")
        say('"normalize" is added to INPUT.TRANSFORMS: CLIP was trained on normalized images')


def set_backbone(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Replace a relative path in the backbone's name.

    Raises:
        ValueError: the backbone needs a download, but only the config of the model names it, which may be untrusted.
    """
    cfg.MODEL.BACKBONE.NAME = from_anywhere(cfg.MODEL.BACKBONE.NAME)
    is_users_choice = spec.backbone or "MODEL.BACKBONE.NAME" in spec.opts[::2]
    if model_config.get("MODEL.BACKBONE.NAME") == cfg.MODEL.BACKBONE.NAME and not is_users_choice:
        check_no_download(cfg.MODEL.BACKBONE.NAME, spec.model_dir)


def set_output_dir(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Set the output directory if none is given, or if it is the directory of the model to evaluate."""
    cfg.OUTPUT_DIR = cfg.OUTPUT_DIR or default_output(cfg, spec, model_config)
    length = len(osp.abspath(cfg.OUTPUT_DIR))
    if length > LONGEST_PATH:
        problem = f"OUTPUT_DIR must have at most {LONGEST_PATH:,} characters, with the folders above (got {length:,})"
        raise ValueError(f"{problem}: give a shorter path")
    if spec.eval_only and spec.model_dir and osp.realpath(cfg.OUTPUT_DIR) == osp.realpath(spec.model_dir):
        cfg.OUTPUT_DIR = default_output(cfg, spec, model_config)
        say(f"The results go to {cfg.OUTPUT_DIR}, so that the results of the training stay")


def default_output(cfg: CfgNode, spec: RunSpec, model_config: dict) -> str:
    """Return the output directory of a run without --output-dir."""
    name = osp.splitext(osp.basename(cfg.DATASET.IMAGES))[0] if spec.images else cfg.DATASET.NAME
    run = [name, cfg.DATASET.SUBSAMPLE_CLASSES, f"shots{cfg.DATASET.NUM_SHOTS}", f"seed{cfg.SEED}"]
    if spec.eval_only and spec.model_dir:  # beside the model, never over its own results
        words = [*run[:2], cfg.TEST.SPLIT]
        s = flatten(cfg).get(strength_key(spec.trainer), 1.0)
        if s != strength_of(spec.trainer, model_config):
            words.append(f"s{s}")
        return osp.join(spec.model_dir, "eval", "-".join(words))
    return osp.join("output", cfg.TRAINER.NAME, *run)


def drop_unused_nodes(cfg: CfgNode) -> None:
    """Remove the nodes of other methods from `TRAINER`."""
    node, *other_nodes = nodes_of(TRAINER_REGISTRY.get(cfg.TRAINER.NAME))
    other_nodes = {name: cfg.TRAINER[name] for name in other_nodes}
    clean_cfg(cfg, node)
    cfg.TRAINER.update(other_nodes)


def check_resume(cfg: CfgNode) -> None:
    """Raise ValueError if the training in RESUME has no epochs left, because nothing would be trained."""
    if not cfg.RESUME:
        return
    if cfg.MODEL.INIT_WEIGHTS:
        raise ValueError("MODEL.INIT_WEIGHTS has no effect with --resume, which loads other weights: give one of them")
    finished_epochs = last_epochs(cfg.RESUME)
    if finished_epochs and not last_epochs(cfg.OUTPUT_DIR) and min(finished_epochs) >= cfg.OPTIM.MAX_EPOCH:
        counts = f"OPTIM.MAX_EPOCH is {cfg.OPTIM.MAX_EPOCH}, and {cfg.RESUME} has {min(finished_epochs)} epochs"
        raise ValueError(f"nothing is left to train ({counts}): give more epochs, or --eval-only --model-dir")


def check_feature_cache(cfg: CfgNode, spec: RunSpec) -> None:
    """Raise ValueError if the settings of the cache of features have no effect, or if its folder is a file."""
    folder, gib = (flatten(cfg)[key] for key in CACHE_KEYS)
    is_default = gib == PROJECT_KEYS["DATASET"]["FEATURE_CACHE_GIB"].default
    if not folder and (CACHE_KEYS[1] in spec.opts[::2] or not is_default):
        raise ValueError("DATASET.FEATURE_CACHE_GIB has no effect without a folder: give DATASET.FEATURE_CACHE")
    if folder and is_foreign(spec.trainer):
        problem = f"DATASET.FEATURE_CACHE has no effect with {spec.trainer}, which is written for Dassl"
        raise ValueError(f"{problem}: leave it out")
    if osp.exists(folder) and not osp.isdir(folder):
        raise ValueError(f"DATASET.FEATURE_CACHE must be a folder (got the file {folder}): give another")


def last_epochs(run: str) -> list[int]:
    """Return the last epoch of each model that has checkpoints in the directory of a run."""
    folders = glob.glob(osp.join(glob.escape(run), "*", ""))
    return [epochs(folder)[-1] for folder in folders if epochs(folder)]
