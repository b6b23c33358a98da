"""Images: which files are some, which can be read, and reading them.

`read_image` reads as Dassl does, bit for bit; `read_photo` as a viewer shows them, for own photographs.
"""

import contextlib
import os
import os.path as osp
import warnings
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from dassl.infrastructure.files import check_regular
from dassl.infrastructure.streams import progress

# Pillow warns, in every worker, about images beyond 89 megapixels, and refuses those beyond 179
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Palette images with Transparency")

SUFFIXES = tuple(
    ".jpg .jpeg .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .jpe .jp2 .j2k .jpx .jpf .apng .dib .tga "
    ".heic .heif .avif".split()
)
# Pillow also opens formats that run a program (EPS starts Ghostscript) or read other files: none of these is here
FORMATS = "JPEG MPO PNG WEBP BMP DIB GIF TIFF PPM JPEG2000 AVIF HEIF TGA".split()
LARGE = 2**22  # pixels of an image that is converted in parts
PIXELS = 2**26  # an image may have
MANY_PIXELS = (
    178_956_970  # a JPEG or a picture of one byte a pixel may have; Pillow decodes no more without a complaint
)
# Folders that file servers and systems keep for themselves, in lower case: thumbnails, bins, snapshots, repairs
SYSTEM_FOLDERS = frozenset(
    "@eadir #recycle #snapshot @tmp @recycle @recently-snapshot @transcode @sharebin $recycle.bin __macosx __pycache__ "
    "lost+found".split()
) | {"system volume information", "network trash folder", "temporary items"}
HEIF_BRANDS = tuple(b"heic heix heim heis hevc hevx mif1 msf1".split())  # ISO/IEC 23008-12


class UnsupportedImage(OSError):
    """An image that may be whole and still cannot be used as it is; the message says what to do."""


def read_image(path):
    """Return the image file `path` as an RGB `PIL.Image`, fully decoded and closed; no other pixels than Dassl's.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read or decoded, e.g. because copying it was cut short.
    """
    with _open(path) as img:
        problem = size_problem(img)
        if problem:
            raise UnsupportedImage(problem)
        return img.convert("RGB")


def read_photo(path, side=0):
    """Return the photograph `path` as `as_photo` makes it of the opened file.

    Not for benchmarks, because Dassl does none of it.

    Args:
        path (str or PathLike): image file.
        side (int): pixels that the caller needs of the shorter side. A JPEG is decoded at a half, a quarter or an
            eighth of its size where that leaves as many, and the rest is resized. 0: all pixels.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read or decoded, or `pixel_problem` has something to say.
    """
    with _open(path) as img:
        if side:
            img.draft(None, (side, side))
        return reduce_side(as_photo(img), side)


def as_photo(img):
    """Return an opened `PIL.Image` as a viewer shows it: RGB, upright, white where it is transparent.

    Raises:
        UnsupportedImage: `pixel_problem` has something to say.
        OSError: the image cannot be decoded. Pillow raises other types, too.
    """
    problem = pixel_problem(img)
    if problem:
        raise UnsupportedImage(problem)
    img.load()  # first: Pillow turns a TIFF here, and then removes its orientation
    turn = turn_of(img)
    photo = in_bands(img, turn) if img.width * img.height > LARGE else turn_photo(on_white(img), turn)
    photo.info = {}  # no orientation is left, so that this may be read again
    return photo


