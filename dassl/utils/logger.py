"""Everything printed also goes to a file."""

import contextlib
import os
import os.path as osp
import sys
import time

from tqdm import tqdm

from dassl.infrastructure.files import add_path_to_errors, visible
from dassl.infrastructure.streams import write_text

from .tools import mkdir_if_missing


class Logger:
    """A replacement for sys.stdout that writes to the console (`.console`) and to the file `fpath`.

    `close()`, or leaving a `with` block, restores the console. All other attributes (`isatty`, `fileno`,
    `encoding`...) are the console's. Progress bars stay out of the file and below the printed lines. Control characters
    but tab and line ends, as may be in the name of a file or class, are shown as escapes and have no effect. So are
    characters that the console's encoding lacks; the file is in UTF-8. A program without a console has the file alone.
    """

    def __init__(self, fpath=None):
        self.console = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
        self.file = None
        self._inside = False
        self._pending = ""
        if fpath is not None:
            mkdir_if_missing(osp.dirname(fpath))
            # Appended to: nothing is ever lost. Line by line: forked data workers inherit no pending text
            self.file = open(fpath, "a", buffering=1, encoding="utf-8", errors="backslashreplace", opener=_no_link)

    def __getattr__(self, name):
        return getattr(self.__dict__["console"], name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()

    def write(self, msg):
        with tqdm.get_lock():  # reentrant: only the bars that this write redraws see `_inside` True
            if self._inside or msg.startswith("\r"):  # a bar that draws on stdout
                write_text(self.console, msg)
                return len(msg)
            # print() writes a line and its end separately: bars are redrawn only after the end
            text = self._pending + msg
            cut_position = text.rfind("\n") + 1 if tqdm._instances else len(text)
            self._pending = text[cut_position:]
            if cut_position:
                self._emit(text[:cut_position])
        return len(msg)

    def _emit(self, text):
        text = visible(text, keep="\n\r\t")
        self._inside = True
        try:
            # sys.stdout, not the console: tqdm compares it to find the bars on the same screen
            with tqdm.external_write_mode(file=sys.stdout, nolock=True):
                write_text(self.console, text)
        finally:
            self._inside = False
        if self.file is not None:
            try:
                with add_path_to_errors(self.file.name):
                    self.file.write(text)
                    self.file.flush()
            except OSError:  # a full disk: told once, not again by what is still in the buffer
                file, self.file = self.file, None
                with contextlib.suppress(OSError):
                    file.close()
                raise

    def flush(self):
        with tqdm.get_lock():
            text, self._pending = self._pending, ""
            if text:
                self._emit(text)
        self.console.flush()

    def close(self):
        """Give sys.stdout back to the console and close the file. The console stays open."""
        self.flush()
        if sys.stdout is self:
            sys.stdout = self.console
        if self.file is not None:
            self.file.close()
            self.file = None


def _no_link(path, flags):
    """Nothing is appended to what a link leads to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def setup_logger(output=None):
    """Write everything printed from now on to a file too; `sys.stdout.close()` ends that.

    Args:
        output (str): a directory, in which log.txt is written, or a path ending in .txt or .log. An existing log is
            kept: the new one gets the time as a suffix. None: no file.

    Raises:
        OSError: the file cannot be written (PermissionError and so on).
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else osp.join(output, "log.txt")
    if osp.lexists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    if isinstance(sys.stdout, Logger):
        sys.stdout.close()
    try:
        sys.stdout = Logger(fpath)
    except OSError as e:
        raise type(e)(f'Cannot write the log "{fpath}" ({e.strerror}): choose a writable output directory') from e
