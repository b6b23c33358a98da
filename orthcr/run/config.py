"""The config of a run, merged from the defaults, the files and the command line.

Precedence, later over earlier: defaults, --dataset-config-file, --config-file, the flags, KEY VALUE pairs.

In an evaluation the config of the model comes before all files, so that every key without a new value is as in
training. CoOp's commands give both files in an evaluation. Then the settings of the model are not merged; its trainer
and its strength still count, and settings of the method that contradict it are refused.
"""

import glob
import importlib
import os.path as osp
import pkgutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from yacs.config import CfgNode

import trainers
from dassl.config import check_config, clean_cfg, flatten, merge_config, read_config, read_layers, resolve_aliases
from dassl.config.defaults import KEYS
from dassl.config.keys import Key, format_value, values
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import epochs
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.infrastructure.console import say
from dassl.infrastructure.files import file_hash
from dassl.utils import check_availability
from trainers.base import extend_cfg, node_of, nodes_of
from trainers.shared.backbones import check_no_download, from_anywhere, input_keys
from trainers.shared.classes import CLASSES, read_classes
from trainers.shared.descriptions import read_file

from .spec import RunSpec

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OWN = {  # keys that are not Dassl's, or with another default
    "DATASET": {
        "SUBSAMPLE_CLASSES": Key("all", choices=("all", "base", "new")),
        "ROOT": "data",
        "IMAGES": "",  # of the data set Images: folder, CSV or JSON
        "SKIP_UNREADABLE": False,  # leave out the images of IMAGES that cannot be read; False: refuse them
        "VAL": Key(-1.0, low=-1),  # val images of IMAGES: a share below 1, or a number of each class; negative: a fifth
        "ALL_TEST": False,  # evaluate all images of IMAGES that TEST.SPLIT names; images without a split count as test
        "CLASSES": Key([], of=str),  # with ALL_TEST: the classes to choose between, which include those of the images
        "FEW_SHOT_SPLIT": "",  # JSON lines file with the training images, in place of the few-shot draw by SEED
        "SPLIT_SHA256": Key([], of=str),  # checksums of FEW_SHOT_SPLIT and its val file, filled in; others are refused
        # order of the few-shot draw. dassl: train, then val, as CoOp; val_first: val, then train, as CLIP-LoRA's code
        "SAMPLING": Key("dassl", choices=("dassl", "val_first")),
        "FEATURE_CACHE": "",  # folder for frozen features, which runs share; "": none
        "FEATURE_CACHE_GIB": Key(4.0, above=0),  # largest size of that folder
    },
    "SEED": Key(1, below=2**32),
}
DESCRIPTIONS_COPY = "descriptions.json"  # copy of the file, in the directory of a run that needs it for each prediction
LONGEST_PATH = 3000  # characters of the output directory: systems take some 4,000 for the files in it
UNSET = {"USE_CUDA": None, "OUTPUT_DIR": "", "RESUME": ""}  # keys of one run on one machine, never taken from a model
CACHE_KEYS = ("DATASET.FEATURE_CACHE", "DATASET.FEATURE_CACHE_GIB")  # nor are these
COOPS_OWN = {  # the keys that CoOp's train.py declares, for trainers written for it
    "COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"},
    "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
}


def setup_cfg(spec: RunSpec, with_data: bool = True) -> CfgNode:
    """Return the merged, frozen config of a run.

    Args:
        spec: the run.
        with_data: False where no data set is built. The package `datasets` is not imported then: in a user's program
            this may be the name of Hugging Face's.

    Raises:
        FileNotFoundError: a config file is not there.
        ValueError: a key, a name or a value is wrong; the message has the nearest name.
    """
    discover(trainers)
    if with_data:
        discover(importlib.import_module("datasets"))
    model_config, is_named = read_model_config(spec), bool(spec.trainer)
    spec = replace(spec, trainer=spec.trainer or model_config.get("TRAINER.NAME") or "OrthCR")
    check_availability(spec.trainer, TRAINER_REGISTRY.registered_names())
    cfg = start(spec, model_config)
    merge_files(cfg, spec)
    if not is_named:
        check_meant(cfg, spec, model_config)
    merge_command_line(cfg, spec, model_config)
    if not is_foreign(spec.trainer):
        check_own_files(spec)
        settle(cfg, spec)
    return finish(cfg, spec, model_config, with_data)


