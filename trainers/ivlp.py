"""IVLP, independent vision-language prompting (Khattak et al. 2023, the baseline of "MaPLe" and of "PromptSRC").

Text prompts P_0 ... P_{J-1} and image prompts V_0 ... V_{K-1} are trained independently:

    L = CE(s f(x; V) g(t; P)^T, y)

J and K are the depths. shared/deep.py has the positions of the prompts.
"""

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.deep import (
    PromptedCLIP,
    TextPromptLearner,
    VisionPromptLearner,
    check_depth,
    prompts_by_block,
    prompts_of_blocks,
)
from .shared.keys import Key


class VLPromptLearner(TextPromptLearner):
    """The trained prompts: P_0 is `ctx`, P_i is `text_prompts.i`, V_i is `vision_prompts.i`.

    Args:
        node: config node of IVLP.
        text_encoder: see `PromptLearner`.
        classnames: see `PromptLearner`.
        vision_width: width of the image encoder's tokens.
    """

    published = {
        **TextPromptLearner.published,
        **VisionPromptLearner.published,
        r"text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow": r"text_prompts.\1",
    }

    def __init__(self, node, text_encoder, classnames: list[str], vision_width: int):
        super().__init__(text_encoder, classnames, node.N_CTX_TEXT, node.CTX_INIT)
        n = node.N_CTX_VISION
        depth = node.PROMPT_DEPTH_VISION if n else 0
        self.text_prompts = prompts_of_blocks(*self.ctx.shape, range(1, node.PROMPT_DEPTH_TEXT))
        self.vision_prompts = prompts_of_blocks(n, vision_width, range(depth))

    def text(self):
        return prompts_by_block(self.text_prompts)

    def vision(self):
        return prompts_by_block(self.vision_prompts)


class CustomCLIP(PromptedCLIP):
    def __init__(self, node, clip_model, classnames: list[str], templates: list[str] = (), descriptions: str = ""):
        super().__init__(clip_model, classnames, templates, descriptions)
        width = clip_model.visual.conv1.out_channels
        self.prompt_learner = VLPromptLearner(node, self.text_encoder, classnames, width)
        self.takes_features = not self.prompt_learner.vision_prompts


@TRAINER_REGISTRY.register()
class IVLP(ClipTrainer):
    """Independent prompts in both encoders."""

    defaults = ClipTrainer.defaults | {
        "N_CTX_VISION": Key(2, low=0),  # number of tokens of each V_i; 0 = none, like PROMPT_DEPTH_VISION 0
        "N_CTX_TEXT": Key(2, low=1),  # number of tokens of each P_i
        "CTX_INIT": "a photo of a",  # P_0 starts from its first tokens if N_CTX_TEXT <= 4; "" = random vectors
        "PROMPT_DEPTH_VISION": Key(9, low=0),  # K; 0 = no prompts in the image encoder
        "PROMPT_DEPTH_TEXT": Key(9, low=1),  # J; 1 = prompts in the input only
    }
    learner = "prompt_learner"
    registered = "VLPromptLearner"

    def build_classifier(self, clip_model, classnames):
        self.check_depths(clip_model)
        return CustomCLIP(self.node, clip_model, classnames)

    def check_depths(self, clip_model) -> None:
        """Raise ValueError if an encoder has fewer blocks than the depth of its prompts."""
        for encoder, key in (("image", "PROMPT_DEPTH_VISION"), ("text", "PROMPT_DEPTH_TEXT")):
            check_depth(clip_model, self.cfg.MODEL.BACKBONE.NAME, encoder, self.node[key], self.key(key))
