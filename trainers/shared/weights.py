"""TunedCLIP: the base class for methods that change linear maps of CLIP's blocks.

OrthCR, CLIP-LoRA and full fine-tuning differ only in the change.
"""

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
from .prompts import fill_template

ENCODERS = ["image", "text"]
WEIGHTS = ["q", "k", "v", "out", "c_fc", "c_proj"]
ALIASES = {"o": "out"}  # the name in CLIP-LoRA's code


class WeightSlice(NamedTuple):
    """The rows of a parameter that are one weight W, for example q of `in_proj_weight`."""

    encoder: str
    parameter: str  # name within the encoder
    rows: slice  # rows of that parameter


class TunedCLIP(ClipClassifier):
    """A tuned and a frozen CLIP that share one set of weights.

    The encoders are tuned when they are called with changed linear maps, and frozen when they are called without.
    A method defines its change (OrthCR: R; LoRA: B A; full fine-tuning: the weight) by three functions:

    - `compute_changes(names, s)` returns the changes of these places by name, at strength s. At s = 0 they change
      nothing; at s = 1 they are as trained. It is called once per step.
    - `apply_change(change, x, weight, bias)` returns the output of the changed map, in training. It should not make
      autograd store a gradient of the size of W, unless W itself is trained.
    - `merge(change, weight)` returns the changed weight, without a gradient, for evaluation and export.

    Args:
        clip_model, classnames: see `ClipClassifier`.
        template: prompt of the tuned and, without DESCRIPTIONS, of the frozen side.
        node: config node with ENCODERS, LAYERS and WEIGHTS, which choose the places, and perhaps DESCRIPTIONS.
        node_name: full name of the node, for messages.

    Attributes:
        places: the weights W that change, by the name of their place, as in `encoders.Seams`.
        strength: fraction s of the update in evaluation and export. 0 is bit-identical to the frozen CLIP, and 1 is the
            whole update. Training always uses 1.

    Raises:
        ValueError: the image encoder is a ResNet, or an encoder does not have one of the layers.
    """

    n_shared: int | None = None  # see `TextEncoder.forward`; 0: the changed maps differ between the classes

    def __init__(self, clip_model, classnames: list[str], template: str, node, node_name: str):
        super().__init__(clip_model, classnames, [template], getattr(node, "DESCRIPTIONS", ""))
        if "image" in node.ENCODERS and not is_vit(clip_model):
            raise ValueError(
                f"the image encoder of this backbone is a ResNet, which has no transformer blocks to tune: take a ViT, "
                f"or tune the text side alone with {node_name}.ENCODERS \"['text']\""
            )
        self.encoders = {"image": self.image_encoder, "text": self.text_encoder}
        self.places: dict[str, WeightSlice] = {}
        for encoder in node.ENCODERS:
            weights = [ALIASES.get(name, name) for name in node.WEIGHTS]
            self.places |= find_places(encoder, self.encoders[encoder], node.LAYERS, weights, node_name)
        tokens = self.text_encoder.tokenize(fill_template(template, classnames))
        self.register_buffer("tokens", tokens.to(self.logit_scale.device), persistent=False)
        self.strength = 1.0
        self.takes_features = not self.places_in(["image"])

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, s: float) -> None:
        self._strength = s
        self._evaluation_cache.clear()

    def compute_changes(self, names: list[str], s: float = 1.0) -> dict:
        raise NotImplementedError

    def apply_change(self, change, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def merge(self, change, weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    # ---------------------------------------------------------------- features

    def frozen_weight(self, name: str) -> torch.Tensor:
        """Return a view of the frozen W of a place."""
        encoder, parameter, rows = self.places[name]
        return self.encoders[encoder].get_parameter(parameter)[rows]

    def places_in(self, encoders: Iterable[str]) -> list[str]:
        """Return the names of the places in these encoders."""
        return [name for name, place in self.places.items() if place.encoder in encoders]

    def linear(self, *encoders: str) -> Callable:
        """Return the changed linear maps of these encoders, for `encoders.Seams.linear`."""
        changes = self.compute_changes(self.places_in(encoders), 1.0 if self.training else self.strength)

        def changed(place, x, weight, bias):
            return self.apply_change(changes[place], x, weight, bias) if place in changes else F.linear(x, weight, bias)

        return changed

    @torch.no_grad()
    def merge_weights(self, *encoders: str) -> dict[str, dict[str, torch.Tensor]]:
        """Return the merged parameters of these encoders at `strength`, which fit into a plain CLIP.

        Args:
            encoders: their names; none: both.

        Returns:
            {encoder: {name of the parameter: tensor}}, with the names of their state dicts.
        """
        encoders = encoders or tuple(self.encoders)
        changed = {encoder: defaultdict(dict) for encoder in encoders}  # {encoder: {parameter: {first row: W'}}}
        with torch.autocast(self.logit_scale.device.type, enabled=False):
            for name, change in self.compute_changes(self.places_in(encoders), self.strength).items():
                encoder, parameter, rows = self.places[name]
                changed[encoder][parameter][rows.start] = self.merge(change, self.frozen_weight(name))
        return {
            encoder: {name: self._replace_rows(encoder, name, rows) for name, rows in parameters.items()}
            for encoder, parameters in changed.items()
        }

    def _replace_rows(self, encoder: str, parameter: str, changed: dict[int, torch.Tensor]) -> torch.Tensor:
        """Return a whole parameter with its changed rows. q, k and v are rows of one parameter.

        Args:
            encoder: name of the encoder.
            parameter: name of the parameter.
            changed: changed rows, by the number of their first row.
        """
        weight = self.encoders[encoder].get_parameter(parameter)
        size = len(next(iter(changed.values())))
        return torch.cat([changed.get(k, weight[k : k + size]) for k in range(0, len(weight), size)])

    def encode_image(self, image: torch.Tensor, linear: Callable | None = None) -> torch.Tensor:
        if not self.places_in(["image"]):
            return self.frozen_image(image)
        return self._encode("image", (image,), linear)

    def encode_text(self, linear: Callable | None = None) -> torch.Tensor:
        if not self.places_in(["text"]):
            return self.template_text
        return self._encode("text", (None, self.tokens, self.n_shared), linear)

    def all_logits(self, image: torch.Tensor, frozen_input: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return the four logits z, z_v, z_t, z_0 of regularized.py, each float32 [B, n_cls].

        They are those of tuned image x tuned text, tuned image x frozen text, frozen image x tuned text, and frozen
        image x frozen text.

        Args:
            image: float [B, 3, H, W].
            frozen_input: argument of `frozen_image` for these images; None: the images.
        """
        linear = self.linear("image", "text")  # computes the changes of both encoders at once
        frozen_input = image if frozen_input is None else frozen_input
        tunes_image = bool(self.places_in(["image"]))
        f, g = self.encode_image(image if tunes_image else frozen_input, linear), self.encode_text(linear)
        f_0, g_0 = self.frozen_image(frozen_input) if tunes_image else f, self.frozen_text
        return self.logits(f, g), self.logits(f, g_0), self.logits(f_0, g), self.logits(f_0, g_0)

    def _encode(self, encoder: str, inputs: tuple, linear: Callable | None) -> torch.Tensor:
        """Return tuned features: with gradients by the changed maps, without them by merged weights.

        Args:
            encoder: name of the encoder.
            inputs: its positional arguments.
            linear: the changed maps, if they have been computed already.
        """
        module = self.encoders[encoder]
        if self.training or torch.is_grad_enabled():
            return normalize(module(*inputs, linear=linear or self.linear(encoder)))
        merged = self.compute_once(f"merged {encoder}", lambda: self.merged_copy(encoder))
        return normalize(merged(*inputs))

    def merged_copy(self, encoder: str) -> nn.Module:
        """Return a copy of the encoder with merged weights that shares all other tensors."""
        return copy_with(self.encoders[encoder], self.merge_weights(encoder)[encoder])


def copy_with(module: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a module with new values for the parameters of these names. All other tensors are shared.

    A value that is a parameter itself stays the same one, so that the copy passes gradients to it.
    """
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    weights_of_children = defaultdict(dict)
    for name, tensor in weights.items():
        child, _, rest = name.partition(".")
        if rest:
            weights_of_children[child][rest] = tensor
        else:
            is_parameter = isinstance(tensor, nn.Parameter)
            twin._parameters[name] = tensor if is_parameter else nn.Parameter(tensor, requires_grad=False)
    twin._modules = dict(module._modules)
    for name, child_weights in weights_of_children.items():
        twin._modules[name] = copy_with(module._modules[name], child_weights)
    return twin


def find_places(encoder: str, module: nn.Module, layers, weights, node_name: str) -> dict[str, WeightSlice]:
    """Return the chosen weights of an encoder by name.

    The names are <encoder>_<block>_<weight>, as in `encoders.Seams`. All layers include the attention pooling of the
    image encoder, if the family has one, as the block "pool".

    Args:
        encoder: name of the encoder.
        module: the encoder.
        layers: numbers of the blocks; negative ones count from the end, none means all.
        weights: names of the weights in each block, of WEIGHTS.
        node_name: full name of the config node, for the message.

    Raises:
        ValueError: the encoder does not have one of the layers.
    """
    blocks = module.transformer.resblocks
    outside = [i for i in layers if not -len(blocks) <= i < len(blocks)]
    if outside:
        raise ValueError(
            f"{node_name}.LAYERS has {outside}, but the {encoder} encoder has blocks 0 to {len(blocks) - 1}"
        )
    numbers = sorted({i % len(blocks) for i in layers} or range(len(blocks)))
    chosen = {str(i): f"transformer.resblocks.{i}" for i in numbers}
    if not layers and getattr(module, "attn_pool", None) is not None:
        chosen["pool"] = "attn_pool"
    places = {}
    for i, block_name in chosen.items():
        d, block = module.get_submodule(block_name).attn.embed_dim, f"{block_name}."
        for name in weights:
            if name in ("q", "k", "v"):
                start = "qkv".index(name) * d
                parameter, rows = "attn.in_proj_weight", slice(start, start + d)
            else:
                parameter = "attn.out_proj.weight" if name == "out" else f"mlp.{name}.weight"
                rows = slice(0, None)
            places[f"{encoder}_{i}_{name}"] = WeightSlice(encoder, block + parameter, rows)
    return places
