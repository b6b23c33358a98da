"""A run: a training or an evaluation in its output directory. Its `results.json` has the settings and the accuracy."""

import argparse
import contextlib
import errno
import glob
import os
import os.path as osp
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable

try:
    import resource
except ImportError:  # on Windows
    resource = None

import numpy as np
import torch
import torchvision
from yacs.config import CfgNode

import dassl
from dassl import distributed
from dassl.command import GOES_ON, USER_ERRORS, command
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.files import protected, sealed_config, sweep, visible
from dassl.utils import atomic_write, collect_env_info, locked, set_random_seed, setup_logger, write_json
from datasets.base import DrawnDataset
from trainers.shared.strength import AUTO

from . import calibrate, own_images
from .chosen import choose_strength
from .config import CLASSES, CONFIGS, default_cfg, is_foreign, owner_of, plain, read_run, setup_cfg, strength_key
from .flags import parse
from .seen import SEEN, keep_seen

ROOT = CONFIGS.parent
VERSIONS = (torch, np, torchvision, dassl)
# Settings that may differ between a run and its continuation: they do not change the trained model
MAY_DIFFER = tuple(
    "OUTPUT_DIR RESUME VERBOSE USE_CUDA DATASET.ROOT DATALOADER.NUM_WORKERS TRAIN.CHECKPOINT_FREQ TRAIN.PRINT_FREQ "
    "TEST.EVALUATOR TEST.PER_CLASS_RESULT TEST.COMPUTE_CMAT TEST.NO_TEST TEST.CALIBRATE TEST.SPLIT".split()
)


# Settings of a method that may differ between a model and its evaluation: they do not change the model's answers
TRAINING_ONLY = (".PREC", ".MONITOR", ".STRENGTH", ".REACH", ".N_ITERS")


def main(
    argv: list[str] | None = None,
    draw: own_images.ContactSheet | None = None,
    draw_confusion: own_images.ConfusionPicture | None = None,
) -> int:
    """Do what train.py does where PyTorch is imported already; return its exit status.

    Args:
        argv: words of the command line; None: of this process.
        draw: as in `run`.
        draw_confusion: as in `run`.
    """

    def work() -> None:
        run(parse(argv), draw, draw_confusion)

    return command(work, GOES_ON)


def run(
    args: argparse.Namespace,
    draw: own_images.ContactSheet | None = None,
    draw_confusion: own_images.ConfusionPicture | None = None,
) -> dict:
    """Do one training or evaluation; return the content of `results.json`.

    Everything printed also goes to `log.txt` in the output directory.

    Args:
        args: of `parse`.
        draw: draws own images that are misclassified.
        draw_confusion: draws the confusion matrix of own images.
    """
    with distributed.processes():
        return run_here(args, draw, draw_confusion)


def run_here(
    args: argparse.Namespace, draw: own_images.ContactSheet | None, draw_confusion: own_images.ConfusionPicture | None
) -> dict:
    """Do one training or evaluation in this process. Of several processes, the first alone writes and returns results.

    Args:
        args: of `parse`.
        draw: as in `run`.
        draw_confusion: as in `run`.
    """
    cfg = setup_cfg(args)
    check_domains(cfg)
    if args.eval_only:
        check_model_dir(cfg, args)
        check_inside(cfg, args)
        check_no_training(cfg)
        check_same_strength(cfg)
    else:
        check_same_run(cfg)
        tell_defaults(cfg, args)
    check_processes(cfg)
    log = logged(cfg.OUTPUT_DIR) if distributed.is_first() else contextlib.nullcontext()
    with log, protect_data(cfg, args):
        choice = choose_strength(cfg, args, check_inside)
        try:
            trainer = build(cfg, args)
        except Exception as error:
            if not isinstance(error, USER_ERRORS):  # a bug: the log needs the config
                tell_config(cfg)
            raise
        if not args.eval_only:
            tell_config(cfg)
            if cfg.DATASET.NAME == "Images":
                own_images.tell_before_training(cfg, trainer.dm.dataset.classnames)
            if args.no_train:
                return {}
        start = time.time()
        if args.eval_only:
            trainer.chosen = choice
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
            tell_config(cfg)
            trainer.evaluator.temperature = calibrate.temperature_of(trainer, args.model_dir, args.load_epoch)
            trainer.test()
        else:
            trainer.evaluator.keep_scores = cfg.TEST.CALIBRATE
            trainer.train()
        if not distributed.is_first():
            return {}
        results = describe(trainer, cfg, args, time.time() - start)
        if cfg.TEST.CALIBRATE and not args.eval_only:
            results |= calibrate.at_the_end(trainer, cfg.OUTPUT_DIR)
        if cfg.DATASET.NAME == "Images":
            results |= own_images.tell(trainer, draw, draw_confusion)
        path = osp.join(cfg.OUTPUT_DIR, "results.json")
        write_json(results, path, seal=True)
        print(f"Results are in {path}")
        if cfg.DATASET.NAME == "Images" and not args.eval_only:
            print(own_images.next_command(cfg.OUTPUT_DIR))
    return results


