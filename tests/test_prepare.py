"""The real download code against a server on loopback, unpacking that cannot escape, and CoOp's layouts."""

import contextlib
import functools
import hashlib
import http.client
import inspect
import io
import json
import os
import random
import re
import stat
import tarfile
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import gdown
import pytest

import datasets
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.utils import download, download_url, locked
from dassl.utils.download import check_member, download_gdrive, extract_archive
from datasets import prepare
from datasets.sources import SOURCES, Item
from experiments.config import discover

REPO = Path(__file__).resolve().parents[1]
DRIVE_DOWN = "Cannot retrieve the public link of the file.\nYou may need to change the permission"


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def md5(data):
    return hashlib.md5(data).hexdigest()


class Served:
    """A file of the server, what is wrong with it, and the bodies that were sent of it."""

    def __init__(self, body):
        self.body, self.tag, self.ranges, self.status = body, '"1"', True, 200
        self.cut = []  # lengths after which the next answers break off
        self.sent, self.agents, self.asked = [], [], []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        served = self.server.files.get(self.path)
        if served is None or served.status != 200:
            return self.send_error(404 if served is None else served.status)
        served.agents.append(self.headers["User-Agent"])
        served.asked.append(self.headers["Range"])
        body, start = served.body, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if asked and served.ranges and self.headers["If-Range"] in (None, served.tag):
            start = int(asked[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if served.tag:
            self.send_header("ETag", served.tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        answer = body[start:]
        if served.cut:
            answer = answer[: served.cut.pop(0)]
        served.sent.append(len(answer))  # before it goes out: the test may go on as soon as it has come
        with contextlib.suppress(ConnectionError):
            self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """A running server: server.files[path] = Served(...), server.url(path)."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.files = {}
    running.url = lambda path: f"http://127.0.0.1:{running.server_port}{path}"
    thread = threading.Thread(target=functools.partial(running.serve_forever, 0.01), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def big(server):
    """(the served random file of 3 MB, its address)."""
    served = server.files["/big"] = Served(random.randbytes(3_000_000))
    return served, server.url("/big")


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


@pytest.fixture
def drive(monkeypatch):
    """Files that gdown finds, by id: bytes, or an exception; refuses the others."""
    files, signature = {}, inspect.signature(gdown.download)

    def fake(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments  # as the installed gdown takes them
        assert given["resume"] is True and "url" not in given
        content = files.get(given["id"], gdown.exceptions.FileURLRetrievalError(DRIVE_DOWN))
        if isinstance(content, BaseException):
            raise content
        if content is not None:
            Path(given["output"]).write_bytes(content)
            return given["output"]

    monkeypatch.setattr(gdown, "download", fake)
    return files


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


def random_tree(*paths):
    return {path: random.randbytes(random.randint(0, 3000)) for path in paths}


def tar_bytes(tree, mode="w:gz"):
    """A tar file of {path: bytes, or a TarInfo}."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for path, content in tree.items():
                if isinstance(content, tarfile.TarInfo):
                    tar.addfile(content)
                else:
                    info = tarfile.TarInfo(path)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


def zip_bytes(tree):
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for path, content in tree.items():
                file.writestr(path, content)
        return buffer.getvalue()


def files_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


# ------------------------------------------------------------------ whole data sets


@pytest.fixture
def net(server, monkeypatch):
    """Every address leads to the server: net(url, body) serves there, and the entry's checksum becomes the body's."""

    def redirected(url, dst, checksum=None):
        return download_url(server.url(urlsplit(url).path), dst, checksum)

    def serve(url, body):
        for name, source in SOURCES.items():
            items = tuple(replace(i, checksum=md5(body)) if i.url == url else i for i in source.items)
            monkeypatch.setitem(SOURCES, name, replace(source, items=items))
        served = server.files[urlsplit(url).path] = Served(body)
        return served

    monkeypatch.setattr(prepare, "download_url", redirected)
    return serve


def urls(name):
    return [item.url for item in SOURCES[name].items if item.url]


def split_id(name):
    return SOURCES[name].items[0].drive


def split_of(*paths):
    return json.dumps({"train": [[path, 0, "x"] for path in paths], "val": [], "test": []}).encode()


def snapshot(folder):
    return {str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.lstat().st_ino) for p in folder.rglob("*")}


def run(*argv):
    return prepare.main([str(word) for word in argv])


def test_caltech_with_an_archive_in_an_archive(net, drive, tmp_path, capsys):
    images = random_tree("101_ObjectCategories/ant/image_0001.jpg", "101_ObjectCategories/crab/image_0001.jpg")
    outer = {
        "caltech-101/101_ObjectCategories.tar.gz": tar_bytes(images),
        "caltech-101/Annotations.tar": b"",
        "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"mac",
    }
    served = net(*urls("Caltech101"), zip_bytes(outer))
    drive[split_id("Caltech101")] = split = split_of("ant/image_0001.jpg")
    assert run("caltech101", "--root", tmp_path) == 0
    assert files_in(tmp_path) == {
        f"caltech-101/{path}": content for path, content in (images | {"split_zhou_Caltech101.json": split}).items()
    }
    assert f"python -m datasets.verify Caltech101 --root {tmp_path}" in capsys.readouterr().out
    before = snapshot(tmp_path)
    drive.clear()
    assert run("CALTECH101", "--root", tmp_path) == 0  # given twice: nothing is asked for or touched
    assert snapshot(tmp_path) == before and len(served.sent) == 1


def test_dtd_interrupted_and_given_again(net, drive, tmp_path, monkeypatch, capsys):
    tree = random_tree("images/a/1.jpg", "imdb/imdb.mat", "labels/train1.txt")
    served = net(*urls("DescribableTextures"), tar_bytes({f"dtd/{path}": body for path, body in tree.items()}))
    drive[split_id("DescribableTextures")] = split = split_of("a/1.jpg")
    rename = os.rename

    def pressed(source, target):
        if str(target).endswith("labels"):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", pressed)
        assert run("dtd", "--root", tmp_path) == 130
    assert "goes on" in capsys.readouterr().err
    assert not (tmp_path / "dtd" / "labels").exists() and not (tmp_path / "dtd" / prepare.SCRATCH).exists()
    images = (tmp_path / "dtd" / "images").stat().st_ino
    drive.clear()
    assert run("dtd", "--root", tmp_path) == 0
    expected = {f"dtd/{path}": body for path, body in (tree | {"split_zhou_DescribableTextures.json": split}).items()}
    assert files_in(tmp_path) == expected and len(served.sent) == 1
    assert (tmp_path / "dtd" / "images").stat().st_ino == images


def test_aircraft_keeps_only_data(net, tmp_path):
    tree = random_tree(
        "images/1.jpg",
        "variants.txt",
        "images_variant_train.txt",
        "images_variant_val.txt",
        "images_variant_test.txt",
        "families.txt",
    )
    packed = {f"fgvc-aircraft-2013b/data/{path}": body for path, body in tree.items()}
    net(*urls("FGVCAircraft"), tar_bytes(packed | {"fgvc-aircraft-2013b/evaluation.m": b"m"}))
    assert run("fgvc-aircraft", "--root", tmp_path, "--keep-archives") == 0
    assert (tmp_path / "fgvc_aircraft" / "fgvc-aircraft-2013b.tar.gz").unlink() is None
    assert files_in(tmp_path / "fgvc_aircraft") == tree


def test_sketch_and_class_names(net, drive, tmp_path, capsys):
    """Class names are ImageNet's if they are there, else downloaded; a refusal of Drive is an error for them."""
    net(urls("ImageNetSketch")[0], zip_bytes(tree := random_tree("sketch/n01440764/sketch_0.JPEG")))
    names = SOURCES["ImageNet"].items[0].drive
    assert run("imagenet_sketch", "--root", tmp_path) == 1
    error = capsys.readouterr().err
    assert f"https://drive.google.com/file/d/{names}/view" in error
    assert str(tmp_path / "imagenet-sketch" / "classnames.txt") in error
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01440764 tench\n")
    assert run("imagenet_sketch", "--root", tmp_path) == 0
    assert files_in(tmp_path / "imagenet-sketch") == {
        "images/n01440764/sketch_0.JPEG": tree["sketch/n01440764/sketch_0.JPEG"],
        "classnames.txt": b"n01440764 tench\n",
    }


def test_cars_without_drive(net, drive, tmp_path, capsys):
    """The archive of the mirror lies below other folders, and its split makes up for Drive's refusal."""
    tree = random_tree(
        "cars_train/00001.jpg",
        "cars_train/cars_train/00001.jpg",
        "cars_test/00001.jpg",
        "devkit/cars_meta.mat",
        "cars_test_annos_withlabels.mat",
        "split_zhou_StanfordCars.json",
    )
    net(*urls("StanfordCars"), zip_bytes({f"data/x/stanford_cars/{path}": body for path, body in tree.items()}))
    assert run("stanford_cars", "--root", tmp_path) == 0
    assert files_in(tmp_path / "stanford_cars") == tree
    error = capsys.readouterr().err
    assert "Google Drive" in error and "rule" not in error  # no talk of a missing split: it came after all


def test_ucf_second_source_and_lists(net, drive, tmp_path, capsys):
    frames, lists, _ = [item.url for item in SOURCES["UCF101"].items[2:]] + [None]
    net(frames, zip_bytes(tree := random_tree("ucf101/UCF-101-midframes/Archery/v_1.jpg")))
    net(lists, zip_bytes(listed := random_tree("ucfTrainTestlist/trainlist01.txt")))
    assert run("ucf101", "--root", tmp_path) == 0
    assert "by the same rule, but it is not the published one" in capsys.readouterr().err
    assert files_in(tmp_path) == tree | {f"ucf101/{path}": body for path, body in listed.items()}
    drive[split_id("UCF101")] = b"{}"
    assert run("ucf101", "--root", tmp_path / "other") == 0  # with the published split the lists are not asked for
    assert sorted(os.listdir(tmp_path / "other" / "ucf101")) == ["UCF-101-midframes", "split_zhou_UCF101.json"]


def test_a_split_that_is_a_web_page(net, drive, tmp_path, capsys):
    drive[split_id("EuroSAT")] = b"<html>Sign in</html>"
    net(*urls("EuroSAT"), zip_bytes(tree := random_tree("2750/River/River_1.jpg")))
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)  # an empty folder is not taken for the data
    assert run("EuroSAT", "--root", tmp_path) == 0
    assert "no JSON" in (error := capsys.readouterr().err) and "in a browser" in error
    assert files_in(tmp_path / "eurosat") == tree


def test_imagenet_by_hand(drive, tmp_path, capsys):
    drive[SOURCES["ImageNet"].items[0].drive] = b"n01440764 tench\n"
    assert run("ImageNet", "--root", tmp_path) == 1
    error = capsys.readouterr().err
    for expected in ("images/train", "images/val", "image-net.org", "ILSVRC2012_img_val.tar", "classnames.txt"):
        assert expected in error
    assert files_in(tmp_path) == {"imagenet/classnames.txt": b"n01440764 tench\n"}  # what can be had
    for part in ("train", "val"):
        (tmp_path / "imagenet" / "images" / part / "n01440764").mkdir(parents=True)
    assert run("ImageNet", "--root", tmp_path) == 0


def test_what_a_user_has_is_respected(net, drive, tmp_path, capsys):
    """Files, folders behind links and archives of the user's are used, neither overwritten nor removed."""
    own, root = tmp_path / "own", tmp_path / "root"
    (own / "images").mkdir(parents=True)
    (own / "images" / "cat.jpg").write_text("mine")
    (own / "annotations.tar.gz").write_bytes(tar_bytes({"annotations/list.txt": b"1"}))
    (own / "split_zhou_OxfordPets.json").write_text("my split")
    root.mkdir()
    (root / "oxford_pets").symlink_to(own)
    before = snapshot(own)
    assert run("oxford_pets", "--root", root) == 1  # the user's archive is not the expected one
    assert "MD5" in capsys.readouterr().err and snapshot(own) == before
    archive = tar_bytes({"annotations/list.txt": b"2", "images/cat.jpg": b"not asked for"})
    served = net(urls("OxfordPets")[0], archive)
    (own / "annotations.tar.gz").write_bytes(archive)
    assert run("oxford_pets", "--root", root) == 0
    assert served.sent == [] and "annotations.tar.gz is kept" in capsys.readouterr().out
    assert files_in(own) == {
        "annotations/list.txt": b"2",
        "images/cat.jpg": b"mine",
        "annotations.tar.gz": archive,
        "split_zhou_OxfordPets.json": b"my split",
    }
    assert (root / "oxford_pets").is_symlink()


def test_links_to_nothing(drive, tmp_path, capsys):
    (tmp_path / "eurosat").symlink_to(tmp_path / "gone")
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "images").symlink_to(tmp_path / "gone")
    assert run("dtd", "eurosat", "--root", tmp_path) == 1
    assert capsys.readouterr().err.count(f"is a link to {tmp_path / 'gone'}, which is not there") >= 2
    assert not (tmp_path / "gone").exists()


