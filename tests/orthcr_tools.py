"""What the tests of OrthCR share: small models, random rotations, and plain CLIPs and NumPy to hold them against."""

import copy
from types import SimpleNamespace

import numpy as np
import torch
from clip import clip
from torch import nn

from trainers.orthcr import OrthogonalCLIP
from trainers.shared.weights import WEIGHTS

NAMES = ["red circle", "dark_blue striped heart", "x"]
TEMPLATE = "a photo of a {}."
BOTH = ["image", "text"]
SHAPES_OF = {"image": ("visual.", 128, 2), "text": ("", 64, 3)}  # of the random ViT: prefix, width, blocks


class Encoders(nn.Module):
    """OpenAI's two encoders as one forward, for functional_call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, text):
        return self.model.encode_image(image), self.model.encode_text(text)


def node(**changes):
    blocks = {"BLOCK_SIZE": 16, "N_BLOCKS": 0}
    return SimpleNamespace(**{"ENCODERS": BOTH, "LAYERS": [], "WEIGHTS": WEIGHTS, **blocks, **changes})


def orthogonal(model, **changes):
    return OrthogonalCLIP(node(**changes), model, NAMES, TEMPLATE)


def turn(model, scale=0.3, only=lambda name: True, seed=1):
    """Random Q for the rotations whose name `only` accepts."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, upper in model.rotations.upper.items():
            if only(name):
                upper.copy_(scale * torch.randn(upper.shape, generator=gen))
    return model


def textbook(upper, b):
    """[R_1 ... R_m] by the formula in fp64: Q entry by entry, a plain inverse."""
    out = []
    for row in np.asarray(upper, dtype=np.float64):
        q, entries = np.zeros((b, b)), iter(row)
        for i in range(b):
            for j in range(i + 1, b):
                q[i, j] = next(entries)
                q[j, i] = -q[i, j]
        out.append(np.linalg.inv(np.eye(b) + q) @ (np.eye(b) - q))
    return np.stack(out)


def block_diagonal(blocks):
    m, b, _ = blocks.shape
    out = np.zeros((m * b, m * b))
    for k, block in enumerate(blocks):
        out[k * b : (k + 1) * b, k * b : (k + 1) * b] = block
    return out


def as64(tensor):
    return tensor.detach().double().numpy()


def plain_features(model, image, text):
    """Unit-length features of a plain CLIP by OpenAI's own methods, the text with all of its 77 tokens."""
    with torch.no_grad():
        pair = model.encode_image(image), model.encode_text(text)
    return [as64(x / x.norm(dim=-1, keepdim=True)) for x in pair]


def prompts_of(names, template=TEMPLATE):
    return clip.tokenize([template.format(name.replace("_", " ")) for name in names])


def overwritten(model, merged):
    """A copy of a plain CLIP with merged weights written into its state dict."""
    model = copy.deepcopy(model)
    state = model.state_dict()
    for which, weights in merged.items():
        for name, weight in weights.items():
            key = SHAPES_OF[which][0] + name
            assert state[key].shape == weight.shape
            state[key] = weight
    model.load_state_dict(state, strict=True)
    return model
