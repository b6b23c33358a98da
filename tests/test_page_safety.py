"""The page under strangers: other hosts, other files, hostile pictures, many at once."""

import io
import json
import os
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import own_photos
import pytest
from PIL import Image
from torchvision import transforms as T

from orthcr.deploy import web_page
from orthcr.deploy.picture_reader import PictureReader
from orthcr.deploy.predictor import Predictor
from orthcr.deploy.web_page import HOST, Gate, Received, Served, launch

trained = own_photos.trained  # the fixture
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(not find_spec("gradio"), reason="there is no gradio: pip install -e '.[serve]'"),
]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n"


class Slow:
    """A step that never ends."""

    def __call__(self, image):
        time.sleep(600)


class Greedy:
    """A step that wants more memory than there may be."""

    def __call__(self, image):
        return np.ones((2**35,), np.uint8)


class Crash:
    """A step that ends its process, as a fault of a decoder does."""

    def __call__(self, image):
        os._exit(3)


@pytest.fixture(scope="module")
def url(trained, tmp_path_factory):
    """The address of a running page, whose pictures lie in `url.folder`."""

    class Address(str):
        pass

    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        folder = tmp_path_factory.mktemp("received")
        for name, value in (
            ("GRADIO_ANALYTICS_ENABLED", "False"),
            ("GRADIO_TEMP_DIR", str(folder)),
            ("no_proxy", HOST),
        ):
            patch.setenv(name, value)
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
        probe.close()
        formats = list(Image.ID)
        app = launch(Served(str(trained), None, 0.0), port)
        address = Address(f"http://{HOST}:{port}")
        address.folder, address.port = folder, port
        yield address
        app.close()
        Image.ID[:] = formats


def png(width, height, mode=6):
    """A small file with many pixels, all of them zero: RGBA, or with mode 0 grey."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer, row = zlib.compressobj(9), bytes(1 + width * (4 if mode == 6 else 1))
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def upload(client, url, content, name="picture.png"):
    answer = client.post(f"{url}/gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def classify(client, url, data):
    """(event, data) that the page answers with."""
    event = client.post(f"{url}/gradio_api/call/classify", json={"data": data})
    assert event.status_code == 200, event.text
    text = client.get(f"{url}/gradio_api/call/classify/{event.json()['event_id']}").text
    words = dict(line.split(": ", 1) for line in text.strip().splitlines()[-2:])
    return words["event"], json.loads(words["data"])


@pytest.fixture
def client():
    import httpx

    with httpx.Client(timeout=60, trust_env=False) as made:
        yield made


def photo(seed=0):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_only_pictures_that_the_page_received(url, client, tmp_path):
    private = tmp_path / "private.png"
    private.write_bytes(photo())
    link = url.folder / "link.png"
    link.symlink_to(private)
    os.mkfifo(url.folder / "pipe")
    for path in (private, link, url.folder / "pipe", url.folder, url.folder / ".." / url.folder.name / "link.png"):
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
            event, data = classify(client, url, [{"path": str(path), **meta}, "a,b", 1])
            assert event == "error" and "confidences" not in json.dumps(data), path
    for path in ("http://127.0.0.1:9/x.png", "data:image/png;base64,aGk="):
        for key in ("path", "url"):
            event, _ = classify(client, url, [{key: path, "meta": {"_type": "gradio.FileData"}}, "", 1])
            assert event == "error"
    link.unlink()
    (url.folder / "pipe").unlink()


def test_a_picture_received(url, client, trained):
    content = photo(3)
    event, (label, note) = classify(
        client, url, [{"path": upload(client, url, content), "meta": {"_type": "gradio.FileData"}}, "", 1]
    )
    (p,) = Predictor(trained)(content)
    assert event == "complete" and label["label"] == p.classname and note == ""


def test_other_hosts_and_origins_get_nothing(url, client):
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Host": f"evil.example:{url.port}"}, 421),
        ({"Host": HOST}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"https://{HOST}:{url.port}"}, 403),
        ({"Origin": f"http://{HOST}:1"}, 403),
        ({"Origin": f"http://localhost:{url.port}"}, 200),
        ({"Host": f"localhost:{url.port}"}, 200),
        ({}, 200),
    ):
        assert client.get(f"{url}/", headers=headers).status_code == status, headers
        if status != 200:
            answer = client.post(f"{url}/gradio_api/upload", headers=headers, files={"files": ("a.png", photo())})
            assert answer.status_code == status and "\n" not in answer.text


def test_fifty_at_once_with_three_hostile_ones(url, client, trained):
    """Each of the others gets its own answer; each hostile one a line; nobody waits for the slow one's end."""
    hostile = {0: EPS, 17: png(13_000, 13_000), 31: photo()[: len(photo()) // 2]}
    answers = {}

    def visit(k):
        import httpx

        with httpx.Client(timeout=120, trust_env=False) as mine:
            path = upload(mine, url, hostile.get(k) or photo(k), "cat.png")
            answers[k] = classify(mine, url, [{"path": path, "meta": {"_type": "gradio.FileData"}}, "", 1])

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(visit, range(50)))
    predictor = Predictor(trained)
    for k, (event, data) in answers.items():
        if k in hostile:
            assert event == "error" and "confidences" not in json.dumps(data)
        else:
            (p,) = predictor(photo(k))
            assert event == "complete" and data[0]["label"] == p.classname, (k, data)


# ------------------------------------------------------------------ the reader by itself


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "picture.png").write_bytes(photo())
    return str(tmp_path / "picture.png")


