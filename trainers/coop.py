"""CoOp (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", IJCV).

M trained vectors v_1 ... v_M replace the words of a prompt. All classes share them; with CSC each class has its own:

    t_c = [v_1] ... [v_M] [c].                         CLASS_TOKEN_POSITION end
    t_c = [v_1] ... [v_M/2] [c] [v_M/2+1] ... [v_M].   middle
    t_c = [c] [v_1] ... [v_M].                         front
    L   = CE(s f(x) g(t)^T, y)
"""

import torch

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.beside_dassl import say
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import DecidingKey, Key
from .shared.prompts import POSITIONS, PromptLearner, agrees_with_words


class CustomCLIP(ClipClassifier):
    """CLIP with a learned context in its prompts.

    Args:
        clip_model: see `ClipClassifier`.
        classnames: see `ClipClassifier`.
        context: keyword arguments of `PromptLearner`.
        templates: templates of the frozen side, if the method has one.
        descriptions: see `ClipClassifier`.
    """

    def __init__(
        self, clip_model, classnames: list[str], context: dict, templates: list[str] = (), descriptions: str = ""
    ):
        super().__init__(clip_model, classnames, templates, descriptions)
        self.prompt_learner = PromptLearner(self.text_encoder, classnames, **context)

    def text_features(self) -> torch.Tensor:
        """Return the class features [n_cls, d] before they have unit length."""
        learner = self.prompt_learner
        return self.text_encoder(learner(), learner.tokens, learner.n_shared)

    def encode_text(self) -> torch.Tensor:
        return normalize(self.text_features())


@TRAINER_REGISTRY.register()
class CoOp(ClipTrainer):
    """Context Optimization."""

    defaults = ClipTrainer.defaults | {
        "N_CTX": Key(16, low=0, high=75),  # M, number of context vectors; CTX_INIT sets it to its number of words
        "CSC": False,  # class-specific context; cannot be evaluated on other classes; ignored with CTX_INIT
        "CTX_INIT": "",  # initial words of the context, for example "a photo of a"; "" = random vectors
        "CLASS_TOKEN_POSITION": Key("end", choices=POSITIONS),
    }
    deciding_keys = {"CTX_INIT": DecidingKey(("N_CTX", "CSC"), agrees_with_words, refused=True)}
    learner = "prompt_learner"
    classifier = CustomCLIP

    def check_node(self, node):
        super().check_node(node)
        if node.N_CTX < 1 and not node.CTX_INIT.strip(" _"):
            raise ValueError(f"{self.key('N_CTX')} is {node.N_CTX}: give 1 or more, or words as CTX_INIT")

    def words(self) -> str:
        """Return the initial words of the context; "": random vectors."""
        return self.node.CTX_INIT.strip(" _")

    def context(self) -> dict:
        """Return the keyword arguments of `PromptLearner`."""
        node, words = self.node, self.words()
        if words and node.CSC:
            say(f'{self.key("CSC")} is ignored: all classes share a context that starts from "{words}", as in CoOp')
        n_ctx = 0 if words else node.N_CTX
        return {"n_ctx": n_ctx, "words": words, "csc": node.CSC, "position": node.CLASS_TOKEN_POSITION}

    def build_classifier(self, clip_model, classnames):
        return self.classifier(clip_model, classnames, self.context())
