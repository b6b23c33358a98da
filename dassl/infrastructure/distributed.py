"""Data-parallel runs of several processes that torchrun starts. With one process these functions do nothing.

Each process has the whole model, without a wrapper. It reads its part of each batch and weights the losses by the
fraction of images in that part. The gradients are summed before the step of the optimizer. So all processes make the
step that a single process would make. Only the first process writes files and prints.
"""

import contextlib
import os
import time
from collections import deque
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

_store = None  # the key-value store of torchrun, which has the first error


def size():
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """Return the number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_first():
    return rank() == 0


# ------------------------------------------------------------------ start and end


@contextlib.contextmanager
def processes():
    """Join the other processes if torchrun started several, by gloo between CPUs and NCCL between GPUs.

    All processes except the first are silent. An error is printed once: by the process where it occurred, or by the
    first if it occurred in all of them. Then all end with exit status 1. A process that waits for another one detects
    its end, and torchrun ends the rest.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or size() > 1:
        yield
        return
    _join()
    try:
        with contextlib.nullcontext() if is_first() else _silence():
            yield
    except KeyboardInterrupt:
        if is_first():
            raise
        raise SystemExit(130) from None
    except Exception as error:
        if _is_reported(error):
            raise SystemExit(1) from None
        raise
    finally:
        dist.destroy_process_group()


def _join():
    global _store
    local, backend = int(os.environ.get("LOCAL_RANK", 0)), "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        if local < torch.cuda.device_count():  # otherwise `check_devices` raises an error
            torch.cuda.set_device(local)
    _store, number, total = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=dist.PrefixStore("run", _store), rank=number, world_size=total)


@contextlib.contextmanager
def _silence():
    with (
        open(os.devnull, "w", errors="replace") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        yield


def check_devices(use_cuda):
    """Raise ValueError if there are more processes than GPUs on this machine."""
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size()))
    if use_cuda and size() > 1 and local_size > torch.cuda.device_count():
        problem = f"{local_size} processes, but {torch.cuda.device_count()} GPUs"
        raise ValueError(f"{problem}: give torchrun at most as many as --nproc-per-node, or USE_CUDA False")


def check_batch_size(batch_size):
    """Raise ValueError if there are more processes than images in a training batch."""
    if size() > batch_size:
        problem = f"{size()} processes cannot share a batch of {batch_size}"
        raise ValueError(f"{problem}: give torchrun fewer, or a larger DATALOADER.TRAIN_X.BATCH_SIZE")


class ProcessEnded(ChildProcessError):
    """Another process has ended, and this one cannot go on without it."""


def _is_reported(error):
    """Return whether another process reports the error that ends this one. If not, this process has to report it."""
    if isinstance(error, ProcessEnded):
        return bool(_first_error())
    text = f"{type(error).__name__}: {error}"
    attempts = 0 if is_first() else 20  # an error that occurs in all processes is reported by the first
    for _ in range(attempts):
        if _first_error():
            break
        time.sleep(0.05)
    try:
        first = _store.add("errors", 1) == 1
        if first:
            _store.set("error", text)
        return not first and _first_error() == text
    except RuntimeError:  # without torchrun the first process has the store: it has ended and reported its error
        return not is_first()


def _first_error():
    """Return the first error that a process has reported; "": there is none."""
    with contextlib.suppress(RuntimeError):
        if _store.check(["error"]):
            return _store.get("error").decode()
    return ""


def _together(operation, *args, **kwargs):
    """Run a collective operation. Raise ProcessEnded if another process has ended."""
    try:
        return operation(*args, **kwargs)
    except RuntimeError as error:
        time.sleep(0.1)
        reason = _first_error() or "it reported no error, and may have been killed for lack of memory"
        raise ProcessEnded(f"another of the {size()} processes has ended: {reason}") from error


# ------------------------------------------------------------------ collective operations


def barrier():
    """Wait until all processes have reached this call."""
    if size() > 1:
        _together(dist.all_reduce, torch.zeros(1))


def from_first(compute):
    """Return the result of `compute()` in the first process. No other process calls it."""
    if size() == 1:
        return compute()
    result = [compute() if is_first() else None]
    _together(dist.broadcast_object_list, result)
    return result[0]


def add_up(tensors):
    """Sum tensors over all processes in place, in one message, and return them. None among them is skipped."""
    tensors_present = [tensor for tensor in tensors if tensor is not None]
    if size() > 1 and tensors_present:
        flat_values = torch.cat([tensor.detach().flatten() for tensor in tensors_present])
        _together(dist.all_reduce, flat_values)
        totals = flat_values.split([tensor.numel() for tensor in tensors_present])
        for tensor, total in zip(tensors_present, totals, strict=True):
            tensor.copy_(total.view_as(tensor))
    return tensors


@contextlib.contextmanager
def own_draws(*numbers):
    """Seed the generators of PyTorch by the process and `numbers`, and restore their state at the end.

    So random numbers of a training step, for example of dropout, differ between the parts of a batch, while all
    processes still draw the same batches. With one process nothing is seeded.
    """
    if size() == 1:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        seed = np.random.SeedSequence([torch.initial_seed(), *numbers, rank()]).generate_state(1)
        torch.manual_seed(int(seed[0]))
        yield


