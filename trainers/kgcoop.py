"""KgCoOp (Yao et al. 2023, "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR).

CoOp with a term that keeps its class features g_c near g0_c, which the frozen CLIP gives for the data set's
hand-crafted template, or for the sentences of DESCRIPTIONS:

    L = CE(s f(x) g^T, y) + W * (1 - mean_c cos(g_c, g0_c))
"""

from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .coop import CoOp, CustomCLIP
from .shared.keys import DESCRIPTIONS, TEMPLATE, Key
from .shared.prompts import template_for
from .shared.templates import KGCOOP_TEMPLATES


@TRAINER_REGISTRY.register()
class KgCoOp(CoOp):
    """Knowledge-guided Context Optimization."""

    defaults = CoOp.defaults | {
        "N_CTX": Key(16, low=1),  # M, number of context vectors; 4 with CTX_INIT
        "CTX_INIT": False,  # whether the context starts from "a photo of a"; False = random vectors
        "CLASS_TOKEN_POSITION": Key("end", choices=["end"]),  # the original accepts others and ignores them
        "W": Key(1.0, low=0),  # weight of the second term; published figures: 8
        "TEMPLATE": TEMPLATE,  # template of g0; "" = the data set's, see trainers/shared/templates.py
        **DESCRIPTIONS,
    }
    node_name = "COOP"
    classifier = CustomCLIP

    def words(self):
        return "a photo of a" if self.node.CTX_INIT else ""

    def build_classifier(self, clip_model, classnames):
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE, KGCOOP_TEMPLATES)
        descriptions = self.node.get("DESCRIPTIONS", "")  # DePT's node has none
        model = self.classifier(clip_model, classnames, self.context(), [template], descriptions)
        model.prompt_learner.dead += ("bias_vectors", "meta_net")  # the original saves them and never uses them
        return model

    def losses(self, image, label):
        g, g_0 = self.model.encode_text(), self.model.frozen_text
        z = self.model.logits(self.model.encode_image(self.model_input(image)), g)
        score = 1 - (g * g_0).sum(dim=-1).mean()  # both of unit length
        return {"ce": F.cross_entropy(z, label), "score": self.node.W * score}, z
