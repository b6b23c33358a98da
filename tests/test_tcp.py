"""TCP against its equation on a plain CLIP; where class tokens stand; its optimizer, keys and published checkpoints."""

import pytest
import torch
from clip import clip

from tests.prompt_tools import (
    LABEL,
    NAMES,
    bare,
    close,
    cross_entropy,
    gradients,
    in_float64,
    plain_logits,
    plain_text,
    spoken,
    unit,
)
from tests.prompted import run, wide_text_encoder
from trainers.shared.encoders import TextEncoder
from trainers.shared.tokens import tokenize
from trainers.tcp import ClassAwarePromptLearner

NODE = "TRAINER.COOP."


def moved(model, *opts, block=1, **more):
    """A trainer whose learned tensors are all random."""
    trainer, gen = bare("TCP", model, NODE + "BLOCK", block, *opts, **more), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trainer.model.prompt_learner.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=gen, dtype=p.dtype))
    return trainer


def features(plain, learner, prompts, t, block):
    """Text features by the equation and OpenAI's blocks, of all 77 tokens."""
    one, two = learner.meta_net.linear1, learner.meta_net.linear2
    hidden = t @ one.weight.T + one.bias
    own = ((hidden * torch.sigmoid(1.702 * hidden)) @ two.weight.T + two.bias).reshape(len(t), 4, -1)
    ids = clip.tokenize(prompts)
    x = plain.token_embedding(ids)
    x = torch.cat([x[:, :1], learner.ctx.expand(len(x), -1, -1), x[:, 5:]], dim=1) + plain.positional_embedding
    x = run(plain.transformer.resblocks, x, lambda i, x: torch.cat([x[:, :1], own, x[:, 5:]], 1) if i == block else x)
    return unit(plain.ln_final(x)[torch.arange(len(x)), ids.argmax(dim=-1)] @ plain.text_projection)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize(
    "dataset, form, template",
    [
        ("Caltech101", "X X X X {}.", "a photo of a {}."),
        ("StanfordCars", "X X X X {}, a type of car", "a photo of a {}."),
        ("EuroSAT", "X X X X {}.", "a centered satellite photo of {}."),
        ("UCF101", "a photo of a person doing {}.", "a photo of a person doing {}."),
        ("FGVCAircraft", "X X X X {}, a type of aircraft.", "a photo of an aircraft {}."),
    ],
)
def test_logits_loss_and_gradients(random_clip, noise, monkeypatch, dataset, form, template, block):
    plain, image = in_float64(random_clip(), monkeypatch), noise(5, 3, 32, 32).double()
    trainer = moved(plain, "DATASET.NAME", dataset, NODE + "W", 2.5, block=block)
    learner, t = trainer.model.prompt_learner, plain_text(plain, spoken(template))
    terms, z = trainer.losses(image, LABEL)
    g = features(plain, learner, spoken(form), t, block)
    wanted, score = plain_logits(plain, image, g), (1 - (g * t).sum(dim=1)).mean()
    close(z, wanted)
    close(terms["ce"], cross_entropy(wanted))
    close(terms["score"], 2.5 * score)
    close(gradients(sum(terms.values()), learner), gradients(cross_entropy(wanted) + 2.5 * score, learner))


def test_with_equal_class_tokens_they_are_deep_prompts(random_clip, noise):
    """A meta-net that sees nothing gives all classes its bias: a prefix that ends gives what a shared one gives."""
    model = moved(random_clip().double()).model
    learner, encoder = model.prompt_learner, model.text_encoder
    with torch.no_grad():
        learner.meta_net.linear2.weight.zero_()
        tokens = learner.meta_net.linear2.bias.reshape(4, -1)
        deep = encoder(learner(), learner.tokens, learner.n_shared, deep={1: tokens})
        close(model.encode_text(), unit(deep))


