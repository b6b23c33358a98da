"""KgCoOp against its equation on a plain CLIP; its limit, its keys, its published checkpoints."""

import pytest
import torch

from dassl.config import get_cfg_default, merge_config
from orthcr.run.declarations import default_cfg
from tests.prompt_tools import (
    LABEL,
    NAMES,
    bare,
    close,
    cross_entropy,
    gradients,
    in_float64,
    plain_logits,
    plain_text,
    spoken,
)
from trainers.base import extend_cfg

NODE = "TRAINER.COOP."


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("words, form", [(True, "a photo of a {}."), (False, "X X X {}.")])
def test_logits_loss_and_gradients(random_clip, noise, monkeypatch, words, form, csc):
    plain, image = in_float64(random_clip(), monkeypatch), noise(5, 3, 32, 32).double()
    opts = [NODE + "CTX_INIT", words, NODE + "N_CTX", 3, NODE + "CSC", csc, NODE + "W", 2.5]
    trainer = bare("KgCoOp", plain, *opts, NODE + "TEMPLATE", "one {}.")
    ctx = trainer.model.prompt_learner.ctx
    assert ctx.shape == ((4, 64) if words else (4, 3, 64) if csc else (3, 64))
    with torch.no_grad():
        ctx += 0.2 * noise(*ctx.shape, seed=1)
    terms, z = trainer.losses(image, LABEL)

    g, g_0 = plain_text(plain, spoken(form), ctx.expand(len(NAMES), -1, -1)), plain_text(plain, spoken("one {}."))
    wanted = plain_logits(plain, image, g)
    score = sum(1 - g[c] @ g_0[c] for c in range(len(NAMES))) / len(NAMES)
    close(z, wanted)
    close(terms["ce"], cross_entropy(wanted))
    close(terms["score"], 2.5 * score)
    assert score > 1e-3
    learner = trainer.model.prompt_learner
    close(gradients(sum(terms.values()), learner), gradients(cross_entropy(wanted) + 2.5 * score, learner))


def test_with_w_0_it_is_coop(make_trainer, take_steps):
    contexts = []
    for name, words in (("KgCoOp", True), ("CoOp", "a photo of a")):
        opts = [NODE + "CTX_INIT", words, "OPTIM.LR", 0.05] + [NODE + "W", 0.0] * (name == "KgCoOp")
        trainer = make_trainer(*opts, "DATALOADER.TRAIN_X.BATCH_SIZE", 16, trainer=name, out=name)
        torch.manual_seed(0)
        take_steps(trainer, 3)
        contexts.append(trainer.model.prompt_learner.ctx.detach())
    torch.testing.assert_close(*contexts, atol=1e-6, rtol=1e-5)


def test_it_starts_where_the_knowledge_is(random_clip, noise):
    """The words are those of the template: both features are the same."""
    trainer = bare("KgCoOp", random_clip(), NODE + "CTX_INIT", True)
    assert abs(trainer.losses(noise(5, 3, 32, 32), LABEL)[0]["score"]) < 1e-6


def test_what_the_original_ignores_is_ignored_and_said(random_clip, capsys):
    opts = [NODE + "CTX_INIT", True, NODE + "CSC", True]
    learner = bare("KgCoOp", random_clip(), *opts).model.prompt_learner
    said = capsys.readouterr().out
    assert f"{NODE}CSC is ignored" in said
    plain = bare("KgCoOp", random_clip(), NODE + "CTX_INIT", True).model.prompt_learner
    assert torch.equal(learner(), plain())
    assert "ignored" not in capsys.readouterr().out


def test_the_template_is_the_published_one(random_clip):
    for data, template in (
        ("DescribableTextures", "a photo of a {}, a type of texture."),
        ("none", "a photo of a {}."),
    ):
        assert bare("KgCoOp", random_clip(), "DATASET.NAME", data).model.templates == [template]


def test_a_node_that_several_share_has_the_defaults_of_who_runs_else_of_its_owner():
    for trainer, wanted in (("", ""), ("CoOp", ""), ("KgCoOp", False), ("ProGrad", False)):
        cfg = get_cfg_default()
        extend_cfg(cfg, trainer)
        assert cfg.TRAINER.COOP.CTX_INIT is wanted or cfg.TRAINER.COOP.CTX_INIT == wanted == ""
        assert ("W" in cfg.TRAINER.COOP) == (trainer == "KgCoOp") and ("LOSS" in cfg) == (trainer == "ProGrad")


def test_published_settings(root):
    cfg = default_cfg("KgCoOp")
    merge_config(cfg, str(root / "configs" / "trainers" / "KgCoOp" / "vit_b16_ep100_ctxv1.yaml"))
    assert (cfg.TRAINER.COOP.W, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR) == (
        8,
        128,
        100,
        0.002,
    )
    assert cfg.TRAINER.COOP.CTX_INIT is True


def test_checkpoint_of_the_original(make_trainer, tmp_path, noise, one_line):
    """With the fixed tokens and all that the original never uses."""
    dead = {"token_prefix": (7, 1, 64), "token_suffix": (7, 72, 64), "bias_vectors": (1, 512)}
    dead |= {"meta_net.linear1.weight": (512, 512), "meta_net.linear1.bias": (512,)}
    state = {"ctx": noise(4, 64).half(), **{name: torch.zeros(shape) for name, shape in dead.items()}}
    (tmp_path / "prompt_learner").mkdir()
    torch.save({"state_dict": state, "epoch": 100}, tmp_path / "prompt_learner" / "model.pth.tar-100")
    trainer = make_trainer(trainer="KgCoOp")
    trainer.load_model(str(tmp_path), epoch=100)
    assert torch.equal(trainer.model.prompt_learner.ctx.half(), state["ctx"])
    assert list(trainer.model.prompt_learner.state_dict()) == ["ctx"]
    with pytest.raises(ValueError, match="bias_vectors") as error:  # it is no CoOp's
        make_trainer(trainer="CoOp", out="coop").load_model(str(tmp_path), epoch=100)
    assert one_line(error)
