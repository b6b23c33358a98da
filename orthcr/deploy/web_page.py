"""A web page on this machine that classifies pictures. Users may type other class names and move the strength.

    python predict.py --serve --model-dir OUT [--port 7860]

The server listens on 127.0.0.1 and answers requests of its own page only. It sends nothing to other machines: it has no
telemetry and no share link, and its headers forbid the browser to load anything from other addresses. Uploaded pictures
go to a temporary folder of limited size, which is removed when the process ends. Only pictures in this folder are
classified.
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
from orthcr.deploy.predictor import Prediction, Predictor, parse_names
from orthcr.run.temperature import identity, read_temperature
from trainers.shared.privacy import report_nothing

HOST = "127.0.0.1"
# `inline` is for gradio's settings in the page, `blob` and `data` for the uploaded picture
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'"
)
TOP_CLASSES = 10  # classes on the page
SEEN = {"train": "the model was trained on this image", "val": "the model was selected on this image"}
HEADERS = {  # headers of each response
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
MAX_NAME_CHARACTERS, MAX_CLASSES = 20_000, 1000  # of the class names that a user types
MAX_PICTURE_BYTES, MAX_BODY_BYTES = 100 * 2**20, 2**19  # bytes of a picture, and of any other request
MAX_FOLDER_BYTES, MAX_BYTES_IN_TRANSIT = 250 * 2**20, 250 * 2**20  # pictures in the folder; uploads in progress
MAX_PICTURES = 1000  # pictures in the folder
KEEP_SECONDS, SWEEP_SECONDS = 600.0, 60.0  # age at which a picture is removed; time between two checks
STALL_SECONDS, MIN_BYTES_PER_SECOND = 30.0, 2**18  # limits for a slow upload
MAX_REQUESTS, MAX_WAITING = 32, 500  # requests that are answered side by side, and that may wait
FILE = "/gradio_api/file="
UPLOAD = "/gradio_api/upload"
CALL = re.compile(r"/gradio_api/(queue/join|call/classify)/?")
# Requests that the page needs. Gradio answers more: it would also fetch web addresses, and pass videos to ffmpeg
ROUTES = {
    "GET": re.compile(
        r"/|/(assets|static|svelte)/.+|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/gradio_api/("
        r"(info|startup-events|theme\.css|app_id|queue/data|queue/status|upload_progress)/?|heartbeat/\w+|file=.+|"
        r"call/classify/\w+)"
    ),
    "POST": re.compile(r"/gradio_api/(upload|queue/join|call/classify|cancel|reset)/?"),
}


class PageModels:
    """The models of the page: the first one, and a second one if a user types other classes. Thread-safe.

    Args:
        model_dir: see `Predictor`.
        classes: see `Predictor`.
        threshold: below this probability, the page says "unsure".
        **options: other arguments of `Predictor`.

    Attributes:
        strength: strength of the loaded model; None for a method that changes no weights.
        any_classes: whether users may type other classes.
    """

    def __init__(self, model_dir: str, classes: list[str] | None, threshold: float, **options):
        self.model_dir, self.options, self.threshold = model_dir, options, threshold
        self.lock, self.other_lock = Lock(), Lock()  # for the first model, and for the other one, which loads slowly
        self.classes = classes
        self.first = self.latest = Predictor(model_dir, classes, **options)
        self.strength: float | None = strength_of(self.first)
        self.any_classes = hasattr(self.first.trainer, "model")  # an ONNX file has fixed class features
        self.calibration = read_temperature(model_dir) if self.strength is not None else None
        self.identity = identity(self.first.trainer, model_dir, options.get("epoch")) if self.calibration else {}
        self.read_picture = PictureReader(first_resize(self.first.transform))

    def split_names(self, names: str) -> list[str] | None:
        """Return the class names in a text, separated by commas; None for the classes of the first model."""
        if len(names) > MAX_NAME_CHARACTERS:
            limit = f"the class names must have at most {MAX_NAME_CHARACTERS:,} characters"
            raise ValueError(f"{limit} (got {len(names):,}): give fewer")
        classes = parse_names(names) or self.classes
        if classes in (None, self.first.classnames):
            return None
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"there must be at most {MAX_CLASSES:,} class names (got {len(classes):,}): give fewer")
        return classes

    def get_predictor(self, classes: list[str] | None) -> Predictor:
        """Return the predictor for these class names; for None, the first one."""
        if classes is None:
            return self.first
        if classes != self.latest.classnames:
            self.latest = Predictor(self.model_dir, classes, **self.options)
        return self.latest

    def classify(self, image: str, names: str, strength: float | None) -> Prediction:
        """Return the prediction for a picture.

        Args:
            image: path of the picture.
            names: names of the classes, separated by commas; "": the classes of the first model.
            strength: value of the slider; None: there is no slider.

        Raises:
            ValueError: the picture cannot be read, or the classes do not fit the model.
            OSError: the picture cannot be read within the limits of `PictureReader`.
        """
        classes, pixels = self.split_names(names), self.read_picture(image)
        with self.lock if classes is None else self.other_lock:
            predictor = self.get_predictor(classes)
            if None not in (self.strength, strength) and strength != strength_of(predictor):
                predictor.trainer.model.strength = strength
                fits = self.calibration and self.calibration["of"] == {**self.identity, "strength": strength}
                predictor.temperature = self.calibration["temperature"] if fits else None
            (answer,) = predictor(pixels, top=TOP_CLASSES, threshold=self.threshold)
        if answer.error:
            raise ValueError(answer.error)
        return replace(answer, image=image, seen=predictor.seen.part_of(image))


def strength_of(predictor: Predictor) -> float | None:
    """Return the strength of a predictor's model; None if the model has none."""
    return getattr(getattr(predictor.trainer, "model", None), "strength", None)


