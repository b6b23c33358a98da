"""A web page on this machine: drop a picture, see the classes; type other class names; move the strength.

    python predict.py --serve --model-dir OUT [--port 7860]

Bound to 127.0.0.1. Nothing is sent anywhere: no telemetry, no share link, and the browser is told to load nothing from
elsewhere. Pictures that are dropped go to a temporary folder, which goes with the process.
"""

import os
import tempfile
from threading import Lock

from dassl.files import visible

from .calibrate import identity, read_temperature
from .predictor import Prediction, Predictor, names_in

HOST = "127.0.0.1"
# `inline`: gradio writes its settings into the page; `blob` and `data`: the picture that was dropped
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'"
)
SHOWN = 10  # classes
SEEN = {"train": "the model was trained on this image", "val": "the model was chosen by this image"}


class Served:
    """One model and, if other classes were asked for, a second for these; asked from several threads."""

    def __init__(self, model_dir: str, classes: list[str] | None, threshold: float, **how):
        self.model_dir, self.how, self.threshold, self.lock = model_dir, how, threshold, Lock()
        self.given = classes
        self.own = self.last = Predictor(model_dir, classes, **how)
        # of the model as it was loaded; None: the method has none, as it changes no weights
        self.strength: float | None = getattr(self.own.trainer.model, "strength", None)
        self.kept = read_temperature(model_dir)
        self.of = identity(self.own.trainer, model_dir, how.get("epoch")) if self.kept else {}

    def predictor(self, names: str) -> Predictor:
        """For class names with commas between them; "": those that the page was started with."""
        classes = names_in(names) or self.given
        if classes in (None, self.own.classnames):
            return self.own
        if classes != self.last.classnames:
            self.last = Predictor(self.model_dir, classes, **self.how)
        return self.last

    def classify(self, image: str, names: str, strength: float | None) -> Prediction:
        """Raises as `Predictor`."""
        with self.lock:
            predictor = self.predictor(names)
            if None not in (self.strength, strength) and strength != predictor.trainer.model.strength:
                predictor.trainer.model.strength = strength
                fits = self.kept and self.kept["of"] == {**self.of, "strength": strength}
                predictor.temperature = self.kept["temperature"] if fits else None
            (p,) = predictor(image, top=SHOWN, threshold=self.threshold)
        if p.error:
            raise ValueError(p.error)
        return p


def page(served: Served):
    """The gradio app."""
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
                # None: the file as it is, not written anew; `read_photo` turns it upright
                image = gr.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="picture", height=300
                )
                names = gr.Textbox(
                    label="classes, separated by commas",
                    placeholder=visible(", ".join(served.own.classnames))[:300],
                    elem_id="classes",
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
        events = [image.change, names.submit, *[strength.release] * (served.strength is not None)]
        gr.on(events, show, [image, names, strength], [label, note], api_name="classify", show_progress="hidden")
    return app


def launch(served: Served, port: int):
    """The running app. Raises OSError if the port is taken."""
    import gradio as gr
    from starlette.middleware import Middleware

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    quiet = {"quiet": True, "share": False, "footer_links": [], "ssr_mode": False, "run_history": False, "pwa": False}
    app = page(served)
    try:
        app.launch(
            server_name=HOST,
            server_port=port,
            prevent_thread_lock=True,
            max_file_size="100mb",
            theme=theme,
            app_kwargs={"middleware": [Middleware(OwnThingsOnly)]},
            **quiet,
        )
    except OSError as error:
        raise OSError(f"port {port} of {HOST} is taken: give another with --port") from error
    return app


class OwnThingsOnly:
    """ASGI middleware: the browser loads nothing from elsewhere, whatever a page asks for."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def answer(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, answer)


def serve(model_dir: str, classes: list[str] | None, threshold: float, port: int, **how) -> None:
    """Serves until Ctrl-C. Args: how: of `Predictor`.

    Raises:
        ValueError: gradio is not installed, or there can be no such port; or as `Predictor`.
        OSError: the port is taken.
    """
    if not 0 < port < 2**16:
        raise ValueError(f"--port is {port}: give a number from 1 to 65535")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), HOST]))
    with tempfile.TemporaryDirectory(prefix="orthcr-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise ValueError("--serve needs gradio: in the clone, pip install -e '.[serve]'") from None
        app = launch(Served(model_dir, classes, threshold, **how), port)
        print(f"http://{HOST}:{port}   Ctrl-C ends it", flush=True)
        app.block_thread()
