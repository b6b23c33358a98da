"""One way to a frozen CLIP: by OpenAI's name, by path, or the embedded `tiny`."""

import os
import urllib.error
from pathlib import Path

import safetensors.torch
import torch
from clip import clip
from clip.model import CLIP, VisionTransformer

from dassl.utils import get_most_similar_str_to_a_from_b

from . import archives

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny_clip.safetensors"
CACHE = os.path.expanduser("~/.cache/clip")  # where clip.load puts its downloads

# CoOp's own copy of CLIP lets the folder default; trainers written for it call clip._download(url)
clip._download.__defaults__ = clip._download.__defaults__ or (CACHE,)


def weights_path(name: str) -> str:
    """File of the weights: of `tiny`, of a path, or of one of OpenAI's names, downloaded with its checksum.

    Raises:
        ValueError: neither a known name nor a file.
        OSError: the download failed; says which file to put where instead.
    """
    if name == "tiny":
        return str(TINY)
    if os.path.isfile(name):
        return name
    if name not in clip._MODELS:
        known = ["tiny", *clip._MODELS]
        near = get_most_similar_str_to_a_from_b(name, known)
        raise ValueError(
            f'unknown backbone "{name}" (did you mean "{near}"?): give one of {known}, or the path of a '
            f"JIT archive or state dict, as MODEL.BACKBONE.NAME"
        )
    url = clip._MODELS[name]
    try:
        return clip._download(url, CACHE)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        target = os.path.join(CACHE, os.path.basename(url))
        raise OSError(
            f"the weights of CLIP {name} cannot be downloaded ({error}): put {url} at {target} by hand, or "
            f"give the file's path as MODEL.BACKBONE.NAME"
        ) from error


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """State dict of a safetensors file, a JIT archive (OpenAI's files) or a `torch.save`d state dict; on the CPU.

    Nothing in the file is run: see `dassl.archives`.
    """
    if path.endswith(".safetensors"):
        return safetensors.torch.load_file(path)
    state = archives.state_dict(archives.load(path))
    return state.get("state_dict", state)


def load_clip(name: str, device: torch.device | str = "cpu") -> CLIP:
    """Frozen CLIP in fp32 and eval mode.

    Args:
        name: `tiny`, one of `clip.available_models()`, or a path.
        device: where its tensors go.

    Raises:
        ValueError: the name is unknown, or the file holds no CLIP in OpenAI's layout.
        OSError: the weights cannot be downloaded.
    """
    path = weights_path(name)
    try:
        state = dict(read_weights(path))
        model = clip.build_model(state).float()
        model.load_state_dict(state)  # again: build_model rounds fp32 weights to fp16
    except Exception as error:  # of a dozen types, by what the file is instead
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{path} holds no CLIP in OpenAI's layout, as JIT archive or state dict ({reason})") from error
    return model.eval().requires_grad_(False).to(device)


def is_vit(model: CLIP) -> bool:
    """Whether the image encoder has transformer blocks (ViT) or not (ResNet)."""
    return isinstance(model.visual, VisionTransformer)
