"""The config of a run: what the command line, the files and the defaults give together.

Later over earlier: defaults, --dataset-config-file, --config-file, the flags, KEY VALUE pairs. In an evaluation the
config of the model stands before all files, so that what is not given is as it was in training; unless both files are
given, as CoOp's commands do: then they say everything.
"""

import argparse
import glob
import importlib
import os.path as osp
import pkgutil
import sys
from pathlib import Path

import torch
import yaml
from yacs.config import CfgNode

import trainers
from dassl.config import check_config, clean_cfg, flatten, merge_config, read_config, read_layers, resolve_aliases
from dassl.config.defaults import KEYS
from dassl.config.keys import Key, format_value, values
from dassl.console import say
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import epochs
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.utils import check_availability
from trainers.base import extend_cfg, node_of
from trainers.shared.backbones import check_no_download, from_anywhere, input_keys
from trainers.shared.classes import CLASSES, read_classes  # noqa: F401

from .flags import parse  # noqa: F401  what it returns, `setup_cfg` takes

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OWN = {  # keys that are not Dassl's, or with another default
    "DATASET": {
        "SUBSAMPLE_CLASSES": Key("all", choices=("all", "base", "new")),
        "ROOT": "data",
        "IMAGES": "",  # of the data set Images: folder, CSV or JSON
        "SKIP_UNREADABLE": False,  # its images that cannot be read are left out, not refused
        "VAL": Key(-1.0, low=-1),  # of its images: a share below 1 or a number of each class for val; negative: a fifth
        "ALL_TEST": False,  # its images are all evaluated: those for TEST.SPLIT, those without a split for test
        "CLASSES": Key([], of=str),  # then: the classes to tell apart, if those of the images are among them
    },
    "SEED": Key(1, below=2**32),
}
LONGEST_PATH = 3000  # characters of the output directory: systems take some 4,000 for the files in it
UNSET = {"USE_CUDA": None, "OUTPUT_DIR": "", "RESUME": ""}  # told apart from what is asked for
COOPS_OWN = {  # the keys that CoOp's train.py declares, for trainers written for it
    "COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"},
    "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
}


def setup_cfg(args: argparse.Namespace, with_data: bool = True) -> CfgNode:
    """The merged, frozen config; `args` gets its trainer, and as `model_config` the config of the model evaluated.

    Args:
        args: of `parse`.
        with_data: False where no data set is built: then the package `datasets` is not imported, as in a program of
            somebody's own, where that name is Hugging Face's.

    Raises:
        FileNotFoundError, ValueError: a config file that is not there; an unknown key or name, with the nearest.
    """
    discover(trainers)
    if with_data:
        discover(importlib.import_module("datasets"))
    args.model_config = read_run(model_file(args)) if model_file(args) else {}
    named = args.trainer
    args.trainer = named or args.model_config.get("TRAINER.NAME") or "OrthCR"
    check_availability(args.trainer, TRAINER_REGISTRY.registered_names())

    cfg = default_cfg(args.trainer)
    cfg.update(UNSET)
    if args.eval_only and strength_key(args.trainer):  # the model's, unless something says otherwise
        cfg.TRAINER[node_of(TRAINER_REGISTRY.get(args.trainer))].STRENGTH = strength_of(args)
    new = ("TRAINER",) if is_foreign(args.trainer) else ()  # what its config says there is taken as it is
    for node in COOPS_OWN if new else ():
        cfg.TRAINER.setdefault(node, CfgNode(COOPS_OWN[node]))
    for file in files(args):
        merge_config(cfg, file, allow_new=new)
        inherit(cfg, file, args.trainer)
        if file == model_file(args):  # where and on what the training ran is its own affair
            cfg.update(UNSET)
    if not named:
        check_meant(cfg, args)
    merge_config(cfg, overrides(args, cfg))
    if not new:
        merge_config(cfg, preprocessing(cfg, args))
    merge_config(cfg, args.opts, allow_new=new)
    check_pairs(cfg, args)
    if not new:
        check_own_files(args)
        settle(cfg, args)
    return finish(cfg, args, with_data)


def read_run(path: str) -> dict:
    """The dotted config of a run; a model from before there was a strength has all of it."""
    config = read_config(path)
    key = strength_key(config["TRAINER.NAME"])
    return {key: 1.0} | config if key else config


def strength_key(trainer: str) -> str:
    """TRAINER.<NODE>.STRENGTH of a method that has one, else ""."""
    method = TRAINER_REGISTRY.get(trainer) if trainer in TRAINER_REGISTRY.registered_names() else None
    return f"TRAINER.{node_of(method)}.STRENGTH" if "STRENGTH" in getattr(method, "defaults", {}) else ""


