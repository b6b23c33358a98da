"""Block-diagonal fine-tuning: OrthCR without the orthogonality, a control experiment with blocks of the same shape.

    OrthCR    W' = W blockdiag(R_1 ... R_m),   R_i orthogonal, of b (b - 1) / 2 trained numbers
    BlockFT   W' = W (I + M),   M = blockdiag(M_1 ... M_m), the b x b entries of every M_i free, from zero

Everything else is as in OrthCR: the places, the blocks, the losses, the views and the rule for the learning rate. With
HALF, the M_i are strictly upper triangular, so that there are as many trained numbers as in OrthCR. At strength s an
evaluation uses W (I + s M).
"""

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .regularized import RegularizedTrainer
from .shared import blocks
from .shared.rotations import rotate
from .shared.weights import TunedCLIP


class BlockCLIP(TunedCLIP):
    """CLIP with W (I + M) in place of every chosen W: y = W (I + M) x + b."""

    def __init__(self, node, clip_model, classnames: list[str], template: str, node_name: str = "TRAINER.BLOCKFT"):
        super().__init__(clip_model, classnames, template, node, node_name)
        widths = {name: self.frozen_weight(name).shape[1] for name in self.places}
        self.sizes = blocks.block_sizes(widths, node.BLOCK_SIZE, node.N_BLOCKS, node_name)
        self.is_triangular = node.HALF
        shapes = {name: (m, b, b) for name, (m, b) in self.sizes.items()}
        if self.is_triangular:
            shapes = {name: (m, b * (b - 1) // 2) for name, (m, b) in self.sizes.items()}
        self.blocks = nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()})

    def compute_changes(self, names, s=1.0):
        return {name: self.factor(name, s) for name in names}

    def factor(self, name: str, s: float) -> torch.Tensor:
        """Return the blocks of I + s M of a place, [m, b, b]."""
        m, (count, b) = self.blocks[name], self.sizes[name]
        if self.is_triangular:
            row, col = torch.triu_indices(b, b, offset=1, device=m.device)
            m = m.new_zeros(count, b * b).index_copy(1, row * b + col, m).view(count, b, b)
        return torch.eye(b, dtype=m.dtype, device=m.device) + s * m

    def apply_change(self, factor, x, weight, bias):
        rows = rotate(x.reshape(-1, x.shape[-1]), factor.mT)
        return F.linear(rows.view(x.shape), weight, bias)

    def merge(self, factor, weight):
        return rotate(weight, factor)


@TRAINER_REGISTRY.register()
class BlockFT(RegularizedTrainer):
    """Fine-tuning of block-diagonal factors with the losses of OrthCR."""

    defaults = RegularizedTrainer.defaults | {
        **blocks.KEYS,
        "HALF": False,  # True: strictly upper triangles, as many numbers as OrthCR has
    }
    deciding_keys = RegularizedTrainer.deciding_keys | blocks.DECIDING_KEYS
    settings_of = "OrthCR"
    learner = "blocks"
    classifier = BlockCLIP
