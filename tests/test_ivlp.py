"""IVLP and VPT: logits, loss and gradients against OpenAI's own blocks in fp64, and the originals' checkpoints."""

from types import SimpleNamespace

import pytest
import torch
from prompted import (
    IMAGES,
    LABELS,
    NAMES,
    agree,
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

from trainers import vpt
from trainers.ivlp import CustomCLIP, VLPromptLearner
from trainers.shared.deep import VisionPromptLearner


def node(n_vision=2, n_text=2, vision=2, text=3, words="a photo of a"):
    return SimpleNamespace(
        N_CTX_VISION=n_vision, N_CTX_TEXT=n_text, CTX_INIT=words, PROMPT_DEPTH_VISION=vision, PROMPT_DEPTH_TEXT=text
    )


@pytest.mark.parametrize("vision, text", [(2, 3), (1, 2), (2, 1), (0, 2)])
@pytest.mark.parametrize("n_vision, n_text", [(3, 2), (1, 4)])
def test_loss_and_gradients_by_openais_blocks(random_clip, noise, monkeypatch, vision, text, n_vision, n_text):
    plain, image = exact(monkeypatch, random_clip()), noise(IMAGES, 3, 32, 32).double()
    model = CustomCLIP(node(n_vision, n_text, vision, text), plain, NAMES).double().train()
    learner = randomized(model.prompt_learner)
    assert len(learner.vision_prompts) == vision and len(learner.text_prompts) == text - 1
    f = image_features(plain.visual, image, {i: learner.vision_prompts[str(i)] for i in range(vision)})
    deep = {i: learner.text_prompts[str(i)] for i in range(1, text)}
    g = text_features(plain, *embeddings(plain, "a photo of a", learner.ctx), deep)
    wanted = F.cross_entropy(plain.logit_scale.exp() * f @ g.T, LABELS)
    same_value_and_gradients(F.cross_entropy(model(image), LABELS), wanted, learner)


@pytest.mark.parametrize("settings", [{"n_vision": 0}, {"vision": 0}])
@pytest.mark.parametrize("kind, side", [("vit", 32), ("resnet", 64)])
def test_without_image_prompts_the_image_side_is_clips(random_clip, noise, kind, side, settings):
    plain, image = random_clip(kind), noise(3, 3, side, side)
    model = CustomCLIP(node(**settings), plain, NAMES).eval()
    assert model.prompt_learner.vision() == {}
    agree(model.encode_image(image), F.normalize(plain.encode_image(image), dim=-1), 1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_vpt_by_openais_blocks(random_clip, noise, monkeypatch, depth):
    plain, image = exact(monkeypatch, random_clip()), noise(IMAGES, 3, 32, 32).double()
    settings = SimpleNamespace(N_CTX_VISION=3, CTX_INIT="a photo of a", PROMPT_DEPTH_VISION=depth)
    model = vpt.CustomCLIP(settings, plain, NAMES).double().train()
    learner = randomized(model.prompt_learner)
    f = image_features(plain.visual, image, {i: learner.vision_prompts[str(i)] for i in range(depth)})
    embedding, end = embeddings(plain, "a photo of a", torch.zeros(0, 64).double())
    wanted = F.cross_entropy(plain.logit_scale.exp() * f @ text_features(plain, embedding, end, {}).T, LABELS)
    same_value_and_gradients(F.cross_entropy(model(image), LABELS), wanted, learner)


def test_prompts_start_from_a_normal_of_two_hundredths():
    for p in VisionPromptLearner(100, 256, 2).parameters():
        assert 0.0195 < p.std() < 0.0205 and p.mean().abs() < 1e-3 and p.abs().max() > 0.06


def test_as_many_parameters_as_published():
    def count(learner):
        return sum(p.numel() for p in learner.parameters())

    encoder = wide_text_encoder()
    assert count(VLPromptLearner(node(2, 2, 12, 12), encoder, NAMES, 768)) == 30_720
    assert count(VLPromptLearner(node(4, 4, 9, 9), encoder, NAMES, 768)) == 46_080
    assert count(VisionPromptLearner(8, 768, 12)) == 73_728


BLOCKS = "{}_encoder.transformer.resblocks.{}.VPT_shallow"


@pytest.mark.parametrize(
    "name, folder", [("IVLP", "VLPromptLearner"), ("PromptSRC", "VLPromptLearner"), ("VPT", "prompt_learner")]
)
def test_checkpoint_of_the_original(make_trainer, tmp_path, noise, name, folder):
    opts = [f"TRAINER.{name.upper()}.PROMPT_DEPTH_VISION", 3, f"TRAINER.{name.upper()}.N_CTX_VISION", 2]
    opts += [] if name == "VPT" else ["TRAINER.PROMPTSRC.N_CTX_TEXT", 2] * (name == "PromptSRC")
    trainer = make_trainer(*opts, trainer=name)
    theirs = {"image_encoder.VPT": noise(2, 128, seed=1)}
    theirs |= {BLOCKS.format("image", i): noise(2, 128, seed=1 + i) for i in (1, 2)}
    wanted = {f"vision_prompts.{i}": noise(2, 128, seed=1 + i) for i in range(3)}
    if name != "VPT":
        theirs |= {BLOCKS.format("text", i): noise(2, 64, seed=4 + i) for i in (1, 2)}
        theirs["prompt_learner.ctx"] = wanted["ctx"] = noise(2, 64, seed=9)
        wanted |= {f"text_prompts.{i}": noise(2, 64, seed=4 + i) for i in (1, 2)}
    trainer.load_model(published(tmp_path / "theirs", folder, theirs), epoch=5)
    ours = dict(trainer.model.prompt_learner.named_parameters())
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(ours[key].detach(), tensor.half().float()), key


@pytest.mark.parametrize("name", ["MaPLe", "IVLP", "VPT", "PromptSRC", "MMRL"])
def test_resnets_are_refused(make_trainer, random_clip, one_line, name):
    trainer = make_trainer(trainer=name)
    with pytest.raises(ValueError, match="ResNet") as caught:
        trainer.build_classifier(random_clip("resnet"), NAMES)
    one_line(caught)


@pytest.mark.parametrize(
    "name, key, value",
    [("IVLP", "PROMPT_DEPTH_VISION", 5), ("IVLP", "PROMPT_DEPTH_TEXT", 4), ("VPT", "N_CTX_VISION", 0)],
)
def test_settings_that_cannot_be_are_refused(make_trainer, one_line, name, key, value):
    with pytest.raises(ValueError, match=f"TRAINER.{name}.{key} (reaches block|is) {value}") as caught:
        make_trainer(f"TRAINER.{name}.{key}", value, trainer=name)
    one_line(caught)
