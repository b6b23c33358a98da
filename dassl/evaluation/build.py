"""Evaluators by name."""

from dassl.infrastructure.console import say
from dassl.utils import Registry, check_availability

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, lab2cname=None, **kwargs):
    """Build the evaluator `cfg.TEST.EVALUATOR`.

    Args:
        cfg (CfgNode): config.
        lab2cname (dict): label (int) to class name (str).
        **kwargs: further arguments of the evaluator.

    Raises:
        ValueError: no evaluator of that name is registered.
    """
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names())
    if cfg.VERBOSE:
        say(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, lab2cname=lab2cname, **kwargs)
