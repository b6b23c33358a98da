"""CLIP-SVD: its maps by OpenAI's CLIP, what is trained, the schedule of its original, and the original's file."""

import numpy as np
import pytest
import torch
from clip.model import CLIP
from prompt_tools import bare, close, cross_entropy, in_float64, plain_logits, plain_text, spoken

from trainers.clip_svd import PUBLISHED
from trainers.shared.encoders import ImageEncoder, TextEncoder
from trainers.shared.weights import ENCODERS, WEIGHTS, find_places

FORM, LABEL = "a photo of a {}.", torch.tensor([0, 1, 3, 2, 1])
SMALL = ["DATALOADER.TRAIN_X.BATCH_SIZE", 16, "OPTIM.LR", 0.01, "TEST.NO_TEST", True, "OPTIM.LR_SCHEDULER", "cosine"]


@pytest.fixture
def model(random_clip, monkeypatch):
    return lambda: in_float64(random_clip(), monkeypatch)


def moved(model, noise, *opts):
    """A trainer with other values S, and a plain CLIP with U diag(S) V^T as weights that require a gradient."""
    trainer, plain, weights = bare("CLIP_SVD", model(), *opts), model(), {}
    for k, (name, values) in enumerate(trainer.model.svd.vector_S.items()):
        values.data += 0.1 * noise(len(values), seed=k).double()
        encoder, parameter, rows = trainer.model.places[name]
        target = plain.get_parameter(("visual." if encoder == "image" else "") + parameter)
        u, _, vt = np.linalg.svd(target.data[rows].numpy(), full_matrices=False)
        changed = torch.from_numpy(u @ np.diag(values.detach().numpy()) @ vt)
        weights[name] = target, rows, torch.from_numpy(u), torch.from_numpy(vt)
        target.data[rows] = changed
        target.requires_grad_()
    return trainer, plain, weights


@pytest.mark.parametrize("opts", [[], ["TRAINER.CLIP_SVD.WEIGHTS", "['q', 'c_fc']", "TRAINER.CLIP_SVD.LAYERS", "[1]"]])
def test_logits_and_gradients_are_those_of_clip_with_these_weights(model, noise, opts):
    """The gradient of S is the diagonal of U^T G V, G that of the weight: for any signs of the singular vectors."""
    trainer, plain, weights = moved(model, noise, *opts)
    plain.logit_scale.data.fill_(np.log(100))
    image = noise(5, 3, 32, 32).double()
    wanted = plain_logits(plain, image, plain_text(plain, spoken(FORM)))
    terms, z = trainer.losses(image, LABEL)
    torch.testing.assert_close(z, wanted, atol=1e-9, rtol=0)
    trainer.backward(terms)
    cross_entropy(wanted).backward()
    assert len(weights) == len(trainer.model.places) == (4 if opts else 30)
    for name, (weight, rows, u, vt) in weights.items():
        wanted_gradient = torch.einsum("or,oi,ri->r", u, weight.grad[rows], vt)
        given = trainer.model.svd.vector_S[name].grad
        torch.testing.assert_close(given, wanted_gradient, atol=1e-8 * float(wanted_gradient.abs().max()), rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(image), wanted.detach(), atol=1e-9, rtol=0)


def test_it_starts_at_zero_shot_with_the_singular_values(model, noise):
    trainer, plain = bare("CLIP_SVD", model(), "TRAINER.CLIP_SVD.LOGIT_SCALE", 0.0), model()
    image = noise(5, 3, 32, 32).double()
    z = plain_logits(plain, image, plain_text(plain, spoken(FORM)))
    torch.testing.assert_close(trainer.model(image), z, atol=1e-10, rtol=0)
    with torch.no_grad():
        close(trainer.model.eval()(image), z)
    for name, values in trainer.model.svd.vector_S.items():
        wanted = torch.linalg.svdvals(trainer.model.frozen_weight(name))
        torch.testing.assert_close(values.data, wanted, atol=1e-12, rtol=0)
    saved = trainer.model.svd.state_dict()
    assert {name.split(".")[0] for name in saved} == {"vector_S"}, "U and V are computed again"


