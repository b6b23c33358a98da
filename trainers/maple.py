"""MaPLe (Khattak et al. 2023, "MaPLe: Multi-modal Prompt Learning", CVPR; github.com/muzairkhattak/
multimodal-prompt-learning).

Prompts P_0 ... P_{J-1} of the text, each n tokens, are trained, and with them linear maps F_i to those of the image:

    V_i = F_i(P_i),   i = 0 ... J - 1                  J: the depth; where they stand: shared/deep.py
    L   = CE(s f(x; V) g(t; P)^T, y)
"""

import copy

from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.deep import PromptedCLIP, TextPromptLearner, check_reach, random_prompts
from .shared.keys import Key


class MultiModalPromptLearner(TextPromptLearner):
    """P_0 is `ctx`, F_0 `proj`; the deep ones are P_{i+1} = `compound_prompts_text.i` and F_{i+1}, equal at the start.

    Args:
        n_ctx, words: of P_0, see `TextPromptLearner`.
        depth: J.
        vision_width: of the image encoder's tokens.
    """

    published = {r"prompt_learner\.(ctx|(proj|compound_prompt).*)": r"\1"}

    def __init__(self, text_encoder, classnames: list[str], n_ctx: int, words: str, depth: int, vision_width: int):
        super().__init__(text_encoder, classnames, n_ctx, words)
        width = self.ctx.shape[-1]
        self.proj = nn.Linear(width, vision_width)
        self.compound_prompts_text = nn.ParameterList([random_prompts(n_ctx, width) for _ in range(depth - 1)])
        first = nn.Linear(width, vision_width)
        self.compound_prompt_projections = nn.ModuleList([copy.deepcopy(first) for _ in range(depth - 1)])

    def text(self):
        return dict(enumerate(self.compound_prompts_text, start=1))

    def vision(self):
        maps = self.proj, *self.compound_prompt_projections
        prompts = self.ctx, *self.compound_prompts_text
        return {i: f(p) for i, (f, p) in enumerate(zip(maps, prompts, strict=True))}


class CustomCLIP(PromptedCLIP):
    def __init__(self, node, clip_model, classnames: list[str]):
        super().__init__(clip_model, classnames)
        width = clip_model.visual.conv1.out_channels
        self.prompt_learner = MultiModalPromptLearner(
            self.text_encoder, classnames, node.N_CTX, node.CTX_INIT, node.PROMPT_DEPTH, width
        )


@TRAINER_REGISTRY.register()
class MaPLe(ClipTrainer):
    """Multi-modal prompt learning."""

    defaults = ClipTrainer.defaults | {
        "N_CTX": Key(2, low=1),  # n
        "CTX_INIT": "a photo of a",  # P_0 starts from its first n tokens, if n <= 4; "" = random
        "PROMPT_DEPTH": Key(9, low=1),  # J; 1 = the inputs alone
    }
    learner = "prompt_learner"
    registered = "MultiModalPromptLearner"

    def build_classifier(self, clip_model, classnames):
        for encoder in ("image", "text"):
            depth, key = self.node.PROMPT_DEPTH, self.key("PROMPT_DEPTH")
            check_reach(clip_model, self.cfg.MODEL.BACKBONE.NAME, encoder, depth, key)
        return CustomCLIP(self.node, clip_model, classnames)
