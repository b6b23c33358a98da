"""Trainers: the loop, the registry, checkpoints and evaluation."""

from dassl.absent import absent_names

from .build import TRAINER_REGISTRY, build_trainer
from .simple_net import SimpleNet
from .trainer import SimpleTrainer, TrainerBase, TrainerX, TrainerXU

__getattr__ = absent_names("dassl.engine")
