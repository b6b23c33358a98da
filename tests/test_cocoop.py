"""CoCoOp against the text encoder run once an image; its limit; its published checkpoints."""

import pytest
import torch

from tests.prompt_tools import LABEL, NAMES, bare, close, cross_entropy, gradients, in_float64, plain_text, spoken, unit

WORDS = ["TRAINER.COCOOP.CTX_INIT", "a photo of a"]


def moved(name, model, *opts, seed=0):
    """A trainer whose learned tensors are all random."""
    trainer, gen = bare(name, model, *opts), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainer.model.prompt_learner.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=gen, dtype=p.dtype))
    return trainer


@pytest.mark.parametrize(
    "opts, form", [(WORDS, "a photo of a {}."), (["TRAINER.COCOOP.N_CTX", 3], "X X X {}.")], ids=["words", "random"]
)
def test_logits_loss_and_gradients(random_clip, noise, monkeypatch, opts, form):
    plain, image = in_float64(random_clip(), monkeypatch), noise(5, 3, 32, 32).double()
    trainer = moved("CoCoOp", plain, *opts)
    learner, net = trainer.model.prompt_learner, trainer.model.prompt_learner.meta_net
    terms, z = trainer.losses(image, LABEL)

    rows = []
    for f in unit(plain.encode_image(image)):  # as the original: one image after the other
        hidden = torch.relu(net.linear1.weight @ f + net.linear1.bias)
        ctx = learner.ctx + net.linear2.weight @ hidden + net.linear2.bias
        g = plain_text(plain, spoken(form), ctx.expand(len(NAMES), -1, -1))
        rows.append(plain.logit_scale.exp() * g @ f)
    wanted = torch.stack(rows)
    close(z, wanted)
    assert list(terms) == ["ce"] and (wanted - wanted[0]).abs().max() > 1e-3
    close(terms["ce"], cross_entropy(wanted))
    close(gradients(terms["ce"], learner), gradients(cross_entropy(wanted), learner))


def test_with_a_zero_meta_net_it_is_coop(random_clip, noise):
    plain, image = random_clip(), noise(5, 3, 32, 32)
    trainer = moved("CoCoOp", plain, *WORDS)
    coop = bare("CoOp", plain, "TRAINER.COOP.CTX_INIT", "a photo of a")
    with torch.no_grad():
        coop.model.prompt_learner.ctx.copy_(trainer.model.prompt_learner.ctx)
        wanted = coop.model(image)
        assert (trainer.model(image) - wanted).abs().max() > 1e-3
        for p in trainer.model.prompt_learner.meta_net.parameters():
            p.zero_()
        torch.testing.assert_close(trainer.model(image), wanted, atol=1e-5, rtol=1e-5)


def test_all_prompts_of_a_batch_in_one_pass_and_of_a_large_one_in_parts(random_clip, noise):
    model, image, seen = moved("CoCoOp", random_clip()).model, noise(5, 3, 32, 32), []
    model.text_encoder.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:2]))
    with torch.no_grad():
        whole = model(image)
        assert seen == [(5, 4)]
        model.text_encoder.at_once = 9
        torch.testing.assert_close(model(image), whole)
        assert seen[1:] == [(2, 4), (2, 4), (1, 4)]
        model.text_encoder.at_once = 1  # less than one image
        torch.testing.assert_close(model(image), whole)
        assert seen[4:] == [(1, 4)] * 5


def test_the_meta_net_is_the_published_one(random_clip):
    learner = bare("CoCoOp", random_clip(), *WORDS).model.prompt_learner
    shapes = {name: list(p.shape) for name, p in learner.named_parameters()}
    d, width = 24, 64
    assert shapes == {
        "ctx": [4, width],
        "meta_net.linear1.weight": [d // 16, d],
        "meta_net.linear1.bias": [d // 16],
        "meta_net.linear2.weight": [width, d // 16],
        "meta_net.linear2.bias": [width],
    }


def test_checkpoint_of_the_original(make_trainer, tmp_path, noise):
    """Half precision, with the fixed tokens of the classes trained on; evaluated on other classes."""
    opts = [*WORDS, "DATASET.SUBSAMPLE_CLASSES", "new"]
    trainer = make_trainer(*opts, trainer="CoCoOp")
    learner = trainer.model.prompt_learner
    theirs = {name: noise(*p.shape, seed=k).half() for k, (name, p) in enumerate(learner.named_parameters())}
    fixed = {"token_prefix": torch.zeros(7, 1, 64), "token_suffix": torch.zeros(7, 72, 64)}
    (tmp_path / "prompt_learner").mkdir()
    torch.save({"state_dict": {**theirs, **fixed}, "epoch": 10}, tmp_path / "prompt_learner" / "model.pth.tar-10")
    trainer.load_model(str(tmp_path), epoch=10)
    assert {name for name, _ in learner.named_parameters()} == set(theirs)
    assert all(
        torch.equal(p.half(), theirs[name]) and p.dtype == torch.float32 for name, p in learner.named_parameters()
    )
    assert list(learner.state_dict()) == list(theirs)
