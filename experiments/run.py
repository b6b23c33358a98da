"""One run: it trains or evaluates in its output directory, and its `results.json` says how, on what and how well."""

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
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.files import protected, sealed_config, sweep, visible
from dassl.utils import atomic_write, collect_env_info, locked, set_random_seed, setup_logger, write_json
from datasets.base import DrawnDataset
from trainers.shared.strength import AUTO

from . import calibrate, own_images
from .chosen import choose_strength
from .command import GOES_ON, USER_ERRORS, command
from .config import CLASSES, CONFIGS, default_cfg, is_foreign, owner_of, plain, read_run, setup_cfg, strength_key
from .flags import parse
from .seen import SEEN, keep_seen

ROOT = CONFIGS.parent
VERSIONS = (torch, np, torchvision, dassl)
# Settings that may differ between a run and its continuation: they do not change what is trained
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
    """Do what train.py does where PyTorch is imported already; return its exit status. The pictures as in `run`."""

    def work() -> None:
        run(parse(argv), draw, draw_confusion)

    return command(work, GOES_ON)


def run(
    args: argparse.Namespace,
    draw: own_images.ContactSheet | None = None,
    draw_confusion: own_images.ConfusionPicture | None = None,
) -> dict:
    """Do one training or evaluation; return what `results.json` holds.

    Everything printed also goes to `log.txt` in the output directory.

    Args:
        args: of `parse`.
        draw: for a picture of those own images that are wrong.
        draw_confusion: for a picture of the classes of own images that are taken for others.
    """
    with distributed.processes():
        return run_here(args, draw, draw_confusion)


def run_here(
    args: argparse.Namespace, draw: own_images.ContactSheet | None, draw_confusion: own_images.ConfusionPicture | None
) -> dict:
    """Do what `run` does in one process; of several only the first one writes, and the others return nothing."""
    cfg = setup_cfg(args)
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
            if not isinstance(error, USER_ERRORS):  # a bug, whose log says of which config
                tell_config(cfg)
            raise
        if cfg.DATASET.NAME == "Images" and not args.eval_only:
            own_images.tell_before_training(cfg, trainer.dm.dataset.classnames)
        if args.no_train and not args.eval_only:
            tell_config(cfg)
            return {}
        start = time.time()
        if args.eval_only:
            trainer.chosen = choice
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
            tell_config(cfg)
            trainer.evaluator.temperature = calibrate.temperature_of(trainer, args.model_dir, args.load_epoch)
            trainer.test()
        else:
            tell_config(cfg)
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


# ------------------------------------------------------------------ what it must not mix up


