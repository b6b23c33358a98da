"""The real download code against a server on loopback, and unpacking that cannot escape."""

import contextlib
import functools
import hashlib
import http.client
import os
import random
import stat
import tarfile
import zipfile
from collections import namedtuple

import pytest
import serving
from serving import Served, files_in, md5, one_line, random_tree, tar_bytes, zip_bytes

from dassl.data.datasets import DatasetBase
from dassl.infrastructure import download
from dassl.infrastructure.download import check_member, download_gdrive, extract_archive
from dassl.utils import download_url
from datasets.catalogue import Item
from datasets.tools import prepare

server, big, drive = serving.server, serving.big, serving.drive  # the fixtures


# ------------------------------------------------------------------ downloading


def test_download_whole(big, tmp_path):
    served, url = big
    download_url(url, str(tmp_path / "new" / "x.zip"), md5(served.body))
    assert (tmp_path / "new" / "x.zip").read_bytes() == served.body
    assert os.listdir(tmp_path / "new") == ["x.zip"] and served.sent == [3_000_000]
    assert "python" not in served.agents[0].lower()
    download_url(url, str(tmp_path / "y"), hashlib.sha256(served.body).hexdigest())


def test_an_interrupted_download_goes_on(big, tmp_path):
    served, url = big
    served.cut = [1_200_000]
    with pytest.raises(OSError, match="1,200,000 of 3,000,000.*try again") as error:
        download_url(url, str(tmp_path / "x"), retries=0)
    assert "goes on after the 1,200,000" in one_line(error)
    assert not (tmp_path / "x").exists()
    download_url(url, str(tmp_path / "x"), md5(served.body))
    assert (tmp_path / "x").read_bytes() == served.body and os.listdir(tmp_path) == ["x"]
    assert served.sent == [1_200_000, 1_800_000] and served.asked == [None, "bytes=1200000-"]


