"""The classifier that every method here is: a frozen CLIP, image features against class features."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .text import TextEncoder


class ClipClassifier(nn.Module):
    """logits = s f(image) g(classes)^T with unit-length f and g.

    A method overrides `encode_text`, `encode_image` or both, and keeps its trained tensors, and nothing else, in a
    submodule. The frozen CLIP stays in eval mode always. What does not depend on the image is computed once while
    evaluating: see `once`.
    """

    def __init__(self, clip_model):
        super().__init__()
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.register_buffer("logit_scale", clip_model.logit_scale.detach().exp(), persistent=False)
        self._kept: dict[str, object] = {}

    def train(self, mode: bool = True) -> "ClipClassifier":
        super().train(mode)
        self.image_encoder.eval()
        self.text_encoder.eval()
        self._kept.clear()  # the weights have changed, or are about to
        return self

    def once(self, name: str, compute: Callable):
        """compute(), kept under `name` until the next `train()` or `eval()` when evaluating without gradients."""
        if self.training or torch.is_grad_enabled():
            return compute()
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] -> unit-length features float [B, d]."""
        return normalize(self.image_encoder(image))

    def encode_text(self) -> torch.Tensor:
        """Unit-length features of the classes, float [n_cls, d]."""
        raise NotImplementedError

    def logits(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """s f g^T, float32 [B, n_cls]: at s = 100 half precision would round logits to a sixteenth."""
        with torch.autocast(image_features.device.type, enabled=False):
            return self.logit_scale * image_features.float() @ text_features.float().t()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] -> logits float32 [B, n_cls]."""
        return self.logits(self.encode_image(image), self.once("text", self.encode_text))


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Rows of unit length, float32."""
    return F.normalize(features.float(), dim=-1)
