"""Downloads that continue where they stopped, and archives that cannot write outside their folder."""

import gzip
import hashlib
import http.client
import os
import os.path as osp
import re
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from dassl.infrastructure.streams import progress, without_bars

AGENT = "Mozilla/5.0 (compatible; OrthCR)"  # some hosts refuse Python's own
DRIVE = "https://drive.google.com/file/d/{}/view"
CHUNK = 1 << 20  # bytes
BAR = {"unit": "B", "unit_scale": True}


# ------------------------------------------------------------------ downloading


def download_url(url, dst, checksum=None, retries=3, timeout=60):
    """Download `url` to the file `dst`, which is created only after it is complete and verified.

    An interrupted transfer is kept as `<dst>.part`, and the next call fetches the rest. If the file has changed at its
    source since then, or the server cannot resume, the download starts again.

    Args:
        url (str): the source.
        dst (str): the file.
        checksum (str): MD5 or SHA-256, hexadecimal; a file that does not match is downloaded once more.
        retries (int): number of times that a broken transfer is resumed at once.
        timeout (float): maximum time without an answer, in seconds.

    Raises:
        OSError: the server cannot be reached or refuses, the transfer breaks, the disk is too small, or the
            checksum does not match.
    """
    print(f'* url="{url}"')
    print(f'* destination="{dst}"')
    os.makedirs(osp.dirname(dst) or ".", exist_ok=True)
    part = dst + ".part"
    try:
        for may_retry in (True, False):
            _transfer_all(url, part, retries, timeout)
            try:
                check_file(part, checksum)
                break
            except OSError as error:
                discard(part)
                if not may_retry:
                    raise
                print(f"{error}; it is fetched again")
        os.replace(part, dst)
        discard(part)
    except (OSError, http.client.HTTPException) as error:
        progress = f", it goes on after the {_size(part):,} bytes received" if _size(part) else ""
        advice = f"try again{progress}, or put the file there by hand"
        raise OSError(f'Cannot download "{url}" to "{dst}" ({_one_line(error)}): {advice}') from error


class BrokenTransfer(OSError):
    """A connection that was lost during a transfer. The received part of the file is kept."""


def _transfer_all(url, part, retries, timeout):
    while True:
        before = _size(part)
        try:
            return _transfer(url, part, timeout)
        except BrokenTransfer:
            if not retries or _size(part) <= before:  # the server is down
                raise
            retries -= 1


def _transfer(url, part, timeout):
    """Fetch the rest of `url` into `part`; `<part>.tag` says which version of the file it belongs to."""

    def ask(since=0):
        headers = {"User-Agent": AGENT} | ({"Range": f"bytes={since}-", "If-Range": tag} if since else {})
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)

    tag_file = Path(part + ".tag")
    tag = tag_file.read_text(encoding="utf-8") if tag_file.exists() else ""
    have = _size(part) if tag else 0
    try:
        response = ask(have)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the file has nothing beyond what we have
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        response = ask()
    if getattr(response, "status", None) == 206:
        span = re.match(rf"bytes {have}-\d+/", response.headers.get("Content-Range") or "")
        if not span or version(response) != tag:  # another range, or another version
            response.close()
            response = ask()
    with response:
        if getattr(response, "status", None) != 206:  # the whole file: it has changed, or the server cannot resume
            discard(part)
            have, tag = 0, version(response)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        check_disk(osp.dirname(part) or ".", int(length or 0))
        if tag:
            tag_file.write_text(tag, encoding="utf-8")
        try:
            with open(part, "ab") as f, progress(total=total, initial=have, desc=osp.basename(part)[:-5], **BAR) as bar:
                while chunk := _read_chunk(response):
                    f.write(chunk)
                    bar.update(len(chunk))
            if total is not None and _size(part) != total:
                raise BrokenTransfer(f"got {_size(part):,} of {total:,} bytes")
        except BaseException:  # Ctrl-C included
            if not tag:
                discard(part)  # it could not be resumed
            raise


def _read_chunk(response):
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenTransfer(_one_line(error)) from error


def version(response):
    """Return what identifies a version of the file, for `If-Range`: a strong ETag, else the date."""
    etag = response.headers.get("ETag") or ""
    return etag if etag.startswith('"') else response.headers.get("Last-Modified") or ""