@pytest.mark.parametrize("at_once", [0, 1, 3])
@pytest.mark.parametrize("insert", [False, True], ids=["replaced", "inserted"])
def test_tokens_of_each_class_in_two_blocks(random_clip, noise, monkeypatch, insert, at_once):
    """Among tokens that all share; each class against itself alone, in chunks too, with gradients."""
    plain = in_float64(random_clip(), monkeypatch)
    encoder, prompts = TextEncoder(plain), spoken("one two three {} four.")
    encoder.at_once = at_once
    deep = {0: noise(3, 64, seed=1), 1: noise(4, 3, 64, seed=2), 2: noise(4, 2, 64, seed=3)}
    deep = {i: t.double().requires_grad_() for i, t in deep.items() if i or not insert}
    given = encoder(None, tokenize(prompts), deep=deep, insert=insert)

    def put(c):
        def put(i, x):
            if i not in deep:
                return x
            own = deep[i] if deep[i].dim() == 2 else deep[i][c]
            n = 0 if insert and i == min(deep) else len(own)
            return torch.cat([x[:, :1], own[None], x[:, 1 + n :]], dim=1)

        return put

    rows, shift = [], 3 if insert else 0
    for c, ids in enumerate(clip.tokenize(prompts)):
        x = run(plain.transformer.resblocks, (plain.token_embedding(ids) + plain.positional_embedding)[None], put(c))
        rows.append(plain.ln_final(x[0, ids.argmax() + shift]) @ plain.text_projection)
    wanted, weights = torch.stack(rows), noise(4, 24, seed=9).double()
    close(given, wanted)
    for a, b in zip(*(torch.autograd.grad((f * weights).sum(), deep.values()) for f in (given, wanted)), strict=True):
        assert b.abs().max() > 1e-3
        close(a, b)


def test_tokens_of_each_class_replace_shared_ones_only(random_clip, noise):
    encoder, ids = TextEncoder(random_clip()), tokenize(["a photo of a cat.", "a dog."])
    encoder(None, ids, deep={1: noise(2, 1, 64)})
    with pytest.raises(ValueError, match="2 tokens of each class .* too many of 2 that all prompts share"):
        encoder(None, ids, deep={1: noise(2, 2, 64)})


def test_the_words_of_the_context_are_those_of_a_switch(random_clip):
    model = random_clip()
    learner = bare(
        "TCP", model, NODE + "CTX_INIT", True, NODE + "BLOCK", 1, "DATASET.NAME", "EuroSAT"
    ).model.prompt_learner
    ids = clip.tokenize("a photo of a")[0, 1:5]
    assert torch.equal(learner.ctx, model.token_embedding(ids))


def test_adam_has_the_eps_of_the_original(make_trainer):
    """In tiny gradients the step is the gradient's, not its sign's."""
    for eps in (1e-3, 1e-5):
        trainer = make_trainer(NODE + "EPS", eps, trainer="TCP", out=str(eps))
        assert [group["eps"] for group in trainer.optim.param_groups] == [eps]


def test_a_weight_of_the_scripts_is_told(make_trainer, capsys):
    for weight, told in ((1.0, True), (8.0, False), (2.0, False)):
        trainer = make_trainer(NODE + "W", weight, trainer="TCP", out=str(weight))
        trainer.fit()
        assert ("their code has 8" in capsys.readouterr().out) is told


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("BLOCK", 3, "has the blocks 0 to 2"),
        ("BLOCK", 0, "BLOCK is 0"),
        ("N_CTX", 3, "N_CTX is 3"),
        ("CSC", True, "CSC is True"),
        ("CLASS_TOKEN_POSITION", "front", "CLASS_TOKEN_POSITION is .front."),
    ],
)
def test_settings_that_cannot_be_are_refused(make_trainer, one_line, key, value, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        make_trainer(NODE + key, value, trainer="TCP")
    one_line(caught)


def test_as_many_parameters_as_published():
    encoder = wide_text_encoder()
    encoder.text_projection = torch.empty(512, 512, device="meta")
    learner = ClassAwarePromptLearner(encoder, NAMES, "", "X X X X {}.")
    assert sum(p.numel() for p in learner.parameters()) == 331_904
