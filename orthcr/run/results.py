"""The content of a run's `results.json`."""

import os.path as osp
import platform
import subprocess
import sys
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
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure import distributed

from .config_files import CONFIGS
from .declarations import config_values
from .spec import RunSpec

ROOT = CONFIGS.parent
VERSIONS = (torch, np, torchvision, dassl)


def learns(trainer) -> bool:
    """Return whether a trainer has a learner, with or without parameters; for a foreign one, a registered model."""
    learner = getattr(trainer, "learner", None)
    return bool(trainer._models) if learner is None else bool(learner)


def describe(trainer, cfg: CfgNode, spec: RunSpec, model_config: dict, seconds: float) -> dict:
    """Return the content of `results.json`. It needs no other file to identify the accuracy.

    Args:
        trainer: after training or test.
        cfg: of the run.
        spec: the run.
        model_config: of the model that is evaluated; {} in a training.
        seconds: duration of the run.
    """
    config, trained_config = config_values(cfg), None
    if learns(trainer):
        trained_config = model_config if spec.eval_only else config

    def data_of(config: dict) -> dict:
        names = "DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "SEED", "DATASET.NUM_SHOTS"
        return dict(zip(("dataset", "classes", "seed", "shots"), map(config.get, names), strict=True))

    tensors = (p for model in trainer._models.values() for p in model.parameters())
    return {
        "trainer": cfg.TRAINER.NAME,
        **data_of(config),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "eval_only": spec.eval_only,
        "model_dir": osp.abspath(spec.model_dir) if spec.model_dir else None,
        "trained": learns(trainer),  # False: zero-shot
        # with this, an evaluation on other classes or data is not mistaken for a training on them
        "trained_on": data_of(trained_config) if trained_config else None,
        **trainer.results,
        **adaptation_of(trainer),
        **getattr(trainer, "facts", dict)(),  # entries of the method itself
        "trainable_params": sum(p.numel() for p in tensors if p.requires_grad),
        "learning_rate": None if spec.eval_only else learning_rate(trainer),  # the highest of the schedule
        "seconds": seconds if spec.eval_only else getattr(trainer, "train_seconds", seconds),
        "peak_memory_mib": peak_memory(cfg),  # of the first process
        "processes": distributed.size(),
        "device": torch.cuda.get_device_name() if cfg.USE_CUDA else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version()} | {m.__name__: m.__version__ for m in VERSIONS},
        "git_revision": git_revision([type(trainer), type(trainer.dm.dataset)]),
        "config": config,
        # of the model that is evaluated; empty if it is of another code base
        "model_config": model_config if spec.eval_only else None,
    }


def adaptation_of(trainer) -> dict:
    """Return {"adapts": True} for a method that adapts at test time, so that its seed matters without a training."""
    return {"adapts": True} if getattr(trainer, "adaptation", "") else {}


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
