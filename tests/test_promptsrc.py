"""PromptSRC: its three terms, its frozen text, and its Gaussian average, which a resumed run ends with too."""

import numpy as np
import pytest
import torch
from clip import clip
from prompted import IMAGES, LABELS, NAMES, agree, exact, randomized, same_value_and_gradients
from torch.nn import functional as F

from dassl.utils import load_checkpoint
from trainers.promptsrc import SelfRegulatedCLIP
from trainers.shared.epoch_average import gaussian_weights
from trainers.shared.templates import IMAGENET_TEMPLATES, PROMPTSRC_TEMPLATES

NODE = "TRAINER.PROMPTSRC."
SHORT = [NODE + "GPA_MEAN", 2.0, NODE + "GPA_STD", 1.5, "OPTIM.MAX_EPOCH", 4, "OPTIM.LR", 0.05]
SHORT += ["TRAIN.CHECKPOINT_FREQ", 1, "TEST.NO_TEST", True]


def prompts(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.prompt_learner.named_parameters()}


@pytest.fixture
def trainer64(make_trainer, random_clip, monkeypatch):
    """A trainer with a random CLIP in fp64, random prompts and other weights than the published ones."""
    weights = [NODE + "TEXT_LOSS_WEIGHT", 7.0, NODE + "IMAGE_LOSS_WEIGHT", 3.0, NODE + "LOGIT_LOSS_WEIGHT", 0.6]
    trainer = make_trainer(*weights, NODE + "PROMPT_DEPTH_VISION", 2, trainer="PromptSRC")
    trainer.clip = exact(monkeypatch, random_clip())
    trainer.model = SelfRegulatedCLIP(trainer.node, trainer.clip, NAMES, PROMPTSRC_TEMPLATES).double().train()
    randomized(trainer.model.prompt_learner)
    return trainer


def test_the_templates_are_60_of_clips():
    assert len(set(PROMPTSRC_TEMPLATES)) == 60 and set(PROMPTSRC_TEMPLATES) < set(IMAGENET_TEMPLATES)
    assert "a photo of a {}." in PROMPTSRC_TEMPLATES and "itap of the {}." in PROMPTSRC_TEMPLATES
    assert "a tattoo of the {}." not in PROMPTSRC_TEMPLATES


def test_frozen_text_is_the_mean_of_features_of_any_length(trainer64):
    names = [name.replace("_", " ") for name in NAMES]
    features = [
        trainer64.clip.encode_text(clip.tokenize([t.format(name) for name in names])) for t in PROMPTSRC_TEMPLATES
    ]
    mean = torch.stack(features).mean(dim=0)
    agree(trainer64.model.frozen_text, mean / mean.norm(dim=-1, keepdim=True))
    unit = F.normalize(torch.stack(features), dim=-1).mean(dim=0)
    assert (trainer64.model.frozen_text - F.normalize(unit, dim=-1)).abs().max() > 1e-6, "CLIP's own is another"


def test_loss_and_gradients_by_the_equation(trainer64, noise):
    model, image = trainer64.model, noise(IMAGES, 3, 32, 32).double()
    terms, z = trainer64.losses(image, LABELS)
    assert list(terms) == ["ce", "l1_text", "l1_image", "kl"]
    f, g = model.encode_image(image), model.encode_text()
    f_0, g_0 = trainer64.clip.encode_image(image), model.frozen_text
    f_0 = f_0 / f_0.norm(dim=-1, keepdim=True)
    s = trainer64.clip.logit_scale.exp()
    p, p_0 = (s * f @ g.T).softmax(dim=-1), (s * f_0 @ g_0.T).softmax(dim=-1)
    agree(z, s * f @ g.T)
    wanted = {
        "ce": -p[range(IMAGES), LABELS].log().sum() / IMAGES,
        "l1_text": 7.0 * (g - g_0).abs().sum() / (len(NAMES) * 24),
        "l1_image": 3.0 * (f - f_0).abs().sum() / (IMAGES * 24),
        "kl": 0.6 * (p_0 * (p_0 / p).log()).sum() / (IMAGES * len(NAMES)),
    }
    for name, term in wanted.items():
        agree(terms[name], term)
    same_value_and_gradients(sum(terms.values()), sum(wanted.values()), model.prompt_learner)


@pytest.fixture
def few_templates(monkeypatch):
    """For tests in which the frozen text only has to be there."""
    monkeypatch.setattr("trainers.promptsrc.PROMPTSRC_TEMPLATES", PROMPTSRC_TEMPLATES[:2])


