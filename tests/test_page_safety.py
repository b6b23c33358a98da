"""The page under strangers: other hosts, other files, hostile pictures, many at once."""

import asyncio
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec

import numpy as np
import own_photos
import pytest
from PIL import Image
from torchvision import transforms as T

from orthcr.deploy import web_page
from orthcr.deploy.picture_reader import PictureReader
from orthcr.deploy.predictor import Predictor
from orthcr.deploy.web_page import HOST, Gate, PageModels, Upload, UploadFolder, check_port, launch

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


class LateStart:
    """A step whose process takes long to begin."""

    def __getstate__(self):
        return {"late": True}

    def __setstate__(self, state):
        time.sleep(2)

    def __call__(self, image):
        return image


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
        app = launch(PageModels(str(trained), None, 0.0), port)
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
    [(Slow(), 1.0, "more than 1 seconds"), (Greedy(), 60, "memory"), (Crash(), 60, "decoder crashed")],
)
def test_what_a_picture_must_not_take(picture, step, seconds, words, one_line):
    with pytest.raises(OSError, match=words) as error:
        PictureReader(step, seconds)(picture)
    assert "smaller" in one_line(error)


def test_a_slow_start_is_not_the_fault_of_the_picture(picture):
    assert PictureReader(LateStart(), seconds=1.0)(picture).shape == (60, 80, 3)


@pytest.mark.parametrize("content", [EPS, png(13_000, 13_000), png(20_000, 10_000, 0), b"", b"text"])
def test_pictures_that_are_none(tmp_path, content):
    (tmp_path / "cat.png").write_bytes(content)
    with pytest.raises(OSError, match="cannot identify|make it smaller|exceeds limit"):
        PictureReader(T.Resize(32))(str(tmp_path / "cat.png"))


# ------------------------------------------------------------------ the folder


def test_the_folder_has_a_bound_and_an_age(tmp_path, monkeypatch):
    monkeypatch.setattr(web_page, "MAX_FOLDER_BYTES", 1000)
    monkeypatch.setattr(web_page, "MAX_PICTURES", 5)
    received, now = UploadFolder(str(tmp_path)), time.time()
    for k, age in enumerate((web_page.KEEP_SECONDS + 5, 50, 40, 30)):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "a.png").write_bytes(bytes(300))
        os.utime(tmp_path / str(k) / "a.png", (now - age, now - age))
    received.sweep()
    assert [(tmp_path / str(k) / "a.png").exists() for k in range(4)] == [False, True, True, True]
    (tmp_path / "3" / "b.png").write_bytes(bytes(500))
    received.sweep()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.png")) <= 1000
    assert (tmp_path / "3" / "b.png").exists(), "the newest stays longest"
    for k in range(20):
        (tmp_path / "3" / f"{k}.gif").touch()
    received.sweep()
    assert len(list(tmp_path.rglob("*.*"))) == 5
    os.utime(tmp_path / "0", (now - 100, now - 100))
    received.sweep()
    assert not (tmp_path / "0").exists() and (tmp_path / "3").exists()


# ------------------------------------------------------------------ the gate


UPLOADED = {"method": "POST", "path": "/gradio_api/upload"}
JOINED = {"method": "POST", "path": "/gradio_api/queue/join"}


def test_a_request_that_is_too_large(tmp_path):
    gate = Gate(None, 7860, UploadFolder(str(tmp_path)))
    headers = {"host": f"{HOST}:7860", "content-length": str(200 * 2**20)}
    assert gate.refusal(UPLOADED, headers)[0] == 413
    assert gate.refusal(UPLOADED, headers | {"content-length": "5000000"}) is None
    assert gate.refusal(JOINED, headers | {"content-length": "5000000"})[0] == 413
    for wrong in ({"transfer-encoding": "chunked"}, {"content-length": "-1"}, {"content-length": "1" * 30}):
        status = gate.refusal(JOINED, headers | {"content-length": "5"} | wrong)[0]
        assert status == 411, "what is sent must be bounded before it comes"
    del headers["content-length"]
    assert gate.refusal(UPLOADED, headers)[0] == gate.refusal(JOINED, headers)[0] == 411


