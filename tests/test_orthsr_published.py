"""The reviewed configuration of OrthSR: blocks by their number, the loss of both views, Cutout by similarity."""

import numpy as np
import pytest
import torch
from clip.model import LayerNorm
from orthcr_tools import BOTH, as64, block_diagonal, orthogonal, textbook, turn
from torch import nn
from torch.nn import functional as F

from dassl.engine import build_trainer
from orthcr.run.config import setup_cfg
from orthcr.run.config_files import CONFIGS
from orthcr.run.flags import parse
from trainers.shared.blocks import block_sizes
from trainers.shared.cutout import cut_out, patch_features
from trainers.shared.encoders import ImageEncoder
from trainers.shared.rotations import cayley

PUBLISHED = {"image": (768, 12), "text": (512, 12)}  # ViT-B/16: width and blocks


def config(trainer, file, *opts):
    return setup_cfg(parse(["--trainer", trainer, "--config-file", str(CONFIGS / "trainers" / trainer / file), *opts]))


# ------------------------------------------------------------------ blocks


@pytest.mark.parametrize("trainer", ["OrthSR", "OrthCR"])
def test_the_numbers_of_the_published_configuration(trainer):
    cfg = config(trainer, "vit_b16_published.yaml")
    node = cfg.TRAINER[trainer.upper()]
    widths = {}
    for encoder, (width, blocks) in PUBLISHED.items():
        for place in node.WEIGHTS:
            inputs = {"c_fc": width, "c_proj": 4 * width}[place]
            widths |= {f"{encoder}_{i}_{place}": inputs for i in range(blocks)}
    sizes = block_sizes(widths, node.BLOCK_SIZE, node.N_BLOCKS, "TRAINER.X")
    assert {m for m, _ in sizes.values()} == {4} and {b for _, b in sizes.values()} == {128, 192, 512, 768}
    assert sum(m * b**2 for m, b in sizes.values()) == 43_450_368
    assert sum(m * b * (b - 1) // 2 for m, b in sizes.values()) == 21_686_784
    assert (node.VIEWS, node.LAMBDA, node.LAMBDA_CUT, node.CUTOUT_BY) == ("both", 1.5, 1.0, "similarity")
    assert node.ATTENTIVE and "cutout" not in cfg.INPUT.TRANSFORMS
    tiny = config(trainer, "tiny_published.yaml").TRAINER[trainer.upper()]
    assert {key: tiny[key] for key in tiny if key not in ("REACH", "PREC")} == {
        key: node[key] for key in node if key not in ("REACH", "PREC")
    }


def test_the_trained_numbers_are_the_strict_upper_triangles(random_clip):
    model = orthogonal(random_clip(), WEIGHTS=["c_fc", "c_proj"], N_BLOCKS=4)
    for name, upper in model.rotations.upper.items():
        b = model.frozen_weight(name).shape[1] // 4
        assert upper.shape == (4, b * (b - 1) // 2)


def test_as_many_blocks_as_heads_are_blocks_of_64_to_the_bit(make_trainer, take_steps):
    """The tiny CLIP: an image encoder of width 128, a text encoder of width 64."""
    places = [(["image"], ["q", "k", "v", "out", "c_fc"], 2), (["image"], ["c_proj"], 8), (["text"], ["v", "c_fc"], 1)]
    for encoders, weights, n in places:
        results = []
        for key, value in (("BLOCK_SIZE", 64), ("N_BLOCKS", n)):
            chosen = ["TRAINER.ORTHCR.ENCODERS", encoders, "TRAINER.ORTHCR.WEIGHTS", weights]
            trainer = make_trainer(f"TRAINER.ORTHCR.{key}", value, *chosen, "OPTIM.LR", 0.01, out=key)
            torch.manual_seed(0)
            steps = take_steps(trainer, 2)
            results.append((steps, dict(trainer.model.rotations.upper)))
        (steps, uppers), (same_steps, same) = results
        assert steps == same_steps and list(uppers) == list(same)
        assert all(torch.equal(uppers[name], same[name]) and uppers[name].any() for name in uppers)


@pytest.mark.parametrize("n, width, encoders", [(3, 128, BOTH), (128, 128, ["image"]), (64, 64, ["text"])])
def test_a_number_of_blocks_that_does_not_divide(random_clip, n, width, encoders, one_line):
    with pytest.raises(ValueError, match=rf"N_BLOCKS {n} does not divide the {width} inputs") as error:
        orthogonal(random_clip(), N_BLOCKS=n, ENCODERS=encoders, WEIGHTS=["q"])
    offered = [int(word) for word in one_line(error).split("[")[1].split("]")[0].split(",")]
    assert offered == [1, 2, 4, 8, 16]
    for number in offered:
        orthogonal(random_clip(), N_BLOCKS=number, ENCODERS=encoders, WEIGHTS=["q"])


def test_the_number_and_the_size_of_blocks_exclude_each_other(one_line):
    published = ["--trainer", "OrthSR", "--config-file", str(CONFIGS / "trainers/OrthSR/tiny_published.yaml")]
    both = ["TRAINER.ORTHSR.N_BLOCKS", "2", "TRAINER.ORTHSR.BLOCK_SIZE", "64"]
    for argv in ([*published, "TRAINER.ORTHSR.BLOCK_SIZE", "32"], ["--trainer", "OrthSR", *both]):
        with pytest.raises(ValueError, match="BLOCK_SIZE.*has no effect with TRAINER.ORTHSR.N_BLOCKS") as error:
            setup_cfg(parse(argv))
        assert "leave one out" in one_line(error)
    node = setup_cfg(parse([*published, "TRAINER.ORTHSR.N_BLOCKS", "0", "TRAINER.ORTHSR.BLOCK_SIZE", "32"])).TRAINER
    assert (node.ORTHSR.N_BLOCKS, node.ORTHSR.BLOCK_SIZE) == (0, 32)


@pytest.mark.parametrize("b", [192, 768])
@pytest.mark.parametrize("exact", [True, False])
def test_cayley_of_large_blocks(b, exact, noise):
    upper = 0.02 * noise(2, b * (b - 1) // 2, seed=b).double()
    r = cayley(upper, b, exact)
    np.testing.assert_allclose(as64(r), textbook(upper, b), atol=1e-11)
    single = cayley(upper.float(), b, exact)
    assert (single.mT @ single - torch.eye(b)).abs().max() < (2e-6 if exact else 1e-5)
    torch.testing.assert_close(single.double(), r, atol=1e-5, rtol=0)


def test_gradient_of_cayley_of_a_large_block(noise):
    b, direction = 768, noise(1, 768, 768, seed=2).double()
    upper = (0.02 * noise(1, b * (b - 1) // 2).double()).requires_grad_()
    row, col = torch.triu_indices(b, b, 1)
    q = torch.zeros(1, b, b, dtype=torch.float64).index_put((torch.tensor(0), row, col), upper[0])
    q, eye = q - q.mT, torch.eye(b, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((torch.linalg.solve(eye + q, eye - q) * direction).sum(), upper)
    (given,) = torch.autograd.grad((cayley(upper, b) * direction).sum(), upper)
    torch.testing.assert_close(given, wanted, atol=1e-9, rtol=1e-9)


def test_every_weight_of_the_published_places_is_turned(random_clip):
    model = turn(orthogonal(random_clip(), WEIGHTS=["c_fc", "c_proj"], N_BLOCKS=4))
    merged = model.merge_weights()
    for name, (encoder, parameter, _) in model.places.items():
        before, b = as64(model.frozen_weight(name)), model.frozen_weight(name).shape[1] // 4
        wanted = before @ block_diagonal(textbook(model.rotations.upper[name].detach(), b))
        np.testing.assert_allclose(as64(merged[encoder][parameter]), wanted, atol=5e-6)


# ------------------------------------------------------------------ Cutout by similarity


def test_patch_features_are_those_of_clips_own_modules(random_clip, noise, monkeypatch):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds fp64 to fp32
    plain, image, tokens = random_clip().double().visual, noise(3, 3, 32, 32).double(), []
    plain.transformer.register_forward_hook(lambda module, args, out: tokens.append(out))
    plain(image)
    wanted = plain.ln_post(tokens[0].permute(1, 0, 2)[:, 1:]) @ plain.proj
    wanted = wanted / wanted.norm(dim=-1, keepdim=True)
    given = patch_features(ImageEncoder(random_clip().double().visual), image)
    assert given.shape == (3, 4, 24)
    torch.testing.assert_close(given, wanted, atol=1e-12, rtol=0)


def test_the_probability_is_the_softmax_of_the_patches_for_the_label(make_trainer, noise):
    trainer = make_trainer("TRAINER.ORTHSR.CUTOUT_BY", "similarity", trainer="OrthSR")
    image, label = noise(5, 3, 32, 32), torch.tensor([3, 0, 3, 7, 1])
    probability = trainer.hole_probability(image, label)
    model = trainer.model
    patches, text = as64(patch_features(model.image_encoder, image)), as64(model.frozen_text)
    scores = float(model.logit_scale) * np.einsum("bpd,bd->bp", patches, text[label.numpy()])
    wanted = np.exp(scores - scores.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(as64(probability), wanted, atol=1e-5)
    other = trainer.hole_probability(image, torch.tensor([4, 0, 3, 7, 1]))
    assert not torch.allclose(other[0], probability[0], atol=1e-4) and torch.equal(other[1:], probability[1:])
    by_attention = make_trainer(trainer="OrthSR", out="attention").hole_probability(image, label)
    assert by_attention.shape == probability.shape and not torch.allclose(by_attention, probability, atol=1e-3)


# ------------------------------------------------------------------ both views

LOSS = ["VIEWS", "both", "LAMBDA", 1.5, "LAMBDA_CUT", 0.7, "TAU", 2.0, "ATTENTIVE", True, "CUTOUT_BY", "similarity"]


def both_views(make_trainer, name, *opts, **kwargs):
    """A trainer with the loss of both views, and with random trained tensors."""
    node = f"TRAINER.{name.upper()}."
    pairs = [word for key, value in zip(LOSS[::2], LOSS[1::2], strict=True) for word in (node + key, value)]
    if "INPUT.TRANSFORMS" not in opts:
        pairs += ["INPUT.TRANSFORMS", '["random_resized_crop", "normalize"]']
    trainer = make_trainer(*pairs, *opts, trainer=name, **kwargs)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in trainer.model.get_submodule(trainer.learner).parameters():
            p += 0.03 * torch.randn(p.shape, generator=generator)
    return trainer


@pytest.mark.parametrize("name", ["OrthCR", "OrthSR", "FullFT", "BlockFT"])
@pytest.mark.parametrize("reg", ["cross_kl", "cross_ce", "self_kl", "none"])
def test_the_loss_of_both_views_is_that_of_two_passes(make_trainer, noise, name, reg):
    """In fp64, values and gradients: autograd through each view alone, and the formulas of the terms written out."""
    trainer = both_views(make_trainer, name, f"TRAINER.{name.upper()}.REG", reg)
    model, label = trainer.model.double().train(), torch.tensor([0, 3, 5])
    image = noise(3, 3, 32, 32).double()
    torch.manual_seed(3)
    terms, logits = trainer.losses(image, label)
    learner = model.get_submodule(trainer.learner)
    sum(terms.values()).backward()
    gradients = [p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()

    torch.manual_seed(3)
    holes = trainer.cfg.INPUT.CUTOUT_N, trainer.cfg.INPUT.CUTOUT_LEN
    cut = cut_out(image, trainer.hole_probability(image, label), *holes)
    assert not torch.equal(cut, image)

    def kl(teacher, student):
        p, q = (teacher.detach() / 2).softmax(dim=1), (student / 2).softmax(dim=1)
        return (p * (p / q).log()).sum(dim=1).mean()

    wanted = {}
    for view, x, weight in (("clean", image, 1.5), ("cut", cut, 0.7)):
        z, z_v, z_t, z_0 = model.all_logits(x)
        wanted[f"ce_{view}"] = -z.log_softmax(dim=1)[range(3), label].mean()
        regs = {
            "cross_kl": lambda z_v=z_v, z_t=z_t, z_0=z_0: (kl(z_0, z_v) + kl(z_0, z_t)) / 2,
            "cross_ce": lambda z_v=z_v, z_t=z_t: (F.cross_entropy(z_v, label) + F.cross_entropy(z_t, label)) / 2,
            "self_kl": lambda z=z, z_0=z_0: kl(z_0, z),
        }
        if reg in regs:
            wanted[f"{reg}_{view}"] = weight * regs[reg]()
        if view == "clean":
            torch.testing.assert_close(logits, z, atol=1e-10, rtol=0)
    assert list(terms) == list(wanted)
    for term, value in wanted.items():
        torch.testing.assert_close(terms[term], value, atol=1e-10, rtol=1e-10)
        assert value > 1e-4
    sum(wanted.values()).backward()
    for given, p in zip(gradients, learner.parameters(), strict=True):
        torch.testing.assert_close(given, p.grad, atol=1e-10 * max(1.0, float(p.grad.abs().max())), rtol=0)


def test_both_views_go_through_the_encoders_at_once(make_trainer, noise, monkeypatch):
    trainer, sizes = both_views(make_trainer, "OrthSR"), []
    encoder = trainer.model.image_encoder
    encoder.register_forward_pre_hook(lambda module, args, kwargs: sizes.append(len(args[0])), with_kwargs=True)
    trainer.model.train()
    trainer.losses(noise(3, 3, 32, 32), torch.tensor([0, 3, 5]))
    assert sizes == [6, 6]  # tuned and frozen; the patches are read from `tokens`


def test_without_a_weight_of_its_own_the_cut_image_has_lambda(make_trainer, noise):
    results = []
    for weight in (1.5, None):
        trainer = both_views(make_trainer, "OrthSR", "TRAINER.ORTHSR.LAMBDA_CUT", weight, out=str(weight))
        trainer.model.train()
        torch.manual_seed(3)
        terms, _ = trainer.losses(noise(3, 3, 32, 32), torch.tensor([0, 3, 5]))
        results.append({name: float(term) for name, term in terms.items()})
    assert results[0] == results[1]


@pytest.mark.parametrize("trainer", ["OrthCR", "OrthSR", "FullFT", "BlockFT"])
@pytest.mark.parametrize(
    "opts, key",
    [
        (["VIEWS", "both", "ATTENTIVE", False], "VIEWS both needs"),
        (["LAMBDA_CUT", 1.0], "LAMBDA_CUT has no effect"),
        (["CUTOUT_BY", "similarity", "ATTENTIVE", False], "CUTOUT_BY similarity has no effect"),
        (["VIEWS", "clean"], 'VIEWS is "clean"'),
        (["LAMBDA_CUT", -1.0], "LAMBDA_CUT"),
    ],
)
def test_settings_without_effect_are_refused(make_trainer, trainer, opts, key, one_line):
    words = [f"TRAINER.{trainer.upper()}.{word}" if k % 2 == 0 else word for k, word in enumerate(opts)]
    with pytest.raises(ValueError) as error:
        make_trainer(*words, "INPUT.TRANSFORMS", '["normalize"]', trainer=trainer)
    assert key in one_line(error) and f"TRAINER.{trainer.upper()}." in str(error.value)


@pytest.mark.parametrize("trainer", ["OrthSR", "OrthCR"])
def test_a_training_of_the_published_configuration(data_root, tmp_path, take_steps, trainer):
    opts = ["VERBOSE", "False", "USE_CUDA", "False", "DATASET.NUM_SHOTS", "1", "OPTIM.WARMUP_EPOCH", "-1"]
    built = build_trainer(
        config(trainer, "tiny_published.yaml", "--root", str(data_root), "--output-dir", str(tmp_path), *opts)
    )
    reg = {"OrthSR": "self_kl", "OrthCR": "cross_kl"}[trainer]
    steps = take_steps(built, 3)
    assert list(steps[0]) == ["loss", "ce_clean", f"{reg}_clean", "ce_cut", f"{reg}_cut", "acc"]
    assert all(np.isfinite(value) for step in steps for value in step.values())
    assert {name.rpartition("_")[2] for name in built.model.places} == {"fc", "proj"}
    assert all(upper.any() for upper in built.model.rotations.upper.values())
    error, energy = built.model.drift()
    assert 0 < error < 1e-5 and 0 <= energy < 1e-5
