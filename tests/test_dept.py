"""DePT: its loss by hand, the prompt method as its limit, which classes have the second head, two learning rates."""

import pytest
import torch
from torch.nn import functional as F

from tests.prompt_tools import LABEL, NAMES, bare, close, gradients, in_float64, plain_text, spoken, unit
from trainers.dept import DecoupledLearner
from trainers.shared.prompts import PromptLearner

HEAD = "TRAINER.LINEAR_PROBE."
WORDS = ["TRAINER.COOP.CTX_INIT", "a photo of a"]
MAPLE = ["TRAINER.MAPLE.PROMPT_DEPTH", 2]
SRC = [f"TRAINER.PROMPTSRC.{name}" for name in ("PROMPT_DEPTH_TEXT", "PROMPT_DEPTH_VISION")]
SRC = [SRC[0], 2, SRC[1], 2]


def moved(model, *opts, name="DePT"):
    """A trainer whose learned tensors are all random."""
    trainer, gen = bare(name, model, *opts), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trainer.model.get_submodule(trainer.learner).parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=gen, dtype=p.dtype))
    return trainer


@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("kind", ["linear", "similarity"])
@pytest.mark.parametrize("base", ["CoOp", "KgCoOp"])
def test_logits_loss_and_gradients(random_clip, noise, monkeypatch, base, kind, film):
    plain, image = in_float64(random_clip(), monkeypatch), noise(5, 3, 32, 32).double()
    opts = [HEAD + "BASE", base, HEAD + "TYPE", kind, HEAD + "WEIGHT", 0.4, "TRAINER.FILM.LINEAR_PROBE", film]
    trainer = moved(plain, *WORDS, *opts)
    learner = trainer.model.learner
    terms, z = trainer.losses(image, LABEL)

    ids = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    norms = trainer.model.text_features().norm(dim=1, keepdim=True).detach()
    ctx = learner.prompt_learner.ctx.expand(len(NAMES), -1, -1)
    g = plain_text(plain, ids, ctx)
    assert torch.allclose(trainer.model.text_features() / norms, g)
    g, f = trainer.model.text_features(), plain.encode_image(image)
    first = plain.logit_scale.exp() * unit(f) @ unit(g).T
    images, texts = f, g
    if film:
        images = learner.film_lp_img.scale * f + learner.film_lp_img.bias
        texts = learner.film_lp_text.scale * g + learner.film_lp_text.bias
    if kind == "linear":
        weight, bias = learner.linear_probe_proj.weight, learner.linear_probe_proj.bias
        second = images @ weight.T + bias
        rows = [*(F.cross_entropy(row[None], c[None]) for row, c in zip(second, LABEL, strict=True))]
        rows += [F.cross_entropy((texts[c] @ weight.T + bias)[None], c[None]) for c in LABEL]
        probe = sum(rows) / 10
    else:
        second = plain.logit_scale.exp() * unit(images) @ unit(texts).T
        probe = F.cross_entropy(second, LABEL)
    wanted = 0.6 * F.cross_entropy(first, LABEL) + 0.4 * probe
    if base == "KgCoOp":
        wanted = wanted + 2 * (1 - (unit(g) * plain_text(plain, spoken("a photo of a {}."))).sum(dim=1).mean())
    close(z, first)
    close(sum(terms.values()), wanted)
    parts = learner if film or kind == "linear" else learner.prompt_learner
    close(gradients(sum(terms.values()), parts), gradients(wanted, parts))
    trainer.model.eval()
    with torch.no_grad():
        close(trainer.model(image), 0.6 * first + 0.4 * second)
        learner.two_heads = False
        close(trainer.model(image), first)


