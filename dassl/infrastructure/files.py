"""Files that are whole or not there at all, and that say whether they are still as they were written.

Nothing but Python is needed, so that what only reads results does not wait for PyTorch.
"""

import contextlib
import hashlib
import json
import os
import os.path as osp
import re
import shutil
import stat
import uuid
import zipfile
from contextvars import ContextVar

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None

NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)  # Windows has none
# Bytes of a text file that is read at all: Python takes 20 bytes of memory for one of JSON, and 10 us for one of YAML
LARGEST = {".yaml": 1 << 18, ".yml": 1 << 18, "": 1 << 26}
LEFTOVER = r"\..+\.[0-9a-f]{8}\.tmp"  # what `atomic_write` writes to
SCRATCH = r"\.{}-[0-9a-f]{{8}}"  # a `scratch_folder` of that name
STEERING = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text, keep=""):
    """Return `text` with escapes, as in Python, for what could steer a terminal, but for the characters in `keep`.

    These are control characters, changes of the direction of writing, and bytes that are no text.
    """
    return STEERING.sub(lambda c: c[0] if c[0] in keep else c[0].encode("unicode_escape").decode(), str(text))


def spreadsheet_cell(text):
    """Return `text` as `visible`, behind a quotation mark where a spreadsheet would take it for a formula."""
    return f"'{visible(text)}" if str(text).startswith(("=", "+", "-", "@")) else visible(text)


# ------------------------------------------------------------------ folders that are not to be written into

_protected = ContextVar("protected", default=())


@contextlib.contextmanager
def protected(folder, but=()):
    """Within the context nothing in this thread writes or removes below `folder`: a file of somebody else names it.

    Args:
        folder (str): the folder.
        but (iterable of str): folders in it that may be written into.
    """
    allowed = [osp.realpath(path) for path in but]
    token = _protected.set((*_protected.get(), (osp.realpath(folder), allowed)))
    try:
        yield
    finally:
        _protected.reset(token)


def is_protected(path):
    """Return whether `path` lies in a protected folder, wherever links lead."""
    real = osp.realpath(path)

    def inside(folder):
        return osp.commonpath([folder, real]) == folder

    return any(inside(folder) and not any(map(inside, allowed)) for folder, allowed in _protected.get())


def check_not_protected(path):
    """Raise OSError if `path` lies in a protected folder."""
    if is_protected(path):
        raise OSError(f"{path} lies in a folder that only the model's config.yaml names: give that folder yourself")


# ------------------------------------------------------------------ locks, and what killed processes left

_locks = set()  # descriptors


def _let_go():
    """Release all locks in a forked process.

    A data worker may outlive a killed run for seconds, and must not lock its directory during this time.
    """
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(path, message):
    """Lock an existing file or folder against other processes. Yield False if the file system has no locks.

    Raises:
        BlockingIOError: another process has the lock; `message` is the message.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(path, os.O_RDONLY | NON_BLOCKING)
    _locks.add(descriptor)
    try:
        try:
            is_locked = _lock(descriptor)
        except BlockingIOError:
            raise BlockingIOError(message) from None
        yield is_locked
    finally:
        if descriptor in _locks:  # a forked process has released it already
            _locks.remove(descriptor)
            os.close(descriptor)


def _lock(descriptor, wait=False):
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        raise
    except OSError:  # the file system has no locks
        return False


def sweep(folder, names=LEFTOVER):
    """Remove the leftovers of killed processes in `folder`: files and folders of these names that are not locked."""
    if osp.islink(osp.normpath(folder)) or is_protected(folder):
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = osp.join(folder, name)
            if re.fullmatch(names, name) and not osp.islink(path):
                with contextlib.suppress(OSError), locked(path, "in use") as is_locked:
                    if is_locked:
                        shutil.rmtree(path) if osp.isdir(path) else os.remove(path)


@contextlib.contextmanager
def scratch_folder(folder, name):
    """Make a folder `.<name>-<8 digits>` in `folder`, and remove it at the end unless it was moved."""
    check_not_protected(folder)
    with contextlib.ExitStack() as stack:
        while True:
            path = osp.join(folder, f".{name}-{uuid.uuid4().hex[:8]}")
            os.mkdir(path)
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                stack.enter_context(locked(path, "in use"))
                if osp.isdir(path):  # otherwise another process swept it before it was locked
                    break
        try:
            with add_path_to_errors(path):
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def add_path_to_errors(path):
    """Add the name `path` to an OSError without a file name, for example that of a full disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns an OSError into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        if cause.errno and not cause.filename:
            cause.filename = str(path)
        raise cause from None


