"""Zero-shot CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

ZeroshotCLIP    g(c) = text(template with c), by the data set's hand-crafted template
ZeroshotCLIP2   g(c) = the normalised mean of these over the same template and 7 of CLIP's 80 templates, or all 80
"""

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.keys import TEMPLATE, Key
from .shared.prompts import template_for
from .shared.templates import ENSEMBLES


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(ClipTrainer):
    """Zero-shot CLIP with one hand-crafted prompt per class."""

    defaults = ClipTrainer.defaults | {
        "TEMPLATE": TEMPLATE  # "" = the data set's template, see trainers/shared/templates.py
    }

    def templates(self) -> list[str]:
        return [template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)]

    def build_classifier(self, clip_model, classnames):
        return ClipClassifier(clip_model, classnames, self.templates())


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Zero-shot CLIP with prompt ensembling."""

    defaults = ZeroshotCLIP.defaults | {
        "TEMPLATES": Key("select", choices=list(ENSEMBLES))  # templates of CLIP: select = 7, all = 80
    }

    def templates(self) -> list[str]:
        templates, ensemble = ENSEMBLES[self.node.TEMPLATES], super().templates()
        if self.cfg.DATASET.NAME == "ImageNet" and not self.node.TEMPLATE:  # CLIP's templates were made for ImageNet
            return templates
        return templates + [template for template in ensemble if template not in templates]
