"""CLIP-LoRA against a plain CLIP with W + (alpha / sqrt(r)) B A written into its weights."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clip.model import LayerNorm
from orthcr_tools import NAMES, TEMPLATE, Encoders, prompts_of
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from trainers.clip_lora import LowRankCLIP

NODE = {"ENCODERS": ["image", "text"], "LAYERS": [], "WEIGHTS": ["q", "k", "v"], "R": 3, "ALPHA": 2.0, "DROPOUT": 0.0}


def low_rank(clip_model, noise, **changes):
    """A LowRankCLIP with random A and B."""
    node = SimpleNamespace(**{**NODE, "LOGIT_SCALE": 100.0, **changes})
    model = LowRankCLIP(node, clip_model, NAMES, TEMPLATE)
    with torch.no_grad():
        for k, p in enumerate(model.lora.parameters()):
            p.copy_(0.1 * noise(*p.shape, seed=k))
    return model


def plain_logits(model, plain, lora, image):
    """By changed weights and OpenAI's own forward pass; `lora`: tensors by name."""
    weights = {}
    for name, (encoder, parameter, rows) in model.places.items():
        key = ("model.visual." if encoder == "image" else "model.") + parameter
        product = 2 / math.sqrt(3) * lora[f"w_lora_B.{name}"] @ lora[f"w_lora_A.{name}"]
        whole = weights.get(key, Encoders(plain).get_parameter(key))
        weights[key] = torch.cat([whole[: rows.start], whole[rows] + product, whole[rows.start :][len(product) :]])
    f, g = functional_call(Encoders(plain), weights, (image, prompts_of(NAMES)))
    return 100 * (f / f.norm(dim=1, keepdim=True)) @ (g / g.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("changes", [{}, {"WEIGHTS": ["v", "out", "c_fc"], "LAYERS": [-1]}, {"ENCODERS": ["text"]}])
def test_logits_loss_and_gradients(random_clip, noise, monkeypatch, changes):
    """Without dropout, where the original's gradients are wrong."""
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds fp64 to fp32
    model = low_rank(random_clip().double(), noise, **changes).double().train()
    image, label = noise(4, 3, 32, 32).double(), torch.tensor([0, 2, 1, 1])
    lora = {name: p.detach().clone().requires_grad_() for name, p in model.lora.named_parameters()}
    wanted, given = plain_logits(model, random_clip().double(), lora, image), model(image)
    torch.testing.assert_close(given, wanted, atol=1e-10, rtol=0)
    of_wanted = torch.autograd.grad(F.cross_entropy(wanted, label), list(lora.values()))
    of_given = torch.autograd.grad(F.cross_entropy(given, label), list(model.lora.parameters()))
    for a, b in zip(of_given, of_wanted, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, atol=1e-11 * float(max(g.abs().max() for g in of_wanted)), rtol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), wanted.detach(), atol=1e-10, rtol=0)  # merged


def test_dropout_is_on_the_branch_of_each_map_and_in_training_only(random_clip, noise):
    model, eye = low_rank(random_clip(), noise, DROPOUT=0.25), torch.eye(64)
    x, weight, bias = noise(200, 64) + 5, noise(64, 64, seed=1), noise(64, seed=2)
    draws = [model.train().apply_change((eye, eye), x, weight, bias) - F.linear(x, weight, bias) for _ in range(2)]
    for branch in draws:  # x itself, an entry in four dropped and the others the larger for it
        kept = branch.abs() > 1
        assert 0.73 < kept.float().mean() < 0.77
        torch.testing.assert_close(branch[kept], (2 / math.sqrt(3) * x / 0.75)[kept], atol=1e-3, rtol=1e-3)
    assert not torch.equal(draws[0] > 1, draws[1] > 1)
    branch = model.eval().apply_change((eye, eye), x, weight, bias) - F.linear(x, weight, bias)
    torch.testing.assert_close(branch, 2 / math.sqrt(3) * x, atol=1e-3, rtol=1e-3)


def test_it_starts_at_zero_shot_with_a_random_a(make_trainer):
    zero = make_trainer("TRAINER.ZEROSHOTCLIP.TEMPLATE", TEMPLATE, trainer="ZeroshotCLIP", out="zero")
    opts = ["TRAINER.CLIPLORA.LOGIT_SCALE", 0.0, "TRAINER.CLIPLORA.TEMPLATE", TEMPLATE]
    trainer = make_trainer(*opts, trainer="CLIPLoRA")
    image = next(iter(zero.test_loader))["img"][:8]
    with torch.no_grad():
        wanted = zero.model.eval()(image)
        assert torch.equal(trainer.model.eval()(image), wanted)
        torch.testing.assert_close(trainer.model.train()(image), wanted, atol=1e-4, rtol=0)
    for name, a in trainer.model.lora.w_lora_A.items():  # kaiming_uniform(sqrt 5): within 1 / sqrt(inputs)
        bound = 1 / math.sqrt(trainer.model.frozen_weight(name).shape[1])
        assert 0.9 * bound < a.abs().max() <= bound
    published = make_trainer("TRAINER.CLIPLORA.LOGIT_SCALE", 100.0, trainer="CLIPLoRA", out="published")
    assert published.model.logit_scale == 100