def test_a_lost_connection_goes_on_at_once_while_something_comes(big, tmp_path):
    served, url = big
    served.cut = [1_000_000, 500_000, 700_000]
    download_url(url, str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == served.body
    assert served.sent == [1_000_000, 500_000, 700_000, 800_000]
    served.cut, served.sent = [100, 0, 0, 0], []
    with pytest.raises(OSError, match="100 of 3,000,000"):
        download_url(url, str(tmp_path / "y"))
    assert served.sent == [100, 0]


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), http.client.IncompleteRead(b""), TimeoutError()])
def test_a_reset_connection_goes_on_too(error, big, tmp_path, monkeypatch):
    served, url = big
    read, calls = http.client.HTTPResponse.read, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return read(self, *args)

    monkeypatch.setattr(http.client.HTTPResponse, "read", failing)
    download_url(url, str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == served.body and served.asked == [None, f"bytes={1 << 20}-"]


def test_ctrl_c_keeps_what_has_come(big, tmp_path, monkeypatch):
    served, url = big
    read, chunks = download._read_chunk, iter(range(3))

    def pressed(response):
        if next(chunks) == 2:
            raise KeyboardInterrupt
        return read(response)

    monkeypatch.setattr(download, "_read_chunk", pressed)
    with pytest.raises(KeyboardInterrupt):
        download_url(url, str(tmp_path / "x"))
    assert (tmp_path / "x.part").read_bytes() == served.body[: 2 << 20]
    monkeypatch.setattr(download, "_read_chunk", read)
    download_url(url, str(tmp_path / "x"))
    assert served.sent[-1] == 3_000_000 - (2 << 20) and (tmp_path / "x").read_bytes() == served.body


@pytest.mark.parametrize("change", ["changed", "no ranges", "no tag", "weak tag", "shorter"])
def test_what_cannot_be_continued_starts_anew(change, big, tmp_path):
    served, url = big
    served.cut = [1_000_000]
    served.tag = {"no tag": "", "weak tag": 'W/"1"'}.get(change, '"1"')
    with pytest.raises(OSError, match="1,000,000"):
        download_url(url, str(tmp_path / "x"), retries=0)
    assert (tmp_path / "x.part").exists() == ("tag" not in change)
    if change in ("changed", "shorter"):
        served.body, served.tag = random.randbytes(2_000_000 if change == "changed" else 999), '"2"'
    served.ranges = change != "no ranges"
    download_url(url, str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == served.body and os.listdir(tmp_path) == ["x"]
    assert served.sent[-1] == len(served.body)


def test_a_server_that_continues_another_version(big, tmp_path, monkeypatch):
    """Some ignore If-Range: the ETag of their answer tells."""
    served, url = big
    served.cut = [1_000_000]
    with pytest.raises(OSError):
        download_url(url, str(tmp_path / "x"), retries=0)
    served.body = random.randbytes(2_000_000)
    (tmp_path / "x.part.tag").write_text('"1"')
    monkeypatch.setattr(download, "version", lambda response, version=download.version: version(response) + "new")
    download_url(url, str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == served.body


def test_a_whole_part_is_only_checked(big, tmp_path):
    """Interrupted between the last byte and its final name."""
    served, url = big
    (tmp_path / "x.part").write_bytes(served.body)
    (tmp_path / "x.part.tag").write_text(served.tag)
    download_url(url, str(tmp_path / "x"), md5(served.body))
    assert served.sent == [] and (tmp_path / "x").read_bytes() == served.body and os.listdir(tmp_path) == ["x"]
    (tmp_path / "x.part").write_bytes(served.body + b"more")  # longer than the file: 416 too
    (tmp_path / "x.part.tag").write_text(served.tag)
    download_url(url, str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == served.body


def test_a_wrong_checksum_is_fetched_once_more(big, tmp_path, capsys):
    served, url = big
    (tmp_path / "x.part").write_bytes(random.randbytes(1_000_000))  # damaged on the way
    (tmp_path / "x.part.tag").write_text(served.tag)
    download_url(url, str(tmp_path / "x"), md5(served.body))
    assert (tmp_path / "x").read_bytes() == served.body and served.sent == [2_000_000, 3_000_000]
    assert "fetched again" in capsys.readouterr().out
    expected = md5(b"something else")
    with pytest.raises(OSError, match="MD5") as error:
        download_url(url, str(tmp_path / "y"), expected)
    assert expected in one_line(error) and md5(served.body) in str(error.value)
    assert served.sent[2:] == [3_000_000] * 2 and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_refuses(status, big, tmp_path):
    served, url = big
    served.status = status
    with pytest.raises(OSError, match=rf"{status}.*by hand") as error:
        download_url(url, str(tmp_path / "x"))
    assert url in one_line(error) and os.listdir(tmp_path) == []


def test_no_server(big, server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="try again"):
        download_url(big[1], str(tmp_path / "x"))


def test_a_full_disk_is_told_before(big, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**7, 10**7 - 2_999_999, 2_999_999))
    with pytest.raises(OSError, match=r"0.00 GB are needed.*make room") as error:
        download_url(big[1], str(tmp_path / "x"))
    one_line(error)
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**7, 7 * 10**6, 3_000_000))
    download_url(big[1], str(tmp_path / "x"))


# ------------------------------------------------------------------ Google Drive


def test_google_drive(drive, tmp_path):
    drive["abc"] = random.randbytes(100)
    download_gdrive("abc", str(tmp_path / "d" / "x"), md5(drive["abc"]))
    assert (tmp_path / "d" / "x").read_bytes() == drive["abc"] and os.listdir(tmp_path / "d") == ["x"]
    with pytest.raises(OSError, match="MD5"):
        download_gdrive("abc", str(tmp_path / "y"), md5(b""))
    drive["old gdown"] = None  # fails without an exception
    drive["cut off"] = ConnectionError("reset")
    for file_id in ("unknown", "old gdown", "cut off"):
        with pytest.raises(OSError, match="in a browser") as error:
            download_gdrive(file_id, str(tmp_path / "y"))
        assert f"https://drive.google.com/file/d/{file_id}/view" in one_line(error)
        assert str(tmp_path / "y") in str(error.value)
    assert os.listdir(tmp_path) == ["d"]


# ------------------------------------------------------------------ unpacking


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("pack", [tar_bytes, functools.partial(tar_bytes, mode="w"), zip_bytes])
def test_unpack(pack, tmp_path):
    tree = random_tree("a/b.jpg", "a/c d/é.jpg", "e.txt")
    (tmp_path / "archive").write_bytes(pack(tree))
    extract_archive(str(tmp_path / "archive"), str(tmp_path / "to"))
    assert files_in(tmp_path / "to") == tree


def test_links_inside_are_kept(tmp_path):
    tree = random_tree("a/x") | {"a/y": special("a/y", tarfile.SYMTYPE, "x")}
    (tmp_path / "archive").write_bytes(tar_bytes(tree))
    extract_archive(str(tmp_path / "archive"), str(tmp_path / "to"))
    assert (tmp_path / "to" / "a" / "y").read_bytes() == tree["a/x"]


ESCAPES = {
    "parent": {"ok": b"1", "../escaped": b"2"},
    "deep parent": {"ok": b"1", "a/../../escaped": b"2"},
    "absolute": {"ok": b"1", "{}/escaped": b"2"},
    "windows": {"ok": b"1", "..\\escaped": b"2"},
    "symlink": {"ok": b"1", "s": special("s", tarfile.SYMTYPE, ".."), "s/escaped": b"2"},
    "absolute symlink": {"s": special("s", tarfile.SYMTYPE, "/etc/passwd")},
    "hard link": {"h": special("h", tarfile.LNKTYPE, "../secret")},
    "device": {"d": special("d", tarfile.CHRTYPE)},
    "pipe": {"d": special("d", tarfile.FIFOTYPE)},
}


@pytest.mark.parametrize(
    ("case", "pack"),
    [
        *((case, tar_bytes) for case in ESCAPES),
        *(
            (case, zip_bytes) for case in ESCAPES if case not in ("device", "pipe", "hard link")
        ),  # of which zip has none
    ],
)
def test_nothing_escapes(case, pack, tmp_path):
    tree = {path.format(tmp_path): content for path, content in ESCAPES[case].items()}
    if pack is zip_bytes:
        link = zipfile.ZipInfo("s")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        tree = {link if path == "s" else path: "/" if path == "s" else content for path, content in tree.items()}
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "archive").write_bytes(pack(tree))
    (tmp_path / "data").mkdir()
    item = Item(("ok",), archive="archive", take={"ok": "ok"})
    with pytest.raises(OSError, match="Cannot unpack") as error:
        prepare.unpack(item, str(tmp_path / "archive"), str(tmp_path / "data"))
    one_line(error)
    assert sorted(os.listdir(tmp_path)) == ["archive", "data", "secret"]
    assert os.listdir(tmp_path / "data") == []  # not even what came before it


