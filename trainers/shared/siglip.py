"""SigLIP and SigLIP 2 (Zhai et al. 2023, Tschannen et al. 2025) with the names of OpenAI's CLIP.

The image encoder has no class token and no ln_pre. Its feature is read by attention pooling: one learned query p

    u = out(attention(q(p), k(x), v(x))),   f = u + c_proj(gelu(c_fc(LN(u))))                         (1)

The text encoder attends in both directions, sees the padding, and its feature is that of the last position.
Logits are s f g^T. SigLIP adds a constant to all of them, which has no influence on a softmax over classes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from clip.model import ResidualAttentionBlock
from torch import nn


class Family(NamedTuple):
    """The parts in which the encoders of the families of CLIPs differ.

    Attributes:
        name: name of the family, for messages.
        class_token: whether the image encoder has a class token, whose output is the feature, and ln_pre; otherwise its
            feature is read by attention pooling (1).
        causal: whether tokens of the text attend only to those before them, and the feature is read at the end of
            text; otherwise they attend to all, padding included, and it is read at the last position.
        mean, std: of the pixels in each channel, where the files of a model do not say them.
        resize: value of INPUT.RESIZE, where they do not say it.
    """

    name: str
    class_token: bool = True
    causal: bool = True
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resize: str = "shorter"


HALF = (0.5, 0.5, 0.5)
CLIP_FAMILY = Family("CLIP")
SIGLIP = Family("SigLIP", class_token=False, causal=False, mean=HALF, std=HALF, resize="squash")


def family_of(clip_model) -> Family:
    """Return the family of a model that `load_clip` returned."""
    return getattr(clip_model, "family", CLIP_FAMILY)


def check_causal(family: Family, method: str) -> None:
    """Raise ValueError if a method cannot have prompts in the text encoder of this family."""
    if not family.causal:
        raise ValueError(
            f"{method} needs a text encoder with a start token and causal attention, which {family.name} does not "
            f"have: take a CLIP, or a method that tunes weights or features"
        )


def check_class_token(family: Family, feature: str, advice: str = "take a CLIP") -> None:
    """Raise ValueError if the image encoder of this family has no class token.

    Args:
        family: the family.
        feature: what needs it, for the message.
        advice: what to do, for the message.
    """
    if not family.class_token:
        problem = f"{feature} needs the class token of the image encoder, which {family.name} does not have"
        raise ValueError(f"{problem}: {advice}")


class AttentionPool(nn.Module):
    """The attention pooling (1), from tokens float [B, L, width] to float [B, width]; `encoders.pool` computes it."""

    def __init__(self, width: int, heads: int, hidden: int, activation: nn.Module, eps: float):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln = nn.LayerNorm(width, eps)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.gelu, self.mlp.c_proj = nn.Linear(width, hidden), activation, nn.Linear(hidden, width)


class Transformer(nn.Module):
    """Residual blocks, under the name that they have in CLIP."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.resblocks = nn.Sequential(*blocks)


class SigLIPVision(nn.Module):
    """The image encoder. Its feature has the width of the encoder, there is no projection."""

    def __init__(self, side: int, patch: int, width: int, blocks: list[nn.Module], pool: AttentionPool, eps: float):
        super().__init__()
        self.input_resolution = side
        self.conv1 = nn.Conv2d(3, width, patch, patch)
        self.positional_embedding = nn.Parameter(torch.empty((side // patch) ** 2, width))
        self.transformer, self.ln_post, self.attn_pool = Transformer(blocks), nn.LayerNorm(width, eps), pool


class SigLIP(nn.Module):
    """Both encoders and the logit scale. `text_projection` is [width, embed_dim], as CLIP's, and has a bias.

    Attributes:
        family: SIGLIP.
        tokenizer: a `LibraryTokenizer`.
    """

    family = SIGLIP
    tokenizer = None

    def __init__(self, visual: SigLIPVision, state: Mapping[str, torch.Tensor], blocks: list[nn.Module], eps: float):
        super().__init__()
        self.visual, self.transformer = visual, Transformer(blocks)
        self.vocab_size, width = state["token_embedding.weight"].shape
        self.context_length = len(state["positional_embedding"])
        self.token_embedding = nn.Embedding(self.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
        self.ln_final = nn.LayerNorm(width, eps)
        self.text_projection = nn.Parameter(torch.empty(state["text_projection"].shape))
        self.text_projection_bias = nn.Parameter(torch.empty(state["text_projection"].shape[1]))
        self.logit_scale = nn.Parameter(torch.empty(()))


def build_siglip(state: Mapping[str, torch.Tensor], architecture, activations: Mapping) -> SigLIP:
    """Return a SigLIP in fp32 with these tensors.

    Args:
        state: a state dict with the names of this module.
        architecture: `layouts.Architecture`, the properties that it does not show.
        activations: classes by the names in the architecture.

    Raises:
        Exception: tensors are missing or do not fit; the type varies.
    """

    def blocks(prefix: str, tower) -> list[nn.Module]:
        start, made = f"{prefix}transformer.resblocks.", []
        for i in range(len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})):
            hidden, width = state[f"{prefix}transformer.resblocks.{i}.mlp.c_fc.weight"].shape
            block = ResidualAttentionBlock(width, tower.heads)
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
            block.mlp.gelu = activations[tower.activation]()
            block.ln_1.eps = block.ln_2.eps = tower.eps
            made.append(block)
        return made

    image, text = architecture.image, architecture.text
    width, _, patch, _ = state["visual.conv1.weight"].shape
    hidden = len(state["visual.attn_pool.mlp.c_fc.weight"])
    with torch.device("meta"):  # no memory, no random numbers
        pool = AttentionPool(width, image.heads, hidden, activations[image.activation](), image.eps)
        visual = SigLIPVision(architecture.side, patch, width, blocks("visual.", image), pool, image.eps)
        model = SigLIP(visual, state, blocks("", text), text.eps)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval()
