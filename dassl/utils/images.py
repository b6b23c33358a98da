"""Images: which files are some, which can be read, and reading them.

`read_image` reads as Dassl does, bit for bit; `read_photo` as a viewer shows them, for own photographs.
"""

import contextlib
import os
import os.path as osp
import warnings
from multiprocessing.pool import ThreadPool

from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

# Pillow warns, in every worker, about images beyond 89 megapixels, and refuses those beyond 179
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Palette images with Transparency")

SUFFIXES = tuple(".jpg .jpeg .jfif .png .webp .bmp .gif .tif .tiff .ppm .heic .heif .avif".split())
# Pillow also opens formats that run a program (EPS starts Ghostscript) or read other files: none of these is here
FORMATS = "JPEG MPO PNG WEBP BMP GIF TIFF PPM JPEG2000 AVIF HEIF".split()
PIXELS, JPEG_PIXELS = 2**26, 178_956_970  # an image may have; of a JPEG as many as Pillow decodes without a complaint
HEIF_BRANDS = tuple(b"heic heix heim heis hevc hevx mif1 msf1".split())  # ISO/IEC 23008-12


class UnsupportedImage(OSError):
    """An image that may be whole and still cannot be used as it is; the message says what to do."""


def read_image(path):
    """Return the image file `path` as an RGB `PIL.Image`, fully decoded and closed; no other pixels than Dassl's.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read or decoded, e.g. because copying it was cut short.
    """
    with _opened(path) as img:
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
    with _opened(path) as img:
        if side:
            img.draft(None, (side, side))
        return reduced(as_photo(img), side)


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
    photo = on_white(turned_upright(img))
    photo.info = {}  # no orientation is left, so that this may be read again
    return photo


def pixel_problem(img):
    """Return why the pixels of an opened `PIL.Image` cannot be used, "" if they can."""
    if max(img.size) > 100 * min(img.size):
        return f"it is {img.width} x {img.height} pixels: more than 100 times as long as wide"
    is_jpeg = img.format in ("JPEG", "MPO") and not img.has_transparency_data
    most = JPEG_PIXELS if is_jpeg else PIXELS
    if img.width * img.height > most:
        return f"it is {img.width} x {img.height} pixels, more than {most / 1e6:.0f} million: make it smaller"
    if img.mode.startswith(("I", "F")):
        return f"its pixels are of mode {img.mode}, not 8 bits, and would be read as white: convert it"
    return ""


def on_white(img):
    """Return any `PIL.Image` in RGB; where it is transparent, white is behind it."""
    if not img.has_transparency_data:
        return img.convert("RGB")
    img = img.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", img.size, "white"), img).convert("RGB")


def reduced(img, side):
    """Return the `PIL.Image` with its shorter side at most `side` pixels; 0: as it is.

    The longer side is rounded down, as torchvision's `Resize` does.
    """
    shorter = min(img.size)
    if not 0 < side < shorter:
        return img
    size = [side * length // shorter for length in img.size]
    return img.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def turned_upright(img):
    """Return the decoded `PIL.Image` rotated as its EXIF orientation says; unchanged if its EXIF cannot be read.

    Not with `ImageOps.exif_transpose`, which rewrites all other EXIF tags too and fails on those of some cameras.
    """
    try:
        orientation = img.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises a dozen types
        return img
    turns = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
    return img.transpose(Image.Transpose[turns[orientation - 2]]) if orientation in range(2, 9) else img


def open_image(file):
    """Open the image at a path or in a binary file, if it is of one of `FORMATS`; HEIF (.heic) needs pillow-heif.

    Raises:
        UnsupportedImage: it is HEIF, and pillow-heif is not installed.
        PIL.UnidentifiedImageError: it is no image of these formats.
    """
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
        with open(file, "rb") as opened:
            return opened.read(n)
    file.seek(0)
    head = file.read(n)
    file.seek(0)
    return head


@contextlib.contextmanager
def _opened(path):
    try:
        with open_image(path) as img:
            yield img
    except FileNotFoundError:
        raise FileNotFoundError(f'No image at "{path}": check DATASET.ROOT and that the data set is complete') from None
    except UnsupportedImage as e:
        raise UnsupportedImage(f'Cannot read the image "{path}": {e}') from None
    except Exception as e:  # Pillow raises a dozen types
        raise OSError(f'Cannot read the image "{path}" ({e}): replace it with an intact copy') from e


@contextlib.contextmanager
def in_threads(function, items):
    """Yield the results of `function(item)`, in order, from several threads.

    Pillow decodes, and a disk waits, outside Python's lock. What was not taken when the context ends is given up.
    """
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:  # not more: each holds a decoded image
        yield pool.imap(function, items)


def decoded_copies(paths, decode, most):
    """Return {path: decode(path), a `PIL.Image`} of the first images that fit into `most` bytes together.

    Not of those that cannot be decoded: they raise when they are asked for, if they are.
    """
    copies = {}

    def attempt(path):
        with contextlib.suppress(OSError):
            return decode(path)

    with in_threads(attempt, paths) as images:
        bar = tqdm(images, "reading images", len(paths), unit="image", leave=False, disable=None, delay=1)
        for path, image in zip(paths, bar, strict=False):
            if image is None:
                continue
            most -= 3 * image.width * image.height
            if most < 0:
                break
            copies[path] = image
    return copies


# ------------------------------------------------------------------ files


def is_image(name):
    """Return whether a file name ends like that of an image."""
    return name.lower().endswith(SUFFIXES)


def images_in(folder):
    """Return the paths of the images and of the other files below a folder, sorted; hidden ones are passed over."""
    paths, seen = [], set()
    for at, inner, files in os.walk(folder, onerror=_stop, followlinks=True):
        if osp.realpath(at) in seen:  # a link in a circle
            inner.clear()
            continue
        seen.add(osp.realpath(at))
        inner[:] = [name for name in inner if not name.startswith(".")]
        paths += [osp.join(at, name) for name in files if not name.startswith(".")]
    return sorted(filter(is_image, paths)), sorted(path for path in paths if not is_image(path))


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
        return " ".join(str(error).split()) or type(error).__name__