def strength_of(args: argparse.Namespace):
    """That with which the model to be evaluated was trained; of another code base all."""
    return args.model_config.get(strength_key(args.trainer), 1.0)


def inherit(cfg: CfgNode, file: str, trainer: str) -> None:
    """From the file of a method that this one extends, its node's settings are taken, too."""
    method, default = TRAINER_REGISTRY.get(trainer), default_cfg(trainer).TRAINER
    parent = parent_of(file, method)
    if parent and node_of(parent) in default and node_of(parent) != node_of(method):
        theirs, mine = cfg.TRAINER[node_of(parent)], cfg.TRAINER[node_of(method)]
        for key in theirs.keys() & mine.keys():
            if theirs[key] != default[node_of(parent)][key]:
                mine[key] = theirs[key]


def check_meant(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Raises ValueError if a config file is of another trainer than the one that nobody asked for."""
    method, default = TRAINER_REGISTRY.get(args.trainer), default_cfg(args.trainer).TRAINER
    family = [cls.__name__ for cls in method.__mro__]
    nodes = {name: node_of(TRAINER_REGISTRY.get(name)) for name in TRAINER_REGISTRY.registered_names()}
    *_, above, folder, _ = ("", "", *Path(args.config_file).absolute().parts)
    meant = [cfg.TRAINER.NAME, folder if above == "trainers" and folder in nodes else ""]
    if not args.model_config:  # that of a trainer for Dassl has the defaults of all methods, as they were then
        meant += [name for name, node in nodes.items() if cfg.TRAINER.get(node) != default.get(node)]
    other = next((name for name in meant if name and name not in family and nodes.get(name) != node_of(method)), "")
    if other:
        raise ValueError(f"the config files are for {other}, not for {args.trainer}: give --trainer {other}")


def settle(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Let the last word win where one key decides in place of others: see `Decides`.

    Raises:
        ValueError: one file, or the command line, sets both.
    """
    method = TRAINER_REGISTRY.get(args.trainer)
    node, layers = node_of(method), layers_of(args)
    for name, decides in method.decides.items():
        deciding = f"TRAINER.{node}.{name}"
        if not cfg.TRAINER[node][name]:
            continue
        since = max((k for k, (_, keys) in enumerate(layers) if deciding in keys), default=-1)
        for short in decides.keys:
            key = short if "." in short else f"TRAINER.{node}.{short}"
            last = max((k for k, (_, keys) in enumerate(layers) if key in keys), default=-1)
            now, word = flatten(cfg)[key], cfg.TRAINER[node][name]
            if last < max(since, 0) or not word or decides.agrees(short, now, word):
                continue
            off = format_value(type(word)())
            if last == since or decides.refused:
                setting = f"{key} {format_value(now)} {layers[last][0]}"
                wrong = f"{setting} has no effect with {deciding} {format_value(word)}"
                raise ValueError(f"{wrong}, which decides in its place: leave one out, or set {deciding} {off}")
            say(f"{deciding} is {off} instead of {format_value(word)}: {key} {layers[last][0]} comes later")
            cfg.TRAINER[node][name] = type(word)()


def layers_of(args: argparse.Namespace) -> list[tuple[str, dict]]:
    """Return where keys are set, later over earlier: [("in FILE", {key: value}), ..., ("on the command line", ...)].

    In the config.yaml of a run, which has every key, a key that another decides in place of is not set.
    """
    method, layers = TRAINER_REGISTRY.get(args.trainer), []
    for path, keys in (layer for file in files(args) for layer in read_layers(file)):
        if {"TRAINER.NAME", "VERBOSE"} <= keys.keys():
            deciding = {f"TRAINER.{node_of(method)}.{name}" for name in method.decides}
            keys = {key: value for key, value in keys.items() if key in deciding}
        layers.append((f'in "{path}"', keys | inherited(keys, path, method)))
    return [*layers, ("on the command line", dict(zip(args.opts[::2], args.opts[1::2], strict=True)))]


def inherited(keys: dict, path: str, method: type) -> dict:
    """Return the keys that a parent's file sets for the method, by `inherit`."""
    parent, mine = parent_of(path, method), f"TRAINER.{node_of(method)}."
    theirs = f"TRAINER.{node_of(parent)}." if parent else mine
    return {key.replace(theirs, mine, 1): value for key, value in keys.items() if key.startswith(theirs)}


def parent_of(file: str, method: type) -> type | None:
    """Return the class that the method extends and that the folder of a config file is named after."""
    return next((cls for cls in method.__mro__[1:] if cls.__name__ == Path(file).absolute().parent.name), None)


def check_pairs(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Raises ValueError for KEY VALUE pairs that are of another trainer."""
    if cfg.TRAINER.NAME != args.trainer:
        raise ValueError(
            f"TRAINER.NAME is {format_value(cfg.TRAINER.NAME)}, but the trainer is {args.trainer}: give --trainer"
        )
    node = node_of(TRAINER_REGISTRY.get(args.trainer))
    for key in [] if is_foreign(args.trainer) else map(str, args.opts[::2]):
        if key.startswith("TRAINER.") and key.split(".")[1] not in ("NAME", node):
            raise ValueError(f"{key} is of another trainer than {args.trainer}, which has TRAINER.{node}")


def discover(package) -> None:
    """Imports every module of `trainers` or `datasets`, so that it registers itself; one that fails is named."""
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"{package.__name__}.{module.name}")
        except Exception as error:  # somebody's file with a missing dependency must not stop all the others
            print(f"{package.__name__}/{module.name}.py is skipped: {type(error).__name__}: {error}", file=sys.stderr)


def default_cfg(trainer: str) -> CfgNode:
    """Dassl's defaults, those of this project and those of every registered method; `trainer`: the one that runs."""
    cfg = CfgNode(values(joined(KEYS, OWN)))
    extend_cfg(cfg, trainer)
    return cfg


def declared(trainer: str, with_data: bool = True) -> dict:
    """The default of each key of `default_cfg(trainer)`, and what the key may be; of no other method's keys."""
    registered = {
        "DATASET": {"NAME": Key("", choices=DATASET_REGISTRY.registered_names())} if with_data else {},
        "TEST": {"EVALUATOR": Key("Classification", choices=EVALUATOR_REGISTRY.registered_names())},
    }
    generic, method = joined(joined(KEYS, OWN), registered), TRAINER_REGISTRY.get(trainer)
    if is_foreign(trainer):
        return generic
    return joined(joined(generic, method.root), {"TRAINER": {node_of(method): method.defaults}})


def joined(first: dict, second: dict) -> dict:
    """Two nested dicts as one; where both have a key, it is the second's."""
    both = {**first, **second}
    nested = [key for key in first.keys() & second.keys() if isinstance(first[key], dict)]
    return both | {key: joined(first[key], second[key]) for key in nested}


def is_foreign(trainer: str) -> bool:
    """Whether it is written for the original Dassl: such a trainer declares no defaults."""
    return not hasattr(TRAINER_REGISTRY.get(trainer), "defaults")


# ------------------------------------------------------------------ what is merged


def model_file(args: argparse.Namespace) -> str:
    """The config of the model to be evaluated; "" if there is none, as in the directories of other code bases."""
    path = osp.join(args.model_dir, "config.yaml")
    return path if args.eval_only and args.model_dir and osp.exists(path) else ""


def files(args: argparse.Namespace) -> list[str]:
    """The config files, later over earlier."""
    data, method = here_or_in_clone(args.dataset_config_file), here_or_in_clone(args.config_file)
    if model_file(args) and not (method and data):
        given = [model_file(args), data, method]
    else:
        given = [data or str(CONFIGS / "datasets" / "shapes.yaml"), method or tiny_file(args.trainer)]
    return [file for file in given if file]


def here_or_in_clone(path: str) -> str:
    """`configs/...` is found from any folder."""
    there = CONFIGS.parent / path
    return str(there) if path and not osp.exists(path) and there.exists() else path


def tiny_file(trainer: str) -> str:
    """Return tiny.yaml of the method or of its nearest parent, else that of the backbone; "" for foreign ones."""
    owner = owner_of("tiny", trainer)
    if owner:
        return str(CONFIGS / "trainers" / owner / "tiny.yaml")
    return "" if is_foreign(trainer) else str(CONFIGS / "backbones" / "tiny.yaml")


def owner_of(stem: str, trainer: str) -> str:
    """Return the trainer, or its nearest parent, that has STEM.yaml (a pattern) in configs/trainers; "" if none has."""
    lineage = [cls.__name__ for cls in TRAINER_REGISTRY.get(trainer).__mro__]
    return next((name for name in lineage if list((CONFIGS / "trainers" / name).glob(f"{stem}.yaml"))), "")


def check_own_files(args: argparse.Namespace) -> None:
    """Raises ValueError if a file of the method's own folder has settings of another method, as a copied one has."""
    own = f"TRAINER.{node_of(TRAINER_REGISTRY.get(args.trainer))}."
    for path, keys in (layer for file in files(args) for layer in read_layers(file)):
        folder = Path(path).absolute().parent
        others = [key for key in keys if key.startswith("TRAINER.") and not key.startswith((own, "TRAINER.NAME"))]
        if others and (folder.parent.name, folder.name) == ("trainers", args.trainer):
            wrong = f'{others[0]} in "{path}" has no effect, as {args.trainer} has {own[:-1]}'
            raise ValueError(f"{wrong}: rename it, or remove it")


def overrides(args: argparse.Namespace, cfg: CfgNode) -> list:
    """What the flags say, as KEY VALUE pairs; `cfg`: what the files say."""
    given = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir or None,
        "RESUME": args.resume or None,
        "SEED": args.seed,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone or None,
        "MODEL.HEAD.NAME": args.head or None,
        "DATASET.SKIP_UNREADABLE": args.skip_unreadable or None,
        **own_images(args, cfg),
    }
    if args.strength is not None:
        if not strength_key(args.trainer):
            raise ValueError(f"{args.trainer} takes no --strength: it changes no weights")
        given[strength_key(args.trainer)] = args.strength
    if args.template is not None:
        node = node_of(TRAINER_REGISTRY.get(args.trainer))
        if "TEMPLATE" not in cfg.TRAINER.get(node, {}):
            raise ValueError(f"{args.trainer} takes no --template: its prompts are not hand-crafted")
        given[f"TRAINER.{node}.TEMPLATE"] = args.template
    return [word for key, value in given.items() if value is not None for word in (key, value)]


def preprocessing(cfg: CfgNode, args: argparse.Namespace) -> list:
    """What the backbone's own files say of its images, as KEY VALUE pairs; those of the command line come behind them.

    Of the config files, those that are for any backbone say OpenAI's values; what says others is meant. A model that is
    evaluated keeps what it was trained with.
    """
    pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    name = str(pairs.get("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME))
    if name == args.model_config.get("MODEL.BACKBONE.NAME"):
        return []
    usual, files = [default_cfg(args.trainer) for _ in range(2)], flatten(cfg)
    merge_config(usual[1], CONFIGS / "backbones" / "clip.yaml")
    given = {f"INPUT.{key}": value for key, value in input_keys(name).items()}
    meant = {key for key in given if files[key] not in [flatten(had)[key] for had in usual]} - {"INPUT.SIZE"}
    return [word for key, value in given.items() if key not in meant for word in (key, value)]


def own_images(args: argparse.Namespace, cfg: CfgNode) -> dict:
    """What --images says; without it, an evaluation of a model of own images takes the split kept beside the model."""
    kept, classes = (osp.join(args.model_dir, name) for name in ("split.json", CLASSES))
    if args.images:
        given = {
            "DATASET.NAME": "Images",
            "DATASET.IMAGES": osp.abspath(osp.expanduser(args.images)),
            "DATASET.NUM_SHOTS": -1,
            "DATASET.VAL": args.val,
            "DATASET.ALL_TEST": args.eval_only,
            "INPUT.EXIF_TRANSPOSE": True,
            "TEST.PER_CLASS_RESULT": True,
        }
        if args.eval_only and args.model_dir and osp.exists(classes):
            given["DATASET.CLASSES"] = read_classes(classes)
        return given
    if args.skip_unreadable and cfg.DATASET.NAME != "Images":
        raise ValueError(f"--skip-unreadable is for own images, and the data set is {cfg.DATASET.NAME}: leave it out")
    if args.eval_only and cfg.DATASET.NAME == "Images" and osp.exists(kept):
        return {"DATASET.IMAGES": osp.abspath(kept), "DATASET.ALL_TEST": True}
    return {}


def finish(cfg: CfgNode, args: argparse.Namespace, with_data: bool) -> CfgNode:
    """What nobody asked for is found, every value is checked, what plays no part goes; frozen."""
    cfg.USE_CUDA = torch.cuda.is_available() if cfg.USE_CUDA is None else cfg.USE_CUDA
    keys = declared(args.trainer, with_data)
    resolve_aliases(cfg, keys)
    check_config(cfg, keys)
    if cfg.USE_CUDA and not torch.cuda.is_available():
        raise ValueError("USE_CUDA is True, but PyTorch sees no CUDA device here: leave it out to run on the CPU")
    if with_data:
        check_domains(cfg)
    if not args.eval_only:
        check_training(cfg)
    if not is_foreign(args.trainer):
        suit_clip(cfg)
    cfg.MODEL.BACKBONE.NAME = from_anywhere(cfg.MODEL.BACKBONE.NAME)
    by_user = args.backbone or "MODEL.BACKBONE.NAME" in args.opts[::2]
    if args.model_config.get("MODEL.BACKBONE.NAME") == cfg.MODEL.BACKBONE.NAME and not by_user:
        check_no_download(cfg.MODEL.BACKBONE.NAME, args.model_dir)
    cfg.OUTPUT_DIR = cfg.OUTPUT_DIR or default_output(cfg, args)
    length = len(osp.abspath(cfg.OUTPUT_DIR))
    if length > LONGEST_PATH:
        raise ValueError(f"OUTPUT_DIR has {length:,} characters, with the folders above: give at most {LONGEST_PATH:,}")
    if args.eval_only and args.model_dir and osp.realpath(cfg.OUTPUT_DIR) == osp.realpath(args.model_dir):
        cfg.OUTPUT_DIR = default_output(cfg, args)
        say(f"The results go to {cfg.OUTPUT_DIR}: those of the training stay")
    if not is_foreign(args.trainer):
        clean_cfg(cfg, node_of(TRAINER_REGISTRY.get(args.trainer)))
    check_resume(cfg)
    cfg.freeze()
    return cfg


def check_domains(cfg: CfgNode) -> None:
    """Raise ValueError for domains of a data set of this project, none of which has any."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not dataset.__module__.startswith("datasets.") or dataset.domains:
        return
    for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS"):
        if cfg.DATASET[key]:
            advice = f"leave out DATASET.{key} (--{key.lower().replace('_', '-')})"
            raise ValueError(f"{cfg.DATASET.NAME} has no domains (got {', '.join(cfg.DATASET[key])}): {advice}")


def suit_clip(cfg: CfgNode) -> None:
    """CLIP's images are always normalized. Raises ValueError for settings of Dassl's that CLIP has no use for."""
    for key, value in (("INPUT.NO_TRANSFORM", False), ("DATALOADER.K_TRANSFORMS", 1), ("MODEL.HEAD.NAME", "")):
        if flatten(cfg)[key] != value:
            why = f"{format_value(flatten(cfg)[key])} is for other trainers"
            raise ValueError(f"{key} must be {format_value(value)} for {cfg.TRAINER.NAME}, which adapts CLIP: {why}")
    if "normalize" not in cfg.INPUT.TRANSFORMS:
        cfg.INPUT.TRANSFORMS = (*cfg.INPUT.TRANSFORMS, "normalize")
        say('"normalize" is added to INPUT.TRANSFORMS: CLIP was trained on normalized images')


def check_training(cfg: CfgNode) -> None:
    """Raises ValueError for settings with which nothing can be learned; models of such trainings are still tested."""
    if cfg.OPTIM.LR == 0:
        raise ValueError("OPTIM.LR is 0, but must be above 0 in training: to test without training give --eval-only")


def check_resume(cfg: CfgNode) -> None:
    """Raises ValueError if RESUME is a finished training: nothing would be trained, and the results would claim it."""
    if not cfg.RESUME:
        return
    if cfg.MODEL.INIT_WEIGHTS:
        raise ValueError("MODEL.INIT_WEIGHTS has no effect with --resume, whose weights replace it: give one of them")
    own, other = (
        [epochs(folder)[-1] for folder in glob.glob(osp.join(glob.escape(run), "*", "")) if epochs(folder)]
        for run in (cfg.OUTPUT_DIR, cfg.RESUME)
    )
    if other and not own and min(other) >= cfg.OPTIM.MAX_EPOCH:
        told = f"{cfg.RESUME} was trained for {min(other)} epochs, and OPTIM.MAX_EPOCH is {cfg.OPTIM.MAX_EPOCH}"
        raise ValueError(f"nothing is left to train: {told}; give more, or --eval-only --model-dir")


def default_output(cfg: CfgNode, args: argparse.Namespace) -> str:
    name = osp.splitext(osp.basename(cfg.DATASET.IMAGES))[0] if args.images else cfg.DATASET.NAME
    run = [name, cfg.DATASET.SUBSAMPLE_CLASSES, f"shots{cfg.DATASET.NUM_SHOTS}", f"seed{cfg.SEED}"]
    if args.eval_only and args.model_dir:  # beside the model, never over its own results
        s = flatten(cfg).get(strength_key(args.trainer), 1.0)
        other = [f"s{s}"] * (s != strength_of(args))
        return osp.join(args.model_dir, "eval", "-".join([*run[:2], cfg.TEST.SPLIT, *other]))
    return osp.join("output", cfg.TRAINER.NAME, *run)


def plain(cfg: CfgNode) -> dict:
    """Dotted keys of a config with the values that its `config.yaml` has."""
    return flatten(yaml.safe_load(cfg.dump()))
