"""LP++: its start, rates and steps by hand, the epoch that it keeps, and the classes that it serves."""

import shutil

import pytest
import torch
from prompt_tools import bare
from torch.nn import functional as F

from orthcr.compare.methods import options_by_trainer
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse
from trainers.lppp import BLEND, Blend
from trainers.shared.classes import class_ids

NAMES = ["red circle", "x", "dark_blue heart"]
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2])  # of unequal numbers
FAST = ["OPTIM.MAX_EPOCH", 12, "TEST.NO_TEST", True]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture
def blend(noise):
    """blend(): a Blend in fp64 with features f [7, 6] and text features g [3, 6]."""

    def make():
        torch.manual_seed(1)
        f, g = unit(noise(7, 6, seed=3).double()), unit(noise(3, 6, seed=4).double())
        return Blend(6, class_ids(NAMES)).double(), f, g

    return make


def test_start_and_rates_by_loops(blend):
    lppp, f, g = blend()
    assert lppp.bias.abs().max() <= 6**-0.5 and len(set(lppp.bias.tolist())) == 3
    rate = lppp.start(f, g, LABELS)
    rows = [[f[i] for i in range(7) if LABELS[i] == c] for c in range(3)]
    torch.testing.assert_close(lppp.weight.data, torch.stack([sum(r) for r in rows]), atol=1e-14, rtol=0)
    alpha = BLEND * sum(sum(float(x @ g[c]) for x in rows[c]) / len(rows[c]) for c in range(3)) / 3
    assert lppp.alpha.tolist() == [pytest.approx([alpha] * 3)]
    assert rate == pytest.approx(4 * 7 / torch.linalg.svdvals(f)[0].item() ** 2)
    assert lppp.rate_of_alpha.item() == pytest.approx(7 / (4 * max(((f @ g_c) ** 2).sum().item() for g_c in g)))


def test_logits_and_gradients_by_hand(random_clip, noise):
    trainer = bare("LPpp", random_clip().double(), classnames=NAMES)
    lppp, f = trainer.model.lppp, unit(noise(7, 24, seed=3).double())
    g = trainer.model.frozen_text
    lppp.start(f, g, LABELS)
    z = torch.stack([f @ lppp.weight[c] + lppp.bias[c] + lppp.alpha[0, c] * (f @ g[c]) for c in range(3)], dim=1)
    terms, logits = trainer.losses(f, LABELS)
    torch.testing.assert_close(logits, z, atol=1e-12, rtol=0)
    p = (z.softmax(dim=1) - F.one_hot(LABELS, 3)).detach() / 7
    trainer.backward(terms)
    torch.testing.assert_close(lppp.weight.grad, p.T @ f, atol=1e-13, rtol=0)
    torch.testing.assert_close(lppp.bias.grad, p.sum(dim=0), atol=1e-13, rtol=0)
    torch.testing.assert_close(lppp.alpha_gradient[0], (p * (f @ g.T)).sum(dim=0), atol=1e-13, rtol=0)


@pytest.mark.parametrize("key", ["sum", "present"])
def test_alpha_moves_every_tenth_epoch_along_the_sum_as_published_or_the_present_gradient(random_clip, noise, key):
    trainer = bare("LPpp", random_clip().double(), "TRAINER.LPPP.ALPHA_GRADIENT", key, classnames=NAMES)
    lppp, f = trainer.model.lppp, unit(noise(7, 24, seed=3).double())
    lppp.start(f, trainer.model.frozen_text, LABELS)
    start, gradients = lppp.alpha.detach().clone(), []
    for epoch in range(10):
        with torch.no_grad():
            lppp.weight += 0.1 * noise(3, 24, seed=epoch)
        terms, _ = trainer.losses(f, LABELS)
        gradients.append(torch.autograd.grad(terms["ce"], lppp.alpha, retain_graph=True)[0])
        trainer.backward(terms)
        trainer.step_alpha(epoch)
        assert torch.equal(lppp.alpha.detach(), start) == (epoch < 9)
    direction = sum(gradients) if key == "sum" else gradients[-1]
    torch.testing.assert_close(lppp.alpha.detach(), start - lppp.rate_of_alpha * direction, atol=1e-10, rtol=0)


def test_at_its_own_rate_gradient_descent_never_increases_the_loss(blend):
    """4 N / lambda_max is 2 / L, with the bound L of the softmax: 1 / 2 of lambda_max / N."""
    lppp, f, g = blend()
    rate, losses = lppp.start(f, g, LABELS), []
    lppp.weight.data.normal_()
    for _ in range(100):
        loss = F.cross_entropy(lppp(f, g), LABELS)
        (gradient,) = torch.autograd.grad(loss, [lppp.weight])
        lppp.weight.data -= rate * gradient
        losses.append(loss.item())
    assert all(b <= a + 1e-12 for a, b in zip(losses, losses[1:], strict=False)) and losses[-1] < losses[0]


