"""The frozen CLIP by a name or a path: OpenAI's, the embedded `tiny`, and those of open_clip and transformers.

tiny                                      the embedded CLIP
ViT-B/16, RN50, ...                       OpenAI's, downloaded
open_clip:ViT-B-16/laion2b_s34b_b88k      open_clip's architecture / pretrained tag, or a checkpoint file
hf-hub:org/name                           a repository of the Hugging Face Hub, with files of open_clip or transformers
a path                                    a file of tensors, or a folder with files of open_clip, transformers or PEFT
"""

import importlib
import os
import urllib.error
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from clip import clip
from clip.model import CLIP, VisionTransformer

from dassl.utils import get_most_similar_str_to_a_from_b

from . import layouts
from .adapters import check_adapter, merge_adapter
from .beside_dassl import check_hashes, check_regular, explain_read_error, read_archive, read_json, state_dict
from .privacy import report_nothing
from .siglip import CLIP_FAMILY, SIGLIP, SigLIPVision, build_siglip
from .tokens import LibraryTokenizer, canonical

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny_clip.safetensors"
CACHE = os.path.expanduser("~/.cache/clip")  # the download folder of clip.load
OPEN_CLIP, HUB = "open_clip:", "hf-hub:"
EXPORT = "export.json"  # written by export.py; it has the checksums of the folder's files
OPEN_CLIP_CONFIG, CONFIG, PROCESSOR = "open_clip_config.json", "config.json", "preprocessor_config.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # of PEFT
ADAPTER_BASE = "base"  # folder beside them with the CLIP that they change
HUB_NAMES = {  # OpenAI's models on the Hugging Face Hub, in the layout of transformers
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
WEIGHTS = (  # the first of these files in a folder is loaded
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    "model.pt",
)

# in CoOp's copy of CLIP the folder has a default, and trainers written for it call clip._download(url)
clip._download.__defaults__ = clip._download.__defaults__ or (CACHE,)


class Source(NamedTuple):
    """The location and the format of a CLIP's weights."""

    path: Callable[[], str]  # returns the file, after downloading it if necessary
    architecture: layouts.Architecture | None = None  # None: OpenAI's builder finds it from the tensors
    convert: Callable = dict  # converts the file's state dict to OpenAI's layout
    input: dict | None = None  # keys of cfg.INPUT; None: OpenAI's, or unknown
    tokenizer: Callable | None = None  # returns a `LibraryTokenizer`; None: CLIP's tokenizer


def find(name: str) -> Source:
    """Return the source of a CLIP.

    Raises:
        ValueError: the name is unknown, or the model is not a supported CLIP.
    """
    if name == "tiny":
        return Source(lambda: str(TINY))
    if name.startswith(OPEN_CLIP):
        return open_clip_source(name.removeprefix(OPEN_CLIP))
    if name.startswith(HUB):
        return hub_source(name.removeprefix(HUB))
    if os.path.isfile(name):
        return beside(os.path.dirname(name) or ".", lambda: name, os.path.basename(name))
    if name not in clip._MODELS and os.path.isdir(name):
        check_hashes(name, read_config(os.path.join(name, EXPORT)).get("files", {}))
        if os.path.exists(os.path.join(name, ADAPTER_CONFIG)):
            return adapter_source(name)
        file = weights_in(os.listdir(name))
        if not file:
            raise ValueError(f"{name} has no weights, which would be one of {', '.join(WEIGHTS)}: give another folder")
        return beside(name, lambda: os.path.join(name, file), file)
    return Source(lambda: download(name))


def beside(folder: str, path: Callable[[], str], file: str) -> Source:
    """Return the source of a file by the configs in a folder.

    Args:
        folder: the folder with the configs.
        path: function that returns the path of the file.
        file: name of the file.

    Raises:
        ValueError: a config is damaged, or its model is not a supported CLIP.
    """
    config = read_config(os.path.join(folder, CONFIG))
    open_clip_config = read_config(os.path.join(folder, OPEN_CLIP_CONFIG))
    processor = read_config(os.path.join(folder, PROCESSOR))
    try:
        if open_clip_config and (file.startswith("open_clip") or "model_type" not in config):
            model_config = open_clip_config.get("model_cfg", open_clip_config)
            architecture = layouts.open_clip_architecture(model_config)
            preprocess = open_clip_config.get("preprocess_cfg") or {}
            keys = layouts.open_clip_input(architecture.side, preprocess, architecture.family)
            layouts.check_description(architecture, keys)
            if architecture.family == SIGLIP:
                tokenizer = partial(tokenizer_in, folder, canonical)
                return Source(path, architecture, layouts.siglip_from_open_clip, keys, tokenizer)
            return Source(path, architecture, layouts.from_open_clip, keys)
        if "model_type" in config:
            processor = processor or read_config(os.path.join(folder, "processor_config.json")).get(
                "image_processor", {}
            )
            architecture = layouts.transformers_architecture(config)
            keys = layouts.transformers_input(architecture.side, processor, architecture.family)
            layouts.check_description(architecture, keys)
            tokenizer = None if architecture.family == CLIP_FAMILY else partial(tokenizer_in, folder)
            convert = partial(layouts.from_transformers, family=architecture.family)
            return Source(path, architecture, convert, keys, tokenizer)
        if processor:
            side = processor["crop_size"]["height"]
            return Source(path, input=layouts.transformers_input(side, processor))
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{folder} has a damaged config ({explain_read_error(error)}): put it back") from error
    except ValueError as error:
        raise ValueError(f"{os.path.join(folder, file)} does not fit: {error}") from None
    return Source(path)


def adapter_source(folder: str) -> Source:
    """Return the source of an adapter of PEFT: the CLIP that it changes, with the adapter merged by `convert`.

    The CLIP is in the folder `base`, or is one of OpenAI's, or a repository in the local cache of the hub.

    Raises:
        ValueError: the adapter has another form, or its CLIP is not there.
    """
    config, facts, processor = (read_config(os.path.join(folder, name)) for name in (ADAPTER_CONFIG, EXPORT, PROCESSOR))
    try:
        check_adapter(config)
        base_name = base_of_adapter(folder, str(config.get("base_model_name_or_path")))
        keys = layouts.transformers_input(processor["crop_size"]["height"], processor) if processor else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} has a damaged config ({explain_read_error(error)}): put it back") from error
    except ValueError as error:
        raise ValueError(f"{os.path.join(folder, ADAPTER_CONFIG)} does not fit: {error}") from None
    base = find(base_name)

    def convert(state: dict) -> dict:
        path = os.path.join(folder, ADAPTER)
        merged = merge_adapter(base.convert(state), config, read_weights(path))
        if facts.get("logit_scale"):  # an adapter has none: export.py writes it beside
            merged["logit_scale"] = torch.tensor(float(facts["logit_scale"])).log()
        return merged

    return Source(base.path, base.architecture, convert, keys or base.input)


