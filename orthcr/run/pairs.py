"""The settings from the flags and from the backbone of a run, as KEY VALUE pairs."""

import os.path as osp

from yacs.config import CfgNode

from dassl.config import flatten, merge_config
from dassl.config.keys import format_value
from dassl.engine import TRAINER_REGISTRY
from trainers.base import node_of, nodes_of
from trainers.shared.backbones import input_keys
from trainers.shared.classes import CLASSES, read_classes

from .config_files import CONFIGS
from .declarations import default_cfg, descriptions_key, is_foreign, strength_key
from .spec import RunSpec


def pairs_of_flags(spec: RunSpec, cfg: CfgNode) -> list:
    """Return the flags as KEY VALUE pairs.

    Args:
        spec: the run.
        cfg: config after the files are merged.

    Raises:
        ValueError: this trainer does not read a flag.
    """
    values = {
        "DATASET.ROOT": spec.root,
        "OUTPUT_DIR": spec.output_dir or None,
        "RESUME": spec.resume or None,
        "SEED": spec.seed,
        "DATASET.NUM_SHOTS": spec.shots,
        "DATASET.SUBSAMPLE_CLASSES": spec.classes or None,
        "TEST.SPLIT": spec.split or None,
        "DATASET.SOURCE_DOMAINS": spec.source_domains,
        "DATASET.TARGET_DOMAINS": spec.target_domains,
        "INPUT.TRANSFORMS": spec.transforms,
        "TRAINER.NAME": spec.trainer,
        "MODEL.BACKBONE.NAME": spec.backbone or None,
        "MODEL.HEAD.NAME": spec.head or None,
        "DATASET.SKIP_UNREADABLE": spec.skip_unreadable or None,
        "DATASET.FEW_SHOT_SPLIT": spec.few_shot_split,
        "DATASET.SPLIT_SHA256": None if spec.few_shot_split is None else [],  # not the checksums of the model's file
        **keys_of_images(spec, cfg),
    }
    if spec.strength is not None:
        if not strength_key(spec.trainer):
            raise ValueError(f"{spec.trainer} takes no --strength, because it changes no weights: leave it out")
        values[strength_key(spec.trainer)] = spec.strength
    if spec.template is not None:
        node = node_of(TRAINER_REGISTRY.get(spec.trainer))
        if "TEMPLATE" not in cfg.TRAINER.get(node, {}):
            raise ValueError(f"{spec.trainer} takes no --template, because it has other prompts: leave it out")
        values[f"TRAINER.{node}.TEMPLATE"] = spec.template
    if spec.descriptions is not None:
        key = descriptions_key(spec.trainer)
        if not key:
            raise ValueError(f"{spec.trainer} takes no --descriptions, because it does not read them: leave it out")
        if spec.eval_only and TRAINER_REGISTRY.get(spec.trainer).learner:
            raise ValueError(
                f"--descriptions has no effect in an evaluation of {spec.trainer}: give it to the training"
            )
        values |= {key: spec.descriptions, f"{key}_SHA256": ""}
    return [word for key, value in values.items() if value is not None for word in (key, value)]


def keys_of_images(spec: RunSpec, cfg: CfgNode) -> dict:
    """Return the settings for --images.

    Without this flag, the evaluation of a model of own images reads the split in the model's directory.
    """
    split, classes = (osp.join(spec.model_dir, name) for name in ("split.json", CLASSES))
    if spec.images:
        settings = {
            "DATASET.NAME": "Images",
            "DATASET.IMAGES": osp.abspath(osp.expanduser(spec.images)),
            "DATASET.NUM_SHOTS": -1 if spec.shots is None else spec.shots,
            "DATASET.VAL": spec.val,
            "DATASET.ALL_TEST": spec.eval_only,
            "INPUT.EXIF_TRANSPOSE": True,
            "TEST.PER_CLASS_RESULT": True,
        }
        if spec.eval_only and spec.model_dir and osp.exists(classes):
            settings["DATASET.CLASSES"] = read_classes(classes)
        return settings
    if spec.skip_unreadable and cfg.DATASET.NAME != "Images":
        raise ValueError(f"--skip-unreadable has no effect on the data set {cfg.DATASET.NAME}: leave it out")
    if spec.eval_only and cfg.DATASET.NAME == "Images" and osp.exists(split):
        return {"DATASET.IMAGES": osp.abspath(split), "DATASET.ALL_TEST": True}
    return {}


def pairs_of_backbone(cfg: CfgNode, spec: RunSpec, model_config: dict) -> list:
    """Return the image settings from the backbone's own files as KEY VALUE pairs.

    They replace Dassl's defaults and the settings of OpenAI's CLIP, but no other value of a config file. The KEY VALUE
    pairs of the command line override them. The evaluation of a model keeps the settings of its training.
    """
    opts = dict(zip(spec.opts[::2], spec.opts[1::2], strict=False))
    name = str(opts.get("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME))
    if name == model_config.get("MODEL.BACKBONE.NAME"):
        return []
    keys = input_keys(name)
    if not keys:
        return []
    current_values = flatten(cfg)
    defaults, openai = default_cfg(spec.trainer), default_cfg(spec.trainer)
    merge_config(openai, CONFIGS / "backbones" / "clip.yaml")
    defaults, openai = flatten(defaults), flatten(openai)
    pairs = []
    for name_in_input, value in keys.items():
        key = f"INPUT.{name_in_input}"
        is_usual = current_values[key] in (defaults[key], openai[key])
        if is_usual or key == "INPUT.SIZE":  # the weights fit only one size
            pairs += [key, value]
    return pairs


def check_pairs(cfg: CfgNode, spec: RunSpec) -> None:
    """Raise ValueError for KEY VALUE pairs that the trainer does not read."""
    if cfg.TRAINER.NAME != spec.trainer:
        raise ValueError(
            f"TRAINER.NAME is {format_value(cfg.TRAINER.NAME)}, but the run is of {spec.trainer}: give --trainer"
        )
    if is_foreign(spec.trainer):
        return
    method = TRAINER_REGISTRY.get(spec.trainer)
    for key in map(str, spec.opts[::2]):
        if key in method.unread_keys:
            raise ValueError(
                f"{key} has no effect with {spec.trainer}, because {method.unread_keys[key]}: leave it out"
            )
        if key.startswith("TRAINER.") and key.split(".")[1] not in ("NAME", *nodes_of(method)):
            problem = f"{key} is no key of {spec.trainer}, whose keys are in TRAINER.{node_of(method)}"
            raise ValueError(f"{problem}: leave it out, or give --trainer")
