"""Several processes for a test, forked, so that nothing needs importing again; gloo on the loopback."""

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from scripts.robustness.processes import fork

LOOPBACK = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}


def in_processes(work: Callable[[], int | None], log: Path, n: int = 2) -> list[int]:
    """Return the exit statuses of n processes that each call `work()` and print into `<log>.<rank>`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(n):
        child = fork()
        if not child:
            told = {"WORLD_SIZE": n, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in told.items()}
            os.environ["GLOO_SOCKET_IFNAME"] = min(LOOPBACK)
            status = 3
            try:
                with open(f"{log}.{rank}", "w") as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
                    try:
                        status = work() or 0
                    except SystemExit as end:
                        status = end.code
                    except BaseException:
                        traceback.print_exc(file=f)
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