def base_of_adapter(folder: str, name: str) -> str:
    """Return the name or the folder of the CLIP that an adapter of PEFT changes. Raise ValueError if it is not there.

    Args:
        folder: of the adapter.
        name: `base_model_name_or_path` of the adapter.
    """
    beside = os.path.join(folder, ADAPTER_BASE)
    path = beside if os.path.isdir(beside) else name
    if os.path.isdir(path):
        if os.path.exists(os.path.join(path, ADAPTER_CONFIG)):
            raise ValueError(f"its base {path} is an adapter itself: merge that one, and give the result as the base")
        return path
    for openai_name, repository in HUB_NAMES.items():
        if name == repository:
            return openai_name
    check_no_download(HUB + name, folder)  # its author may be anybody
    return HUB + name


def open_clip_source(name: str) -> Source:
    """Return the source of open_clip's `create_model(architecture, pretrained)` for "architecture/pretrained"."""
    open_clip = library("open_clip", name)
    model, _, tag = name.partition("/")
    config = open_clip.get_model_config(model)
    if config is None or not tag:
        near = get_most_similar_str_to_a_from_b(model, open_clip.list_models())
        tags = [*open_clip.list_pretrained_tags_by_model(near), "FILE"]
        raise ValueError(
            f'"{OPEN_CLIP}{name}" is no model of open_clip: give {OPEN_CLIP}ARCHITECTURE/PRETRAINED, for example '
            f"{OPEN_CLIP}{near}/{tags[0]}"
        )
    pretrained = open_clip.get_pretrained_cfg(model, tag)
    if not pretrained and not os.path.isfile(tag):
        raise ValueError(
            f"{model} of open_clip has no {tag}: {open_clip.list_pretrained_tags_by_model(model)}, or a file"
        )
    if pretrained:  # the activation of the weights is right; open_clip uses that of the architecture, and warns
        config["quick_gelu"] = pretrained.get("quick_gelu", config.get("quick_gelu", False))
    try:
        architecture = layouts.open_clip_architecture(config)
    except ValueError as error:
        raise ValueError(f"{OPEN_CLIP}{name} does not fit: {error}") from None
    keys = layouts.open_clip_input(architecture.side, pretrained or {}, architecture.family)

    def path() -> str:
        return run_download(lambda: open_clip.download_pretrained(pretrained), name) if pretrained else tag

    if architecture.family == SIGLIP:
        repository = config["text_cfg"].get("hf_tokenizer_name", "")
        return Source(
            path, architecture, layouts.siglip_from_open_clip, keys, partial(tokenizer_of_repository, repository)
        )
    return Source(path, architecture, layouts.from_open_clip, keys)


