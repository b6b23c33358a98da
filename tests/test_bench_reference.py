"""The benchmark's reference formulation is the product's model, and is what it says that it is."""

import pytest
import torch
from prompt_tools import bare, in_float64
from prompted import exact, randomized
from torch import nn

from benchmarks.reference import LENGTH, reference

TRAINERS = "CoOp OrthCR MaPLe PromptSRC CoCoOp CLIPLoRA FullFT IVLP VPT KgCoOp ProGrad MMRL OrthSR CLIP_Adapter"
TRAINERS = [*TRAINERS.split(), "TCP", "MMA"]
SHALLOW = {  # two blocks of the random CLIP's image encoder, three of its text encoder
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", 2],
    "PromptSRC": ["TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 3],
    "IVLP": ["TRAINER.IVLP.PROMPT_DEPTH_VISION", 2, "TRAINER.IVLP.PROMPT_DEPTH_TEXT", 3],
    "VPT": ["TRAINER.VPT.PROMPT_DEPTH_VISION", 2],
    "MMRL": ["TRAINER.MMRL.REP_LAYERS", [1, 2], "TRAINER.MMRL.REP_DIM", 16],
    "CLIPLoRA": ["TRAINER.CLIPLORA.DROPOUT", 0.0],
    "FullFT": ["TRAINER.FULLFT.REG", "cross_kl"],
    "OrthCR": ["TRAINER.ORTHCR.BLOCK_SIZE", 16],
    "OrthSR": ["TRAINER.ORTHSR.BLOCK_SIZE", 16],
    "BlockFT": ["TRAINER.BLOCKFT.BLOCK_SIZE", 16],
    "TCP": ["TRAINER.COOP.BLOCK", 2],
    "MMA": ["TRAINER.MMADAPTER.ADAPTER_START", 2, "TRAINER.MMADAPTER.ADAPTER_END", 2],
}
VIEWS = ["ATTENTIVE", True, "VIEWS", "both", "LAMBDA_CUT", 0.5, "CUTOUT_BY", "similarity", "N_BLOCKS", 4]
REVIEWED = [word if k % 2 else f"TRAINER.{{}}.{word}" for k, word in enumerate(VIEWS)]
CASES = [(name, SHALLOW.get(name, [])) for name in TRAINERS]
CASES += [("MMA", ["TRAINER.MMADAPTER.ADAPTER_START", 0, "TRAINER.MMADAPTER.ADAPTER_END", 1])]
CASES += [(name, [*REVIEWED, "TRAINER.{}.WEIGHTS", ["c_fc", "c_proj"]]) for name in ("OrthCR", "OrthSR", "BlockFT")]
CASES += [("BlockFT", SHALLOW["BlockFT"]), ("BlockFT", ["TRAINER.BLOCKFT.HALF", True, "TRAINER.BLOCKFT.N_BLOCKS", 2])]


@pytest.fixture
def trainer_of(tmp_path, random_clip, make_trainer, monkeypatch):
    """trainer_of(name, opts): on the small random CLIP, in fp64, with random trained tensors."""

    def make(name, opts=None):
        opts = SHALLOW.get(name, []) if opts is None else opts
        opts = [word.format(name.upper()) if isinstance(word, str) else word for word in opts]
        if any(str(word).endswith("ATTENTIVE") for word in opts):
            opts += ["INPUT.TRANSFORMS", '["normalize"]']
        torch.save(random_clip().state_dict(), tmp_path / "clip.pt")
        size = ["MODEL.BACKBONE.NAME", tmp_path / "clip.pt", "INPUT.SIZE", (32, 32)]
        trainer = make_trainer(*size, *opts, trainer=name)
        exact(monkeypatch, trainer.model)
        randomized(trainer.model.get_submodule(trainer.learner))
        return trainer

    return make


def step(trainer, image, label):
    """Loss terms, logits and gradients of the trained tensors."""
    torch.manual_seed(3)
    terms, logits = trainer.losses(image, label)
    learner = trainer.model.get_submodule(trainer.learner)
    learner.zero_grad()
    trainer.backward(terms)
    return [*terms.values(), logits, *(p.grad.clone() for p in learner.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name, opts", CASES, ids=str)
def test_the_two_formulations_agree(name, opts, trainer_of, noise):
    trainer = trainer_of(name, opts)
    image, label = noise(3, 3, 32, 32).double(), torch.tensor([0, 2, 5])
    trainer.set_model_mode("train")
    ours = step(trainer, image, label)
    with reference(trainer.model):
        theirs = step(trainer, image, label)
    assert len(ours) == len(theirs) > 2
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10 * max(1.0, float(b.detach().abs().max())), rtol=0)

    trainer.set_model_mode("eval")
    with torch.no_grad():
        ours = trainer.model_inference(image)
        with reference(trainer.model):
            torch.testing.assert_close(trainer.model_inference(image), ours, atol=1e-10 * 100, rtol=0)


def lengths(model, work):
    """Tokens of each input of the first text block."""
    seen, block = [], model.text_encoder.transformer.resblocks[0]
    hook = block.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    work()
    hook.remove()
    return seen


@pytest.mark.parametrize("steps", [1, 3])
def test_the_two_formulations_of_tpt_agree(steps, random_clip, noise, monkeypatch):
    views = ["TRAINER.TPT.SELECTION_P", 0.5, "TRAINER.TPT.TTA_STEPS", steps]
    model = bare("TPT", in_float64(random_clip(), monkeypatch), "OPTIM.NAME", "adamw", "OPTIM.LR", 0.005, *views).model
    model.eval()
    images, losses, gradient = noise(3, 6, 3, 32, 32).double(), [], model.gradient

    def noted(loss, ctx):
        losses.append(loss.detach())
        return gradient(loss, ctx)

    monkeypatch.setattr(model, "gradient", noted)
    ours = model(images)
    our_losses = torch.stack(losses)
    losses.clear()
    with reference(model):
        seen = lengths(model, lambda: torch.testing.assert_close(model(images), ours, atol=1e-8, rtol=0))
    torch.testing.assert_close(torch.stack(losses).unflatten(0, (3, steps)).sum(dim=0), our_losses, atol=1e-8, rtol=0)
    assert seen == [LENGTH] * 3 * (steps + 1), "each image alone: the steps, and the prediction"


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "OrthCR"])
def test_the_reference_pads_and_encodes_for_each_batch(name, trainer_of, noise):
    trainer, image = trainer_of(name), noise(2, 3, 32, 32).double()
    trainer.set_model_mode("eval")
    with torch.no_grad(), reference(trainer.model):
        seen = lengths(trainer.model, lambda: [trainer.model_inference(image) for _ in range(3)])
    assert seen == [LENGTH] * (6 if name == "CoCoOp" else 3)
    with torch.no_grad():  # CLIP's own blocks, padded, run in the reference alone
        assert lengths(trainer.model, lambda: trainer.model_inference(image)) == []


@pytest.mark.parametrize("name, solves", [("OrthCR", 30), ("FullFT", 0)])
def test_the_reference_takes_gradients_through_weights(name, solves, trainer_of, noise, monkeypatch):
    trainer, seen, count = trainer_of(name), [], []
    blocks = trainer.model.image_encoder.transformer.resblocks
    blocks[0].attn.register_forward_pre_hook(lambda attn, _: seen.append(attn.in_proj_weight))
    solve = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda a, b: count.append(a) or solve(a, b))
    with reference(trainer.model):
        trainer.losses(noise(2, 3, 32, 32).double(), torch.tensor([0, 1]))
    assert len(count) == solves  # six weights of two and of three blocks
    assert [weight.requires_grad for weight in seen] == [True, False]  # tuned and frozen
    assert not isinstance(seen[0], nn.Parameter)


def test_the_product_comes_back(trainer_of):
    model = trainer_of("OrthCR").model
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(KeyError), reference(model):
        assert [type(module) for module in model.modules()] != kinds
        raise KeyError
    assert [type(module) for module in model.modules()] == kinds
