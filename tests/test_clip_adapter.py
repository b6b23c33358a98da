"""CLIP-Adapter against its formula, written out on OpenAI's own CLIP."""

from types import SimpleNamespace

import pytest
import torch
from clip import clip
from clip.model import LayerNorm
from torch import nn
from torch.nn import functional as F

from trainers.clip_adapter import AdapterCLIP

NAMES, PROMPTS = ["red circle", "x", "dark_blue heart"], ["one red circle.", "one x.", "one dark blue heart."]


@pytest.fixture
def plain(random_clip, monkeypatch):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds fp64 to fp32
    return random_clip().double()


@pytest.mark.parametrize("ratio, reduction", [(0.2, 4), (0.7, 3)])
def test_logits_loss_and_gradients(plain, noise, random_clip, ratio, reduction):
    node = SimpleNamespace(RATIO=ratio, REDUCTION=reduction)
    model = AdapterCLIP(node, random_clip().double(), NAMES, "one {}.").double().train()
    with torch.no_grad():
        for k, p in enumerate(model.adapter.parameters()):
            p.copy_(noise(*p.shape, seed=k))
    image, label = noise(5, 3, 32, 32, seed=9).double(), torch.tensor([0, 2, 1, 1, 0])
    w1, w2 = (p.detach().clone().requires_grad_() for p in model.adapter.parameters())
    f, g = plain.visual(image), plain.encode_text(clip.tokenize(PROMPTS))
    mixed = ratio * ((f @ w1.T).relu() @ w2.T).relu() + (1 - ratio) * f
    z = plain.logit_scale.exp() * (mixed / mixed.norm(dim=1, keepdim=True)) @ (g / g.norm(dim=1, keepdim=True)).T
    ours = model(image)
    torch.testing.assert_close(ours, z, atol=1e-11, rtol=1e-11)
    wanted = torch.autograd.grad(F.cross_entropy(z, label), [w1, w2])
    given = torch.autograd.grad(F.cross_entropy(ours, label), list(model.adapter.parameters()))
    for a, b in zip(given, wanted, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


def test_ratio_0_is_zero_shot_and_another_is_not(make_trainer):
    zero = make_trainer(trainer="ZeroshotCLIP", out="zero")
    image = next(iter(zero.test_loader))["img"][:8]
    for ratio, same in ((0.0, True), (0.2, False)):
        trainer = make_trainer("TRAINER.CLIP_ADAPTER.RATIO", ratio, trainer="CLIP_Adapter", out=str(ratio))
        with torch.no_grad():
            a, b = trainer.model.eval()(image), zero.model.eval()(image)
        assert (float((a - b).abs().max()) < 1e-4) == same


def test_a_checkpoint_has_the_originals_names(make_trainer, noise):
    trainer = make_trainer("OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True, trainer="CLIP_Adapter")
    trainer.train()
    path = f"{trainer.output_dir}/clip_adapter/model.pth.tar-1"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert {name: tuple(t.shape) for name, t in state.items()} == {"fc.0.weight": (16, 64), "fc.2.weight": (64, 16)}


def test_a_ratio_above_1_is_refused(make_trainer, one_line):
    with pytest.raises(ValueError) as error:
        make_trainer("TRAINER.CLIP_ADAPTER.RATIO", 1.5, trainer="CLIP_Adapter")
    assert "TRAINER.CLIP_ADAPTER.RATIO" in one_line(error)
