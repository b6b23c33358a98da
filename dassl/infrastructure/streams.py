"""Standard output and error that accept any text with any encoding, even if they are closed.

This module needs only Python and tqdm.
"""

import os
import sys

from tqdm import tqdm

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # by file descriptor


def open_streams():
    """Make the output and error of this process accept any text. Every command calls this first.

    A character outside of a stream's encoding is printed as an escape. A closed stream becomes os.devnull. Otherwise
    the next opened file would get its descriptor, and the output of libraries would go into that file.
    """
    closed_streams = [_is_closed(getattr(sys, name)) for name, _ in STREAMS]
    for descriptor in range(len(STREAMS)):  # before the loop below, which could open the descriptor of another stream
        if closed_streams[descriptor]:
            _open_descriptor(descriptor)
    for descriptor, (name, mode) in enumerate(STREAMS):
        stream = getattr(sys, name)
        if closed_streams[descriptor]:
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")
            setattr(sys, name, stream)
            if getattr(sys, f"__{name}__") is None:
                setattr(sys, f"__{name}__", stream)
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _is_closed(stream):
    return stream is None or getattr(stream, "closed", False)


def _open_descriptor(descriptor):
    """Connect a closed descriptor to os.devnull, in this process and its child processes."""
    try:
        os.fstat(descriptor)
    except OSError:
        devnull = os.open(os.devnull, os.O_RDWR)
        if devnull == descriptor:
            os.set_inheritable(descriptor, True)
        else:
            os.dup2(devnull, descriptor)
            os.close(devnull)


def write_text(stream, text):
    """Write `text` to a stream, with escapes for characters outside of its encoding. Do nothing if it is None."""
    if stream is None:
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def progress(items=None, **options):
    """Return a tqdm bar over `items` on standard error. It is visible on a terminal only.

    Args:
        items: an iterable, or None for a bar that is advanced by hand.
        **options: options of tqdm.
    """
    return tqdm(items, disable=without_bars(), **options)


def without_bars():
    """Return tqdm's `disable`: True if standard error is closed, None to show bars on a terminal only."""
    return True if _is_closed(sys.stderr) else None