@pytest.mark.parametrize("base, opts", [("CoOp", WORDS), ("KgCoOp", WORDS), ("MaPLe", MAPLE), ("PromptSRC", SRC)])
def test_with_weight_0_it_is_the_prompt_method(random_clip, noise, base, opts):
    plain, image = random_clip().double(), noise(5, 3, 32, 32).double()
    trainer = moved(plain, *opts, HEAD + "BASE", base, HEAD + "WEIGHT", 0.0)
    limit = bare(base, plain, *([opts[0], True, "TRAINER.COOP.W", 2.0] if base == "KgCoOp" else opts))
    prompts = trainer.model.learner.prompt_learner
    limit.model.prompt_learner.load_state_dict(prompts.state_dict())
    losses = [sum(t.losses(image, LABEL)[0].values()) for t in (trainer, limit)]
    close(*losses)
    close(gradients(losses[0], prompts), gradients(losses[1], limit.model.prompt_learner))
    with torch.no_grad():
        close(trainer.model.eval()(image), limit.model.eval()(image))


def test_without_fusion_an_evaluation_is_the_second_head(random_clip, noise):
    image = noise(5, 3, 32, 32)
    model = moved(random_clip(), *WORDS, HEAD + "TEST_TIME_FUSION", False).model.eval()
    with torch.no_grad():
        f = model.image_features(image)
        torch.testing.assert_close(model(image), model.probe(model.learner.film_lp_img(f)))


# ------------------------------------------------------------------ which classes


def learner_of(names, seen=True):
    prompts = torch.nn.Module()
    prompts.dead = ("token_prefix",)
    return DecoupledLearner(prompts, 8, names, True, True, seen)


def test_the_rows_of_the_second_head_are_those_of_the_names():
    names = ["cat", "dog", "x-ray"]
    trained = learner_of(names)
    fewer, more = learner_of(["x_ray", "cat"]), learner_of(["cat", "zebra"])
    fewer.load_state_dict(trained.state_dict())
    same = learner_of(["x-ray", "cat"])
    same.load_state_dict(trained.state_dict())
    assert same.two_heads and torch.equal(same.linear_probe_proj.weight, trained.linear_probe_proj.weight[[2, 0]])
    before = more.linear_probe_proj.weight.clone()
    more.load_state_dict(trained.state_dict())
    assert not more.two_heads and torch.equal(more.linear_probe_proj.weight, before)
    assert not fewer.two_heads, "another name"


@pytest.mark.parametrize("seen, names, two", [(True, "ab", True), (False, "ab", False), (True, "abc", False)])
def test_a_checkpoint_that_does_not_say_its_classes(seen, names, two):
    state = learner_of(list("xy")).state_dict()
    state.pop("classes")
    learner = learner_of(list(names), seen)
    learner.load_state_dict({**state, "prompt_learner.token_prefix": torch.zeros(1), "logit_scale": torch.zeros(())})
    assert learner.two_heads is two


@pytest.mark.parametrize(
    "dataset, classes, seen",
    [("DTD", "base", True), ("DTD", "new", False), ("DTD", "all", False), ("ImageNetV2", "all", True)],
)
def test_the_originals_rule(random_clip, dataset, classes, seen):
    opts = ["DATASET.NAME", dataset, "DATASET.SUBSAMPLE_CLASSES", classes]
    assert bare("DePT", random_clip(), *WORDS, *opts).model.learner.is_seen is seen


@pytest.mark.parametrize("classes, two", [("base", True), ("new", False), ("all", False)])
def test_base_and_new_classes_of_a_run(make_trainer, take_steps, classes, two):
    trainer = make_trainer("DATASET.SUBSAMPLE_CLASSES", "base", trainer="DePT")
    take_steps(trainer, 2)
    trainer.save_model(0, trainer.output_dir)
    other = make_trainer("DATASET.SUBSAMPLE_CLASSES", classes, trainer="DePT", out="other")
    other.load_model(trainer.output_dir)
    assert other.model.learner.two_heads is two and 0 <= other.test() <= 100


# ------------------------------------------------------------------ training


