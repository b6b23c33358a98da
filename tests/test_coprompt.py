"""CoPrompt by the equation over MaPLe's features, its two views, descriptions and settings by data set."""

import json

import pytest
import torch
from torch.nn import functional as F

from tests.prompt_tools import LABEL, NAMES, bare, close, gradients, in_float64, plain_text, spoken, unit
from trainers.clip_adapter import Adapter
from trainers.coprompt import PUBLISHED, ConsistentLearner
from trainers.maple import MultiModalPromptLearner

NODE = "TRAINER.CoPrompt."
SMALL = [NODE + "PROMPT_DEPTH", 2, NODE + "N_CTX", 2]


def moved(model, *opts):
    """A trainer whose learned tensors are all random."""
    trainer, gen = bare("CoPrompt", model, *SMALL, *opts), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trainer.model.learner.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=gen, dtype=p.dtype))
    return trainer


def as_maple(trainer, plain):
    """MaPLe with the same prompts."""
    maple = bare("MaPLe", plain, "TRAINER.MAPLE.PROMPT_DEPTH", 2)
    maple.model.prompt_learner.load_state_dict(trainer.model.prompt_learner.state_dict())
    return maple.model


@pytest.mark.parametrize("distill", ["cosine", "mse"])
def test_logits_loss_and_gradients(random_clip, noise, monkeypatch, distill):
    plain, image, view = in_float64(random_clip(), monkeypatch), *noise(2, 5, 3, 32, 32).double()
    trainer = moved(plain, "TRAINER.W", 1.5, "TRAINER.DISTILL", distill)
    trainer.draw = lambda: 3
    learner = trainer.model.learner
    terms, z = trainer.losses(torch.stack([image, view]), LABEL)

    own = super(type(trainer.model), trainer.model)  # MaPLe's features
    f, g = own.image_features(image), own.text_features()
    w1, w2, u1, u2 = [*learner.adapter_image.parameters(), *learner.adapter_text.parameters()]
    f = unit(0.1 * ((f @ w1.T).clamp(min=0) @ w2.T).clamp(min=0) + 0.9 * f)
    g = unit(0.2 * ((g @ u1.T).clamp(min=0) @ u2.T).clamp(min=0) + 0.8 * g)
    q = plain_text(plain, trainer.model.descriptions[3])
    f_0, wanted = unit(plain.encode_image(view)), plain.logit_scale.exp() * f @ g.T
    if distill == "cosine":
        consistency = 2 - (g * q).sum(dim=1).mean() - (f * f_0).sum(dim=1).mean()
    else:
        consistency = (g - q).square().mean() + (f - f_0).square().mean()
    close(z, wanted)
    loss = F.cross_entropy(wanted, LABEL) + 1.5 * consistency
    close(sum(terms.values()), loss)
    close(gradients(sum(terms.values()), learner), gradients(loss, learner))


def test_with_adapters_that_give_nothing_it_has_maples_logits(random_clip, noise):
    plain, image = random_clip().double(), noise(5, 3, 32, 32).double()
    trainer = moved(plain, "TRAINER.W", 0.0)
    maple = as_maple(trainer, plain)
    with torch.no_grad():
        wanted = maple.eval()(image)
        assert (trainer.model.eval()(image) - wanted).abs().max() > 1e-3
        for adapter in (trainer.model.learner.adapter_image, trainer.model.learner.adapter_text):
            adapter.fc[2].weight.zero_()
        close(trainer.model.train().eval()(image), wanted)


def test_one_view_serves_for_two(random_clip, noise):
    trainer, image = moved(random_clip()), noise(5, 3, 32, 32)
    one, two = (trainer.losses(x, LABEL)[0] for x in (image, torch.stack([image, image])))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_both_views_of_a_batch_reach_the_loss(make_trainer):
    trainer = make_trainer(trainer="CoPrompt")
    image, label = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    assert image.shape == (2, len(label), 3, 32, 32) and not torch.equal(*image)
    single = make_trainer("DATALOADER.K_TRANSFORMS", 1, trainer="CoPrompt", out="single")
    assert single.parse_batch_train(next(iter(single.train_loader_x)))[0].dim() == 4
    with pytest.raises(ValueError, match="K_TRANSFORMS must be 2 for CoPrompt"):
        make_trainer("DATALOADER.K_TRANSFORMS", 3, trainer="CoPrompt")


