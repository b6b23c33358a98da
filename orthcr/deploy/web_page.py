"""A web page on this machine: drop a picture, see the classes; type other class names; move the strength.

    python predict.py --serve --model-dir OUT [--port 7860]

The server is bound to 127.0.0.1 and answers its own page alone. It sends nothing anywhere: it has no telemetry and no
share link, and its headers forbid the browser to load anything from elsewhere. Dropped pictures go to a temporary
folder of limited size, which is removed when the process ends. Pictures of that folder alone are classified.
"""

import os
import os.path as osp
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from threading import Lock

from PIL import Image

from dassl.data.data_manager import first_resize
from dassl.files import SCRATCH, scratch_folder, sweep, visible
from dassl.utils.images import known_formats
from orthcr.deploy.picture_reader import PictureReader
from orthcr.deploy.predictor import Prediction, Predictor, names_in
from orthcr.run.temperature import identity, read_temperature
from trainers.shared.privacy import report_nothing

HOST = "127.0.0.1"
# `inline`: gradio writes its settings into the page; `blob` and `data`: the dropped picture
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'"
)
SHOWN = 10  # classes on the page
SEEN = {"train": "the model was trained on this image", "val": "the model was chosen by this image"}
MOST_NAMES = 20_000  # characters of class names that a visitor may type
MOST_FILE, MOST_FILES = 100 * 2**20, 500 * 2**20  # bytes of a picture, and of all pictures in the folder
KEPT = 600.0  # seconds until a picture is removed
VISITORS = 32  # requests that are answered side by side


class Served:
    """The models behind the page: the first one, and one for other classes if a visitor types some. Thread-safe.

    Args:
        model_dir: as in `Predictor`.
        classes: as in `Predictor`.
        threshold: the page says "unsure" below this probability.
        **options: other arguments of `Predictor`.

    Attributes:
        strength: of the loaded model; None: the method has none, as it changes no weights.
        any_classes: True if a visitor may type other classes.
    """

    def __init__(self, model_dir: str, classes: list[str] | None, threshold: float, **options):
        self.model_dir, self.options, self.threshold, self.lock = model_dir, options, threshold, Lock()
        self.classes = classes
        self.first = self.last = Predictor(model_dir, classes, **options)
        self.strength: float | None = strength_of(self.first)
        self.any_classes = hasattr(self.first.trainer, "model")  # an ONNX file has its class features inside
        self.calibration = read_temperature(model_dir) if self.strength is not None else None
        self.identity = identity(self.first.trainer, model_dir, options.get("epoch")) if self.calibration else {}
        self.read = PictureReader(first_resize(self.first.transform))

    def predictor(self, names: str) -> Predictor:
        """Return the predictor for class names with commas between them; "": the classes of the first model."""
        if len(names) > MOST_NAMES:
            raise ValueError(f"the class names have {len(names):,} characters: give at most {MOST_NAMES:,}")
        classes = names_in(names) or self.classes
        if classes in (None, self.first.classnames):
            return self.first
        if classes != self.last.classnames:
            self.last = Predictor(self.model_dir, classes, **self.options)
        return self.last

    def classify(self, image: str, names: str, strength: float | None) -> Prediction:
        """Return the prediction for a picture.

        Args:
            image: its path.
            names: of the classes, with commas between them; "": the classes of the first model.
            strength: on the slider; None: there is no slider.

        Raises:
            ValueError: the picture cannot be read; or as `Predictor`.
            OSError: as `PictureReader`.
        """
        pixels = self.read(image)
        with self.lock:
            predictor = self.predictor(names)
            if None not in (self.strength, strength) and strength != strength_of(predictor):
                predictor.trainer.model.strength = strength
                fits = self.calibration and self.calibration["of"] == {**self.identity, "strength": strength}
                predictor.temperature = self.calibration["temperature"] if fits else None
            (answer,) = predictor(pixels, top=SHOWN, threshold=self.threshold)
        if answer.error:
            raise ValueError(answer.error)
        return replace(answer, image=image, seen=predictor.seen.part_of(image))


def strength_of(predictor: Predictor) -> float | None:
    """Return the strength of a predictor's model; None: it has none."""
    return getattr(getattr(predictor.trainer, "model", None), "strength", None)


class Received:
    """The folder of the pictures that the page has received.

    Args:
        folder: gradio writes the pictures into it.
    """

    def __init__(self, folder: str):
        self.folder, self.lock = osp.realpath(folder), Lock()

    def check(self, path: str | None) -> str:
        """Return a visitor's path if a received picture has it.

        Raises:
            ValueError: it is another file, or none.
        """
        if path is None or osp.realpath(path) != osp.abspath(path) or not osp.isfile(path) or not self.holds(path):
            raise ValueError("this picture is not, or no longer, on the page: drop it again")
        return path

    def holds(self, path: str) -> bool:
        """Return whether a path lies in the folder."""
        return osp.commonpath([self.folder, osp.abspath(path)]) == self.folder

    def sweep(self, room: int = 0) -> None:
        """Remove old pictures, then the oldest ones until `room` more bytes fit under the limit."""
        with self.lock:
            files = [(file, file.stat()) for file in Path(self.folder).rglob("*") if file.is_file()]
            total, old = sum(facts.st_size for _, facts in files), time.time() - KEPT
            for file, facts in sorted(files, key=lambda pair: pair[1].st_mtime):
                if facts.st_mtime > old and total + room <= MOST_FILES:
                    break
                total -= facts.st_size
                file.unlink()


