"""TCP, class-aware prompts (Yao et al. 2024, "TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model").

The paper is in CVPR 2024, the original code at github.com/htyao89/Textual-based_Class-aware_prompt_tuning. CoOp's
context of four vectors, which all classes share, enters the text encoder. Before block j four tokens of each class
replace it. A small network makes them from t_c, the frozen text feature of the class (unit length):

    T_c = W_2 gelu(W_1 t_c + b_1) + b_2,   W_1: d -> d / 4,   W_2: d / 4 -> 4 x width,   gelu(x) = x sigmoid(1.702 x)
    L   = CE(s f(x) g^T, y) + W (1 - mean_c cos(g_c, t_c))

f is the frozen image feature, and g_c the text feature of class c. The classes share the tokens of their prompts up to
block j only (shared/encoders.py).
"""

from collections import OrderedDict

import torch
from clip.model import QuickGELU
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .kgcoop import KgCoOp
from .shared.beside_dassl import say
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import DESCRIPTIONS, TEMPLATE, Key
from .shared.prompts import PromptLearner, template_for
from .shared.templates import TCP_PROMPTS, TCP_TEMPLATES

TOKENS = 4  # context vectors, and tokens of each class


class ClassAwarePromptLearner(PromptLearner):
    """The context, and the network that makes the tokens T_c.

    Args:
        text_encoder, classnames, words, template: see `PromptLearner`.
    """

    def __init__(self, text_encoder, classnames: list[str], words: str, template: str):
        super().__init__(text_encoder, classnames, TOKENS, words, template=template)
        d, width, device = text_encoder.text_projection.shape[1], self.ctx.shape[-1], self.ctx.device
        down, up = nn.Linear(d, d // 4), nn.Linear(d // 4, TOKENS * width)
        self.meta_net = nn.Sequential(OrderedDict(linear1=down, gelu=QuickGELU(), linear2=up)).to(device)

    def class_tokens(self, t: torch.Tensor) -> torch.Tensor:
        """Return the tokens T float [n_cls, 4, width] for the frozen text features t [n_cls, d]."""
        return self.meta_net(t).unflatten(-1, (TOKENS, -1))


class CustomCLIP(ClipClassifier):
    """CLIP with the tokens of a `ClassAwarePromptLearner`.

    Args:
        node: config node of TCP.
        clip_model, classnames: see `ClipClassifier`.
        words: first words of the context; "": random vectors.
        prompt: the trained prompt, whose first four tokens the context replaces.
        template: template of t_c.
    """

    def __init__(self, node, clip_model, classnames: list[str], words: str, prompt: str, template: str):
        super().__init__(clip_model, classnames, [template])
        self.block = node.BLOCK
        self.prompt_learner = ClassAwarePromptLearner(self.text_encoder, classnames, words, prompt)

    def encode_text(self) -> torch.Tensor:
        learner = self.prompt_learner
        deep = {self.block: learner.class_tokens(self.frozen_text)}
        return normalize(self.text_encoder(learner(), learner.tokens, learner.n_shared, deep=deep))


@TRAINER_REGISTRY.register()
class TCP(KgCoOp):
    """Textual-based class-aware prompt tuning."""

    defaults = {name: key for name, key in KgCoOp.defaults.items() if name not in DESCRIPTIONS} | {
        "N_CTX": Key(TOKENS, low=TOKENS, high=TOKENS),  # a class has as many tokens
        "CSC": Key(False, rule=("False: all classes share the context", lambda csc: not csc)),
        "W": Key(8.0, low=0),  # weight of the second term; the original has the constant 8
        "BLOCK": Key(8, low=1),  # j, counted from 0
        "TEMPLATE": TEMPLATE,  # template of t_c; "" = the data set's, see trainers/shared/templates.py
        "EPS": Key(1e-3, above=0),  # eps of Adam, which the original's README puts into Dassl's code
    }

    def build_classifier(self, clip_model, classnames):
        blocks, dataset = len(clip_model.transformer.resblocks), self.cfg.DATASET.NAME
        if self.node.BLOCK >= blocks:
            problem = f"{self.key('BLOCK')} is {self.node.BLOCK}, but the text encoder has the blocks 0 to {blocks - 1}"
            raise ValueError(f"{problem}: take one of them")
        template = template_for(dataset, self.node.TEMPLATE, TCP_TEMPLATES)
        prompt = TCP_PROMPTS.get(dataset, "X X X X {}.")
        return CustomCLIP(self.node, clip_model, classnames, self.words(), prompt, template)

    def build_model(self):
        super().build_model()
        for group in self.optim.param_groups:
            if "eps" in group:
                group["eps"] = self.node.EPS

    def fit(self):
        if self.node.W == 1:
            say(f"{self.key('W')} is 1, as in the authors' scripts, but their code has 8; leave it out to use theirs")
