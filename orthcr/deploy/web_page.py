"""A web page on this machine: drop a picture, see the classes; type other class names; move the strength.

    python predict.py --serve --model-dir OUT [--port 7860]

The server is bound to 127.0.0.1 and answers its own page alone. It sends nothing anywhere: it has no telemetry and no
share link, and its headers forbid the browser to load anything from elsewhere. Dropped pictures go to a temporary
folder of limited size, which is removed when the process ends. Pictures of that folder alone are classified.
"""

import asyncio
import contextlib
import html
import json
import os
import os.path as osp
import re
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from threading import Lock

from PIL import Image

from dassl.data.data_manager import first_resize
from dassl.infrastructure.files import SCRATCH, scratch_folder, sweep, visible
from dassl.infrastructure.images import known_formats
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
HEADERS = {  # that each answer has
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
MOST_NAMES, MOST_CLASSES = 20_000, 1000  # characters and number of the class names that a visitor may type
MOST_FILE, MOST_BODY = 100 * 2**20, 2**19  # bytes of a picture, and of any other request
MOST_FILES, MOST_SENT = 250 * 2**20, 250 * 2**20  # bytes of the pictures in the folder, and of those on the way
MOST_NUMBER = 1000  # pictures in the folder
KEPT, SWEEP = 600.0, 60.0  # seconds until a picture is removed, and between two looks at the folder
STALLED, SLOWEST = 30.0, 2**18  # seconds without a byte, and bytes a second, after which an upload is given up
VISITORS, WAITING = 32, 500  # requests that are answered side by side, and that may wait
FILE = "/gradio_api/file="
UPLOAD = "/gradio_api/upload"
CALL = re.compile(r"/gradio_api/(queue/join|call/classify)/?")
# All that the page needs of gradio, which has more: it would fetch web addresses, and hand videos to ffmpeg
ROUTES = {
    "GET": re.compile(
        r"/|/(assets|static|svelte)/.+|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/gradio_api/("
        r"(info|startup-events|theme\.css|app_id|queue/data|queue/status|upload_progress)/?|heartbeat/\w+|file=.+|"
        r"call/classify/\w+)"
    ),
    "POST": re.compile(r"/gradio_api/(upload|queue/join|call/classify|cancel|reset)/?"),
}


class Served:
    """The models behind the page: the first one, and one for other classes if a visitor types some. Thread-safe.

    Args:
        model_dir: as in `Predictor`.
        classes: as in `Predictor`.
        threshold: the page says "unsure" below this probability.
        **options: other arguments of `Predictor`.

    Attributes:
        strength: strength of the loaded model; None: the method has none, as it changes no weights.
        any_classes: True if a visitor may type other classes.
    """

    def __init__(self, model_dir: str, classes: list[str] | None, threshold: float, **options):
        self.model_dir, self.options, self.threshold = model_dir, options, threshold
        self.lock, self.other_lock = Lock(), Lock()  # of the first model; of the other one, which takes long to load
        self.classes = classes
        self.first = self.last = Predictor(model_dir, classes, **options)
        self.strength: float | None = strength_of(self.first)
        self.any_classes = hasattr(self.first.trainer, "model")  # an ONNX file has its class features inside
        self.calibration = read_temperature(model_dir) if self.strength is not None else None
        self.identity = identity(self.first.trainer, model_dir, options.get("epoch")) if self.calibration else {}
        self.read = PictureReader(first_resize(self.first.transform))

    def split_names(self, names: str) -> list[str] | None:
        """Return class names with commas between them as a list; None: those of the first model."""
        if len(names) > MOST_NAMES:
            raise ValueError(f"the class names have {len(names):,} characters: give at most {MOST_NAMES:,}")
        classes = names_in(names) or self.classes
        if classes in (None, self.first.classnames):
            return None
        if len(classes) > MOST_CLASSES:
            raise ValueError(f"there are {len(classes):,} class names: give at most {MOST_CLASSES:,}")
        return classes

    def predictor(self, classes: list[str] | None) -> Predictor:
        """Return the predictor for class names; None: the first one."""
        if classes is None:
            return self.first
        if classes != self.last.classnames:
            self.last = Predictor(self.model_dir, classes, **self.options)
        return self.last

    def classify(self, image: str, names: str, strength: float | None) -> Prediction:
        """Return the prediction for a picture.

        Args:
            image: its path.
            names: names of the classes, with commas between them; "": the classes of the first model.
            strength: on the slider; None: there is no slider.

        Raises:
            ValueError: the picture cannot be read; or as `Predictor`.
            OSError: as `PictureReader`.
        """
        classes, pixels = self.split_names(names), self.read(image)
        with self.lock if classes is None else self.other_lock:
            predictor = self.predictor(classes)
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

    def sweep(self) -> None:
        """Remove old pictures, then the oldest ones beyond the limits of bytes and number, and empty folders."""
        with self.lock:
            files, folders = [], []
            for at, inner, names in os.walk(self.folder):
                for paths, group in ((names, files), (inner, folders)):
                    for path in (Path(at, name) for name in paths):
                        with contextlib.suppress(FileNotFoundError):  # it was moved meanwhile
                            group.append((path.lstat(), path))
            total, number, old = sum(facts.st_size for facts, _ in files), len(files), time.time() - KEPT
            for facts, file in sorted(files, key=lambda pair: pair[0].st_mtime):
                if facts.st_mtime > old and total <= MOST_FILES and number <= MOST_NUMBER:
                    break
                total, number = total - facts.st_size, number - 1
                file.unlink(missing_ok=True)
            for facts, folder in folders:
                if facts.st_mtime < time.time() - STALLED:  # else a picture may be on its way into it
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def page(served: Served, received: Received):
    """Return the gradio app."""
    import gradio as gr

    def show(image: str | None, names: str, strength: float | None):
        if image is None:
            return None, ""
        try:
            p = served.classify(image, names or "", strength)
        except (ValueError, OSError, FloatingPointError) as error:
            raise gr.Error(as_text(error), print_exception=False) from error
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


def as_text(error: Exception) -> str:
    """Return an error's message for gradio, which shows it as HTML. It may have class names in it."""
    return html.escape(visible(error), quote=False)


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
        raise gr.Error(as_text(error), print_exception=False) from error


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
    app = page(served, received).queue(max_size=WAITING)
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
        raise OSError(f"port {port} of {HOST} is taken or not yours: give another with --port") from error
    return app


def only_known_formats() -> None:
    """Remove all other decoders from this process's Pillow, so that no library opens a picture with them."""
    formats = known_formats()
    Image.ID[:] = [name for name in Image.ID if name in formats]


class Gate:
    """The ASGI middleware: it answers its own page alone, bounds what is sent, and adds `HEADERS`.

    The name of another site could resolve to this machine (DNS rebinding), or its page could send pictures here. The
    headers Host, Origin and Sec-Fetch-Site show this.
    """

    def __init__(self, app, port: int, received: Received):
        self.app, self.received, self.sent = app, received, 0  # bytes of all uploads that are on the way
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self.refusal(scope, headers)
        if refusal:
            return await refuse(scope, send, *refusal)
        # gradio fails on some ranges, and no picture needs them
        scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}

        has_begun = False

        async def answer(message):
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            await self.pass_on(scope, receive, answer, content_length(headers) or 0)
        except Malformed as error:
            await refuse(scope, send, 400, visible(error))
        except Exception as error:  # gradio and starlette raise many types for what their own page never sends
            print(visible(f"{scope['path'][:100]}: {type(error).__name__}: {error}"[:300]), file=sys.stderr)
            if not has_begun:
                await refuse(scope, send, 400, "this request is malformed")

    async def pass_on(self, scope, receive, answer, length: int) -> None:
        """Let gradio answer a request with a body of so many bytes."""
        if scope["method"] != "POST":
            return await self.app(scope, receive, answer)
        is_picture, upload = scope["path"].startswith(UPLOAD), Upload(self, receive, length)
        if is_picture:
            await asyncio.to_thread(self.received.sweep)
        try:
            receive_body = upload.receive
            if CALL.fullmatch(scope["path"]):
                body = read_call(await upload.whole())
                size = [(b"content-length", str(len(body)).encode())]
                scope = {**scope, "headers": [h for h in scope["headers"] if h[0] != b"content-length"] + size}
                receive_body = upload.replay(body)
            await self.app(scope, receive_body, answer)
        finally:
            self.sent -= upload.sent
            if is_picture:
                await asyncio.to_thread(self.received.sweep)

    def refusal(self, scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return status and reason to refuse a request; None to answer it."""
        if headers.get("host") not in self.hosts:
            return 421, "this page answers to its own address only"
        method, path = scope.get("method", ""), scope["path"]
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        is_visit = path == "/" and headers.get("sec-fetch-mode") == "navigate"  # a link to the page
        is_foreign = origin is not None and origin not in {f"http://{host}" for host in self.hosts}
        if is_foreign or site not in ("none", "same-origin") and not is_visit:
            return 403, "this page takes nothing from other pages"
        routes = ROUTES.get("GET" if method == "HEAD" else method)
        if routes is None or not routes.fullmatch(path):
            return 404, "this page has no such part"
        if path.startswith(FILE):
            try:
                self.received.check(path.removeprefix(FILE))
            except ValueError as error:
                return 404, visible(error)
        if method != "POST":
            return None
        if "transfer-encoding" in headers or content_length(headers) is None:
            return 411, "a request must say its length"
        most = MOST_FILE + 2**20 if path.startswith(UPLOAD) else MOST_BODY
        if content_length(headers) > most:
            return 413, f"a picture may have {MOST_FILE >> 20} MB, and any other request {MOST_BODY >> 10} KB"
        return None


class Malformed(ValueError):
    """A request that the page itself would not send."""


def read_call(body: bytes) -> bytes:
    """Return a visitor's call in a form that gradio answers without a trace in the terminal.

    Of the picture it keeps the path alone, so that gradio leaves it to `Received` whether the page received it.

    Raises:
        Malformed: the inputs are not a picture, class names and a strength.
    """
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("this request is no JSON") from None
    data = call.get("data") if isinstance(call, dict) else None
    if not isinstance(data, list) or len(data) != 3:
        raise Malformed("data must have three entries: picture, class names, strength")
    picture, names, strength = data
    if picture is not None:
        path = picture.get("path") if isinstance(picture, dict) else picture
        if not isinstance(path, str | None):
            raise Malformed('the picture must be null, or {"path": "..."}')
        call["data"][0] = {"path": path or ""}
    if not isinstance(names, str | None):
        raise Malformed("the class names must be one text, with commas between them")
    if type(strength) not in (int, float) or not 0 <= strength <= 1:
        raise Malformed("the strength must be a number from 0 to 1")
    return json.dumps(call).encode()


class Upload:
    """The body of a request while it arrives.

    Args:
        gate: counts the bytes of all of them.
        receive: ASGI's function for the next part.
        length: bytes of the body.

    Attributes:
        sent: bytes that have arrived.
    """

    def __init__(self, gate: Gate, receive, length: int):
        self.gate, self.next, self.sent, self.is_complete = gate, receive, 0, False
        self.end = time.monotonic() + STALLED + length / SLOWEST

    async def receive(self):
        """Return ASGI's next message. Raise starlette's HTTPException for what is too slow, or too much at once."""
        from starlette.exceptions import HTTPException

        if self.is_complete:  # the next message is the end of the connection
            return await self.next()
        try:
            message = await asyncio.wait_for(self.next(), min(STALLED, max(0.0, self.end - time.monotonic())))
        except asyncio.TimeoutError:
            raise HTTPException(408, "this upload is too slow: try again") from None
        size = len(message.get("body", b""))
        self.sent, self.gate.sent = self.sent + size, self.gate.sent + size
        if self.gate.sent > MOST_SENT:
            raise HTTPException(503, "too many pictures at once: try again")
        self.is_complete = not message.get("more_body", False)
        return message

    async def whole(self) -> bytes:
        """Return the whole body."""
        body = b""
        while not self.is_complete:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Malformed("the connection was closed")
            body += message.get("body", b"")
        return body

    def replay(self, body: bytes):
        """Return a function for ASGI that gives `body`, then the messages that come after it."""
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive():
            part = next(parts, None)
            return await self.next() if part is None else part

        return receive


def content_length(headers: dict[str, str]) -> int | None:
    """Return the number of bytes in a request by its headers, None without such a header."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else None


async def refuse(scope, send, status: int, reason: str) -> None:
    """Send a refusal."""
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    # close: the rest of the request is not read
    body, head = reason.encode(), [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def check_port(port: int) -> None:
    """Raise ValueError if there is no such port, OSError if it is taken. Loading a model takes long."""
    if not 0 < port < 2**16:
        raise ValueError(f"--port is {port}: give a number from 1 to 65535")
    with socket.socket() as probe:
        if os.name == "posix":  # ports of pages that have just ended may be used again; Windows shares those in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(f"port {port} of {HOST} is taken or not yours: give another with --port") from error


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
    check_port(port)
    report_nothing()
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), HOST]))
    sweep(tempfile.gettempdir(), SCRATCH.format("orthcr-page"))  # of pages that were killed
    with scratch_folder(tempfile.gettempdir(), "orthcr-page") as folder:
        os.chmod(folder, 0o700)  # the pictures are nobody else's business
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise ValueError("--serve needs gradio: in the clone, pip install -e '.[serve]'") from None
        app = launch(Served(model_dir, classes, threshold, **options), port)
        print(f"http://{HOST}:{port}   Ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(SWEEP)
                Received(folder).sweep()
        finally:
            app.close(verbose=False)  # first: it must not write into the folder while that is removed
