"""Printed lines that a caller may silence in its own thread, without silencing the rest of the program."""

import contextlib
from contextvars import ContextVar

_silent = ContextVar("silent", default=False)  # of a thread or an asynchronous task, never of the whole process


def say(*values, **options):
    """Print like `print`, unless `silence` is active in this thread."""
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
