"""The peak of a training step, by the bytes of allocated tensors: on a GPU the allocator's, on a CPU counted here."""

import weakref
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Tracker(TorchDispatchMode):
    """Counts the storages of `tensors`, and of all tensors that operations return inside it, while they live.

    What an operation takes and gives back within itself is not seen, nor is memory that the allocator keeps.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self.remove, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        torch.utils._pytree.tree_map_only(torch.Tensor, self.add, out)
        return out


def peak_of(work, tensors: Iterable[torch.Tensor], device: torch.device) -> float:
    """MiB at the peak of work(), with the tensors that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**20
    with Tracker(tensors) as tracker:
        work()
    return tracker.peak / 2**20


def held(trainer) -> list[torch.Tensor]:
    """What a trainer keeps between steps: CLIP, the trained tensors, their gradients, the optimizer's state."""
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    tensors += [p.grad for p in trainer.model.parameters() if p.grad is not None]
    states = trainer.optim.state.values() if trainer.optim else ()
    return tensors + [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
