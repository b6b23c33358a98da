"""The plan of a run for `train.py --print-config`: config, learning rate, epochs and steps. No weights are loaded."""

import contextlib
import os.path as osp
import sys
from types import SimpleNamespace

from torch import nn
from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure.command import one_line
from dassl.infrastructure.files import protected, visible
from trainers.base import node_of

from .declarations import is_foreign


def print_plan(cfg: CfgNode, eval_only: bool) -> None:
    """Print the config as YAML, with learning rate, epochs and steps as comments. The output is a valid config file."""
    with contextlib.redirect_stdout(sys.stderr):  # messages about the data set
        lines = {} if eval_only else plan_of(cfg)
    if not lines:
        lines = {"training": "none, this is an evaluation" if eval_only else f"none, {cfg.TRAINER.NAME} has no learner"}
    print(visible(cfg.dump(), keep="\n"), end="")
    for name, line in lines.items():
        print(f"# {name + ':':<14} {visible(line)}")


def plan_of(cfg: CfgNode) -> dict[str, str]:
    """Return the learning rate, the epochs and the steps of a training; {} if the method has no learner."""
    method = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if is_foreign(cfg.TRAINER.NAME):
        steps = f"unknown: {cfg.TRAINER.NAME} is written for Dassl and may have its own training loop"
        return {"learning rate": format_rates(cfg.OPTIM), "epochs": str(cfg.OPTIM.MAX_EPOCH), "steps": steps}
    if not method.learner:
        return {}
    reason = missing_data(cfg)
    if not reason:
        try:
            with protected(osp.abspath(cfg.DATASET.ROOT)):
                trainer = class_without_model(method)(cfg)
        except FileNotFoundError as error:
            reason = one_line(error)
    plan = plan_without_data(cfg, method, reason) if reason else plan_with_data(trainer)
    return plan | method.plan


def plan_with_data(trainer) -> dict[str, str]:
    """Return the plan of a trainer whose data are loaded."""
    epochs, batches, images = trainer.max_epoch, len(trainer.train_loader_x), len(trainer.dm.dataset.train_x)
    size = trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    steps = f"{epochs * batches:,} = {epochs:,} epochs x {batches:,} batches ({images:,} images, {size} a batch)"
    return {"learning rate": format_rates(trainer.optim_cfg()), "epochs": f"{epochs:,}", "steps": steps}


def plan_without_data(cfg: CfgNode, method: type, reason: str) -> dict[str, str]:
    """Return a plan without the entries that depend on the number of training images.

    Args:
        cfg: config of the run.
        method: class of the trainer.
        reason: reason for the unknown number of images.
    """
    node = cfg.TRAINER[node_of(method)]
    rate, epochs = format_rates(cfg.OPTIM), f"{cfg.OPTIM.MAX_EPOCH:,}"
    if node.get("REACH"):
        rate = f"unknown: REACH {node.REACH:g} / sqrt(steps)"
    if node.get("N_ITERS"):
        total = node.N_ITERS * max(cfg.DATASET.NUM_SHOTS, 1)
        epochs = f"unknown: {total:,} steps, rounded to whole epochs"
    steps = f"unknown without the number of training images: {reason}"
    return {"learning rate": rate, "epochs": epochs, "steps": steps}


def format_rates(optim: CfgNode) -> str:
    """Return the learning rate of an OPTIM node as text; with STAGED_LR both rates."""
    if optim.STAGED_LR:
        return f"{optim.LR:g}, and {optim.LR * optim.BASE_LR_MULT:g} for tensors that are not in OPTIM.NEW_LAYERS"
    return f"{optim.LR:g}"


def missing_data(cfg: CfgNode) -> str:
    """Return a reason if the training images cannot be counted without drawing them first; else ""."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not getattr(dataset, "is_drawn", False):
        return ""
    path = osp.join(cfg.DATASET.ROOT, dataset.dataset_dir, dataset.split_file)
    return "" if osp.exists(path) else f"{cfg.DATASET.NAME} is not drawn yet in {cfg.DATASET.ROOT}"


def class_without_model(trainer: type) -> type:
    """Return a subclass of the trainer that loads its data but no CLIP."""

    def build_model(self):
        self.model = SimpleNamespace(learner=nn.Module())  # an `optim_cfg` may look for layers by name

    return type(trainer.__name__, (trainer,), {"build_model": build_model})
