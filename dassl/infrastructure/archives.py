"""Tensors out of files that PyTorch wrote, without running anything that is in them.

What `torch.save` and `torch.jit.save` write is a zip: `data.pkl`, a pickle, and the bytes of each tensor beside it.
Before PyTorch 1.6 it was a row of pickles with the bytes behind them. A pickle may name any function to be called, and
`torch.jit.load` runs code of the archive. Here a pickle is a list of instructions that `build` follows: it makes
tensors and plain containers, and whatever else is named becomes a `Stub`, which does nothing.

`torch.load(weights_only=True)` refuses a file with any other class in it, as all of the original Dassl's are.
"""

import io
import math
import os
import pickletools
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sized
from types import FunctionType

import torch

from dassl.infrastructure.files import open_regular

NAMES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
NAMES |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
NAMES |= {"ComplexDouble": "complex128", "ComplexFloat": "complex64"}
ITEMS = 2**22  # instructions and entries of containers in a file: of a ViT-L/14 there are some 20,000
VIEWS = 8  # tensors may have so many times the bytes of the file: they are counted twice, and may share their numbers
LARGEST_KEY = 2**60  # smaller numbers are their own hashes
LEGACY = 0x1950A86A20F9469CFC6C  # the first pickle of a file of PyTorch before 1.6
VALUES = "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
VALUES += "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
VALUES = set(VALUES.split())  # instructions that put their argument on the stack
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Stub:
    """A placeholder for an object of another class, or for that class or function itself.

    Attributes:
        name: name of the class or function, with its module.
        attributes: those of the object that were saved.
    """

    def __init__(self, name: str):
        self.name, self.attributes = name, {}

    def __repr__(self) -> str:
        return f"<{self.name}>"


# ------------------------------------------------------------------ what may be built


def rebuild_tensor(storage, offset, size, stride, *rest):
    if not all(type(n) is int for n in size):
        raise ValueError("the size of a tensor is not made of numbers")
    if math.prod(size) > storage.numel():
        raise ValueError(f"a tensor of {math.prod(size):,} elements has {storage.numel():,}")
    return torch.as_strided(storage, size, stride, offset)


def rebuild_parameter(data, *rest):
    return data


def check_container(items):
    """Return items that are in a container. A tensor of bytes would become an object for each."""
    if not isinstance(items, list | tuple | set | dict):
        raise ValueError("the items of a container are in none")
    return items


def ordered(pairs=()):
    return OrderedDict((key_of(key), value) for key, value in check_container(pairs))


def counted(counts):
    if type(counts) is not dict:
        raise ValueError("a Counter is not made of a dict")
    return Counter(counts)


def collected(items=()):
    return {key_of(item) for item in check_container(items)}


def size_of(lengths):
    return torch.Size(check_container(lengths))


def device_of(kind, *index):
    return torch.device(kind, *index)


def encoded(text, coding):  # how bytes are written
    if coding != "latin1":
        raise ValueError("bytes are not written as latin1")
    return text.encode("latin1")


KNOWN = {
    ("collections", "OrderedDict"): ordered,
    ("collections", "Counter"): counted,
    ("builtins", "set"): collected,
    ("__builtin__", "set"): collected,
    ("_codecs", "encode"): encoded,
    ("torch", "Size"): size_of,
    ("torch", "device"): device_of,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    **{("torch", f"{name}Storage"): getattr(torch, dtype) for name, dtype in NAMES.items()},
    **{("torch", dtype): getattr(torch, dtype) for dtype in NAMES.values()},
}


def key_of(key):
    """Return a key of a dict or an item of a set if it is safe to hash.

    Python's hash of deeply nested tuples overflows the stack, which ends the process. All multiples of 2**61 - 1 have
    the same hash, and n keys of one hash take n**2 steps.
    """
    parts = key if isinstance(key, tuple) else [key]
    if any(isinstance(part, tuple) for part in parts):
        raise ValueError("a key is made of tuples in tuples")
    if any(isinstance(part, int) and abs(part) >= LARGEST_KEY for part in parts):
        raise ValueError("a key is too large a number")
    return key


def named(module, name):
    if type(module) is not str or type(name) is not str:
        raise ValueError("the name of a class is no text")
    return KNOWN.get((module, name)) or Stub(f"{module}.{name}")


