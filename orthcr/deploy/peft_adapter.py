"""PEFT adapters for transformers' CLIPModel: OrthCR and OrthSR as OFT, CLIPLoRA as LoRA.

OFT       PEFT computes y = W (x R_P) with R_P = (I - P)(I + P)^-1 for a row x. This project computes y = W R x, where R
          is the rotation of s Q. So P = -s Q. `use_cayley_neumann` must be False: with True, PEFT's default, the
          inverse is a truncated series, and R_P is not orthogonal.
LoRA      W + s (alpha / sqrt(r)) B A. PEFT has this scale with `use_rslora`. The strength s multiplies B.

An adapter has no logit scale. `export.json` has the scale divided by the temperature, and the card's code applies it.
"""

import torch
from clip.model import CLIP

from trainers.clip_lora import LowRankCLIP
from trainers.orthcr import OrthogonalCLIP
from trainers.shared import layouts
from trainers.shared.backbones import library
from trainers.shared.weights import TunedCLIP

MODULES = {  # {name of a weight: its module in a block of CLIPModel}
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")},
    "c_fc": "mlp.fc1",
    "c_proj": "mlp.fc2",
}
PREFIXES = {"image": "visual.", "text": ""}  # {encoder: prefix of OpenAI's names}


def adapter_of(model: TunedCLIP, name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return the content of adapter_config.json without the base, and the tensors at the strength of the model.

    Args:
        model: model with the trained tensors.
        name: name of the method, for the message.

    Raises:
        ValueError: PEFT has no adapter of this form.
    """
    if isinstance(model, OrthogonalCLIP):
        config, tensors = rotations_of(model)
    elif isinstance(model, LowRankCLIP):
        config, tensors = factors_of(model)
    else:
        raise ValueError(f"--to peft takes OrthCR, OrthSR and CLIPLoRA only (got {name}): give another format")
    config |= {
        "target_modules": sorted({tensor.rsplit(".", 2)[0] for tensor in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
        "modules_to_save": None,
    }
    return config, {f"base_model.model.{name}": tensor.detach().contiguous() for name, tensor in tensors.items()}


def rotations_of(model: OrthogonalCLIP) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return the settings and tensors of OFT."""
    numbers, block_sizes = (set(values) for values in zip(*model.rotations.sizes.values(), strict=True))
    # all weights have the same number of blocks, or the same block size; PEFT takes one of the two, and 0 for the other
    has_common_number = len(numbers) == 1
    config = {
        "peft_type": "OFT",
        "r": numbers.pop() if has_common_number else 0,
        "oft_block_size": 0 if has_common_number else block_sizes.pop(),
        "use_cayley_neumann": False,
        "num_cayley_neumann_terms": 5,
        "module_dropout": 0.0,
        "coft": False,
        "eps": 6e-05,
        "block_share": False,
    }
    tensors = {f"{module_of(name)}.oft_R.weight": -model.strength * q for name, q in model.rotations.upper.items()}
    return config, tensors


def factors_of(model: LowRankCLIP) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return the settings and tensors of LoRA."""
    lora = model.lora
    config = {"peft_type": "LORA", "r": lora.r, "lora_alpha": lora.alpha, "use_rslora": True, "lora_dropout": 0.0}
    tensors = {}
    for name in model.places:
        tensors[f"{module_of(name)}.lora_A.weight"] = lora.w_lora_A[name]
        tensors[f"{module_of(name)}.lora_B.weight"] = model.strength * lora.w_lora_B[name]
    return config, tensors


def module_of(place: str) -> str:
    """Return the name of the linear layer in a CLIPModel for the place <encoder>_<block>_<weight>."""
    encoder, block, weight = place.split("_", 2)
    return f"{layouts.BLOCKS[PREFIXES[encoder]]}.{block}.{MODULES[weight]}"


def logits_of(folder: str, frozen_clip: CLIP, facts: dict, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return the logits [B, n_cls] that transformers and PEFT compute.

    Args:
        folder: folder with the adapter.
        frozen_clip: the CLIP that the adapter changes.
        facts: facts of the export.
        tokens: prompts of the classes, int64 [n_cls, L].
        image: float [B, 3, H, W].
    """
    transformers, peft = library("transformers", "--to peft"), library("peft", "--to peft")
    base = transformers.CLIPModel(transformers.CLIPConfig.from_dict(layouts.transformers_config(frozen_clip))).eval()
    base.load_state_dict(layouts.to_transformers(frozen_clip.state_dict()))
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        output = model(pixel_values=image, input_ids=tokens)
    return facts["logit_scale"] * output.image_embeds @ output.text_embeds.T
