"""The base classes of methods with prompts inside CLIP's encoders (MaPLe, IVLP, VPT, PromptSRC).

P_0 are n tokens in the input of an encoder. Before block i = 1 ... J - 1 the prompts P_i replace their outputs. From
block J on they are processed like any token. J is the depth; 1 means prompts in the input only. The prompts of the text
stand behind its start token, those of the image behind its patches.
"""

import re

import torch
from torch import nn

from .backbones import is_vit
from .classifier import ClipClassifier
from .encoders import normalize
from .prompts import PromptLearner


def random_prompts(n: int, width: int) -> nn.Parameter:
    """Return a parameter float [n, width] with values from N(0, 0.02^2)."""
    return nn.Parameter(0.02 * torch.randn(n, width))


def prompts_of_blocks(n: int, width: int, blocks: range) -> nn.ParameterDict:
    """Return random prompts for each block. The keys are its number as a string."""
    return nn.ParameterDict({str(i): random_prompts(n, width) for i in blocks})


def prompts_by_block(prompts: nn.ParameterDict) -> dict[int, torch.Tensor]:
    return {int(i): p for i, p in prompts.items()}


class PublishedLearner:
    """A mixin for `nn.Module` learners that also loads checkpoints of the original, which hold the whole model.

    Attributes:
        published: regular expressions of the original's names, and their replacements by the names of this class.
    """

    published: dict[str, str] = {}

    @classmethod
    def own_name(cls, name: str) -> str | None:
        """Return the name in this class of a tensor of the original; None: it is not part of this class."""
        for pattern, replacement in cls.published.items():
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        return None

    def rename_weights(self, state_dict):
        """Return the learner's tensors of an original's checkpoint, renamed; any other state dict is unchanged."""
        tensors = {self.own_name(name): tensor for name, tensor in state_dict.items()}
        tensors.pop(None, None)
        return tensors or state_dict

    def load_state_dict(self, state_dict, *args, **kwargs):
        return super().load_state_dict(self.rename_weights(state_dict), *args, **kwargs)


class TextPromptLearner(PublishedLearner, PromptLearner):
    """The prompt P_0 of the text.

    Up to four vectors start from the first tokens of `words`, and the remaining words stay in the prompt. More than
    four vectors are random and ignore `words`, as in the originals.

    Args:
        text_encoder, classnames, n_ctx, words: see `PromptLearner`.
    """

    published = {r"prompt_learner\.ctx": "ctx"}

    def __init__(self, text_encoder, classnames: list[str], n_ctx: int, words: str):
        super().__init__(text_encoder, classnames, n_ctx, words if n_ctx <= 4 else "")

    def text(self) -> dict[int, torch.Tensor]:
        """Return {i: P_i} of the text, i >= 1, each float [n, width]."""
        raise NotImplementedError

    def vision(self) -> dict[int, torch.Tensor]:
        """Return {i: P_i} of the image, i >= 0, each float [n, width]; {}: there are none."""
        raise NotImplementedError


class VisionPromptLearner(PublishedLearner, nn.Module):
    """The prompts P_0 ... P_{J-1} of the image, as `vision_prompts.i`."""

    published = {
        r"image_encoder\.VPT": "vision_prompts.0",
        r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow": r"vision_prompts.\1",
    }

    def __init__(self, n: int, width: int, depth: int):
        super().__init__()
        self.vision_prompts = prompts_of_blocks(n, width, range(depth))

    def vision(self) -> dict[int, torch.Tensor]:
        return prompts_by_block(self.vision_prompts)


class VisionPromptedCLIP(ClipClassifier):
    """CLIP with the prompts `prompt_learner.vision()` in its image encoder."""

    prompt_learner: nn.Module

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        deep = dict(self.compute_once("vision prompts", self.prompt_learner.vision))
        if not deep:
            return self.frozen_features(image)
        context = deep.pop(0)
        return self.image_encoder(image, context, deep=deep)


class PromptedCLIP(VisionPromptedCLIP):
    """CLIP with the prompts of a `TextPromptLearner` in both encoders."""

    def text_features(self) -> torch.Tensor:
        """Return the class features [n_cls, d] before they have unit length."""
        learner = self.prompt_learner
        return self.text_encoder(learner(), learner.tokens, learner.n_shared, deep=learner.text())

    def encode_text(self) -> torch.Tensor:
        return normalize(self.text_features())


def check_depth(clip_model, backbone: str, encoder: str, blocks: int, key: str) -> None:
    """Raise ValueError unless an encoder can have prompts in that many blocks.

    Args:
        clip_model: the CLIP.
        backbone: its name, for the message.
        encoder: "image" or "text".
        blocks: number of blocks.
        key: name of the setting, for the message.
    """
    if encoder == "image" and blocks and not is_vit(clip_model):
        raise ValueError(f"{backbone} is a ResNet: its image encoder has no tokens to put prompts between; take a ViT")
    if not blocks:
        return
    module = clip_model.visual if encoder == "image" else clip_model
    depth = len(module.transformer.resblocks)
    if blocks > depth:
        raise ValueError(
            f"{key} reaches block {blocks}, but the {encoder} encoder of {backbone} has {depth}: take fewer"
        )
