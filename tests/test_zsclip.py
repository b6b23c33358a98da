"""Zero-shot CLIP against OpenAI's own encoders and NumPy."""

import numpy as np
import pytest
import torch
from clip import clip

from trainers.shared.templates import IMAGENET_TEMPLATES, IMAGENET_TEMPLATES_SELECT


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encoded(model, prompts):
    with torch.no_grad():
        return unit(model.encode_text(clip.tokenize(prompts)).double().numpy())


SELECT, ALL = IMAGENET_TEMPLATES_SELECT, IMAGENET_TEMPLATES
PHOTO, DIGIT = "a photo of a {}.", "a photo of a digit {}."


@pytest.mark.parametrize(
    "name, dataset, opts, templates",
    [
        ("ZeroshotCLIP", "Shapes", [], [PHOTO]),
        ("ZeroshotCLIP", "Digits", [], [DIGIT]),
        ("ZeroshotCLIP2", "Shapes", [], [*SELECT, PHOTO]),
        ("ZeroshotCLIP2", "Digits", [], [*SELECT, DIGIT]),
        ("ZeroshotCLIP2", "Shapes", ["TRAINER.ZEROSHOTCLIP2.TEMPLATES", "all"], ALL),  # PHOTO is one of them
        ("ZeroshotCLIP2", "Digits", ["TRAINER.ZEROSHOTCLIP2.TEMPLATES", "all"], [*ALL, DIGIT]),
    ],
)
def test_class_features_are_the_mean_over_templates(make_trainer, tiny, name, dataset, opts, templates):
    trainer = make_trainer("DATASET.SUBSAMPLE_CLASSES", "base", *opts, trainer=name, dataset=dataset)
    assert trainer.templates() == templates and trainer.model.templates == templates
    names = [n.replace("_", " ") for n in trainer.dm.dataset.classnames]
    mean = sum(encoded(tiny, [t.format(n) for n in names]) for t in templates) / len(templates)
    image = next(iter(trainer.test_loader))["img"][:12]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        features = unit(tiny.encode_image(image).double().numpy())
        given = trainer.model_inference(image).numpy()
    np.testing.assert_allclose(given, np.exp(float(tiny.logit_scale)) * features @ unit(mean).T, atol=3e-4)


@pytest.mark.parametrize("own, added", [("", []), ("my {}.", ["my {}."])])
def test_of_imagenet_the_hand_crafted_template_is_added_only_if_it_is_given(make_trainer, own, added):
    trainer = make_trainer("TRAINER.ZEROSHOTCLIP2.TEMPLATE", own, trainer="ZeroshotCLIP2")
    trainer.cfg = trainer.cfg.clone()
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = "ImageNet"
    assert trainer.templates() == [*SELECT, *added] and len(SELECT) == 7


def test_zero_shot_trains_nothing_and_encodes_each_class_once(make_trainer, tmp_path):
    trainer, calls = make_trainer("DATALOADER.TEST.BATCH_SIZE", 20, trainer="ZeroshotCLIP"), []
    trainer.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    trainer.train()
    assert len(calls) == 1 and 30 < trainer.results["accuracy"] <= 100
    assert not any(p.requires_grad for p in trainer.model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in trainer.model.state_dict().items())
    trainer.load_model("", epoch=3)  # without a directory there is nothing to complain about
