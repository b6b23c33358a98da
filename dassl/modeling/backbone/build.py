"""The registry of backbones."""

import torch.nn as nn

from dassl.absent import check_registered
from dassl.infrastructure.console import say
from dassl.utils import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module):
    """Base class of backbones. A subclass sets `_out_features`, the width of its features."""

    _out_features = None

    @property
    def out_features(self):
        """Width of the features, None if the backbone does not say."""
        return self._out_features


def build_backbone(name, verbose=True, **kwargs):
    """Build the registered backbone `name`; `kwargs` are its own, e.g. `pretrained`.

    Raises:
        ValueError: there is none of that name.
    """
    check_registered(name, BACKBONE_REGISTRY, "dassl.modeling.backbone")
    if verbose:
        say(f"Backbone: {name}")
    return BACKBONE_REGISTRY.get(name)(**kwargs)
