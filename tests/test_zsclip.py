"""Zero-shot CLIP against OpenAI's own encoders and NumPy."""

import numpy as np
import pytest
import torch
from clip import clip

from trainers.shared.templates import IMAGENET_TEMPLATES


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encoded(model, prompts):
    with torch.no_grad():
        return unit(model.encode_text(clip.tokenize(prompts)).double().numpy())


@pytest.mark.parametrize(
    "name, dataset, count",
    [
        ("ZeroshotCLIP", "Shapes", 1),
        ("ZeroshotCLIP", "Digits", 1),
        ("ZeroshotCLIP2", "Shapes", 80),
        ("ZeroshotCLIP2", "Digits", 81),
    ],
)
def test_class_features_are_the_mean_over_templates(make_trainer, tiny, name, dataset, count):
    trainer = make_trainer("DATASET.SUBSAMPLE_CLASSES", "base", trainer=name, dataset=dataset)
    own = "a photo of a digit {}." if dataset == "Digits" else "a photo of a {}."
    templates = [own] if count == 1 else [*IMAGENET_TEMPLATES, own][:count]
    assert trainer.templates() == templates and trainer.model.templates == templates
    names = [n.replace("_", " ") for n in trainer.dm.dataset.classnames]
    mean = sum(encoded(tiny, [t.format(n) for n in names]) for t in templates) / count
    image = next(iter(trainer.test_loader))["img"][:12]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        features = unit(tiny.encode_image(image).double().numpy())
        given = trainer.model_inference(image).numpy()
    np.testing.assert_allclose(given, np.exp(float(tiny.logit_scale)) * features @ unit(mean).T, atol=3e-4)


def test_zero_shot_trains_nothing_and_encodes_each_class_once(make_trainer, tmp_path):
    trainer, calls = make_trainer("DATALOADER.TEST.BATCH_SIZE", 20, trainer="ZeroshotCLIP"), []
    trainer.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    trainer.train()
    assert len(calls) == 1 and 30 < trainer.results["accuracy"] <= 100
    assert not any(p.requires_grad for p in trainer.model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in trainer.model.state_dict().items())
    trainer.load_model("", epoch=3)  # without a directory there is nothing to complain about