# ------------------------------------------------------------------ parts of a batch


class Part(NamedTuple):
    """The size of a process's part of some images. It is 0 if there are fewer images or batches than processes."""

    rows: int = 1  # images of this process
    counts: tuple[int, ...] = (1,)  # images of each process

    @property
    def fraction(self):
        return self.rows / sum(self.counts)


def bounds(n, number=None):
    """Return the first and one past the last of n rows that belong to a process, by default to this one."""
    number = rank() if number is None else number
    return number * n // size(), (number + 1) * n // size()


def part_sizes(n):
    """Return the number of rows of each process, of n rows."""
    return tuple(end - start for start, end in (bounds(n, number) for number in range(size())))


def parts(loader, skip=0, whole_batches=False):
    """Yield (this process's part of the batch, its `Part`) for each batch of a loader.

    A process without images gets the first image of the batch, with the weight 0. From a DataLoader it reads only the
    images of its part. From any other iterable of dicts of tensors it takes the rows of its part.

    Args:
        loader: a DataLoader, or an iterable.
        skip (int): number of images in the first batches of a DataLoader, which are neither read nor yielded.
        whole_batches (bool): whether the processes take the batches of a DataLoader in turn, and divide none. Then all
            computations have the shapes, and the results the bits, that they have in one process.
    """
    if isinstance(loader, DataLoader) and (skip or (whole_batches and size() > 1)):
        yield from _read_parts(_twin(loader, skip, whole_batches))
    elif size() == 1:
        for batch in loader:
            yield batch, Part()
    elif isinstance(loader, DataLoader):
        if loader not in _twins:
            _twins[loader] = _twin(loader)
        yield from _read_parts(_twins[loader])
    else:
        for batch in loader:
            n = len(next(iter(batch.values())))
            start, end = bounds(n)
            rows = slice(start, end) if start < end else slice(0, 1)
            yield {key: value[rows] for key, value in batch.items()}, Part(end - start, part_sizes(n))


_twins = WeakKeyDictionary()  # loader -> its twin, whose workers live as long as the loader


def _read_parts(twin):
    for batch in twin:
        yield batch, twin.batch_sampler.pending.popleft()


class _PartsOfBatches:
    """A batch sampler of this process's part of each batch.

    Args:
        batches: batch sampler.
        skip, whole_batches: see `parts`.

    Attributes:
        pending: the `Part` of each batch that has been sampled and not yet been returned by the loader.
    """

    def __init__(self, batches, skip=0, whole_batches=False):
        self.batches, self.skip, self.whole_batches = batches, skip, whole_batches
        self.pending = deque()

    def __iter__(self):
        self.pending.clear()
        for lists in self.divided():
            rows = lists[rank()]
            self.pending.append(Part(len(rows), tuple(map(len, lists))))
            yield rows or next(filter(None, lists))[:1]

    def divided(self):
        """Yield a list with the images of each process."""
        batches = self.rest()
        if self.whole_batches:
            while turn := list(islice(batches, size())):
                yield turn + [[]] * (size() - len(turn))
        else:
            for batch in batches:
                yield [batch[slice(*bounds(len(batch), number))] for number in range(size())]

    def rest(self):
        """Yield the batches behind the skipped images."""
        n_seen = 0
        for batch in self.batches:
            if n_seen >= self.skip:
                yield batch
            n_seen += len(batch)


def _twin(loader, skip=0, whole_batches=False):
    """Return a loader of the same type, data and order that reads only this process's parts of the batches."""
    return type(loader)(
        loader.dataset,
        batch_sampler=_PartsOfBatches(loader.batch_sampler, skip, whole_batches),
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
        generator=loader.generator,
    )


def gather(part, *tensors):
    """Return the rows of all processes in their order: each tensor [rows, ...] -> [sum of the counts, ...]."""
    if size() == 1:
        return tensors
    return tuple(_gather(tensor[: part.rows], part.counts) for tensor in tensors)


def gather_with_gradient(rows, n):
    """Return rows [part, ...] of all processes as [n, ...]. Their gradient is the sum over the processes' losses."""
    return _Gather.apply(rows, n)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, n):
        ctx.n = n
        return gather(Part(len(rows), part_sizes(n)), rows)[0]

    @staticmethod
    def backward(ctx, gradient):
        start, end = bounds(ctx.n)
        return add_up([gradient.clone()])[0][start:end], None


def _gather(rows, counts):
    """Return the rows [n, ...] of all processes; `counts` has the number of rows of each."""
    padded_tensor = rows.new_zeros(max(counts), *rows.shape[1:])
    padded_tensor[: len(rows)] = rows
    received_tensors = [torch.empty_like(padded_tensor) for _ in counts]
    _together(dist.all_gather, received_tensors, padded_tensor)
    return torch.cat([tensor[:count] for tensor, count in zip(received_tensors, counts, strict=True)])
