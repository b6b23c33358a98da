"""CoCoOp (Zhou et al. 2022, "Conditional Prompt Learning for Vision-Language Models", CVPR).

A small network h maps the image feature to a shift, which is added to each of the M vectors of CoOp's context:

    h(f)   = W_2 relu(W_1 f + b_1) + b_2,   W_1: d -> d / 16                             (f of unit length)
    t_c(x) = [v_1 + h(f(x))] ... [v_M + h(f(x))] [c].
    L      = CE(s f(x) g(t(x))^T, y)

Each image has its own n_cls prompts. The B x n_cls prompts of a batch are encoded in one pass, with one prefix per
image.
"""

from collections import OrderedDict

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import DecidingKey, Key
from .shared.prompts import PromptLearner, agrees_with_words


class ConditionalPromptLearner(PromptLearner):
    def __init__(self, text_encoder, classnames: list[str], n_ctx: int, words: str):
        super().__init__(text_encoder, classnames, n_ctx, words)
        d, width, device = text_encoder.text_projection.shape[1], self.ctx.shape[-1], self.ctx.device
        layers = {"linear1": nn.Linear(d, d // 16), "relu": nn.ReLU(), "linear2": nn.Linear(d // 16, width)}
        self.meta_net = nn.Sequential(OrderedDict(layers)).to(device)

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """Return the prompt embeddings float [B, n_cls, L, width] for image features f [B, d]."""
        return super().forward(self.ctx + self.meta_net(f).unsqueeze(1))


class CustomCLIP(ClipClassifier):
    takes_features = True

    def __init__(self, node, clip_model, classnames: list[str]):
        super().__init__(clip_model, classnames)
        words = node.CTX_INIT.strip(" _")
        n_ctx = 0 if words else node.N_CTX
        self.prompt_learner = ConditionalPromptLearner(self.text_encoder, classnames, n_ctx, words)

    def encode_text(self, f: torch.Tensor) -> torch.Tensor:
        """Return the class features g [B, n_cls, d] for image features f [B, d]."""
        learner, encoder = self.prompt_learner, self.text_encoder
        images = len(f)
        if not torch.is_grad_enabled():  # the embeddings take memory too, so only some images have theirs at once
            images = encoder.plan(learner.tokens, learner.n_shared, images).images
        return normalize(
            torch.cat([encoder(learner(part), learner.tokens, learner.n_shared) for part in f.split(images)])
        )

    def forward(self, image):
        f = self.encode_image(image)
        return self.logits(f, self.encode_text(f))


@TRAINER_REGISTRY.register()
class CoCoOp(ClipTrainer):
    """Conditional Context Optimization."""

    defaults = ClipTrainer.defaults | {
        "N_CTX": Key(16, low=1),  # M, number of context vectors; CTX_INIT sets it to its number of words
        "CTX_INIT": "",  # initial words of the context, for example "a photo of a"; "" = random vectors
    }
    deciding_keys = {"CTX_INIT": DecidingKey(("N_CTX",), agrees_with_words, refused=True)}
    learner = "prompt_learner"

    def build_classifier(self, clip_model, classnames):
        return CustomCLIP(self.node, clip_model, classnames)