def test_another_archive_than_expected(net, drive, tmp_path, capsys):
    net(*urls("EuroSAT"), zip_bytes(random_tree("other/x.jpg")))
    (tmp_path / "eurosat" / prepare.SCRATCH / "2750").mkdir(parents=True)  # left behind by a run that was killed
    assert run("eurosat", "--root", tmp_path) == 1
    error = capsys.readouterr().err
    assert "holds no 2750" in error and f"EuroSAT lacks {tmp_path / 'eurosat' / '2750'}" in error
    assert not (tmp_path / "eurosat" / "2750").exists() and not (tmp_path / "eurosat" / prepare.SCRATCH).exists()


def test_a_damaged_archive_is_fetched_anew(net, drive, tmp_path, capsys):
    tree = random_tree("2750/River/River_1.jpg")
    url = urls("EuroSAT")[0]
    net(url, zip_bytes(tree)[:-30])
    assert run("eurosat", "--root", tmp_path) == 1
    assert "damaged or cut off" in capsys.readouterr().err and os.listdir(tmp_path / "eurosat") == []
    net(url, zip_bytes(tree))
    assert run("eurosat", "--root", tmp_path) == 0 and files_in(tmp_path / "eurosat") == tree
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "dtd-r1.0.1.tar.gz").write_bytes(b"mine")
    net(urls("DescribableTextures")[0], b"mine")
    assert run("dtd", "--root", tmp_path) == 1 and files_in(tmp_path / "dtd") == {"dtd-r1.0.1.tar.gz": b"mine"}