def test_member_names():
    for name in ("a/b", "a b/..c/d..", "c:", "x/a:b", "é"):
        with contextlib.suppress(OSError) if name == "c:" else contextlib.nullcontext():
            check_member(name)
    for name in ("/a", "..", "a/..", "a\\..\\b", "c:\\x", "\\\\host\\x"):
        with pytest.raises(OSError, match="outside"):
            check_member(name)


@pytest.mark.parametrize("pack", [tar_bytes, functools.partial(tar_bytes, mode="w"), zip_bytes])
@pytest.mark.parametrize("damage", ["cut", "not one", "empty"])
def test_damaged_archives(pack, damage, tmp_path):
    whole = pack({f"{k}.jpg": random.randbytes(3000) for k in range(9)})
    bad = {"cut": whole[: random.randint(2000, len(whole) - 12_000)], "not one": b"<html>log in", "empty": b""}
    (tmp_path / "archive").write_bytes(bad[damage])
    (tmp_path / "data").mkdir()
    with pytest.raises(OSError, match="damaged or cut off.*intact copy") as error:
        prepare.unpack(Item(("0.jpg",), take={"*": "."}), str(tmp_path / "archive"), str(tmp_path / "data"))
    assert str(tmp_path / "archive") in one_line(error)
    assert os.listdir(tmp_path / "data") == []


def test_a_tar_that_is_cut_between_two_members(tmp_path):
    (tmp_path / "archive").write_bytes(tar_bytes({"a": bytes(512), "b": bytes(512)}, "w")[:1024])
    with pytest.raises(OSError, match="cut off"):
        extract_archive(str(tmp_path / "archive"), str(tmp_path / "to"))


def test_a_tar_whose_member_does_not_fit(tmp_path, monkeypatch):
    (tmp_path / "archive").write_bytes(tar_bytes({"x": bytes(10**6)}))  # packed it is small
    monkeypatch.setattr("shutil.disk_usage", lambda folder: namedtuple("usage", "free")(10**6 - 1))
    with pytest.raises(OSError, match="make room"):
        extract_archive(str(tmp_path / "archive"), str(tmp_path / "to"))
    assert os.listdir(tmp_path / "to") == []


def test_a_zip_that_does_not_fit(tmp_path, monkeypatch):
    (tmp_path / "archive").write_bytes(zip_bytes({"x": bytes(10**6)}))  # packed it is small
    monkeypatch.setattr("shutil.disk_usage", lambda folder: namedtuple("usage", "free")(10**6 - 1))
    with pytest.raises(OSError, match="make room"):
        extract_archive(str(tmp_path / "archive"), str(tmp_path / "to"))
    assert os.listdir(tmp_path / "to") == []


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_dassls_own_download(pack, server, tmp_path):
    tree = random_tree("a/b", "c")
    server.files["/x"] = Served(pack(tree))
    DatasetBase.download_data(server.url("/x"), str(tmp_path / "d" / "x"), from_gdrive=False)
    assert files_in(tmp_path / "d") == tree | {"x": server.files["/x"].body}
