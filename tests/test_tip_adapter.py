"""Tip-Adapter and Tip-Adapter-F: the cache by loops, what is chosen and on which images, which classes it serves."""

import math
import shutil

import pytest
import torch
from clip.model import LayerNorm
from torch import nn
from torch.nn import functional as F

from trainers.shared.classes import class_ids
from trainers.tip_adapter import Cache, CachedCLIP

NAMES = ["red circle", "x", "dark_blue heart"]
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2])


def small(name, *opts):
    node = f"TRAINER.{name.upper()}."
    return [node + "AUGMENT_EPOCH", 2, node + "SEARCH_STEP", "[5, 4]", "OPTIM.MAX_EPOCH", 4, *opts]


def cached(clip_model, noise, names=NAMES, trained=False, alpha=1.5, beta=3.0):
    """A CachedCLIP in fp64 with a cache of seven images of NAMES, at scale 100."""
    cache = Cache(24, 7, class_ids(names), alpha, beta, trained)
    model = CachedCLIP(clip_model.double(), names, ["a photo of a {}."], cache, 100.0).double()
    if names is NAMES:
        cache.fill(noise(4, 7, 24, seed=3).double(), LABELS)
    return model


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def by_loops(model, f, keys, alpha, beta):
    """z of unit-length features, an entry at a time."""
    z = [[100 * f[b] @ model.frozen_text[c] for c in range(3)] for b in range(len(f))]
    for b in range(len(f)):
        for i, c in enumerate(LABELS.tolist()):
            z[b][c] = z[b][c] + alpha * torch.exp(-beta * (1 - f[b] @ keys[:, i]))
    return torch.stack([torch.stack(row) for row in z])


def test_logits_and_gradients_of_the_keys(random_clip, noise, monkeypatch):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds fp64 to fp32
    model = cached(random_clip(), noise, trained=True)
    mean = noise(4, 7, 24, seed=3).double().mean(dim=0)  # not of unit-length features
    torch.testing.assert_close(model.cache.keys.detach(), unit(mean).T)
    image = noise(5, 3, 32, 32).double()
    f, label = unit(random_clip().double().visual(image)), torch.tensor([0, 2, 1, 1, 0])
    keys = model.cache.keys.detach().clone().requires_grad_()
    wanted, given = by_loops(model, f, keys, 1.5, 3.0), model.train()(image)
    torch.testing.assert_close(given, wanted, atol=1e-11, rtol=0)
    (a,) = torch.autograd.grad(F.cross_entropy(model.score(f), label), [model.cache.keys])
    (b,) = torch.autograd.grad(F.cross_entropy(wanted, label), [keys])
    assert b.abs().max() > 1e-4
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_the_search_is_the_first_best_of_the_grid(random_clip, noise):
    model = cached(random_clip(), noise)
    near = torch.arange(40) % 7
    f, label = unit(model.cache.keys.T[near] + 0.25 * noise(40, 24, seed=7).double()), (LABELS[near] + (near == 3)) % 3
    grid = [(0.1 + i * 29.9 / 6, 0.1 + j * 199.9 / 5) for i in range(6) for j in range(5)]
    logits = [by_loops(model, f, model.cache.keys, alpha, beta) for beta, alpha in grid]
    hits = [int((z.argmax(dim=1) == label).sum()) for z in logits]
    assert len(set(hits)) > 3 and hits.count(max(hits)) < len(hits) / 2
    beta, alpha = grid[hits.index(max(hits))]
    found = model.search(f, label, [30, 200], [6, 5])
    assert found == pytest.approx((100 * max(hits) / 40, beta, alpha))
    all_wrong = torch.full_like(label, 9)
    assert model.search(f, all_wrong, [30, 200], [6, 5]) == (0.0, *grid[0]), "of equal ones the first"


def test_alpha_0_is_zero_shot(random_clip, noise):
    model = cached(random_clip(), noise, alpha=0.0).eval()
    image = noise(3, 3, 32, 32).double()
    with torch.no_grad():
        zero = 100 * unit(model.image_encoder(image)) @ model.frozen_text.T
        torch.testing.assert_close(model(image), zero, atol=1e-12, rtol=0)


# ------------------------------------------------------------------ training


