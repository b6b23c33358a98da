"""The strength "auto" in an evaluation: it is selected on the val images of the model's training."""

import contextlib
import os.path as osp
from dataclasses import replace

from yacs.config import CfgNode

from dassl.config import flatten
from dassl.infrastructure.console import silence
from dassl.infrastructure.distributed import is_first
from trainers.shared.strength import AUTO, read_selection, write_selection

from .declarations import strength_key
from .spec import RunSpec
from .trained import load_trained


def select_strength(cfg: CfgNode, spec: RunSpec, model_config: dict) -> dict | None:
    """Select a strength on the val images of the training; return the content of `strength.json`.

    If the training is finished, the file is written beside the model, and later evaluations read it.

    Args:
        cfg: config of the evaluation.
        spec: the evaluation.
        model_config: config of the model.

    Returns:
        The content, or None if the file exists already or the strength of this evaluation is not "auto".

    Raises:
        ValueError: the val images of the training are not available.
    """
    key = strength_key(cfg.TRAINER.NAME)
    needs_selection = spec.model_dir and key and flatten(cfg)[key] == AUTO
    if not needs_selection or read_selection(spec.model_dir, spec.load_epoch):
        return None
    trainer = load_with_val(cfg, spec, model_config)
    print("The strength is selected on the val images of the training")
    selection = trainer.select_strength(spec.load_epoch)
    if spec.load_epoch is None and is_first() and osp.exists(osp.join(spec.model_dir, "results.json")):
        with contextlib.suppress(OSError):  # the folder may be read-only: the next evaluation selects again
            write_selection(selection, spec.model_dir)
    return selection


def load_with_val(cfg: CfgNode, spec: RunSpec, model_config: dict):
    """Return a trainer with the model, and the val images and the classes of its training."""
    training = RunSpec(
        trainer=cfg.TRAINER.NAME,
        eval_only=True,
        model_dir=spec.model_dir,
        load_epoch=spec.load_epoch,
        strength="1",
        split="val",
        opts=("VERBOSE", "False", "USE_CUDA", str(cfg.USE_CUDA)),
    )
    if cfg.DATASET.ROOT != model_config.get("DATASET.ROOT"):
        training = replace(training, root=cfg.DATASET.ROOT)
    try:
        with silence():
            trainer = load_trained(training)
        if trainer.val_loader is None:
            raise ValueError(f"{trainer.cfg.DATASET.NAME} has none")
    except (ValueError, OSError) as error:
        images = f'the val images of the training in {spec.model_dir}, which the strength "auto" is selected on'
        raise ValueError(f"{images}, are not available ({error}): give a number, as --strength 0.5") from error
    return trainer