def test_a_reader_gives_the_pixels_of_the_predictor(picture):
    resize = T.Resize(32)
    with Image.open(picture) as image:
        assert np.array_equal(PictureReader(resize)(picture), np.asarray(resize(image)))


@pytest.mark.parametrize(
    "step, seconds, words",
    [(Slow(), 1.0, "more than 1 seconds"), (Greedy(), 60, "memory"), (Crash(), 60, "decoder failed")],
)
def test_what_a_picture_must_not_take(picture, step, seconds, words, one_line):
    with pytest.raises(OSError, match=words) as error:
        PictureReader(step, seconds)(picture)
    assert "smaller" in one_line(error)


@pytest.mark.parametrize("content", [EPS, png(13_000, 13_000), png(20_000, 10_000, 0), b"", b"text"])
def test_pictures_that_are_none(tmp_path, content):
    (tmp_path / "cat.png").write_bytes(content)
    with pytest.raises(OSError, match="cannot identify|make it smaller|exceeds limit"):
        PictureReader(T.Resize(32))(str(tmp_path / "cat.png"))


# ------------------------------------------------------------------ the folder


def test_the_folder_has_a_bound_and_an_age(tmp_path, monkeypatch):
    monkeypatch.setattr(web_page, "MOST_FILES", 1000)
    received, now = Received(str(tmp_path)), time.time()
    for k, age in enumerate((web_page.KEPT + 5, 50, 40, 30)):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "a.png").write_bytes(bytes(300))
        os.utime(tmp_path / str(k) / "a.png", (now - age, now - age))
    received.sweep()
    assert [(tmp_path / str(k) / "a.png").exists() for k in range(4)] == [False, True, True, True]
    received.sweep(room=500)
    left = sum(file.stat().st_size for file in tmp_path.rglob("*.png"))
    assert left + 500 <= 1000 and (tmp_path / "3" / "a.png").exists(), "the newest stays longest"


def test_a_request_that_is_too_large(tmp_path):
    gate = Gate(None, 7860, Received(str(tmp_path)))
    headers = {"host": f"{HOST}:7860", "content-length": str(200 * 2**20)}
    assert gate.refusal(headers)[0] == 413 and gate.refusal(headers | {"content-length": "5"}) is None
