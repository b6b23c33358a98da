"""The model of a trainer that does not build its own: a torchvision ResNet with a linear classifier."""

import torch.nn as nn
import torchvision

from dassl.utils import check_availability

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class SimpleNet(nn.Module):
    """backbone -> optional MLP head -> linear classifier.

    Args:
        cfg: config, unused but part of Dassl's signature.
        model_cfg: `cfg.MODEL`; BACKBONE.NAME is one of torchvision's models with a last layer `fc` (resnet18 ...).
        num_classes: outputs; 0: no classifier.

    Raises:
        ValueError: a backbone that torchvision does not have, or without `fc`.
    """

    def __init__(self, cfg, model_cfg, num_classes, **kwargs):
        super().__init__()
        name = model_cfg.BACKBONE.NAME
        self.backbone = torchvision.models.get_model(name, weights="DEFAULT" if model_cfg.BACKBONE.PRETRAINED else None)
        if not isinstance(getattr(self.backbone, "fc", None), nn.Linear):
            raise ValueError(f'MODEL.BACKBONE.NAME "{name}" has no last layer "fc": choose a ResNet, e.g. resnet18')
        self._fdim = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()

        check_availability(model_cfg.HEAD.ACTIVATION, list(_ACTIVATIONS))
        layers = []
        for width in model_cfg.HEAD.HIDDEN_LAYERS if model_cfg.HEAD.NAME else ():
            layers.append(nn.Linear(self._fdim, width))
            if model_cfg.HEAD.BN:
                layers.append(nn.BatchNorm1d(width))
            layers.append(_ACTIVATIONS[model_cfg.HEAD.ACTIVATION]())
            if model_cfg.HEAD.DROPOUT > 0:
                layers.append(nn.Dropout(model_cfg.HEAD.DROPOUT))
            self._fdim = width
        self.head = nn.Sequential(*layers) if layers else None
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self):
        """Width of the features before the classifier."""
        return self._fdim

    def forward(self, x, return_feature=False):
        """float [B, 3, H, W] -> logits [B, num_classes], with `return_feature` also the features [B, fdim]."""
        f = self.backbone(x)
        if self.head is not None:
            f = self.head(f)
        if self.classifier is None:
            return f
        y = self.classifier(f)
        return (y, f) if return_feature else y
