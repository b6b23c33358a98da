"""Tensors out of files that PyTorch wrote, without running anything that is in them.

A `.pt` file is a zip: `data.pkl`, a pickle, and the bytes of each tensor beside it. A pickle may name any function to
be called, and `torch.jit.load` runs code of the archive. Here a pickle builds tensors and plain containers; whatever
else it names becomes a `Stub`, which keeps what it was given and does nothing.
"""

import math
import pickle
import zipfile
from collections import OrderedDict

import torch

DTYPES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
DTYPES |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}


class Stub:
    """Stands for an object of any other class; its attributes are those that were saved."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):  # what stands for a function is "called" as well
        return Stub()

    def append(self, item):  # as lists and dicts of other classes are filled
        pass

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})


def rebuild_tensor(storage, offset, size, stride, *rest):
    if math.prod(size) > storage.numel():
        raise ValueError(f"a tensor of {math.prod(size):,} elements has {storage.numel():,}")
    return torch.as_strided(storage, size, stride, offset)


def rebuild_parameter(data, *rest):
    return data


class Reader(pickle.Unpickler):
    """Reads `data.pkl` of an open zip; `folder` is where it lies in there."""

    known = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        **{("torch", f"{name}Storage"): getattr(torch, dtype) for name, dtype in DTYPES.items()},
    }

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(archive.open(f"{folder}data.pkl"))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, torch.Tensor] = {}

    def find_class(self, module, name):
        return self.known.get((module, name)) or type(name, (Stub,), {})

    def persistent_load(self, saved):
        _, dtype, key, *_ = saved
        if key not in self.storages:
            member = self.archive.getinfo(f"{self.folder}data/{key}")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed, which tensors of PyTorch never are")
            data = bytearray(self.archive.read(member))  # zipfile checks its checksum
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def load(path: str) -> object:
    """What `torch.save` or `torch.jit.save` put into a file: tensors on the CPU, plain containers, Stubs.

    Raises:
        ValueError: it is no such file, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            return Reader(archive, pickles[0].removesuffix("data.pkl")).load()
    except Exception as error:  # of a dozen types, by what the file is instead
        raise ValueError(f"{path} is no file of PyTorch, or damaged ({type(error).__name__}: {error})") from error


def state_dict(content: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """{dotted name: tensor} of a module that `torch.jit.save` wrote: the tensors among a Stub's attributes, nested."""
    state = {}
    for name, value in vars(content).items():
        if isinstance(value, torch.Tensor):
            state[prefix + name] = value
        elif isinstance(value, Stub):
            state |= state_dict(value, f"{prefix}{name}.")
    return state
