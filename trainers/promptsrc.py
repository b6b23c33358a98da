"""PromptSRC: the prompts of IVLP (ivlp.py), regularised towards the frozen CLIP.

Khattak et al. 2023, "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV;
github.com/muzairkhattak/PromptSRC.

f_0 and g_0 are the frozen CLIP's features, g_0 a mean over 60 templates, or over the sentences of DESCRIPTIONS. All
features have unit length:

    z = s f g^T,   p_0 = softmax(s f_0 g_0^T)
    L = CE(z, y) + w_t mean|g - g_0| + w_v mean|f - f_0| + w_l mean(p_0 (log p_0 - log softmax(z)))     (1)

Each mean is over all entries. In the last term these are the images and the classes. The final model is an average of
the prompts theta_e at the end of each of the N epochs:

    sum_e w_e theta_e,   w_e ~ exp(-(e - mu)^2 / (2 sigma^2)),   sum_e w_e = 1,   e = 1 ... N            (2, GPA)
"""

from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .ivlp import IVLP, CustomCLIP
from .shared.epoch_average import EpochAverage
from .shared.keys import DESCRIPTIONS, Key
from .shared.templates import PROMPTSRC_TEMPLATES


class SelfRegulatedCLIP(CustomCLIP):
    """The CLIP of IVLP with the frozen text of (1): only the mean over the prompts is made unit length."""

    unit_templates = False


@TRAINER_REGISTRY.register()
class PromptSRC(EpochAverage, IVLP):
    """Prompting with self-regulating constraints."""

    defaults = {
        **IVLP.defaults,
        "N_CTX_VISION": Key(4, low=0),
        "N_CTX_TEXT": Key(4, low=1),
        "TEXT_LOSS_WEIGHT": Key(25.0, low=0),  # w_t
        "IMAGE_LOSS_WEIGHT": Key(10.0, low=0),  # w_v
        "LOGIT_LOSS_WEIGHT": Key(1.0, low=0),  # w_l; not a key of the original
        "GPA_MEAN": Key(15.0),  # mu, in epochs
        "GPA_STD": Key(1.0, above=0),  # sigma
        **DESCRIPTIONS,
    }
    classifier = SelfRegulatedCLIP

    def build_classifier(self, clip_model, classnames):
        self.check_depths(clip_model)
        descriptions = self.node.get("DESCRIPTIONS", "")  # DePT's node of it has none
        return self.classifier(self.node, clip_model, classnames, PROMPTSRC_TEMPLATES, descriptions)

    def losses(self, image, label):
        model, node = self.model, self.node
        f, g = model.encode_image(self.model_input(image)), model.encode_text()
        f_0, g_0 = model.frozen_image(self.frozen_input(image)), model.frozen_text
        z = model.logits(f, g)
        log_p_0 = F.log_softmax(model.logits(f_0, g_0), dim=-1)
        kl = F.kl_div(F.log_softmax(z, dim=-1), log_p_0, reduction="none", log_target=True).mean()
        return {
            "ce": F.cross_entropy(z, label),
            "l1_text": node.TEXT_LOSS_WEIGHT * F.l1_loss(g, g_0),
            "l1_image": node.IMAGE_LOSS_WEIGHT * F.l1_loss(f, f_0),
            "kl": node.LOGIT_LOSS_WEIGHT * kl,
        }, z
