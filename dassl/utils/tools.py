"""Small helpers: files, seeds, names."""

import multiprocessing
import os
import os.path as osp
import platform
import random
import threading
import warnings
from difflib import SequenceMatcher

import numpy as np
import PIL
import torch
import torchvision

from dassl.files import atomic_write, locked, read_json, write_json  # noqa: F401  Dassl has two of them here

from .download import download_url  # noqa: F401  Dassl has it here
from .images import read_image  # noqa: F401  and this


def mkdir_if_missing(dirname):
    """Create the directory `dirname` and its parents if missing ("" is the current directory).

    Raises:
        FileExistsError: there is a file of that name.
    """
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath):
    """Return whether `fpath` is a file; warn if it is not."""
    isfile = osp.isfile(fpath)
    if not isfile:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return isfile


def end_with_parent(worker_id=0):
    """Have this process, a worker of another one, end with it: one that waits for a lock or a disk would stay."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def set_random_seed(seed):
    """Seed Python's `random`, NumPy and PyTorch (all devices) with the integer `seed`, 0 <= seed < 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def collect_env_info():
    """Return the versions of Python, PyTorch, CUDA and Pillow and the hardware as text, for logs and bug reports.

    Not with `torch.utils.collect_env`, which lists every installed package and takes seconds.
    """
    devices = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none"
    cuda = f"{torch.version.cuda or 'not built'}, cuDNN {torch.backends.cudnn.version()}"
    return f"""\
Python: {platform.python_version()} on {platform.platform()}
PyTorch: {torch.__version__}, torchvision {torchvision.__version__}, NumPy {np.__version__}
CUDA: {cuda}, devices: {devices}
CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads
Pillow: {PIL.__version__}"""


def listdir_nohidden(path, sort=False):
    """Return the names in the directory `path` that do not start with a dot, sorted if `sort`."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def get_most_similar_str_to_a_from_b(a, b):
    """Return the string in `b`, an iterable, that is most similar to the string `a`, ignoring case.

    None if `b` is empty; the first of several that are equally similar.
    """
    return max(b, key=lambda s: SequenceMatcher(None, str(a).lower(), s.lower()).ratio(), default=None)


def check_availability(requested, available):
    """Check that the name `requested` is one of the names in `available`.

    Raises:
        ValueError: it is not; the message has the nearest name and all of them.
    """
    if requested not in available:
        nearest = get_most_similar_str_to_a_from_b(requested, available)
        names = ", ".join(available) or "none"
        raise ValueError(f'"{requested}" is not available, do you mean "{nearest}"? Available: {names}')


def tolist_if_not(x):
    """Return `x` if it is a list, else the list [x]."""
    return x if isinstance(x, list) else [x]