@contextlib.contextmanager
def atomic_write(fpath):
    """Open a binary file for writing that becomes `fpath` only once all of it is on disk.

    On any error, Ctrl-C included, a file that was at `fpath` before is untouched and nothing else is left behind; what
    a kill leaves is swept when `fpath` is written again. A link at `fpath` is replaced, never followed.

    Raises:
        OSError: `fpath` is a folder, a device, a pipe or a socket, or a link to one, which no file must replace.
    """
    check_not_protected(osp.dirname(osp.abspath(fpath)))
    check_replaceable(fpath)
    folder, name = osp.split(osp.abspath(fpath))
    os.makedirs(folder, exist_ok=True)
    sweep(folder, LEFTOVER.replace(".+", re.escape(name)))
    while True:
        # Not tempfile: only the owner can read its files, and results are shared
        temp = osp.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        f = open(temp, "x+b")  # noqa: SIM115
        try:
            _lock(f.fileno(), wait=True)
            if osp.exists(temp):  # else it was swept before it was locked
                break
        except BaseException:
            _remove(temp)
            raise
        f.close()
    try:
        with add_path_to_errors(fpath), f:
            yield f
            f.flush()
            os.fsync(f.fileno())
            if fcntl is None:
                f.close()  # Windows moves no open file
            os.replace(temp, fpath)
    except BaseException:
        _remove(temp)
        raise


def check_replaceable(path):
    """Raise OSError unless `path` is a regular file, or nothing is there."""
    if osp.exists(path) and not osp.isfile(path):
        kind = "a folder" if osp.isdir(path) else "a device, a pipe or a socket"
        raise OSError(f"{path} is {kind}: give the name of a file")


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


# ------------------------------------------------------------------ checksums

# Where a file has its own, in its own syntax: of all that follows, or of all before it
HEADS = {".yaml": "# sha256: {}\n", ".json": '{{\n    "sha256": "{}",\n'}
TAIL = "sha256: {}"  # the comment of a zip file
BESIDE = "# sha256 of {}: {}\n"  # in config.yaml, of files beside it that have no place for it
CHANGED = "is not as it was written, its checksum does not hold: put the original back; if you changed it, {}"


class NotAsWritten(ValueError):
    """A file that was damaged or changed since it was written."""


