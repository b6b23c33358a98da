"""Small helpers: files, seeds, images, names."""

import contextlib
import json
import os
import os.path as osp
import platform
import random
import uuid
import warnings
from difflib import SequenceMatcher

import numpy as np
import PIL
import torch
import torchvision
from PIL import ExifTags, Image

from .download import download_url  # noqa: F401  where Dassl has it

# Pillow warns of images beyond 89 megapixels in two lines a worker, and refuses those beyond 179
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Palette images with Transparency")


def mkdir_if_missing(dirname):
    """Create `dirname` and its parents unless it is a directory already ("" is the current one).

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


@contextlib.contextmanager
def locked(folder, busy):
    """Keep other processes out of an existing `folder`, where the file system can lock one.

    Raises:
        BlockingIOError: another process is in it; `busy` is the message.
    """
    import fcntl  # Windows has none

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(busy) from None
        except OSError:  # it cannot
            pass
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(fpath):
    """Give a binary file to write to, which becomes `fpath` only once everything is written and on disk.

    On any error, Ctrl-C included, what was at `fpath` before stays whole and nothing else is left behind.
    """
    fpath = osp.realpath(fpath)  # a link stays a link: its target is what gets replaced
    folder, name = osp.split(fpath)
    mkdir_if_missing(folder)
    # Not tempfile: its files can be read by their owner only, and results are shared
    temp = osp.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temp, "xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, fpath)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temp)
        raise


def read_json(fpath):
    """Return the content of the JSON file `fpath`."""
    with open(fpath, encoding="utf-8") as f:
        return json.load(f)


def write_json(obj, fpath):
    """Write `obj` as JSON, indented by 4, to `fpath` (atomically; missing folders are made)."""
    with atomic_write(fpath) as f:
        f.write(json.dumps(obj, indent=4).encode())


def set_random_seed(seed):
    """Seed Python's `random`, NumPy and PyTorch (all devices) with the integer `seed`, 0 <= seed < 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def read_image(path, upright=False):
    """Return the image file `path` as an RGB `PIL.Image`, fully decoded (the file is closed again).

    With `upright` a photograph is turned as its EXIF orientation says; Dassl does not, so benchmarks do not either.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read or decoded, e.g. because it was cut off while being copied.
    """
    try:
        with Image.open(path) as img:
            return (turned_upright(img) if upright else img).convert("RGB")
    except FileNotFoundError:
        advice = "check DATASET.ROOT and that the data set is complete"
        raise FileNotFoundError(f'No image at "{path}": {advice}') from None
    except Exception as e:  # Pillow raises a dozen types
        raise OSError(f'Cannot read the image "{path}" ({e}): replace it by an intact copy') from e


def turned_upright(img):
    """Return the `PIL.Image` turned as its EXIF orientation says, or as it is where its EXIF cannot be read.

    Not `ImageOps.exif_transpose`, which also writes all the rest of the EXIF anew, and fails on what cameras put there.
    """
    try:
        orientation = img.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises a dozen types
        return img
    turn = Image.Transpose
    turns = [
        turn.FLIP_LEFT_RIGHT,
        turn.ROTATE_180,
        turn.FLIP_TOP_BOTTOM,
        turn.TRANSPOSE,
        turn.ROTATE_270,
        turn.TRANSVERSE,
        turn.ROTATE_90,
    ]
    return img.transpose(turns[orientation - 2]) if orientation in range(2, 9) else img


def collect_env_info():
    """Return a text on Python, PyTorch, CUDA, the machine and Pillow, for logs and bug reports.

    Not `torch.utils.collect_env`, which lists every installed package and takes seconds at each start.
    """
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "\n".join(
        [
            f"Python: {platform.python_version()} on {platform.platform()}",
            f"PyTorch: {torch.__version__}, torchvision {torchvision.__version__}, NumPy {np.__version__}",
            f"CUDA: {torch.version.cuda or 'not built'}, cuDNN {torch.backends.cudnn.version()}, "
            f"devices: {', '.join(devices) or 'none'}",
            f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads",
            f"Pillow: {PIL.__version__}",
        ]
    )


def listdir_nohidden(path, sort=False):
    """Return the names in the directory `path` that do not start with a dot, sorted if `sort`."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def get_most_similar_str_to_a_from_b(a, b):
    """Return the string of the iterable `b` most similar to the string `a`, upper/lower case aside.

    None if `b` is empty; the first one if several are equally similar.
    """
    return max(b, key=lambda s: SequenceMatcher(None, str(a).lower(), s.lower()).ratio(), default=None)


def check_availability(requested, available):
    """Check that the name `requested` is one of the names in `available`.

    Raises:
        ValueError: it is not; the message gives the nearest name and all of them.
    """
    if requested not in available:
        nearest = get_most_similar_str_to_a_from_b(requested, available)
        names = ", ".join(available) or "none"
        raise ValueError(f'"{requested}" is not available, do you mean "{nearest}"? Available: {names}')


def tolist_if_not(x):
    """Return `x` if it is a list, else the list [x]."""
    return x if isinstance(x, list) else [x]
