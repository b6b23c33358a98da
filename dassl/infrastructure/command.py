"""The frame of every entry point: it ends with an exit status, and with one line for an error that a user can mend."""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable

from dassl.infrastructure.files import visible
from dassl.infrastructure.interrupts import raise_interrupts
from dassl.infrastructure.streams import open_streams

RESUME_HINT = "interrupted: give the same command again to resume from the last checkpoint"
LINE_END = "\n"
TERMINATION_SIGNALS = [signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])  # Windows has no SIGHUP
USER_ERRORS = (ValueError, OSError, FloatingPointError)  # shown in one line; anything else is a bug and shows its trace
MEMORY_ADVICE = "give a smaller batch (DATALOADER.TRAIN_X.BATCH_SIZE, DATALOADER.TEST.BATCH_SIZE) or free some"


class Terminated(KeyboardInterrupt):
    """The exception of SIGTERM and SIGHUP, which end a command as Ctrl-C does: scratch folders are removed.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(number)
        self.number = number


def command(work: Callable[[], Iterable[str] | None], interrupted: str = "", status: int = 130) -> int:
    """Do the work of an entry point and return its exit status.

    Args:
        work: does everything and returns a line, or lines, for each part that failed.
        interrupted: printed on Ctrl-C and SIGTERM.
        status: exit status after Ctrl-C.
    """
    open_streams()
    try:
        raise_interrupts()
        with terminated():
            failures = list(work() or ())
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, e.g. `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)  # Windows has no SIGPIPE
    except USER_ERRORS as error:
        failures = [one_line(error)]
    except (RuntimeError, MemoryError) as error:
        failures = [lack_of_memory(error) or failure_of_worker(error)]
        if not failures[0]:
            raise
    except KeyboardInterrupt as error:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return 128 + error.number if isinstance(error, Terminated) else status
    for line in map(without_numbers, failures):
        print(f"error: {visible(line, keep=LINE_END)}", file=sys.stderr)
    return 1 if failures else 0


@contextlib.contextmanager
def terminated():
    """Raise Terminated on SIGTERM, and on SIGHUP, which a closed terminal sends.

    A signal that is ignored, as by `nohup`, or has another handler stays as it is. Python handles signals in the main
    thread alone: in others, do nothing.
    """

    def end(number, _):
        raise Terminated(number)

    signals = [number for number in TERMINATION_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        signals = []
    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def one_line(error: Exception) -> str:
    """Return the last line of an error's message, without the system's numbers and Python's words."""
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:100]!r} has characters that {error.encoding} cannot write: give other names"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return without_numbers(text)


def without_numbers(text: str) -> str:
    """Return a message without the numbers that a system has for its errors."""
    return re.sub(r"\[(Errno|WinError) \d+\] ", "", text)


def lack_of_memory(error: Exception) -> str:
    """Return a line for an error that a lack of memory raises, "" for any other."""
    text = str(error)
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory")
    if isinstance(error, MemoryError) or any(word in text for word in words):
        return f"there is not enough memory: {MEMORY_ADVICE}"
    if isinstance(error, RecursionError):
        return "the file or value is nested too deep: make it flatter"
    return ""


def failure_of_worker(error: RuntimeError) -> str:
    """Return a line for an error of a data loader's worker, "" for any other.

    PyTorch raises it wherever the main process is when the worker ends.
    """
    if "torch" not in sys.modules:
        return ""
    from dassl.data.workers import describe_failure

    return describe_failure(error)
