"""MaPLe: loss and gradients against OpenAI's own blocks in fp64, its prompts, and the original's checkpoints."""

from types import SimpleNamespace

import pytest
import torch
from prompted import (
    IMAGES,
    LABELS,
    NAMES,
    embeddings,
    exact,
    image_features,
    published,
    randomized,
    same_value_and_gradients,
    text_features,
    wide_text_encoder,
)
from torch.nn import functional as F

from trainers.maple import CustomCLIP, MultiModalPromptLearner


def custom(model, **changes):
    settings = {"N_CTX": 2, "CTX_INIT": "a photo of a", "PROMPT_DEPTH": 2, **changes}
    return CustomCLIP(SimpleNamespace(**settings), model, NAMES)


def plain_loss(model, learner, image, words):
    """Cross-entropy with the prompts of `learner`, by the equations."""
    text = {i + 1: p for i, p in enumerate(learner.compound_prompts_text)}
    projected = [(learner.proj, learner.ctx)]
    projected += list(zip(learner.compound_prompt_projections, learner.compound_prompts_text, strict=True))
    vision = {i: p @ f.weight.T + f.bias for i, (f, p) in enumerate(projected)}
    f = image_features(model.visual, image, vision)
    g = text_features(model, *embeddings(model, words, learner.ctx), text)
    return F.cross_entropy(model.logit_scale.exp() * f @ g.T, LABELS)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("n_ctx, words", [(2, "a photo of a"), (3, ""), (5, "a photo of a")])
def test_loss_and_gradients_by_openais_blocks(random_clip, noise, monkeypatch, depth, n_ctx, words):
    plain, image = exact(monkeypatch, random_clip()), noise(IMAGES, 3, 32, 32).double()
    model = custom(plain, N_CTX=n_ctx, CTX_INIT=words, PROMPT_DEPTH=depth).double().train()
    learner = randomized(model.prompt_learner)
    before = words if n_ctx <= 4 and words else " ".join(["X"] * n_ctx)
    wanted = plain_loss(plain, learner, image, before)
    same_value_and_gradients(F.cross_entropy(model(image), LABELS), wanted, learner)


def test_depth_one_is_the_inputs_alone(random_clip):
    learner = custom(random_clip(), PROMPT_DEPTH=1).prompt_learner
    assert list(learner.state_dict()) == ["ctx", "proj.weight", "proj.bias"]
    assert learner.text() == {} and list(learner.vision()) == [0]


def test_the_words_give_the_first_prompt_and_the_rest_of_them_stays(random_clip):
    plain = random_clip()
    learner = custom(plain).prompt_learner
    wanted, _ = embeddings(plain, "a photo of a", learner.ctx.detach())
    assert torch.equal(learner().detach(), wanted[:, : learner.tokens.shape[1]])
    _, a, photo, of, *_ = embeddings(plain, "a photo of a", wanted[0, :0])[0][0]
    assert torch.equal(learner.ctx.detach(), torch.stack([a, photo])) and torch.equal(learner()[0, 3], of)


def test_more_than_four_prompts_start_at_random_whatever_the_words(random_clip):
    plain, words = random_clip(), "a photo of a very"
    of_words = embeddings(plain, words, torch.zeros(0, 64))[0][0, 1:6]
    four, five = (custom(plain, N_CTX=n, CTX_INIT=words).prompt_learner.ctx.detach() for n in (4, 5))
    assert (
        torch.equal(four, of_words[:4]) and five.shape == (5, 64) and not torch.isclose(five, of_words).any(dim=1).all()
    )


def test_maps_of_deep_prompts_start_equal(random_clip):
    learner = custom(random_clip(), PROMPT_DEPTH=3).prompt_learner
    first, second = learner.compound_prompt_projections
    assert torch.equal(first.weight, second.weight) and first.weight is not second.weight
    assert not torch.equal(first.weight, learner.proj.weight)
    assert not torch.equal(*learner.compound_prompts_text)


@pytest.mark.parametrize("depth, count", [(9, 3_555_072), (3, 1_185_024)])
def test_as_many_parameters_as_published(depth, count):
    learner = MultiModalPromptLearner(wide_text_encoder(), NAMES, 2, "a photo of a", depth, 768)
    assert sum(p.numel() for p in learner.parameters()) == count


def test_checkpoint_of_the_original(make_trainer, tmp_path, noise):
    trainer = make_trainer(trainer="MaPLe")
    learner = trainer.model.prompt_learner
    theirs = {name: noise(*p.shape, seed=k) for k, (name, p) in enumerate(learner.named_parameters())}
    assert {"ctx", "proj.bias", "compound_prompts_text.1", "compound_prompt_projections.0.weight"} < set(theirs)
    renamed = {f"prompt_learner.{name}": tensor for name, tensor in theirs.items()}
    trainer.load_model(published(tmp_path / "theirs", "MultiModalPromptLearner", renamed), epoch=5)
    for name, p in learner.named_parameters():
        assert p.dtype == torch.float32 and torch.equal(p.detach(), theirs[name].half().float()), name


def test_checkpoint_of_another_depth_is_refused(make_trainer, tmp_path, noise, one_line):
    trainer = make_trainer("TRAINER.MAPLE.PROMPT_DEPTH", 2, trainer="MaPLe")
    deeper = make_trainer("TRAINER.MAPLE.PROMPT_DEPTH", 3, trainer="MaPLe", out="deeper").model.prompt_learner
    theirs = {f"prompt_learner.{name}": p.detach() for name, p in deeper.named_parameters()}
    with pytest.raises(ValueError, match="compound_prompts_text.1") as caught:
        trainer.load_model(published(tmp_path / "theirs", "MultiModalPromptLearner", theirs))
    one_line(caught)


def test_depth_beyond_the_blocks_is_refused(make_trainer, one_line):
    with pytest.raises(
        ValueError, match=r"TRAINER.MAPLE.PROMPT_DEPTH reaches block 4.* text encoder of tiny"
    ) as caught:
        make_trainer("TRAINER.MAPLE.PROMPT_DEPTH", 4, trainer="MaPLe")
    one_line(caught)
