"""ProGrad: its projection, its two gradients on a plain CLIP, its start, and rounding noise."""

import pytest
import torch

from dassl.config import merge_config
from orthcr.run.declarations import default_cfg
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
)
from trainers.prograd import project

NODE = "TRAINER.COOP."


# ------------------------------------------------------------------ the projection


def pair(noise, seed, conflict):
    a, b = noise(3, 4, seed=seed).double(), noise(3, 4, seed=seed + 100).double()
    return a, b if ((a * b).sum() < 0) == conflict else -b


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weight", [0.0, 0.8, 1.0])
def test_of_a_conflict_the_part_against_b_goes(noise, seed, weight):
    a, b = pair(noise, seed, conflict=True)
    given, part = project(a, b, weight), float((a * b).sum() / (b * b).sum())
    close(given, a - weight * part * b)
    close((given * b).sum(), (1 - weight) * (a * b).sum())
    close(project(a, 1e-6 * b, weight), given)
    close(project(64 * a, 64 * b, weight), 64 * given)  # so the scale of amp does not matter


@pytest.mark.parametrize("seed", range(5))
def test_without_a_conflict_nothing_changes(noise, seed):
    a, b = pair(noise, seed, conflict=False)
    assert torch.equal(project(a, b, 1.0), a)
    assert torch.equal(project(a, torch.zeros_like(a), 1.0), a), "as where the original compares with NaN"


def test_infinite_gradients_reach_the_scaler(noise):
    a, b = pair(noise, 0, conflict=True)
    b[0, 0] = torch.inf
    assert not project(a, b, 1.0).isfinite().all()
    assert not project(b, a, 1.0).isfinite().all()


# ------------------------------------------------------------------ the gradients


def prepared(random_clip, noise, monkeypatch, *opts):
    plain, image = in_float64(random_clip(), monkeypatch), noise(5, 3, 32, 32).double()
    trainer = bare("ProGrad", plain, NODE + "N_CTX", 3, NODE + "TEMPLATE", "one {}.", *opts)
    ctx = trainer.model.prompt_learner.ctx
    with torch.no_grad():
        ctx += 0.2 * noise(*ctx.shape, seed=1)
    return plain, image, trainer, ctx


@pytest.mark.parametrize("position", ["end", "front"])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_terms_and_what_the_optimizer_gets(random_clip, noise, monkeypatch, t, position):
    opts = ["LOSS.T", t, "LOSS.LAMBDA", 0.8, NODE + "CLASS_TOKEN_POSITION", position]
    plain, image, trainer, ctx = prepared(random_clip, noise, monkeypatch, *opts)
    learner = trainer.model.prompt_learner
    if position == "end":
        g = plain_text(plain, spoken("X X X {}."), ctx.expand(len(NAMES), -1, -1))
        z = plain_logits(plain, image, g)
    else:  # the prompts themselves: tests of CoOp
        z = trainer.model(image)
    z_0 = plain_logits(plain, image, plain_text(plain, spoken("one {}.")))
    p_0, log_p = (z_0 / t).exp(), z / t - (z / t).exp().sum(dim=1, keepdim=True).log()
    kl = -(t**2) * (p_0 / p_0.sum(dim=1, keepdim=True) * log_p).sum() / len(z)

    seen = set()
    for label in torch.arange(len(NAMES)).repeat(len(z), 1).T:  # away from some classes the frozen CLIP pulls
        terms, logits = trainer.losses(image, label)
        close(logits, z)
        close(terms["ce"], cross_entropy(z, label))
        close(terms["kl"], kl)
        a, b = gradients(cross_entropy(z, label), learner), gradients(kl, learner)
        close(gradients(terms["kl"], learner), b)
        ctx.grad = None
        trainer.backward(terms)
        conflict = bool(a @ b < 0)
        seen.add(conflict)
        close(ctx.grad.flatten(), a - 0.8 * (a @ b) / (b @ b) * b if conflict else a)
    assert seen == {True, False}


def test_without_conflict_it_is_coop(random_clip, noise, monkeypatch):
    plain, image, trainer, ctx = prepared(random_clip, noise, monkeypatch)
    coop = bare("CoOp", plain, NODE + "N_CTX", 3)
    with torch.no_grad():
        coop.model.prompt_learner.ctx.copy_(ctx)
    label = trainer.model.logits(trainer.model.encode_image(image), trainer.model.frozen_text).argmax(dim=1)
    for method in (trainer, coop):
        method.backward(method.losses(image, label)[0])
    close(ctx.grad, coop.model.prompt_learner.ctx.grad)


def test_gradients_are_scaled_for_amp(random_clip, noise, monkeypatch):
    _, image, trainer, ctx = prepared(random_clip, noise, monkeypatch)
    trainer.backward(trainer.losses(image, LABEL)[0])
    plain, ctx.grad = ctx.grad, None
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.backward(trainer.losses(image, LABEL)[0])
    close(ctx.grad, 2.0**10 * plain)