def test_pictures_of_other_pages(tmp_path):
    """A browser sends no Origin with `<img src=...>` of another page, but Sec-Fetch-Site."""
    gate, headers = Gate(None, 7860, UploadFolder(str(tmp_path))), {"host": f"{HOST}:7860"}
    page, rest = {"method": "GET", "path": "/"}, {"method": "GET", "path": "/gradio_api/heartbeat/abc"}
    for site in ("cross-site", "same-site"):
        foreign = headers | {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        assert gate.refusal(page, foreign)[0] == gate.refusal(rest, foreign)[0] == 403
        assert gate.refusal(page, foreign | {"sec-fetch-mode": "navigate"}) is None, "a link to the page"
        assert gate.refusal(rest, foreign | {"sec-fetch-mode": "navigate"})[0] == 403
    for site in ("none", "same-origin"):
        assert gate.refusal(rest, headers | {"sec-fetch-site": site}) is None


def test_parts_of_gradio_that_the_page_does_not_use(url, client):
    """They would fetch an address of the web, run ffmpeg on an upload, write files."""
    for path in (
        "file=http://192.0.2.1/x.png",
        "file=https://example.com/x.png",
        "file=/etc/passwd",
        f"file={url.folder}/../../etc/passwd",
        "proxy=https://x.hf.space/",
        "deep_link?session_hash=x",
        "vibe-code",
        "stream/a/1/2/playlist.m3u8",
        "custom_component/1/client/component/x.js",
        "openapi.json",
    ):
        assert client.get(f"{url}/gradio_api/{path}").status_code == 404, path
    for path in ("process_recording", "vibe-edit", "component_server", "run/classify", "api/classify", "stream/1"):
        answer = client.post(f"{url}/gradio_api/{path}", files={"video": ("a.mp4", b"x")})
        assert answer.status_code == 404, path
    assert client.get(f"{url}/monitoring").status_code == client.put(url).status_code == 404


def test_odd_requests_give_no_trace(url, client, capfd):
    path = upload(client, url, photo(5))
    answer = client.get(f"{url}/gradio_api/file={path}", headers={"Range": "bytes=0-5-9"})
    assert answer.status_code == 200 and answer.content == photo(5)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert client.post(f"{url}/gradio_api/call/classify", content=b"\xff").status_code == 400
    assert "Traceback" not in capfd.readouterr().err


MALFORMED = [
    {"data": []},
    {"data": [1, 2]},
    {"data": [None, "a", 1, 5]},
    {"data": [5, "a", 1]},
    {"data": [{"path": 5}, "a", 1]},
    {"data": [None, ["a"], 1]},
    {"data": [None, "a", None]},
    {"data": [None, "a", "x"]},
    {"data": [None, "a", -3]},
    {"data": [None, "a", True]},
]


def test_malformed_calls_get_a_line_and_no_trace(url, client, capfd):
    for call in MALFORMED:
        for path, more in (("call/classify", {}), ("queue/join", {"fn_index": 0, "session_hash": "x"})):
            answer = client.post(f"{url}/gradio_api/{path}", json=call | more)
            assert answer.status_code == 400 and "must" in answer.text, (path, call)
    deep = b'{"data": ' + b"[" * 100_000
    assert client.post(f"{url}/gradio_api/call/classify", content=deep).text == "the body of this request must be JSON"
    elsewhere = [{"path": "/x.png", "meta": {"_type": "gradio.FileData"}}, "a", 1]
    event, answer = classify(client, url, elsewhere)
    assert event == "error" and "upload it again" in answer["error"]
    assert "Traceback" not in capfd.readouterr().err


def test_errors_are_no_html(url, client):
    """gradio's page shows an error as HTML, and an error may name a class."""
    data = [{"path": upload(client, url, photo())}, "<img src=//192.0.2.1/x>", 1]
    event, answer = classify(client, url, data)
    assert event == "error" and "&lt;img src=" in answer["error"] and "<" not in answer["error"]


def test_slow_and_many_uploads(tmp_path, monkeypatch):
    from starlette.exceptions import HTTPException

    async def never():
        await asyncio.sleep(600)

    async def piece():
        return {"type": "http.request", "body": bytes(400), "more_body": True}

    async def try_out():
        with pytest.raises(HTTPException) as error:
            await Upload(gate, never, 1000).receive()
        assert error.value.status_code == 408
        slow = Upload(gate, piece, 1000)
        await slow.receive()
        slow.end = time.monotonic() - 1
        slow.next = never
        with pytest.raises(HTTPException) as error:
            await slow.receive()
        assert error.value.status_code == 408 and gate.n_bytes == slow.n_bytes == 400
        other = Upload(gate, piece, 1000)
        await other.receive()
        with pytest.raises(HTTPException) as error:
            await other.receive()
        assert error.value.status_code == 503

    gate = Gate(None, 7860, UploadFolder(str(tmp_path)))
    monkeypatch.setattr(web_page, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(web_page, "MAX_BYTES_IN_TRANSIT", 1000)
    asyncio.run(try_out())


# ------------------------------------------------------------------ one for all


def test_other_classes_do_not_hold_up_the_page(trained, picture):
    served = PageModels(str(trained), None, 0.0)
    with served.other_lock:  # as while a model is loaded for other classes
        assert served.classify(picture, "", None).classname
    with pytest.raises(ValueError, match="at most 1,000 class names .got 1,001"):
        served.classify(picture, ",".join(map(str, range(1001))), None)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_page_that_ends_leaves_no_picture(trained, tmp_path, root, client):
    """In the middle of an upload; meanwhile nobody else may read the folder, and the port is taken at once."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "predict.py", "--serve", "--model-dir", str(trained), "--port", str(port)]
    env = {**os.environ, "TMPDIR": str(tmp_path), "no_proxy": HOST}
    default = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    with subprocess.Popen(words, cwd=root, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=default) as page:
        try:
            assert page.stdout.readline().startswith("http://")
            upload(client, f"http://{HOST}:{port}", photo())
            (folder,) = tmp_path.glob(".orthcr-page-*")
            assert folder.stat().st_mode & 0o077 == 0 and list(folder.rglob("picture.png"))
            with pytest.raises(OSError, match="in use"):
                check_port(port)
            with socket.create_connection((HOST, port)) as half:
                head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Length: 90000\r\n"
                part = 'Content-Disposition: form-data; name="files"; filename="a.png"'
                kind = "Content-Type: multipart/form-data; boundary=X"
                half.sendall(f"{head}{kind}\r\n\r\n--X\r\n{part}\r\n\r\n".encode() + bytes(5000))
                time.sleep(0.5)
                page.send_signal(signal.SIGHUP)
                assert page.wait(60) == 128 + signal.SIGHUP
        finally:
            page.kill()
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.glob(".orthcr-page-*"))
