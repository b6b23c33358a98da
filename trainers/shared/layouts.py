"""Conversion of CLIPs between the layouts of open_clip and transformers and OpenAI's layout, which this project uses.

A state dict has all sizes. An `Architecture` has the rest (heads, activation, epsilon), which is read from the config
files of these libraries. SigLIP is the only other family (siglip.py); a model with further parts is an error.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from clip.model import CLIP, QuickGELU, VisionTransformer
from torch import nn

from .siglip import CLIP_FAMILY, SIGLIP, Family

VOCABULARY = 49408  # of CLIP's tokenizer
ACTIVATIONS = {  # by transformers' names
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
}
RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # transformers has PIL's numbers


class Tower(NamedTuple):
    """The properties of one transformer that its tensors do not show."""

    heads: int
    activation: str = "quick_gelu"  # a key of ACTIVATIONS
    eps: float = 1e-5  # epsilon of its LayerNorms


class Architecture(NamedTuple):
    """The properties of a CLIP that its tensors do not show."""

    image: Tower
    text: Tower
    side: int  # side of the images, in pixels
    family: Family = CLIP_FAMILY


def check_description(architecture: Architecture, keys: dict) -> None:
    """Raise ValueError for a value that no CLIP has, in what config files of others say of one.

    Args:
        architecture: its numbers.
        keys: of cfg.INPUT.
    """
    for name, tower in (("image", architecture.image), ("text", architecture.text)):
        if type(tower.heads) is not int or not 1 <= tower.heads <= 1024:
            raise ValueError(f"its {name} encoder has {tower.heads!r} heads")
        if not is_number(tower.eps, 0, 1) or tower.eps == 0:
            raise ValueError(f"the epsilon of its {name} encoder is {tower.eps!r}")
    if type(architecture.side) is not int or not 1 <= architecture.side <= 4096:
        raise ValueError(f"its images have {architecture.side!r} pixels")
    for key, low, high in (("PIXEL_MEAN", 0, 1), ("PIXEL_STD", 0.001, 100)):
        numbers = keys[key]
        if not isinstance(numbers, (list, tuple)) or len(numbers) != 3:
            raise ValueError(f"{key} of its images is {numbers!r}, not three numbers")
        if not all(is_number(number, low, high) for number in numbers):
            raise ValueError(f"{key} of its images is {numbers!r}")


def is_number(value, low: float, high: float) -> bool:
    """Return whether a value is a number, no truth value, from `low` to `high`."""
    return type(value) in (int, float) and low <= value <= high


def build_clip(state: Mapping[str, torch.Tensor], architecture: Architecture) -> CLIP:
    """Return a CLIP of OpenAI's class in fp32 with these tensors.

    Args:
        state: a state dict in OpenAI's layout.
        architecture: the properties that it does not show.

    Raises:
        ValueError: the image encoder is no ViT, or the tokens are not those of CLIP's tokenizer.
        Exception: tensors are missing or do not fit; the type varies.
    """
    if "visual.proj" not in state:
        raise ValueError("its image encoder is no ViT with a projection")
    vocabulary, text_width = state["token_embedding.weight"].shape
    if vocabulary < VOCABULARY:
        raise ValueError(f"it has {vocabulary:,} tokens, CLIP's tokenizer {VOCABULARY:,}: it was trained with another")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    length, embed_dim = len(state["positional_embedding"]), state["text_projection"].shape[1]
    image, text, side, _ = architecture
    with torch.device("meta"):  # no memory, no random numbers
        model = CLIP(embed_dim, side, 1, 64, patch, length, vocabulary, text_width, text.heads, depth(state, ""))
        model.visual = VisionTransformer(side, patch, width, depth(state, "visual."), image.heads, embed_dim)
        for prefix, module, tower in (("visual.", model.visual, image), ("", model, text)):
            for i, block in enumerate(module.transformer.resblocks):
                hidden, d = state[f"{prefix}transformer.resblocks.{i}.mlp.c_fc.weight"].shape
                block.mlp.c_fc, block.mlp.c_proj = nn.Linear(d, hidden), nn.Linear(hidden, d)
                block.mlp.gelu = ACTIVATIONS[tower.activation]()
            for name, norm in module.named_modules():
                if isinstance(norm, nn.LayerNorm) and (module is model.visual or not name.startswith("visual.")):
                    norm.eps = tower.eps
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    for block in model.transformer.resblocks:
        block.attn_mask = model.build_attention_mask()
    return model.eval()


def depth(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Return the number of blocks of the transformer whose names start with `prefix`."""
    start = f"{prefix}transformer.resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})