@pytest.mark.parametrize(
    "staged, mult, rates", [(True, 1.0, (0.01, 0.065)), (True, 0.5, (0.005, 0.065)), (False, 1.0, 0.01)]
)
def test_two_learning_rates(make_trainer, staged, mult, rates):
    opts = ["OPTIM.LR", 0.01, "OPTIM.STAGED_LR", staged, "OPTIM.BASE_LR_MULT", mult]
    trainer = make_trainer(*opts, trainer="DePT")
    names = {id(p): name for name, p in trainer.model.learner.named_parameters()}
    for group in trainer.optim.param_groups:
        for p in group["params"]:
            rate = rates if not staged else rates[not names[id(p)].startswith("prompt_learner")]
            assert group["lr"] == pytest.approx(rate), names[id(p)]
    assert sum(len(group["params"]) for group in trainer.optim.param_groups) == len(names) == 7


def test_tensors_that_are_not_named_are_not_trained(make_trainer, take_steps):
    trainer = make_trainer("TRAINER.NAMES_TO_UPDATE", "['film']", trainer="DePT")
    before = {name: p.detach().clone() for name, p in trainer.model.learner.named_parameters()}
    take_steps(trainer, 2)
    moved = [name for name, p in trainer.model.learner.named_parameters() if not torch.equal(p, before[name])]
    assert moved and all(name.startswith("film") for name in moved)


@pytest.mark.parametrize("base, opts", [("KgCoOp", []), ("MaPLe", MAPLE), ("PromptSRC", SRC)])
def test_it_trains_over_others(make_trainer, base, opts):
    trainer = make_trainer("OPTIM.MAX_EPOCH", 1, HEAD + "BASE", base, *opts, trainer="DePT")
    trainer.train()
    again = make_trainer(HEAD + "BASE", base, *opts, trainer="DePT", out="again")
    again.load_model(trainer.output_dir)
    assert again.test() == trainer.results["accuracy"]


def test_over_promptsrc_the_average_is_over_both_parts(make_trainer):
    """All weight on the first of two epochs: the model is that of the first epoch, the second head included."""
    opts = [HEAD + "BASE", "PromptSRC", *SRC, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1]
    narrow = ["TRAINER.PROMPTSRC.GPA_MEAN", 1.0, "TRAINER.PROMPTSRC.GPA_STD", 1e-2]
    trainer = make_trainer(*opts, *narrow, trainer="DePT")
    trainer.train()
    first = make_trainer(*opts, *narrow, trainer="DePT", out="first")
    first.load_model(trainer.output_dir, epoch=1)
    states = [t.model.learner.state_dict() for t in (trainer, first)]
    assert len(states[0]) > 7 and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_over_promptsrc_frozen_images_are_encoded_once(make_trainer, take_steps, monkeypatch):
    """Without random transforms: in each step the tuned encoder alone, and at the first use all training images."""
    opts = ["INPUT.TRANSFORMS", "['normalize']", "OPTIM.MAX_EPOCH", 3, HEAD + "BASE", "PromptSRC", *SRC]
    trainer, sizes = make_trainer(*opts, trainer="DePT"), []
    tokens = trainer.model.image_encoder.tokens

    def counted(image, *args, **kwargs):
        sizes.append(len(image))
        return tokens(image, *args, **kwargs)

    monkeypatch.setattr(trainer.model.image_encoder, "tokens", counted)
    take_steps(trainer, 3)
    batch, images = trainer.train_loader_x.batch_size, len(trainer.dm.dataset.train_x)
    assert sum(sizes) == 3 * batch + images


def test_as_many_parameters_as_published():
    encoder = torch.nn.Module()
    encoder.token_embedding, encoder.context_length = torch.nn.Embedding(49408, 512), 77
    learner = DecoupledLearner(PromptLearner(encoder, NAMES, 16), 512, NAMES, True, True, True)
    assert sum(p.numel() for p in learner.parameters()) == 8_192 + 2_048 + 513 * len(NAMES)


@pytest.mark.parametrize("key, value", [(HEAD + "WEIGHT", 1.5), (HEAD + "BASE", "TCP"), ("TRAINER.COOP.CSC", True)])
def test_settings_that_cannot_be_are_refused(make_trainer, one_line, key, value):
    with pytest.raises(ValueError, match=key.split(".")[-1]) as caught:
        make_trainer(key, value, trainer="DePT")
    one_line(caught)
