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


def has_learner(trainer) -> bool:
    """Return whether a trainer has a learner, with or without parameters; for one written for Dassl, a model."""
    learner = getattr(trainer, "learner", None)
    return bool(trainer._models) if learner is None else bool(learner)


def describe(trainer, cfg: CfgNode, spec: RunSpec, model_config: dict, seconds: float) -> dict:
    """Return the content of `results.json`, which describes everything that the accuracy depends on.

    Args:
        trainer: trainer after training or test.
        cfg: config of the run.
        spec: the run.
        model_config: config of the model that is evaluated; {} in a training.
        seconds: duration of the run.
    """
    config, trained_config = config_values(cfg), None
    if has_learner(trainer):
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
        "trained": has_learner(trainer),  # False: zero-shot
        # data of the training; an evaluation may be on other classes or data
        "trained_on": data_of(trained_config) if trained_config else None,
        **trainer.results,
        **adaptation_of(trainer),
        **getattr(trainer, "facts", dict)(),  # entries that the method adds
        "trainable_params": sum(p.numel() for p in tensors if p.requires_grad),
        "learning_rate": None if spec.eval_only else learning_rate(trainer),  # highest rate of the schedule
        "seconds": seconds if spec.eval_only else getattr(trainer, "train_seconds", seconds),
        "peak_memory_mib": peak_memory(cfg),  # of the first process only
        "processes": distributed.size(),
        "device": torch.cuda.get_device_name() if cfg.USE_CUDA else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version()} | {m.__name__: m.__version__ for m in VERSIONS},
        "git_revision": git_revision([type(trainer), type(trainer.dm.dataset)]),
        "config": config,
        # config of the evaluated model; {} if it is of another code base
        "model_config": model_config if spec.eval_only else None,
    }


def adaptation_of(trainer) -> dict:
    """Return {"adapts": True} for a method that adapts at test time; its results depend on the seed, else {}."""
    return {"adapts": True} if getattr(trainer, "adaptation", "") else {}


def learning_rate(trainer) -> float | None:
    """Return the learning rate of a training before warm-up and decay; the first of several optimizers counts."""
    schedules = [schedule for schedule in trainer._scheds.values() if schedule is not None]
    return schedules[0].base_lrs[0] if schedules else None


def peak_memory(cfg: CfgNode) -> float | None:
    """Return the peak memory in MiB: allocated on the GPU, or resident on the CPU; None if it cannot be measured."""
    if cfg.USE_CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return None
    # the peak of the whole process: a later run in the same process reports at least the peak of an earlier one
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def git_revision(classes: Iterable[type] = ()) -> str | None:
    """Return the commit of this code, with "+" if the code that ran differs from it; None outside a repository.

    The code differs if a tracked file has changed, or if an untracked file was imported. An untracked file that
    registers a trainer or a data set counts only if it defines one of `classes` or their parents, because all such
    files are imported.

    Args:
        classes: classes of the trainer and of the data set.
    """

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], cwd=ROOT, stderr=subprocess.DEVNULL, text=True).strip()

    try:
        commit = git("rev-parse", "HEAD")
        changes = git("--no-optional-locks", "status", "--porcelain", "-uno")
        untracked_files = {str(ROOT / name) for name in git("ls-files", "-z", "-o", "--exclude-standard").split("\0")}
    except (OSError, subprocess.CalledProcessError):
        return None
    used_modules = {base.__module__ for cls in classes for base in cls.__mro__}
    registries = (TRAINER_REGISTRY, DATASET_REGISTRY)
    registered = {registry.get(name).__module__ for registry in registries for name in registry.registered_names()}
    names = sys.modules.keys() - (registered - used_modules)
    files = {getattr(sys.modules[name], "__file__", None) for name in names}
    return f"{commit}+" if changes or untracked_files & files else commit
