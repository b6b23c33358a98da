"""MaPLe (Khattak et al. 2023, "MaPLe: Multi-modal Prompt Learning", CVPR).

The original code is github.com/muzairkhattak/multimodal-prompt-learning. Text prompts P_0 ... P_{J-1} of n tokens each
are trained, together with linear maps F_i that give the image prompts V_i:

    V_i = F_i(P_i),   i = 0 ... J - 1
    L   = CE(s f(x; V) g(t; P)^T, y)

J is the depth. shared/deep.py has the positions of the prompts.
"""

import copy

from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.deep import PromptedCLIP, TextPromptLearner, check_depth, random_prompts
from .shared.keys import Key


class MultiModalPromptLearner(TextPromptLearner):
    """The prompts P_i and the maps F_i.

    P_0 is `ctx`, and F_0 is `proj`. P_{i+1} is `compound_prompts_text.i`, and F_{i+1} `compound_prompt_projections.i`.
    All F_{i+1} start from the same values.

    Args:
        text_encoder, classnames: see `PromptLearner`.
        n_ctx, words: see `TextPromptLearner`, for P_0.
        depth: J.
        vision_width: width of the image encoder's tokens.
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
        """Return {i: P_i}, i >= 1, each float [n, width]; P_0 is in the prompt itself, as `ctx`."""
        return dict(enumerate(self.compound_prompts_text, start=1))

    def vision(self):
        """Return {i: V_i}, i >= 0, each float [n, width of the image encoder]."""
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
        "CTX_INIT": "a photo of a",  # P_0 starts from its first n tokens if n <= 4; "" = random vectors
        "PROMPT_DEPTH": Key(9, low=1),  # J; 1 = prompts in the inputs only
    }
    learner = "prompt_learner"
    registered = "MultiModalPromptLearner"
    classifier = CustomCLIP

    def build_classifier(self, clip_model, classnames):
        for encoder in ("image", "text"):
            depth, key = self.prompt_settings().PROMPT_DEPTH, self.key("PROMPT_DEPTH")
            check_depth(clip_model, self.cfg.MODEL.BACKBONE.NAME, encoder, depth, key)
        return self.classifier(self.prompt_settings(), clip_model, classnames)

    def prompt_settings(self):
        """Return N_CTX, CTX_INIT and PROMPT_DEPTH."""
        return self.node
