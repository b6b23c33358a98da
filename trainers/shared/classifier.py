"""ClipClassifier: the base class of all models. It compares image features of CLIP with class features."""

import contextlib
from collections.abc import Callable
from functools import cached_property

import torch
from torch import nn

from .backbones import is_vit
from .descriptions import read_descriptions
from .encoders import ImageEncoder, TextEncoder, normalize, wide
from .prompts import fill_template, sentence_features, template_features


class ClipClassifier(nn.Module):
    """A classifier with logits = s f(image) g(classes)^T, f and g of unit length. By itself it is zero-shot CLIP.

                                   unit length                       any length
        frozen CLIP, images        f0  `frozen_image`                `frozen_features`
        frozen CLIP, classes       g0  `frozen_text`
        the method, images         f   `encode_image`                `image_features`
        the method, classes        g   `encode_text`

    A method overrides `encode_text`, `encode_image` or both. A submodule holds its trained tensors and no others. The
    frozen CLIP is always in eval mode. Values that stay the same are computed once:

    - `compute_frozen_once` caches values of the frozen CLIP until `.to()` or a similar call changes its tensors;
    - `compute_once` caches other values in an evaluation, until one of these calls, `train()` or `eval()`.

    Args:
        clip_model: CLIP as returned by `load_clip`, a ViT or a ResNet.
        classnames: names of the n_cls classes.
        templates: prompts of the frozen side, with {} for the class name.
        descriptions: file for `read_descriptions`, whose sentences replace the templates in `frozen_text`; "": none.

    Attributes:
        unit_templates: whether the frozen features of each template are made unit length before their mean.
        takes_features: whether `forward`, `encode_image` and `image_features` also take the frozen features of images,
            float [B, d], in place of the images. A subclass that overrides one of them has to declare it again.

    Raises:
        ValueError: a template has no {}.
    """

    unit_templates = True
    takes_features = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        overrides = {"forward", "encode_image", "image_features"} & vars(cls).keys()
        if overrides and "takes_features" not in vars(cls):
            cls.takes_features = False

    def __init__(self, clip_model, classnames: list[str], templates: list[str] = (), descriptions: str = ""):
        super().__init__()
        self.image_encoder = ImageEncoder(clip_model.visual) if is_vit(clip_model) else clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.register_buffer("logit_scale", clip_model.logit_scale.detach().exp(), persistent=False)
        self.classnames, self.templates, self.description_file = classnames, templates, descriptions
        for template in templates:  # raise an error now instead of at its first use
            fill_template(template, classnames)
        self._frozen_cache: dict[str, object] = {}
        self._evaluation_cache: dict[str, object] = {}

    def train(self, mode: bool = True) -> "ClipClassifier":
        super().train(mode)
        self.image_encoder.eval()
        self.text_encoder.eval()
        self._evaluation_cache.clear()  # the weights have changed, or are about to
        return self

    def _apply(self, fn, recurse=True):  # torch calls it for .to(), .double() and the like
        self._frozen_cache.clear()
        self._evaluation_cache.clear()
        return super()._apply(fn, recurse)

    def compute_frozen_once(self, name: str, compute: Callable):
        """Return compute(), a value of the frozen CLIP alone, which is cached by name."""
        if name not in self._frozen_cache:
            self._frozen_cache[name] = compute()
        return self._frozen_cache[name]

    def compute_once(self, name: str, compute: Callable):
        """Return compute(). An evaluation without gradients caches it by name."""
        if self.training or torch.is_grad_enabled():
            return compute()
        if name not in self._evaluation_cache:
            self._evaluation_cache[name] = compute()
        return self._evaluation_cache[name]

    # ---------------------------------------------------------------- features, float32

    @torch.no_grad()
    def frozen_features(self, image: torch.Tensor) -> torch.Tensor:
        """Return the frozen CLIP's features float32 [B, d], not normalised, without gradient.

        Args:
            image: float [B, 3, H, W]; or these features, which are returned.
        """
        return image if image.dim() == 2 else wide(self.image_encoder(image))

    def frozen_image(self, image: torch.Tensor) -> torch.Tensor:
        """Return f0 [B, d], the frozen features with unit length; the argument is that of `frozen_features`."""
        return normalize(self.frozen_features(image))

    @property
    def frozen_text(self) -> torch.Tensor:
        """The frozen class features g0 [n_cls, d], encoded at their first use.

        They are a mean over the sentences of the descriptions or, without a file of these, over `templates`.
        """
        if not self.description_file:
            return self.template_text
        return self.compute_frozen_once("sentences", self._encode_sentences)

    @property
    def template_text(self) -> torch.Tensor:
        """The frozen class features [n_cls, d], a mean over `templates`, encoded at their first use."""
        return self.compute_frozen_once("templates", self._encode_templates)

    def _encode_sentences(self) -> torch.Tensor:
        with self.encoding():
            return sentence_features(self.text_encoder, self.sentences, self.unit_templates)

    def _encode_templates(self) -> torch.Tensor:
        with self.encoding():
            return template_features(self.text_encoder, self.classnames, self.templates, self.unit_templates)

    @contextlib.contextmanager
    def encoding(self):
        """Encode without autocast and gradients, into tensors that a later training may use."""
        autocast = torch.autocast(self.logit_scale.device.type, enabled=False)
        with autocast, torch.inference_mode(False), torch.no_grad():
            yield

    @cached_property
    def sentences(self) -> list[list[str]]:
        """The sentences of each class. The file is read at the first use: an evaluation of a learner needs none."""
        return read_descriptions(self.description_file, self.classnames)

    def prompts(self) -> list[list[str]]:
        """Return the prompts of each class on the side without learned tensors, for the card of an export."""
        return [[fill_template(template, [name])[0] for template in self.templates] for name in self.classnames]

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        """Return f [B, d] before it has unit length."""
        return self.frozen_features(image)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Return the method's features f [B, d] of images float [B, 3, H, W]."""
        return normalize(self.image_features(image))

    def encode_text(self) -> torch.Tensor:
        """Return the method's class features g: [n_cls, d], or [B, n_cls, d] if they depend on the image."""
        return self.frozen_text

    # ---------------------------------------------------------------- logits

    def logits(self, f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Return s f g^T, float32 [B, n_cls], for f [B, d] and g [n_cls, d] or [B, n_cls, d].

        It is never computed in half precision, which would round logits to a sixteenth at s = 100.
        """
        with torch.autocast(f.device.type, enabled=False):
            f, g = self.logit_scale * wide(f), wide(g)
            return f @ g.t() if g.dim() == 2 else (g @ f.unsqueeze(-1)).squeeze(-1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits float32 [B, n_cls] of images float [B, 3, H, W]."""
        return self.logits(self.encode_image(image), self.compute_once("text", self.encode_text))
