"""Zero-shot CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

g(c) = text(template with c)                       ZeroshotCLIP: the data set's hand-crafted template
g(c) = normalised mean over templates of the same  ZeroshotCLIP2: CLIP's 80 templates and that one
"""

from dassl.engine import TRAINER_REGISTRY

from .base import PRECISIONS, ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.keys import TEMPLATE, Key
from .shared.prompts import template_for
from .shared.templates import IMAGENET_TEMPLATES


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(ClipTrainer):
    """CLIP as it is, with one hand-crafted prompt a class."""

    defaults = {
        "TEMPLATE": TEMPLATE,  # "" = the data set's own, see trainers/shared/templates.py
        "PREC": Key("amp", choices=PRECISIONS),
    }

    def templates(self) -> list[str]:
        return [template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)]

    def build_classifier(self, clip_model, classnames):
        return ClipClassifier(clip_model, classnames, self.templates())


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """CLIP as it is, with prompt ensembling."""

    def templates(self) -> list[str]:
        own = super().templates()
        return IMAGENET_TEMPLATES + [t for t in own if t not in IMAGENET_TEMPLATES]
