"""OrthSR: OrthCR's later variant, with self-regularization and attentive Cutout.

Li et al., "Enhancing Robustness of Vision-Language Models through Orthogonality Learning and Self-Regularization"
(arXiv 2407.08374). No code was published. docs/methods/OrthSR.md has the choices that its abstract and reviews leave
open.

    L = CE(z, y) + lambda KL(p_0 || softmax(z / tau))       z, p_0 as in trainers/regularized.py, both of the cut image
"""

from dassl.engine import TRAINER_REGISTRY

from .orthcr import OrthCR
from .regularized import REGULARIZERS
from .shared.keys import Key


@TRAINER_REGISTRY.register()
class OrthSR(OrthCR):
    """Orthogonal fine-tuning with self-regularization."""

    defaults = OrthCR.defaults | {
        "REG": Key("self_kl", choices=REGULARIZERS),
        "ATTENTIVE": True,  # False, with "cutout" in INPUT.TRANSFORMS: OrthCR with self_kl
    }
