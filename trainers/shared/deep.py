"""What methods with prompts in both of CLIP's encoders share (MaPLe, IVLP, VPT, PromptSRC).

P_0 are n tokens at an encoder's input. Before block i = 1 ... J - 1 their outputs are replaced by the prompts P_i; from
block J on they flow on. J is the depth: 1 is the input alone. In the text they stand behind the start of text, in the
image behind the patches.
"""

import re

import torch
from torch import nn

from .backbones import is_vit
from .classifier import ClipClassifier
from .encoders import normalize
from .prompts import PromptLearner


def random_prompts(n: int, width: int) -> nn.Parameter:
    """N(0, 0.02^2), float [n, width]."""
    return nn.Parameter(0.02 * torch.randn(n, width))


def prompts_of_blocks(n: int, width: int, blocks: range) -> nn.ParameterDict:
    """Random prompts by number of the block, which is a word in here."""
    return nn.ParameterDict({str(i): random_prompts(n, width) for i in blocks})


def by_block(prompts: nn.ParameterDict) -> dict[int, torch.Tensor]:
    return {int(i): p for i, p in prompts.items()}


class PublishedLearner:
    """Beside `nn.Module`: a learner that also loads the checkpoints of its original, which hold the whole model.

    Attributes:
        published: regular expressions of the original's names, and the names here that they become.
    """

    published: dict[str, str] = {}

    @classmethod
    def own_name(cls, name: str) -> str | None:
        """The name here of a tensor of the original; None: it is not ours."""
        hits = (re.sub(pattern, ours, name) for pattern, ours in cls.published.items() if re.fullmatch(pattern, name))
        return next(hits, None)

    def renamed(self, state_dict):
        """What is ours of an original's checkpoint, by our names; one of this project as it is."""
        theirs = {self.own_name(name): tensor for name, tensor in state_dict.items()}
        theirs.pop(None, None)
        return theirs or state_dict

    def load_state_dict(self, state_dict, *args, **kwargs):
        return super().load_state_dict(self.renamed(state_dict), *args, **kwargs)


class TextPromptLearner(PublishedLearner, PromptLearner):
    """P_0 of the text: up to four vectors start from the first tokens of `words`, the other words stay in the prompt.

    More vectors are random, whatever the words, as in the originals.

    Args:
        text_encoder, classnames, n_ctx, words: see `PromptLearner`.
    """

    published = {r"prompt_learner\.ctx": "ctx"}

    def __init__(self, text_encoder, classnames: list[str], n_ctx: int, words: str):
        super().__init__(text_encoder, classnames, n_ctx, words if n_ctx <= 4 else "")

    def text(self) -> dict[int, torch.Tensor]:
        """{i: P_i} of the text, i >= 1, each float [n, width]."""
        raise NotImplementedError

    def vision(self) -> dict[int, torch.Tensor]:
        """{i: P_i} of the image, i >= 0, each float [n, width]; {}: none at all."""
        raise NotImplementedError


class VisionPromptLearner(PublishedLearner, nn.Module):
    """P_0 ... P_{J-1} of the image, `vision_prompts.i`, in the shape of `prompts_of_blocks`."""

    published = {
        r"image_encoder\.VPT": "vision_prompts.0",
        r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow": r"vision_prompts.\1",
    }

    def __init__(self, n: int, width: int, depth: int):
        super().__init__()
        self.vision_prompts = prompts_of_blocks(n, width, range(depth))

    def vision(self) -> dict[int, torch.Tensor]:
        return by_block(self.vision_prompts)


class VisionPromptedCLIP(ClipClassifier):
    """CLIP with the prompts `prompt_learner.vision()` in its image encoder."""

    prompt_learner: nn.Module

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        deep = dict(self.once("vision prompts", self.prompt_learner.vision))
        if not deep:
            return self.frozen_image(image)
        context = deep.pop(0)
        return normalize(self.image_encoder(image, context, deep=deep))


class PromptedCLIP(VisionPromptedCLIP):
    """CLIP with the prompts of a `TextPromptLearner` in both encoders."""

    def encode_text(self) -> torch.Tensor:
        learner = self.prompt_learner
        return normalize(self.text_encoder(learner(), learner.tokens, learner.shared, deep=learner.text()))


def check_reach(clip_model, backbone: str, encoder: str, blocks: int, key: str) -> None:
    """Raises ValueError unless the encoder, "image" or "text", can have prompts in that many blocks.

    Args:
        backbone, key: name of the CLIP and of the setting, for the message.
    """
    if encoder == "image" and blocks and not is_vit(clip_model):
        raise ValueError(f"{backbone} is a ResNet: its image encoder has no tokens to put prompts between; take a ViT")
    module = clip_model.visual if encoder == "image" else clip_model
    if blocks and blocks > len(module.transformer.resblocks):
        there = len(module.transformer.resblocks)
        raise ValueError(
            f"{key} reaches block {blocks}, but the {encoder} encoder of {backbone} has {there}: take fewer"
        )
