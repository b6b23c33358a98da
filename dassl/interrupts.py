"""The handling of Ctrl-C while a command is still importing its modules."""

import sys


def end_quietly():
    """Print a word instead of a traceback after Ctrl-C during the imports of `python -m PACKAGE.MODULE`.

    A package calls this at the beginning of its import. After the imports the command itself handles Ctrl-C.
    """
    if sys.argv[:1] != ["-m"]:  # the value of sys.argv[0] until Python runs the module
        return

    def end(kind, error, trace):
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = end
