"""Full fine-tuning: the weights that OrthCR rotates, free, from zero-shot CLIP on, with the frozen CLIP kept."""

import pytest
import torch
from clip.model import LayerNorm
from orthcr_tools import NAMES, TEMPLATE, Encoders, node, orthogonal, prompts_of
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from trainers.full_ft import FreeCLIP


@pytest.mark.parametrize("changes", [{}, {"WEIGHTS": ["k", "c_fc"], "LAYERS": [0]}, {"ENCODERS": ["text"]}], ids=str)
def test_logits_and_gradients_are_those_of_clips_own_weights(random_clip, noise, monkeypatch, changes):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds fp64 to fp32
    model = FreeCLIP(node(**changes), random_clip().double(), NAMES, TEMPLATE).train()
    plain = Encoders(random_clip().double())
    generator = torch.Generator().manual_seed(1)
    weights = {}
    with torch.no_grad():
        for name, (encoder, parameter, rows) in model.places.items():
            w = model.weights[name]
            w += 0.02 * torch.randn(w.shape, generator=generator)
            key = ("model.visual." if encoder == "image" else "model.") + parameter
            weights.setdefault(key, plain.get_parameter(key).clone())[rows.start : rows.start + len(w)] = w
    weights = {key: w.requires_grad_() for key, w in weights.items()}
    image, label = noise(4, 3, 32, 32).double(), torch.tensor([0, 2, 1, 1])
    f, g = functional_call(plain, weights, (image, prompts_of(NAMES)))
    f, g = f / f.norm(dim=1, keepdim=True), g / g.norm(dim=1, keepdim=True)
    wanted, given = plain.model.logit_scale.exp() * f @ g.T, model(image)
    torch.testing.assert_close(given, wanted, atol=1e-11, rtol=0)
    F.cross_entropy(wanted, label).backward()
    F.cross_entropy(given, label).backward()
    for name, (encoder, parameter, rows) in model.places.items():
        key = ("model.visual." if encoder == "image" else "model.") + parameter
        grad = weights[key].grad[rows.start : rows.start + len(model.weights[name])]
        assert grad.abs().max() > 0
        torch.testing.assert_close(model.weights[name].grad, grad, atol=1e-12, rtol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), wanted.detach(), atol=1e-11, rtol=0)


def test_its_weights_are_those_that_orthcr_rotates(random_clip):
    for changes in ({}, {"LAYERS": [-1], "WEIGHTS": ["q", "out"]}, {"ENCODERS": ["image"]}):
        free = FreeCLIP(node(**changes), random_clip(), NAMES, TEMPLATE)
        turned = orthogonal(random_clip(), **changes)
        assert free.places == turned.places and list(free.weights) == list(turned.rotations.upper)
        assert all(torch.equal(w, turned.frozen_weight(name)) for name, w in free.weights.items())


def test_it_starts_exactly_at_zero_shot(make_trainer):
    zero, trainer = make_trainer(trainer="ZeroshotCLIP", out="zero"), make_trainer(trainer="FullFT")
    image = next(iter(zero.test_loader))["img"][:8]
    with torch.no_grad():
        wanted = zero.model.eval()(image)
        assert torch.equal(trainer.model.eval()(image), wanted)
        torch.testing.assert_close(trainer.model.train()(image), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reg", ["none", "cross_kl"])
def test_training_leaves_the_frozen_clip_as_it_is(make_trainer, take_steps, reg):
    trainer = make_trainer("TRAINER.FULLFT.REG", reg, "OPTIM.LR", 0.001, trainer="FullFT")
    model, image = trainer.model, torch.randn(4, 3, 32, 32)
    clip = {n: p.clone() for n, p in model.named_parameters() if not n.startswith("weights.")}
    before = model.frozen_image(image), model.frozen_text.clone(), model.encode_text().detach()
    steps = take_steps(trainer, 3)
    assert [set(step) for step in steps] == [{"loss", "acc"} | ({"ce", reg} if reg != "none" else set())] * 3
    assert all(torch.equal(p, clip[n]) for n, p in model.named_parameters() if n in clip)
    assert torch.equal(model.frozen_image(image), before[0]) and torch.equal(model.frozen_text, before[1])
    assert not torch.equal(model.encode_text().detach(), before[2])
    assert all(not torch.equal(w, model.frozen_weight(name)) for name, w in model.weights.items())
    if reg == "cross_kl":
        assert steps[0][reg] == pytest.approx(0, abs=1e-5) and steps[2][reg] > 1e-4


def test_an_unknown_regularizer_is_refused(make_trainer, one_line):
    with pytest.raises(ValueError) as error:
        make_trainer("TRAINER.FULLFT.REG", "l2", trainer="FullFT")
    assert "TRAINER.FULLFT.REG" in one_line(error)


def test_a_checkpoint_holds_what_is_trained(make_trainer):
    opts = ["OPTIM.MAX_EPOCH", 1, "TRAINER.FULLFT.LAYERS", "[-1]", "OPTIM.LR", 0.01]
    trainer = make_trainer(*opts, trainer="FullFT")
    trainer.train()
    state = torch.load(f"{trainer.output_dir}/weights/model.pth.tar-1", weights_only=True)["state_dict"]
    last = {"image": 3, "text": 2}
    assert set(state) == {f"{e}_{i}_{w}" for e, i in last.items() for w in ("q", "k", "v", "out", "c_fc", "c_proj")}
    assert all(t.dtype == torch.float32 for t in state.values())
    again = make_trainer(*opts, trainer="FullFT", out="again")
    again.load_model(trainer.output_dir)
    assert again.test() == trainer.results["accuracy"]
