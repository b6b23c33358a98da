"""CLIP-SVD: the singular values of CLIP's weights are trained, and nothing else.

Koleilat et al. 2025, "Singular Value Few-shot Adaptation of Vision-Language Models".

Each chosen weight W (out x in) of the blocks of both encoders, q, k and v apart, is decomposed once:

    W = U diag(S) V^T,   y = U (S * (V^T x)) + b,   L = CE(100 f g^T, y)

S [rank] is trained from the singular values; it may change its signs and its order. At strength s an evaluation uses
the weights W + U diag(s (S - S_0)) V^T, S_0 the singular values of W.
"""

import os.path as osp

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import load_tensors
from .shared.beside_dassl import read_archive
from .shared.encoders import wide
from .shared.iterations import Iterations
from .shared.keys import SOME, TEMPLATE, Key
from .shared.prompts import template_for
from .shared.weights import ALIASES, ENCODERS, WEIGHTS, TunedCLIP
from .tuned import TunedTrainer

PUBLISHED = {  # place of a map -> name in the original's state dict
    **{weight: f"attn.{weight}_proj" for weight in "qkv"},
    "out": "attn.proj",
    "c_fc": "mlp.c_fc",
    "c_proj": "mlp.c_proj",
}


class SingularValues(nn.Module):
    """The trained S by place, and the decomposition, which is computed and not saved.

    Args:
        weights: W float [out, in] by place.
    """

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        self.vector_S = nn.ParameterDict()
        for name, weight in weights.items():
            # close singular values mix their vectors in fp32
            u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
            self.vector_S[name] = nn.Parameter(s.to(wide(weight)).clone())
            for part, tensor in (("u", u), ("s", s), ("vt", vt)):
                self.register_buffer(f"{part}_{name}", tensor.to(wide(weight)).contiguous(), persistent=False)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return U [out, rank], S_0 [rank] and V^T [rank, in] of a place."""
        return tuple(getattr(self, f"{part}_{name}") for part in ("u", "s", "vt"))

    @torch.no_grad()
    def replace(self, name: str, weight: torch.Tensor, u: torch.Tensor, s: torch.Tensor, vt: torch.Tensor) -> None:
        """Take over S [1, rank] with the U [out, rank] and V^T [rank, in] that it belongs to.

        Raises:
            ValueError: U and V do not decompose W.
        """
        start = torch.einsum("or,oi,ri->r", u, weight.to(u), vt)
        if ((u * start) @ vt - weight).norm() > 0.01 * weight.norm():
            raise ValueError(f"the U and V of {name} are of another weight: give the backbone of this file")
        self.vector_S[name].copy_(s[0])
        for tensor, new_values in zip(self.factors(name), (u, start, vt), strict=True):
            tensor.copy_(new_values)


class SingularCLIP(TunedCLIP):
    """CLIP with U diag(S) V^T in place of every chosen W."""

    def __init__(self, node, clip_model, classnames: list[str], template: str, node_name: str = "TRAINER.CLIP_SVD"):
        super().__init__(clip_model, classnames, template, node, node_name)
        self.svd = SingularValues({name: self.frozen_weight(name) for name in self.places})
        if node.LOGIT_SCALE:
            self.logit_scale.fill_(node.LOGIT_SCALE)

    def compute_changes(self, names, s=1.0):
        changes = {}
        for name in names:
            u, start, vt = self.svd.factors(name)
            changes[name] = u, torch.lerp(start, self.svd.vector_S[name], s), start, vt
        return changes

    def apply_change(self, factors, x, weight, bias):
        u, values, _, vt = factors
        return F.linear(values * F.linear(x, vt), u, bias)

    def merge(self, factors, weight):
        u, values, start, vt = factors
        return weight + (u * (values - start)) @ vt


@TRAINER_REGISTRY.register()
class CLIP_SVD(Iterations, TunedTrainer):
    """Training of the singular values of CLIP's linear maps."""

    defaults = TunedTrainer.defaults | {
        **Iterations.keys,
        "ENCODERS": Key(ENCODERS, choices=ENCODERS, rule=SOME),
        "LAYERS": Key([], of=int),  # blocks, for example [-2, -1]; [] = all
        "WEIGHTS": Key(WEIGHTS, choices=WEIGHTS, aliases=ALIASES, rule=SOME),
        "LOGIT_SCALE": Key(100.0, low=0),  # the constant of the original; 0 = CLIP's scale
        # whether the cosine ends after as many batches as there are epochs and then goes up and down again, as in the
        # original's base-to-new; False: it ends with the training
        "OSCILLATES": False,
        "TEMPLATE": TEMPLATE,  # "" = the data set's template
    }
    learner = "svd"

    def build_classifier(self, clip_model, classnames):
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return SingularCLIP(self.node, clip_model, classnames, template, self.key())

    def optim_cfg(self):
        optim = super().optim_cfg()
        if self.node.OSCILLATES:
            optim.defrost()
            optim.MAX_EPOCH = self.max_epoch
        return optim

    def load_published(self, directory):
        """Load base_model.pt of the original, which has a decomposition of its own. Return whether it is there."""
        path = osp.join(directory, "base_model.pt")
        if not osp.isfile(path):
            return False
        state, svd = read_archive(path), self.model.svd
        for name, place in self.model.places.items():
            _, block, weight = name.split("_", 2)
            layer = f"transformer.resblocks.{block}.{PUBLISHED[weight]}"
            layer = f"visual.{layer}" if place.encoder == "image" else layer
            try:
                parts = [state["weights"][f"{layer}.{part}"] for part in ("fc_U.weight", "vector_S", "fc_V.weight")]
                svd.replace(name, self.model.frozen_weight(name), *(part.to(svd.vector_S[name]) for part in parts))
            except (LookupError, TypeError, AttributeError, RuntimeError) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                raise ValueError(
                    f'"{path}" does not fit {layer} here ({reason}): set WEIGHTS and the backbone'
                ) from error
        load_tensors(svd, svd.state_dict(), path)
        return True