def in_bands(img, turn):
    """Return `turn_photo(on_white(img), turn)`, made of some rows at a time, so that the memory holds no third copy."""
    width, height = img.size
    swaps = turn in ("TRANSPOSE", "TRANSVERSE", "ROTATE_90", "ROTATE_270")
    counts_from_end = turn in ("ROTATE_180", "FLIP_TOP_BOTTOM", "ROTATE_270", "TRANSVERSE")
    photo, rows = Image.new("RGB", (height, width) if swaps else (width, height)), max(1, LARGE // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        start = height - bottom if counts_from_end else top
        band = turn_photo(on_white(img.crop((0, top, width, bottom))), turn)
        photo.paste(band, (start, 0) if swaps else (0, start))
    return photo


def pixel_problem(img):
    """Return why the pixels of an opened `PIL.Image` cannot be used, "" if they can."""
    if max(img.size) > 100 * min(img.size):
        return f"it is {img.width} x {img.height} pixels: more than 100 times as long as wide"
    problem = size_problem(img)
    if not problem and img.mode.startswith(("I", "F")):
        return f"its pixels are of mode {img.mode}, not 8 bits, and would be read as white: convert it"
    return problem


def size_problem(img):
    """Return why an opened `PIL.Image` takes too much memory, "" if it does not."""
    is_small = img.mode in ("1", "L", "P") or img.mode == "RGB" and img.format in ("JPEG", "MPO")
    max_pixels = MANY_PIXELS if is_small and not img.has_transparency_data else PIXELS
    if img.width * img.height > max_pixels:
        return f"it is {img.width} x {img.height} pixels, more than {max_pixels / 1e6:.0f} million: make it smaller"
    return ""


def on_white(img):
    """Return any `PIL.Image` in RGB; where it is transparent, white is behind it."""
    if not img.has_transparency_data:
        return img.convert("RGB")
    img = img.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", img.size, "white"), img).convert("RGB")


def reduce_side(img, side):
    """Return the `PIL.Image` with its shorter side at most `side` pixels; 0: as it is.

    The longer side is rounded down, as torchvision's `Resize` does.
    """
    shorter_side = min(img.size)
    if not 0 < side < shorter_side:
        return img
    size = [side * length // shorter_side for length in img.size]
    return img.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def turn_of(img):
    """Return the name of the `Image.Transpose` that turns a decoded `PIL.Image` upright; "" for none.

    Not with `ImageOps.exif_transpose`, which rewrites all other EXIF tags too and fails on those of some cameras.
    """
    try:
        orientation = img.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises a dozen types
        return ""
    turns = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
    return turns[orientation - 2] if orientation in range(2, 9) else ""


def turn_photo(img, turn):
    """Return the `PIL.Image` turned as `turn_of` says."""
    return img.transpose(Image.Transpose[turn]) if turn else img


def open_image(file):
    """Open the image at a path or in a binary file, if it is of one of `FORMATS`; HEIF (.heic) needs pillow-heif.

    Raises:
        UnsupportedImage: it is HEIF, and pillow-heif is not installed.
        PIL.UnidentifiedImageError: it is no image of these formats.
        ValueError: it is a device, a pipe or a socket, which reading might never end.
    """
    if not hasattr(file, "read"):
        check_regular(file)
    try:
        return Image.open(file, formats=known_formats())
    except UnidentifiedImageError:
        head = first_bytes(file, 12)  # not by its name: phones' pictures get renamed
        if head[4:8] != b"ftyp" or head[8:] not in HEIF_BRANDS:
            raise
    try:
        import pillow_heif
    except ImportError:
        advice = "pip install pillow-heif"
        raise UnsupportedImage(f"it is a HEIF image (.heic), which needs another decoder: {advice}") from None
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=known_formats())


def known_formats():
    """Return those of `FORMATS` that this Pillow, with what is installed beside it, can open."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def first_bytes(file, n):
    """Return the first `n` bytes of the file at a path, or of an open one, which is at its start afterwards."""
    if not hasattr(file, "read"):
        with open(file, "rb") as stream:
            return stream.read(n)
    file.seek(0)
    head = file.read(n)
    file.seek(0)
    return head


@contextlib.contextmanager
def _open(path):
    try:
        with open_image(path) as img:
            yield img
    except FileNotFoundError:
        raise FileNotFoundError(f'No image at "{path}": check DATASET.ROOT and that the data set is complete') from None
    except MemoryError:
        raise OSError(f'Cannot read the image "{path}": there is not enough memory for it, make it smaller') from None
    except UnsupportedImage as e:
        raise UnsupportedImage(f'Cannot read the image "{path}": {e}') from None
    except Exception as e:  # Pillow raises a dozen types
        raise OSError(f'Cannot read the image "{path}" ({describe(e)}): replace it with an intact copy') from e


def describe(error):
    """Return why an image cannot be read, in a line without the system's numbers."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def in_threads(function, items):
    """Yield the results of `function(item)`, in order, from several threads.

    Pillow decodes, and a disk waits, outside Python's lock. What was not taken when the context ends is given up.
    """
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:  # not more: each holds a decoded image
        yield pool.imap(function, items)


def decoded_copies(paths, decode, limit):
    """Return {path: decode(path), a `PIL.Image`} of the first images that fit into `limit` bytes together.

    Not of those that cannot be decoded: they raise when they are asked for, if they are.
    """
    copies = {}

    def attempt(path):
        with contextlib.suppress(OSError):
            return decode(path)

    with in_threads(attempt, paths) as images:
        bar = progress(images, desc="reading images", total=len(paths), unit="image", leave=False, delay=1)
        for path, image in zip(paths, bar, strict=False):
            if image is None:
                continue
            limit -= 3 * image.width * image.height
            if limit < 0:
                break
            copies[path] = image
    return copies


# ------------------------------------------------------------------ files


class Listing(NamedTuple):
    """The files below a folder, each list sorted."""

    images: list[str]
    others: list[str]  # files that are no images
    system_folders: list[str]  # passed over, with all that is in them

    def omissions(self, folder):
        """Return a line for each kind of file below `folder` that is left out."""
        lines = []
        if self.others:
            count = f"{len(self.others):,} files of {folder} are no images and are left out"
            lines.append(f"{count}, first {osp.relpath(self.others[0], folder)}")
        return lines + describe_system_folders(self.system_folders)


def is_image(name):
    """Return whether a file name ends like that of an image."""
    return name.lower().endswith(SUFFIXES)


def is_system_folder(name):
    """Return whether a folder of that name belongs to a file server or a system, and holds no images of its user."""
    name = name.lower()
    return name in SYSTEM_FOLDERS or (name.startswith("found.") and name[6:].isdigit())


def describe_system_folders(paths):
    """Return a list with one line that counts the system folders that were passed over, or an empty list."""
    if not paths:
        return []
    noun = "system folder is" if len(paths) == 1 else "system folders are"
    return [f"{len(paths):,} {noun} passed over, first {paths[0]}"]


def images_in(folder):
    """Return the `Listing` of a folder and of all below it.

    A file without a suffix is an image if Pillow takes its beginning for one. Hidden files and folders are passed over.
    """
    images, others, system, visited = [], [], [], set()
    for parent, subfolders, files in os.walk(folder, onerror=_stop, followlinks=True):
        if osp.realpath(parent) in visited:  # a link in a circle
            subfolders.clear()
            continue
        visited.add(osp.realpath(parent))
        system += [osp.join(parent, name) for name in subfolders if is_system_folder(name)]
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not is_system_folder(name)]
        for name in files:
            path = osp.join(parent, name)
            if not name.startswith("."):
                (images if is_image(name) or _is_unnamed_image(path) else others).append(path)
    return Listing(sorted(images), sorted(others), sorted(system))


def _is_unnamed_image(path):
    """Return whether a file without a suffix, as of a cache or a download, is an image."""
    if osp.splitext(path)[1] or not osp.isfile(path):
        return False
    try:
        with open_image(path):
            return True
    except UnsupportedImage:
        return True
    except Exception:  # Pillow raises a dozen types
        return False


def _stop(error):
    raise error  # os.walk would pass over what may not be read


def image_problem(path, decode=True):
    """Return why an image cannot be taken, "" if it can; with `decode` all of it is looked at, else its header."""
    try:
        if osp.isdir(path):
            return "it is a folder without images"
        if osp.exists(path) and not osp.isfile(path):
            return "it is no file"  # opening a pipe would wait for ever
        with open_image(path) as image:
            problem = pixel_problem(image)
            if decode and not problem:
                image.draft(None, (256, 256))  # a JPEG is decoded at a fraction of its size
                image.load()
            return problem
    except Exception as error:  # Pillow raises a dozen types
        return describe(error)
