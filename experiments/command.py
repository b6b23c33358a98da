"""How every entry point ends: an exit status, and one line for an error that its user can mend."""

import os
import signal
import sys
from collections.abc import Callable, Iterable

from dassl.files import visible
from dassl.streams import open_streams

GOES_ON = "interrupted: given again, the same command goes on from the last checkpoint, if there is one"
USER_ERRORS = (ValueError, OSError, FloatingPointError)  # told in one line; anything else is a bug and shows its trace


def command(work: Callable[[], Iterable[str] | None], interrupted: str = "", status: int = 130) -> int:
    """The exit status of an entry point.

    Args:
        work: does everything; returns a line for each part that failed.
        interrupted: what Ctrl-C prints.
        status: after Ctrl-C.
    """
    open_streams()
    try:
        failed = list(work() or ())
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)  # which Windows has not
    except USER_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        failed = [lines[-1] if lines else type(error).__name__]
    except RuntimeError as error:
        failed = [failure_of_worker(error)]
        if not failed[0]:
            raise
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return status
    for line in failed:
        print(f"error: {visible(line)}", file=sys.stderr)
    return 1 if failed else 0


def failure_of_worker(error: RuntimeError) -> str:
    """Return a line for an error of a data loader's worker, "" for any other.

    PyTorch raises it wherever the main process is when the worker ends.
    """
    if "torch" not in sys.modules:
        return ""
    from dassl.data.workers import describe_failure

    return describe_failure(error)
