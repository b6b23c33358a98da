"""Methods that change linear maps of CLIP's blocks: OrthCR, CLIP-LoRA and full fine-tuning differ in the change."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .backbones import is_vit
from .classifier import ClipClassifier
from .encoders import normalize
from .prompts import fill_template, tokenize

ENCODERS = ["image", "text"]
WEIGHTS = ["q", "k", "v", "out", "c_fc", "c_proj"]
ALIASES = {"o": "out"}  # CLIP-LoRA's own name


class Place(NamedTuple):
    """Where a weight W lies."""

    encoder: str
    parameter: str  # of the encoder
    rows: slice  # of the parameter


class TunedCLIP(ClipClassifier):
    """One CLIP in memory: its encoders called with changed linear maps are tuned, called without they are frozen.

    A method gives three functions of what it calls a change (OrthCR: R; LoRA: B A; full fine-tuning: the weight):

    - `changes(names, s)`: those of the places named, by name, at strength s: for s = 0 such that nothing changes, for
      s = 1 what was trained; asked for once a step;
    - `tuned(change, x, weight, bias)`: the changed map of activations, for training, in which a changed weight would
      cost a gradient of its size that nobody needs;
    - `merge(change, weight)`: the changed weight, for evaluation and export, where it costs nothing per image.

    Args:
        clip_model, classnames: see `ClipClassifier`.
        template: the prompt of both the tuned and the frozen side.
        node: config node with ENCODERS, LAYERS and WEIGHTS, which choose the places.
        where: name of the node, for messages.

    Attributes:
        strength: s from 0, the frozen CLIP to the bit, to 1, all that was trained; in evaluation, export included. In
            training it is 1 always.

    Raises:
        ValueError: a ResNet's image encoder, or a layer that an encoder does not have.
    """

    shared: int | None = None  # see `TextEncoder.forward`; 0: the changed maps are another for each class

    def __init__(self, clip_model, classnames: list[str], template: str, node, where: str):
        super().__init__(clip_model, classnames, [template])
        if "image" in node.ENCODERS and not is_vit(clip_model):
            raise ValueError(
                f"the image encoder of this backbone is a ResNet, which has no transformer blocks to tune: take a ViT, "
                f"or tune the text side alone with {where}.ENCODERS \"['text']\""
            )
        self.encoders = {"image": self.image_encoder, "text": self.text_encoder}
        self.places: dict[str, Place] = {}
        for encoder in node.ENCODERS:
            weights = [ALIASES.get(name, name) for name in node.WEIGHTS]
            self.places |= find_places(encoder, self.encoders[encoder], node.LAYERS, weights, where)
        tokens = tokenize(fill_template(template, classnames), self.text_encoder.context_length)
        self.register_buffer("tokens", tokens.to(self.logit_scale.device), persistent=False)
        self.strength = 1.0

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, s: float) -> None:
        self._strength = s
        self._kept.clear()

    def changes(self, names: list[str], s: float = 1.0) -> dict:
        raise NotImplementedError

    def tuned(self, change, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def merge(self, change, weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    # ---------------------------------------------------------------- features

    def weight(self, name: str) -> torch.Tensor:
        """The frozen W of a place; a view."""
        encoder, parameter, rows = self.places[name]
        return self.encoders[encoder].get_parameter(parameter)[rows]

    def names(self, encoders: Iterable[str]) -> list[str]:
        return [name for name, place in self.places.items() if place.encoder in encoders]

    def linear(self, *encoders: str) -> Callable:
        """The linear maps of these encoders with their changes, as `encoders.run_blocks` takes them."""
        changes = self.changes(self.names(encoders), 1.0 if self.training else self.strength)

        def changed(place, x, weight, bias):
            return self.tuned(changes[place], x, weight, bias) if place in changes else F.linear(x, weight, bias)

        return changed

    @torch.no_grad()
    def merged(self, *encoders: str) -> dict[str, dict[str, torch.Tensor]]:
        """The parameters of these encoders (default: both), changed by `strength`, to be written into a plain CLIP.

        Returns:
            {encoder: {name of the parameter: tensor}}, as in their state dicts.
        """
        encoders = encoders or tuple(self.encoders)
        parts = {encoder: defaultdict(dict) for encoder in encoders}
        with torch.autocast(self.logit_scale.device.type, enabled=False):
            for name, change in self.changes(self.names(encoders), self.strength).items():
                encoder, parameter, rows = self.places[name]
                parts[encoder][parameter][rows.start] = self.merge(change, self.weight(name))
        return {e: {p: self._assemble(e, p, rows) for p, rows in parts[e].items()} for e in encoders}

    def _assemble(self, encoder: str, parameter: str, changed: dict[int, torch.Tensor]) -> torch.Tensor:
        """A whole parameter: the changed tensor itself, or q, k, v below each other, those not chosen as they are."""
        weight = self.encoders[encoder].get_parameter(parameter)
        size = len(next(iter(changed.values())))
        return torch.cat([changed.get(k, weight[k : k + size]) for k in range(0, len(weight), size)])

    def encode_image(self, image: torch.Tensor, linear: Callable | None = None) -> torch.Tensor:
        return self._tuned("image", (image,), linear) if self.names(["image"]) else self.frozen_image(image)

    def encode_text(self, linear: Callable | None = None) -> torch.Tensor:
        return (
            self._tuned("text", (None, self.tokens, self.shared), linear) if self.names(["text"]) else self.frozen_text
        )

    def all_logits(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits float32 [B, n_cls] of tuned x tuned, tuned image x frozen text, frozen image x tuned text, frozen."""
        linear = self.linear("image", "text")  # every change of the step at once
        f, g = self.encode_image(image, linear), self.encode_text(linear)
        f_0, g_0 = self.frozen_image(image) if self.names(["image"]) else f, self.frozen_text
        return self.logits(f, g), self.logits(f, g_0), self.logits(f_0, g), self.logits(f_0, g_0)

    def _tuned(self, encoder: str, inputs: tuple, linear: Callable | None) -> torch.Tensor:
        """With gradients by the changed maps, of which `linear` may be at hand already; else by merged weights."""
        module = self.encoders[encoder]
        if self.training or torch.is_grad_enabled():
            return normalize(module(*inputs, linear=linear or self.linear(encoder)))
        merged = self.once(f"merged {encoder}", lambda: self.merged_copy(encoder))
        return normalize(merged(*inputs))

    def merged_copy(self, encoder: str) -> nn.Module:
        """Return the encoder with `merged` weights; it shares all other tensors with this one, which stays as it is."""
        return copy_with(self.encoders[encoder], self.merged(encoder)[encoder])


