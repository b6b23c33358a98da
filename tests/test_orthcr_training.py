"""OrthCR: equation (2) of trainers/regularized.py against NumPy, what is trained, and how often things are computed."""

import copy

import numpy as np
import pytest
import torch
from clip.model import LayerNorm
from orthcr_tools import BOTH, NAMES, as64, orthogonal, overwritten, plain_features, prompts_of, turn
from torch.nn import functional as F

from dassl.utils import set_random_seed
from trainers.regularized import REGULARIZERS, regularizer

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
    f, g = plain_features(overwritten(tiny, trainer.model.merge_weights()), image, text)
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
        f, g = plain_features(overwritten(plain, model.merge_weights()).double(), image.double(), prompts_of(NAMES))
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
    wanted, image = model.merge_weights(), noise(2, 3, 32, 32)
    with torch.no_grad():
        exact = model.eval()(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = model.merge_weights()
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
        assert len(texts) == evaluation and len(images) == 8 * evaluation and len(rotations) == 2 * evaluation
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
        f, g = plain_features(overwritten(tiny, trainer.model.merge_weights()), image, text)
        np.testing.assert_allclose(as64(seen[-1]), np.exp(float(tiny.logit_scale)) * f @ g.T, atol=1e-3)
        take_steps(trainer)
    assert (seen[1] - seen[0]).abs().max() > 0.1 and (seen[2] - seen[1]).abs().max() > 0.1


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("trainer", ["OrthCR", "OrthSR", "FullFT"])
@pytest.mark.parametrize("epochs, batch, steps", [(1, 8, 10), (4, 8, 40), (4, 3, 4 * 26)])  # of 40 classes x 2 shots
def test_the_rate_of_a_reach_falls_with_the_root_of_the_steps(make_trainer, capsys, trainer, epochs, batch, steps):
    reach = f"TRAINER.{trainer.upper()}.REACH"
    opts = [reach, 0.02, "OPTIM.MAX_EPOCH", epochs, "DATALOADER.TRAIN_X.BATCH_SIZE", batch]
    opts += ["INPUT.TRANSFORMS", "['normalize']"]
    made = make_trainer(*opts, trainer=trainer)
    assert made.get_current_lr() == made.sched.base_lrs[0] == pytest.approx(0.02 / steps**0.5)
    assert f"{reach} 0.02 / sqrt({steps} steps)" in capsys.readouterr().out
    assert made.cfg.OPTIM.LR != made.get_current_lr(), "tiny.yaml has a rate of its own"


def test_without_a_reach_the_rate_is_that_of_the_optimizer(make_trainer):
    assert make_trainer("OPTIM.LR", 0.3).get_current_lr() == 0.3


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
