"""OrthCR: equations (1) and (2) of trainers/orthcr.py against NumPy, and their invariants on real trained weights."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip import clip
from clip.model import LayerNorm
from torch.nn import functional as F

from dassl.utils import set_random_seed
from trainers.orthcr import REGULARIZERS, OrthogonalCLIP, cayley, hyperspherical_energy, regularizer, rotate
from trainers.shared.weights import WEIGHTS

NAMES = ["red circle", "dark_blue striped heart", "x"]
TEMPLATE = "a photo of a {}."
BOTH = ["image", "text"]
SHAPES_OF = {"image": ("visual.", 128, 2), "text": ("", 64, 3)}  # of the random ViT: prefix, width, blocks


def node(**changes):
    return SimpleNamespace(**{"ENCODERS": BOTH, "LAYERS": [], "WEIGHTS": WEIGHTS, "BLOCK_SIZE": 16, **changes})


def orthogonal(model, **changes):
    return OrthogonalCLIP(node(**changes), model, NAMES, TEMPLATE)


def turn(model, scale=0.3, only=lambda name: True, seed=1):
    """Random Q for the rotations whose name `only` accepts."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, upper in model.rotations.upper.items():
            if only(name):
                upper.copy_(scale * torch.randn(upper.shape, generator=gen))
    return model


def textbook(upper, b):
    """[R_1 ... R_m] by the formula in fp64: Q entry by entry, a plain inverse."""
    out = []
    for row in np.asarray(upper, dtype=np.float64):
        q, entries = np.zeros((b, b)), iter(row)
        for i in range(b):
            for j in range(i + 1, b):
                q[i, j] = next(entries)
                q[j, i] = -q[i, j]
        out.append(np.linalg.inv(np.eye(b) + q) @ (np.eye(b) - q))
    return np.stack(out)


def block_diagonal(blocks):
    m, b, _ = blocks.shape
    out = np.zeros((m * b, m * b))
    for k, block in enumerate(blocks):
        out[k * b : (k + 1) * b, k * b : (k + 1) * b] = block
    return out


def as64(tensor):
    return tensor.detach().double().numpy()


def plain_features(model, image, text):
    """Unit-length features of a plain CLIP by OpenAI's own methods, the text with all of its 77 tokens."""
    with torch.no_grad():
        pair = model.encode_image(image), model.encode_text(text)
    return [as64(x / x.norm(dim=-1, keepdim=True)) for x in pair]


def prompts_of(names, template=TEMPLATE):
    return clip.tokenize([template.format(name.replace("_", " ")) for name in names])


def overwritten(model, merged):
    """A copy of a plain CLIP with merged weights written into its state dict."""
    model = copy.deepcopy(model)
    state = model.state_dict()
    for which, weights in merged.items():
        for name, weight in weights.items():
            key = SHAPES_OF[which][0] + name
            assert state[key].shape == weight.shape
            state[key] = weight
    model.load_state_dict(state, strict=True)
    return model


# ------------------------------------------------------------------ (1) Cayley

SIZES = [2, 3, 16, 64, 128, 256]


LARGE = [(b, 100.0, torch.float32, 1e-6) for b in SIZES]


