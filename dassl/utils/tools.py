"""Small helpers: files, seeds, names."""

import multiprocessing
import os
import os.path as osp
import platform
import random
import threading
import warnings

import numpy as np
import PIL
import torch
import torchvision

from dassl.infrastructure.download import download_url  # noqa: F401

# Dassl has most of these here
from dassl.infrastructure.files import atomic_write, listdir_nohidden, locked, read_json, write_json  # noqa: F401
from dassl.infrastructure.images import read_image  # noqa: F401
from dassl.names import check_availability, get_most_similar_str_to_a_from_b  # noqa: F401


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


def tolist_if_not(x):
    """Return `x` if it is a list, else the list [x]."""
    return x if isinstance(x, list) else [x]


def free_memory(device=None):
    """GiB that are free on `device` (torch.device; None: in this machine).

    Of a GPU what PyTorch holds for later counts too; processes that torchrun started share the machine's. Without a
    Linux kernel to ask, as much as anyone may want.
    """
    if device is not None and device.type == "cuda":
        cached_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached_bytes) / 2**30
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) / 2**20
    except (OSError, StopIteration):
        return float("inf")
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
