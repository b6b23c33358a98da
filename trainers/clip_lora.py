"""CLIP-LoRA (Zanella and Ben Ayed 2024, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops).

A product of rank r is added to the chosen weights W (out x in), by default q, k and v of every block of both encoders:

    y = W x + b + (alpha / sqrt(r)) B A d(x),   A [r, in] random, B [out, r] from zero
    L = CE(100 f g^T, y)

d is dropout, drawn independently for each map. Only A and B are trained. An evaluation uses the merged weights
W + s (alpha / sqrt(r)) B A with the strength s.
"""

import math
import os.path as osp

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import load_tensors
from .shared.beside_dassl import read_archive
from .shared.iterations import Iterations
from .shared.keys import SOME, Key
from .shared.prompts import template_for
from .shared.weights import ALIASES, ENCODERS, WEIGHTS, TunedCLIP
from .tuned import TunedTrainer


class LoRA(nn.Module):
    """The trained tensors: A float [r, in] and B [out, r] for each name.

    Args:
        shapes: (out, in) of W, by name.
        r: rank.
        alpha: alpha of the equation above, to compare with that of a loaded file.
    """

    def __init__(self, shapes: dict[str, tuple[int, int]], r: int, alpha: float):
        super().__init__()
        self.r, self.alpha = r, alpha
        start = {name: nn.init.kaiming_uniform_(torch.empty(r, d), a=math.sqrt(5)) for name, (_, d) in shapes.items()}
        self.w_lora_A = nn.ParameterDict(start)
        self.w_lora_B = nn.ParameterDict({name: torch.zeros(d, r) for name, (d, _) in shapes.items()})

    def load_state_dict(self, state_dict, *args, **kwargs):
        return super().load_state_dict(self.rename_weights(state_dict), *args, **kwargs)

    def rename_weights(self, state_dict: dict) -> dict[str, torch.Tensor]:
        """Return the content of the original's lora_weights.pt with the names of this class.

        That file has {"weights": {layer: {map: {A, B}}}, "metadata": {"r", "alpha", ...}}. Its layers are the blocks of
        the text encoder followed by those of the image encoder. A state dict of this class is returned unchanged.

        Raises:
            ValueError: the file is malformed, or alpha, the maps or the number of blocks differ from this object's.
        """
        if "weights" not in state_dict:
            return state_dict
        layers, metadata = state_dict["weights"], state_dict.get("metadata", {})
        check_file(layers, metadata)
        if metadata.get("alpha", self.alpha) != self.alpha:  # the shapes fit, but the scale of the products is wrong
            raise ValueError(f"this LoRA was trained with alpha {metadata['alpha']}, not {self.alpha}: set ALPHA")
        maps = [ALIASES.get(name, name) for name in metadata.get("params", [])]
        if maps and set(maps) != {name.split("_", 2)[2] for name in self.w_lora_A}:
            raise ValueError(f"this LoRA is of the maps {', '.join(maps)}: set WEIGHTS {maps}")
        blocks = dict.fromkeys(tuple(name.split("_")[:2]) for name in self.w_lora_A)
        blocks = sorted(blocks, key=lambda block: (block[0] != "text", int(block[1])))
        if list(layers) != [f"layer_{k}" for k in range(len(blocks))]:
            raise ValueError(f"this LoRA is of {len(layers)} blocks, not {len(blocks)}: set ENCODERS and LAYERS")
        tensors = {}
        for (encoder, i), layer in zip(blocks, layers.values(), strict=True):
            for name, matrices in layer.items():
                weight = "out" if name == "proj" else name.removesuffix("_proj")
                for matrix, tensor in matrices.items():
                    tensors[f"{matrix}.{encoder}_{i}_{weight}"] = tensor
        return tensors


def check_file(layers: object, metadata: object) -> None:
    """Raise ValueError if the content of a lora_weights.pt does not have the original's form.

    Args:
        layers: {layer: {map: {matrix: tensor}}}.
        metadata: {"alpha": number, "params": [map, ...], ...}.
    """
    names = metadata.get("params", []) if isinstance(metadata, dict) else None
    is_valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    for maps in layers.values() if isinstance(layers, dict) else [None]:
        has_maps = isinstance(maps, dict) and all(isinstance(name, str) for name in maps)
        is_valid = is_valid and has_maps and all(isinstance(matrices, dict) for matrices in maps.values())
    if not is_valid:
        raise ValueError("this LoRA's weights are not {layer: {map: {matrix: tensor}}}: take the original's file")


class LowRankCLIP(TunedCLIP):
    """CLIP with W + (alpha / sqrt(r)) B A in place of every chosen W."""

    def __init__(self, node, clip_model, classnames: list[str], template: str, node_name: str = "TRAINER.CLIPLORA"):
        super().__init__(clip_model, classnames, template, node, node_name)
        self.lora = LoRA({name: self.frozen_weight(name).shape for name in self.places}, node.R, node.ALPHA)
        self.scale, self.dropout = node.ALPHA / math.sqrt(node.R), node.DROPOUT
        if node.LOGIT_SCALE:
            self.logit_scale.fill_(node.LOGIT_SCALE)

    @property
    def n_shared(self):
        return 0 if self.training and self.dropout else None  # dropout differs between the classes

    def compute_changes(self, names, s=1.0):
        factors = {name: (self.lora.w_lora_A[name], self.lora.w_lora_B[name]) for name in names}
        return factors if s == 1 else {name: (a, s * b) for name, (a, b) in factors.items()}

    def apply_change(self, factors, x, weight, bias):
        a, b = factors
        branch = F.linear(F.linear(F.dropout(x, self.dropout, self.training), a), b)
        return F.linear(x, weight, bias) + self.scale * branch

    def merge(self, factors, weight):
        a, b = factors
        return weight + self.scale * (b @ a)


@TRAINER_REGISTRY.register()
class CLIPLoRA(Iterations, TunedTrainer):
    """Low-rank adaptation of CLIP's attention."""

    defaults = TunedTrainer.defaults | {
        **Iterations.keys,
        "ENCODERS": Key(ENCODERS, choices=ENCODERS, rule=SOME),
        "LAYERS": Key([], of=int),  # blocks, for example [-2, -1]; [] = all
        "WEIGHTS": Key(["q", "k", "v"], choices=WEIGHTS, aliases=ALIASES, rule=SOME),
        "R": Key(2, low=1),  # rank r
        "ALPHA": Key(1.0, above=0),
        "DROPOUT": Key(0.25, low=0, below=1),
        "LOGIT_SCALE": Key(100.0, low=0),  # the constant of the original; 0 = CLIP's scale
        "TEMPLATE": "a photo of a {}.",  # the template of the original for all data sets; "" = the data set's template
    }
    learner = "lora"

    def build_classifier(self, clip_model, classnames):
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return LowRankCLIP(self.node, clip_model, classnames, template, self.key())

    def load_published(self, directory):
        path = osp.join(directory, "lora_weights.pt")
        if osp.isfile(path):
            load_tensors(self.model.lora, read_archive(path), path)
        return osp.isfile(path)
