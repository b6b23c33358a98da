"""The model of a trainer that does not build its own: a backbone with a linear classifier."""

import torch.nn as nn

from dassl.modeling import build_backbone, build_head


class SimpleNet(nn.Module):
    """backbone -> optional head -> linear classifier.

    Args:
        cfg: config; VERBOSE prints the names of backbone and head.
        model_cfg: `cfg.MODEL`; BACKBONE.NAME is one of `BACKBONE_REGISTRY`, e.g. resnet18.
        num_classes: outputs; 0: no classifier.
        **kwargs: further arguments of the backbone and the head.

    Raises:
        ValueError: there is no backbone or head of that name.
    """

    def __init__(self, cfg, model_cfg, num_classes, **kwargs):
        super().__init__()
        backbone, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(backbone.NAME, verbose=cfg.VERBOSE, pretrained=backbone.PRETRAINED, **kwargs)
        self._fdim = self.backbone.out_features
        self.head = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                verbose=cfg.VERBOSE,
                in_features=self._fdim,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
                **kwargs,
            )
            self._fdim = self.head.out_features
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self):
        """Width of the features before the classifier."""
        return self._fdim

    def forward(self, x, return_feature=False):
        """Return the logits [B, num_classes] of float [B, 3, H, W]; `return_feature` adds the features [B, fdim]."""
        f = self.backbone(x)
        if self.head is not None:
            f = self.head(f)
        if self.classifier is None:
            return f
        y = self.classifier(f)
        return (y, f) if return_feature else y