def page(served: Served, received: Received):
    """Return the gradio app."""
    import gradio as gr

    def show(image: str | None, names: str, strength: float | None):
        if image is None:
            return None, ""
        try:
            p = served.classify(image, names or "", strength)
        except (ValueError, OSError, FloatingPointError) as error:
            raise gr.Error(visible(error), print_exception=False) from error
        doubt = f"unsure: below {served.threshold:g}" if p.unsure else ""
        return {visible(name): q for name, q in p.top}, "; ".join(filter(None, [doubt, SEEN.get(p.seen)]))

    with gr.Blocks(title="OrthCR", analytics_enabled=False) as app:
        gr.Markdown("# OrthCR: classify a picture")
        with gr.Row():
            with gr.Column():
                # None: gradio keeps the file unchanged; `read_photo` turns it upright
                image = gr.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="picture", height=300
                )
                take_received_only(image, received)
                names = gr.Textbox(
                    label="classes, separated by commas",
                    placeholder=visible(", ".join(served.first.classnames))[:300],
                    elem_id="classes",
                    interactive=served.any_classes,
                )
                strength = gr.Slider(
                    0,
                    1,
                    1.0 if served.strength is None else served.strength,
                    step=0.05,
                    label="strength: 0 is the pretrained CLIP, 1 the trained model",
                    visible=served.strength is not None,
                    elem_id="strength",
                )
            with gr.Column():
                label = gr.Label(num_top_classes=SHOWN, label="classes", elem_id="label")
                note = gr.Markdown(elem_id="note")
        events = [image.change, names.submit]
        if served.strength is not None:
            events.append(strength.release)
        gr.on(
            events,
            show,
            [image, names, strength],
            [label, note],
            api_name="classify",
            show_progress="hidden",
            concurrency_limit=VISITORS,
        )
    return app


def take_received_only(image, received: Received) -> None:
    """Restrict a `gradio.Image` to paths of received pictures: gradio itself opens, copies and downloads nothing."""

    async def unmoved(path):
        return str(path)

    image.async_move_resource_to_block_cache = unmoved
    image.move_resource_to_block_cache = str
    image.preprocess = lambda payload: payload and received_path(payload, received)


def received_path(payload, received: Received) -> str:
    """Return the path of gradio's `ImageData`. Raise gradio's error, which the page shows, for a file not received."""
    import gradio as gr

    try:
        return received.check(payload.path)
    except ValueError as error:
        raise gr.Error(visible(error), print_exception=False) from error


def launch(served: Served, port: int):
    """Start the app and return it.

    Raises:
        OSError: the port is taken.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    only_known_formats()
    received = Received(os.environ["GRADIO_TEMP_DIR"])
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    quiet = {"quiet": True, "share": False, "footer_links": [], "ssr_mode": False, "run_history": False, "pwa": False}
    app = page(served, received)
    try:
        app.launch(
            server_name=HOST,
            server_port=port,
            prevent_thread_lock=True,
            max_file_size=MOST_FILE,
            max_threads=VISITORS,
            theme=theme,
            app_kwargs={"middleware": [Middleware(Gate, port=port, received=received)]},
            **quiet,
        )
    except OSError as error:
        raise OSError(f"port {port} of {HOST} is taken: give another with --port") from error
    return app


def only_known_formats() -> None:
    """Remove all other decoders from this process's Pillow, so that no library opens a picture with them."""
    formats = known_formats()
    Image.ID[:] = [name for name in Image.ID if name in formats]


class Gate:
    """The ASGI middleware: it answers its own page alone, makes room for pictures, and adds `POLICY`.

    The name of another site could resolve to this machine (DNS rebinding), or its page could send pictures here. The
    headers Host and Origin show this.
    """

    def __init__(self, app, port: int, received: Received):
        self.app, self.received = app, received
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope, receive, send):
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        if scope["type"] in ("http", "websocket"):
            refusal = self.refusal(headers)
            if refusal:
                return await refuse(scope, send, *refusal)
            if scope.get("method") == "POST":
                self.received.sweep(room=content_length(headers))

        async def answer(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, answer)

    def refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return status and reason to refuse a request; None to answer it."""
        if headers.get("host") not in self.hosts:
            return 421, "this page answers to its own address only"
        origin = headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in self.hosts:
            return 403, "this page takes nothing from other pages"
        if content_length(headers) > MOST_FILE + 2**20:
            return 413, f"a picture may have {MOST_FILE >> 20} MB"
        return None


def content_length(headers: dict[str, str]) -> int:
    """Return the number of bytes in a request by its headers, 0 without such a header."""
    length = headers.get("content-length", "")
    return int(length) if length.isdigit() and len(length) < 20 else 0


async def refuse(scope, send, status: int, reason: str) -> None:
    """Send a refusal."""
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    body, head = reason.encode(), [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def serve(model_dir: str, classes: list[str] | None, threshold: float, port: int, **options) -> None:
    """Serve until Ctrl-C.

    Args:
        model_dir: as in `Predictor`.
        classes: as in `Predictor`.
        threshold: the page says "unsure" below this probability.
        port: from 1 to 65535.
        **options: other arguments of `Predictor`.

    Raises:
        ValueError: gradio is not installed, or `port` is out of range; or as `Predictor`.
        OSError: the port is taken.
    """
    if not 0 < port < 2**16:
        raise ValueError(f"--port is {port}: give a number from 1 to 65535")
    report_nothing()
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), HOST]))
    sweep(tempfile.gettempdir(), SCRATCH.format("orthcr-page"))  # of pages that were killed
    with scratch_folder(tempfile.gettempdir(), "orthcr-page") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise ValueError("--serve needs gradio: in the clone, pip install -e '.[serve]'") from None
        app = launch(Served(model_dir, classes, threshold, **options), port)
        print(f"http://{HOST}:{port}   Ctrl-C ends it", flush=True)
        app.block_thread()