def test_steps_for_each_shot_and_where_the_cosine_ends(make_trainer, take_steps):
    opts = ["TRAINER.CLIPLORA.N_ITERS", 10, "DATALOADER.TRAIN_X.BATCH_SIZE", 24, "OPTIM.LR", 0.01]
    trainer = make_trainer(*opts, trainer="CLIPLoRA")
    batches, images = len(trainer.train_loader_x), len(trainer.dm.dataset.train_x)
    assert batches == math.ceil(images / 24) > images / 24, "with the last, incomplete one"
    assert trainer.max_epoch == round(10 * 2 / batches) > 1
    total = trainer.max_epoch * batches
    rates = []
    for _ in range(total):
        rates.append(trainer.get_current_lr())
        trainer.optim.step()
        trainer.update_lr()
    wanted = [1e-6 + (0.01 - 1e-6) * (1 + math.cos(math.pi * k / total)) / 2 for k in range(total)]
    assert rates == pytest.approx(wanted) and trainer.get_current_lr() == pytest.approx(1e-6)


def test_the_originals_checkpoint_loads(make_trainer, noise, one_line):
    """lora_weights.pt: the blocks of the text encoder, then those of the image encoder."""
    trainer = make_trainer(trainer="CLIPLoRA")
    lora, state = trainer.model.lora, {}
    blocks = sorted(
        {tuple(name.split("_")[:2]) for name in lora.w_lora_A}, key=lambda block: (block[0] == "image", int(block[1]))
    )
    for k, (encoder, i) in enumerate(blocks):
        assert int(i) == k - blocks.index((encoder, "0")), "in order"
        a = noise(*lora.w_lora_A[f"{encoder}_{i}_q"].shape, seed=k)
        state[f"layer_{k}"] = {f"{w}_proj": {"w_lora_A": a + ord(w), "w_lora_B": a.T - ord(w)} for w in "qkv"}
    file = Path(trainer.output_dir, "lora", "model.pth.tar-1")
    file.parent.mkdir(parents=True)
    metadata = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"}
    torch.save({"weights": state, "metadata": metadata}, file)
    trainer.load_model(trainer.output_dir)
    for k, (encoder, i) in enumerate(blocks):
        for w in "qkv":
            theirs = state[f"layer_{k}"][f"{w}_proj"]
            assert torch.equal(lora.w_lora_A[f"{encoder}_{i}_{w}"], theirs["w_lora_A"])
            assert torch.equal(lora.w_lora_B[f"{encoder}_{i}_{w}"], theirs["w_lora_B"])
    for wrong, words in (
        ({"alpha": 2}, "alpha 2"),
        ({"weights": {"layer_0": state["layer_0"]}}, "ENCODERS"),
        ({"weights": dict.fromkeys(state, 3)}, "take the original's file"),
        ({"weights": {key: {"q_proj": 3} for key in state}}, "take the original's file"),
        ({"weights": 3}, "take the original's file"),
        ({"params": 3}, "take the original's file"),
        ({"params": [["q"]]}, "take the original's file"),
    ):
        torch.save({"weights": state, "metadata": metadata | wrong, **wrong}, file)
        with pytest.raises(ValueError, match=words) as error:
            trainer.load_model(trainer.output_dir)
        one_line(error)


def test_the_originals_name_of_the_output_map(make_trainer, tmp_path):
    """Its command line says "q k v o"; in the config, and so in results and checkpoints, the map is "out"."""
    theirs = make_trainer("TRAINER.CLIPLORA.WEIGHTS", "['q', 'v', 'o']", trainer="CLIPLoRA")
    ours = make_trainer("TRAINER.CLIPLORA.WEIGHTS", "['q', 'v', 'out']", trainer="CLIPLoRA")
    assert theirs.cfg.TRAINER.CLIPLORA.WEIGHTS == ["q", "v", "out"] and theirs.cfg == ours.cfg
    assert list(theirs.model.lora.state_dict()) == list(ours.model.lora.state_dict())
    assert list(make_trainer("TRAINER.ORTHCR.WEIGHTS", "['o']").cfg.TRAINER.ORTHCR.WEIGHTS) == ["out"]


def test_the_maps_in_the_metadata_of_the_originals_checkpoint(make_trainer, noise, one_line):
    trainer = make_trainer("TRAINER.CLIPLORA.WEIGHTS", "['q', 'v', 'o']", trainer="CLIPLoRA")
    lora, layers = trainer.model.lora, {}
    blocks = {tuple(name.split("_")[:2]) for name in lora.w_lora_A}
    for k, (encoder, i) in enumerate(sorted(blocks, key=lambda block: (block[0] == "image", int(block[1])))):
        a = noise(*lora.w_lora_A[f"{encoder}_{i}_q"].shape, seed=k)
        matrices = {"w_lora_A": a, "w_lora_B": a.T.clone()}
        layers[f"layer_{k}"] = {name: matrices for name in ("q_proj", "v_proj", "proj")}
    file = Path(trainer.output_dir, "lora_weights.pt")
    file.parent.mkdir(parents=True)
    torch.save({"weights": layers, "metadata": {"r": 2, "alpha": 1, "params": ["q", "v", "o"]}}, file)
    trainer.load_model(trainer.output_dir)
    assert torch.equal(lora.w_lora_A["text_1_out"], layers["layer_1"]["proj"]["w_lora_A"])
    other = make_trainer(trainer="CLIPLoRA", out="other")
    with pytest.raises(ValueError, match=r"is of the maps q, v, out: set WEIGHTS \['q', 'v', 'out'\]") as error:
        other.load_model(trainer.output_dir)
    one_line(error)


def test_settings_that_make_no_sense_are_refused(make_trainer, one_line):
    for key, value in (("R", 0), ("DROPOUT", 1.0), ("WEIGHTS", "['w']"), ("LAYERS", "[9]")):
        with pytest.raises(ValueError) as error:
            make_trainer(f"TRAINER.CLIPLORA.{key}", value, trainer="CLIPLoRA")
        assert f"TRAINER.CLIPLORA.{key}" in one_line(error)
