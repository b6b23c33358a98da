"""OrthCR's fast rotations against the formulation that they replace: one solve, and autograd through R x."""

import pytest
import torch
from orthcr_tools import orthogonal, turn
from torch.nn import functional as F

from trainers.shared import rotations
from trainers.shared.rotations import TOLERANCE, Rotation, cayley, invert_by_quarters, rotate, rotated_linear

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
SIZES = [2, 3, 16, 33, 64, 96, 128]


def solved(upper, b):
    """R by one solve, without anything else."""
    row, col = torch.triu_indices(b, b, offset=1)
    q = upper.new_zeros(len(upper), b, b)
    q[:, row, col] = upper
    q, eye = q - q.mT, torch.eye(b, dtype=upper.dtype)
    return torch.linalg.solve(eye + q, eye - q)


def random_upper(noise, m, b, dtype, seed=0, scale=0.2):
    return (scale * noise(m, b * (b - 1) // 2, seed=seed)).to(dtype)


def assert_near(given, wanted, limit):
    """Up to `limit` of the largest entry."""
    torch.testing.assert_close(given, wanted, atol=limit * float(wanted.detach().abs().max()), rtol=0)


# ------------------------------------------------------------------ (1) Cayley


@pytest.mark.parametrize("b", [1, *SIZES])
def test_the_inverse_by_quarters(b, noise):
    skew, root = noise(4, b, b, seed=b).double(), noise(4, b, b, seed=b + 1).double()
    matrices = torch.eye(b) + root @ root.mT / b + skew - skew.mT  # the symmetric part is no smaller than I
    torch.testing.assert_close(invert_by_quarters(matrices), torch.linalg.inv(matrices), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("b", SIZES)
def test_r_and_its_gradient_are_those_of_the_solve(b, dtype, exact, noise):
    upper, direction = random_upper(noise, 3, b, dtype).requires_grad_(), noise(3, b, b, seed=1).to(dtype)
    given, wanted = cayley(upper, b, exact), solved(upper, b)
    assert_near(given, wanted, LIMITS[dtype])
    grads = [torch.autograd.grad((r * direction).sum(), upper)[0] for r in (given, wanted)]
    assert_near(*grads, LIMITS[dtype])


@pytest.mark.parametrize("exact", [True, False])
def test_gradient_of_cayley(noise, exact):
    upper = random_upper(noise, 2, 34, torch.float64, scale=0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: cayley(u, 34, exact), upper, fast_mode=True)


@pytest.mark.parametrize("b", SIZES)
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
def test_the_fast_way_is_orthogonal_to_the_tolerance(b, scale, noise):
    r = cayley(random_upper(noise, 8, b, torch.float32, scale=scale), b, exact=False).double()
    assert (r.mT @ r - torch.eye(b)).abs().max() < TOLERANCE


# ------------------------------------------------------------------ W R x


def rotated(x, r, weight, bias):
    return rotated_linear(Rotation(r), x, weight, bias)


def by_autograd(x, r, weight, bias):
    return F.linear(rotate(x.flatten(0, -2), r.mT).view(x.shape), weight, bias)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("rows, outputs", [((2, 5), 19), ((2, 5), 20), ((64,), 20), ((1, 3, 2), 40)])
@pytest.mark.parametrize("m, b", [(3, 4), (1, 12), (2, 64)])
def test_a_rotated_map_and_its_gradients(rows, outputs, m, b, dtype, noise):
    """Both ways: of fewer and of more outputs than twice the rows."""
    x = noise(*rows, m * b).to(dtype).requires_grad_()
    upper = random_upper(noise, m, b, dtype, seed=1).requires_grad_()
    weight, bias = noise(outputs, m * b, seed=2).to(dtype), noise(outputs, seed=3).to(dtype)
    direction, results = noise(*rows, outputs, seed=4).to(dtype), []
    for linear in (rotated, by_autograd):
        y = linear(x, cayley(upper, b), weight, bias)
        results.append([y, *torch.autograd.grad((y * direction).sum(), [x, upper])])
    for given, wanted in zip(*results, strict=True):
        assert_near(given, wanted, LIMITS[dtype])


@pytest.mark.parametrize("outputs", [5, 40])
def test_gradients_of_a_rotated_map_are_its_differences(outputs, noise):
    x, upper = noise(2, 4, 8).double().requires_grad_(), random_upper(noise, 2, 4, torch.float64).requires_grad_()
    weight, bias = noise(outputs, 8, seed=2).double(), noise(outputs, seed=3).double()
    assert torch.autograd.gradcheck(lambda x, u: rotated(x, cayley(u, 4), weight, bias), (x, upper))


@pytest.mark.parametrize("outputs", [5, 40])
def test_without_a_gradient_of_x_the_rotation_has_its_own(outputs, noise):
    x, upper = noise(2, 4, 8).double(), random_upper(noise, 2, 4, torch.float64).requires_grad_()
    weight, bias = noise(outputs, 8, seed=2).double(), noise(outputs, seed=3).double()
    given, wanted = (
        torch.autograd.grad(linear(x, cayley(upper, 4), weight, bias).square().sum(), upper)[0]
        for linear in (rotated, by_autograd)
    )
    assert_near(given, wanted, 1e-10)


@pytest.mark.parametrize("outputs", [5, 40])
def test_a_rotated_map_under_autocast(outputs, noise):
    x, upper = noise(2, 4, 16).requires_grad_(), random_upper(noise, 2, 8, torch.float32).requires_grad_()
    weight, bias = noise(outputs, 16, seed=2), noise(outputs, seed=3)
    wanted, r = rotated(x, cayley(upper, 8), weight, bias), cayley(upper, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = rotated(x, r, weight, bias)
    assert given.dtype == torch.bfloat16 and not torch.equal(given.float(), wanted)
    assert_near(given.float(), wanted, 0.02)
    grads = [torch.autograd.grad(y.float().square().sum(), [x, upper]) for y in (given, wanted)]
    for a, b in zip(*grads, strict=True):
        assert a.dtype == torch.float32
        assert_near(a, b, 0.05)


def test_every_rotation_is_computed_once_a_step(random_clip, noise, monkeypatch):
    model, batches = orthogonal(random_clip(), BLOCK_SIZE=64).train(), []
    monkeypatch.setattr(rotations, "cayley", lambda u, b, exact: batches.append((len(u), exact)) or cayley(u, b, exact))
    model.all_logits(noise(2, 3, 32, 32))
    assert sum(m for m, _ in batches) == 2 * (5 * 2 + 8) + 3 * (5 * 1 + 4), "of the image and of the text encoder"
    assert max(m for m, _ in batches) * 64 * 64 * 4 <= rotations.CACHE and not any(exact for _, exact in batches)


def test_a_weight_is_merged_once_a_step_and_only_where_it_pays(noise, monkeypatch):
    calls, rotate_t = [], rotations.rotate_t
    monkeypatch.setattr(rotations, "rotate_t", lambda rows, *r: calls.append(len(rows)) or rotate_t(rows, *r))
    rotation, weight, bias = Rotation(cayley(random_upper(noise, 2, 4, torch.float32), 4)), noise(6, 8), noise(6)
    for n in (5, 3, 4):  # of a prefix, of the suffixes, of a chunk of classes
        rotated_linear(rotation, noise(n, 8), weight, bias)
    assert calls == [6, 3], "the weight of 6 rows, once, and the 3 vectors"


# ------------------------------------------------------------------ exact where a check asks for it


def test_the_check_goes_by_the_weights_alone(random_clip):
    model = turn(orthogonal(random_clip(), BLOCK_SIZE=64), 0.3)
    rotations, names = model.rotations, list(model.places)
    for scale, exact in ((1, False), (100, True), (0.01, False), (float("nan"), True)):
        with torch.no_grad():
            for upper in rotations.parameters():
                upper *= scale
        error = rotations.decide_exact()
        assert rotations.exact == exact and (not error <= TOLERANCE) == exact
        if scale == 100:
            for r in rotations(names).values():  # as in training, with gradients
                assert r.requires_grad and (r.mT @ r - torch.eye(64)).abs().max() < 1e-6


def test_merged_weights_are_exact_whatever_the_check_said(random_clip):
    plain = random_clip()
    model = turn(orthogonal(plain, BLOCK_SIZE=64, ENCODERS=["image"]), 100.0)
    assert not model.rotations.exact
    for name, after in model.merge_weights("image")["image"].items():
        before = plain.visual.get_parameter(name).double()
        torch.testing.assert_close(after.double().norm(dim=1), before.norm(dim=1), atol=0, rtol=5e-6)


def test_the_log_says_when_they_are_exact_and_when_not(make_trainer, capsys):
    trainer, said = make_trainer("TRAINER.ORTHCR.LAYERS", "[-1]"), "Newton-Schulz steps per rotation from this epoch on"
    trainer.before_epoch()
    assert said not in capsys.readouterr().out
    turn(trainer.model, 30.0)
    trainer.epoch = 6
    trainer.before_epoch()
    trainer.before_epoch()
    log = capsys.readouterr().out
    assert log.count(said) == 1 and log.startswith("epoch 7: |R^T R - I| is ") and f": two {said}" in log
    turn(trainer.model, 0.1)
    trainer.before_epoch()
    assert f": no {said}" in capsys.readouterr().out
