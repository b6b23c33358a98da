"""The registry of trainers."""

from dassl.absent import check_registered
from dassl.infrastructure.console import say
from dassl.utils import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg):
    """Build the trainer `cfg.TRAINER.NAME`.

    Raises:
        ValueError: no trainer of that name is registered.
    """
    check_registered(cfg.TRAINER.NAME, TRAINER_REGISTRY, "dassl.engine")
    if cfg.VERBOSE:
        say(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