def copy_with(module: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a module with other parameters of these names; all that has no other name is shared."""
    twin = copy.copy(module)
    own = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in weights.items() if "." not in name}
    twin._parameters = {**module._parameters, **own}
    below = defaultdict(dict)
    for name, tensor in weights.items():
        child, _, rest = name.partition(".")
        if rest:
            below[child][rest] = tensor
    children = {
        name: copy_with(child, below[name]) if name in below else child for name, child in module._modules.items()
    }
    twin._modules = children
    return twin


def find_places(encoder: str, module: nn.Module, layers, weights, where: str) -> dict[str, Place]:
    """The chosen weights of an encoder by name: <encoder>_<block>_<weight>, as `encoders.run_blocks` calls them.

    Raises:
        ValueError: a layer that the encoder does not have.
    """
    blocks = module.transformer.resblocks
    outside = [i for i in layers if not -len(blocks) <= i < len(blocks)]
    if outside:
        raise ValueError(f"{where}.LAYERS has {outside}, but the {encoder} encoder has blocks 0 to {len(blocks) - 1}")
    places = {}
    for i in sorted({i % len(blocks) for i in layers} or range(len(blocks))):
        d, block = blocks[i].attn.embed_dim, f"transformer.resblocks.{i}."
        for name in weights:
            if name in ("q", "k", "v"):
                start = "qkv".index(name) * d
                parameter, rows = "attn.in_proj_weight", slice(start, start + d)
            else:
                parameter = "attn.out_proj.weight" if name == "out" else f"mlp.{name}.weight"
                rows = slice(0, None)
            places[f"{encoder}_{i}_{name}"] = Place(encoder, block + parameter, rows)
    return places
