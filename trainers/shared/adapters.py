"""Adapters of PEFT for transformers' CLIPModel, merged into the weights of a CLIP.

LoRA    W + c B A,   c = alpha / r, or alpha / sqrt(r) with `use_rslora`
OFT     W R^T,       R = blockdiag(R_1 ... R_m) by (1) of rotations.py with Q of the opposite sign

Both change linear maps of the blocks. Any other part of an adapter is an error.
"""

import math
from collections.abc import Mapping

import torch

from . import layouts
from .rotations import cayley, rotate

PREFIX = "base_model.model."
# {setting: values without effect}; adapters with other values are not supported
WITHOUT_EFFECT = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "lora_bias": (False,),
    "layer_replication": (None,),
    "use_cayley_neumann": (False,),
    "coft": (False,),
    "block_share": (False,),
}
NEEDED = {"LORA": (), "OFT": ("use_cayley_neumann",)}  # settings whose default in PEFT has an effect


def check_adapter(config: dict) -> None:
    """Raise ValueError if an adapter_config.json has a form that `merge_adapter` does not read."""
    kind = config.get("peft_type")
    if kind not in NEEDED:
        raise ValueError(f"it is an adapter of the type {kind!r}, not one of {', '.join(NEEDED)}")
    for key in NEEDED[kind]:
        if key not in config:
            raise ValueError(f"it does not say whether {key} is {WITHOUT_EFFECT[key][0]}")
    for key, values in WITHOUT_EFFECT.items():
        if key in config and config[key] not in values:
            raise ValueError(f"its {key} is {config[key]!r}, not {values[0]!r}")


def merge_adapter(
    state: Mapping[str, torch.Tensor], config: dict, adapter: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the state dict of a CLIP with an adapter merged into it, in OpenAI's layout.

    Args:
        state: state of the CLIP, in OpenAI's layout.
        config: content of adapter_config.json.
        adapter: tensors of the adapter, by PEFT's names.

    Raises:
        ValueError: the adapter has another form, or does not fit the CLIP.
    """
    check_adapter(config)
    weights, parts = layouts.to_transformers(state), {}
    for name, tensor in adapter.items():
        module, part, _ = name.removeprefix(PREFIX).rsplit(".", 2)
        parts.setdefault(module, {})[part] = tensor.float()
    for module, tensors in parts.items():
        name = f"{module}.weight"
        if name not in weights or ".layers." not in name:
            raise ValueError(f"its tensors of {module} belong to no linear map in a block of this CLIP")
        try:
            weights[name] = merged_weight(weights[name].float(), config, tensors)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"its tensors of {module} do not fit the weight {list(weights[name].shape)}") from error
    return layouts.from_transformers(weights)


def merged_weight(weight: torch.Tensor, config: dict, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a changed weight [o, d].

    Args:
        weight: W [o, d].
        config: content of adapter_config.json.
        tensors: tensors of this weight, by PEFT's names: lora_A [r, d] and lora_B [o, r], or oft_R [m, b (b - 1) / 2].
    """
    if config["peft_type"] == "LORA":
        a, b = tensors["lora_A"], tensors["lora_B"]
        root = math.sqrt(len(a)) if config.get("use_rslora") else len(a)
        return weight + config["lora_alpha"] / root * (b @ a)
    q = tensors["oft_R"]
    return rotate(weight, cayley(-q, weight.shape[1] // len(q)))
