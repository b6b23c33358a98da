"""The peak memory of a training step in bytes of tensors: counted by the allocator on a GPU, by `Tracker` on a CPU."""

import weakref
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Tracker(TorchDispatchMode):
    """A counter of the storages of `tensors`, and of tensors that operations in its context return, while they live.

    It does not count temporary memory within an operation, nor memory that the allocator caches.

    Attributes:
        current: bytes at present.
        peak: largest number of bytes so far.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.current = self.peak = 0
        self.storages = set()
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages.add(key)
            weakref.finalize(storage, self.remove, key, size)
            self.current += size
            self.peak = max(self.peak, self.current)

    def remove(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.current -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        torch.utils._pytree.tree_map_only(torch.Tensor, self.add, out)
        return out


def peak_of(work, tensors: Iterable[torch.Tensor], device: torch.device) -> float:
    """Return the MiB at the peak of work().

    Args:
        work: function.
        tensors: those that exist before, which count on a CPU.
        device: device of the work.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**20
    with Tracker(tensors) as tracker:
        work()
    return tracker.peak / 2**20


def trainer_tensors(trainer) -> list[torch.Tensor]:
    """Return the tensors that live between steps: CLIP, trained tensors, their gradients, the optimizer's state."""
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    tensors += [p.grad for p in trainer.model.parameters() if p.grad is not None]
    states = trainer.optim.state.values() if trainer.optim else ()
    return tensors + [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
