"""Everything printed also goes to a file, and progress bars do not."""

import io
import os
import re
import sys
import time

import pytest
from tqdm import tqdm

from dassl.utils import Logger, setup_logger


class Screen(io.StringIO):
    """A stream; `shown` is what it and the other one, on the same terminal, have written."""

    def __init__(self, shown):
        super().__init__()
        self.shown = shown

    def write(self, text):
        self.shown.append(text)
        return super().write(text)


def new_console(monkeypatch):
    """Make sys.stdout and sys.stderr two Screens of one terminal; return the former."""
    shown = []
    monkeypatch.setattr(sys, "stdout", Screen(shown))
    monkeypatch.setattr(sys, "stderr", Screen(shown))
    return sys.stdout


def test_logger_is_undone_and_never_nested(tmp_path, monkeypatch):
    out = new_console(monkeypatch)
    setup_logger(None)
    assert sys.stdout is out
    setup_logger(str(tmp_path / "run"))
    print("one")
    assert (tmp_path / "run" / "log.txt").read_text() == "one\n"  # at once, without a flush
    logger = sys.stdout
    assert logger.isatty() is False and logger.encoding == out.encoding
    with pytest.raises(io.UnsupportedOperation):  # the buffer's own answer
        logger.fileno()

    monkeypatch.setattr(time, "strftime", lambda fmt: "-stamp")
    for _ in range(2):  # even twice within the same second nothing is lost
        setup_logger(str(tmp_path / "run"))
        assert isinstance(sys.stdout, Logger) and sys.stdout.console is out
        print("two")
    sys.stdout.close()
    assert sys.stdout is out and not out.closed
    print("three")
    logger.write("")  # a reference kept by someone else still works
    setup_logger(str(tmp_path / "own.log"))
    print("four")
    sys.stdout.close()

    assert out.getvalue() == "one\ntwo\ntwo\nthree\nfour\n"
    assert sorted(os.listdir(tmp_path / "run")) == ["log.txt", "log.txt-stamp"]
    assert (tmp_path / "run" / "log.txt").read_text() == "one\n"
    assert (tmp_path / "run" / "log.txt-stamp").read_text() == "two\ntwo\n"
    assert (tmp_path / "own.log").read_text() == "four\n"


@pytest.mark.parametrize(("stream", "bars"), [("stderr", 2), ("stderr", 1), ("stdout", 1)])
def test_logger_with_bars(stream, bars, tmp_path, monkeypatch):
    out = new_console(monkeypatch)
    with Logger(str(tmp_path / "log.txt")) as sys.stdout:
        alive = [tqdm(total=3, file=getattr(sys, stream), desc=f"bar{i}") for i in range(bars)]
        print("a", "line")
        after = "".join(out.shown).rpartition("a line\n")[2]
        assert all(f"bar{i}" in after for i in range(bars))  # drawn again below the line
        print("half ", end="")
        print("done")
        for bar in alive[::-1]:
            bar.close()
        print("the end")
    assert sys.stdout is out
    shown = "".join(out.shown)
    for line in ("a line", "half done", "the end"):
        assert re.search(rf"([\r\n]|\x1b\[A){line}\n", shown)  # whole, and from the start of a line
    log = (tmp_path / "log.txt").read_text().split("\n")
    assert [x for x in log if x] == ["a line", "half done", "the end"]


def test_logger_flushes_half_a_line(tmp_path, monkeypatch):
    out = new_console(monkeypatch)
    with Logger(str(tmp_path / "log.txt")) as sys.stdout, tqdm(total=1):
        print("half", end="", flush=True)
        assert out.getvalue() == (tmp_path / "log.txt").read_text() == "half"
        print(" more", end="")
    assert (tmp_path / "log.txt").read_text() == "half more"


def test_logger_on_a_path_that_cannot_be_written(tmp_path, monkeypatch, one_line):
    out = new_console(monkeypatch)
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error:
        setup_logger(str(tmp_path / "file" / "run"))
    assert str(tmp_path) in one_line(error)
    assert sys.stdout is out


def test_a_full_disk_is_told_once(tmp_path, monkeypatch):
    new_console(monkeypatch)
    log = Logger(str(tmp_path / "log.txt"))
    os.dup2(os.open("/dev/full", os.O_WRONLY), log.file.fileno())
    with pytest.raises(OSError, match="No space left on device.*log.txt"):
        log.write("one\n")
    log.write("two\n")
    log.close()
    assert log.console.getvalue() == "one\ntwo\n"
