"""One way to a frozen CLIP: OpenAI's, the embedded `tiny`, open_clip's and transformers'; by name or by path.

tiny                                      the embedded CLIP
ViT-B/16, RN50, ...                       OpenAI's, downloaded
open_clip:ViT-B-16/laion2b_s34b_b88k      open_clip's architecture / pretrained tag, or a checkpoint file
hf-hub:org/name                           a repository of the Hugging Face Hub, with either's files
a path                                    a file of tensors, or a folder with either's files
"""

import importlib
import os
import urllib.error
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from clip import clip
from clip.model import CLIP, VisionTransformer

from dassl.utils import get_most_similar_str_to_a_from_b

from . import archives, layouts
from .files import check_hashes, check_regular, read_json
from .privacy import report_nothing

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny_clip.safetensors"
CACHE = os.path.expanduser("~/.cache/clip")  # where clip.load puts its downloads
OPEN_CLIP, HUB = "open_clip:", "hf-hub:"
EXPORT = "export.json"  # of a folder that export.py made: among others, the checksums of its files
OPEN_CLIP_CONFIG, CONFIG, PROCESSOR = "open_clip_config.json", "config.json", "preprocessor_config.json"
WEIGHTS = (  # of a folder, the first that is there
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    "model.pt",
)

# CoOp's own copy of CLIP lets the folder default; trainers written for it call clip._download(url)
clip._download.__defaults__ = clip._download.__defaults__ or (CACHE,)


class Source(NamedTuple):
    """Where the tensors of a CLIP are, and what must be known of them."""

    path: Callable[[], str]  # which downloads the file first
    architecture: layouts.Architecture | None = None  # None: as OpenAI's own builder has it
    renamed: Callable = dict  # a state dict in OpenAI's layout from what is in the file
    input: dict | None = None  # keys of cfg.INPUT; None: nobody knows, or OpenAI's


def find(name: str) -> Source:
    """Raises ValueError if the name is unknown, or of a model that is no such CLIP; says why."""
    if name == "tiny":
        return Source(lambda: str(TINY))
    if name.startswith(OPEN_CLIP):
        return pretrained(name.removeprefix(OPEN_CLIP))
    if name.startswith(HUB):
        return hub(name.removeprefix(HUB))
    if os.path.isfile(name):
        return beside(os.path.dirname(name) or ".", lambda: name, os.path.basename(name))
    if name not in clip._MODELS and os.path.isdir(name):
        check_hashes(name, read_config(os.path.join(name, EXPORT)).get("files", {}))
        file = weights_in(os.listdir(name))
        if not file:
            raise ValueError(f"{name} has no weights, which would be one of {', '.join(WEIGHTS)}: give another folder")
        return beside(name, lambda: os.path.join(name, file), file)
    return Source(lambda: download(name))


def beside(folder: str, path: Callable[[], str], file: str) -> Source:
    """The source for the file of that name, by the configs that lie in its folder."""
    config, open_clips = (read_config(os.path.join(folder, name)) for name in (CONFIG, OPEN_CLIP_CONFIG))
    processor = read_config(os.path.join(folder, PROCESSOR))
    try:
        if open_clips and (file.startswith("open_clip") or "model_type" not in config):
            given = open_clips.get("model_cfg", open_clips)
            architecture = layouts.open_clip_architecture(given)
            keys = layouts.open_clip_input(architecture.side, open_clips.get("preprocess_cfg") or {})
            layouts.check_description(architecture, keys)
            return Source(path, architecture, layouts.from_open_clip, keys)
        if "model_type" in config:
            processor = processor or read_config(os.path.join(folder, "processor_config.json")).get(
                "image_processor", {}
            )
            architecture = layouts.transformers_architecture(config)
            keys = layouts.transformers_input(architecture.side, processor)
            layouts.check_description(architecture, keys)
            return Source(path, architecture, layouts.from_transformers, keys)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{folder} has a damaged config ({type(error).__name__}: {error}): put it back") from error
    except ValueError as error:
        raise ValueError(f"{os.path.join(folder, file)} does not fit: {error}") from None
    if processor:
        side = processor["crop_size"]["height"]
        return Source(path, input=layouts.transformers_input(side, processor))
    return Source(path)


def pretrained(name: str) -> Source:
    """That of open_clip's `create_model(architecture, pretrained)` for "architecture/pretrained"."""
    open_clip = library("open_clip", name)
    model, _, tag = name.partition("/")
    config = open_clip.get_model_config(model)
    if config is None or not tag:
        near = get_most_similar_str_to_a_from_b(model, open_clip.list_models())
        raise ValueError(
            f'"{OPEN_CLIP}{name}" is no model of open_clip: give {OPEN_CLIP}ARCHITECTURE/PRETRAINED, for example '
            f"{OPEN_CLIP}{near}/{next(iter(open_clip.list_pretrained_tags_by_model(near)), 'FILE')}"
        )
    known = open_clip.get_pretrained_cfg(model, tag)
    if not known and not os.path.isfile(tag):
        raise ValueError(
            f"{model} of open_clip has no {tag}: {open_clip.list_pretrained_tags_by_model(model)}, or a file"
        )
    if known:  # the weights decide over the activation; open_clip takes the architecture's, and warns
        config["quick_gelu"] = known.get("quick_gelu", config.get("quick_gelu", False))
    try:
        architecture = layouts.open_clip_architecture(config)
    except ValueError as error:
        raise ValueError(f"{OPEN_CLIP}{name} does not fit: {error}") from None
    keys = layouts.open_clip_input(architecture.side, known)

    def path() -> str:
        return downloaded(lambda: open_clip.download_pretrained(known), name) if known else tag

    return Source(path, architecture, layouts.from_open_clip, keys)


