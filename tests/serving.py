"""A server on loopback, a Google Drive, and archives to serve; shared by several test files."""

import contextlib
import functools
import hashlib
import inspect
import io
import random
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gdown
import pytest

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
