"""Zero-shot CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

g(c) = text(template with c)                       ZeroshotCLIP: the data set's hand-crafted template
g(c) = normalised mean over templates of the same  ZeroshotCLIP2: CLIP's 80 templates and that one
"""

import torch

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.classifier import ClipClassifier, normalize
from .shared.templates import IMAGENET_TEMPLATES
from .shared.text import fill_template, template_for, tokenize


class ZeroshotClassifier(ClipClassifier):
    """Class features are the mean over `templates` of unit-length text features."""

    def __init__(self, clip_model, classnames: list[str], templates: list[str]):
        super().__init__(clip_model)
        self.prompts = [fill_template(template, classnames) for template in templates]

    def encode_text(self) -> torch.Tensor:
        total = 0
        for prompts in self.prompts:  # one template at a time: 80 x 1,000 prompts at once would not fit
            total = total + normalize(self.text_encoder(None, tokenize(prompts).to(self.logit_scale.device)))
        return normalize(total)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(ClipTrainer):
    """CLIP as it is, with one hand-crafted prompt a class."""

    defaults = {
        "TEMPLATE": "",  # "" = the data set's own, see trainers/shared/templates.py
        "PREC": "amp",
    }

    def templates(self) -> list[str]:
        return [template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)]

    def build_classifier(self, clip_model, classnames):
        return ZeroshotClassifier(clip_model, classnames, self.templates())


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """CLIP as it is, with prompt ensembling."""

    def templates(self) -> list[str]:
        own = super().templates()
        return IMAGENET_TEMPLATES + [t for t in own if t not in IMAGENET_TEMPLATES]