def test_two_at_once(drive, tmp_path, capsys):
    (tmp_path / "eurosat").mkdir()
    with locked(tmp_path / "eurosat", ""):
        assert run("eurosat", "--root", tmp_path) == 1
    assert "another prepare is at work" in capsys.readouterr().err and os.listdir(tmp_path / "eurosat") == []


# ------------------------------------------------------------------ command line and table


def test_names():
    for name, source in SOURCES.items():
        for given in (name, name.upper(), source.config, source.config.replace("_", "-"), source.folder):
            assert prepare.find(given) == name
    with pytest.raises(ValueError, match='mean "OxfordFlowers"') as error:
        prepare.find("oxfrd_flowers")
    one_line(error)


def test_a_typo_starts_nothing(tmp_path, capsys):
    assert run("caltech101", "nope", "--root", tmp_path) == 1
    assert 'no data set "nope"' in capsys.readouterr().err and os.listdir(tmp_path) == []
    with pytest.raises(SystemExit):
        run()


def test_list_and_dry_run(tmp_path, capsys, monkeypatch):
    for name in ("download_url", "download_gdrive"):
        monkeypatch.setattr(prepare, name, None)
    assert run("--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[2:]] == list(SOURCES)
    assert any("ImageNet " in line and "account" in line for line in listed)
    (tmp_path / "eurosat" / "2750" / "River").mkdir(parents=True)
    assert run("all", "--dry-run", "--root", tmp_path) == 0
    planned = capsys.readouterr().out
    assert os.listdir(tmp_path) == ["eurosat"] and "there already: 2750" in planned
    assert all(url in planned for name in SOURCES for url in urls(name) if name != "EuroSAT")


# CoOp's DATASETS.md, folder by folder
COOP = {
    "caltech-101": "101_ObjectCategories split_zhou_Caltech101.json",
    "oxford_pets": "images annotations split_zhou_OxfordPets.json",
    "stanford_cars": "cars_test cars_test_annos_withlabels.mat cars_train devkit split_zhou_StanfordCars.json",
    "oxford_flowers": "cat_to_name.json imagelabels.mat jpg split_zhou_OxfordFlowers.json",
    "food-101": "images license_agreement.txt meta README.txt split_zhou_Food101.json",
    "fgvc_aircraft": "images variants.txt images_variant_train.txt images_variant_val.txt images_variant_test.txt",
    "sun397": "SUN397 split_zhou_SUN397.json",
    "dtd": "images imdb labels split_zhou_DescribableTextures.json",
    "eurosat": "2750 split_zhou_EuroSAT.json",
    "ucf101": "UCF-101-midframes split_zhou_UCF101.json",
    "imagenet": "images/train images/val classnames.txt",
    "imagenetv2": "imagenetv2-matched-frequency-format-val classnames.txt",
    "imagenet-sketch": "images classnames.txt",
    "imagenet-adversarial": "imagenet-a classnames.txt",
    "imagenet-rendition": "imagenet-r classnames.txt",
}


def test_layouts_are_coops():
    assert {source.folder: set(source.layout) for source in SOURCES.values()} == {
        folder: set(paths.split()) for folder, paths in COOP.items()
    }


@pytest.mark.parametrize("name", SOURCES)
def test_source(name):
    source = SOURCES[name]
    for item in source.items:
        assert sum(map(bool, (item.url, item.drive, item.by_hand))) == 1 and item.gives
        assert bool(item.archive) == bool(item.take) and (item.archive or item.by_hand or len(item.gives) == 1)
        if item.url:
            address = urlsplit(item.url)
            assert address.scheme == "https" and "." in address.netloc and " " not in item.url and not address.query
        assert not item.drive or re.fullmatch(r"[\w-]{33}", item.drive)
        assert item.checksum is None or re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", item.checksum)
        places = set(item.take.values())
        assert not item.take or "." in places or places >= set(item.gives)
        assert not item.megabytes or item.megabytes > 10
    discover(datasets)
    if name in DATASET_REGISTRY.registered_names():
        cls = DATASET_REGISTRY.get(name)
        assert cls.dataset_dir == source.folder
        image_dir, split_file = getattr(cls, "image_dir", ""), getattr(cls, "split_file", "")
        assert not image_dir or any((path + "/").startswith(image_dir + "/") for path in source.layout)
        assert not split_file.startswith("split_zhou") or split_file in source.layout or name == "FGVCAircraft"
    config = REPO / "configs" / "datasets" / f"{source.config}.yaml"
    assert not config.exists() or f'"{name}"' in config.read_text().replace(f": {name}\n", f': "{name}"')
