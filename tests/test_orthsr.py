"""OrthSR: whose attention guides the holes, where they lie, and that without them it is OrthCR."""

import pytest
import torch

from trainers.shared.cutout import class_attention, cut_out
from trainers.shared.encoders import ImageEncoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_attention_is_that_of_the_last_blocks_own_module(random_clip, noise, dtype):
    plain, image = random_clip().visual, noise(3, 3, 32, 32)
    inputs, block = [], plain.transformer.resblocks[-1]
    handle = block.ln_1.register_forward_hook(lambda module, args, out: inputs.append(out))
    plain(image)
    handle.remove()
    h = inputs[0].to(dtype)  # [tokens, B, width]
    weights = block.attn.to(dtype)(h, h, h, need_weights=True)[1]  # mean over heads, [B, tokens, tokens]
    wanted = weights[:, 0, 1:] / weights[:, 0, 1:].sum(dim=1, keepdim=True)
    given = class_attention(ImageEncoder(random_clip().visual), image)
    assert given.shape == (3, 4) and float(given.std()) > 1e-3
    torch.testing.assert_close(given.to(dtype), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 4, 8, 11, 20])
def test_a_hole_is_a_square_around_the_patch(noise, length):
    image = noise(16, 3, 32, 32)
    cut = cut_out(image, torch.eye(16), 1, length)  # patch k of image k, of 4 x 4 patches
    for k in range(16):
        wanted = image[k].clone()
        top, left = (8 * (k // 4) + 4 - length // 2, 8 * (k % 4) + 4 - length // 2)
        wanted[:, max(top, 0) : top + length, max(left, 0) : left + length] = 0
        assert torch.equal(cut[k], wanted)


def test_holes_are_drawn_as_often_as_attended_to():
    torch.manual_seed(0)
    attention = torch.tensor([0.5, 0.0, 0.3, 0.2]).repeat(4000, 1)
    holes = cut_out(torch.ones(4000, 3, 32, 32), attention, 1, 2)[:, 0, 8::16, 8::16].flatten(1) == 0
    assert holes.sum(dim=1).tolist() == [1] * 4000
    torch.testing.assert_close(holes.float().mean(dim=0), attention[0], atol=0.03, rtol=0)
    two = cut_out(torch.ones(4000, 3, 32, 32), attention, 2, 2)[:, 0, 8::16, 8::16].flatten(1) == 0
    assert 0.34 < (two.sum(dim=1) == 1).float().mean() < 0.42  # the same patch twice: 0.25 + 0.09 + 0.04


def test_loss_is_of_the_cut_image_for_both_sides(make_trainer, monkeypatch):
    trainer = make_trainer(trainer="OrthSR")
    trainer.model.train()
    with torch.no_grad():
        for upper in trainer.model.rotations.upper.values():
            upper.normal_(0, 0.1)
    image, label = torch.randn(4, 3, 32, 32), torch.arange(4)
    torch.manual_seed(3)
    given = trainer.losses(image, label)[0]
    torch.manual_seed(3)
    inputs = trainer.cfg.INPUT
    cut = cut_out(image, class_attention(trainer.model.image_encoder, image), inputs.CUTOUT_N, inputs.CUTOUT_LEN)
    assert (cut == 0).float().mean() > 0.02
    z, *_, z_0 = trainer.model.all_logits(cut)
    node, p = trainer.node, (z_0 / trainer.node.TAU).softmax(dim=1)
    kl = (p * (p.log() - (z / node.TAU).log_softmax(dim=1))).sum(dim=1).mean()
    assert given["self_kl"].item() == pytest.approx(node.LAMBDA * kl.item(), rel=1e-4)
    assert given["ce"].item() == pytest.approx(-z.log_softmax(dim=1)[range(4), range(4)].mean().item(), rel=1e-5)


def test_without_guidance_it_is_orthcr_with_self_kl(make_trainer, take_steps):
    steps = {}
    for name in ("OrthSR", "OrthCR"):
        node = f"TRAINER.{name.upper()}."
        opts = [
            node + "LAMBDA",
            1.0,
            node + "TAU",
            4.0,
            "OPTIM.LR",
            5e-4,
            "INPUT.TRANSFORMS",
            '["random_resized_crop", "cutout", "normalize"]',
        ]
        opts += [node + "ATTENTIVE", False] if name == "OrthSR" else [node + "REG", "self_kl"]
        trainer = make_trainer(*opts, trainer=name, out=name)
        torch.manual_seed(0)
        steps[name] = take_steps(trainer, 3)
    assert steps["OrthSR"] == steps["OrthCR"] and steps["OrthSR"][2]["self_kl"] > 0


def test_two_kinds_of_holes_and_a_resnet_are_refused(make_trainer, random_clip, tmp_path, one_line):
    with pytest.raises(ValueError) as error:
        make_trainer("INPUT.TRANSFORMS", '["cutout", "normalize"]', trainer="OrthSR")
    assert "TRAINER.ORTHSR.ATTENTIVE" in one_line(error)
    path = tmp_path / "resnet.pt"
    torch.save(random_clip("resnet").state_dict(), path)
    opts = ["MODEL.BACKBONE.NAME", path, "INPUT.SIZE", "(64, 64)", "TRAINER.ORTHSR.ENCODERS", "['text']"]
    with pytest.raises(ValueError) as error:
        make_trainer(*opts, trainer="OrthSR")
    assert "ResNet" in one_line(error)
    assert make_trainer(*opts, "TRAINER.ORTHSR.ATTENTIVE", False, trainer="OrthSR").model.places
