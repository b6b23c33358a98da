"""How every entry point ends: an exit status, and one line for an error that its user can mend."""

import os
import signal
import sys
from collections.abc import Callable, Iterable

from dassl.files import visible
from dassl.streams import open_streams

GOES_ON = "interrupted: given again, the same command goes on from the last checkpoint, if there is one"
LINE_END = "\n"
USER_ERRORS = (ValueError, OSError, FloatingPointError)  # told in one line; anything else is a bug and shows its trace


def command(work: Callable[[], Iterable[str] | None], interrupted: str = "", status: int = 130) -> int:
    """The exit status of an entry point.

    Args:
        work: does everything; returns for each part that failed a line, or lines.
        interrupted: what Ctrl-C prints.
        status: after Ctrl-C.
    """
    open_streams()
    try:
        failed = list(work() or ())
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return 128 + signal.SIGPIPE
    except USER_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        failed = [lines[-1] if lines else type(error).__name__]
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return status
    for line in failed:
        print(f"error: {visible(line, keep=LINE_END)}", file=sys.stderr)
    return 1 if failed else 0
