"""The strength "auto" for a model that was trained at another: it is chosen on the val images of that training."""

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


def choose_strength(cfg: CfgNode, args: argparse.Namespace, check: Callable) -> dict | None:
    """Choose a strength on the val images of the training; return the content of `strength.json`.

    Beside a finished training the file is written, so that later evaluations need not choose again.

    Args:
        cfg: of this evaluation.
        args: of `parse`, after `setup_cfg`.
        check: called with config and arguments of the training before its data are built; raises ValueError.

    Returns:
        None if the file is there already, or if this evaluation needs none.

    Raises:
        ValueError: the val images of the training are not available.
    """
    key = strength_key(args.trainer)
    needs_choice = args.eval_only and args.model_dir and key and flatten(cfg)[key] == AUTO
    if not needs_choice or read_choice(args.model_dir, args.load_epoch):
        return None
    trainer = as_trained(cfg, args, check)
    print("The strength is chosen by the val images of the training")
    choice = trainer.choose(args.load_epoch)
    if args.load_epoch is None and is_first() and osp.exists(osp.join(args.model_dir, "results.json")):
        with contextlib.suppress(OSError):  # the folder may be read-only: the next evaluation chooses again
            write_choice(choice, args.model_dir)
    return choice


def as_trained(cfg: CfgNode, args: argparse.Namespace, check: Callable):
    """Return a trainer with the model, on the data set and the classes of its training."""
    root = cfg.DATASET.ROOT
    argv = ["--eval-only", "--model-dir", args.model_dir, "--trainer", args.trainer, "--strength", "1"]
    if root != args.model_config.get("DATASET.ROOT"):
        argv += ["--root", root]
    argv += ["VERBOSE", "False", "TEST.SPLIT", "val", "USE_CUDA", str(cfg.USE_CUDA)]
    try:
        if not args.model_config:
            raise ValueError("it has no config.yaml")
        with contextlib.redirect_stdout(io.StringIO()):
            training_args = parse(argv)
            training_cfg = setup_cfg(training_args)
            check(training_cfg, training_args)
            trainer = build_trainer(training_cfg)
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
        if trainer.val_loader is None:
            raise ValueError(f"{trainer.cfg.DATASET.NAME} has none")
    except (ValueError, OSError) as error:
        images = f'the val images of the training in {args.model_dir}, by which the strength "auto" is chosen'
        raise ValueError(f"{images}, are not available ({error}): give a number, as --strength 0.5") from error
    return trainer