# ------------------------------------------------------------------ the start


def from_words(model, *opts):
    return bare("ProGrad", model, NODE + "CTX_INIT", True, *opts)


@pytest.mark.parametrize(
    "data, first, rest",
    [
        ("none", "a photo of a", ""),
        ("DescribableTextures", "a texture of", ""),
        ("OxfordPets", "a type of pet, a photo of", "a"),  # eight words, of nine tokens: the comma is one
    ],
)
def test_the_last_vectors_start_from_the_template_the_others_from_0(random_clip, data, first, rest):
    from clip import clip

    plain = random_clip()
    learner = from_words(plain, "DATASET.NAME", data, NODE + "N_CTX", 11).model.prompt_learner
    ids = clip._tokenizer.encode(first)
    assert learner.ctx.shape == (11, 64) and not learner.ctx[: -len(ids)].any()
    assert torch.equal(learner.ctx[-len(ids) :], plain.token_embedding(torch.tensor(ids)))
    for tokens, name in zip(learner.tokens.tolist(), NAMES, strict=True):
        words = f"{'X ' * (11 - len(ids))}{first} {rest} {name.replace('_', ' ')}."
        row = clip.tokenize(words)[0].tolist()
        assert tokens == row[: len(tokens)] and not any(row[len(tokens) :])


def test_too_few_vectors_for_the_words(random_clip, one_line):
    with pytest.raises(ValueError, match='COOP.N_CTX is 3.*"a photo of a": give 4') as error:
        from_words(random_clip(), NODE + "N_CTX", 3)
    assert one_line(error)


@pytest.mark.parametrize("half", [False, True])
def test_rounding_noise_is_no_direction(random_clip, noise, half):
    """With as many vectors as words, trained and frozen prompts are the same before the first step."""

    def gradients_of(trainer):
        trainer.autocast |= {"enabled": half, "dtype": torch.bfloat16}
        with torch.autocast(**trainer.autocast):
            terms, _ = trainer.losses(noise(5, 3, 32, 32), LABEL)
        return terms, *(gradients(terms[name], trainer.model.prompt_learner) for name in ("ce", "kl"))

    for published in (False, True):
        trainer = from_words(random_clip(), NODE + "N_CTX", 4, "LOSS.NOISE", published)
        terms, a, b = gradients_of(trainer)
        assert bool(b.any()) == published and b.norm() < (0.2 if half else 1e-4) * a.norm()
        trainer.backward(terms)
        ctx = trainer.model.prompt_learner.ctx
        assert published or torch.equal(ctx.grad.flatten(), a)
    trainer.cfg.LOSS.NOISE = False
    with torch.no_grad():
        ctx.add_(noise(*ctx.shape), alpha=1.0 if half else 1e-4)
    assert gradients_of(trainer)[2].any(), "what is more than rounding counts"


# ------------------------------------------------------------------ keys and checkpoints


def test_the_originals_yaml_and_command_line(tmp_path):
    file, cfg = tmp_path / "rn50.yaml", default_cfg("ProGrad")
    file.write_text('LOSS:\n  NAME: "prograd"\n  T: 1.0\n  GM: False\nTRAINER:\n  COOP:\n    CTX_INIT: True\n')
    merge_config(cfg, str(file))
    words = "LOSS.LAMBDA 0.8 TRAINER.COOP.N_CTX 8 TRAINER.COOP.CSC False TRAINER.COOP.CLASS_TOKEN_POSITION end"
    merge_config(cfg, words.split())
    assert (cfg.LOSS.LAMBDA, cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.CTX_INIT) == (0.8, 8, True)


def test_a_step_reports_both_terms_and_the_checkpoint_is_the_context(make_trainer, take_steps):
    trainer = make_trainer("DATASET.SUBSAMPLE_CLASSES", "base", trainer="ProGrad")
    assert set(take_steps(trainer)[0]) == {"loss", "ce", "kl", "acc"}
    assert list(trainer._models) == ["prompt_learner"] and list(trainer.model.prompt_learner.state_dict()) == ["ctx"]


def test_checkpoint_of_the_original(make_trainer, tmp_path, noise):
    state = {"ctx": noise(16, 64).half(), "token_prefix": torch.zeros(7, 1, 64), "token_suffix": torch.zeros(7, 60, 64)}
    (tmp_path / "prompt_learner").mkdir()
    torch.save({"state_dict": state, "epoch": 100}, tmp_path / "prompt_learner" / "model.pth.tar-100")
    trainer = make_trainer("DATASET.SUBSAMPLE_CLASSES", "new", trainer="ProGrad")
    trainer.load_model(str(tmp_path), epoch=100)
    assert torch.equal(trainer.model.prompt_learner.ctx.half(), state["ctx"])
