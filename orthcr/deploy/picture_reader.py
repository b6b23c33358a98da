"""A reader of untrusted pictures: each is read in a process of its own, with limits of time and memory."""

import contextlib
import multiprocessing
from threading import BoundedSemaphore

import numpy as np

from dassl.infrastructure.images import describe, image_problem
from dassl.utils import read_photo

SECONDS = 20.0  # for one picture
START = 120.0  # seconds until its process must have begun
MEMORY = 4 * 2**30  # bytes of address space that the process may add
AT_ONCE = 2


class PictureReader:
    """A reader of pictures for many threads. A picture beyond the limits fails alone.

    Args:
        resize: makes a `PIL.Image` small before it leaves the process, e.g. torchvision's `Resize`; None: it stays.
        seconds: limit of time for one picture.
    """

    def __init__(self, resize, seconds: float = SECONDS):
        self.resize, self.seconds, self.free = resize, seconds, BoundedSemaphore(AT_ONCE)
        methods = multiprocessing.get_all_start_methods()
        self.context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:  # the server imports everything once, from now on, and not for each picture
            from multiprocessing import forkserver  # not above: Windows has none

            self.context.set_forkserver_preload([__name__])
            forkserver.ensure_running()

    def __call__(self, path: str) -> np.ndarray:
        """Return the pixels of a picture, upright and on white, after `resize`: uint8 [H, W, 3].

        Raises:
            OSError: it cannot be read, or not within the limits.
        """
        with self.free:
            receiver, sender = self.context.Pipe(duplex=False)
            process = self.context.Process(target=_read, args=(path, self.resize, sender), daemon=True)
            process.start()
            sender.close()
            try:
                if not receiver.poll(START):
                    raise OSError("this machine is too busy: try again")
                receiver.recv()  # it has begun: a slow start of the process is not the picture's fault
                if not receiver.poll(self.seconds):
                    raise OSError(f"reading it takes more than {self.seconds:g} seconds: make it smaller")
                answer = receiver.recv()
            except EOFError:
                raise OSError("its decoder failed, perhaps for lack of memory: make it smaller") from None
            finally:
                process.kill()
                process.join()
                receiver.close()
        if isinstance(answer, str):
            raise OSError(answer)
        return answer


def _read(path, resize, sender) -> None:
    """Send the pixels of a picture, or a line that says why there are none."""
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
    """Bound the memory of this process, on systems that can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as f:
            used = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
