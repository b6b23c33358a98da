"""Standard output and error that end no run, whatever their encoding and also where they are closed.

Nothing but Python and tqdm is needed.
"""

import os
import sys

from tqdm import tqdm

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # by file descriptor


def open_streams():
    """Make this process's output and error take every text; every command calls this first.

    A character outside the stream's encoding is shown as an escape. A closed stream becomes os.devnull: else the next
    file that is opened would get its descriptor, and what a library prints would go into that file.
    """
    closed = [_is_closed(getattr(sys, name)) for name, _ in STREAMS]
    for descriptor in range(len(STREAMS)):  # all three first: a stream below would get the descriptor of the next
        if closed[descriptor]:
            _open_descriptor(descriptor)
    for descriptor, (name, mode) in enumerate(STREAMS):
        stream = getattr(sys, name)
        if closed[descriptor]:
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")
            setattr(sys, name, stream)
            if getattr(sys, f"__{name}__") is None:
                setattr(sys, f"__{name}__", stream)
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _is_closed(stream):
    return stream is None or getattr(stream, "closed", False)


def _open_descriptor(descriptor):
    """Lead a closed descriptor to os.devnull, in this process and in those that it starts."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null == descriptor:
            os.set_inheritable(descriptor, True)
        else:
            os.dup2(null, descriptor)
            os.close(null)


def write_text(stream, text):
    """Write `text` to a stream of any encoding, with escapes where the encoding lacks a character; None: nowhere."""
    if stream is None:
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def progress(items=None, **options):
    """Return a tqdm bar over `items` on standard error: shown on a terminal, and nowhere else.

    Args:
        items: an iterable, or None for a bar that is advanced by hand.
        options: of tqdm.
    """
    return tqdm(items, disable=without_bars(), **options)


def without_bars():
    """Return tqdm's `disable`: True where standard error is closed, None to show bars on a terminal only."""
    return True if _is_closed(sys.stderr) else None