def test_the_last_of_the_best_epochs_is_kept(blend):
    lppp, _, _ = blend()
    for k, accuracy in enumerate([50.0, 70.0, 60.0, 70.0, 10.0]):
        lppp.weight.data.fill_(k)
        lppp.keep(accuracy)
    lppp.restore()
    assert lppp.best_accuracy == 70 and torch.equal(lppp.weight.data, torch.full((3, 6), 3.0).double())


# ------------------------------------------------------------------ runs


def test_one_pass_is_encoded_and_an_epoch_is_one_step_at_the_rate_of_the_features(make_trainer, monkeypatch):
    trainer = make_trainer(*FAST, "OPTIM.LR", 0.5, "OPTIM.LR_SCHEDULER", "single_step", trainer="LPpp")
    seen, encode = [], trainer.model.image_encoder.forward
    monkeypatch.setattr(trainer.model.image_encoder, "forward", lambda x, **kw: seen.append(len(x)) or encode(x, **kw))
    monkeypatch.setattr(trainer.dm.dataset, "_test", None)  # any use of them would fail
    trainer.train()
    train, val = len(trainer.dm.dataset.train_x), len(trainer.dm.dataset.val)
    assert sum(seen) == train + val and trainer.num_batches == 1
    (batch,) = trainer.train_loader_x
    f = F.normalize(batch["img"].double(), dim=-1)
    rate = 4 * train / torch.linalg.svdvals(f)[0].item() ** 2
    assert trainer.sched.base_lrs == [pytest.approx(0.5 * rate, rel=1e-4)]
    assert trainer.model.lppp.best_accuracy.item() == pytest.approx(trainer.accuracy_on_val())


@pytest.mark.parametrize("opts", [[], ["TRAINER.LPPP.SELECT", "last"]])
def test_without_val_it_is_the_last_epoch(make_trainer, monkeypatch, opts):
    trainer = make_trainer(*FAST, *opts, trainer="LPpp")
    if not opts:
        monkeypatch.setattr(trainer.dm.dataset, "_val", [])
    trainer.train()
    assert trainer.val is None and trainer.model.lppp.best_accuracy == 11


def test_a_run_gone_on_with_ends_as_an_undisturbed_one(make_trainer, tmp_path):
    opts = [*FAST, "TRAIN.CHECKPOINT_FREQ", 7, "TRAINER.LPPP.SELECT", "last"]
    whole = make_trainer(*opts, trainer="LPpp", out="whole")
    whole.train()
    (tmp_path / "rest" / "lppp").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/lppp/model.pth.tar-7", tmp_path / "rest/lppp")
    rest = make_trainer(*opts, trainer="LPpp", out="rest")
    rest.train()
    assert rest.start_epoch == 7 and rest.get_current_lr() == whole.get_current_lr()
    for name, tensor in whole.model.lppp.state_dict().items():
        assert torch.equal(rest.model.lppp.state_dict()[name], tensor), name


def test_classes_are_known_by_name_and_new_ones_have_the_mean_multiplier(random_clip, noise, capsys):
    trainer = bare("LPpp", random_clip().double(), classnames=NAMES)
    lppp, f = trainer.model.lppp, unit(noise(7, 24, seed=3).double())
    with torch.no_grad():
        lppp.weight.copy_(noise(3, 24, seed=1))
        lppp.alpha += noise(1, 3, seed=2)
    others = bare("LPpp", random_clip().double(), classnames=["zebra", "Dark blue heart", "red circle"])
    others.model.lppp.load_state_dict(lppp.state_dict())
    assert "trained on 2 of these 3" in capsys.readouterr().out
    z = others.model(f)
    torch.testing.assert_close(z[:, 1:], trainer.model(f)[:, [2, 0]], atol=1e-10, rtol=0)
    torch.testing.assert_close(z[:, 0], lppp.alpha.mean() * (f @ others.model.frozen_text[0]), atol=1e-10, rtol=0)


def test_trained_numbers_at_vit_b16():
    sizes = sum(p.numel() for p in Blend(512, torch.arange(1000)).parameters())
    assert sizes == 1000 * (512 + 2) == 514_000


def test_a_batch_size_is_refused():
    pair = ("DATALOADER.TRAIN_X.BATCH_SIZE", "8")
    with pytest.raises(ValueError, match="LPpp, because all training images are one batch: leave it out"):
        setup_cfg(parse(["--trainer", "LPpp", *pair]))
    assert options_by_trainer(pair, ["LPpp", "CoOp"]) == {"LPpp": (), "CoOp": pair}