def check_model_dir(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Raises ValueError if the model is of another trainer, backbone or method setting.

    A template or a class-token position that differs would fit the checkpoint and give a wrong accuracy. A model of
    another code base, which has no config.yaml, is checked when its checkpoint is loaded.
    """
    if args.model_dir and not osp.isdir(args.model_dir):
        raise FileNotFoundError(f"there is no {args.model_dir}: give the --output-dir of a training as --model-dir")
    different = []
    for key, now in plain(cfg).items():
        was = args.model_config.get(key, now)
        matters = key == "MODEL.BACKBONE.NAME" or key.startswith("TRAINER.")
        if matters and not key.endswith(TRAINING_ONLY) and was != now:
            different.append(f'{key} "{was}", not "{now}"')
    if different:
        wrong = f"the model in {args.model_dir} was trained with {', '.join(different)}"
        raise ValueError(f"{wrong}: give the same here, or another --model-dir")


def check_inside(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Raises ValueError if the model's directory, which may come from anybody, would have this run write elsewhere."""
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
    """Return DATASET.ROOT if only the model's directory names it, which may come from anybody; else ""."""
    root = cfg.DATASET.ROOT
    by_user = args.root or "DATASET.ROOT" in args.opts[::2] or root == default_cfg(args.trainer).DATASET.ROOT
    return "" if by_user or args.model_config.get("DATASET.ROOT") != root else root


def protect_data(cfg: CfgNode, args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Return a context in which nothing is written into a `foreign_root`, but for the directories of the runs."""
    root = foreign_root(cfg, args) if args.eval_only else ""
    if not root:
        return contextlib.nullcontext()
    return protected(root, but=[folder for folder in (cfg.OUTPUT_DIR, args.model_dir) if folder])


def check_no_training(cfg: CfgNode) -> None:
    """Raises ValueError if the output directory holds a training."""
    if glob.glob(osp.join(glob.escape(cfg.OUTPUT_DIR), "*", "model*.pth.tar*")):
        raise ValueError(f"{cfg.OUTPUT_DIR} holds a training run and its results: choose another --output-dir")


def check_same_strength(cfg: CfgNode) -> None:
    """Raises ValueError if the output directory holds results of the same method at another strength."""
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path) or not osp.exists(osp.join(cfg.OUTPUT_DIR, "results.json")):
        return
    old, new = read_run(path), plain(cfg)
    for key in (key for key in old.keys() & new.keys() if key.endswith(".STRENGTH")):
        if old[key] != new[key]:
            wrong = f"{cfg.OUTPUT_DIR} holds results with {key} {old[key]}, not {new[key]}"
            raise ValueError(f"{wrong}: choose another --output-dir, or remove that one")


def check_same_run(cfg: CfgNode, may_differ: tuple[str, ...] = MAY_DIFFER) -> None:
    """Raises ValueError if the output directory holds a run with other settings, which it would be mixed up with."""
    different = differences(cfg, may_differ)
    if different:
        wrong = f"{cfg.OUTPUT_DIR} holds a run with {', '.join(different)}"
        raise ValueError(f"{wrong}: choose another --output-dir, or remove that one")


def differences(cfg: CfgNode, may_differ: tuple[str, ...] = MAY_DIFFER) -> list[str]:
    """Return "KEY value, not value" for each setting of the run in the output directory that is another in `cfg`."""
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path):
        return []
    old, new, default = (read_run(path), plain(cfg), plain(default_cfg(cfg.TRAINER.NAME)))  # older runs lack newer keys
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, now = (config.get(key, default.get(key)) for config in (old, new))
        if not key.startswith(may_differ) and was != now:
            lines.append(f"{key} {worded(was)}, not {worded(now)}")
    return lines


def worded(value: object) -> str:
    return '""' if value == "" else str(value)


def check_processes(cfg: CfgNode) -> None:
    """Raises ValueError if there are more processes than GPUs, or the trainer would not share batches between them."""
    distributed.check_devices(cfg.USE_CUDA)
    if distributed.size() > 1 and is_foreign(cfg.TRAINER.NAME):
        raise ValueError(f"{cfg.TRAINER.NAME} is written for one process: start it without torchrun")


@contextlib.contextmanager
def logged(folder: str):
    """Keeps other runs out of `folder` and copies what is printed to its log.txt, where an error leaves its trace."""
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
                    log.file.write(visible(traceback.format_exc(), keep="\n"))  # the console may get one line only
                    log.file.flush()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(f"{error}: make room, and the same command goes on") from error
            raise


# ------------------------------------------------------------------ its trainer, its description


def build(cfg: CfgNode, args: argparse.Namespace):
    """The trainer, after seeding; leaves `config.yaml` and the class names in the output directory."""
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
    # only now: a run that could not be built leaves nothing that a later one would be compared with
    write_json(trainer.dm.dataset.classnames, osp.join(cfg.OUTPUT_DIR, CLASSES))  # for predict.py
    if cfg.DATASET.NAME == "Images" and not args.eval_only and learns(trainer):
        by_val = cfg.TEST.FINAL_MODEL == "best_val" or plain(cfg).get(strength_key(cfg.TRAINER.NAME)) == AUTO
        keep_seen(cfg.OUTPUT_DIR, trainer.dm.dataset.train_x, trainer.dm.dataset.val if by_val else [])
    content = sealed_config(cfg.dump(), cfg.OUTPUT_DIR, [CLASSES, "split.json", SEEN])
    with atomic_write(osp.join(cfg.OUTPUT_DIR, "config.yaml")) as f:
        f.write(content)
    return trainer


def tell_defaults(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Print the training that a method without a YAML file gets."""
    trainer = cfg.TRAINER.NAME
    if not (args.config_file or is_foreign(trainer) or owner_of("tiny", trainer)):
        optim = f"OPTIM.NAME {cfg.OPTIM.NAME}, OPTIM.LR {cfg.OPTIM.LR:g}, OPTIM.MAX_EPOCH {cfg.OPTIM.MAX_EPOCH}"
        print(f"{trainer} has no configs/trainers/{trainer}/tiny.yaml: it runs with the defaults, {optim}")


def tell_config(cfg: CfgNode) -> None:
    """Print config and system, about 100 lines: not before it is known that they can be run."""
    if cfg.VERBOSE:
        print(f"** Config **\n{cfg}\n** System info **\n{collect_env_info()}\n")


def learns(trainer) -> bool:
    """Whether it has a learner, be it one without parameters; a trainer written for Dassl: a registered model."""
    learner = getattr(trainer, "learner", None)
    return bool(trainer._models) if learner is None else bool(learner)


def describe(trainer, cfg: CfgNode, args: argparse.Namespace, seconds: float) -> dict:
    """What `results.json` holds: all that tells what this figure is of, without any other file."""
    config, model_config = plain(cfg), args.model_config if args.eval_only else None
    trained_config = (model_config if args.eval_only else config) if learns(trainer) else None

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
        # an evaluation on other classes or data is never mistaken for a training there
        "trained_on": data_of(trained_config) if trained_config else None,
        **trainer.results,
        **getattr(trainer, "facts", dict)(),  # of the method's own
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
    """Return the rate that a training had, without warm-up and decay: of several optimizers the first one's."""
    schedules = [schedule for schedule in trainer._scheds.values() if schedule is not None]
    return schedules[0].base_lrs[0] if schedules else None


def peak_memory(cfg: CfgNode) -> float | None:
    """Return the MiB allocated on the GPU, or resident in this process on the CPU; None where nothing measures it."""
    if cfg.USE_CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return None
    # the highest of the process so far: of several runs in one process the later ones report at least the earlier's
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def git_revision(classes: Iterable[type] = ()) -> str | None:
    """Return the commit of this code, with "+" if it is not what ran; None outside a repository.

    So it is if a tracked file was changed since, or if a file that git does not track was imported. All trainers and
    data sets are imported: of files that register some, only those of `classes` and of what they extend count.

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