@pytest.mark.parametrize(
    "b, scale, dtype, limit",
    LARGE
    + [
        (b, scale, dtype, limit)
        for b in SIZES
        for scale, dtype, limit in [
            (1e-3, torch.float32, 1e-6),
            (1.0, torch.float32, 1e-6),
            (1.0, torch.float64, 1e-12),
            (100.0, torch.float64, 1e-12),
        ]
    ],
)
def test_r_is_orthogonal_with_determinant_one(b, scale, dtype, limit):
    gen = torch.Generator().manual_seed(b)
    upper = scale * (2 * torch.rand(3, b * (b - 1) // 2, generator=gen, dtype=dtype) - 1)
    r = cayley(upper, b)
    assert r.dtype == dtype and r.shape == (3, b, b)
    r = as64(r)
    assert np.abs(r.transpose(0, 2, 1) @ r - np.eye(b)).max() < limit
    assert np.abs(r @ r.transpose(0, 2, 1) - np.eye(b)).max() < limit
    np.testing.assert_allclose(np.linalg.det(r), 1, atol=max(limit * b, 1e-10))


@pytest.mark.parametrize("b", SIZES)
@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_r_is_the_textbook_cayley(b, scale, noise):
    upper = scale * noise(2, b * (b - 1) // 2, seed=b)
    np.testing.assert_allclose(as64(cayley(upper.double(), b)), textbook(upper, b), atol=1e-10)
    if scale < 1:  # well-conditioned: fp32 too gives the same rotation, not only some rotation
        np.testing.assert_allclose(as64(cayley(upper, b)), textbook(upper, b), atol=2e-6)


def test_cayley_of_a_plane_is_a_turn_by_twice_the_arc_tangent():
    t = 0.7
    angle = 2 * np.arctan(t)
    wanted = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(cayley(torch.tensor([[t]], dtype=torch.float64), 2)[0].numpy(), wanted, atol=1e-15)


@pytest.mark.parametrize("b", [*SIZES, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_rotation_at_zero_is_exact(b, dtype):
    r = cayley(torch.zeros(2, b * (b - 1) // 2, dtype=dtype), b)
    assert torch.equal(r, torch.eye(b, dtype=dtype).expand(2, b, b))


@pytest.mark.parametrize("b", [2, 3, 6])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_gradient_of_cayley(b, scale, noise):
    upper = (scale * noise(2, b * (b - 1) // 2).double()).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: cayley(u, b), upper)


def test_gradient_of_cayley_is_that_of_the_textbook(noise):
    b, direction = 16, noise(3, 16, 16, seed=2).double()
    upper = noise(3, 120).double().requires_grad_()
    row, col = np.triu_indices(b, 1)
    places, eye = (torch.arange(3)[:, None], torch.tensor(row), torch.tensor(col)), torch.eye(b, dtype=torch.float64)
    q = torch.zeros(3, b, b, dtype=torch.float64).index_put(places, upper)
    q = q - q.mT
    (wanted,) = torch.autograd.grad((torch.linalg.inv(eye + q) @ (eye - q) * direction).sum(), upper)
    (given,) = torch.autograd.grad((cayley(upper, b) * direction).sum(), upper)
    torch.testing.assert_close(given, wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("m, b", [(1, 6), (3, 2), (4, 16)])
def test_rotate_is_the_product_with_the_block_diagonal(m, b, noise):
    weight, r = noise(5, m * b).double(), noise(m, b, b, seed=1).double()
    np.testing.assert_allclose(rotate(weight, r).numpy(), weight.numpy() @ block_diagonal(r.numpy()), atol=1e-12)


# ------------------------------------------------------------------ the start is CLIP itself


@pytest.mark.parametrize("encoders", [["image"], ["text"], BOTH], ids="+".join)
@pytest.mark.parametrize("b", [0, 2, 16, 64])
def test_at_the_start_every_weight_is_bitwise_clips(random_clip, noise, encoders, b):
    plain = random_clip()
    model = orthogonal(plain, ENCODERS=encoders, BLOCK_SIZE=b)
    state, merged = plain.state_dict(), model.merged()
    for which in BOTH:
        prefix, _, blocks = SHAPES_OF[which]
        assert len(merged[which]) == (4 * blocks if which in encoders else 0)
        for name, weight in merged[which].items():
            assert torch.equal(weight, state[prefix + name]), name

    image = noise(4, 3, 32, 32)
    f, g = plain_features(plain, image, prompts_of(NAMES))
    wanted = np.exp(float(plain.logit_scale)) * f @ g.T
    logits = [*model.all_logits(image), model(image)]
    with torch.no_grad():
        logits.append(model.eval()(image))
    for given in logits:
        assert given.dtype == torch.float32
        np.testing.assert_allclose(as64(given), wanted, atol=2e-5)
    for given in logits[:3]:
        torch.testing.assert_close(given, logits[3], atol=1e-6 * 100, rtol=1e-6)


@pytest.mark.parametrize("b", [0, 16])
def test_at_the_start_the_tiny_clip_answers_as_without_rotations(tiny, noise, b):
    image = noise(6, 3, 32, 32)
    f, g = plain_features(tiny, image, prompts_of(NAMES))
    with torch.no_grad():
        z, *_, z_0 = orthogonal(tiny, BLOCK_SIZE=b).eval().all_logits(image)
    assert torch.equal(z, z_0)
    np.testing.assert_allclose(as64(z), np.exp(float(tiny.logit_scale)) * f @ g.T, atol=1e-4)


# ------------------------------------------------------------------ what is rotated, and how


@pytest.mark.parametrize("b", [0, 16])
def test_every_rotated_weight_is_w_times_the_block_diagonal(random_clip, b):
    plain = random_clip()
    model = turn(orthogonal(plain, BLOCK_SIZE=b))
    rotated, state, seen = model.merged(), plain.state_dict(), 0
    for which in BOTH:
        prefix, width, blocks = SHAPES_OF[which]
        for i in range(blocks):
            block = f"transformer.resblocks.{i}."
            for kind in WEIGHTS:
                rows = slice(None)
                if kind in "qkv":
                    start = "qkv".index(kind) * width
                    parameter, rows = "attn.in_proj_weight", slice(start, start + width)
                else:
                    parameter = "attn.out_proj.weight" if kind == "out" else f"mlp.{kind}.weight"
                before = as64(state[prefix + block + parameter])[rows]
                upper = model.rotations.upper[f"{which}_{i}_{kind}"].detach()
                wanted = before @ block_diagonal(textbook(upper, b or before.shape[1]))
                np.testing.assert_allclose(as64(rotated[which][block + parameter])[rows], wanted, atol=5e-6)
                assert np.abs(wanted - before).max() > 1e-2
                seen += 1
        assert len(rotated[which]) == 4 * blocks
    assert seen == len(model.rotations.upper) == 6 * 5


@pytest.mark.parametrize("chosen", ["q", "k", "v"])
def test_q_k_and_v_turn_independently(random_clip, chosen):
    plain = random_clip()
    for model in (orthogonal(plain, WEIGHTS=[chosen]), orthogonal(plain)):
        turn(model, only=lambda name: name.endswith("_" + chosen))
        for which, weights in model.merged().items():
            prefix, width, _ = SHAPES_OF[which]
            for name, weight in weights.items():
                before = plain.state_dict()[prefix + name]
                assert weight.shape == before.shape
                if "in_proj" not in name:
                    assert torch.equal(weight, before), name
                    continue
                for kind, after, was in zip("qkv", weight.split(width), before.split(width), strict=True):
                    moved = (after - was).abs().max() > 1e-2
                    assert moved if kind == chosen else torch.equal(after, was), (name, kind)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("which", BOTH)
def test_each_kind_of_weight_has_an_effect(random_clip, noise, which, kind):
    """`out` too: wrapping the out_proj module would be ignored by nn.MultiheadAttention."""
    plain, image = random_clip(), noise(3, 3, 32, 32)
    wanted = plain_features(plain, image, prompts_of(NAMES))
    model = turn(orthogonal(plain, ENCODERS=[which], WEIGHTS=[kind], LAYERS=[0]))
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            features = {"image": model.encode_image(image), "text": model.encode_text()}
        for (name, given), frozen in zip(features.items(), wanted, strict=True):
            change = np.abs(as64(given) - frozen).max()
            assert change > 1e-3 if name == which else change < 1e-6, (name, change)


@pytest.mark.parametrize(
    "changes", [{}, {"BLOCK_SIZE": 0}, {"ENCODERS": ["text"], "LAYERS": [-1]}, {"WEIGHTS": ["v", "out"]}]
)
def test_called_with_rotated_weights_is_a_clip_that_has_them(random_clip, noise, changes):
    plain, image = random_clip(), noise(4, 3, 32, 32)
    before = copy.deepcopy(plain.state_dict())
    model = turn(orthogonal(plain, **changes))
    wanted = plain_features(overwritten(plain, model.merged()), image, prompts_of(NAMES))
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            for given, features in zip((model.encode_image(image), model.encode_text()), wanted, strict=True):
                np.testing.assert_allclose(as64(given), features, atol=2e-6)
            logits = np.exp(float(plain.logit_scale)) * wanted[0] @ wanted[1].T
            np.testing.assert_allclose(as64(model(image)), logits, atol=5e-5)
    assert all(torch.equal(t, before[name]) for name, t in plain.state_dict().items()), "CLIP itself was changed"


def test_merged_weights_carry_no_gradient(random_clip):
    merged = turn(orthogonal(random_clip())).merged()
    assert not any(w.requires_grad for weights in merged.values() for w in weights.values())


@pytest.mark.parametrize("encoders", [["image"], ["text"], BOTH, ["text", "image"]], ids="+".join)
@pytest.mark.parametrize(
    "layers, image, text",
    [
        ([], [0, 1], [0, 1, 2]),
        ([-1], [1], [2]),
        ([0, -1], [0, 1], [0, 2]),
        ([1, -1], [1], [1, 2]),
        ([-2, 0], [0], [0, 1]),
    ],
)
def test_chosen_encoders_and_layers(random_clip, encoders, layers, image, text):
    model = orthogonal(random_clip(), ENCODERS=encoders, LAYERS=layers, WEIGHTS=["q", "c_proj"])
    blocks = {"image": image, "text": text}
    wanted = {f"{which}_{i}_{kind}" for which in encoders for i in blocks[which] for kind in ("q", "c_proj")}
    assert set(model.rotations.upper) == wanted
    rotated = model.merged()
    for which in BOTH:
        of_blocks = {int(name.split(".")[2]) for name in rotated[which]}
        assert of_blocks == set(blocks[which] if which in encoders else [])


@pytest.mark.parametrize("layers, encoders", [([2], ["image"]), ([-3], ["image"]), ([3], ["text"]), ([2], BOTH)])
def test_layer_that_is_not_there(random_clip, layers, encoders):
    with pytest.raises(ValueError, match=r"LAYERS") as error:
        orthogonal(random_clip(), LAYERS=layers, ENCODERS=encoders)
    assert str(layers[0]) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("b, width", [(48, 128), (256, 128), (7, 128)])
def test_block_size_that_does_not_divide(random_clip, b, width):
    with pytest.raises(ValueError, match=rf"BLOCK_SIZE {b} does not divide the {width} inputs") as error:
        orthogonal(random_clip(), BLOCK_SIZE=b)
    offered = [int(n) for n in str(error.value).split("[")[1].split("]")[0].split(",")]
    assert offered == [16, 32, 64, 128] and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("BLOCK_SIZE", 1),
        ("BLOCK_SIZE", -4),
        ("LAMBDA", -0.1),
        ("TAU", 0.0),
        ("ENCODERS", []),
        ("ENCODERS", ["vision"]),
        ("WEIGHTS", []),
        ("WEIGHTS", ["qkv"]),
        ("REG", "kl"),
        ("PREC", "fp16"),
        ("BLOCK_SIZE", 48),
        ("LAYERS", [9]),
    ],
)
def test_settings_that_make_no_sense_are_refused(make_trainer, key, value):
    with pytest.raises(ValueError) as error:
        make_trainer(f"TRAINER.ORTHCR.{key}", value)
    assert "\n" not in str(error.value)


def test_resnet_has_no_blocks_to_rotate(make_trainer, random_clip, tmp_path, take_steps):
    path = tmp_path / "resnet.pt"
    torch.save(random_clip("resnet").state_dict(), path)
    opts = ["MODEL.BACKBONE.NAME", path, "INPUT.SIZE", "(64, 64)"]
    with pytest.raises(ValueError, match=r"ResNet.*no transformer blocks.*ENCODERS") as error:
        make_trainer(*opts)
    assert "\n" not in str(error.value)
    trainer = make_trainer(*opts, "TRAINER.ORTHCR.ENCODERS", "['text']", "OPTIM.LR", 0.05)
    names = list(trainer.model.rotations.upper)
    assert all(name.startswith("text_") for name in names) and len(names) == 18
    before = trainer.model.encode_text()
    frozen = copy.deepcopy(trainer.model.image_encoder.state_dict())  # BatchNorm's running means among them
    take_steps(trainer, 2)
    assert (trainer.model.encode_text() - before).abs().max() > 1e-3
    assert all(torch.equal(t, frozen[k]) for k, t in trainer.model.image_encoder.state_dict().items())


# ------------------------------------------------------------------ invariants on really trained weights


@pytest.mark.parametrize("b, reg", [(64, "cross_kl"), (16, "none"), (0, "self_kl")])
def test_training_keeps_norms_angles_and_singular_values(make_trainer, take_steps, tiny, b, reg):
    trainer = make_trainer("TRAINER.ORTHCR.BLOCK_SIZE", b, "TRAINER.ORTHCR.REG", reg, "OPTIM.LR", 0.05)
    steps = take_steps(trainer, 3)
    assert all(np.isfinite(step["loss"]) for step in steps)
    model, state, compared = trainer.model, tiny.state_dict(), 0
    for which, weights in model.merged().items():
        for name, after in weights.items():
            before = as64(state[SHAPES_OF[which][0] + name])
            parts = 3 if "in_proj" in name else 1
            for was, now in zip(np.split(before, parts), np.split(as64(after), parts), strict=True):
                assert np.linalg.norm(now - was) > 0.05 * np.linalg.norm(was), f"{name} has hardly moved"
                spectrum = np.linalg.svd(was, compute_uv=False)
                np.testing.assert_allclose(np.linalg.svd(now, compute_uv=False), spectrum, atol=5e-6 * spectrum[0])
                lengths = [np.linalg.norm(x, axis=1) for x in (was, now)]
                np.testing.assert_allclose(lengths[1], lengths[0], rtol=5e-6)
                cosines = [x @ x.T / np.outer(n, n) for x, n in zip((was, now), lengths, strict=True)]
                np.testing.assert_allclose(cosines[1], cosines[0], atol=5e-6)
                compared += 1
    assert compared == len(model.rotations.upper) > 30
    error, energy = model.drift()
    assert 0 < error < 1e-6 and 0 <= energy < 1e-6


def test_drift_is_zero_at_the_start_and_shows_what_is_no_rotation(random_clip, noise):
    model = orthogonal(random_clip())
    assert model.drift() == (0.0, 0.0)
    turn(model, 3.0)
    error, energy = model.drift()
    assert 0 < error < 1e-5 and 0 <= energy < 1e-5
    right = model.rotations.forward
    model.rotations.forward = lambda names: {n: r + 0.1 * noise(*r.shape) for n, r in right(names).items()}
    error, energy = model.drift()
    assert error > 0.1 and energy > 1e-4


def test_drift_shows_a_single_wrong_block(random_clip):
    model = orthogonal(random_clip())
    right = model.rotations.forward

    def one_wrong(names):
        rotations = {name: r.clone() for name, r in right(names).items()}
        rotations["text_1_v"][2, 3, 3] = 1.25
        return rotations

    model.rotations.forward = one_wrong
    error, energy = model.drift()
    assert error == pytest.approx(1.25**2 - 1) and energy > 1e-5


def test_drift_does_not_call_nan_perfect(random_clip):
    model = orthogonal(random_clip())
    with torch.no_grad():
        model.rotations.upper["image_1_q"].fill_(float("nan"))
    error, energy = model.drift()
    assert not (error < 1e-3) and not (energy < 1e-3)


@pytest.mark.parametrize("rows", [2, 20, 530])
def test_hyperspherical_energy_is_a_double_loop(rows, noise):
    weight = noise(rows, 8, seed=rows)
    unit = as64(weight)[:512]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    energy = 0.0
    for i in range(len(unit)):
        for j in range(i):
            energy += 1 / np.sqrt(((unit[i] - unit[j]) ** 2).sum())
    assert hyperspherical_energy(weight) == pytest.approx(energy, rel=1e-9)


def test_monitor_writes_both_figures(make_trainer, take_steps, monkeypatch):
    for monitor in (True, False):
        trainer = make_trainer("TRAINER.ORTHCR.MONITOR", monitor, "OPTIM.LR", 0.01, out=f"monitor{monitor}")
        take_steps(trainer)
        written = {}
        monkeypatch.setattr(trainer, "write_scalar", lambda tag, *rest, w=written: w.update({tag: rest}))
        trainer.after_epoch()
        assert set(written) == ({"orthcr/orthogonality_error", "orthcr/energy_drift"} if monitor else set())
        assert all(0 <= value < 1e-6 and step == 1 for value, step in written.values())


# ------------------------------------------------------------------ (2) the loss


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def ce(z, label):
    return -np.mean([row[k] for row, k in zip(log_softmax(z), label, strict=True)])


def kl(teacher, student, tau):
    """Mean over the batch of sum_c p log(p / q)."""
    p, q = np.exp(log_softmax(teacher / tau)), np.exp(log_softmax(student / tau))
    return (p * np.log(p / q)).sum(axis=1).mean()


def by_hand(reg, z, z_v, z_t, z_0, label, tau):
    if reg == "cross_kl":
        return (kl(z_0, z_v, tau) + kl(z_0, z_t, tau)) / 2
    return (ce(z_v, label) + ce(z_t, label)) / 2 if reg == "cross_ce" else kl(z_0, z, tau)


@pytest.mark.parametrize("reg", REGULARIZERS[:3])
@pytest.mark.parametrize("tau", [1.0, 0.5, 4.0])
def test_regularizer_by_hand(reg, tau, noise):
    logits = [3 * noise(7, 5, seed=k) for k in range(4)]
    label = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    given = regularizer(reg, *(z.double() for z in logits), label, tau)
    wanted = by_hand(reg, *map(as64, logits), label.tolist(), tau)
    assert given.shape == () and float(given) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(
    "reg, lam, tau",
    [
        ("cross_kl", 4.0, 1.0),
        ("cross_kl", 0.7, 2.0),
        ("cross_ce", 2.0, 1.0),
        ("none", 4.0, 1.0),
        ("self_kl", 4.0, 1.0),
        ("self_kl", 0.0, 1.0),
    ],
)
def test_loss_of_a_training_step_by_hand(make_trainer, tiny, reg, lam, tau):
    """From pixels on: two plain CLIPs, one with the rotated weights written into it, and NumPy for the rest."""
    trainer = make_trainer("TRAINER.ORTHCR.REG", reg, "TRAINER.ORTHCR.LAMBDA", lam, "TRAINER.ORTHCR.TAU", tau)
    turn(trainer.model, 0.05)
    trainer.set_model_mode("train")
    batch = next(iter(trainer.train_loader_x))
    image, label = batch["img"], batch["label"].tolist()
    text = prompts_of(trainer.dm.dataset.classnames)
    f, g = plain_features(overwritten(tiny, trainer.model.merged()), image, text)
    f_0, g_0 = plain_features(tiny, image, text)
    s = np.exp(float(tiny.logit_scale))
    z, z_v, z_t, z_0 = s * f @ g.T, s * f @ g_0.T, s * f_0 @ g.T, s * f_0 @ g_0.T

    terms, logits = trainer.losses(image, batch["label"])
    np.testing.assert_allclose(as64(logits), z, atol=1e-3)
    wanted = {"ce": ce(z, label)}
    if reg != "none":
        for given, by_numpy in zip(trainer.model.all_logits(image), (z, z_v, z_t, z_0), strict=True):
            np.testing.assert_allclose(as64(given), by_numpy, atol=1e-3)
        wanted[reg] = lam * by_hand(reg, z, z_v, z_t, z_0, label, tau)
        assert lam == 0 or wanted[reg] > 1e-3
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(wanted, rel=2e-4, abs=1e-6)

    trainer.batch_idx, trainer.num_batches = 0, 2
    step = trainer.forward_backward(batch)
    assert step["loss"] == pytest.approx(sum(wanted.values()), rel=2e-4)
    assert step["acc"] == pytest.approx(100 * np.mean(z.argmax(axis=1) == label))
    assert set(step) == {"loss", "acc"} | (set(wanted) if reg != "none" else set())


@pytest.mark.parametrize("reg", ["cross_kl", "self_kl"])
def test_kl_at_the_start_is_zero(make_trainer, take_steps, reg):
    assert abs(take_steps(make_trainer("TRAINER.ORTHCR.REG", reg, "TRAINER.ORTHCR.LAMBDA", 1.0))[0][reg]) < 1e-5


def uppers(model, encoder=""):
    return [p for name, p in model.rotations.upper.items() if name.startswith(encoder)]


@pytest.mark.parametrize("encoders", [["image"], ["text"], BOTH], ids="+".join)
def test_frozen_sides_carry_no_gradient(random_clip, noise, encoders):
    model = turn(orthogonal(random_clip(), ENCODERS=encoders)).train()
    z, z_v, z_t, z_0 = model.all_logits(noise(3, 3, 32, 32))
    assert z.requires_grad and not z_0.requires_grad
    assert z_v.requires_grad == ("image" in encoders) and z_t.requires_grad == ("text" in encoders)
    for logits, own in ((z_v, "image"), (z_t, "text")):
        if not logits.requires_grad:
            continue
        for which in encoders:
            grads = torch.autograd.grad(logits[:, 0].sum(), uppers(model, which), retain_graph=True, allow_unused=True)
            assert all((g is not None and bool(g.any())) == (which == own) for g in grads), which


@pytest.mark.parametrize("reg", REGULARIZERS[:3])
def test_gradient_is_that_of_the_loss_with_constant_frozen_features(random_clip, noise, monkeypatch, reg):
    """Against finite differences of the loss by NumPy, in which frozen features are computed once and for all."""
    plain, image, label, tau = random_clip(), noise(4, 3, 32, 32), torch.tensor([0, 2, 1, 1]), 1.5
    model = turn(orthogonal(plain, LAYERS=[-1], WEIGHTS=["v", "c_fc"]), 0.2)
    loss = regularizer(reg, *model.all_logits(image), label, tau)
    loss.backward()
    f_0, g_0 = plain_features(plain, image, prompts_of(NAMES))
    s = np.exp(float(plain.logit_scale))

    monkeypatch.setattr(LayerNorm, "forward", torch.nn.LayerNorm.forward)  # OpenAI's computes in fp32

    def value():
        f, g = plain_features(overwritten(plain, model.merged()).double(), image.double(), prompts_of(NAMES))
        return by_hand(reg, s * f @ g.T, s * f @ g_0.T, s * f_0 @ g.T, s * f_0 @ g_0.T, label.tolist(), tau)

    model.rotations.double()
    model.image_encoder.double()  # W R without fp32's rounding
    model.text_encoder.double()
    for upper in uppers(model):
        direction = noise(*upper.shape, seed=5).double()
        direction *= 1e-4 / direction.norm()
        with torch.no_grad():
            upper += direction
            above = value()
            upper -= 2 * direction
            slope = (above - value()) / 2e-4
            upper += direction
        # the analytic one was computed in fp32
        assert float((upper.grad * direction).sum() / 1e-4) == pytest.approx(slope, rel=2e-3, abs=2e-5)


@pytest.mark.parametrize("reg", REGULARIZERS[:3])
def test_lambda_zero_is_no_regularizer(make_trainer, reg):
    results, batch = [], None
    for name, lam in (("none", 4.0), (reg, 0.0)):
        trainer = make_trainer("TRAINER.ORTHCR.REG", name, "TRAINER.ORTHCR.LAMBDA", lam, out=name)
        turn(trainer.model, 0.02)
        trainer.set_model_mode("train")
        batch = batch or next(iter(trainer.train_loader_x))
        loss = sum(trainer.losses(batch["img"], batch["label"])[0].values())
        results.append((loss, torch.autograd.grad(loss, uppers(trainer.model))))
    (plain, grads), (zero, zero_grads) = results
    assert zero.item() == pytest.approx(plain.item(), rel=1e-6)
    for a, b in zip(grads, zero_grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6 * float(a.abs().max()) + 1e-8)


def test_lambda_weighs_the_gradient(make_trainer):
    """The gradient is linear in lambda."""
    grads, batch = [], None
    for lam in (0.0, 1.0, 3.0):
        trainer = make_trainer("TRAINER.ORTHCR.LAMBDA", lam, out=f"lambda{lam}")
        turn(trainer.model, 0.05)
        batch = batch or next(iter(trainer.train_loader_x))
        trainer.set_model_mode("train")
        loss = sum(trainer.losses(batch["img"], batch["label"])[0].values())
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, uppers(trainer.model))]))
    at_0, at_1, at_3 = grads
    scale = float(at_3.abs().max())
    assert float((at_1 - at_0).abs().max()) > 1e-2 * scale
    torch.testing.assert_close(at_3 - at_0, 3 * (at_1 - at_0), rtol=1e-3, atol=1e-4 * scale)


# ------------------------------------------------------------------ what is trained


@pytest.mark.parametrize(
    "encoders, reg",
    [
        (["image"], "cross_kl"),
        (["text"], "cross_kl"),
        (BOTH, "cross_kl"),
        (BOTH, "cross_ce"),
        (BOTH, "self_kl"),
        (["image"], "none"),
    ],
    ids=str,
)
def test_gradients_reach_every_rotation_and_nothing_else(make_trainer, take_steps, encoders, reg):
    trainer = make_trainer("TRAINER.ORTHCR.ENCODERS", encoders, "TRAINER.ORTHCR.REG", reg, "OPTIM.LR", 0.01)
    trained = {id(p) for p in trainer.model.rotations.parameters()}
    assert len(trained) == len(trainer.model.rotations.upper)
    assert sorted(id(p) for group in trainer.optim.param_groups for p in group["params"]) == sorted(trained)
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if id(p) not in trained}
    before = {name: p.detach().clone() for name, p in trainer.model.rotations.upper.items()}
    take_steps(trainer, 1)
    for name, p in trainer.model.named_parameters():
        if id(p) in trained:
            assert p.requires_grad and p.grad is not None and p.grad.abs().max() > 0, name
            moved = (p.detach() - before[name.rsplit(".", 1)[1]]).abs()
            assert moved.max() > 1e-3, name
        else:
            assert not p.requires_grad and p.grad is None and torch.equal(p, frozen[name]), name


def test_count_of_trained_parameters(random_clip):
    model = orthogonal(random_clip(), BLOCK_SIZE=16)
    inputs = {"image": 2 * (5 * 128 + 512), "text": 3 * (5 * 64 + 256)}
    assert sum(p.numel() for p in model.rotations.parameters()) == sum(inputs.values()) // 16 * (16 * 15 // 2)
    assert all(not p.any() for p in model.rotations.parameters())


def test_equation_one_is_fp32_under_autocast(random_clip, noise):
    model = turn(orthogonal(random_clip()), 1.0)
    wanted, image = model.merged(), noise(2, 3, 32, 32)
    with torch.no_grad():
        exact = model.eval()(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = model.merged()
        with torch.no_grad():
            logits = model.eval()(image)
    assert logits.dtype == torch.float32
    assert 1e-6 < (logits - exact).abs().max() < 0.5, "the encoders themselves do run in bf16"
    for which in BOTH:
        assert all(w.dtype == torch.float32 and torch.equal(w, wanted[which][name]) for name, w in given[which].items())


# ------------------------------------------------------------------ how often things are computed


@pytest.fixture
def count():
    """count(module): a list that grows by one at each call of the module."""

    def attach(module):
        calls = []
        module.register_forward_hook(lambda *_: calls.append(1))
        return calls

    return attach


@pytest.fixture
def many_batches():
    """Options: evaluation in 16 batches."""
    return ["DATALOADER.TEST.BATCH_SIZE", 10]


def test_evaluation_encodes_the_classes_and_rotates_once(make_trainer, take_steps, count, many_batches):
    trainer = make_trainer(*many_batches, "OPTIM.LR", 0.05)
    texts, images = count(trainer.model.text_encoder), count(trainer.model.image_encoder)
    rotations = count(trainer.model.rotations)
    for evaluation in (1, 2):
        trainer.test()
        assert len(texts) == evaluation and len(images) == 16 * evaluation and len(rotations) == 2 * evaluation
    take_steps(trainer)
    texts.clear()
    rotations.clear()
    trainer.test(split="val")
    assert len(texts) == 1 and len(rotations) == 2


@pytest.mark.parametrize("encoders, a_step", [(BOTH, 1), (["text"], 1), (["image"], 0)], ids=str)
@pytest.mark.parametrize("reg", ["cross_kl", "none"])
def test_frozen_text_is_encoded_when_it_is_first_needed_and_never_again(
    make_trainer, take_steps, count, encoders, a_step, reg
):
    trainer = make_trainer("TRAINER.ORTHCR.ENCODERS", encoders, "TRAINER.ORTHCR.REG", reg)
    calls, frozen = count(trainer.model.text_encoder), reg != "none" or "text" not in encoders
    take_steps(trainer, 3)
    assert len(calls) == 3 * a_step + frozen


@pytest.mark.parametrize(
    "reg, encoders, passes", [("cross_kl", BOTH, 2), ("cross_kl", ["text"], 1), ("none", BOTH, 1)], ids=str
)
def test_the_frozen_image_side_runs_only_where_needed(make_trainer, take_steps, count, reg, encoders, passes):
    trainer = make_trainer("TRAINER.ORTHCR.REG", reg, "TRAINER.ORTHCR.ENCODERS", encoders)
    images = count(trainer.model.image_encoder)
    take_steps(trainer)
    assert len(images) == passes


def test_evaluation_leaves_no_trace_in_training(make_trainer, take_steps):
    after = []
    for evaluate in (False, True):
        trainer = make_trainer("OPTIM.NAME", "sgd", "OPTIM.LR", 0.02, out=str(evaluate))  # smooth in the gradient
        for step in range(2):
            if evaluate:
                trainer.test()
            set_random_seed(step)
            take_steps(trainer)
        after.append([p.detach().clone() for p in uppers(trainer.model)])
    assert max(float(p.abs().max()) for p in after[0]) > 1e-3
    for a, b in zip(*after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)  # memory's alignment decides over the last bits


def test_evaluation_uses_the_weights_of_the_last_step(make_trainer, take_steps, tiny):
    trainer = make_trainer("OPTIM.LR", 0.05)
    batch = next(iter(trainer.test_loader))
    image, text = batch["img"][:20], prompts_of(trainer.dm.dataset.classnames)
    seen = []
    for _ in range(3):
        trainer.test()
        with torch.no_grad():
            seen.append(trainer.model_inference(image))
        f, g = plain_features(overwritten(tiny, trainer.model.merged()), image, text)
        np.testing.assert_allclose(as64(seen[-1]), np.exp(float(tiny.logit_scale)) * f @ g.T, atol=1e-3)
        take_steps(trainer)
    assert (seen[1] - seen[0]).abs().max() > 0.1 and (seen[2] - seen[1]).abs().max() > 0.1


# ------------------------------------------------------------------ failures


def test_nan_names_its_term_and_changes_nothing(make_trainer, take_steps):
    trainer = make_trainer("OPTIM.LR", 0.05)
    take_steps(trainer, 2)  # AdamW has momentum now: even a zero gradient would move the weights
    before = [p.detach().clone() for p in uppers(trainer.model)]
    state = copy.deepcopy(trainer.optim.state_dict())
    trainer.model.frozen_text[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r'"cross_kl" is nan.*batch 1.*OPTIM\.LR.*PREC fp32') as error:
        take_steps(trainer)
    assert "\n" not in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, uppers(trainer.model), strict=True))
    for key, kept in state["state"].items():
        assert all(torch.equal(value, trainer.optim.state_dict()["state"][key][name]) for name, value in kept.items())


def test_infinite_cross_entropy_names_ce(make_trainer, take_steps):
    trainer = make_trainer()
    trainer.model.logit_scale.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match='"ce" is'):
        take_steps(trainer)
    assert all(not p.any() for p in uppers(trainer.model))


def test_a_checkpoint_brings_back_the_same_classifier(make_trainer, take_steps, noise):
    trainer = make_trainer("OPTIM.LR", 0.05)
    take_steps(trainer, 2)
    trainer.save_model(2, trainer.output_dir)
    other = make_trainer(out="other")
    other.test()  # features of the weights to come must not be kept from here
    other.load_model(trainer.output_dir, epoch=3)
    image = noise(5, 3, 32, 32)
    for t in (trainer, other):
        t.set_model_mode("eval")
    with torch.no_grad():
        assert torch.equal(trainer.model(image), other.model(image))
        assert F.softmax(trainer.model(image), dim=-1).sum(dim=-1) == pytest.approx(1)


def test_a_checkpoint_of_another_block_size_is_refused(make_trainer):
    trainer = make_trainer("TRAINER.ORTHCR.BLOCK_SIZE", 16)
    trainer.save_model(0, trainer.output_dir)
    with pytest.raises(ValueError, match="does not fit") as error:
        make_trainer("TRAINER.ORTHCR.BLOCK_SIZE", 32, out="other").load_model(trainer.output_dir)
    assert "\n" not in str(error.value)
