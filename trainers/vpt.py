"""VPT, deep visual prompt tuning of CLIP's image encoder (Jia et al. 2022, "Visual Prompt Tuning", ECCV).

This is the variant that is a baseline in Khattak et al. 2023, "MaPLe". Image prompts V_0 ... V_{K-1} are trained. The
text features g_0 are CLIP's:

    L = CE(s f(x; V) g_0^T, y)

K is the depth. shared/deep.py has the positions of the prompts.
"""

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.deep import VisionPromptedCLIP, VisionPromptLearner, check_depth
from .shared.keys import Key


class CustomCLIP(VisionPromptedCLIP):
    def __init__(self, node, clip_model, classnames: list[str]):
        super().__init__(clip_model, classnames, [f"{node.CTX_INIT} {{}}."])
        width = clip_model.visual.conv1.out_channels
        self.prompt_learner = VisionPromptLearner(node.N_CTX_VISION, width, node.PROMPT_DEPTH_VISION)


@TRAINER_REGISTRY.register()
class VPT(ClipTrainer):
    """Visual prompt tuning: prompts in the image encoder only."""

    defaults = ClipTrainer.defaults | {
        "N_CTX_VISION": Key(2, low=1),  # number of tokens of each V_i
        "CTX_INIT": "a photo of a",  # the words before the class name, which are not trained
        "PROMPT_DEPTH_VISION": Key(1, low=1),  # K; 1 = prompts in the input only
    }
    learner = "prompt_learner"

    def build_classifier(self, clip_model, classnames):
        depth, key = self.node.PROMPT_DEPTH_VISION, self.key("PROMPT_DEPTH_VISION")
        check_depth(clip_model, self.cfg.MODEL.BACKBONE.NAME, "image", depth, key)
        return CustomCLIP(self.node, clip_model, classnames)
