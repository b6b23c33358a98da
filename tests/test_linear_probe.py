"""Linear probes: their formulas written out, the stored passes, and which classes a checkpoint serves."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from clip import clip
from clip.model import LayerNorm
from torch import nn
from torch.nn import functional as F

from trainers.linear_probe import Passes, ProbedCLIP, mean_probability

NAMES, TEMPLATES = ["red circle", "x", "dark_blue heart"], ["one {}.", "a photo of the {}."]
FAST = ["OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True, "TRAINER.ADAPTER.PASSES", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 16]


def probe(clip_model, names=NAMES, init="ZS", keep=False):
    node = SimpleNamespace(INIT=init, KEEP_UNDERSCORES=keep)
    return ProbedCLIP(node, clip_model, names, TEMPLATES)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("init", ["ZS", "RANDOM", "TR"])
def test_logits_losses_and_gradients(random_clip, noise, monkeypatch, init, keep):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds fp64 to fp32
    plain = random_clip().double()
    model = probe(random_clip().double(), init=init, keep=keep).double().train()
    trained, multipliers = model.adapter.prototypes, noise(3, seed=5).double().abs()
    with torch.no_grad():
        trained += 0.3 * noise(3, 24, seed=2)
    model.adapter.multipliers = multipliers
    w = trained.detach().clone().requires_grad_()
    names = NAMES if keep else ["red circle", "x", "dark blue heart"]
    texts = [plain.encode_text(clip.tokenize([t.format(n) for n in names])) for t in TEMPLATES]
    t = (texts[0] + texts[1]) / 2  # of features not normalised
    image, label = noise(4, 3, 32, 32).double(), torch.tensor([0, 2, 1, 1])
    vectors = t + 0.5 * w if init == "TR" else w
    z = plain.logit_scale.exp() * torch.cosine_similarity(plain.visual(image)[:, None], vectors[None], dim=-1)
    ours = model(image)
    torch.testing.assert_close(ours, z, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(model(plain.visual(image)), z, atol=1e-10, rtol=1e-10)  # of stored features
    constraint = sum(multipliers[c] * ((vectors[c] - t[c]) ** 2).sum() for c in range(3)) / 3
    (wanted,) = torch.autograd.grad(F.cross_entropy(z, label) + constraint, [w])
    (given,) = torch.autograd.grad(F.cross_entropy(ours, label) + model.adapter.constraint(), [trained])
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(given, wanted, atol=1e-10, rtol=1e-8)


def test_mean_probability_by_loops(noise):
    z, labels = noise(7, 4), torch.tensor([0, 1, 1, 3, 0, 3, 3])  # none of class 2
    p = z.exp() / z.exp().sum(dim=1, keepdim=True)
    wanted = [
        float(sum(p[i, c] for i in range(7) if labels[i] == c)) / max(labels.tolist().count(c), 1) for c in range(4)
    ]
    torch.testing.assert_close(mean_probability(z, labels), torch.tensor(wanted))


@pytest.mark.parametrize("init, same", [("ZS", True), ("TR", True), ("RANDOM", False)])
def test_before_its_first_step_it_is_zero_shot(make_trainer, init, same):
    zero = make_trainer(trainer="ZeroshotCLIP", out="zero")
    trainer = make_trainer("TRAINER.ADAPTER.INIT", init, trainer="LinearProbe")
    image = next(iter(zero.test_loader))["img"][:8]
    with torch.no_grad():
        a, b = trainer.model.eval()(image), zero.model.eval()(image)
    assert (float((a - b).abs().max()) < 1e-4) == same


def test_the_constraint_is_a_term_of_the_loss(make_trainer):
    trainer = make_trainer(*FAST, "TRAINER.ADAPTER.CONSTRAINT", "l2", trainer="LinearProbe")
    trainer.encode_passes()
    multipliers = trainer.model.adapter.multipliers
    assert float(multipliers.min()) > 0 and float(multipliers.max()) < 1 and len(set(multipliers.tolist())) > 10
    with torch.no_grad():
        trainer.model.adapter.prototypes.add_(1)
    batch = next(iter(trainer.train_loader_x))
    terms, _ = trainer.losses(batch["img"], batch["label"])
    assert terms["constraint"].item() == pytest.approx(float(multipliers.mean()) * 64)


# ------------------------------------------------------------------ stored passes


def test_an_epoch_is_drawn_from_all_passes_without_repetition():
    loader = Passes(torch.arange(40.0).unsqueeze(1), torch.arange(40), batch_size=6, batches=3)
    epochs = [[batch["label"] for batch in loader] for _ in range(30)]
    assert len(loader) == 3 and all([len(labels) for labels in epoch] == [6, 6, 6] for epoch in epochs)
    assert all(len(set(torch.cat(epoch).tolist())) == 18 for epoch in epochs)
    assert set(torch.cat([torch.cat(epoch) for epoch in epochs]).tolist()) == set(range(40))
    assert all(torch.equal(batch["img"][:, 0].long(), batch["label"]) for batch in loader)


def test_images_are_encoded_once(make_trainer, monkeypatch):
    trainer = make_trainer(*FAST, trainer="LinearProbe")
    seen, encode = [], trainer.model.image_encoder.forward
    monkeypatch.setattr(trainer.model.image_encoder, "forward", lambda x, **kw: seen.append(len(x)) or encode(x, **kw))
    batches = len(trainer.train_loader_x)
    trainer.train()
    assert sum(seen) == 2 * len(trainer.dm.dataset.train_x) and trainer.num_batches == batches > 1


def test_a_run_gone_on_with_ends_as_an_undisturbed_one(make_trainer, tmp_path):
    opts = [*FAST, "TRAIN.CHECKPOINT_FREQ", 1]
    whole = make_trainer(*opts, trainer="LinearProbe", out="whole")
    whole.train()
    (tmp_path / "rest" / "adapter").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/adapter/model.pth.tar-1", tmp_path / "rest/adapter")
    rest = make_trainer(*opts, trainer="LinearProbe", out="rest")
    rest.train()
    start = rest.model.adapter.base_text_features
    assert rest.start_epoch == 1 and not torch.equal(rest.model.adapter.prototypes, start)
    assert torch.equal(rest.model.adapter.prototypes, whole.model.adapter.prototypes)


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("init", ["ZS", "TR"])
def test_the_originals_checkpoint_loads(random_clip, noise, init):
    model = probe(random_clip(), init=init).eval()
    state = {"prototypes": noise(3, 24), "base_text_features": noise(3, 24, seed=1), "logit_scale": torch.tensor(4.6)}
    model.adapter.load_state_dict(state)
    w = state["base_text_features"] + 0.5 * state["prototypes"] if init == "TR" else state["prototypes"]
    torch.testing.assert_close(model.adapter(), w)


@pytest.mark.parametrize("init", ["ZS", "TR"])
def test_other_classes_are_zero_shot_and_known_ones_keep_their_vector(random_clip, noise, capsys, init):
    model = probe(random_clip(), init=init)
    with torch.no_grad():
        model.adapter.prototypes += noise(3, 24)
    others = probe(random_clip(), ["zebra", "Dark blue heart", "red circle"], init=init)
    start = others.adapter().detach().clone()
    others.adapter.load_state_dict(model.adapter.state_dict())
    assert "trained on 2 of these 3 classes" in capsys.readouterr().out
    torch.testing.assert_close(others.adapter()[0], start[0], atol=0, rtol=0)
    torch.testing.assert_close(others.adapter()[1:], model.adapter()[[2, 0]], atol=0, rtol=0)
    with pytest.raises(RuntimeError):
        others.adapter.load_state_dict({"ctx": noise(4, 8)})
