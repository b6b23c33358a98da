"""The inputs of the golden figures, from NumPy's RandomState alone."""

import copy
import hashlib
from functools import cache

import numpy as np
import torch
from clip.model import CLIP

SIZES = {
    "embed_dim": 64,
    "image_resolution": 32,
    "vision_layers": 3,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 3,
}
LAYER_NORMS = ("ln_1", "ln_2", "ln_pre", "ln_post", "ln_final")


def z(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers, float64."""
    return np.random.RandomState(seed).standard_normal(shape)


def images(seed: int, count: int, side: int = SIZES["image_resolution"]) -> torch.Tensor:
    """Float32 values in the default type, [count, 3, side, side]."""
    return torch.from_numpy(z(seed, count, 3, side, side).astype(np.float32)).to(torch.get_default_dtype())


def weight(k: int, name: str, shape) -> np.ndarray:
    """The tensor at position k of the sorted names: float16 values, held as float32."""
    if name == "logit_scale":
        value = np.log(20)
    elif name.endswith("bias"):
        value = 0.01 * z(k, *shape)
    elif name.endswith(".weight") and name.split(".")[-2] in LAYER_NORMS:
        value = 1 + 0.05 * z(k, *shape)
    else:
        value = 0.08 * z(k, *shape)
    return np.asarray(value).astype(np.float16).astype(np.float32)


def tiny_clip(sizes: dict = SIZES, sha256: str = "") -> CLIP:
    """Frozen CLIP in eval mode and the default type.

    Raises:
        ValueError: the weights are not those of which `sha256` is the checksum.
    """
    model, digest = clip_and_checksum(**sizes)
    if sha256 and digest != sha256:
        raise ValueError(f"the tiny CLIP of this recipe has the checksum {digest}, but recipe.json says {sha256}")
    return copy.deepcopy(model).to(torch.get_default_dtype())


@cache
def clip_and_checksum(**sizes: int) -> tuple[CLIP, str]:
    """Frozen CLIP in eval mode, with float32 weights, and the checksum of these."""
    with torch.device("meta"):
        model = CLIP(**sizes)
    state = model.state_dict()
    weights = {name: weight(k, name, state[name].shape) for k, name in enumerate(sorted(state))}
    digest = hashlib.sha256(b"".join(value.tobytes() for value in weights.values())).hexdigest()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, assign=True)
    for block in model.transformer.resblocks:
        block.attn_mask = model.build_attention_mask()
    return model.eval().requires_grad_(False), digest