def hub_source(repository: str) -> Source:
    """Return the source of a repository of the Hugging Face Hub.

    Its configs and its tokenizer are downloaded now, its weights at their first use. A repository in the local cache is
    used without a request to the hub.
    """
    client, cached = library("huggingface_hub", repository), cached_folder(repository)
    if cached:
        file = weights_in(os.listdir(cached))
        return beside(cached, lambda: os.path.join(cached, file), file)
    folder = run_download(
        lambda: client.snapshot_download(repository, allow_patterns=["*.json", "*.model"]), repository
    )
    file = weights_in(run_download(lambda: client.list_repo_files(repository), repository))
    if not file:
        raise ValueError(f"{HUB}{repository} has no weights, which would be one of {', '.join(WEIGHTS)}: give another")
    patterns = [file.replace(".index.json", "").rsplit(".", 1)[0] + "*"]

    def path() -> str:
        snapshot = run_download(lambda: client.snapshot_download(repository, allow_patterns=patterns), repository)
        return os.path.join(snapshot, file)

    return beside(folder, path, file)


def tokenizer_in(folder: str, clean: Callable[[str], str] = str.lower) -> LibraryTokenizer:
    """Return the tokenizer of transformers with its files in a folder; `clean` as of `LibraryTokenizer`.

    Raises:
        ValueError: it cannot be read, or transformers needs a further library for it.
    """
    transformers = library("transformers", folder)
    try:
        return LibraryTokenizer(transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), clean)
    except ImportError as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"the tokenizer in {folder} needs a further library ({reason}): install it") from error
    except Exception as error:  # the library raises several types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        advice = "put tokenizer.json and tokenizer_config.json of the model there"
        raise ValueError(f"{folder} has no tokenizer that transformers can read ({reason}): {advice}") from error


def tokenizer_of_repository(repository: str) -> LibraryTokenizer:
    """Return the tokenizer in a repository of the Hugging Face Hub. Raise OSError if it cannot be downloaded."""
    client, patterns = library("huggingface_hub", repository), ["*token*", "*.model", "config.json"]
    folder = run_download(lambda: client.snapshot_download(repository, allow_patterns=patterns), repository)
    return tokenizer_in(folder, canonical)


def weights_in(files: Iterable[str]) -> str:
    """Return the file with the weights; "": there is none."""
    return next((file for file in WEIGHTS if file in files), "")


def cached_folder(repository: str) -> str:
    """Return the local folder of a repository that was downloaded with its weights; "": it was not."""
    client = library("huggingface_hub", repository)
    try:
        folder = client.snapshot_download(repository, local_files_only=True)
    except Exception:  # the library raises several types
        return ""
    return folder if weights_in(os.listdir(folder)) else ""


def check_no_download(name: str, model_dir: str) -> None:
    """Raise ValueError if loading a model directory would download from the hub. Its author may be anybody."""
    if name.startswith(HUB) and not cached_folder(name.removeprefix(HUB)):
        repository = name.removeprefix(HUB)
        advice = f"if you trust it, hf download {repository}, or give --backbone {name} to train.py"
        raise ValueError(f"the model in {model_dir} needs {name}, which is not on this machine: {advice}")