def start(spec: RunSpec, model_config: dict) -> CfgNode:
    """Return the config before any file: the defaults, and the strength of the model that is evaluated."""
    cfg = default_cfg(spec.trainer)
    cfg.update(UNSET)
    if spec.eval_only and strength_key(spec.trainer):
        cfg.TRAINER[node_of(TRAINER_REGISTRY.get(spec.trainer))].STRENGTH = strength_of(spec.trainer, model_config)
    if is_foreign(spec.trainer):
        for node, keys in COOPS_OWN.items():
            cfg.TRAINER.setdefault(node, CfgNode(keys))
    return cfg


def merge_files(cfg: CfgNode, spec: RunSpec) -> None:
    """Merge the config files of a run, later over earlier."""
    for file in files(spec):
        merge_config(cfg, file, allow_new=new_keys(spec.trainer))
        inherit(cfg, file, spec.trainer)
        if file == model_file(spec):  # device and folders of the training are not those of the evaluation
            cfg.update(UNSET)
            default = flatten(default_cfg(spec.trainer))
            merge_config(cfg, [word for key in CACHE_KEYS for word in (key, default[key])])


def merge_command_line(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Merge the flags, the image settings of the backbone that they name, and the KEY VALUE pairs."""
    merge_config(cfg, overrides(spec, cfg))
    if not is_foreign(spec.trainer):
        merge_config(cfg, preprocessing(cfg, spec, model_config))
    merge_config(cfg, spec.opts, allow_new=new_keys(spec.trainer))
    check_pairs(cfg, spec)


def new_keys(trainer: str) -> tuple[str, ...]:
    """Return the nodes that may get keys without a default: a trainer written for Dassl declares none."""
    return ("TRAINER",) if is_foreign(trainer) else ()


def read_model_config(spec: RunSpec) -> dict:
    """Return the dotted config of the model that is evaluated; {} in a training, or for another code base's model."""
    file = model_file(spec)
    return read_run(file) if file else {}


def read_run(path: str) -> dict:
    """Return the dotted config of a run; the strength is 1.0 where the run is older than that key."""
    config = read_config(path)
    key = strength_key(config["TRAINER.NAME"])
    return {key: 1.0} | config if key else config


def strength_key(trainer: str) -> str:
    """Return TRAINER.<NODE>.STRENGTH for a method that has a strength, else ""."""
    method = TRAINER_REGISTRY.get(trainer) if trainer in TRAINER_REGISTRY.registered_names() else None
    return f"TRAINER.{node_of(method)}.STRENGTH" if "STRENGTH" in getattr(method, "defaults", {}) else ""


def descriptions_key(trainer: str) -> str:
    """Return TRAINER.<NODE>.DESCRIPTIONS for a method that takes descriptions of the classes, else ""."""
    method = TRAINER_REGISTRY.get(trainer)
    return f"TRAINER.{node_of(method)}.DESCRIPTIONS" if "DESCRIPTIONS" in getattr(method, "defaults", {}) else ""


def strength_of(trainer: str, model_config: dict) -> float | str:
    """Return the strength the model was trained with; 1.0 for checkpoints of other code bases."""
    return model_config.get(strength_key(trainer), 1.0)


def inherit(cfg: CfgNode, file: str, trainer: str) -> None:
    """Copy the settings that a file of the parent method sets into the node of this method."""
    method, default = TRAINER_REGISTRY.get(trainer), default_cfg(trainer).TRAINER
    parent = parent_of(file, method)
    if parent and node_of(parent) in default and node_of(parent) != node_of(method):
        parent_node, method_node = cfg.TRAINER[node_of(parent)], cfg.TRAINER[node_of(method)]
        for key in parent_node.keys() & method_node.keys():
            if parent_node[key] != default[node_of(parent)][key]:
                method_node[key] = parent_node[key]


def check_meant(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Raise ValueError if a config file is for another trainer, and no --trainer is given."""
    method, default = TRAINER_REGISTRY.get(spec.trainer), default_cfg(spec.trainer).TRAINER
    family = [cls.__name__ for cls in lineage(method)]
    nodes = {name: node_of(TRAINER_REGISTRY.get(name)) for name in TRAINER_REGISTRY.registered_names()}
    *_, above, folder, _ = ("", "", *Path(spec.config_file).absolute().parts)
    names = [cfg.TRAINER.NAME]
    if above == "trainers" and folder in nodes:
        names.append(folder)
    if not model_config:  # the config of a model of a Dassl trainer has the defaults of all methods at its time
        names += [name for name, node in nodes.items() if cfg.TRAINER.get(node) != default.get(node)]
    for name in names:
        if name and name not in family and nodes.get(name) != node_of(method):
            raise ValueError(f"the config files are for {name}, not for {spec.trainer}: give --trainer {name}")


def settle(cfg: CfgNode, spec: RunSpec) -> None:
    """Let the later layer win where one key decides in place of others: see `Decides`.

    Raises:
        ValueError: one layer, a file or the command line, sets both.
    """
    method = TRAINER_REGISTRY.get(spec.trainer)
    node, layers = node_of(method), layers_of(spec)
    for name, decides in method.decides.items():
        deciding = f"TRAINER.{node}.{name}"
        if not cfg.TRAINER[node][name]:
            continue
        since = max((k for k, (_, keys) in enumerate(layers) if deciding in keys), default=-1)
        for short in decides.keys:
            key = short if "." in short else f"TRAINER.{node}.{short}"
            last = max((k for k, (_, keys) in enumerate(layers) if key in keys), default=-1)
            value, deciding_value = flatten(cfg)[key], cfg.TRAINER[node][name]
            if last < max(since, 0) or not deciding_value or decides.agrees(short, value, deciding_value):
                continue
            off = format_value(type(deciding_value)())
            if last == since or decides.refused:
                setting = f"{key} {format_value(value)} {layers[last][0]}"
                wrong = f"{setting} has no effect with {deciding} {format_value(deciding_value)}"
                raise ValueError(f"{wrong}, which decides in its place: leave one out, or set {deciding} {off}")
            say(f"{deciding} is {off} instead of {format_value(deciding_value)}: {key} {layers[last][0]} comes later")
            cfg.TRAINER[node][name] = type(deciding_value)()


def layers_of(spec: RunSpec) -> list[tuple[str, dict]]:
    """Return the layers that set keys, later over earlier.

    The config.yaml of a run has every key. It counts as setting the deciding keys alone, not the others.

    Returns:
        [("in FILE", {key: value}), ..., ("on the command line", {key: value})].
    """
    method, layers = TRAINER_REGISTRY.get(spec.trainer), []
    for path, keys in (layer for file in files(spec) for layer in read_layers(file)):
        if {"TRAINER.NAME", "VERBOSE"} <= keys.keys():
            deciding = {f"TRAINER.{node_of(method)}.{name}" for name in method.decides}
            keys = {key: value for key, value in keys.items() if key in deciding}
        layers.append((f'in "{path}"', keys | inherited(keys, path, method)))
    return [*layers, ("on the command line", dict(zip(spec.opts[::2], spec.opts[1::2], strict=True)))]


def inherited(keys: dict, path: str, method: type) -> dict:
    """Return the keys that a parent's file sets for the method, by `inherit`."""
    parent, prefix = parent_of(path, method), f"TRAINER.{node_of(method)}."
    parent_prefix = f"TRAINER.{node_of(parent)}." if parent else prefix
    return {key.replace(parent_prefix, prefix, 1): keys[key] for key in keys if key.startswith(parent_prefix)}


def parent_of(file: str, method: type) -> type | None:
    """Return the parent of the method whose name is that of the config file's folder, or None."""
    return next((cls for cls in lineage(method)[1:] if cls.__name__ == Path(file).absolute().parent.name), None)


def lineage(method: type) -> list[type]:
    """Return the classes whose settings count for a method: itself, its parents, and `settings_of`."""
    settings_of = getattr(method, "settings_of", "")
    return [*method.__mro__, *([TRAINER_REGISTRY.get(settings_of)] if settings_of else [])]


def check_pairs(cfg: CfgNode, spec: RunSpec) -> None:
    """Raise ValueError for KEY VALUE pairs of another trainer, and for those that the trainer does not read."""
    if cfg.TRAINER.NAME != spec.trainer:
        raise ValueError(
            f"TRAINER.NAME is {format_value(cfg.TRAINER.NAME)}, but the trainer is {spec.trainer}: give --trainer"
        )
    if is_foreign(spec.trainer):
        return
    method = TRAINER_REGISTRY.get(spec.trainer)
    for key in map(str, spec.opts[::2]):
        if key in method.unread:
            raise ValueError(f"{key} has no effect with {spec.trainer}, as {method.unread[key]}: leave it out")
        if key.startswith("TRAINER.") and key.split(".")[1] not in ("NAME", *nodes_of(method)):
            problem = f"{key} is no key of {spec.trainer}, which has TRAINER.{node_of(method)}"
            raise ValueError(f"{problem}: leave it out, or give --trainer")


def discover(package) -> None:
    """Import every module of `trainers` or `datasets`, so that it registers itself; print a line for one that fails."""
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"{package.__name__}.{module.name}")
        except Exception as error:  # one user's file with a missing dependency must not stop all the others
            print(f"{package.__name__}/{module.name}.py is skipped: {type(error).__name__}: {error}", file=sys.stderr)


def default_cfg(trainer: str) -> CfgNode:
    """Return the defaults of Dassl, of this project and of every registered method.

    Args:
        trainer: name of the one that runs.
    """
    cfg = CfgNode(values(joined(KEYS, OWN)))
    extend_cfg(cfg, trainer)
    return cfg


def declared(trainer: str, with_data: bool = True) -> dict:
    """Return the declaration of each key of `default_cfg(trainer)`: its default and its allowed values.

    Args:
        trainer: the one method whose keys are included.
        with_data: False: the names of data sets are not checked.
    """
    registered = {
        "DATASET": {"NAME": Key("", choices=DATASET_REGISTRY.registered_names())} if with_data else {},
        "TEST": {"EVALUATOR": Key("Classification", choices=EVALUATOR_REGISTRY.registered_names())},
    }
    generic, method = joined(joined(KEYS, OWN), registered), TRAINER_REGISTRY.get(trainer)
    if is_foreign(trainer):
        return generic
    return joined(joined(generic, method.root), {"TRAINER": {node_of(method): method.defaults}})


def joined(first: dict, second: dict) -> dict:
    """Return two nested dicts as one; where both have a key, the second wins."""
    both = {**first, **second}
    nested = [key for key in first.keys() & second.keys() if isinstance(first[key], dict)]
    return both | {key: joined(first[key], second[key]) for key in nested}


def is_foreign(trainer: str) -> bool:
    """Return whether a trainer is written for the original Dassl. Such a trainer declares no defaults."""
    return not hasattr(TRAINER_REGISTRY.get(trainer), "defaults")


# ------------------------------------------------------------------ the layers


def model_file(spec: RunSpec) -> str:
    """Return the config file of the model to be evaluated; "" without one, as in directories of other code bases."""
    path = osp.join(spec.model_dir, "config.yaml")
    return path if spec.eval_only and spec.model_dir and osp.exists(path) else ""


def files(spec: RunSpec) -> list[str]:
    """Return the config files, later over earlier."""
    data, method = here_or_in_clone(spec.dataset_config_file), here_or_in_clone(spec.config_file)
    if model_file(spec) and not (method and data):
        paths = [model_file(spec), data, method]
    else:
        paths = [data or str(CONFIGS / "datasets" / "shapes.yaml"), method or tiny_file(spec.trainer)]
    return [path for path in paths if path]


def here_or_in_clone(path: str) -> str:
    """Return a path as it is, or below this clone if it exists only there: `configs/...` works in any folder."""
    in_clone = CONFIGS.parent / path
    return str(in_clone) if path and not osp.exists(path) and in_clone.exists() else path


def tiny_file(trainer: str) -> str:
    """Return tiny.yaml of the method or of its nearest parent, else that of the backbone; "" for foreign trainers."""
    owner = owner_of("tiny", trainer)
    if owner:
        return str(CONFIGS / "trainers" / owner / "tiny.yaml")
    return "" if is_foreign(trainer) else str(CONFIGS / "backbones" / "tiny.yaml")


def owner_of(stem: str, trainer: str) -> str:
    """Return the trainer, or its nearest parent, that has STEM.yaml in configs/trainers; "" if none has.

    Args:
        stem: name of the file without its ending; a glob pattern.
        trainer: name of the method.
    """
    names = [cls.__name__ for cls in lineage(TRAINER_REGISTRY.get(trainer))]
    return next((name for name in names if list((CONFIGS / "trainers" / name).glob(f"{stem}.yaml"))), "")


def check_own_files(spec: RunSpec) -> None:
    """Raise ValueError if a file in the method's own folder sets keys of another method, as a copied file may."""
    nodes = nodes_of(TRAINER_REGISTRY.get(spec.trainer))
    for path, keys in (layer for file in files(spec) for layer in read_layers(file)):
        folder = Path(path).absolute().parent
        others = [key for key in keys if key.startswith("TRAINER.") and key.split(".")[1] not in ("NAME", *nodes)]
        if others and (folder.parent.name, folder.name) == ("trainers", spec.trainer):
            wrong = f'{others[0]} in "{path}" has no effect, as {spec.trainer} has TRAINER.{nodes[0]}'
            raise ValueError(f"{wrong}: rename it, or remove it")


def overrides(spec: RunSpec, cfg: CfgNode) -> list:
    """Return the flags as KEY VALUE pairs.

    Args:
        spec: the run.
        cfg: merged from the files.

    Raises:
        ValueError: a flag has no effect on this trainer.
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
        "DATASET.SPLIT_SHA256": None if spec.few_shot_split is None else [],  # not those of the model
        **own_images(spec, cfg),
    }
    if spec.strength is not None:
        if not strength_key(spec.trainer):
            raise ValueError(f"{spec.trainer} takes no --strength, as it changes no weights: leave it out")
        values[strength_key(spec.trainer)] = spec.strength
    if spec.template is not None:
        node = node_of(TRAINER_REGISTRY.get(spec.trainer))
        if "TEMPLATE" not in cfg.TRAINER.get(node, {}):
            raise ValueError(f"{spec.trainer} takes no --template, as its prompts are not hand-crafted: leave it out")
        values[f"TRAINER.{node}.TEMPLATE"] = spec.template
    if spec.descriptions is not None:
        key = descriptions_key(spec.trainer)
        if not key:
            raise ValueError(f"{spec.trainer} takes no --descriptions, as its loss has no use for them: leave it out")
        if spec.eval_only and TRAINER_REGISTRY.get(spec.trainer).learner:
            raise ValueError(
                f"--descriptions is for the training of {spec.trainer}, its evaluation reads none: leave it out"
            )
        values |= {key: spec.descriptions, f"{key}_SHA256": ""}
    return [word for key, value in values.items() if value is not None for word in (key, value)]


def preprocessing(cfg: CfgNode, spec: RunSpec, model_config: dict) -> list:
    """Return the image settings in the backbone's own files as KEY VALUE pairs.

    The command line overrides them. So does a config file that has other values than the defaults and OpenAI's, which
    stand in the files for any backbone. A model that is evaluated keeps the settings of its training.
    """
    opts = dict(zip(spec.opts[::2], spec.opts[1::2], strict=False))
    name = str(opts.get("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME))
    if name == model_config.get("MODEL.BACKBONE.NAME"):
        return []
    current = flatten(cfg)
    defaults, openai = default_cfg(spec.trainer), default_cfg(spec.trainer)
    merge_config(openai, CONFIGS / "backbones" / "clip.yaml")
    defaults, openai = flatten(defaults), flatten(openai)
    pairs = []
    for short, value in input_keys(name).items():
        key = f"INPUT.{short}"
        is_usual = current[key] in (defaults[key], openai[key])
        if is_usual or key == "INPUT.SIZE":  # the weights fit one size alone
            pairs += [key, value]
    return pairs


def own_images(spec: RunSpec, cfg: CfgNode) -> dict:
    """Return the settings for --images.

    Without that flag, the evaluation of a model of own images reads the split saved beside the model.
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
        raise ValueError(f"--skip-unreadable is for own images, and the data set is {cfg.DATASET.NAME}: leave it out")
    if spec.eval_only and cfg.DATASET.NAME == "Images" and osp.exists(split):
        return {"DATASET.IMAGES": osp.abspath(split), "DATASET.ALL_TEST": True}
    return {}


def finish(cfg: CfgNode, spec: RunSpec, model_config: dict, with_data: bool) -> CfgNode:
    """Fill in defaults, check every value, drop unused nodes, freeze the config."""
    cfg.USE_CUDA = torch.cuda.is_available() if cfg.USE_CUDA is None else cfg.USE_CUDA
    keys = declared(spec.trainer, with_data)
    resolve_aliases(cfg, keys)
    check_config(cfg, keys)
    if cfg.USE_CUDA and not torch.cuda.is_available():
        raise ValueError("USE_CUDA is True, but PyTorch sees no CUDA device here: leave it out to run on the CPU")
    if not spec.eval_only:
        check_training(cfg)
    if not is_foreign(spec.trainer):
        suit_clip(cfg)
    cfg.MODEL.BACKBONE.NAME = from_anywhere(cfg.MODEL.BACKBONE.NAME)
    by_user = spec.backbone or "MODEL.BACKBONE.NAME" in spec.opts[::2]
    if model_config.get("MODEL.BACKBONE.NAME") == cfg.MODEL.BACKBONE.NAME and not by_user:
        check_no_download(cfg.MODEL.BACKBONE.NAME, spec.model_dir)
    cfg.OUTPUT_DIR = cfg.OUTPUT_DIR or default_output(cfg, spec, model_config)
    length = len(osp.abspath(cfg.OUTPUT_DIR))
    if length > LONGEST_PATH:
        raise ValueError(f"OUTPUT_DIR has {length:,} characters, with the folders above: give at most {LONGEST_PATH:,}")
    if spec.eval_only and spec.model_dir and osp.realpath(cfg.OUTPUT_DIR) == osp.realpath(spec.model_dir):
        cfg.OUTPUT_DIR = default_output(cfg, spec, model_config)
        say(f"The results go to {cfg.OUTPUT_DIR}: the results of the training stay")
    if not is_foreign(spec.trainer):
        node, *others = nodes_of(TRAINER_REGISTRY.get(spec.trainer))
        beside = {name: cfg.TRAINER[name] for name in others}
        clean_cfg(cfg, node)
        cfg.TRAINER.update(beside)
    check_resume(cfg)
    check_feature_cache(cfg, spec)
    if with_data:
        set_few_shot_split(cfg, model_config)
    set_descriptions(cfg, spec, model_config)
    cfg.freeze()
    return cfg


def set_descriptions(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Fill in the checksum of the descriptions, where this run reads them, and check their form.

    An evaluation of a method that learns reads none. For other methods the file is kept beside the model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, or is another one than the checksum says.
    """
    key, method = descriptions_key(spec.trainer), TRAINER_REGISTRY.get(spec.trainer)
    if not key or spec.eval_only and method.learner:
        return
    node, copy = cfg.TRAINER[node_of(method)], osp.join(spec.model_dir, DESCRIPTIONS_COPY)
    if not node.DESCRIPTIONS:
        if node.DESCRIPTIONS_SHA256:
            raise ValueError(f"{key}_SHA256 has no effect without descriptions: give --descriptions FILE")
        return
    if node.DESCRIPTIONS == model_config.get(key) and spec.descriptions is None and osp.exists(copy):
        node.DESCRIPTIONS = copy
    node.DESCRIPTIONS = osp.abspath(osp.expanduser(here_or_in_clone(node.DESCRIPTIONS)))
    read_file(node.DESCRIPTIONS)
    checksum = file_hash(node.DESCRIPTIONS)
    check_same_file(node.DESCRIPTIONS, node.DESCRIPTIONS_SHA256, checksum, f"{key}_SHA256", "--descriptions")
    node.DESCRIPTIONS_SHA256 = checksum


def set_few_shot_split(cfg: CfgNode, model_config: dict) -> None:
    """Fill in the checksums of the few-shot split. The split of a model's training is not that of other data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the data set takes none, or the file is another one than the checksums say.
    """
    keys = cfg.DATASET
    if keys.NAME != model_config.get("DATASET.NAME", keys.NAME):
        if keys.FEW_SHOT_SPLIT == model_config.get("DATASET.FEW_SHOT_SPLIT"):
            keys.FEW_SHOT_SPLIT, keys.SPLIT_SHA256 = "", []
    if not keys.FEW_SHOT_SPLIT:
        if keys.SPLIT_SHA256:
            raise ValueError("DATASET.SPLIT_SHA256 has no effect without a few-shot split: give --few-shot-split FILE")
        return
    dataset = DATASET_REGISTRY.get(keys.NAME)
    if not getattr(dataset, "takes_few_shot_file", False) or getattr(dataset, "test_only", False):
        raise ValueError(f"{keys.NAME} takes no DATASET.FEW_SHOT_SPLIT (--few-shot-split): leave it out")
    if keys.SAMPLING != "dassl":
        raise ValueError(f"DATASET.SAMPLING {keys.SAMPLING} has no effect with --few-shot-split: give one of them")
    keys.FEW_SHOT_SPLIT = osp.abspath(osp.expanduser(keys.FEW_SHOT_SPLIT))
    few_shot_file = importlib.import_module("datasets.shared.few_shot_file")
    checksums = list(map(file_hash, few_shot_file.files_of(keys.FEW_SHOT_SPLIT)))
    recorded = keys.SPLIT_SHA256
    check_same_file(keys.FEW_SHOT_SPLIT, recorded, checksums, "DATASET.SPLIT_SHA256", "--few-shot-split")
    keys.SPLIT_SHA256 = checksums


def check_same_file(path: str, recorded: str | list[str], checksums: str | list[str], key: str, flag: str) -> None:
    """Raise ValueError if a file is another one than recorded.

    Args:
        path: of the file.
        recorded: checksum in the config, or those of a file and of the file beside it; empty: none yet.
        checksums: those of the file.
        key: that has the recorded ones.
        flag: that gives another file.
    """
    if recorded and recorded != checksums:
        first = recorded if isinstance(recorded, str) else recorded[0]
        raise ValueError(f"{path} is not the file of {key} {first}: put that one there, or give another with {flag}")


def suit_clip(cfg: CfgNode) -> None:
    """Add CLIP's normalization to the transforms; raise ValueError for settings of Dassl that CLIP has no use for."""
    views = min(cfg.DATALOADER.K_TRANSFORMS, TRAINER_REGISTRY.get(cfg.TRAINER.NAME).views)
    for key, value in (("INPUT.NO_TRANSFORM", False), ("DATALOADER.K_TRANSFORMS", views), ("MODEL.HEAD.NAME", "")):
        if flatten(cfg)[key] != value:
            reason = f"{format_value(flatten(cfg)[key])} is for other trainers"
            raise ValueError(f"{key} must be {format_value(value)} for {cfg.TRAINER.NAME}, which adapts CLIP: {reason}")
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        cfg.INPUT.TRANSFORMS = (*cfg.INPUT.TRANSFORMS, "normalize")
        say('"normalize" is added to INPUT.TRANSFORMS: CLIP was trained on normalized images')


def check_training(cfg: CfgNode) -> None:
    """Raise ValueError for settings that learn nothing. A model trained with them may still be tested."""
    if cfg.OPTIM.LR == 0:
        raise ValueError("OPTIM.LR is 0, but must be above 0 in training: to test without training give --eval-only")
    if cfg.DATASET.SAMPLING != "dassl" and cfg.DATASET.NUM_SHOTS < 1:
        draw = f"DATASET.SAMPLING {cfg.DATASET.SAMPLING} has no effect on all images"
        raise ValueError(f"{draw}: give a DATASET.NUM_SHOTS, or leave it out")


def check_resume(cfg: CfgNode) -> None:
    """Raise ValueError if RESUME is a finished training: the results would claim a training that did not happen."""
    if not cfg.RESUME:
        return
    if cfg.MODEL.INIT_WEIGHTS:
        raise ValueError("MODEL.INIT_WEIGHTS has no effect with --resume, whose weights replace it: give one of them")
    done = last_epochs(cfg.RESUME)
    if done and not last_epochs(cfg.OUTPUT_DIR) and min(done) >= cfg.OPTIM.MAX_EPOCH:
        state = f"{cfg.RESUME} was trained for {min(done)} epochs, and OPTIM.MAX_EPOCH is {cfg.OPTIM.MAX_EPOCH}"
        raise ValueError(f"nothing is left to train: {state}; give more epochs, or --eval-only --model-dir")


def check_feature_cache(cfg: CfgNode, spec: RunSpec) -> None:
    """Raise ValueError if the settings of the cache of features have no effect, or its folder is none."""
    folder, gib = (flatten(cfg)[key] for key in CACHE_KEYS)
    is_default = gib == flatten(default_cfg(spec.trainer))[CACHE_KEYS[1]]
    if not folder and (CACHE_KEYS[1] in spec.opts[::2] or not is_default):
        raise ValueError("DATASET.FEATURE_CACHE_GIB has no effect without a folder: give DATASET.FEATURE_CACHE")
    if folder and is_foreign(spec.trainer):
        problem = f"DATASET.FEATURE_CACHE has no effect with {spec.trainer}, which is written for Dassl"
        raise ValueError(f"{problem}: leave it out")
    if osp.exists(folder) and not osp.isdir(folder):
        raise ValueError(f"DATASET.FEATURE_CACHE is {folder}, which is no folder: give another")


def last_epochs(run: str) -> list[int]:
    """Return the last epoch of each model that has checkpoints in the directory of a run."""
    folders = glob.glob(osp.join(glob.escape(run), "*", ""))
    return [epochs(folder)[-1] for folder in folders if epochs(folder)]


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


def plain(cfg: CfgNode) -> dict:
    """Return the dotted keys of a config with the values that its `config.yaml` has."""
    return flatten(yaml.safe_load(cfg.dump()))
