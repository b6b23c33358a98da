"""What does not fit into memory is encoded in parts and recomputed: the estimate, the arithmetic, equal gradients."""

import re

import pytest
import torch
from clip.model import CLIP

from dassl.utils import free_memory
from tests.prompt_tools import LABEL, bare
from trainers.shared import memory
from trainers.shared.encoders import PLANS
from trainers.shared.memory import SAVED, SHARE, TEMPORARY, blocks_to_recompute, split

CHANGED = ["OrthCR", "FullFT", "BlockFT", "CLIPLoRA"]
OPTS = {
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", 2],
    "TCP": ["TRAINER.COOP.BLOCK", 1],
    "MMA": ["TRAINER.MMADAPTER.ADAPTER_START", 1, "TRAINER.MMADAPTER.ADAPTER_END", 2],
    "MMRLpp": ["TRAINER.MMRLpp.REP_LAYERS", [1, 2]],
    "CoPrompt": ["TRAINER.CoPrompt.PROMPT_DEPTH", 2],
    "MMRL": ["TRAINER.MMRL.REP_LAYERS", [1, 2]],
    "OrthCR": ["TRAINER.ORTHCR.BLOCK_SIZE", 8],
    "CLIPLoRA": ["TRAINER.CLIPLORA.DROPOUT", 0.0],
}
MANY = [f"{'big ' * (k % 3)}cat {k}" for k in range(60)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    """As wide in every head as CLIP's, with more blocks than anything else is kept for."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CLIP(24, 64, 6, 64, 8, 77, 49408, 64, 1, 6).eval().requires_grad_(False)


@pytest.fixture
def told(monkeypatch):
    """told(GiB): so much is free, whoever asks."""
    return lambda gib: monkeypatch.setattr(memory, "free_memory", lambda device: gib)


def kept(compute, *modules):
    """Bytes of the tensors that autograd keeps, without parameters and what is made of these alone; the result."""
    known = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):
        result = compute()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(n for pointer, n in storages.items() if pointer not in known), result


@pytest.mark.parametrize("name", ["CoOp", "TCP", "MMA", "MaPLe", "MMRL", "MMRLpp", *CHANGED])
def test_the_estimate_is_what_autograd_keeps(model, noise, name):
    """No less, and less than twice as much, in either encoder; R and the like, which no token has, are made before."""
    classifier = bare(name, model, *OPTS.get(name, []), classnames=MANY).model
    image, linear = noise(6, 3, 64, 64), ()
    if name in CHANGED:
        linear = (classifier.linear("image", "text"),)
    results = [(*kept(lambda: classifier.encode_text(*linear), classifier), 64)]
    ids = classifier.prompt_learner.tokens if hasattr(classifier, "prompt_learner") else classifier.tokens
    tokens = [len(p.tokens) for plan in PLANS[ids].values() for p in plan.packings]
    if name == "TCP":  # from block 1 of 6 on, each class but one has a copy of the four shared tokens
        tokens[0] += 59 * 4 * 5 // 6
    if name not in ("CoOp", "TCP"):
        results.append((*kept(lambda: classifier.encode_image(image, *linear), classifier), 64))
        tokens.append(6 * 65)
    assert len(tokens) == len(results)
    for (given, features, width), n in zip(results, tokens, strict=True):
        assert features.requires_grad
        limit = 1.05 if name == "TCP" else 1  # suffixes keep their attention weights, the shared tokens do not
        assert 0.5 < given / (4 * n * width * 6 * SAVED[name in CHANGED]) < limit, given / (4 * n * width * 6)


def test_what_fits_is_encoded_at_once_and_what_does_not_in_as_many_parts_as_needed(told, capsys):
    def gib(tokens):
        return 4 * tokens * 512 * (12 * SAVED[False] + TEMPORARY) / 2**30 / SHARE

    told(gib(5000) * 1.001)
    assert split(1000, 1, 5000, 512, 12, False, CPU) == (1, 1)
    assert not capsys.readouterr().out
    told(gib(2000) * 1.001)
    assert split(1000, 1, 5000, 512, 12, False, CPU) == (3, 1)
    said = capsys.readouterr().out
    assert re.fullmatch(r"Classes in 3 chunks of 334 with recomputation: 1.7 GiB .* not fit into 0.7 GiB\n", said)
    assert split(10, 7, 900, 512, 12, False, CPU) == (1, 2)
    assert "Prompts of 7 images in chunks of 2 with recomputation: " in capsys.readouterr().out
    assert split(10, 7, 9000, 512, 12, False, CPU) == (5, 1)
    told(0.0)
    assert split(10, 7, 9000, 512, 12, False, CPU) == (10, 1)
    capsys.readouterr()
    told(4 * 2000 * 512 * TEMPORARY / 2**30 / SHARE * 1.001)
    with torch.no_grad():
        assert split(1000, 1, 5000, 512, 12, True, CPU) == (3, 1)
    assert "Classes in 3 chunks of 334: " in capsys.readouterr().out
    assert split(1000, 1, 5000, 512, 12, True, CPU)[0] > split(1000, 1, 5000, 512, 12, False, CPU)[0] > 3


def test_as_many_blocks_are_recomputed_as_do_not_fit(told, capsys):
    x, block = torch.empty(32, 197, 768, device="meta"), 4 * 32 * 197 * 768 * (SAVED[True] - 1) / 2**30
    need = 4 * 32 * 197 * 768 * (12 * SAVED[True] + TEMPORARY) / 2**30
    for missing, blocks in [(-0.1, 0), (0.1, 1), (2.9, 3), (11.9, 12), (13, 12)]:
        told((need - missing * block) / SHARE)
        assert blocks_to_recompute(x, 12, True) == blocks
    assert "12 of 12 blocks of the image encoder with recomputation: 5." in capsys.readouterr().out
    with torch.no_grad():
        assert blocks_to_recompute(x, 12, True) == 0


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "TCP", "MMA", "MaPLe", "CoPrompt", "MMRL", "MMRLpp", *CHANGED])
def test_a_step_with_little_memory_is_the_same_and_keeps_less(random_clip, noise, told, capsys, name):
    plain, image, results = random_clip().double(), noise(5, 3, 32, 32).double(), []
    for gib in (80.0, 1e-4):
        told(gib)
        torch.manual_seed(0)
        trainer = bare(name, plain, *OPTS.get(name, []))
        learner = trainer.model.get_submodule(trainer.learner)
        with torch.no_grad():
            for p in learner.parameters():
                p.add_(0.05 * torch.randn_like(p))
        size, (terms, logits) = kept(lambda trainer=trainer: trainer.losses(image, LABEL), trainer.model)
        grads = torch.autograd.grad(sum(terms.values()), list(learner.parameters()))
        results.append((size, [logits, *grads]))
        said = capsys.readouterr().out
        assert ("chunks" in said) == (gib < 1) and said.count("Classes") <= 2, said  # with gradients, and without
        assert name in ("CoOp", "CoCoOp", "TCP") or ("blocks of the image" in said) == (gib < 1), said
    (plenty, wanted), (little, given) = results
    assert little < 0.8 * plenty
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10 * float(b.detach().abs().max()), rtol=0)


def test_free_memory_is_shared_by_the_processes_of_torchrun(monkeypatch, tmp_path):
    alone = free_memory(CPU)
    assert 0 < alone < 10**6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory() == pytest.approx(alone / 4, rel=0.3)
    monkeypatch.setattr("builtins.open", lambda name: (tmp_path / name.lstrip("/")).open())
    assert free_memory() == float("inf")
