"""CoOp (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", IJCV).

The words of a prompt become M trained vectors v_1 ... v_M, the same for all classes or (CSC) each class its own:

    t_c = [v_1] ... [v_M] [c].                         CLASS_TOKEN_POSITION end
    t_c = [v_1] ... [v_M/2] [c] [v_M/2+1] ... [v_M].   middle
    t_c = [c] [v_1] ... [v_M].                         front
    L   = CE(s f(x) g(t)^T, y)
"""

import torch

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.console import say
from .shared.encoders import normalize
from .shared.keys import Decides, Key
from .shared.prompts import POSITIONS, PromptLearner, agrees_with_words


class CustomCLIP(ClipClassifier):
    """`context`: arguments of `PromptLearner` behind the class names; `templates`: of the frozen side, if needed."""

    def __init__(self, clip_model, classnames: list[str], context: dict, templates: list[str] = ()):
        super().__init__(clip_model, classnames, templates)
        self.prompt_learner = PromptLearner(self.text_encoder, classnames, **context)

    def encode_text(self) -> torch.Tensor:
        learner = self.prompt_learner
        return normalize(self.text_encoder(learner(), learner.tokens, learner.shared))


@TRAINER_REGISTRY.register()
class CoOp(ClipTrainer):
    """Context Optimization."""

    defaults = ClipTrainer.defaults | {
        "N_CTX": Key(16, low=0, high=75),  # M, number of context vectors; with CTX_INIT that of its words
        "CSC": False,  # class-specific context; cannot be evaluated on other classes; ignored with CTX_INIT
        "CTX_INIT": "",  # words that the context starts from, e.g. "a photo of a"; "" = random
        "CLASS_TOKEN_POSITION": Key("end", choices=POSITIONS),
    }
    decides = {"CTX_INIT": Decides(("N_CTX", "CSC"), agrees_with_words, refused=True)}
    learner = "prompt_learner"

    def check_node(self, node):
        super().check_node(node)
        if node.N_CTX < 1 and not node.CTX_INIT.strip(" _"):
            raise ValueError(f"{self.key('N_CTX')} is {node.N_CTX}: give 1 or more, or words as CTX_INIT")

    def words(self) -> str:
        """What the context starts from; "": random vectors."""
        return self.node.CTX_INIT.strip(" _")

    def context(self) -> dict:
        node, words = self.node, self.words()
        if words and node.CSC:
            say(f'{self.key("CSC")} is ignored: from "{words}" starts one context for all classes, as in CoOp')
        n_ctx = 0 if words else node.N_CTX
        return {"n_ctx": n_ctx, "words": words, "csc": node.CSC, "position": node.CLASS_TOKEN_POSITION}

    def build_classifier(self, clip_model, classnames):
        return CustomCLIP(clip_model, classnames, self.context())
