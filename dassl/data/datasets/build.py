from dassl.absent import check_registered
from dassl.infrastructure.console import say
from dassl.utils import Registry

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    """Build the registered data set named ``cfg.DATASET.NAME``.

    Raises ValueError, with the nearest registered name, if there is none of that name.
    """
    check_registered(cfg.DATASET.NAME, DATASET_REGISTRY, "dassl.data.datasets")
    if cfg.VERBOSE:
        say(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
