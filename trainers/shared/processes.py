"""`dassl.distributed`, where a method finds it beside the original Dassl too, which knows one process only."""

import contextlib

try:
    from dassl.distributed import add_up, gather, own_draws, parts
except ImportError:

    def add_up(tensors):
        return tensors

    def gather(part, *tensors):
        return tensors

    def own_draws(*numbers):
        return contextlib.nullcontext()

    def parts(loader):
        return ((batch, None) for batch in loader)


__all__ = ["add_up", "gather", "own_draws", "parts"]
