"""The classifier that every method here is: a frozen CLIP, image features against class features."""

from collections.abc import Callable

import torch
from torch import nn

from .backbones import is_vit
from .encoders import ImageEncoder, TextEncoder, normalize, wide
from .prompts import fill_template, template_features


class ClipClassifier(nn.Module):
    """logits = s f(image) g(classes)^T with unit-length f and g: as it stands, zero-shot CLIP.

    A method overrides `encode_text`, `encode_image` or both, and keeps its trained tensors, and nothing else, in a
    submodule. The frozen CLIP stays in eval mode always. What does not depend on the image is computed once while
    evaluating: see `once`.

    Args:
        clip_model: CLIP as `load_clip` gives it, a ViT or a ResNet.
        classnames: of the classes to tell apart, n_cls of them.
        templates: prompts with {} for the class name, of the frozen side.

    Attributes:
        unit_templates: whether the frozen side's features of each template are made unit length before their mean.

    Raises:
        ValueError: a template has no {}.
    """

    unit_templates = True

    def __init__(self, clip_model, classnames: list[str], templates: list[str] = ()):
        super().__init__()
        self.image_encoder = ImageEncoder(clip_model.visual) if is_vit(clip_model) else clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.register_buffer("logit_scale", clip_model.logit_scale.detach().exp(), persistent=False)
        self.classnames, self.templates = classnames, templates
        for template in templates:  # an error now, not when it is first used
            fill_template(template, classnames)
        self._frozen_text: torch.Tensor | None = None
        self._frozen_images: torch.Tensor | None = None
        self._known: tuple | None = None
        self._kept: dict[str, object] = {}

    def train(self, mode: bool = True) -> "ClipClassifier":
        super().train(mode)
        self.image_encoder.eval()
        self.text_encoder.eval()
        self._kept.clear()  # the weights have changed, or are about to
        self._known = None
        return self

    def _apply(self, fn, recurse=True):  # of .to(), .double() and the like
        self._kept.clear()
        self._frozen_text = self._frozen_images = None
        return super()._apply(fn, recurse)

    def once(self, name: str, compute: Callable):
        """compute(), kept under `name` until the next `train()` or `eval()` when evaluating without gradients."""
        if self.training or torch.is_grad_enabled():
            return compute()
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    # ---------------------------------------------------------------- features, all of unit length, float32

    def know(self, image: torch.Tensor, index: torch.Tensor, encode: Callable) -> None:
        """Says that a batch has the training images of these numbers, as they are in every epoch.

        Args:
            encode: gives the frozen features float [n, d] of all of them; called once, when the first are needed.
        """
        self._known = image, index, encode

    @torch.no_grad()
    def frozen_features(self, image: torch.Tensor) -> torch.Tensor:
        """Of the frozen CLIP for float [B, 3, H, W]: float32 [B, d], not normalised, without gradient."""
        if self._known is None or self._known[0] is not image:
            return wide(self.image_encoder(image))
        _, index, encode = self._known
        if self._frozen_images is None:
            self._frozen_images = encode()
        return self._frozen_images[index.to(self._frozen_images.device)]

    def frozen_image(self, image: torch.Tensor) -> torch.Tensor:
        """f0 [B, d]: the same, of unit length."""
        return normalize(self.frozen_features(image))

    @property
    def frozen_text(self) -> torch.Tensor:
        """g0 [n_cls, d]: the frozen CLIP's mean over `templates`; it never changes: encoded at its first use."""
        if self._frozen_text is None:
            plain = torch.autocast(self.logit_scale.device.type, enabled=False)
            with plain, torch.inference_mode(False), torch.no_grad():  # kept for a training to come, too
                self._frozen_text = template_features(
                    self.text_encoder, self.classnames, self.templates, self.unit_templates
                )
        return self._frozen_text

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """f [B, d] of the method for images float [B, 3, H, W]."""
        return self.frozen_image(image)

    def encode_text(self) -> torch.Tensor:
        """g of the method: [n_cls, d], or [B, n_cls, d] if it depends on the image."""
        return self.frozen_text

    # ---------------------------------------------------------------- logits

    def logits(self, f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """s f g^T, float32 [B, n_cls], of f [B, d] and g [n_cls, d] or [B, n_cls, d].

        Never in half precision, which would round logits to a sixteenth at s = 100.
        """
        with torch.autocast(f.device.type, enabled=False):
            f, g = self.logit_scale * wide(f), wide(g)
            return f @ g.t() if g.dim() == 2 else (g @ f.unsqueeze(-1)).squeeze(-1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] -> logits float32 [B, n_cls]."""
        return self.logits(self.encode_image(image), self.once("text", self.encode_text))