def architecture_of(model: CLIP) -> Architecture:
    """Return the architecture of a CLIP with a ViT."""
    names = {QuickGELU: "quick_gelu", nn.GELU: "gelu"}
    towers = []
    for module in (model.visual, model):
        block = module.transformer.resblocks[0]
        tanh = getattr(block.mlp.gelu, "approximate", "none") == "tanh"
        activation = "gelu_pytorch_tanh" if tanh else names[type(block.mlp.gelu)]
        towers.append(Tower(block.attn.num_heads, activation, block.ln_1.eps))
    return Architecture(*towers, model.visual.input_resolution)


# ------------------------------------------------------------------ names

# names of the tensors outside of the blocks: OpenAI's name: name in transformers
OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # the spelling of transformers
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("visual.proj", "text_projection")
BLOCKS = {"visual.": "vision_model.encoder.layers", "": "text_model.encoder.layers"}
INSIDE = {  # names of the tensors of a block; OpenAI has q, k and v below each other in one tensor
    "attn.in_proj_": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attn.out_proj.": ("self_attn.out_proj.",),
    "ln_1.": ("layer_norm1.",),
    "ln_2.": ("layer_norm2.",),
    "mlp.c_fc.": ("mlp.fc1.",),
    "mlp.c_proj.": ("mlp.fc2.",),
}


# the same of a SigLIP, which transformers stores without the prefixes of a block's q, k and v in the pooling
SIGLIP_OUTSIDE = {
    openai_name: OUTSIDE[openai_name]
    for openai_name in (
        *("visual.positional_embedding", "visual.conv1.weight", "visual.ln_post.weight", "visual.ln_post.bias"),
        *("token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias", "logit_scale"),
    )
} | {
    "visual.conv1.bias": "vision_model.embeddings.patch_embedding.bias",
    "text_projection": "text_model.head.weight",
    "text_projection_bias": "text_model.head.bias",
    "visual.attn_pool.probe": "vision_model.head.probe",
    **{
        f"visual.attn_pool.{openai_name}.{kind}": f"vision_model.head.{name}.{kind}"
        for openai_name, name in (
            *(("attn.out_proj", "attention.out_proj"), ("ln", "layernorm")),
            *(("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")),
        )
        for kind in ("weight", "bias")
    },
    "visual.attn_pool.attn.in_proj_weight": "vision_model.head.attention.in_proj_weight",
    "visual.attn_pool.attn.in_proj_bias": "vision_model.head.attention.in_proj_bias",
}
OUTSIDE_OF = {"CLIP": OUTSIDE, "SigLIP": SIGLIP_OUTSIDE}
# names of timm's vision transformer, without `visual.trunk.`, by OpenAI's names without `visual.`
TIMM = {
    "conv1.": "patch_embed.proj.",
    "positional_embedding": "pos_embed",
    "ln_post.": "norm.",
    "attn_pool.probe": "attn_pool.latent",
    "attn_pool.attn.out_proj.": "attn_pool.proj.",
    "attn_pool.ln.": "attn_pool.norm.",
    "attn_pool.mlp.c_fc.": "attn_pool.mlp.fc1.",
    "attn_pool.mlp.c_proj.": "attn_pool.mlp.fc2.",
}
TIMM_INSIDE = {
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}


