"""A cache of frozen image features on disk. The runs of a benchmark share it.

A file has the features of one pass over the images of a loader. Its name is a checksum of everything that determines
these features:

- the weights and settings of the encoder, and the precision;
- the content of each image file, in order, and the division into batches;
- the steps of the transform with their settings and, where a step is random, the seed of each image;
- the device, the versions of the libraries, and the code that reads, transforms and encodes.

So the features of a changed image or weight are in another file, and no file is ever out of date. Features from the
cache are bit-identical, because they were computed in the same batches. Image files must not change while a run reads
them.
"""

import contextlib
import hashlib
import json
import os
import os.path as osp
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache

import PIL
import torch
import torchvision
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch.utils.data import DataLoader
from torchvision import transforms as T

from dassl.data import item_samplers
from dassl.data.transforms import is_fixed, transforms
from dassl.infrastructure import images
from dassl.infrastructure.console import say
from dassl.infrastructure.files import atomic_write, file_hash, open_regular, sha256, sweep

from . import data_manager

SUFFIX = ".features"
FILE = re.compile(rf"[0-9a-f]{{64}}\{SUFFIX}")
PLAIN = (bool, int, float, str, tuple)
STEPS = (T.transforms.__name__, T.autoaugment.__name__, transforms.__name__)  # modules of the steps that are known


@cache
def source_hash(module: str) -> str:
    """Return the checksum of the source of an imported module; "" without one."""
    path = getattr(sys.modules[module], "__file__", None)
    return file_hash(path) if path else ""


# of the code that reads and transforms images, as it was imported
CODE = [source_hash(module.__name__) for module in (data_manager, item_samplers, transforms, images)]
CODE.append(source_hash(__name__))


@dataclass(frozen=True)
class Encoded:
    """The features of a pass.

    Attributes:
        features: float32 [n, width], on the CPU.
        seconds: time in which the images were read and encoded.
    """

    features: torch.Tensor
    seconds: float


