"""OrthCR: equation (1) of trainers/orthcr.py against NumPy, and its invariants on really trained weights."""

import copy

import numpy as np
import pytest
import torch
from orthcr_tools import (
    BOTH,
    NAMES,
    SHAPES_OF,
    as64,
    block_diagonal,
    orthogonal,
    overwritten,
    plain_features,
    prompts_of,
    textbook,
    turn,
)

from trainers.orthcr import hyperspherical_energy
from trainers.shared.rotations import cayley, rotate
from trainers.shared.weights import WEIGHTS

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
    state, merged = plain.state_dict(), model.merge_weights()
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
    rotated, state, seen = model.merge_weights(), plain.state_dict(), 0
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
        for which, weights in model.merge_weights().items():
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
    wanted = plain_features(overwritten(plain, model.merge_weights()), image, prompts_of(NAMES))
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            for given, features in zip((model.encode_image(image), model.encode_text()), wanted, strict=True):
                np.testing.assert_allclose(as64(given), features, atol=2e-6)
            logits = np.exp(float(plain.logit_scale)) * wanted[0] @ wanted[1].T
            np.testing.assert_allclose(as64(model(image)), logits, atol=5e-5)
    assert all(torch.equal(t, before[name]) for name, t in plain.state_dict().items()), "CLIP itself was changed"


def test_merged_weights_carry_no_gradient(random_clip):
    merged = turn(orthogonal(random_clip())).merge_weights()
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
    rotated = model.merge_weights()
    for which in BOTH:
        of_blocks = {int(name.split(".")[2]) for name in rotated[which]}
        assert of_blocks == set(blocks[which] if which in encoders else [])


@pytest.mark.parametrize("layers, encoders", [([2], ["image"]), ([-3], ["image"]), ([3], ["text"]), ([2], BOTH)])
def test_layer_that_is_not_there(random_clip, layers, encoders):
    with pytest.raises(ValueError, match=r"LAYERS") as error:
        orthogonal(random_clip(), LAYERS=layers, ENCODERS=encoders)
    assert str(layers[0]) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "b, width, encoders", [(48, 128, BOTH), (256, 128, BOTH), (7, 128, BOTH), (128, 64, BOTH), (48, 128, ["image"])]
)
def test_block_size_that_does_not_divide(random_clip, b, width, encoders):
    """The sizes offered fit all places: the text encoder, if it is tuned, is narrower."""
    with pytest.raises(ValueError, match=rf"BLOCK_SIZE {b} does not divide the {width} inputs") as error:
        orthogonal(random_clip(), BLOCK_SIZE=b, ENCODERS=encoders)
    offered = [int(n) for n in str(error.value).split("[")[1].split("]")[0].split(",")]
    assert offered == [16, 32, 64] + [128] * (encoders != BOTH) and "\n" not in str(error.value)
    for size in offered:
        orthogonal(random_clip(), BLOCK_SIZE=size, ENCODERS=encoders)


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
        ("PREC", "fp64"),
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
    for which, weights in model.merge_weights().items():
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


def test_monitor_writes_its_figures(make_trainer, take_steps, monkeypatch):
    for monitor in (True, False):
        trainer = make_trainer("TRAINER.ORTHCR.MONITOR", monitor, "OPTIM.LR", 0.01, out=f"monitor{monitor}")
        take_steps(trainer)
        written = {}
        monkeypatch.setattr(trainer, "write_scalar", lambda tag, *rest, w=written: w.update({tag: rest}))
        trainer.after_epoch()
        turned = [written.pop(f"orthcr/rotation_degrees_{which}", (0, 1))[0] for which in ("mean", "max")]
        assert turned == (list(trainer.model.degrees().values()) if monitor else [0, 0])
        assert set(written) == ({"orthcr/orthogonality_error", "orthcr/energy_drift"} if monitor else set())
        assert all(0 <= value < 1e-6 and step == 1 for value, step in written.values())
