"""Zero-shot CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

g(c) = text(template with c)                       ZeroshotCLIP: the data set's hand-crafted template
g(c) = normalised mean over templates of the same  ZeroshotCLIP2: 7 of CLIP's 80 templates, or all, and that one
"""

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.keys import TEMPLATE, Key
from .shared.prompts import template_for
from .shared.templates import IMAGENET_TEMPLATES, IMAGENET_TEMPLATES_SELECT

TEMPLATES = {"select": IMAGENET_TEMPLATES_SELECT, "all": IMAGENET_TEMPLATES}


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(ClipTrainer):
    """CLIP as it is, with one hand-crafted prompt a class."""

    defaults = ClipTrainer.defaults | {
        "TEMPLATE": TEMPLATE  # "" = the data set's own, see trainers/shared/templates.py
    }

    def templates(self) -> list[str]:
        return [template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)]

    def build_classifier(self, clip_model, classnames):
        return ClipClassifier(clip_model, classnames, self.templates())


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """CLIP as it is, with prompt ensembling."""

    defaults = ZeroshotCLIP.defaults | {
        "TEMPLATES": Key("select", choices=list(TEMPLATES))  # of CLIP: select = 7, all = 80
    }

    def templates(self) -> list[str]:
        clips, own = TEMPLATES[self.node.TEMPLATES], super().templates()
        if self.cfg.DATASET.NAME == "ImageNet" and not self.node.TEMPLATE:  # for which CLIP's were made
            return clips
        return clips + [template for template in own if template not in clips]
