"""Loading CLIP from every kind of file, and downloading it."""

import hashlib
import threading
import urllib.request
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch
from clip import clip
from clip.model import CLIP

from trainers.shared import backbones
from trainers.shared.backbones import is_vit, load_clip
from trainers.shared.tokens import tokenize


def one_line(error):
    return "\n" not in str(error.value) and str(error.value)


# ------------------------------------------------------------------ loading


def rounded(state):
    """OpenAI's build_model keeps the weights of layers and projections in fp16: what each tensor may lose by that."""
    return {name: (t, 2**-11 * t.abs() + 2**-25) for name, t in state.items() if t.is_floating_point()}


def check_same(model, state):
    assert isinstance(model, CLIP) and not model.training
    given = model.state_dict()
    for name, (tensor, tolerance) in rounded(state).items():
        assert given[name].dtype == torch.float32
        assert bool(((given[name] - tensor).abs() <= tolerance).all()), name
    assert not any(p.requires_grad for p in model.parameters())


def as_archive(model, path):
    """A JIT archive as OpenAI's: a ScriptModule with the three integers among its tensors, weights in fp16."""
    side = model.visual.input_resolution
    for name, value in (("input_resolution", side), ("context_length", 77), ("vocab_size", model.vocab_size)):
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    example = torch.zeros(1, 3, side, side), tokenize(["a"])
    torch.jit.trace(model, example, check_trace=False).save(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("form", ["state dict", "checkpoint", "fp16", "archive", "safetensors"])
def test_weights_in_every_form(random_clip, tmp_path, noise, kind, form):
    model = random_clip(kind)
    state, path = {name: t.clone() for name, t in model.state_dict().items()}, tmp_path / "weights.pt"
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(state, path)
    elif form == "archive":
        as_archive(model, str(path))
    elif form == "fp16":
        state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
        torch.save(state, path)
    else:
        torch.save({"state_dict": state} if form == "checkpoint" else state, path)
    loaded = load_clip(str(path))
    check_same(loaded, state)
    assert is_vit(loaded) == (kind == "vit")
    side = 32 if kind == "vit" else 64
    assert loaded.visual.input_resolution == side
    image = noise(2, 3, side, side)
    with torch.no_grad():
        wanted = random_clip(kind).encode_image(image)
        torch.testing.assert_close(loaded.encode_image(image), wanted, atol=2e-2, rtol=2e-2)


def test_the_embedded_clip(tiny, root):
    check_same(tiny, safetensors.torch.load_file(root / "assets" / "tiny_clip.safetensors"))
    assert is_vit(tiny) and tiny.visual.input_resolution == 32 and tiny.context_length == 77
    again = load_clip("tiny")
    assert all(torch.equal(a, b) for a, b in zip(tiny.state_dict().values(), again.state_dict().values(), strict=True))


def test_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match='did you mean "ViT-B/16"') as error:
        load_clip("ViT-B-16")
    assert one_line(error)
    with pytest.raises(ValueError, match='did you mean "tiny"'):
        load_clip("tinny")


def write_text(path):
    path.write_text("no weights at all")


def write_nothing(path):
    path.write_bytes(b"")


def save_other_net(path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)


def save_list(path):
    torch.save([torch.zeros(2)], path)


def save_half_a_clip(path):
    names = ["text_projection", "token_embedding.weight", "logit_scale", "positional_embedding"]
    torch.save({name: torch.zeros(4, 4) for name in names}, path)


@pytest.mark.parametrize(
    "write, ending",
    [
        (write_text, ".pt"),
        (save_other_net, ".pt"),
        (write_nothing, ".pt"),
        (save_list, ".pt"),
        (save_half_a_clip, ".pt"),
        (write_text, ".safetensors"),
        (write_nothing, ".safetensors"),
    ],
)
def test_file_that_is_no_clip(tmp_path, write, ending):
    path = tmp_path / f"wrong{ending}"
    write(path)
    with pytest.raises(ValueError) as error:
        load_clip(str(path))
    assert str(path) in one_line(error)


def test_clip_with_a_missing_tensor(random_clip, tmp_path):
    state = random_clip().state_dict()
    del state["visual.ln_post.weight"]
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(ValueError, match=r"visual\.ln_post\.weight") as error:
        load_clip(str(tmp_path / "cut.pt"))
    assert one_line(error)


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"text_projection": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError) as error:
        load_clip(str(tmp_path / "evil.pt"))
    assert one_line(error) and not (tmp_path / "ran").exists()


def test_image_size_of_another_backbone(make_trainer):
    with pytest.raises(ValueError, match=r"INPUT\.SIZE is \(224, 224\), but tiny takes \(32, 32\)") as error:
        make_trainer("INPUT.SIZE", "(224, 224)")
    assert one_line(error)


# ------------------------------------------------------------------ downloading


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def serving(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder in place of the user's cache; 127.0.0.1 is asked directly."""
    monkeypatch.setattr(backbones, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(clip._download, "__defaults__", (str(tmp_path / "cache"),))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)
    return tmp_path / "cache"


def offered(folder, model, digest=None):
    """Saves weights as `<folder>/<sha256>/ViT-S-99.pt`; returns that path below the folder."""
    torch.save(model.state_dict(), folder / "saved.pt")
    content = (folder / "saved.pt").read_bytes()
    digest = digest or hashlib.sha256(content).hexdigest()
    (folder / digest).mkdir()
    (folder / digest / "ViT-S-99.pt").write_bytes(content)
    return f"{digest}/ViT-S-99.pt"


def test_download_is_checked_and_kept(random_clip, tmp_path, cache, monkeypatch):
    model = random_clip()
    with serving(tmp_path) as address:
        monkeypatch.setitem(clip._MODELS, "ViT-S/99", f"{address}/{offered(tmp_path, model)}")
        check_same(load_clip("ViT-S/99"), model.state_dict())
    assert (cache / "ViT-S-99.pt").is_file()
    check_same(load_clip("ViT-S/99"), model.state_dict())  # the server is gone


@pytest.mark.parametrize("failure", ["refused", "checksum", "not found"])
def test_failed_download_says_what_to_put_where(random_clip, tmp_path, cache, monkeypatch, failure):
    with serving(tmp_path) as address:
        url = f"{address}/{offered(tmp_path, random_clip(), digest='0' * 64)}"
        if failure == "not found":
            url = url.replace("000/", "001/")
        monkeypatch.setitem(clip._MODELS, "ViT-S/99", url)
        if failure != "refused":
            with pytest.raises(OSError) as error:
                load_clip("ViT-S/99")
    if failure == "refused":
        with pytest.raises(OSError) as error:
            load_clip("ViT-S/99")
    message = one_line(error)
    assert message and str(cache / "ViT-S-99.pt") in message and url in message and "MODEL.BACKBONE.NAME" in message


def test_download_as_other_trainers_call_it(random_clip, tmp_path, cache):
    """Trainers written for CoOp's own copy of CLIP call clip._download(url)."""
    with serving(tmp_path) as address:
        path = clip._download(f"{address}/{offered(tmp_path, random_clip())}")
    assert Path(path).read_bytes() == (tmp_path / "saved.pt").read_bytes()