def names(
    image_blocks: int, text_blocks: int, outside: Mapping[str, str] = OUTSIDE
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each of OpenAI's names with the names of the tensors in transformers that it consists of."""
    for openai_name, name in outside.items():
        yield openai_name, (name,)
    for (prefix, layers), n in zip(BLOCKS.items(), (image_blocks, text_blocks), strict=True):
        for i in range(n):
            for openai_name, modules in INSIDE.items():
                for kind in ("weight", "bias"):
                    parts = tuple(f"{layers}.{i}.{module}{kind}" for module in modules)
                    yield f"{prefix}transformer.resblocks.{i}.{openai_name}{kind}", parts


def to_transformers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert a state dict in OpenAI's layout to that of `transformers.CLIPModel`."""
    converted = {}
    for name, parts in names(depth(state, "visual."), depth(state, "")):
        tensor = state[name].mT if name in TRANSPOSED else state[name]
        tensors = tensor.chunk(len(parts)) if len(parts) > 1 else [tensor]
        converted.update(zip(parts, tensors, strict=True))
    return {name: tensor.contiguous().clone() for name, tensor in converted.items()}


def from_transformers(state: Mapping[str, torch.Tensor], family: Family = CLIP_FAMILY) -> dict[str, torch.Tensor]:
    """Convert the state dict of a `transformers.CLIPModel` or `SiglipModel` to OpenAI's layout.

    Raises:
        ValueError: a tensor is missing, or there are further ones.
    """
    blocks = ({name.split(".")[3] for name in state if name.startswith(f"{layers}.")} for layers in BLOCKS.values())
    converted, unused = {}, {name for name in state if not name.endswith("position_ids")}
    if family == SIGLIP:
        unused.discard("logit_bias")  # which is the same for all classes
    for name, parts in names(*map(len, blocks), OUTSIDE_OF[family.name]):
        missing = [part for part in parts if part not in state]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
        tensor = torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
        converted[name] = (tensor.mT if name in TRANSPOSED else tensor).contiguous()
        unused -= set(parts)
    if unused:
        raise ValueError(f"it has {min(unused)}, which a {family.name} has not")
    converted["logit_scale"] = converted["logit_scale"].reshape(())
    return converted


def from_open_clip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert a state dict of open_clip to OpenAI's layout.

    The text encoder may be a separate module (`custom_text`).

    Raises:
        ValueError: it has a bias beside its logit scale.
    """
    if "logit_bias" in state:
        raise ValueError("it has a logit_bias, which a CLIP has not")
    converted = {name.removeprefix("module.").removeprefix("text."): tensor for name, tensor in state.items()}
    converted.pop("attn_mask", None)
    converted["logit_scale"] = converted["logit_scale"].reshape(())
    return converted


def siglip_from_open_clip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert the state dict of a SigLIP in open_clip, whose image encoder is timm's, to OpenAI's layout.

    A tensor without a name in OpenAI's layout keeps its own, which is an error of the caller.
    """
    converted, trunk = {}, "visual.trunk."
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if name == f"{trunk}attn_pool.q.weight" or name == f"{trunk}attn_pool.q.bias":
            kind = name.rsplit(".", 1)[1]
            key_and_value = state[name.replace(".q.", ".kv.")]
            converted[f"visual.attn_pool.attn.in_proj_{kind}"] = torch.cat([tensor, key_and_value])
        elif name.startswith(f"{trunk}attn_pool.kv.") or name in ("logit_bias", "text.attn_mask"):
            continue  # in in_proj; the same for all classes; no tensor of the model
        elif name.startswith(f"{trunk}blocks."):
            number, inside = name.removeprefix(f"{trunk}blocks.").split(".", 1)
            for timm_name, openai_name in TIMM_INSIDE.items():
                inside = inside.replace(timm_name, openai_name) if inside.startswith(timm_name) else inside
            converted[f"visual.transformer.resblocks.{number}.{inside}"] = tensor
        elif name.startswith(trunk):
            rest = name.removeprefix(trunk)
            for openai_name, timm_name in TIMM.items():
                if rest.startswith(timm_name):
                    rest = rest.replace(timm_name, openai_name, 1)
                    break
            converted[f"visual.{rest}"] = tensor[0] if rest == "positional_embedding" else tensor
        elif name == "text.text_projection.weight":
            converted["text_projection"] = tensor.mT.contiguous()
        elif name == "text.text_projection.bias":
            converted["text_projection_bias"] = tensor
        else:
            converted[name.removeprefix("text.")] = tensor
    converted["logit_scale"] = converted["logit_scale"].reshape(())
    return converted


def merge_long_positions(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Merge the two positional embeddings of a LongCLIP (Zhang et al. 2024), of which its code adds masked parts.

    The first 20 positions are those of CLIP, in `positional_embedding`; the others are in `positional_embedding_res`.
    """
    state = dict(state)
    if "positional_embedding_res" in state:
        later = state.pop("positional_embedding_res")
        state["positional_embedding"] = torch.cat([state["positional_embedding"][:20], later[20:]])
    return state


# ------------------------------------------------------------------ open_clip's config

# keys that are read or have no influence on the features; any other key that is set is an unsupported part
SUPPORTED = {
    "": "embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_scale nonscalar_logit_scale".split(),
    "vision_cfg": "layers width head_width mlp_ratio patch_size image_size act_kwargs norm_kwargs "
    "patch_dropout".split(),
    "text_cfg": "context_length vocab_size width heads layers mlp_ratio act_kwargs norm_kwargs pad_id eos_id "
    "hf_tokenizer_name tokenizer_kwargs".split(),
}
DEFAULTS = {  # values with which further keys have no influence
    "block_type": ("default",),
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
}


def open_clip_architecture(config: dict) -> Architecture:
    """Return the architecture by a config of open_clip.

    Raises:
        ValueError: the model has parts that OpenAI's CLIPs do not have; the message has the reason.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    if config.get("init_logit_bias") is not None:
        return open_clip_siglip(config)
    problems = [  # (whether it applies, reason)
        ("multimodal_cfg" in config, "a CoCa, which has a decoder and pools by attention"),
        (vision.get("timm_model_name"), f'its image encoder is "{vision.get("timm_model_name")}" of timm'),
        (isinstance(vision.get("layers"), list), "its image encoder is a ResNet of open_clip: take OpenAI's RN50"),
        (text.get("hf_model_name"), f'its text encoder is "{text.get("hf_model_name")}" of transformers'),
        (text.get("vocab_size", VOCABULARY) < VOCABULARY, f"its tokenizer is another, {text.get('hf_tokenizer_name')}"),
        ((text.get("tokenizer_kwargs") or {}).get("clean", "lower") != "lower", "its tokenizer cleans text otherwise"),
    ]
    for part, keys in SUPPORTED.items():
        for key, value in (config[part] if part else config).items():
            ignored = key in keys or key.startswith(("timm_", "hf_", "attn_pooler_"))
            unsupported = not ignored and value and value not in DEFAULTS.get(key, ())
            problems.append((unsupported, f"{part} has {key} {value}, a part that OpenAI's CLIPs have not"))
    for applies, reason in problems:
        if applies:
            raise ValueError(reason.strip())
    side = vision.get("image_size", 224)
    quick = config.get("quick_gelu", False)
    if type(quick) is not bool:
        raise ValueError(f"quick_gelu is {quick!r}, neither true nor false")
    return Architecture(
        open_clip_tower(vision, vision.get("width", 768) // vision.get("head_width", 64), quick),
        open_clip_tower(text, text.get("heads", 8), quick),
        square(side),
    )


SIGLIP_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}  # of open_clip's configs
SIGLIP_VISION = {"timm_pool": "map", "timm_proj": "none"}


def open_clip_siglip(config: dict) -> Architecture:
    """Return the architecture of a SigLIP by a config of open_clip; timm knows its image encoder.

    Raises:
        ValueError: it has parts that the SigLIPs of open_clip do not have, or timm is not installed.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    for part, expected in ((text, SIGLIP_TEXT), (vision, SIGLIP_VISION)):
        for key, value in expected.items():
            if part.get(key) != value:
                raise ValueError(f"it has a logit bias, as SigLIP, but its {key} is {part.get(key)!r}, not {value!r}")
    clean = (text.get("tokenizer_kwargs") or {}).get("clean")
    if clean != "canonicalize":
        raise ValueError(f"its tokenizer cleans text by {clean!r}, not by canonicalize as SigLIP's")
    name = str(vision.get("timm_model_name"))
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"it needs timm ({error}): pip install -e '.[export]'") from error
    if not timm.is_model(name):
        raise ValueError(f'timm has no model "{name}", its image encoder: install a newer timm, or take another CLIP')
    with torch.device("meta"):
        trunk = timm.create_model(name, num_classes=0)
    if type(trunk).__name__ != "VisionTransformer" or trunk.attn_pool is None or trunk.cls_token is not None:
        raise ValueError(f'its image encoder "{name}" of timm is no vision transformer with attention pooling')
    block = trunk.blocks[0]
    tanh = type(block.mlp.act).__name__ == "GELUTanh" or getattr(block.mlp.act, "approximate", "") == "tanh"
    image = Tower(block.attn.num_heads, "gelu_pytorch_tanh" if tanh else "gelu", block.norm1.eps)
    text_tower = open_clip_tower(text, text.get("heads", 8), config.get("quick_gelu", False))
    return Architecture(image, text_tower, square(vision.get("image_size", 224)), SIGLIP)


def open_clip_tower(config: dict, heads: int, quick: bool) -> Tower:
    tanh = (config.get("act_kwargs") or {}).get("approximate") == "tanh"
    activation = "quick_gelu" if quick else "gelu_pytorch_tanh" if tanh else "gelu"
    return Tower(heads, activation, (config.get("norm_kwargs") or {}).get("eps", 1e-5))


def open_clip_config(model: CLIP) -> dict:
    """Return the `model_cfg` of open_clip. Raise ValueError if the two encoders have different activations."""
    image, text, side, _ = architecture_of(model)
    if (image.activation == "quick_gelu") != (text.activation == "quick_gelu"):
        raise ValueError("open_clip has one activation, QuickGELU or GELU, for both encoders")
    visual, width, text_width = model.visual, model.visual.conv1.out_channels, model.transformer.width
    vision_cfg = {
        "image_size": side,
        "layers": len(visual.transformer.resblocks),
        "width": width,
        "head_width": width // image.heads,
        "patch_size": visual.conv1.kernel_size[0],
        **open_clip_extras(visual, image),
    }
    text_cfg = {
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
        "width": text_width,
        "heads": text.heads,
        "layers": len(model.transformer.resblocks),
        **open_clip_extras(model, text),
    }
    quick = {"quick_gelu": True} if image.activation == "quick_gelu" else {}
    return {"embed_dim": model.text_projection.shape[1], **quick, "vision_cfg": vision_cfg, "text_cfg": text_cfg}


def open_clip_extras(module: nn.Module, tower: Tower) -> dict:
    """Return the config keys in which a tower differs from open_clip's defaults."""
    c_fc, extras = module.transformer.resblocks[0].mlp.c_fc, {}
    if c_fc.out_features != 4 * c_fc.in_features:
        extras["mlp_ratio"] = (c_fc.out_features + 0.5) / c_fc.in_features  # open_clip rounds the product down
    if tower.eps != 1e-5:
        extras["norm_kwargs"] = {"eps": tower.eps}
    if tower.activation == "gelu_pytorch_tanh":
        extras["act_kwargs"] = {"approximate": "tanh"}
    return extras


# ------------------------------------------------------------------ the config of transformers


def transformers_architecture(config: dict) -> Architecture:
    """Return the architecture by a config of transformers.

    Raises:
        ValueError: the model is no CLIP, or has an unknown activation.
    """
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        raise ValueError(f'its model_type in transformers is "{kind}": give a model of the type "clip" or "siglip"')
    vision, text = (
        {**(config.get(f"{part}_config") or {}), **(config.get(f"{part}_config_dict") or {})}
        for part in ("vision", "text")
    )
    side = square(vision.get("image_size", 224))
    if kind == "siglip":
        defaults = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_attention_heads": 12}
        towers = (transformers_tower({**defaults, **config}, 12) for config in (vision, text))
        return Architecture(*towers, side, SIGLIP)
    return Architecture(transformers_tower(vision, 12), transformers_tower(text, 8), side)


def transformers_tower(config: dict, heads: int) -> Tower:
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f'its activation is "{activation}", not one of {[*ACTIVATIONS]}')
    return Tower(config.get("num_attention_heads", heads), activation, config.get("layer_norm_eps", 1e-5))


def transformers_config(model: CLIP) -> dict:
    """Return the `config.json` of a `transformers.CLIPModel`."""
    image, text, side, _ = architecture_of(model)

    def tower(module: nn.Module, tower: Tower) -> dict:
        blocks = module.transformer.resblocks
        return {
            "hidden_size": blocks[0].mlp.c_fc.in_features,
            "intermediate_size": blocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": tower.heads,
            "hidden_act": tower.activation,
            "layer_norm_eps": tower.eps,
            "projection_dim": embed_dim,
        }

    embed_dim, patch = model.text_projection.shape[1], model.visual.conv1.kernel_size[0]
    tokens = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    lengths = {"max_position_embeddings": model.context_length, "vocab_size": model.vocab_size}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": embed_dim,
        "torch_dtype": "float32",
        "text_config": {"model_type": "clip_text_model", **tower(model, text), **lengths, **tokens},
        "vision_config": {
            "model_type": "clip_vision_model",
            **tower(model.visual, image),
            "image_size": side,
            "patch_size": patch,
        },
    }


