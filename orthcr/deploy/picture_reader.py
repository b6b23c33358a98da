"""A reader of untrusted pictures. It reads each one in a separate process, with limits of time and memory."""

import contextlib
import multiprocessing
from threading import BoundedSemaphore

import numpy as np

from dassl.infrastructure.images import describe, image_problem
from dassl.utils import read_photo

SECONDS = 20.0  # time limit for one picture
START = 120.0  # time limit in seconds for the start of a process
MEMORY = 4 * 2**30  # bytes of address space that a process may allocate
AT_ONCE = 2  # number of pictures that are read at the same time


class PictureReader:
    """A reader of pictures for many threads. A picture beyond the limits does not affect the others.

    Args:
        resize: function that reduces a `PIL.Image` before the process returns it, e.g. torchvision's `Resize`; None: it
            is not reduced.
        seconds: time limit for one picture.
    """

    def __init__(self, resize, seconds: float = SECONDS):
        self.resize, self.seconds, self.slots = resize, seconds, BoundedSemaphore(AT_ONCE)
        methods = multiprocessing.get_all_start_methods()
        self.context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:  # the server imports everything once, instead of once for each picture
            from multiprocessing import forkserver  # does not exist on Windows

            self.context.set_forkserver_preload([__name__])
            forkserver.ensure_running()

    def __call__(self, path: str) -> np.ndarray:
        """Return the pixels of a picture, upright and on white, after `resize`: uint8 [H, W, 3].

        Raises:
            OSError: the picture cannot be read within the limits.
        """
        with self.slots:
            receiver, sender = self.context.Pipe(duplex=False)
            process = self.context.Process(target=_read, args=(path, self.resize, sender), daemon=True)
            process.start()
            sender.close()
            try:
                if not receiver.poll(START):
                    raise OSError("this machine is too busy: try again")
                receiver.recv()  # the process has started; its start does not count for the picture's time limit
                if not receiver.poll(self.seconds):
                    raise OSError(f"reading it takes more than {self.seconds:g} seconds: make it smaller")
                answer = receiver.recv()
            except EOFError:
                raise OSError("its decoder crashed, perhaps for lack of memory: make it smaller") from None
            finally:
                process.kill()
                process.join()
                receiver.close()
        if isinstance(answer, str):
            raise OSError(answer)
        return answer


def _read(path, resize, sender) -> None:
    """Send the pixels of a picture, or a line with the reason for a failure."""
    _limit_memory()
    sender.send("ready")
    try:
        problem = image_problem(path, decode=False)
        sender.send(problem or np.asarray(resize(read_photo(path)) if resize else read_photo(path)))
    except MemoryError:
        sender.send("it takes too much memory: make it smaller")
    except Exception as error:  # Pillow and torchvision raise a dozen types
        sender.send(describe(error))


def _limit_memory() -> None:
    """Limit the memory of this process, if the system supports this."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as f:
            used_bytes = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MEMORY, used_bytes + MEMORY))
