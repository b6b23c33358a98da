"""TDA by lists and loops; the order of the stream; when its caches are empty."""

import math

import pytest
import torch
from prompt_tools import bare, in_float64, unit

from trainers.tda import Cache

POSITIVE, NEGATIVE = (2.0, 5.0), (0.117, 1.0)


@pytest.fixture
def model(random_clip, monkeypatch):
    """A DynamicCLIP in fp64 at a small scale, at which the negative cache is used."""

    def make(*opts):
        trainer = bare("TDA", in_float64(random_clip(), monkeypatch), *opts)
        trainer.model.logit_scale.fill_(25.0)
        return trainer.model.eval()

    return make


def by_lists(model, views, log2=True):
    """Scores of images with views [n, 3, H, W], and both caches: {class: [(feature, entropy, probabilities)]}."""
    g, caches, rows = model.frozen_text, ({}, {}), []
    largest = math.log2(len(g)) if log2 else math.log(len(g))
    for image in views:
        f = unit(model.image_encoder(image))
        z = model.logit_scale * f @ g.T
        p = z.softmax(dim=1)
        entropies = (-(p * p.log()).sum(dim=1)).tolist()
        chosen = sorted(range(len(f)), key=entropies.__getitem__)[: max(1, int(0.1 * len(f)))]
        f, z, p = f[chosen].mean(dim=0), z[chosen].mean(dim=0), p[chosen].mean(dim=0)
        entropy, c = float(-(p * p.log()).sum()), int(z.argmax())
        for cache, capacity, wanted in ((caches[0], 3, True), (caches[1], 2, 0.2 < entropy / largest < 0.5)):
            items = cache.setdefault(c, [])
            if wanted and len(items) < capacity:
                items.append((f, entropy, p))
            elif wanted and entropy < items[-1][1]:
                items[-1] = (f, entropy, p)
            items.sort(key=lambda item: item[1])
        scores = z.clone()
        for cache, (alpha, beta), sign in zip(caches, (POSITIVE, NEGATIVE), (1, -1), strict=True):
            for label, items in cache.items():
                for key, _, probabilities in items:
                    affinity = sign * alpha * math.exp(-beta * (1 - float(f @ key)))
                    for j in range(len(z)):
                        value = j == label if sign > 0 else 0.03 < probabilities[j] < 1
                        scores[j] += affinity * float(value)
        rows.append(scores)
    return torch.stack(rows), caches


@pytest.mark.parametrize("views, log2", [(1, True), (20, True), (1, False)])
def test_the_stream_by_lists(model, noise, views, log2):
    dynamic = model("TRAINER.TDA.LOG2", log2)
    images = (2 * noise(30, 1, 3, 1, 1, seed=2) + 0.5 * noise(30, views, 3, 32, 32)).double()
    with torch.no_grad():
        wanted, caches = by_lists(dynamic, images, log2)
        torch.testing.assert_close(dynamic(images), wanted, atol=1e-10, rtol=0)
    assert all(0 < sum(map(len, cache.values())) < 30 for cache in caches), "both are used"


def test_a_stream_in_batches_is_the_same_stream(model, noise):
    images = noise(12, 3, 32, 32).double() + 2 * noise(12, 3, 1, 1, seed=2).double()
    whole = model()(images)
    dynamic = model()
    parts = torch.cat([dynamic(part) for part in images.split(5)])
    torch.testing.assert_close(parts, whole, atol=1e-10, rtol=0)
    assert not torch.allclose(dynamic(images), whole), "the caches are not empty now"
    torch.testing.assert_close(dynamic.eval()(images), whole, atol=1e-10, rtol=0)


def test_without_caches_it_is_zero_shot(model, noise):
    dynamic, image = model("TRAINER.TDA.POS_CAPACITY", 0, "TRAINER.TDA.NEG_CAPACITY", 0), noise(4, 3, 32, 32).double()
    zero = dynamic.logits(dynamic.frozen_image(image), dynamic.frozen_text)
    torch.testing.assert_close(dynamic(image), zero, atol=1e-12, rtol=0)


def test_a_full_class_drops_its_last_image_only_for_less_entropy():
    cache, c, f = Cache(2, 2, 3), torch.tensor([1]), torch.eye(3)
    for k, entropy in enumerate([0.5, 0.3, 0.5]):  # the third is no smaller
        cache.add(c, f[k], torch.tensor(entropy), torch.tensor([0.0, 1.0]))
    assert cache.entropy[1].tolist() == pytest.approx([0.3, 0.5]) and torch.equal(cache.keys[1], f[[1, 0]])
    cache.add(c, f[2], torch.tensor(0.4), torch.tensor([0.0, 1.0]))
    assert torch.equal(cache.keys[1], f[[1, 2]]) and cache.entropy[0].isinf().all()
    assert cache(f[1], 2.0).tolist() == pytest.approx([0.0, 1 + math.exp(-2)])


# ------------------------------------------------------------------ runs


def test_the_order_is_that_of_the_seed_and_results_repeat(make_trainer):
    streams, results = [], []
    for seed, shuffle in ((1, True), (1, True), (2, True), (1, False)):
        trainer = make_trainer("SEED", seed, "TRAINER.TDA.SHUFFLE", shuffle, trainer="TDA")
        streams.append([item.impath for item in trainer.test_loader.dataset.data_source])
        assert streams[-1] == [item.impath for item in trainer.dm.dataset.test]
        trainer.test()
        results.append(trainer.results)
        assert trainer.test() == results[-1]["accuracy"], "the caches of the first are gone"
    assert streams[0] == streams[1] != streams[2] and streams[0] != streams[3]
    assert sorted(streams[0]) == sorted(streams[2]) == sorted(streams[3]) and results[0] == results[1]


def test_one_stream_is_not_divided(make_trainer, monkeypatch, one_line):
    monkeypatch.setattr("trainers.tda.size", lambda: 2)
    with pytest.raises(ValueError, match="without torchrun") as error:
        make_trainer(trainer="TDA")
    one_line(error)


@pytest.mark.parametrize(
    "name, opts, weights, templates",
    [
        ("none", [], (2, 5), 1),
        ("EuroSAT", [], (2, 5), 1),
        ("EuroSAT", ["TRAINER.TDA.POSITIVE", "[]"], (4, 8), 1),
        ("ImageNetSketch", ["TRAINER.TDA.POSITIVE", "[]"], (2.363, 7.45), 80),
        ("SUN397", ["TRAINER.TDA.POSITIVE", "[1.5, 2]"], (1.5, 2), 7),
        ("SUN397", ["TRAINER.TDA.TEMPLATE", "a {}."], (2, 5), 1),
    ],
)
def test_weights_and_templates_of_data_sets(random_clip, name, opts, weights, templates):
    model = bare("TDA", random_clip(), "DATASET.NAME", name, *opts).model
    assert model.weights == (weights, NEGATIVE) and len(model.templates) == templates


@pytest.mark.parametrize("key, value", [("POSITIVE", "[1.0]"), ("NEG_ENTROPY", "[0.5, 0.2]")])
def test_settings_that_make_no_sense(make_trainer, one_line, key, value):
    with pytest.raises(ValueError, match=key) as error:
        make_trainer(f"TRAINER.TDA.{key}", value, trainer="TDA")
    one_line(error)
