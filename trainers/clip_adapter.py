"""CLIP-Adapter (Gao et al. 2021, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters").

A bottleneck A on the frozen image feature f, which is not normalised. The text side is that of zero-shot CLIP:

    A(f) = relu(W2 relu(W1 f)),   W1 [d / 4, d], W2 [d, d / 4], no biases
    f'   = ratio A(f) + (1 - ratio) f
    L    = CE(s cos(f', g), y)
"""

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import PRECISIONS, ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import TEMPLATE, Key
from .shared.prompts import template_for


class Adapter(nn.Module):
    """The bottleneck A, float [..., d] -> [..., d], with the names of the original."""

    def __init__(self, d: int, reduction: int):
        super().__init__()
        down, up = nn.Linear(d, d // reduction, bias=False), nn.Linear(d // reduction, d, bias=False)
        self.fc = nn.Sequential(down, nn.ReLU(), up, nn.ReLU())

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        return self.fc(f)


class AdapterCLIP(ClipClassifier):
    takes_features = True

    def __init__(self, node, clip_model, classnames: list[str], template: str):
        super().__init__(clip_model, classnames, [template])
        self.adapter, self.ratio = Adapter(clip_model.text_projection.shape[1], node.REDUCTION), node.RATIO

    def encode_image(self, image):
        f = self.frozen_features(image)
        return normalize(self.ratio * self.adapter(f) + (1 - self.ratio) * f)


@TRAINER_REGISTRY.register()
class CLIP_Adapter(ClipTrainer):  # noqa: N801  the original's name
    """A bottleneck adapter on the image features."""

    defaults = ClipTrainer.defaults | {
        "RATIO": Key(0.2, low=0, high=1),  # weight of A(f) in f'; 0 = zero-shot CLIP
        "REDUCTION": Key(4, low=1),  # d divided by the width of the bottleneck
        "TEMPLATE": TEMPLATE,  # "" = the data set's template
        "PREC": Key("fp32", choices=PRECISIONS),  # the original has fp32 only
    }
    learner, registered = "adapter", "clip_adapter"

    def build_classifier(self, clip_model, classnames):
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return AdapterCLIP(self.node, clip_model, classnames, template)