def made(function, args):
    """Return the result of a function, or a Stub for the object of a class."""
    if isinstance(function, FunctionType):  # the stack has no other functions than those of KNOWN
        return function(*args)
    return Stub(function.name)


def numbers(storage, kind, dtype, key, location, numel, view=None):
    """Return the numbers of a tensor on the CPU; `location`, the device where they were saved, is ignored."""
    is_known = kind == "storage" and type(key) is str and isinstance(dtype, torch.dtype) and type(numel) is int
    if not is_known or numel < 0 or view is not None:
        raise ValueError("the numbers of a tensor are kept in an unknown way")
    return storage(dtype, key, numel)


def add(container, items: Iterable):
    """Add items to a list or set. A Stub, which stands for another container, ignores them."""
    if isinstance(container, set):
        container.update(map(key_of, items))
    elif isinstance(container, list):
        container.extend(items)
    elif not isinstance(container, Stub):
        raise ValueError("items are added to what is no list or set")


def put(container, items: list):
    """Put items (key, value, key, value ...) into a dict. A Stub, which stands for another container, ignores them."""
    if isinstance(container, dict):
        container.update((key_of(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
    elif not isinstance(container, Stub):
        raise ValueError("keys are put into what is no dict")


def restore(item, state):
    """Set the attributes of a Stub. Attributes of plain containers do not matter."""
    if isinstance(item, Stub) and isinstance(state, dict):
        item.attributes.update({key: value for key, value in state.items() if type(key) is str})


class Budget:
    """The memory that a file may still use. A small file could need very much by repeating the same object.

    Args:
        size: size of the file, in bytes.
    """

    def __init__(self, size: int):
        self.items, self.numbers = ITEMS, VIEWS * size + ITEMS

    def take(self, items: int = 1, numbers: int = 0) -> None:
        """Take instructions and entries of containers, and bytes of tensors. Raises ValueError if none are left."""
        self.items -= items
        self.numbers -= numbers
        if self.items < 0 or self.numbers < 0:
            raise ValueError("it holds far more than a file of its size: it was made to fill the memory")

    def take_for(self, item) -> None:
        """Subtract the memory of a new object."""
        if isinstance(item, torch.Tensor):
            self.take(numbers=item.nbytes)
        elif isinstance(item, Stub):
            self.take(len(item.attributes))
        elif isinstance(item, Sized):
            self.take(len(item))


def build(pickled: io.BufferedIOBase, budget: Budget, storage: Callable | None = None) -> object:
    """Return the object of the pickle at the position of an open file. Afterwards the position is its end.

    Args:
        pickled: the file.
        budget: budget of the whole file.
        storage: storage(dtype, key, numel) returns the numbers of a tensor, flat; None: there are no tensors.

    Raises:
        Exception: it is no such pickle; the type varies.
    """
    stack, marks, memo = [], [], {}

    def pop(n: int) -> list:
        budget.take(n)
        items = stack[len(stack) - n :]
        del stack[len(stack) - n :]
        return items

    def pop_to_mark() -> list:
        return pop(len(stack) - marks.pop())

    def push(function, args) -> None:
        for argument in args:
            budget.take_for(argument)
        item = made(function, args)
        budget.take_for(item)
        stack.append(item)

    for instruction, argument, _ in pickletools.genops(pickled):  # which reads and runs nothing
        budget.take()
        match instruction.name:
            case name if name in VALUES:
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            # ---- the stack and the memo
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[key_of(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            # ---- containers
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(pop(int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "LIST":
                stack.append(pop_to_mark())
            case "FROZENSET":
                stack.append(frozenset(map(key_of, pop_to_mark())))
            case "DICT":
                items = pop_to_mark()
                stack.append({})
                put(stack[-1], items)
            case "APPEND":
                items = pop(1)
                add(stack[-1], items)
            case "APPENDS" | "ADDITEMS":
                items = pop_to_mark()
                add(stack[-1], items)
            case "SETITEM":
                items = pop(2)
                put(stack[-1], items)
            case "SETITEMS":
                items = pop_to_mark()
                put(stack[-1], items)
            # ---- everything else: by name, never called unless it is in KNOWN
            case "GLOBAL":
                stack.append(named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(named(*pop(2)))
            case "REDUCE" | "NEWOBJ":
                push(*pop(2))
            case "NEWOBJ_EX":
                function, args, _ = pop(3)
                push(function, args)
            case "OBJ":
                function, *args = pop_to_mark()
                push(function, args)
            case "INST":
                args = pop_to_mark()
                push(named(*argument.split(" ", 1)), args)
            case "BUILD":
                (state,) = pop(1)
                budget.take_for(state)
                restore(stack[-1], state)
            case "BINPERSID":
                ((kind, content, *rest),) = pop(1)
                stack.append(content if kind == "module" else numbers(storage, kind, content, *rest))
            case name:
                raise ValueError(f"the instruction {name}, which PyTorch never writes")
    raise ValueError("its pickle has no end")


# ------------------------------------------------------------------ files


def load(path: str) -> object:
    """Return the content of a file of `torch.save` or `torch.jit.save`: tensors on the CPU, plain containers, Stubs.

    Raises:
        ValueError: it is no such file, or it is damaged.
    """
    try:
        with open_regular(path) as file:
            size, zipped = os.fstat(file.fileno()).st_size, file.read(4) == b"PK\3\4"
            file.seek(0)
            return read_zip(file, size) if zipped else read_legacy(file, size)
    except Exception as error:  # a dozen types, depending on the content of the file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{path} is no file of PyTorch, or damaged ({reason})") from error


def read_zip(file: io.BufferedReader, size: int) -> object:
    storages: dict[str, torch.Tensor] = {}
    remaining_bytes, budget = size, Budget(size)

    def read(member: str) -> bytearray:
        nonlocal remaining_bytes
        info = archive.getinfo(member)
        remaining_bytes -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or remaining_bytes < 0:  # a small file that would fill the memory
            raise ValueError(f"{member} is compressed or read twice, which PyTorch never does")
        return bytearray(archive.read(info))  # zipfile checks its checksum

    def storage(dtype: torch.dtype, key: str, numel: int) -> torch.Tensor:
        if key not in storages:
            data = read(f"{folder}data/{key}")
            storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return storages[key]

    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        folder = pickles[0].removesuffix("data.pkl")
        return build(io.BytesIO(read(pickles[0])), budget, storage)


def read_legacy(file: io.BufferedReader, size: int) -> object:
    """Pickles: a number, the version, the machine, the content, the tensors' keys; then, by key, their numbers."""
    storages: dict[str, torch.Tensor] = {}
    remaining_bytes, budget = size, Budget(size)

    def storage(dtype: torch.dtype, key: str, numel: int) -> torch.Tensor:
        nonlocal remaining_bytes
        if key not in storages:
            remaining_bytes -= numel * dtype.itemsize
            if remaining_bytes < 0:
                raise ValueError(f"its tensors need more bytes than the {size:,} of the file")
            storages[key] = torch.zeros(numel, dtype=dtype)
        return storages[key]

    if build(file, budget) != LEGACY:
        raise ValueError("it is neither a zip nor of PyTorch before 1.6")
    build(file, budget), build(file, budget)
    content, keys = build(file, budget, storage), build(file, budget)
    if not all(type(key) is str for key in keys) or {*keys} != {*storages}:
        raise ValueError("its tensors are not all there")
    for key in keys:
        values = storages[key]
        numel, data = int.from_bytes(file.read(8), "little"), bytearray(file.read(values.nbytes))
        if numel != values.numel() or len(data) != values.nbytes:
            raise ValueError("its tensors are cut off")
        if data:
            values.copy_(torch.frombuffer(data, dtype=values.dtype))
    return content


# ------------------------------------------------------------------ what was read


def state_dict(content: object) -> object:
    """{dotted name: tensor} of a module that `torch.jit.save` wrote; anything else is given back as it is."""
    if not isinstance(content, Stub):
        return content
    state, visited, todo = {}, set(), [("", content)]
    while todo:
        prefix, stub = todo.pop()
        if id(stub) not in visited:  # they may hold each other
            visited.add(id(stub))
            for name, value in stub.attributes.items():
                if isinstance(value, torch.Tensor):
                    state[prefix + name] = value
                elif isinstance(value, Stub):
                    todo.append((f"{prefix}{name}.", value))
    return state


def stubs(content: object) -> list[str]:
    """Names of the classes of what could not be built in nested dicts, lists and tuples; in order."""
    names, visited, todo = set(), set(), [content]
    while todo:
        item = todo.pop()
        if id(item) in visited:
            continue
        visited.add(id(item))
        if isinstance(item, Stub):
            names.add(item.name)
        elif isinstance(item, dict):
            todo += [*item, *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += item
    return sorted(names)