@pytest.mark.parametrize("oscillates", [False, True])
def test_the_cosine_of_the_original_has_a_period_of_twice_as_many_batches_as_epochs(make_trainer, oscillates):
    opts = [*SMALL, "OPTIM.MAX_EPOCH", 2, "TRAINER.CLIP_SVD.OSCILLATES", oscillates]
    trainer, rates = make_trainer(*opts, trainer="CLIP_SVD"), []
    steps = 2 * len(trainer.train_loader_x)
    for _ in range(steps):
        rates.append(trainer.get_current_lr())
        trainer.optim.step()
        trainer.update_lr()
    half = 2 if oscillates else steps
    wanted = [1e-6 + (0.01 - 1e-6) * (1 + np.cos(np.pi * t / half)) / 2 for t in range(steps)]
    assert rates == pytest.approx(wanted, rel=1e-6, abs=1e-12) and steps > 4


@pytest.mark.parametrize("shots, steps", [(2, 12), (4, 24)])
def test_steps_are_counted_by_the_shot(make_trainer, shots, steps):
    opts = [*SMALL, "TRAINER.CLIP_SVD.N_ITERS", 6, "DATASET.NUM_SHOTS", shots, "DATASET.SUBSAMPLE_CLASSES", "base"]
    trainer = make_trainer(*opts, trainer="CLIP_SVD")
    batches = len(trainer.train_loader_x)
    assert trainer.max_epoch == round(steps / batches) and trainer.sched.T_max == trainer.max_epoch * batches


# ------------------------------------------------------------------ the original's file


def published(model, path, noise):
    """A base_model.pt with other signs of the vectors, and S as it was trained there; return these S by place."""
    weights, values = {}, {}
    for k, (name, place) in enumerate(model.places.items()):
        _, block, weight = name.split("_", 2)
        prefix = "visual." if place.encoder == "image" else ""
        layer = f"{prefix}transformer.resblocks.{block}.{PUBLISHED[weight]}"
        u, s, vt = model.svd.factors(name)
        signs = noise(len(s), seed=k).sign()
        values[name] = s + 0.3 * noise(len(s), seed=k + 100)
        weights[f"{layer}.fc_U.weight"], weights[f"{layer}.fc_V.weight"] = u * signs, signs[:, None] * vt
        weights[f"{layer}.vector_S"] = values[name][None]
    torch.save({"weights": weights, "metadata": {"image_encoder": True, "text_encoder": True}}, path)
    return values


def test_the_originals_file_is_loaded_with_its_own_vectors(make_trainer, noise, tmp_path, one_line):
    trainer = make_trainer(trainer="CLIP_SVD")
    values = published(trainer.model, tmp_path / "base_model.pt", noise)
    other = make_trainer(trainer="CLIP_SVD", out="other")
    other.load_model(str(tmp_path))
    for name, s in values.items():
        trainer.model.svd.vector_S[name].data.copy_(s)
    image = next(iter(trainer.test_loader))["img"][:8]
    with torch.no_grad():
        torch.testing.assert_close(other.model.eval()(image), trainer.model.eval()(image), atol=1e-3, rtol=1e-4)
        other.model.strength = 0.0
        zero = trainer.model.logits(trainer.model.frozen_image(image), trainer.model.frozen_text)
        torch.testing.assert_close(other.model(image), zero, atol=1e-3, rtol=1e-4)

    content = torch.load(tmp_path / "base_model.pt")
    key = "visual.transformer.resblocks.0.attn.q_proj.fc_U.weight"
    for wrong, reason in ((torch.zeros_like(content["weights"][key]), "another weight"), (None, "KeyError")):
        content["weights"][key] = wrong
        if wrong is None:
            del content["weights"][key]
        torch.save(content, tmp_path / "base_model.pt")
        with pytest.raises(ValueError, match=reason) as error:
            other.load_model(str(tmp_path))
        one_line(error)


def test_trained_numbers_at_vit_b16():
    with torch.device("meta"):
        clip = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    sizes = []
    for encoder, module in zip(ENCODERS, (ImageEncoder(clip.visual), TextEncoder(clip)), strict=True):
        for _, parameter, rows in find_places(encoder, module, [], WEIGHTS, "").values():
            sizes.append(min(module.get_parameter(parameter)[rows].shape))
    assert (len(sizes), sum(sizes)) == (144, 92_160)