def test_the_description_is_drawn_by_seed_epoch_and_batch(random_clip):
    trainer, drawn = bare("CoPrompt", random_clip(), *SMALL, "SEED", 5), {}
    for trainer.epoch in (0, 1):  # noqa: B020
        for trainer.batch_idx in range(40):
            drawn[trainer.epoch, trainer.batch_idx] = trainer.draw()
    trainer.epoch, trainer.batch_idx = 1, 7
    assert trainer.draw() == drawn[1, 7] and len({*drawn.values()}) > 30 and max(drawn.values()) < 80


def test_the_descriptions_of_a_file_take_the_place_of_the_templates(random_clip, noise, tmp_path):
    """As many as the class with the fewest has; one that is too long is cut. The loss changes by q alone."""
    file, plain, image = tmp_path / "d.json", random_clip(), noise(5, 3, 32, 32)
    texts = {name.upper(): [f"{name} {k}" for k in range(2 + (name == "cat"))] for name in NAMES}
    texts["CAT"][0] = "cat " * 200
    file.write_text(json.dumps(texts))
    trainer = bare("CoPrompt", plain, *SMALL, NODE + "DESCRIPTIONS", str(file))
    assert trainer.model.descriptions == [[texts[name.upper()][k] for name in NAMES] for k in range(2)]
    without = bare("CoPrompt", plain, *SMALL)
    without.model.load_state_dict(trainer.model.state_dict())
    for either in (trainer, without):
        either.draw = lambda: 0
    (terms, z), (wanted, wanted_z) = (either.losses(image, LABEL) for either in (trainer, without))
    assert torch.equal(z, wanted_z) and torch.equal(terms["ce"], wanted["ce"])
    assert torch.equal(terms["cos_image"], wanted["cos_image"]) and not torch.equal(
        terms["cos_text"], wanted["cos_text"]
    )


def test_only_a_training_reads_the_file(random_clip, noise, tmp_path):
    trainer = bare("CoPrompt", random_clip(), *SMALL, NODE + "DESCRIPTIONS", str(tmp_path / "missing.json"))
    trainer.epoch = 0
    with torch.no_grad():
        trainer.model.eval()(noise(2, 3, 32, 32))
    with pytest.raises(OSError, match="missing.json"):
        trainer.losses(noise(2, 3, 32, 32), torch.tensor([0, 1]))
    plain = bare("CoPrompt", random_clip(), *SMALL).model
    assert plain.descriptions[0] == spoken("a bad photo of a {}.") and len(plain.descriptions) == 80


@pytest.mark.parametrize("dataset", ["EuroSAT", "Food101", "Mine"])
def test_settings_are_the_authors_unless_they_are_given(random_clip, dataset):
    depth, n, w = PUBLISHED.get(dataset, (12, 4, 8.0))
    trainer = bare("CoPrompt", random_clip(), *SMALL, "DATASET.NAME", dataset)
    assert (trainer.setting(0, None), trainer.setting(1, None), trainer.setting(2, None)) == (depth, n, w)
    assert trainer.setting(0, 3) == 3 and trainer.setting(2, 0.0) == 0.0
    assert trainer.model.prompt_learner.ctx.shape == (2, 64)
    with pytest.raises(ValueError, match="PROMPT_DEPTH reaches block"):
        bare("CoPrompt", random_clip(), "DATASET.NAME", dataset)


@pytest.mark.parametrize("depth, n, number", [(12, 4, 5_014_528), (12, 2, 5_002_240), (9, 4, 3_826_432)])
def test_as_many_parameters_as_published(depth, n, number):
    encoder = torch.nn.Module()
    encoder.token_embedding, encoder.context_length = torch.nn.Embedding(49408, 512), 77
    prompts = MultiModalPromptLearner(encoder, NAMES, n, "a photo of a", depth, 768)
    learner = ConsistentLearner(prompts, 512)
    assert sum(p.numel() for p in learner.parameters()) == number
    assert [*dict(Adapter(8, 4).named_parameters())] == ["fc.0.weight", "fc.2.weight"]
