"""CuPL, customized prompts by a language model.

Pratt et al. 2023, "What does a platypus look like? Generating customized prompts for zero-shot image classification",
ICCV; github.com/sarahpratt/CuPL. Sentences t_1 ... t_K about each class c come from a file {class: [sentence, ...]}:

    g_c = u / |u|,   u = 1/K sum_k g(t_k) / |g(t_k)|
    z   = s f(x) g^T

With TEMPLATES, the prompts of templates are additional sentences of each class. All sentences have the same weight.
"""

from functools import cached_property

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.descriptions import read_descriptions
from .shared.keys import DESCRIPTIONS, Key
from .shared.prompts import template_for
from .shared.templates import ENSEMBLES


class DescribedCLIP(ClipClassifier):
    """Zero-shot CLIP with the mean over the sentences of a class, which include the prompts of `templates`."""

    @cached_property
    def sentences(self):
        sentences = read_descriptions(self.description_file, self.classnames)
        return [prompts + texts for prompts, texts in zip(super().prompts(), sentences, strict=True)]

    def prompts(self):
        return self.sentences


@TRAINER_REGISTRY.register()
class CuPL(ClipTrainer):
    """Customized prompts by a language model."""

    defaults = ClipTrainer.defaults | {
        **DESCRIPTIONS,
        # none = the sentences alone; one = and the data set's template; select, all = and 7 or 80 templates of CLIP
        "TEMPLATES": Key("none", choices=["none", "one", *ENSEMBLES]),
    }

    def check_node(self, node):
        super().check_node(node)
        if not node.DESCRIPTIONS:
            raise ValueError(
                f"CuPL needs sentences about the classes: give --descriptions FILE ({self.key('DESCRIPTIONS')})"
            )

    def build_classifier(self, clip_model, classnames):
        templates = {"none": [], "one": [template_for(self.cfg.DATASET.NAME)]} | ENSEMBLES
        model = DescribedCLIP(clip_model, classnames, templates[self.node.TEMPLATES], self.node.DESCRIPTIONS)
        model.sentences  # noqa: B018  a wrong file is an error now
        return model