# ------------------------------------------------------------------ checks of settings and directories


def check_model_dir(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Raise ValueError if the model has another trainer, backbone or method setting.

    Another template or class-token position would fit the checkpoint and give a wrong accuracy. A model of another code
    base has no config.yaml. It is checked when its checkpoint is loaded.
    """
    if args.model_dir and not osp.isdir(args.model_dir):
        raise FileNotFoundError(f"there is no {args.model_dir}: give the --output-dir of a training as --model-dir")
    different = []
    for key, value in plain(cfg).items():
        model_value = args.model_config.get(key, value)
        matters = key == "MODEL.BACKBONE.NAME" or key.startswith("TRAINER.")
        if matters and not key.endswith(TRAINING_ONLY) and model_value != value:
            different.append(f'{key} "{model_value}", not "{value}"')
    if different:
        wrong = f"the model in {args.model_dir} was trained with {', '.join(different)}"
        raise ValueError(f"{wrong}: give the same here, or another --model-dir")


def check_domains(cfg: CfgNode) -> None:
    """Raise ValueError for domains of a data set of this project, none of which has any."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not dataset.__module__.startswith("datasets.") or dataset.domains:
        return
    for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS"):
        if cfg.DATASET[key]:
            advice = f"leave out DATASET.{key} (--{key.lower().replace('_', '-')})"
            raise ValueError(f"{cfg.DATASET.NAME} has no domains (got {', '.join(cfg.DATASET[key])}): {advice}")


def check_inside(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Raise ValueError if the model's directory, which may be untrusted, would make this run write elsewhere."""
    out, model = cfg.OUTPUT_DIR, args.model_dir or osp.join(cfg.OUTPUT_DIR, "none")
    below = osp.relpath(out, model)
    if below[:2] != ".." and osp.realpath(out) != osp.normpath(osp.join(osp.realpath(model), below)):
        raise ValueError(f"{out} lies behind a link: give another --output-dir")
    root, drawn = foreign_root(cfg, args), DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if root and issubclass(drawn, DrawnDataset):
        if not osp.exists(osp.join(root, drawn.dataset_dir, drawn.split_file)):
            reason = f"{cfg.DATASET.NAME} is not in {root}, the folder of the training"
            raise ValueError(f"{reason}: give a --root, and it is drawn there")


def foreign_root(cfg: CfgNode, args: argparse.Namespace) -> str:
    """Return DATASET.ROOT if it comes from the model's directory alone, which may be untrusted; else ""."""
    root = cfg.DATASET.ROOT
    by_user = args.root or "DATASET.ROOT" in args.opts[::2] or root == default_cfg(args.trainer).DATASET.ROOT
    return "" if by_user or args.model_config.get("DATASET.ROOT") != root else root


def protect_data(cfg: CfgNode, args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Return a context that forbids writing into a `foreign_root`, except into the directories of the runs."""
    root = foreign_root(cfg, args) if args.eval_only else ""
    if not root:
        return contextlib.nullcontext()
    return protected(root, but=[folder for folder in (cfg.OUTPUT_DIR, args.model_dir) if folder])


def check_no_training(cfg: CfgNode) -> None:
    """Raise ValueError if the output directory holds a training."""
    if glob.glob(osp.join(glob.escape(cfg.OUTPUT_DIR), "*", "model*.pth.tar*")):
        raise ValueError(f"{cfg.OUTPUT_DIR} holds a training run and its results: choose another --output-dir")


def check_same_strength(cfg: CfgNode) -> None:
    """Raise ValueError if the output directory holds results of the same method at another strength."""
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path) or not osp.exists(osp.join(cfg.OUTPUT_DIR, "results.json")):
        return
    old, new = read_run(path), plain(cfg)
    for key in old.keys() & new.keys():
        if key.endswith(".STRENGTH") and old[key] != new[key]:
            wrong = f"{cfg.OUTPUT_DIR} holds results with {key} {old[key]}, not {new[key]}"
            raise ValueError(f"{wrong}: choose another --output-dir, or remove that one")


def check_same_run(cfg: CfgNode, may_differ: tuple[str, ...] = MAY_DIFFER) -> None:
    """Raise ValueError if the output directory holds a run with other settings."""
    different = differences(cfg, may_differ)
    if different:
        wrong = f"{cfg.OUTPUT_DIR} holds a run with {', '.join(different)}"
        raise ValueError(f"{wrong}: choose another --output-dir, or remove that one")


def differences(cfg: CfgNode, may_differ: tuple[str, ...] = MAY_DIFFER) -> list[str]:
    """Return "KEY old value, not new value" for each setting that differs from the run in the output directory.

    Args:
        cfg: of the new run.
        may_differ: beginnings of keys that are not compared.
    """
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path):
        return []
    old, new = read_run(path), plain(cfg)
    default = plain(default_cfg(cfg.TRAINER.NAME))  # older runs lack newer keys
    lines = []
    for key in sorted(old.keys() | new.keys()):
        old_value, new_value = (config.get(key, default.get(key)) for config in (old, new))
        if not key.startswith(may_differ) and old_value != new_value:
            lines.append(f"{key} {format_value(old_value)}, not {format_value(new_value)}")
    return lines


def format_value(value: object) -> str:
    """Return a value for a message."""
    return '""' if value == "" else str(value)


def check_processes(cfg: CfgNode) -> None:
    """Raise ValueError if there are more processes than GPUs, or the trainer cannot share batches between processes."""
    distributed.check_devices(cfg.USE_CUDA)
    if distributed.size() > 1 and is_foreign(cfg.TRAINER.NAME):
        raise ValueError(f"{cfg.TRAINER.NAME} is written for one process: start it without torchrun")


@contextlib.contextmanager
def logged(folder: str):
    """Lock a folder for one run, and copy all output and the trace of an error to its log.txt."""
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(folder, exist_ok=True)
            stack.enter_context(locked(folder, "another run is at work there"))
            for path in (folder, *glob.glob(osp.join(glob.escape(folder), "*/"))):
                sweep(path)
            setup_logger(folder)
            log = stack.enter_context(contextlib.closing(sys.stdout))
        except OSError as error:
            wrong = f"cannot write to the output directory {folder} ({error.strerror or error})"
            raise OSError(f"{wrong}: choose another --output-dir") from error
        try:
            yield
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk
                if log.file:
                    log.file.write(visible(traceback.format_exc(), keep="\n"))  # the console may show one line alone
                    log.file.flush()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(f"{error}: make room and give the same command again") from error
            raise


# ------------------------------------------------------------------ the trainer and the results


def build(cfg: CfgNode, args: argparse.Namespace):
    """Return the trainer, after seeding; write `config.yaml` and the class names into the output directory."""
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats()
    trainer = build_trainer(cfg)
    if not args.eval_only and learns(trainer) and getattr(trainer.dm.dataset, "test_only", False):
        raise ValueError(f"{cfg.DATASET.NAME} is for testing only: train on another data set, then --eval-only here")
    if cfg.TEST.SPLIT == "val" and getattr(trainer, "val_loader", True) is None and not cfg.TEST.NO_TEST:
        raise ValueError(f"TEST.SPLIT is val, but {cfg.DATASET.NAME} has no val images here: set TEST.SPLIT test")
    if not distributed.is_first():
        return trainer
    # not earlier: a run that fails to build must leave no settings that a later run is compared with
    write_json(trainer.dm.dataset.classnames, osp.join(cfg.OUTPUT_DIR, CLASSES))  # for predict.py
    if cfg.DATASET.NAME == "Images" and not args.eval_only and learns(trainer):
        by_val = cfg.TEST.FINAL_MODEL == "best_val" or plain(cfg).get(strength_key(cfg.TRAINER.NAME)) == AUTO
        keep_seen(cfg.OUTPUT_DIR, trainer.dm.dataset.train_x, trainer.dm.dataset.val if by_val else [])
    content = sealed_config(cfg.dump(), cfg.OUTPUT_DIR, [CLASSES, "split.json", SEEN])
    with atomic_write(osp.join(cfg.OUTPUT_DIR, "config.yaml")) as f:
        f.write(content)
    return trainer


def tell_defaults(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Print the optimizer settings that a method without a YAML file gets."""
    trainer = cfg.TRAINER.NAME
    if not (args.config_file or is_foreign(trainer) or owner_of("tiny", trainer)):
        optim = f"OPTIM.NAME {cfg.OPTIM.NAME}, OPTIM.LR {cfg.OPTIM.LR:g}, OPTIM.MAX_EPOCH {cfg.OPTIM.MAX_EPOCH}"
        print(f"{trainer} has no configs/trainers/{trainer}/tiny.yaml: it runs with the defaults, {optim}")


def tell_config(cfg: CfgNode) -> None:
    """Print config and system. Call this when the run can start: these 100 lines would bury an error."""
    if cfg.VERBOSE:
        print(f"** Config **\n{cfg}\n** System info **\n{collect_env_info()}\n")


def learns(trainer) -> bool:
    """Return whether a trainer has a learner, with or without parameters; for a foreign one, a registered model."""
    learner = getattr(trainer, "learner", None)
    return bool(trainer._models) if learner is None else bool(learner)


def describe(trainer, cfg: CfgNode, args: argparse.Namespace, seconds: float) -> dict:
    """Return the content of `results.json`. It needs no other file to identify the accuracy.

    Args:
        trainer: after training or test.
        cfg: of the run.
        args: of `parse`, after `setup_cfg`.
        seconds: duration of the run.
    """
    config, model_config = plain(cfg), None
    if args.eval_only:
        model_config = args.model_config
    trained_config = None
    if learns(trainer):
        trained_config = model_config if args.eval_only else config

    def data_of(config: dict) -> dict:
        names = "DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "SEED", "DATASET.NUM_SHOTS"
        return dict(zip(("dataset", "classes", "seed", "shots"), map(config.get, names), strict=True))

    tensors = (p for model in trainer._models.values() for p in model.parameters())
    return {
        "trainer": cfg.TRAINER.NAME,
        **data_of(config),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "eval_only": args.eval_only,
        "model_dir": osp.abspath(args.model_dir) if args.model_dir else None,
        "trained": learns(trainer),  # False: zero-shot
        # with this, an evaluation on other classes or data is not mistaken for a training on them
        "trained_on": data_of(trained_config) if trained_config else None,
        **trainer.results,
        **getattr(trainer, "facts", dict)(),  # entries of the method itself
        "trainable_params": sum(p.numel() for p in tensors if p.requires_grad),
        "learning_rate": None if args.eval_only else learning_rate(trainer),  # the highest of the schedule
        "seconds": seconds if args.eval_only else getattr(trainer, "train_seconds", seconds),
        "peak_memory_mib": peak_memory(cfg),  # of the first process
        "processes": distributed.size(),
        "device": torch.cuda.get_device_name() if cfg.USE_CUDA else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version()} | {m.__name__: m.__version__ for m in VERSIONS},
        "git_revision": git_revision([type(trainer), type(trainer.dm.dataset)]),
        "config": config,
        "model_config": model_config,  # of the model evaluated; empty if it is of another code base
    }


def learning_rate(trainer) -> float | None:
    """Return the rate of a training without warm-up and decay. With several optimizers, return that of the first."""
    schedules = [schedule for schedule in trainer._scheds.values() if schedule is not None]
    return schedules[0].base_lrs[0] if schedules else None


def peak_memory(cfg: CfgNode) -> float | None:
    """Return the MiB allocated on the GPU, or resident in this process on the CPU; None where nothing measures it."""
    if cfg.USE_CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return None
    # the peak of the whole process: a later run in it reports at least the peak of an earlier one
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def git_revision(classes: Iterable[type] = ()) -> str | None:
    """Return the commit of this code, with "+" if other code ran; None outside a repository.

    Other code ran if a tracked file has changed, or if an untracked file was imported. All trainers and data sets are
    imported. Of the files that register them, those of `classes` and of their parents alone count.

    Args:
        classes: of the trainer and of the data set.
    """

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], cwd=ROOT, stderr=subprocess.DEVNULL, text=True).strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("--no-optional-locks", "status", "--porcelain", "-uno")
        untracked = {str(ROOT / name) for name in git("ls-files", "-z", "-o", "--exclude-standard").split("\0")}
    except (OSError, subprocess.CalledProcessError):
        return None
    used = {base.__module__ for cls in classes for base in cls.__mro__}
    registries = (TRAINER_REGISTRY, DATASET_REGISTRY)
    registered = {registry.get(name).__module__ for registry in registries for name in registry.registered_names()}
    files = {getattr(sys.modules[name], "__file__", None) for name in sys.modules.keys() - (registered - used)}
    return f"{commit}+" if changed or untracked & files else commit
