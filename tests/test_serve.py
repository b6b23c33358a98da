"""The local web page of a model: by gradio's own client and in a headless Chromium."""

import socket
import sys
from importlib.util import find_spec

import own_photos
import pytest
from chromium import CHROMIUM, Tab

import predict
from dassl.utils import write_json
from orthcr.deploy.predictor import Predictor, parse_names
from orthcr.deploy.web_page import HOST, PageModels, launch, serve
from orthcr.run.temperature import identity
from trainers.shared.weights import TunedCLIP

trained = own_photos.trained  # the fixture
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # gradio's, of pandas
needs_gradio = pytest.mark.skipif(not find_spec("gradio"), reason="there is no gradio: pip install -e '.[serve]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return own_photos.make_photos(tmp_path_factory.mktemp("served") / "photos", n=6)


@pytest.fixture
def open_page(tmp_path, monkeypatch):
    """open_page(served): the address of its running page."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "dropped"))
    monkeypatch.setenv("no_proxy", HOST)
    apps = []

    def start(served):
        port = free_port()
        apps.append(launch(served, port))
        return f"http://{HOST}:{port}/"

    yield start
    for app in apps:
        app.close()


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def said(label):
    """{class: probability} of what gradio's label component is given."""
    return {each["label"]: each["confidence"] for each in label["confidences"]}


@pytest.fixture
def strong(monkeypatch):
    """Methods that change weights have a strength, whatever it does."""
    if not hasattr(TunedCLIP, "strength"):
        monkeypatch.setattr(TunedCLIP, "strength", 1.0, raising=False)


# ------------------------------------------------------------------ without gradio


def test_class_names():
    assert (
        parse_names(' a cat,"a dog, wet" , ,x') == ["a cat", "a dog, wet", "x"]
        and parse_names("") == parse_names(" , ") == []
    )


@needs_gradio
def test_it_says_what_is_wrong(trained, monkeypatch, capsys):
    for words, told in (
        (["--port", "0"], "--port must be from 1 to 65535 (got 0)"),
        (["--port", "65536"], "--port must be from 1 to 65535 (got 65536)"),
        (["a.png"], "--serve gets its images from the page"),
        (["--csv", "-"], "--serve gets its images from the page"),
        (["--threshold", "2"], "--threshold is 2"),
    ):
        assert predict.main(["--serve", "--model-dir", str(trained), *words]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: {told}") and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"--serve needs gradio: in the clone, pip install -e '.\[serve\]'"):
        serve(str(trained), None, 0.0, 7860)


def test_what_the_page_says_is_what_predict_says(trained, folder):
    served = PageModels(str(trained), None, 0.5)
    for image in sorted(folder.rglob("img*"))[:6]:
        p = served.classify(str(image), "", None)
        (q,) = Predictor(trained)(image, threshold=0.5)
        assert (p.classname, p.seen, p.unsure) == (q.classname, q.seen, q.unsure)
        assert p.top == [(name, pytest.approx(value, abs=1e-6)) for name, value in q.top]
    names = ["a plain blue circle", "a plain red circle"]
    p, (q,) = served.classify(str(image), ", ".join(names), None), Predictor(trained, names)(image)
    assert p.top == [(name, pytest.approx(value, abs=1e-6)) for name, value in q.top]
    assert served.get_predictor(served.split_names("")) is served.first, "that of the training is kept"
    (folder / "none.png").write_text("no image")
    for path, words, told in (
        (folder / "none.png", "", "cannot identify"),
        (image, "one", "two or more different classes"),
        (folder / "gone.png", "", "there is no such file"),
    ):
        with pytest.raises((ValueError, OSError), match=told):
            served.classify(str(path), words, None)


def test_the_strength_is_moved_and_the_temperature_is_of_one(trained, folder, strong):
    image = str(next(folder.rglob("img*")))
    predictor = Predictor(trained)
    of = {**identity(predictor.trainer, str(trained)), "strength": 0.5}
    file = trained / "temperature.json"
    write_json({"temperature": 3.0, "of": of}, file, seal=True)
    try:
        served = PageModels(str(trained), None, 0.0)
        assert served.strength == 1.0 and served.first.temperature is None
        served.classify(image, "", 0.5)
        assert served.first.trainer.model.strength == 0.5 and served.first.temperature == 3.0
        served.classify(image, "a,b", 0.5)
        assert served.latest is not served.first and served.latest.trainer.model.strength == 0.5
        served.classify(image, "", 1.0)
        assert served.first.trainer.model.strength == 1.0 and served.first.temperature is None
    finally:
        file.unlink()


# ------------------------------------------------------------------ the page


@needs_gradio
def test_a_port_that_is_taken(trained, open_page):
    with socket.socket() as busy:
        busy.bind((HOST, 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(
            OSError, match=f"port {port} of 127.0.0.1 is in use or not allowed: give another with --port"
        ):
            launch(PageModels(str(trained), None, 0.0), port)


@needs_gradio
def test_the_page_by_its_own_client(trained, folder, open_page, tmp_path):
    """The file as it is, its EXIF included; one line for what is wrong; nothing but this machine."""
    import httpx
    from gradio_client import Client, handle_file

    url = open_page(PageModels(str(trained), None, 0.0))
    policy = httpx.get(url).headers["content-security-policy"]
    assert policy.startswith("default-src 'self' ") and "http" not in policy
    client = Client(url, verbose=False, download_files=str(tmp_path))
    for image in sorted((folder / "red bus").glob("*.*"))[:6]:  # each of another format, one lies on its side
        label, note = client.predict(handle_file(str(image)), "", 1.0, api_name="/classify")
        (p,) = Predictor(trained)(image)
        assert said(label) == {name: pytest.approx(q, abs=1e-6) for name, q in p.top} and label["label"] == p.classname
    with pytest.raises(Exception, match="two or more different classes"):
        client.predict(handle_file(str(image)), "one", 1.0, api_name="/classify")
    with pytest.raises(Exception, match="."):
        client.predict({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "", 1.0, api_name="/classify")


BARS = """[...document.querySelectorAll('#label [data-testid$="-confidence-set"]')].map(e => e.innerText)"""


@needs_gradio
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here; Debian: apt install chromium-headless-shell")
def test_in_a_browser(trained, folder, open_page, tmp_path, strong):
    """A picture gives bars; other classes give others; the slider moves; a silent console, no other host."""
    image = folder / "red bus" / "img 01.png"
    served = PageModels(str(trained), None, 1.0)
    url = open_page(served)
    with Tab(url, tmp_path / "profile") as tab:
        tab.wait("document.querySelector('input[type=file]') !== null")
        tab.choose("input[type=file]", image)
        tab.wait(f"{BARS}.length == 5")
        (p,) = Predictor(trained)(image)
        first, percent = tab.run(f"{BARS}[0]").split("\n")[0], tab.run(BARS)
        assert first == p.classname and f"{100 * p.probability:.0f}%" in percent[0].replace("\n", "")
        tab.wait("document.querySelector('#note').innerText.includes('unsure: below 1')")
        tab.type("#classes textarea, #classes input", "a plain red circle, a plain blue circle")
        tab.wait(f"{BARS}.length == 2")
        assert tab.run(f"{BARS}[0]").startswith("a plain red circle")
        tab.type("#strength input[type=number]", "0.25")
        tab.run("""for (const kind of ["input", "pointerup", "change"])
            document.querySelector("#strength input[type=range]").dispatchEvent(new Event(kind, { bubbles: true }))""")
        tab.type("#classes textarea, #classes input", "one")
        tab.wait("document.body.innerText.includes('give two or more different classes')")
        asked = {each["request"]["url"] for each in tab.of("Network.requestWillBeSent")}
        assert len(asked) > 5 and all(each.startswith((url, "data:", "blob:")) for each in asked), asked
        wrong = [each for each in tab.of("Log.entryAdded") if each["entry"]["level"] == "error"]
        wrong += [each for each in tab.of("Runtime.consoleAPICalled") if each["type"] == "error"]
        assert not wrong and not tab.of("Runtime.exceptionThrown"), wrong
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert served.latest.trainer.model.strength == 0.25


@needs_gradio
def test_no_slider_without_a_strength(trained, tmp_path):
    import gradio as gr

    from orthcr.deploy.web_page import UploadFolder, page

    served = PageModels(str(trained), None, 0.0)
    served.strength = None
    (slider,) = [
        block for block in page(served, UploadFolder(str(tmp_path))).blocks.values() if isinstance(block, gr.Slider)
    ]
    assert not slider.visible