def test_without_terms_and_average_it_is_ivlp(make_trainer, few_templates):
    """Bit for bit, through training: the average's weight is all on the last epoch."""
    common = ["OPTIM.MAX_EPOCH", 2, "OPTIM.LR", 0.05]
    none = [word for term in ("TEXT", "IMAGE", "LOGIT") for word in (f"{NODE}{term}_LOSS_WEIGHT", 0.0)]
    none += [NODE + "GPA_MEAN", 2.0, NODE + "GPA_STD", 0.01]
    trainer = make_trainer(*common, *none, trainer="PromptSRC")
    start = prompts(trainer)
    trainer.train()
    keys = ("N_CTX_VISION", "N_CTX_TEXT", "CTX_INIT", "PROMPT_DEPTH_VISION", "PROMPT_DEPTH_TEXT")
    same = [word for key in keys for word in (f"TRAINER.IVLP.{key}", trainer.node[key])]
    ivlp = make_trainer(*common, *same, trainer="IVLP", out="ivlp")
    ivlp.train()
    assert trainer.results == ivlp.results
    for (name, a), b in zip(prompts(trainer).items(), prompts(ivlp).values(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, start[name]), name


# ------------------------------------------------------------------ the average


@pytest.mark.parametrize("epochs, mean, std", [(20, 15, 1), (20, 6, 10), (50, 45, 5), (3, 1000, 0.5)])
def test_weights_of_the_average(epochs, mean, std):
    weights = np.array(gaussian_weights(epochs, mean, std))
    e = np.arange(1, epochs + 1, dtype=np.longdouble)
    density = np.exp(-(((e - mean) / np.longdouble(std)) ** 2) / 2 + (((epochs - mean) / np.longdouble(std)) ** 2) / 2)
    np.testing.assert_allclose(weights, (density / density.sum()).astype(float), rtol=1e-12)


def test_published_weights():
    """Epoch 15 of 20 has two fifths, the last three together half a percent."""
    weights = gaussian_weights(20, 15, 1)
    assert weights[14] == pytest.approx(0.3989, abs=1e-4) and sum(weights[17:]) == pytest.approx(0.0046, abs=1e-4)


def watched(trainer):
    """`trainer`, which notes its prompts at the end of each epoch, before anything is done with them."""
    seen, run_epoch = [], trainer.run_epoch

    def run():
        run_epoch()
        seen.append(prompts(trainer))

    trainer.run_epoch = run
    return seen


def test_what_is_saved_at_the_end_is_the_average(make_trainer, few_templates):
    trainer = make_trainer(*SHORT, trainer="PromptSRC")
    seen = watched(trainer)
    trainer.train()
    density = np.exp(-(((np.arange(1, 5) - 2.0) / 1.5) ** 2) / 2)
    folder = f"{trainer.output_dir}/VLPromptLearner/model.pth.tar-"
    for name, p in prompts(trainer).items():
        wanted = sum(w * theta[name].double() for w, theta in zip(density / density.sum(), seen, strict=True))
        torch.testing.assert_close(p.double(), wanted, atol=1e-7, rtol=1e-6)
        assert (p - seen[-1][name]).abs().max() > 1e-4
        assert torch.equal(load_checkpoint(folder + "4")["state_dict"][name], p)
        assert torch.equal(load_checkpoint(folder + "3")["state_dict"][name], seen[2][name]), "not before the end"


@pytest.mark.parametrize("done", [1, 3])
def test_a_resumed_run_ends_with_the_average(make_trainer, few_templates, done):
    whole = make_trainer(*SHORT, trainer="PromptSRC", out="whole")
    whole.train()
    broken = make_trainer(*SHORT, trainer="PromptSRC", out="broken")
    after_epoch = broken.after_epoch

    def stop():
        after_epoch()
        if broken.epoch + 1 == done:
            raise KeyboardInterrupt

    broken.after_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make_trainer(*SHORT, trainer="PromptSRC", out="broken")
    resumed.train()
    assert resumed.start_epoch == done
    for (name, a), b in zip(prompts(whole).items(), prompts(resumed).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("change", [[NODE + "GPA_MEAN", 3.0], ["OPTIM.MAX_EPOCH", 5], None])
def test_going_on_without_its_average_is_refused(make_trainer, few_templates, one_line, change):
    trainer = make_trainer(*SHORT, trainer="PromptSRC")
    trainer.average_settings = [] if change is None else [4, 2.0, 1.5]
    trainer.save_model(0, trainer.output_dir)
    with pytest.raises(ValueError, match=f"epoch 1 has no running average.*{NODE}GPA_MEAN") as caught:
        make_trainer(*SHORT, *change or [], trainer="PromptSRC").train()
    one_line(caught)
