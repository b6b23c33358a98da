"""GDA: its Gaussians by loops and as densities, the search of alpha, and the classes that it describes."""

import numpy as np
import pytest
import torch
from clip.model import LayerNorm
from prompt_tools import bare
from torch import nn
from torch.distributions import MultivariateNormal

from trainers.gda import ALPHAS, discriminant, gaussians, inverse, new_gaussians

NAMES = ["red circle", "x", "dark_blue heart"]
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1, 0, 2, 2])  # of unequal numbers


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture
def features(noise):
    """Unit-length features float64 [11, 6] of LABELS."""
    return unit(noise(11, 6, seed=3).double() + 2 * noise(3, 6, seed=4).double()[LABELS])


def filled(random_clip, noise, *opts, names=NAMES, seed=3):
    """A trainer in fp64 on 24 features for each of three classes."""
    trainer = bare("GDA", random_clip().double(), *opts, classnames=names)
    labels = torch.arange(72) % 3
    trainer.fill(unit(noise(72, 24, seed=seed).double() + noise(3, 24, seed=9).double()[labels]), labels)
    return trainer


@pytest.mark.parametrize("covariance", ["shrunk", "per_class"])
def test_means_and_precision_by_loops(features, covariance):
    x, d = features.numpy(), 6
    rows = [x[LABELS.numpy() == c] for c in range(3)]
    if covariance == "shrunk":
        centred = np.concatenate([r - r.mean(axis=0) for r in rows])
        s = centred.T @ centred / (len(x) - 1)
        wanted = d * np.linalg.inv((len(x) - 1) * s + np.trace(s) * np.eye(d))
    else:
        wanted = np.linalg.pinv(sum(np.cov(r.T) for r in rows) / 3)
    means, precision = gaussians(features, LABELS, 3, covariance)
    np.testing.assert_allclose(means.numpy(), [r.mean(axis=0) for r in rows], atol=1e-14)
    np.testing.assert_allclose(precision.numpy(), wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


def test_scores_are_log_densities_of_gaussians_with_equal_priors(features, noise):
    means, precision = gaussians(features, LABELS, 3, "shrunk")
    weight, bias = discriminant(means, precision)
    f = noise(4, 6, seed=8).double()
    scores = f @ weight.T + bias
    density = torch.stack([MultivariateNormal(mu, precision_matrix=precision).log_prob(f) for mu in means], dim=1)
    torch.testing.assert_close(scores.softmax(dim=1), density.softmax(dim=1), atol=1e-12, rtol=1e-9)


def test_new_classes_by_loops(features, noise):
    x, g, d, k, copies = features.numpy(), unit(noise(2, 6, seed=5).double()).numpy(), 6, 4, 3
    wanted_means, wanted = [], np.zeros((d, d))
    for g_c in g:
        near = x[np.argsort(-(x @ g_c))[:k]]
        wanted_means.append(np.concatenate([near, [g_c] * copies]).mean(axis=0))
        s = sum(np.outer(row - g_c, row - g_c) for row in near) / (k - 1)
        wanted += d * np.linalg.inv((k - 1) * s + np.trace(s) * np.eye(d)) / len(g)
    means, precision = new_gaussians(features, torch.from_numpy(g), k, copies)
    np.testing.assert_allclose(means.numpy(), wanted_means, atol=1e-14)
    np.testing.assert_allclose(precision.numpy(), wanted, rtol=1e-10)


def test_more_neighbours_than_features_are_all_of_them(features, noise):
    g = unit(noise(2, 6, seed=5).double())
    few, all_of_them = (new_gaussians(features, g, k, 16) for k in (64, len(features)))
    assert all(torch.equal(a, b) for a, b in zip(few, all_of_them, strict=True))


@pytest.mark.parametrize("dtype, kept", [(torch.float32, 1), (torch.float64, 2)])
def test_directions_below_the_precision_of_the_type_are_left_out(dtype, kept):
    matrix = torch.diag(torch.tensor([1.0, 1e-9, 0.0], dtype=dtype))
    assert int((inverse(matrix).diagonal() > 0).sum()) == kept


@pytest.mark.parametrize("covariance", ["shrunk", "per_class"])
def test_one_feature_has_no_covariance(features, covariance, one_line):
    with pytest.raises(ValueError, match="more shots") as error:
        gaussians(features[:3], torch.arange(3), 3, covariance)
    one_line(error)


def test_alpha_0_is_zero_shot_and_the_search_is_the_first_best(random_clip, noise, monkeypatch):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds fp64 to fp32
    trainer = filled(random_clip, noise)
    model, image = trainer.model, noise(5, 3, 32, 32).double()
    model.gda.alpha.fill_(0)
    with torch.no_grad():
        zero = 100 * unit(model.image_encoder(image)) @ model.frozen_text.T
        torch.testing.assert_close(model.eval()(image), zero, atol=1e-12, rtol=0)
    labels = torch.arange(90) % 3
    f = unit(noise(90, 24, seed=6).double() + noise(3, 24, seed=9).double()[labels])
    hits = []
    for alpha in ALPHAS:
        z = 100 * f @ model.frozen_text.T + alpha * (f @ model.gda.weight.T + model.gda.bias)
        hits.append(int((z.argmax(dim=1) == labels).sum()))
    assert len(set(hits)) > 2
    accuracy, alpha = model.search(f, labels)
    assert (accuracy, alpha) == (pytest.approx(100 * max(hits) / 90), ALPHAS[hits.index(max(hits))])
    assert model.search(f, torch.full_like(labels, 9)) == (0.0, 0.1)


def test_classes_are_known_by_name_and_new_ones_by_their_neighbours(random_clip, noise, capsys):
    trainer = filled(random_clip, noise)
    others = bare("GDA", random_clip().double(), classnames=["zebra", "Dark blue heart", "red circle"])
    others.model.gda.load_state_dict(trainer.model.gda.state_dict())
    assert "no training images of 1 of these 3" in capsys.readouterr().out
    weight, bias = others.model.discriminants()
    gda = trainer.model.gda
    assert torch.equal(weight[1:], gda.weight[[2, 0]]) and torch.equal(bias[1:], gda.bias[[2, 0]])
    new = discriminant(*new_gaussians(gda.features, others.model.frozen_text[:1], 64, 16))
    torch.testing.assert_close((weight[0], bias[0]), (new[0][0], new[1][0]))
    assert weight[0].abs().max() > 0


def test_without_neighbours_new_classes_are_zero_shot_and_no_feature_is_stored(random_clip, noise):
    opts = ["TRAINER.GDA.NEIGHBOURS", 0, "TRAINER.GDA.ALPHA", 1.0]
    trainer = filled(random_clip, noise, *opts)
    assert trainer.model.gda.features.numel() == 0 and trainer.model.gda.alpha == 1
    others = bare("GDA", random_clip().double(), *opts, classnames=["zebra", "cat"])
    others.model.gda.load_state_dict(trainer.model.gda.state_dict())
    f = unit(noise(4, 24, seed=7).double())
    z = others.model.score(f, *others.model.discriminants(), others.model.gda.alpha)
    torch.testing.assert_close(z.softmax(1), (100 * f @ others.model.frozen_text.T).softmax(1))


# ------------------------------------------------------------------ runs


def test_nothing_is_chosen_on_test_images(make_trainer, monkeypatch):
    trainer = make_trainer("TEST.NO_TEST", True, trainer="GDA")
    monkeypatch.setattr(trainer.dm.dataset, "_test", None)  # any use of them would fail
    trainer.train()
    items = trainer.dm.dataset.val
    features, labels = trainer.features(items)
    assert trainer.model.search(unit(features), labels)[1] == pytest.approx(trainer.model.gda.alpha.item())


@pytest.mark.parametrize("opts", [[], ["TRAINER.GDA.ALPHA", 10.0]])
def test_without_val_alpha_stays(make_trainer, monkeypatch, capsys, opts):
    trainer = make_trainer(*opts, trainer="GDA")
    monkeypatch.setattr(trainer.dm.dataset, "_val", [])
    trainer.fit()
    assert trainer.model.gda.alpha.item() == pytest.approx(10 if opts else 0.1)
    assert ("no val images" in capsys.readouterr().out) == (not opts)


def test_as_published_for_imagenet_alpha_is_selected_on_test_and_that_is_said(make_trainer, monkeypatch, capsys):
    trainer = make_trainer("TRAINER.GDA.SELECT", "test", trainer="GDA")
    monkeypatch.setattr(trainer.dm.dataset, "_val", None)
    trainer.fit()
    assert "not a fair figure" in capsys.readouterr().out


def test_base_to_new_loads_by_name(make_trainer):
    base, new = (["DATASET.SUBSAMPLE_CLASSES", word, "TEST.NO_TEST", True] for word in ("base", "new"))
    trainer = make_trainer(*base, trainer="GDA")
    trainer.train()
    features = len(trainer.dm.dataset.train_x) * trainer.node.AUGMENT_EPOCH
    assert trainer.model.gda.features.shape == (features, 64)
    other = make_trainer(*new, trainer="GDA", out="new")
    other.load_model(trainer.output_dir)
    assert not other.model.gda.weight.any() and 0 <= other.test() <= 100
    again = make_trainer(*base, trainer="GDA", out="again")
    again.load_model(trainer.output_dir)
    assert again.test() == trainer.test()