def download_gdrive(file_id, dst, checksum=None):
    """Download a file shared on Google Drive to `dst`, with gdown, which resumes it if interrupted.

    Raises:
        OSError: Google refuses (for hours, once a file was downloaded too often), or as in `download_url`.
    """
    import gdown  # here, because nothing else needs it

    os.makedirs(osp.dirname(dst) or ".", exist_ok=True)
    part = dst + ".drive"
    try:
        if not gdown.download(id=file_id, output=part, resume=True):  # older versions return None instead of raising
            raise OSError("Google Drive refuses")
        check_file(part, checksum)
    except Exception as error:  # gdown raises its own, requests' and others'
        Path(part).unlink(missing_ok=True)
        advice = f"open {DRIVE.format(file_id)} in a browser, and save the file as {dst}"
        raise OSError(f"Cannot download it from Google Drive ({_one_line(error)}): {advice}") from error
    os.replace(part, dst)


def check_file(path, checksum):
    """Raise OSError if `checksum`, an MD5 or SHA-256, is not that of the file `path`; None: no check."""
    if not checksum:
        return
    name = {32: "md5", 64: "sha256"}[len(checksum)]
    digest, title = hashlib.new(name), f"checking {osp.basename(path)}"
    with (
        open(path, "rb") as f,
        tqdm.wrapattr(f, "read", _size(path), desc=title, disable=without_bars(), **BAR) as file,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    file_digest = digest.hexdigest()
    if file_digest != checksum.lower():
        raise OSError(f"{path} has the {name.upper()} {file_digest}, expected {checksum}: damaged or a different file")


def check_disk(folder, n_bytes):
    """Raise OSError if fewer than `n_bytes` bytes are free where `folder` is."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < n_bytes:
        problem = f"{n_bytes / 1e9:.2f} GB are needed in {folder}, but only {free_bytes / 1e9:.2f} are free"
        raise OSError(f"{problem}: make room")


def discard(part):
    """Remove a partial download and its tag, if they exist."""
    for path in (part, part + ".tag"):
        Path(path).unlink(missing_ok=True)


# ------------------------------------------------------------------ unpacking


class DamagedArchive(OSError):
    """A file that is not a complete archive."""


def extract_archive(archive, folder):
    """Unpack the tar or zip file `archive`, compressed or not, into `folder`.

    Raises:
        DamagedArchive: it is damaged, cut off, or neither tar nor zip.
        OSError: a member would be written outside `folder` (an absolute path, "..", a link to outside) or is a
            device; the disk is too small. Members unpacked before stay: use a scratch folder.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        if tarfile.is_tarfile(archive):
            _extract_tar(archive, folder)
        elif zipfile.is_zipfile(archive):
            _extract_zip(archive, folder)
        else:
            raise EOFError("not a complete tar or zip file")
    except (EOFError, RuntimeError, zlib.error, gzip.BadGzipFile, tarfile.ReadError, zipfile.BadZipFile) as error:
        raise DamagedArchive(f'"{archive}" is damaged or cut off ({_one_line(error)}): take an intact copy') from error
    except (OSError, tarfile.TarError) as error:
        raise OSError(f'Cannot unpack "{archive}": {_one_line(error)}') from error


def _extract_tar(archive, folder):
    check_disk(folder, _size(archive))  # at least: the size of the members would take a pass over the file
    with (
        open(archive, "rb") as f,
        tarfile.open(fileobj=f) as tar,
        progress(total=_size(archive), desc=f"unpacking {osp.basename(archive)}", **BAR) as bar,
    ):

        def inside(member, path):
            bar.update(f.tell() - bar.n)
            check_member(member.name)  # data_filter makes absolute paths relative
            check_disk(folder, member.size)  # a small archive may unpack to more than the disk holds
            return tarfile.data_filter(member, path)  # no links to outside, no devices

        tar.extractall(folder, filter=inside)
        if tar.fileobj is f:  # not compressed: to tarfile a cut between two members is the end
            f.seek(tar.offset)
            if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end is missing")


def _extract_zip(archive, folder):
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            check_member(member.orig_filename)  # reading may have changed `filename`
            if stat.S_ISLNK(member.external_attr >> 16):
                raise OSError(f'"{member.filename}" is a link, which is not unpacked from zip files')
        size = sum(member.file_size for member in members)
        check_disk(folder, size)
        with progress(total=size, desc=f"unpacking {osp.basename(archive)}", **BAR) as bar:
            for member in members:
                file.extract(member, folder)
                bar.update(member.file_size)


def check_member(name):
    """Raise OSError if the path `name` in an archive leads out of the folder that it is unpacked to."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise OSError(f'"{name}" in it would be written outside the folder')


# ------------------------------------------------------------------ small parts


def _size(path):
    return osp.getsize(path) if osp.exists(path) else 0


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__