def split_features(trainer):
    return {name for name in trainer.model._frozen_cache if name.endswith(" images")}


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF"])
def test_nothing_is_chosen_on_test_images(make_trainer, monkeypatch, name):
    trainer = make_trainer(*small(name, "TEST.NO_TEST", True), trainer=name)
    monkeypatch.setattr(trainer.dm.dataset, "_test", None)  # any use of them would fail
    trainer.train()
    cache = trainer.model.cache
    assert split_features(trainer) == {"val images"} and float(cache.values.sum()) == len(trainer.dm.dataset.train_x)
    found = trainer.model.search(*trainer.encode_split("val"), trainer.search_scale, [5, 4])
    assert found[1:] == pytest.approx((cache.beta.item(), cache.alpha.item()))


@pytest.fixture
def scripted(make_trainer, monkeypatch):
    """scripted(select, split, accuracies): a trained TipAdapterF that was told them, and its keys after each epoch."""

    def train(select, split, given, *opts):
        trainer = make_trainer(
            *small("TipAdapterF", "TRAINER.TIPADAPTERF.SELECT", select, *opts), trainer="TipAdapterF"
        )
        keys, given, keep = [], iter(given), trainer.keep_best

        def accuracy(f, label):
            assert f is trainer.encode_split(split)[0]
            return next(given)

        def keep_best():
            keys.append(trainer.model.cache.keys.detach().clone())
            keep()

        monkeypatch.setattr(trainer.model, "accuracy", accuracy)
        monkeypatch.setattr(trainer, "keep_best", keep_best)
        trainer.train()
        assert len({float(k.sum()) for k in keys}) == 4 and next(given, None) is None
        return trainer, keys

    return train


@pytest.mark.parametrize("select, given, kept", [("val", [50.0, 70.0, 70.0, 60.0], 1), ("last", [], 3)])
def test_the_epoch_is_the_first_best_on_val(scripted, select, given, kept):
    trainer, keys = scripted(select, "val", given)
    assert torch.equal(trainer.model.cache.keys, keys[kept])


@pytest.mark.parametrize("searched, stays", [(71.0, False), (70.0, True)])
def test_as_published_the_epoch_is_the_best_on_test(scripted, monkeypatch, capsys, searched, stays):
    """And alpha and beta of the search, on val, are taken if they are better on test: the larger figure is printed."""
    monkeypatch.setattr(CachedCLIP, "search", lambda *args: (99.0, 5.5, 0.5))
    given = [50.0, 70.0, 60.0, 60.0, 70.0, searched]
    trainer, keys = scripted("test", "test", given, "TRAINER.TIPADAPTERF.INIT_ALPHA", 1.25)
    cache = trainer.model.cache
    assert torch.equal(cache.keys, keys[1])
    assert (cache.alpha.item(), cache.beta.item()) == ((1.25, 1.0) if stays else (0.5, 5.5))
    assert "not a fair figure" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF"])
def test_without_val_nothing_is_chosen(make_trainer, monkeypatch, capsys, name):
    trainer = make_trainer(*small(name), trainer=name)
    trainer.model.cache.set(1.25, 1.0)
    monkeypatch.setattr(trainer.dm.dataset, "_val", [])
    trainer.train()
    assert "no val images" in capsys.readouterr().out and trainer.model.cache.alpha.item() == 1.25
    assert not split_features(trainer)


def test_a_run_gone_on_with_ends_as_an_undisturbed_one(make_trainer, tmp_path):
    opts = small("TipAdapterF", "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.LR", 0.01)
    whole = make_trainer(*opts, trainer="TipAdapterF", out="whole")
    whole.train()
    (tmp_path / "rest" / "cache").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/cache/model.pth.tar-2", tmp_path / "rest/cache")
    rest = make_trainer(*opts, trainer="TipAdapterF", out="rest")
    rest.train()
    assert rest.start_epoch == 2 and rest.results == whole.results
    ours, theirs = (torch.load(tmp_path / out / "cache/model.pth.tar-4") for out in ("rest", "whole"))
    assert all(torch.equal(ours["state_dict"][name], tensor) for name, tensor in theirs["state_dict"].items())
    for name, tensor in theirs["optimizer"]["state"][0].items():  # of the last epoch, whichever was the best
        assert torch.equal(ours["optimizer"]["state"][0][name], tensor), name


def test_without_val_it_may_be_chosen_on_test_and_says_so(make_trainer, monkeypatch, capsys):
    trainer = make_trainer(*small("TipAdapter", "TRAINER.TIPADAPTER.SELECT", "test"), trainer="TipAdapter")
    monkeypatch.setattr(trainer.dm.dataset, "_val", [])
    trainer.fit()
    assert split_features(trainer) == {"test images"}
    assert "Best on test: beta" in capsys.readouterr().out.partition(", not a fair")[0]


