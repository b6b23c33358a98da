"""Small helpers: files, seeds, images, names."""

import os
import os.path as osp
import platform
import random
import warnings
from difflib import SequenceMatcher

import numpy as np
import PIL
import torch
import torchvision
from PIL import ExifTags, Image

from dassl.files import atomic_write, locked, read_json, write_json  # noqa: F401  Dassl has two of them here

from .download import download_url  # noqa: F401  Dassl has it here

# Pillow warns, in every worker, about images beyond 89 megapixels, and refuses those beyond 179
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Palette images with Transparency")


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


def set_random_seed(seed):
    """Seed Python's `random`, NumPy and PyTorch (all devices) with the integer `seed`, 0 <= seed < 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def read_image(path, upright=False):
    """Return the image file `path` as an RGB `PIL.Image`, fully decoded and closed.

    With `upright` it is rotated as its EXIF orientation says; not for benchmarks, because Dassl does not.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read or decoded, e.g. because copying it was cut short.
    """
    try:
        with Image.open(path) as img:
            return (turned_upright(img) if upright else img).convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f'No image at "{path}": check DATASET.ROOT and that the data set is complete') from None
    except Exception as e:  # Pillow raises a dozen types
        raise OSError(f'Cannot read the image "{path}" ({e}): replace it with an intact copy') from e


def turned_upright(img):
    """Return the `PIL.Image` rotated as its EXIF orientation says; unchanged if its EXIF cannot be read.

    Not with `ImageOps.exif_transpose`, which rewrites all other EXIF tags too and fails on those of some cameras.
    """
    try:
        orientation = img.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises a dozen types
        return img
    turns = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
    return img.transpose(Image.Transpose[turns[orientation - 2]]) if orientation in range(2, 9) else img


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