class UploadFolder:
    """The folder of the uploaded pictures.

    Args:
        folder: path of the folder that gradio writes the pictures to.
    """

    def __init__(self, folder: str):
        self.folder, self.lock = osp.realpath(folder), Lock()

    def check(self, path: str | None) -> str:
        """Return a path of a request if it is the path of an uploaded picture.

        Raises:
            ValueError: there is no such file, or it is another file.
        """
        if path is None or osp.realpath(path) != osp.abspath(path) or not osp.isfile(path) or not self.holds(path):
            raise ValueError("this picture is not on the page, or no longer: upload it again")
        return path

    def holds(self, path: str) -> bool:
        """Return whether a path lies in the folder."""
        return osp.commonpath([self.folder, osp.abspath(path)]) == self.folder

    def sweep(self) -> None:
        """Remove old pictures, then the oldest ones until the folder is within its limits, and empty subfolders."""
        with self.lock:
            files, folders = [], []
            for parent, folder_names, names in os.walk(self.folder):
                for paths, group in ((names, files), (folder_names, folders)):
                    for path in (Path(parent, name) for name in paths):
                        with contextlib.suppress(FileNotFoundError):  # another thread has moved it
                            group.append((path.lstat(), path))
            total, number, oldest_time = (
                sum(facts.st_size for facts, _ in files),
                len(files),
                time.time() - KEEP_SECONDS,
            )
            for facts, file in sorted(files, key=lambda pair: pair[0].st_mtime):
                if facts.st_mtime > oldest_time and total <= MAX_FOLDER_BYTES and number <= MAX_PICTURES:
                    break
                total, number = total - facts.st_size, number - 1
                file.unlink(missing_ok=True)
            for facts, folder in folders:
                if facts.st_mtime < time.time() - STALL_SECONDS:  # else an upload may just be writing into it
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def page(models: PageModels, uploads: UploadFolder):
    """Return the gradio app."""
    import gradio as gr

    def show(image: str | None, names: str, strength: float | None):
        if image is None:
            return None, ""
        try:
            p = models.classify(image, names or "", strength)
        except (ValueError, OSError, FloatingPointError) as error:
            raise gr.Error(as_text(error), print_exception=False) from error
        doubt = f"unsure: below {models.threshold:g}" if p.unsure else ""
        return {visible(name): q for name, q in p.top}, "; ".join(filter(None, [doubt, SEEN.get(p.seen)]))

    with gr.Blocks(title="OrthCR", analytics_enabled=False) as app:
        gr.Markdown("# OrthCR: classify a picture")
        with gr.Row():
            with gr.Column():
                # with image_mode None gradio does not change the file; `read_photo` turns it upright
                image = gr.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="picture", height=300
                )
                restrict_to_uploads(image, uploads)
                names = gr.Textbox(
                    label="classes, separated by commas",
                    placeholder=visible(", ".join(models.first.classnames))[:300],
                    elem_id="classes",
                    interactive=models.any_classes,
                )
                strength = gr.Slider(
                    0,
                    1,
                    1.0 if models.strength is None else models.strength,
                    step=0.05,
                    label="strength: 0 is the pretrained CLIP, 1 the trained model",
                    visible=models.strength is not None,
                    elem_id="strength",
                )
            with gr.Column():
                label = gr.Label(num_top_classes=TOP_CLASSES, label="classes", elem_id="label")
                note = gr.Markdown(elem_id="note")
        events = [image.change, names.submit]
        if models.strength is not None:
            events.append(strength.release)
        gr.on(
            events,
            show,
            [image, names, strength],
            [label, note],
            api_name="classify",
            show_progress="hidden",
            concurrency_limit=MAX_REQUESTS,
        )
    return app


