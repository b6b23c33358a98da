"""Trainers: the loop, the registry, checkpoints and evaluation."""

from .build import TRAINER_REGISTRY, build_trainer
from .simple_net import SimpleNet
from .trainer import SimpleTrainer, TrainerBase, TrainerX, TrainerXU
