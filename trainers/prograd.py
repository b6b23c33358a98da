"""ProGrad (Zhu et al. 2023, "Prompt-aligned Gradient for Prompt Tuning", ICCV).

CoOp whose steps never work against the frozen CLIP. With z = s f g^T, z_0 = s f g0^T of the data set's template, and

    L_ce = CE(z, y),   L_kl = T^2 CE(z / T, softmax(z_0 / T)),   a, b: the gradients of both for one tensor,

the tensor is trained with

    a - LAMBDA <a, b> b / |b|^2   if <a, b> < 0,   else a

L_kl has the gradient of KL(softmax(z_0 / T) || softmax(z / T)). As long as z is z_0 to rounding, b is rounding noise:
it counts as 0, unless LOSS.NOISE.
"""

import torch
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .coop import CoOp, CustomCLIP
from .shared.keys import TEMPLATE, Decides, Key
from .shared.processes import add_up
from .shared.prompts import template_for
from .shared.templates import PROGRAD_TEMPLATES


def project(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """a without `weight` times its part along -b, of tensors of any one shape; b may be 0."""
    unit = b / b.norm().clamp(min=torch.finfo(b.dtype).tiny)
    return a - weight * (a * unit).sum().clamp(max=0) * unit  # NaN stays NaN, for amp's scaler to see


@TRAINER_REGISTRY.register()
class ProGrad(CoOp):
    """Prompt-aligned Gradient."""

    defaults = CoOp.defaults | {
        "N_CTX": Key(16, low=1),  # M, number of context vectors
        "CTX_INIT": False,  # whether the last of them start from the words of TEMPLATE, the others from 0
        "TEMPLATE": TEMPLATE,  # of g0; "" = the data set's own, see trainers/shared/templates.py
    }
    decides = {"CTX_INIT": Decides(("CSC",), lambda key, value, words: not value, refused=True)}
    node_name = "COOP"
    root = {
        "LOSS": {
            "NAME": Key("prograd", choices=["prograd"]),
            "T": Key(1.0, above=0),
            "LAMBDA": Key(1.0, low=0),  # published: 0.8 for 8 and 16 shots of Flowers102, DTD and EuroSAT
            "NOISE": False,  # project along rounding noise too, as the original does
            "ALPHA": 0.0,  # these two decide nothing; they are there for the original's command lines
            "GM": False,
        }
    }

    def template(self) -> str:
        return template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE, PROGRAD_TEMPLATES)

    def first_words(self) -> list[str]:
        """Those of the template in front of the class name, if the context starts from them."""
        words = self.template().partition("{}")[0].replace("_", " ").split() if self.node.CTX_INIT else []
        if len(words) > self.node.N_CTX:
            wrong = f'{self.key("N_CTX")} is {self.node.N_CTX}, but the context starts from "{" ".join(words)}"'
            raise ValueError(f"{wrong}: give {len(words)} or more")
        return words

    def words(self):
        words = self.first_words()
        return " ".join(["X"] * (self.node.N_CTX - len(words)) + words) if words else ""

    def build_classifier(self, clip_model, classnames):
        model, words = CustomCLIP(clip_model, classnames, self.context(), [self.template()]), self.first_words()
        if words:
            model.prompt_learner.ctx.data[: self.node.N_CTX - len(words)] = 0  # where the placeholders X are
        return model

    def losses(self, image, label):
        loss, f = self.cfg.LOSS, self.model.encode_image(image)
        z, z_0 = self.model.logits(f, self.model.encode_text()), self.model.logits(f, self.model.frozen_text)
        student = z if loss.NOISE else torch.where((z - z_0).abs().max() > self.rounding(z), z, z_0)
        kl = loss.T**2 * F.cross_entropy(student / loss.T, F.softmax(z_0 / loss.T, dim=-1))
        return {"ce": F.cross_entropy(z, label), "kl": kl}, z

    def rounding(self, z: torch.Tensor) -> torch.Tensor:
        """By how much logits of the same prompts may differ in the encoders' precision; about 0.3 eps s was met."""
        dtype = self.autocast["dtype"] if self.autocast["enabled"] else z.dtype
        return 2 * torch.finfo(dtype).eps * self.model.logit_scale

    def backward(self, terms):
        tensors = list(self.model.prompt_learner.parameters())
        alignment = torch.autograd.grad(self.scaler.scale(terms["kl"]), tensors, retain_graph=True)
        super().backward({"ce": terms["ce"]})
        add_up(alignment)  # the gradients of the whole batch are projected
        for tensor, b in zip(tensors, alignment, strict=True):
            tensor.grad = project(tensor.grad, b, self.cfg.LOSS.LAMBDA)