def as_text(error: Exception) -> str:
    """Return an error's message, with HTML escaped: gradio shows it as HTML, and it may contain class names."""
    return html.escape(visible(error), quote=False)


def restrict_to_uploads(image, uploads: UploadFolder) -> None:
    """Restrict a `gradio.Image` to paths of uploaded pictures, so that gradio opens, copies and downloads nothing."""

    async def unmoved(path):
        return str(path)

    image.async_move_resource_to_block_cache = unmoved
    image.move_resource_to_block_cache = str
    image.preprocess = lambda payload: payload and find_upload(payload, uploads)


def find_upload(payload, uploads: UploadFolder) -> str:
    """Return the path in gradio's `ImageData`; raise gradio's error, which the page shows, if it is no upload."""
    import gradio as gr

    try:
        return uploads.check(payload.path)
    except ValueError as error:
        raise gr.Error(as_text(error), print_exception=False) from error


def launch(models: PageModels, port: int):
    """Start the app and return it.

    Raises:
        OSError: the port is in use.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    restrict_formats()
    uploads = UploadFolder(os.environ["GRADIO_TEMP_DIR"])
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options = {"quiet": True, "share": False, "footer_links": [], "ssr_mode": False, "run_history": False, "pwa": False}
    app = page(models, uploads).queue(max_size=MAX_WAITING)
    try:
        app.launch(
            server_name=HOST,
            server_port=port,
            prevent_thread_lock=True,
            max_file_size=MAX_PICTURE_BYTES,
            max_threads=MAX_REQUESTS,
            theme=theme,
            app_kwargs={"middleware": [Middleware(Gate, port=port, uploads=uploads)]},
            **options,
        )
    except OSError as error:
        raise OSError(f"port {port} of {HOST} is in use or not allowed: give another with --port") from error
    return app


def restrict_formats() -> None:
    """Remove the decoders of all other formats from Pillow in this process, so that no library uses them."""
    formats = known_formats()
    Image.ID[:] = [name for name in Image.ID if name in formats]


class Gate:
    """An ASGI middleware that refuses requests of other pages, limits the size of uploads, and adds `HEADERS`.

    Another site could let its name resolve to this machine (DNS rebinding), or its page could send requests here. Such
    requests are recognized by the headers Host, Origin and Sec-Fetch-Site.
    """

    def __init__(self, app, port: int, uploads: UploadFolder):
        self.app, self.uploads, self.n_bytes = app, uploads, 0  # n_bytes: of all uploads in progress
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self.refusal(scope, headers)
        if refusal:
            return await refuse(scope, send, *refusal)
        # gradio fails on some range headers, and no picture needs them
        scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}

        has_begun = False

        async def answer(message):
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                header_pairs = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *header_pairs]
            await send(message)

        try:
            await self.pass_on(scope, receive, answer, content_length(headers) or 0)
        except MalformedRequest as error:
            await refuse(scope, send, 400, visible(error))
        except Exception as error:  # gradio and starlette raise many types for malformed requests
            print(visible(f"{scope['path'][:100]}: {type(error).__name__}: {error}"[:300]), file=sys.stderr)
            if not has_begun:
                await refuse(scope, send, 400, "this request is malformed")

    async def pass_on(self, scope, receive, answer, length: int) -> None:
        """Pass a request to gradio.

        Args:
            scope: ASGI's description of the request.
            receive: ASGI's function for the next message.
            answer: ASGI's function that sends the response.
            length: number of bytes of the body.
        """
        if scope["method"] != "POST":
            return await self.app(scope, receive, answer)
        is_picture, upload = scope["path"].startswith(UPLOAD), Upload(self, receive, length)
        if is_picture:
            await asyncio.to_thread(self.uploads.sweep)
        try:
            receive_body = upload.receive
            if CALL.fullmatch(scope["path"]):
                body = read_call(await upload.read_body())
                size = [(b"content-length", str(len(body)).encode())]
                scope = {**scope, "headers": [h for h in scope["headers"] if h[0] != b"content-length"] + size}
                receive_body = upload.replay(body)
            await self.app(scope, receive_body, answer)
        finally:
            self.n_bytes -= upload.n_bytes
            if is_picture:
                await asyncio.to_thread(self.uploads.sweep)

    def refusal(self, scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return the status and the reason if a request is refused; None if it is allowed."""
        if headers.get("host") not in self.hosts:
            return 421, "this page has another address"
        method, path = scope.get("method", ""), scope["path"]
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        is_visit = path == "/" and headers.get("sec-fetch-mode") == "navigate"  # a link to the page
        is_foreign = origin is not None and origin not in {f"http://{host}" for host in self.hosts}
        if is_foreign or site not in ("none", "same-origin") and not is_visit:
            return 403, "this page accepts no requests from other pages"
        routes = ROUTES.get("GET" if method == "HEAD" else method)
        if routes is None or not routes.fullmatch(path):
            return 404, "this page has no such address"
        if path.startswith(FILE):
            try:
                self.uploads.check(path.removeprefix(FILE))
            except ValueError as error:
                return 404, visible(error)
        if method != "POST":
            return None
        if "transfer-encoding" in headers or content_length(headers) is None:
            return 411, "a request must have a content-length header"
        max_bytes = MAX_PICTURE_BYTES + 2**20 if path.startswith(UPLOAD) else MAX_BODY_BYTES
        if content_length(headers) > max_bytes:
            limits = f"{MAX_PICTURE_BYTES >> 20} MB, and any other request at most {MAX_BODY_BYTES >> 10} KB"
            return 413, f"a picture may have at most {limits}"
        return None


