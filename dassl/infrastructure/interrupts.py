"""The handling of Ctrl-C while a command is still importing its modules."""

import os
import signal
import sys


def end_quietly():
    """Let Ctrl-C end the process with a word and status 130 while `python -m PACKAGE.MODULE` starts.

    A package calls this at the beginning of its import. The exception of Python's own handler would not do: it is lost
    where a module being imported catches it, or in a callback. `command` in command.py restores that handler.
    """
    starting = sys.argv[:1] == ["-m"]  # the value of sys.argv[0] until Python runs the module
    if starting and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def end(*_):
    """End the process at once: nothing was begun that would have to be cleaned up."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def raise_interrupts():
    """Undo `end_quietly`: Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
