"""Small random CLIPs of open_clip and transformers, as their own libraries make and save them."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
OPEN_CLIP = {  # model_cfg by case
    "quick": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 4},
    },
    "gelu, 30 tokens": {
        "embed_dim": 40,
        "vision_cfg": {"image_size": 40, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16, "mlp_ratio": 3},
        "text_cfg": {"context_length": 30, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 5},
    },
    "tanh, eps, custom text": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 24,
            "layers": 1,
            "width": 48,
            "head_width": 24,
            "mlp_ratio": 3.3,
            "patch_size": 12,
            "act_kwargs": {"approximate": "tanh"},
            "norm_kwargs": {"eps": 1e-2},
        },
        "text_cfg": {
            "context_length": 90,
            "vocab_size": 49410,
            "width": 32,
            "heads": 4,
            "layers": 2,
            "act_kwargs": {"approximate": "tanh"},
            "norm_kwargs": {"eps": 1e-3},
        },
    },
}
TRANSFORMERS = {  # projection_dim, text_config, vision_config by case
    "quick": (24, {}, {}),
    "gelu, 33 tokens": (
        20,
        {"hidden_act": "gelu", "max_position_embeddings": 33, "intermediate_size": 100, "eos_token_id": 2},
        {"hidden_act": "gelu", "image_size": 40, "patch_size": 16, "num_attention_heads": 8},
    ),
    "mixed": (32, {"hidden_act": "gelu_pytorch_tanh"}, {"layer_norm_eps": 1e-2, "num_hidden_layers": 1}),
}


def shaken(model):
    """In eval mode, with biases, LayerNorms and scales away from their neutral start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def open_clip_model(case: str):
    open_clip = pytest.importorskip("open_clip")
    config = json.loads(json.dumps(OPEN_CLIP[case]))
    custom = config.pop("custom_text", False)
    return shaken((open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config))


def open_clip_folder(case: str, folder: Path, file: str = "open_clip_model.safetensors"):
    """The model, which lies in the folder as open_clip's hub repositories do."""
    model = open_clip_model(case)
    config = {"model_cfg": OPEN_CLIP[case], "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bilinear"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save = safetensors.torch.save_file if file.endswith(".safetensors") else torch.save
    save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / file)
    return model


def transformers_model(case: str):
    transformers = pytest.importorskip("transformers")
    dim, text, vision = TRANSFORMERS[case]
    text = {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 4, **text}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3, **vision}
    vision = {"image_size": 32, "patch_size": 8, **vision}
    return shaken(
        transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim))
    )


def transformers_folder(case: str, folder: Path):
    """The model, saved by `save_pretrained`, with an image processor."""
    transformers = pytest.importorskip("transformers")
    model = transformers_model(case)
    side = model.config.vision_config.image_size
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    transformers.CLIPImageProcessor(image_mean=MEAN, image_std=STD, resample=2, **size).save_pretrained(folder)
    model.save_pretrained(folder)
    return model


# ------------------------------------------------------------------ SigLIP

SIGLIP_WORDS = "</s> <unk> a photo of circle square red blue plain triangle star".split()
SIGLIP_TEXT = {"context_length": 16, "vocab_size": 40, "width": 64, "heads": 4, "layers": 4}
SIGLIP_KINDS = ["transformers", "open_clip", "open_clip of SigLIP 2"]


def siglip_tokenizer(folder: Path) -> None:
    """Write the files of a tokenizer of transformers with a few words; </s> ends a text and is its padding."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(SIGLIP_WORDS)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("</s>", SIGLIP_WORDS.index("</s>"))]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=ends)
    special = {"unk_token": "<unk>", "pad_token": "</s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def siglip_folder(kind: str, folder: Path):
    """A small SigLIP of one of SIGLIP_KINDS, made by its library, which lies in the folder as that saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "transformers":
        return siglip_of_transformers(folder)
    open_clip, timm = pytest.importorskip("open_clip"), pytest.importorskip("timm")

    def vit_test_siglip(pretrained=False, **kwargs):
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        return timm.models.VisionTransformer(**{**sizes, "class_token": False, "global_pool": "map", **kwargs})

    if not timm.is_model("vit_test_siglip"):
        timm.models.register_model(vit_test_siglip)
    vision = {"image_size": 32, "timm_model_name": "vit_test_siglip", "timm_pool": "map", "timm_proj": "none"}
    text = SIGLIP_TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "hf_tokenizer_name": "org/name"}
    if kind == "open_clip of SigLIP 2":
        text["act_kwargs"] = {"approximate": "tanh"}
    config = {"embed_dim": 64, "init_logit_bias": -10.0, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    model = shaken(open_clip.CustomTextCLIP(**json.loads(json.dumps(arguments))))
    halves = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": halves}))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    siglip_tokenizer(folder)
    return model


def siglip_of_transformers(folder: Path):
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 16, "projection_size": 128}
    text |= {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    vision = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    model = shaken(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)))
    model.save_pretrained(folder)
    size = {"size": {"height": 32, "width": 32}, "resample": 3}
    processor = {"image_processor_type": "SiglipImageProcessor", "do_normalize": True, "do_resize": True, **size}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    siglip_tokenizer(folder)
    return model