def square(side: int | list[int]) -> int:
    sides = {side} if isinstance(side, int) else {*side}
    if len(sides) > 1:
        raise ValueError(f"its images are {side}, not square")
    return sides.pop()


# ------------------------------------------------------------------ preprocessing, as keys of cfg.INPUT


RESIZE_MODES = {"shortest": "shorter", "squash": "squash"}  # open_clip's words: values of INPUT.RESIZE


def input_of(side: int, mean, std, interpolation: str, resize: str) -> dict:
    interpolation = interpolation if interpolation in RESAMPLING else "bicubic"
    pixels = {"PIXEL_MEAN": list(mean), "PIXEL_STD": list(std)}
    return {"SIZE": (side, side), **pixels, "INTERPOLATION": interpolation, "RESIZE": resize}


def open_clip_input(side: int, preprocess: dict, family: Family = CLIP_FAMILY) -> dict:
    """Return the keys for a `preprocess_cfg`, from `open_clip_config.json` or from a pretrained tag.

    Raises:
        ValueError: its images are resized in a way that INPUT.RESIZE does not have.
    """
    mean, std = preprocess.get("mean") or family.mean, preprocess.get("std") or family.std
    mode = preprocess.get("resize_mode")
    if mode and mode not in RESIZE_MODES:
        raise ValueError(f"its images are resized by resize_mode {mode!r}, not by one of {[*RESIZE_MODES]}")
    resize = RESIZE_MODES[mode] if mode else family.resize
    return input_of(side, mean, std, preprocess.get("interpolation") or "bicubic", resize)


def transformers_input(side: int, processor: dict, family: Family = CLIP_FAMILY) -> dict:
    """Return the keys for a `preprocessor_config.json`."""
    names = {number: name for name, number in RESAMPLING.items()}
    mean, std = processor.get("image_mean") or family.mean, processor.get("image_std") or family.std
    resize, size = family.resize, processor.get("size")
    if isinstance(size, dict):  # CLIP's processors have the shorter side there, those of SigLIP a height and a width
        resize = "squash" if "height" in size and not processor.get("do_center_crop") else "shorter"
    return input_of(side, mean, std, names.get(processor.get("resample", 3), "bicubic"), resize)


def image_processor(keys: Mapping) -> dict:
    """Return the `preprocessor_config.json` of transformers for keys of `cfg.INPUT`."""
    height, width = keys["SIZE"]
    squash = keys.get("RESIZE") == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width} if squash else {"shortest_edge": max(height, width)},
        "resample": RESAMPLING[keys["INTERPOLATION"]],
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(keys["PIXEL_MEAN"]),
        "image_std": list(keys["PIXEL_STD"]),
    }
