"""MMA against its equation on OpenAI's blocks, its gradients against those of scale 1, its settings."""

import pytest
import torch
from clip import clip

from tests.prompt_tools import LABEL, bare, close, cross_entropy, in_float64, spoken, unit
from tests.prompted import plain_tokens
from trainers.mma import AdapterLearner

NODE = "TRAINER.MMADAPTER."


def moved(model, start=1, end=2, scale=0.1):
    """A trainer whose learned tensors are all random."""
    opts = [NODE + "ADAPTER_START", start, NODE + "ADAPTER_END", end, NODE + "ADAPTER_DIM", 5]
    trainer, gen = bare("MMA", model, *opts, NODE + "ADAPTER_SCALE", scale), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trainer.model.adapter_learner.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=gen, dtype=p.dtype))
    return trainer


def adapter(learner, encoder, i):
    """A_i by the equation."""
    down, up = (learner.get_submodule(f"{encoder}_adapter.{i}.{name}") for name in ("down.0", "up"))
    middle = learner.get_submodule(f"shared_adapter.{i}.0")

    def compute(h):
        h = (h @ down.weight.T + down.bias).clamp(min=0)
        return (h @ middle.weight.T + middle.bias).clamp(min=0) @ up.weight.T + up.bias

    return compute


def tokens_after(blocks, x, learner, encoder, scale):
    """By OpenAI's blocks; scale: of the adapters in blocks."""
    for i, block in enumerate(blocks, start=1):
        out = block(x.transpose(0, 1)).transpose(0, 1)
        x = out + scale * adapter(learner, encoder, i)(block.ln_1(x)) if str(i) in learner.shared_adapter else out
    return x


def logits(plain, learner, image, scale, inputs=0.0):
    visual, ids = plain.visual, clip.tokenize(spoken("a photo of a {}."))
    x, t = visual.ln_pre(plain_tokens(visual, image)), plain.token_embedding(ids)
    if inputs:
        x, t = x + inputs * adapter(learner, "visual", 0)(x), t + inputs * adapter(learner, "text", 0)(t)
    x = tokens_after(visual.transformer.resblocks, x, learner, "visual", scale)
    t = tokens_after(plain.transformer.resblocks, t + plain.positional_embedding, learner, "text", scale)
    f = unit(visual.ln_post(x[:, 0]) @ visual.proj)
    g = unit(plain.ln_final(t)[torch.arange(len(t)), ids.argmax(dim=-1)] @ plain.text_projection)
    return plain.logit_scale.exp() * f @ g.T


@pytest.mark.parametrize("start, end", [(1, 2), (2, 2), (0, 1), (0, 0)])
def test_logits_loss_and_gradients(random_clip, noise, monkeypatch, start, end):
    """The gradients of adapters in blocks are the loss's divided by the scale, those of the inputs the loss's."""
    plain, image, scale = in_float64(random_clip(), monkeypatch), noise(5, 3, 32, 32).double(), 0.1
    trainer = moved(plain, start, end, scale)
    learner = trainer.model.adapter_learner
    terms, z = trainer.losses(image, LABEL)
    wanted = logits(plain, learner, image, scale, scale if start == 0 else 0.0)
    close(z, wanted)
    assert list(terms) == ["ce"]
    close(terms["ce"], cross_entropy(wanted))
    names, parameters = zip(*learner.named_parameters(), strict=True)
    both = (torch.autograd.grad(loss, parameters) for loss in (terms["ce"], cross_entropy(wanted)))
    for name, a, b in zip(names, *both, strict=True):
        assert b.abs().max() > 1e-6, name
        close(a, b if name.split(".")[1] == "0" else b / scale)


def test_the_gradient_of_what_comes_before_is_the_losss(random_clip, noise, monkeypatch):
    """Of the image, through two blocks with adapters."""
    plain, image = in_float64(random_clip(), monkeypatch), noise(5, 3, 32, 32).double().requires_grad_()
    trainer = moved(plain, scale=0.05)
    given = trainer.losses(image, LABEL)[0]["ce"]
    wanted = cross_entropy(logits(plain, trainer.model.adapter_learner, image, 0.05))
    close(*(torch.autograd.grad(loss, image)[0] for loss in (given, wanted)))


@pytest.mark.parametrize("start", [0, 1])
def test_without_what_leaves_the_adapters_it_is_zero_shot(random_clip, noise, start):
    plain, image = random_clip(), noise(5, 3, 32, 32)
    trainer = moved(plain, start)
    template = ["TRAINER.ZEROSHOTCLIP.TEMPLATE", "a photo of a {}."]
    with torch.no_grad():
        wanted = bare("ZeroshotCLIP", plain, *template).model(image)
        assert (trainer.model(image) - wanted).abs().max() > 1e-3
        for name, p in trainer.model.adapter_learner.named_parameters():
            if ".up." in name:
                p.zero_()
        torch.testing.assert_close(trainer.model(image), wanted, atol=1e-5, rtol=1e-5)


def test_prompts_in_chunks(random_clip, noise):
    """The recomputation of a chunk has its adapters too."""
    trainer, results = moved(random_clip().double(), 0), []
    learner = trainer.model.adapter_learner
    text = [p for name, p in learner.named_parameters() if "visual" not in name and not name.startswith("shared")]
    for trainer.model.text_encoder.at_once in (0, 1, 3):  # noqa: B020
        g = trainer.model.encode_text()
        results.append([g, *torch.autograd.grad((g * noise(*g.shape)).sum(), text)])
    for chunks in results[1:]:
        for a, b in zip(chunks, results[0], strict=True):
            close(a, b)


@pytest.mark.parametrize("blocks, number", [(range(5, 13), 674_560), (range(9, 13), 337_280)])
def test_as_many_parameters_as_published(blocks, number):
    learner = AdapterLearner(blocks, (512, 768), 32, 0.001)
    assert sum(p.numel() for p in learner.parameters()) == number


def test_layers_start_as_the_originals():
    """U too: the start is near the frozen model, but not it."""
    learner = AdapterLearner(range(1, 2), (512, 768), 32, 0.001)
    for name, p in learner.named_parameters():
        deviation = 0 if name.endswith("bias") else (2 / p.shape[0]) ** 0.5
        assert p.std().item() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("ADAPTER_END", 5, "0 <= start <= end <= 3"),
        ("ADAPTER_START", 4, "0 <= start <= end <= 3"),
        ("ADAPTER_START", -1, "ADAPTER_START is -1"),
        ("ADAPTER_DIM", 0, "ADAPTER_DIM is 0"),
        ("ADAPTER_SCALE", 0.0, "ADAPTER_SCALE is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make_trainer, one_line, key, value, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        make_trainer(NODE + key, value, trainer="MMA")
    one_line(caught)


def test_a_resnet_is_refused(random_clip):
    with pytest.raises(ValueError, match="is a ResNet"):
        bare("MMA", random_clip("resnet"))