def test_keys_are_the_mean_of_augmented_passes(make_trainer, monkeypatch):
    trainer = make_trainer(*small("TipAdapter", "TRAINER.TIPADAPTER.AUGMENT_EPOCH", 3), trainer="TipAdapter")
    passes, features = [], trainer.features

    def noted(items, train=False):
        passes.append((train, *features(items, train)))
        return passes[-1][1:]

    monkeypatch.setattr(trainer, "features", noted)
    trainer.fill()
    assert [train for train, *_ in passes] == [True] * 3 and not torch.equal(passes[0][1], passes[1][1])
    mean = sum(f for _, f, _ in passes)
    torch.testing.assert_close(trainer.model.cache.keys, (mean / mean.norm(dim=1, keepdim=True)).T)


def test_the_last_batch_of_an_epoch_is_trained_on(make_trainer):
    trainer = make_trainer(*small("TipAdapterF", "DATALOADER.TRAIN_X.BATCH_SIZE", 24), trainer="TipAdapterF")
    images = len(trainer.dm.dataset.train_x)
    sizes = [len(batch["label"]) for batch in trainer.train_loader_x]
    assert images % 24 and sum(sizes) == images and len(sizes) == len(trainer.train_loader_x)


def test_the_rate_falls_by_steps_and_adamw_has_the_originals_eps(make_trainer):
    trainer = make_trainer(*small("TipAdapterF", "DATALOADER.TRAIN_X.BATCH_SIZE", 16), trainer="TipAdapterF")
    assert trainer.optim.param_groups[0]["eps"] == 1e-4
    assert trainer.sched.T_max == 4 * len(trainer.train_loader_x) > 4


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("trained", [False, True])
def test_other_classes_have_no_cache_term(random_clip, noise, capsys, trained):
    model = cached(random_clip(), noise, trained=trained)
    others = cached(random_clip(), noise, ["zebra", "Dark blue heart", "red circle"], trained)
    others.cache.load_state_dict(model.cache.state_dict())
    assert "has images of 2 of these 3 classes" in capsys.readouterr().out
    f = unit(noise(5, 24, seed=7).double())
    with torch.no_grad():
        term = others.cache(f)
        assert not term[:, 0].any() and term[:, 1].all()
        torch.testing.assert_close(term[:, 1:], model.cache(f)[:, [2, 0]], atol=0, rtol=0)


@pytest.mark.parametrize("trained", [False, True])
def test_the_originals_keys_and_values_are_enough(random_clip, noise, trained):
    model = cached(random_clip(), noise, trained=trained)
    keys, values = unit(noise(9, 24)).T, F.one_hot(torch.arange(9) % 3)  # of nine images; both in half precision there
    model.cache.load_state_dict({"keys": keys.half(), "values": values.half()})
    f = unit(noise(5, 24, seed=7).double())
    affinity = [
        [sum(math.exp(-3 * (1 - x)) for x in row[c::3].tolist()) for c in range(3)] for row in f @ keys.half().double()
    ]
    torch.testing.assert_close(model.cache(f).detach(), 1.5 * torch.tensor(affinity).double(), atol=1e-6, rtol=1e-6)
    for wrong in ({"ctx": keys}, {"keys": keys, "values": values[:, :2]}):
        with pytest.raises(RuntimeError):
            model.cache.load_state_dict(wrong)


def test_scales_of_the_search_are_two_numbers(make_trainer, one_line):
    with pytest.raises(ValueError) as error:
        make_trainer("TRAINER.TIPADAPTER.SEARCH_SCALE", "[7]", trainer="TipAdapter")
    assert "two or none" in one_line(error)


def test_in_bf16_the_cache_term_is_that_of_fp32(make_trainer, take_steps):
    """Images and texts are rounded, exp(-beta (1 - f K)) is not."""
    trainer = make_trainer(*small("TipAdapterF"), trainer="TipAdapterF")
    trainer.fit()
    trainer.autocast |= {"enabled": True, "dtype": torch.bfloat16}
    assert all(math.isfinite(value) for step in take_steps(trainer, 2) for value in step.values())
    assert trainer.model.cache.keys.grad.abs().max() > 0 and trainer.model.cache.keys.dtype == torch.float32
    f = F.normalize(torch.randn(5, 64), dim=-1)
    with torch.no_grad():
        fp32 = trainer.model.score(f)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(trainer.model.score(f), fp32)