def explain_read_error(error):
    """Return why a file's content does not fit, in plain words, from the exception that reading its values raised."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, (TypeError, AttributeError)):
        return "a value is of another type"
    return str(error)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def file_hash(path):
    """Return the SHA-256 of a file, hexadecimal."""
    with open_regular(path) as f:
        return _digest(f, os.fstat(f.fileno()).st_size)


def check_hashes(folder, hashes):
    """Raise NotAsWritten if a file of `folder` is gone or has another SHA-256 than `hashes`, {name: hex}, says.

    Also if `hashes`, which may come from a file of somebody else, is no such dict.
    """
    if not isinstance(hashes, dict):
        raise NotAsWritten(f"the checksums of the files in {folder} are no object of names: put the original back")
    for name, digest in hashes.items():
        path = osp.join(folder, name)
        if osp.basename(name) != name or not osp.isfile(path):
            raise NotAsWritten(f"{path} is missing: put the original back")
        if file_hash(path) != digest:
            raise NotAsWritten(f"{path} is not as it was written, its checksum does not hold: put the original back")


def add_checksum(text, suffix):
    """Return the content of a YAML file, or of a JSON file that holds an object, with its checksum at the head."""
    body = text.encode().removeprefix(b"{\n" if suffix == ".json" else b"")
    return HEADS[suffix].format(sha256(body)).encode() + body


def seal_config(text, folder, names):
    """Return `text` as a `config.yaml` for `folder`, with the checksums of those files `names` that exist in it.

    The checksums are verified whenever the config is read.
    """
    beside = [name for name in names if osp.exists(osp.join(folder, name))]
    lines = [BESIDE.format(name, sha256(read_bytes(osp.join(folder, name)))) for name in beside]
    return add_checksum("".join(lines) + text, ".yaml")


def check_head(data, path):
    """Raise ValueError if the file content `data` has a wrong checksum, of itself or of a file in its folder."""
    suffix = osp.splitext(path)[1]
    head = HEADS.get(suffix, "").format("0" * 64).encode()
    matches = [a == b for a, b in zip(data, head, strict=False) if b != ord("0")]  # all characters but the digits
    # 80 % of the characters are enough, because the head itself may be damaged
    if not head or len(data) < len(head) or sum(matches) < 0.8 * len(matches):
        return
    if data[: len(head)] != HEADS[suffix].format(sha256(data[len(head) :])).encode():
        advice = 'remove its lines with "# sha256"' if suffix == ".yaml" else 'remove its entry "sha256"'
        raise NotAsWritten(f"{path} {CHANGED.format(advice)}")
    if suffix == ".yaml":
        line = "^" + BESIDE.format(r"([\w.-]+)", "([0-9a-f]{64})")
        for name, digest in re.findall(line, data.decode(errors="replace"), re.MULTILINE):
            other = osp.join(osp.dirname(path), name)
            if osp.exists(other) and sha256(read_bytes(other)) != digest:
                advice = f'remove the lines with "# sha256" in {path}'
                raise NotAsWritten(f"{other} {CHANGED.format(advice)}")


def seal_zip(f):
    """Give the zip archive without a comment, which the open file `f` holds, its checksum as comment."""
    f.seek(-2, os.SEEK_END)
    f.write(len(TAIL.format("0" * 64)).to_bytes(2, "little"))
    digest = _digest(f, f.tell())
    f.write(TAIL.format(digest).encode())


def check_zip(path):
    """Raise ValueError if the zip archive has a checksum that does not hold; without a comment it passes."""
    with open_regular(path) as f, zipfile.ZipFile(f) as archive:
        end = osp.getsize(path) - len(archive.comment)
        if archive.comment and archive.comment != TAIL.format(_digest(f, end)).encode():
            raise NotAsWritten(f"{path} is not as it was written, its checksum does not hold: put an intact copy there")
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise NotAsWritten(f"{path} is compressed, which PyTorch never does: take the original file")


def _digest(f, end):
    """SHA-256 of the first `end` bytes of an open file, behind which it then stands."""
    digest = hashlib.sha256()
    f.seek(0)
    while chunk := f.read(min(1 << 20, end - f.tell())):
        digest.update(chunk)
    return digest.hexdigest()


# ------------------------------------------------------------------ text and JSON


def open_regular(path):
    """Open a file for reading bytes, if it is a regular one; reading a pipe or a device might never end.

    Raises:
        ValueError: it is something else.
    """
    f = open(path, "rb", opener=lambda path, flags: os.open(path, flags | NON_BLOCKING))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
        f.close()
        raise ValueError(f"{path} is a device, a pipe or a socket: put the original file there")
    return f


def check_regular(path):
    """Raise ValueError if `path` is no regular file, OSError if there is none."""
    open_regular(path).close()


def read_bytes(path):
    """Return the content of a text file. Raises ValueError for what is no file, or larger than any that is written."""
    with open_regular(path) as f:
        limit = LARGEST.get(osp.splitext(path)[1].lower(), LARGEST[""])
        if os.fstat(f.fileno()).st_size > limit:
            raise ValueError(f"{path} has more than {limit / 1e6:.1f} MB: put the original file there")
        return f.read()


def read_text(path):
    """Return the content of a UTF-8 file as text, after checking its checksum if it has one.

    Raises:
        ValueError: the checksum does not hold, or it is not UTF-8.
    """
    data = read_bytes(path)
    check_head(data, str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: byte 0x{data[error.start]:02x} is no UTF-8: save it as UTF-8") from None


def read_json(fpath):
    """Return the content of the JSON file `fpath`, without its checksum.

    Raises:
        ValueError: it is no JSON (NaN and Infinity are none), is cut off, or has a checksum that does not hold.
    """

    def refuse(word):
        raise ValueError(f"{word} is no number of JSON")

    text = read_text(fpath)
    try:
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{fpath} is cut off or no JSON ({error}): put an intact copy there") from error
    if text.startswith(HEADS[".json"].format("")[:-3]):  # the checksum, which has been verified
        del content["sha256"]
    return content


def write_json(obj, fpath, seal=False):
    """Write `obj` as JSON to `fpath`, indented by 4. The write is atomic, and missing folders are made.

    Args:
        obj: the content.
        fpath (str): the file.
        seal (bool): whether to add a first entry "sha256", the checksum of the rest; `obj` must be a non-empty dict.

    Raises:
        ValueError: it has an infinite number or NaN, which JSON cannot represent.
    """
    try:
        text = json.dumps(obj, indent=4, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{fpath} cannot be written, JSON has no infinite numbers and no NaN: {error}") from error
    with atomic_write(fpath) as f:
        f.write(add_checksum(text, ".json") if seal else text.encode())


def listdir_nohidden(path, sort=False):
    """Return the names in the directory `path` that do not start with a dot, sorted if `sort`."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items
