"""Ctrl-C before a command has begun."""

import sys


def end_quietly():
    """In `python -m PACKAGE.MODULE`, end Ctrl-C while modules are imported with a word, not with a trace.

    Later, the command itself answers it. Called where a package begins to be imported.
    """
    if sys.argv[:1] != ["-m"]:  # which Python has there until the module itself runs
        return

    def end(kind, error, trace):
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = end