@dataclass(frozen=True)
class Pass:
    """A pass over the images of a loader, as `FeatureCache.look_up` returns it.

    Attributes:
        name: name of its file, without the ending; "": it is not cached.
        loader: the loader.
        places: indices of the images in each batch.
        encoded: features of the pass; None: they are not in the folder.
    """

    name: str
    loader: DataLoader
    places: list[list[int]]
    encoded: Encoded | None

    def batches(self) -> Iterator[dict]:
        """Yield the batches of a pass that has its features, with these in place of the images."""
        sizes = [len(batch) for batch in self.places]
        for batch, features in zip(self.places, self.encoded.features.split(sizes), strict=True):
            items = [self.loader.dataset.data_source[place] for place in batch]
            yield {
                "img": features,
                "label": torch.tensor([item.label for item in items]),
                "domain": torch.tensor([item.domain for item in items]),
                "impath": [item.impath for item in items],
                "index": torch.tensor([int(place) for place in batch]),
            }


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features.

    Several processes may use it at the same time. It may be removed at any time.

    Attributes:
        folder: path of the folder. It is created at its first use.
        gib: largest size of all files together. If it is exceeded, the least recently used files are removed.
    """

    folder: str
    gib: float

    def look_up(self, loader, encoder: torch.nn.Module, precision: dict) -> Pass:
        """Return a pass over a loader, with its features if they are in the folder.

        If the features are found, PyTorch's generator is left in the state that reading the images would leave.

        Args:
            loader: result of `build_data_loader`.
            encoder: the frozen encoder.
            precision: settings of the autocast in which it encodes.
        """
        state = torch.get_rng_state()
        places = list(loader.batch_sampler)  # draws the seed of the pass
        name = pass_name(loader, places, encoder, precision)
        features = self.read(name) if name else None
        if not features:
            torch.set_rng_state(state)
        return Pass(name, loader, places, features)

    def record(self, feature_pass: Pass, encode: Callable) -> Iterator[dict]:
        """Yield the batches of a pass with their features in place of the images, and write these at the end.

        Args:
            feature_pass: pass with a name and without features.
            encode: encode(batch) returns the features float32 [B, width] of a batch of the loader.
        """
        features, seconds, start = [], 0.0, time.time()
        for batch in feature_pass.loader:
            features.append(encode(batch))
            seconds += time.time() - start
            yield {**batch, "img": features[-1]}
            start = time.time()
        self.write(feature_pass.name, Encoded(torch.cat(features).cpu(), seconds))

    def path(self, name: str) -> str:
        return osp.join(self.folder, name + SUFFIX)

    def read(self, name: str) -> Encoded | None:
        """Return the features of a pass; None if there are none, or the file is damaged."""
        path = self.path(name)
        try:
            with open_regular(path) as f:
                digest, content = f.read(64).decode("latin1"), f.read()
            if digest != sha256(name.encode() + content):
                raise ValueError("its checksum does not hold")
            tensors = safetensors_load(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            say(f"{path} is not used ({error}): the images are encoded again")
            return None
        with contextlib.suppress(OSError):  # another process may have removed it, and a folder may be read-only
            os.utime(path)  # the time of its last use
        return Encoded(tensors["features"], tensors["seconds"].item())

    def write(self, name: str, encoded: Encoded) -> None:
        """Write the features of a pass. If that fails, print a line."""
        seconds = torch.tensor(encoded.seconds, dtype=torch.float64)
        content = safetensors_save({"features": encoded.features.contiguous(), "seconds": seconds})
        if len(content) + 64 > self.gib * 2**30:
            say(f"The features of {len(encoded.features):,} images are not kept: they exceed {self.gib:g} GiB")
            return
        try:
            with atomic_write(self.path(name)) as f:
                f.write(sha256(name.encode() + content).encode())
                f.write(content)
            self.shrink()
        except OSError as error:
            say(f"The features of {len(encoded.features):,} images are not kept in {self.folder}: {error}")

    def shrink(self) -> None:
        """Remove the files that were not used for the longest time, until the others are small enough."""
        sweep(self.folder)
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process shrinks it, too
                if FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        excess_bytes = sum(size for _, size, _ in files) - self.gib * 2**30
        for _, size, path in sorted(files):
            if excess_bytes <= 0:
                return
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            excess_bytes -= size


# ------------------------------------------------------------------ the name of a pass


def pass_name(loader: DataLoader, batches: list[list[int]], encoder: torch.nn.Module, precision: dict) -> str:
    """Return the checksum of everything that determines the features of a pass.

    Args:
        loader: result of `build_data_loader`.
        batches: the places of the images in each batch.
        encoder: the encoder.
        precision: settings of the autocast.

    Returns:
        The checksum; "" if the pass cannot be cached, because a data set or transform is of another type, the encoder
        is trained, or an image cannot be read.
    """
    dataset = loader.dataset
    steps = describe_transform(dataset.transform)
    is_known = type(dataset) is data_manager.DatasetWrapper and type(loader.sampler) is item_samplers.Seeded
    if not (steps and is_known and dataset.k_tfm == 1 and is_frozen(encoder)):
        return ""
    places = [place for batch in batches for place in batch]
    paths = [dataset.data_source[place].impath for place in places]
    try:
        with images.in_threads(file_hash, dict.fromkeys(paths)) as digests:
            hashes = dict(zip(dict.fromkeys(paths), digests, strict=True))
    except (OSError, ValueError):
        return ""  # reading the image raises an error with advice
    facts = {
        "encoder": describe_encoder(encoder),
        "precision": {key: str(value) for key, value in precision.items()},
        "machine": describe_machine(next(encoder.parameters()).device),
        "reading": [dataset.cfg.INPUT.EXIF_TRANSPOSE, dataset.side, dataset.return_img0],
        "transform": steps,
        "seeds": [] if is_fixed(dataset.transform) else [place.seed for place in places],
        "batches": [len(batch) for batch in batches],
        "images": [hashes[path] for path in paths],
    }
    return sha256(json.dumps(facts, sort_keys=True).encode())


def describe_transform(transform) -> str:
    """Return the steps of a transform with all their settings; "" if a step is not known."""
    if type(transform) is not T.Compose or any(type(step).__module__ not in STEPS for step in transform.transforms):
        return ""
    steps = [(type(step).__name__, public(vars(step))) for step in transform.transforms]
    try:
        return json.dumps(steps, default=enum_name)
    except TypeError:  # a step with a function or another object in it
        return ""


def enum_name(value: object) -> str:
    if not isinstance(value, Enum):
        raise TypeError(f"{value!r} is no plain setting")
    return value.name


def public(attributes: dict) -> dict:
    return {name: value for name, value in attributes.items() if not name.startswith("_")}


def is_frozen(encoder: torch.nn.Module) -> bool:
    """Return whether the features depend on nothing but the encoder's own tensors, none of which is trained."""
    hooks = [hooks for module in encoder.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    return not any(hooks) and not any(p.requires_grad for p in encoder.parameters())


def describe_encoder(encoder: torch.nn.Module) -> str:
    """Return a checksum of the modules of an encoder, with their settings and source code, and of its tensors.

    Settings are the plain attributes, such as strides and numbers of heads. The encoder itself computes the same in
    both modes; of its parts, those in training mode may not.
    """
    modules = []
    for name, module in encoder.named_modules():
        settings = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN)}
        if module is encoder:
            settings.pop("training")
        modules.append((name, str(type(module)), source_hash(type(module).__module__), settings))
    is_compiled = getattr(encoder, "_compiled_call_impl", None) is not None
    digest = hashlib.sha256(json.dumps([modules, is_compiled], default=str).encode())
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_machine(device: torch.device) -> list:
    """Return the hardware, the versions of the libraries and the code, which may change the last bits of features."""
    versions = [library.__version__ for library in (torch, torchvision, PIL)]
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), 0
    else:
        name, threads = processor_name(), torch.get_num_threads()
    products = [torch.backends.cpu.get_cpu_capability(), torch.get_float32_matmul_precision()]
    return [device.type, name, threads, products, versions, CODE]


def processor_name() -> str:
    """Return the model of the CPU, because libraries choose their kernels by it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{platform.machine()} {platform.processor()}"