class MalformedRequest(ValueError):
    """A request that the page itself never sends."""


def read_call(body: bytes) -> bytes:
    """Check the body of a classification request, and return it with only the path of the picture.

    Gradio prints a trace for malformed inputs. `UploadFolder` checks the path later.

    Raises:
        MalformedRequest: the inputs are not a picture, class names and a strength.
    """
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedRequest("the body of this request must be JSON") from None
    data = call.get("data") if isinstance(call, dict) else None
    if not isinstance(data, list) or len(data) != 3:
        raise MalformedRequest("data must have three entries: picture, class names, strength")
    picture, names, strength = data
    if picture is not None:
        path = picture.get("path") if isinstance(picture, dict) else picture
        if not isinstance(path, str | None):
            raise MalformedRequest('the picture must be null, or {"path": "..."}')
        call["data"][0] = {"path": path or ""}
    if not isinstance(names, str | None):
        raise MalformedRequest("the class names must be one text, separated by commas")
    if type(strength) not in (int, float) or not 0 <= strength <= 1:
        raise MalformedRequest("the strength must be a number from 0 to 1")
    return json.dumps(call).encode()


class Upload:
    """The body of a request that is being received.

    Args:
        gate: middleware that counts the bytes of all uploads.
        receive: ASGI's function for the next message.
        length: number of bytes of the body.

    Attributes:
        n_bytes: number of bytes received so far.
    """

    def __init__(self, gate: Gate, receive, length: int):
        self.gate, self.next, self.n_bytes, self.is_complete = gate, receive, 0, False
        self.end = time.monotonic() + STALL_SECONDS + length / MIN_BYTES_PER_SECOND

    async def receive(self):
        """Return ASGI's next message; raise starlette's HTTPException if the upload is too slow or too large."""
        from starlette.exceptions import HTTPException

        if self.is_complete:  # only the end of the connection is left
            return await self.next()
        try:
            message = await asyncio.wait_for(self.next(), min(STALL_SECONDS, max(0.0, self.end - time.monotonic())))
        except asyncio.TimeoutError:
            raise HTTPException(408, "this upload is too slow: try again") from None
        size = len(message.get("body", b""))
        self.n_bytes, self.gate.n_bytes = self.n_bytes + size, self.gate.n_bytes + size
        if self.gate.n_bytes > MAX_BYTES_IN_TRANSIT:
            raise HTTPException(503, "too many pictures at once: try again")
        self.is_complete = not message.get("more_body", False)
        return message

    async def read_body(self) -> bytes:
        """Return the whole body."""
        body = b""
        while not self.is_complete:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise MalformedRequest("the connection was closed")
            body += message.get("body", b"")
        return body

    def replay(self, body: bytes):
        """Return a function for ASGI that returns `body` first, then the later messages."""
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive():
            part = next(parts, None)
            return await self.next() if part is None else part

        return receive


