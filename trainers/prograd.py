"""ProGrad (Zhu et al. 2023, "Prompt-aligned Gradient for Prompt Tuning", ICCV).

CoOp with steps that never increase the divergence from the frozen CLIP. g0 is the frozen text feature of the data set's
template:

    z = s f g^T,   z_0 = s f g0^T
    L_ce = CE(z, y),   L_kl = T^2 CE(z / T, softmax(z_0 / T))

a and b are the gradients of L_ce and L_kl for one tensor. The tensor is trained with

    a - LAMBDA <a, b> b / |b|^2   if <a, b> < 0,   else a

L_kl has the gradient of KL(softmax(z_0 / T) || softmax(z / T)). While z equals z_0 to rounding, b is rounding noise. It
counts as 0 unless LOSS.NOISE is set.
"""

import torch
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .coop import CoOp, CustomCLIP
from .shared.beside_dassl import add_up
from .shared.keys import TEMPLATE, DecidingKey, Key
from .shared.prompts import template_for
from .shared.templates import PROGRAD_TEMPLATES


def project(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """Return a minus `weight` times its component along -b; a and b have the same shape, and b may be 0."""
    unit = b / b.norm().clamp(min=torch.finfo(b.dtype).tiny)
    return a - weight * (a * unit).sum().clamp(max=0) * unit  # NaN stays NaN, so that amp's scaler detects it


@TRAINER_REGISTRY.register()
class ProGrad(CoOp):
    """Prompt-aligned Gradient."""

    defaults = CoOp.defaults | {
        "N_CTX": Key(16, low=1),  # M, number of context vectors
        "CTX_INIT": False,  # whether the last vectors start from the words of TEMPLATE, and the others from 0
        "TEMPLATE": TEMPLATE,  # template of g0; "" = the data set's, see trainers/shared/templates.py
    }
    deciding_keys = {"CTX_INIT": DecidingKey(("CSC",), lambda key, value, words: not value, refused=True)}
    node_name = "COOP"
    root = {
        "LOSS": {
            "NAME": Key("prograd", choices=["prograd"]),
            "T": Key(1.0, above=0),
            "LAMBDA": Key(1.0, low=0),  # published: 0.8 for 8 and 16 shots of Flowers102, DTD and EuroSAT
            "NOISE": False,  # whether to project along rounding noise too, as the original does
            "ALPHA": 0.0,  # without effect, like GM; command lines of the original set them
            "GM": False,
        }
    }

    def template(self) -> str:
        return template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE, PROGRAD_TEMPLATES)

    def first_words(self) -> list[str]:
        """Return the template's words before the class name, if the context starts from them, else []."""
        if not self.node.CTX_INIT:
            return []
        words = self.template().partition("{}")[0].replace("_", " ").split()
        if len(words) > self.node.N_CTX:
            problem = f'{self.key("N_CTX")} is {self.node.N_CTX}, but the context starts from "{" ".join(words)}"'
            raise ValueError(f"{problem}: give {len(words)} or more")
        return words

    def words(self):
        words = self.first_words()
        if not words:
            return ""
        placeholders = ["X"] * (self.node.N_CTX - len(words))
        return " ".join(placeholders + words)

    def build_classifier(self, clip_model, classnames):
        model = CustomCLIP(clip_model, classnames, self.context(), [self.template()])
        words = self.first_words()
        if words:
            placeholders = self.node.N_CTX - len(words)
            model.prompt_learner.ctx.data[:placeholders] = 0
        return model

    def losses(self, image, label):
        loss, f = self.cfg.LOSS, self.model.encode_image(self.model_input(image))
        z, z_0 = self.model.logits(f, self.model.encode_text()), self.model.logits(f, self.model.frozen_text)
        student = z if loss.NOISE else torch.where((z - z_0).abs().max() > self.rounding(z), z, z_0)
        kl = loss.T**2 * F.cross_entropy(student / loss.T, F.softmax(z_0 / loss.T, dim=-1))
        return {"ce": F.cross_entropy(z, label), "kl": kl}, z

    def rounding(self, z: torch.Tensor) -> torch.Tensor:
        """Return the largest difference of logits that counts as rounding, 2 eps s.

        Logits of the same prompts have been measured to differ by about 0.3 eps s, eps being the precision of the
        encoders.
        """
        dtype = self.autocast["dtype"] if self.autocast["enabled"] else z.dtype
        return 2 * torch.finfo(dtype).eps * self.model.logit_scale

    def backward(self, terms):
        tensors = list(self.model.prompt_learner.parameters())
        alignment = torch.autograd.grad(self.scaler.scale(terms["kl"]), tensors, retain_graph=True)
        super().backward({"ce": terms["ce"]})
        add_up(alignment)  # in place: the projection needs the gradients of the whole batch
        for tensor, b in zip(tensors, alignment, strict=True):
            tensor.grad = project(tensor.grad, b, self.cfg.LOSS.LAMBDA)