def library(package: str, name: str):
    """Import an optional package with its usage reports switched off.

    Args:
        package: name of the package.
        name: what needs it, for the message.

    Raises:
        ValueError: it is not installed.
    """
    report_nothing()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{name} needs {package} ({error}): pip install -e '.[export]'") from error


def run_download(download: Callable, name: str):
    """Return download(). Raise OSError with the name of the model if it fails."""
    try:
        return download()
    except Exception as error:  # two libraries raise a dozen types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OSError(f"{name} cannot be downloaded ({reason}): give a folder or a file that you have") from error


def read_config(path: str) -> dict:
    """Return the JSON object in a file, {} if there is no such file. Raise ValueError for anything else."""
    if not os.path.exists(path):
        return {}
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object: put an intact copy there")
    return config


def download(name: str) -> str:
    """Download the weights of one of OpenAI's models, verify their checksum, and return the file.

    Raises:
        ValueError: OpenAI has no such model.
        OSError: the download failed. The message has the URL and the place for the file.
    """
    if name not in clip._MODELS:
        names = ["tiny", *clip._MODELS]
        near = get_most_similar_str_to_a_from_b(name, names)
        raise ValueError(
            f'unknown backbone "{name}" (did you mean "{near}"?): give one of {names}, {OPEN_CLIP}MODEL/TAG, '
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
    """Return the state dict in a file, without running code from it; see `dassl.infrastructure.archives`.

    The file is in the format of safetensors, a JIT archive (OpenAI's files), a file of `torch.save`, or an index of
    several files.
    """
    if path.endswith(".index.json"):
        files = sorted({*read_config(path)["weight_map"].values()})
        if any(file.endswith(".index.json") for file in files):  # a few that name each other take for ever
            raise ValueError(f"{path} names another index, not files of tensors: put the original back")
        shards = [read_weights(os.path.join(os.path.dirname(path), os.path.basename(file))) for file in files]
        return {name: tensor for shard in shards for name, tensor in shard.items()}
    if path.endswith(".safetensors"):
        check_regular(path)
        return safetensors.torch.load_file(path)
    state = state_dict(read_archive(path))
    return state.get("state_dict", state)


def load_clip(name: str, device: torch.device | str = "cpu") -> CLIP:
    """Return a frozen CLIP in fp32 and eval mode.

    Args:
        name: a name or a path, see above.
        device: device of its tensors.

    Raises:
        ValueError: the name is unknown, or the file does not have a supported CLIP.
        OSError: the weights cannot be downloaded.
    """
    source = find(name)
    path, architecture = source.path(), source.architecture
    try:
        state = dict(source.convert(layouts.merge_long_positions(read_weights(path))))
        if architecture and architecture.family == SIGLIP:
            model = build_siglip(state, architecture, layouts.ACTIVATIONS)
        elif architecture:
            model = layouts.build_clip(state, architecture)
        else:
            model = clip.build_model(state).float()
            model.load_state_dict(state)  # a second time, because build_model rounds fp32 weights to fp16
    except Exception as error:  # a dozen types, depending on the content of the file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        form = "the layout of its config" if architecture else "OpenAI's layout, as JIT archive or state dict"
        raise ValueError(f"{path} holds no CLIP in {form} ({reason})") from error
    if source.tokenizer:
        model.tokenizer = source.tokenizer()
    return model.eval().requires_grad_(False).to(device)


def fetch(name: str) -> str:
    """Return the file of a CLIP's weights, after downloading it if necessary. Raise the errors of `load_clip`."""
    return find(name).path()


def input_keys(name: str) -> dict:
    """Return the keys of cfg.INPUT in a CLIP's config (size, mean, std, interpolation); {}: it has none.

    Raises:
        ValueError, OSError: as `load_clip`, for problems that show without the weights.
    """
    return find(name).input or {}


def from_anywhere(name: str) -> str:
    """Return the name of a CLIP, or its absolute path if it is a file or a folder."""
    if name == "tiny" or name.startswith((OPEN_CLIP, HUB)):
        return name
    is_path = os.path.isfile(name) or (os.path.isdir(name) and name not in clip._MODELS)
    return os.path.abspath(name) if is_path else name


def is_vit(model: CLIP) -> bool:
    """Return whether the image encoder is a vision transformer. Otherwise it is a ResNet."""
    return isinstance(model.visual, (VisionTransformer, SigLIPVision))