def content_length(headers: dict[str, str]) -> int | None:
    """Return the number of bytes of a request from its content-length header; None if it has no valid one."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else None


async def refuse(scope, send, status: int, reason: str) -> None:
    """Send a response that refuses a request."""
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    # `close`, because the rest of the request is not read
    body, head = reason.encode(), [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def check_port(port: int) -> None:
    """Raise ValueError if there is no such port, and OSError if it is in use, before a model is loaded."""
    if not 0 < port < 2**16:
        raise ValueError(f"--port must be from 1 to 65535 (got {port}): give another")
    with socket.socket() as probe:
        if os.name == "posix":  # allows the port of a page that has just ended; Windows would allow ports in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(f"port {port} of {HOST} is in use or not allowed: give another with --port") from error


def serve(model_dir: str, classes: list[str] | None, threshold: float, port: int, **options) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model_dir: see `Predictor`.
        classes: see `Predictor`.
        threshold: below this probability, the page says "unsure".
        port: number from 1 to 65535.
        **options: other arguments of `Predictor`.

    Raises:
        ValueError: gradio is not installed, `port` is out of range, or the arguments do not fit the model.
        OSError: the port is in use.
    """
    check_port(port)
    report_nothing()
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), HOST]))
    sweep(tempfile.gettempdir(), SCRATCH.format("orthcr-page"))  # folders of killed processes
    with scratch_folder(tempfile.gettempdir(), "orthcr-page") as folder:
        os.chmod(folder, 0o700)  # other users of this machine must not see the pictures
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise ValueError("--serve needs gradio: in the clone, pip install -e '.[serve]'") from None
        app = launch(PageModels(model_dir, classes, threshold, **options), port)
        print(f"http://{HOST}:{port}   Ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(SWEEP_SECONDS)
                UploadFolder(folder).sweep()
        finally:
            app.close(verbose=False)  # before the folder is removed, so that nothing is written into it
