"""Lines on the standard output, which a caller may silence for itself without silencing the rest of its program."""

import contextlib
from contextvars import ContextVar

_silent = ContextVar("silent", default=False)  # of a thread or an asynchronous task, never of the whole process


def say(*values, **options):
    """Print as `print` does, unless `silence` is in force in this thread."""
    if not _silent.get():
        print(*values, **options)


@contextlib.contextmanager
def silence():
    """Make every `say` in this thread print nothing within the context."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)
