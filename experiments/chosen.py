"""The strength "auto" for a model that was trained with another: chosen now, by the val images of its own training."""

import argparse
import contextlib
import io
import os.path as osp
from collections.abc import Callable

from yacs.config import CfgNode

from dassl.config import flatten
from dassl.distributed import is_first
from dassl.engine import build_trainer
from trainers.shared.strength import AUTO, read_choice, write_choice

from .config import setup_cfg, strength_key
from .flags import parse


def chosen(cfg: CfgNode, args: argparse.Namespace, check: Callable) -> dict | None:
    """What `strength.json` would hold; None: it is there already, or this evaluation needs none.

    It is kept beside a finished training, for what comes.

    Args:
        check: of the config of the training, before its data are built; raises ValueError.

    Raises:
        ValueError: the val images of the training cannot be had.
    """
    key = strength_key(args.trainer)
    wanted = args.eval_only and args.model_dir and key and flatten(cfg)[key] == AUTO
    if not wanted or read_choice(args.model_dir, args.load_epoch):
        return None
    trainer = as_trained(cfg, args, check)
    print("The strength is chosen by the val images of the training")
    made = trainer.choose(args.load_epoch)
    if args.load_epoch is None and is_first() and osp.exists(osp.join(args.model_dir, "results.json")):
        with contextlib.suppress(OSError):  # a folder that may only be read: it is chosen again next time
            write_choice(made, args.model_dir)
    return made


def as_trained(cfg: CfgNode, args: argparse.Namespace, check: Callable):
    """A trainer with the model, on the data set and the classes of its training."""
    root = cfg.DATASET.ROOT
    argv = ["--eval-only", "--model-dir", args.model_dir, "--trainer", args.trainer, "--strength", "1"]
    argv += ["--root", root] if root != args.model_config.get("DATASET.ROOT") else []
    argv += ["VERBOSE", "False", "TEST.SPLIT", "val", "USE_CUDA", str(cfg.USE_CUDA)]
    try:
        if not args.model_config:
            raise ValueError("it has no config.yaml")
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = parse(argv)
            as_then = setup_cfg(theirs)
            check(as_then, theirs)
            trainer = build_trainer(as_then)
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
        if trainer.val_loader is None:
            raise ValueError(f"{trainer.cfg.DATASET.NAME} has none")
    except (ValueError, OSError) as error:
        why = f'the val images of the training in {args.model_dir}, by which the strength "auto" is chosen'
        raise ValueError(f"{why}, cannot be had ({error}): give a number, for example --strength 0.5") from error
    return trainer