def hub(repository: str) -> Source:
    """Return the source of a repository of the Hugging Face Hub: its configs now, its weights when asked for.

    What is in the local cache is taken from there, without asking the hub.
    """
    client, cached = library("huggingface_hub", repository), cached_folder(repository)
    if cached:
        file = weights_in(os.listdir(cached))
        return beside(cached, lambda: os.path.join(cached, file), file)
    folder = downloaded(lambda: client.snapshot_download(repository, allow_patterns="*.json"), repository)
    file = weights_in(downloaded(lambda: client.list_repo_files(repository), repository))
    if not file:
        raise ValueError(f"{HUB}{repository} has no weights, which would be one of {', '.join(WEIGHTS)}: give another")
    wanted = [file.replace(".index.json", "").rsplit(".", 1)[0] + "*"]

    def path() -> str:
        got = downloaded(lambda: client.snapshot_download(repository, allow_patterns=wanted), repository)
        return os.path.join(got, file)

    return beside(folder, path, file)


def weights_in(files: Iterable[str]) -> str:
    """Return which of the files has the weights; "": none."""
    return next((file for file in WEIGHTS if file in files), "")


def cached_folder(repository: str) -> str:
    """Return the folder of a repository that has been downloaded with its weights; "" if it has not."""
    client = library("huggingface_hub", repository)
    try:
        folder = client.snapshot_download(repository, local_files_only=True)
    except Exception:  # of several types
        return ""
    return folder if weights_in(os.listdir(folder)) else ""


def check_no_download(name: str, model_dir: str) -> None:
    """Raise ValueError if a model that anybody may have made would have this machine download from the hub."""
    if name.startswith(HUB) and not cached_folder(name.removeprefix(HUB)):
        repository = name.removeprefix(HUB)
        advice = f"if you trust it, hf download {repository}, or give --backbone {name} to train.py"
        raise ValueError(f"the model in {model_dir} needs {name}, which is not on this machine: {advice}")


def library(package: str, name: str):
    """Return an optional package, which reports nothing of its use.

    Raises:
        ValueError: it is not installed.
    """
    report_nothing()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{name} needs {package} ({error}): pip install -e '.[export]'") from error


def downloaded(get: Callable, name: str):
    try:
        return get()
    except Exception as error:  # of a dozen types of two libraries
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OSError(f"{name} cannot be downloaded ({reason}): give a folder or a file that you have") from error


def read_config(path: str) -> dict:
    """Return the JSON object in a file, {} if there is no such file. Raises ValueError for anything else."""
    if not os.path.exists(path):
        return {}
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object: put an intact copy there")
    return config


def download(name: str) -> str:
    """File of the weights of one of OpenAI's names, with its checksum.

    Raises:
        ValueError: it is none of them.
        OSError: the download failed; says which file to put where instead.
    """
    if name not in clip._MODELS:
        known = ["tiny", *clip._MODELS]
        near = get_most_similar_str_to_a_from_b(name, known)
        raise ValueError(
            f'unknown backbone "{name}" (did you mean "{near}"?): give one of {known}, {OPEN_CLIP}MODEL/TAG, '
            f"{HUB}ORG/NAME, or the path of a file or folder, as MODEL.BACKBONE.NAME"
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
    """State dict of a safetensors file, a JIT archive (OpenAI's files), a `torch.save`d one, or an index of several.

    Nothing in the file is run: see `dassl.archives`.
    """
    if path.endswith(".index.json"):
        files = sorted({*read_config(path)["weight_map"].values()})
        shards = [read_weights(os.path.join(os.path.dirname(path), os.path.basename(file))) for file in files]
        return {name: tensor for shard in shards for name, tensor in shard.items()}
    if path.endswith(".safetensors"):
        check_regular(path)
        return safetensors.torch.load_file(path)
    state = archives.state_dict(archives.load(path))
    return state.get("state_dict", state)


def load_clip(name: str, device: torch.device | str = "cpu") -> CLIP:
    """Frozen CLIP in fp32 and eval mode.

    Args:
        name: see above.
        device: where its tensors go.

    Raises:
        ValueError: the name is unknown, or the file holds no CLIP that fits.
        OSError: the weights cannot be downloaded.
    """
    source = find(name)
    path, architecture = source.path(), source.architecture
    try:
        state = dict(source.renamed(read_weights(path)))
        if architecture:
            model = layouts.build_clip(state, architecture)
        else:
            model = clip.build_model(state).float()
            model.load_state_dict(state)  # again: build_model rounds fp32 weights to fp16
    except Exception as error:  # of a dozen types, by what the file is instead
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        form = "the layout that its config tells" if architecture else "OpenAI's layout, as JIT archive or state dict"
        raise ValueError(f"{path} holds no CLIP in {form} ({reason})") from error
    return model.eval().requires_grad_(False).to(device)


def fetch(name: str) -> str:
    """Return the file of a CLIP's weights, downloaded if it is not there. Raises as `load_clip`."""
    return find(name).path()


def input_keys(name: str) -> dict:
    """The keys of cfg.INPUT that a CLIP comes with, {} if it comes with none: size, mean, std, interpolation.

    Raises:
        ValueError, OSError: as `load_clip`, by what is known without its weights.
    """
    return find(name).input or {}


def from_anywhere(name: str) -> str:
    """The name, as an absolute path if it is that of a file or folder."""
    named = name == "tiny" or name.startswith((OPEN_CLIP, HUB))
    there = os.path.isfile(name) or (os.path.isdir(name) and name not in clip._MODELS)
    return os.path.abspath(name) if there and not named else name


def is_vit(model: CLIP) -> bool:
    """Whether the image encoder has transformer blocks (ViT) or not (ResNet)."""
    return isinstance(model.visual, VisionTransformer)
