"""Linear maps that change: rotated activations and merged weights against weights rotated through autograd.

`old_formulation` is how OrthCR was computed before the seam of `encoders.py`: W' = W R by einsum, OpenAI's own forward
pass called with these weights, and a gradient of every W' on the way to that of Q.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from clip import clip
from clip.model import LayerNorm
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from trainers.orthcr import OrthogonalCLIP
from trainers.regularized import REGULARIZERS, regularizer
from trainers.shared.rotations import cayley
from trainers.shared.weights import WEIGHTS, TunedCLIP

NAMES = ["red circle", "dark_blue striped heart", "x"]
PROMPTS = ["a photo of a red circle.", "a photo of a dark blue striped heart.", "a photo of a x."]
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}  # of the largest entry


def node(**changes):
    every = {"ENCODERS": ["image", "text"], "LAYERS": [], "WEIGHTS": WEIGHTS, "BLOCK_SIZE": 16, "N_BLOCKS": 0}
    return SimpleNamespace(**every | changes)


def tuned(plain, dtype=torch.float64, **changes):
    """An OrthogonalCLIP with random rotations, and a copy of the plain CLIP in the same precision."""
    model = OrthogonalCLIP(node(**changes), copy.deepcopy(plain).to(dtype), NAMES, "a photo of a {}.").to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for upper in model.rotations.upper.values():
            upper.copy_(0.1 * torch.randn(upper.shape, generator=generator))
    return model.train(), copy.deepcopy(plain).to(dtype)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


class Text(nn.Module):
    """OpenAI's encode_text as a forward, for functional_call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, text):
        return self.model.encode_text(text)


def old_formulation(model, plain, image, encoders):
    """z, z_v, z_t, z_0 by rotated weights."""
    weights = {"image": {}, "text": {}}
    for name, (encoder, parameter, rows) in model.places.items():
        m, b = model.rotations.sizes[name]
        r = cayley(model.rotations.upper[name], b)
        key = parameter if encoder == "image" else f"model.{parameter}"
        source = plain.visual if encoder == "image" else plain
        whole = weights[encoder].get(key, source.get_parameter(parameter))
        rotated = torch.einsum("omi,mij->omj", whole[rows].reshape(-1, m, b), r).reshape(whole[rows].shape)
        start = rows.start
        weights[encoder][key] = torch.cat([whole[:start], rotated, whole[start + len(rotated) :]])
    text = clip.tokenize(PROMPTS)
    f = unit(functional_call(plain.visual, weights["image"], (image,)))
    g = unit(functional_call(Text(plain), weights["text"], (text,)))
    f_0, g_0 = unit(plain.visual(image)), unit(plain.encode_text(text))
    s = plain.logit_scale.exp()
    return s * f @ g.T, s * f @ g_0.T, s * f_0 @ g.T, s * f_0 @ g_0.T


def loss_of(kind, logits, label):
    z = logits[0]
    terms = [F.cross_entropy(z, label)]
    return sum(terms + ([] if kind == "none" else [0.7 * regularizer(kind, *logits, label, 2.0)]))


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"BLOCK_SIZE": 0},
        {"WEIGHTS": ["k", "c_proj"]},
        {"ENCODERS": ["text"]},
        {"ENCODERS": ["image"], "LAYERS": [-1]},
    ],
    ids=str,
)
def test_a_step_is_that_of_the_old_formulation(random_clip, noise, monkeypatch, dtype, kind, changes):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds fp64 to fp32
    model, plain = tuned(random_clip(), dtype, **changes)
    image, label = noise(4, 3, 32, 32).to(dtype), torch.tensor([0, 2, 1, 1])
    given, wanted = model.all_logits(image), old_formulation(model, plain, image, changes.get("ENCODERS"))
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=LIMITS[dtype] * float(b.detach().abs().max()), rtol=0)
    losses = [loss_of(kind, logits, label) for logits in (given, wanted)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=LIMITS[dtype])
    uppers = list(model.rotations.parameters())
    of_given, of_wanted = (torch.autograd.grad(loss, uppers) for loss in losses)
    largest = max(float(g.abs().max()) for g in of_wanted)
    for a, b in zip(of_given, of_wanted, strict=True):
        assert float(b.abs().max()) > 0
        torch.testing.assert_close(a, b, atol=2 * LIMITS[dtype] * largest, rtol=0)  # sums of up to 512 products more


@pytest.mark.parametrize("changes", [{}, {"BLOCK_SIZE": 0}, {"WEIGHTS": ["q", "v", "out"]}], ids=str)
def test_merged_weights_are_the_changed_maps(random_clip, noise, changes):
    model, _ = tuned(random_clip(), **changes)
    image = noise(4, 3, 32, 32).double()
    with torch.no_grad():
        training, merged = model(image), model.eval()(image)
    torch.testing.assert_close(merged, training, atol=1e-12 * float(training.abs().max()), rtol=0)


def test_no_gradient_of_a_whole_weight_is_formed(random_clip, noise):
    """What is kept for backward are activations, blocks of R and the frozen weights themselves.

    A changed copy only where it has fewer than twice as many rows as there are vectors: shared/rotations.py.
    """
    model, _ = tuned(random_clip(), torch.float32)
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in (model.frozen_weight(name) for name in model.places)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model.encode_image(noise(2, 3, 32, 32))
    copies = [t for t in saved if tuple(t.shape) in shapes and t.untyped_storage().data_ptr() not in frozen]
    assert saved and not copies


class Scaled(TunedCLIP):
    """The smallest change there is: one factor for each place."""

    def __init__(self, clip_model):
        super().__init__(clip_model, NAMES, "a photo of a {}.", node(), "TRAINER.SCALED")
        self.factors = nn.ParameterDict({name: torch.tensor(1.0) for name in self.places})

    def compute_changes(self, names, s=1.0):
        return {name: 1 + s * (self.factors[name] - 1) for name in names}

    def apply_change(self, factor, x, weight, bias):
        return F.linear(factor * x, weight, bias)

    def merge(self, factor, weight):
        return factor * weight


def test_another_method_gives_only_its_change(random_clip, noise):
    model, image = Scaled(random_clip()).train(), noise(3, 3, 32, 32)
    torch.testing.assert_close(model(image), model.logits(model.frozen_image(image), model.frozen_text))
    with torch.no_grad():
        for k, factor in enumerate(model.factors.values()):
            factor.fill_(1 + 0.01 * k)
    trained = model(image)
    trained.sum().backward()
    assert all(factor.grad is not None and factor.grad != 0 for factor in model.factors.values())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), trained.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model.frozen_image(image), unit(random_clip().encode_image(image)))
