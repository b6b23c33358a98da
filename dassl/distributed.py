"""Several processes that do one run together, as torchrun starts them; with one process everything here does nothing.

Each process has the whole model, with no wrapper around it. It reads its part of each batch, weights the losses by the
part's share, and gradients are summed before the optimizer's step: all make the step that one alone would make. The
first process alone writes files and prints.
"""

import contextlib
import os
import time
from collections import deque
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

_store = None  # torchrun's, in which the first error is told


def size():
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """Number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_first():
    return rank() == 0


# ------------------------------------------------------------------ start and end


@contextlib.contextmanager
def processes():
    """Join the other processes that torchrun has started, if it has: gloo between CPUs, NCCL between GPUs.

    All but the first are silent. An error is told once, by the process that it came from, or by the first if it came in
    all of them; then all end with exit status 1: those that wait for a process that has ended see it, and torchrun ends
    what remains.
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
        if _was_told(error):
            raise SystemExit(1) from None
        raise
    finally:
        dist.destroy_process_group()


def _join():
    global _store
    local, backend = int(os.environ.get("LOCAL_RANK", 0)), "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        if local < torch.cuda.device_count():  # else see `check_devices`
            torch.cuda.set_device(local)
    _store, number, total = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=dist.PrefixStore("run", _store), rank=number, world_size=total)


@contextlib.contextmanager
def _silence():
    with (
        open(os.devnull, "w", errors="replace") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def check_devices(use_cuda):
    """Raise ValueError if there are more processes than GPUs on this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size()))
    if use_cuda and size() > 1 and here > torch.cuda.device_count():
        there = f"{here} processes, but {torch.cuda.device_count()} GPUs"
        raise ValueError(f"{there}: give torchrun at most as many as --nproc-per-node, or USE_CUDA False")


def check_batch_size(batch_size):
    """Raise ValueError if there are more processes than images in a training batch."""
    if size() > batch_size:
        wrong = f"{size()} processes cannot share a batch of {batch_size}"
        raise ValueError(f"{wrong}: give torchrun fewer, or a larger DATALOADER.TRAIN_X.BATCH_SIZE")


class ProcessEnded(ChildProcessError):
    """Another process has ended, and this one cannot go on without it."""


def _was_told(error):
    """Whether another process has told, or tells, what ends this one; if not, this one does."""
    if isinstance(error, ProcessEnded):
        return bool(_told())
    text = f"{type(error).__name__}: {error}"
    for _ in range(0 if is_first() else 20):  # what comes in all of them, the first should tell
        if _told():
            break
        time.sleep(0.05)
    try:
        first = _store.add("errors", 1) == 1
        if first:
            _store.set("error", text)
        return not first and _told() == text
    except RuntimeError:  # without torchrun the first process keeps the store: it has ended, and told why
        return not is_first()


def _told():
    """The first error that a process has told, "" if none has."""
    with contextlib.suppress(RuntimeError):
        if _store.check(["error"]):
            return _store.get("error").decode()
    return ""


def _together(operation, *args, **kwargs):
    """A collective operation. Raises ProcessEnded if another process does not take part, as it has ended."""
    try:
        return operation(*args, **kwargs)
    except RuntimeError as error:
        time.sleep(0.1)
        reason = _told() or "it told nothing, and may have been killed for want of memory"
        raise ProcessEnded(f"another of the {size()} processes has ended: {reason}") from error


# ------------------------------------------------------------------ what all have in common


def barrier():
    """Wait until all are here."""
    if size() > 1:
        _together(dist.all_reduce, torch.zeros(1))


def from_first(compute):
    """What `compute()` returns in the first process; it is called in no other."""
    if size() == 1:
        return compute()
    result = [compute() if is_first() else None]
    _together(dist.broadcast_object_list, result)
    return result[0]


def add_up(tensors):
    """Sum tensors over all processes, in place, in one message; None among them is left out. Returns them."""
    present = [tensor for tensor in tensors if tensor is not None]
    if size() > 1 and present:
        flat = torch.cat([tensor.detach().flatten() for tensor in present])
        _together(dist.all_reduce, flat)
        for tensor, total in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
            tensor.copy_(total.view_as(tensor))
    return tensors


@contextlib.contextmanager
def own_draws(*numbers):
    """Within, what is drawn depends on the process and on `numbers`; behind, generators are as if nothing was drawn.

    So what a method draws in a training step (dropout) is another thing for each part of the batch, and all processes
    still draw the same batches. One process alone just draws.
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
    """How many images of a batch are this process's, and of all. Of a batch that is too small for all it may be 0."""

    own: int = 1
    whole: int = 1

    @property
    def share(self):
        return self.own / self.whole


def bounds(n, number=None):
    """(first, one past the last) of n things in a row that are those of a process, by default this one."""
    number = rank() if number is None else number
    return number * n // size(), (number + 1) * n // size()


def parts(loader):
    """Yield (this process's part of the batch, its `Part`) for each batch of a loader.

    Where it has none, it gets the first image of the batch, which counts nothing. Of a DataLoader no other images are
    read; of any other iterable of dicts with tensors, rows are taken.
    """
    if size() == 1:
        for batch in loader:
            yield batch, Part()
    elif isinstance(loader, DataLoader):
        if loader not in _twins:
            _twins[loader] = _twin(loader)
        twin = _twins[loader]
        for batch in twin:
            yield batch, twin.batch_sampler.given.popleft()
    else:
        for batch in loader:
            n = len(next(iter(batch.values())))
            start, end = bounds(n)
            rows = slice(start, end) if start < end else slice(0, 1)
            yield {key: value[rows] for key, value in batch.items()}, Part(end - start, n)


_twins = WeakKeyDictionary()  # with their workers, which stay as long as the loader


class _PartsOfBatches:
    """A batch sampler: of each batch of another one this process's part. `given`: those that are under way."""

    def __init__(self, batches):
        self.batches, self.given = batches, deque()

    def __iter__(self):
        self.given.clear()
        for batch in self.batches:
            start, end = bounds(len(batch))
            self.given.append(Part(end - start, len(batch)))
            yield batch[start:end] or batch[:1]

    def __len__(self):
        return len(self.batches)


def _twin(loader):
    """A loader of the same kind, data and order that reads this process's parts of its batches."""
    return type(loader)(
        loader.dataset,
        batch_sampler=_PartsOfBatches(loader.batch_sampler),
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
        generator=loader.generator,
    )


def gather(part, *tensors):
    """The rows of all processes, in the order of the whole batch: each tensor [own, ...] -> [whole, ...]."""
    if size() == 1:
        return tensors
    counts = [end - start for start, end in (bounds(part.whole, number) for number in range(size()))]
    return tuple(_gather(tensor[: part.own], counts) for tensor in tensors)


def gather_with_gradient(rows, n):
    """As `gather`, of a step's loss: rows [own, ...] of n -> [n, ...], and gradients of all processes' losses back."""
    return _Gather.apply(rows, n)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, n):
        ctx.n = n
        return gather(Part(len(rows), n), rows)[0]

    @staticmethod
    def backward(ctx, gradient):
        start, end = bounds(ctx.n)
        return add_up([gradient.clone()])[0][start:end], None


def _gather(rows, counts):
    """Rows [n, ...] of all processes, of which each has a number of `counts`."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in counts]
    _together(dist.all_gather, received, padded)
    return torch.cat([tensor[:count] for tensor, count in zip(received, counts, strict=True)])
