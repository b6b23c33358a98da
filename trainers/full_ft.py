"""Full fine-tuning of the weights that OrthCR rotates: the control experiment without the orthogonality constraint.

    OrthCR   W' = W R,  R orthogonal: rows keep their norms and angles, W keeps its singular values
    FullFT   W' itself is trained, starting from CLIP's W

Everything else is as in OrthCR: the choice of weights, the losses, the keys, and the frozen CLIP beside the tuned one.
Biases, LayerNorms and embeddings are not trained. REG none, the default, is plain fine-tuning by cross-entropy. At
strength s an evaluation uses W + s (W' - W), which is WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
models").
"""

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .regularized import REGULARIZERS, RegularizedTrainer
from .shared.encoders import wide
from .shared.keys import Key
from .shared.weights import TunedCLIP


class FreeCLIP(TunedCLIP):
    """CLIP with a trained float32 copy of every chosen W. The frozen side uses the W themselves."""

    def __init__(self, node, clip_model, classnames: list[str], template: str, node_name: str = "TRAINER.FULLFT"):
        super().__init__(clip_model, classnames, template, node, node_name)
        self.weights = nn.ParameterDict({name: wide(self.frozen_weight(name)).clone() for name in self.places})

    def compute_changes(self, names, s=1.0):
        if s == 1:
            return {name: self.weights[name] for name in names}
        return {name: torch.lerp(wide(self.frozen_weight(name)), self.weights[name], s) for name in names}

    def apply_change(self, trained_weight, x, weight, bias):
        return F.linear(x, trained_weight, bias)

    def merge(self, trained_weight, weight) -> torch.Tensor:
        return trained_weight


@TRAINER_REGISTRY.register()
class FullFT(RegularizedTrainer):
    """Full fine-tuning with the losses of OrthCR."""

    defaults = RegularizedTrainer.defaults | {"REG": Key("none", choices=REGULARIZERS)}
    settings_of = "OrthCR"
    learner = "weights"
    classifier = FreeCLIP
