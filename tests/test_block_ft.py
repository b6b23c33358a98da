"""BlockFT: W (I + M) with the blocks of OrthCR, free; all else is OrthCR."""

import numpy as np
import pytest
import torch
from orthcr_tools import NAMES, TEMPLATE, as64, block_diagonal, node, orthogonal, turn
from torch.nn import functional as F

from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse
from trainers.block_ft import BlockCLIP, BlockFT
from trainers.orthcr import OrthCR
from trainers.shared.rotations import cayley

HALVES = pytest.mark.parametrize("half", [False, True])


def free(model, half=False, **changes):
    return BlockCLIP(node(HALF=half, **changes), model, NAMES, TEMPLATE)


def moved(model, scale=0.05):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for m in model.blocks.values():
            m.copy_(scale * torch.randn(m.shape, generator=generator))
    return model


def matrices(model, name):
    """The M_i of a place in NumPy, entry by entry."""
    m, b = model.sizes[name]
    entries = as64(model.blocks[name])
    if not model.is_triangular:
        return entries
    out = np.zeros((m, b, b))
    for k in range(m):
        out[k][np.triu_indices(b, 1)] = entries[k]
    return out


@HALVES
@pytest.mark.parametrize("changes", [{}, {"N_BLOCKS": 2}, {"BLOCK_SIZE": 0, "WEIGHTS": ["v", "c_proj"]}], ids=str)
def test_every_weight_is_w_times_one_plus_m(random_clip, noise, half, changes):
    model = moved(free(random_clip().double(), half, **changes).double())
    merged = model.merge_weights()
    for name, (encoder, parameter, rows) in model.places.items():
        factor = block_diagonal(np.eye(model.sizes[name][1]) + matrices(model, name))
        before = as64(model.frozen_weight(name))
        np.testing.assert_allclose(as64(merged[encoder][parameter][rows]), before @ factor, atol=1e-12)
        x = noise(2, 3, before.shape[1]).double()
        bias = noise(len(before)).double()
        y = model.apply_change(model.compute_changes([name])[name], x, model.frozen_weight(name), bias)
        np.testing.assert_allclose(as64(y), x.numpy() @ (before @ factor).T + bias.numpy(), atol=1e-11)


@pytest.mark.parametrize("changes", [{}, {"N_BLOCKS": 4, "WEIGHTS": ["c_fc", "c_proj"]}], ids=str)
def test_its_numbers_are_those_of_orthcrs_blocks(random_clip, changes):
    turned = orthogonal(random_clip(), **changes).rotations
    whole, half = free(random_clip(), **changes), free(random_clip(), True, **changes)
    assert whole.sizes == half.sizes == turned.sizes
    assert {name: m.numel() for name, m in half.blocks.items()} == {n: q.numel() for n, q in turned.upper.items()}
    assert {name: m.numel() for name, m in whole.blocks.items()} == {n: m * b**2 for n, (m, b) in turned.sizes.items()}


def test_with_m_of_a_rotation_it_is_orthcr(random_clip, noise):
    """Also its gradient: that of Q is that of M through the Cayley map."""
    turned = turn(orthogonal(random_clip().double()).double(), 0.2).train()
    model, image = free(random_clip().double()).double().train(), noise(3, 3, 32, 32).double()
    with torch.no_grad():
        for name, upper in turned.rotations.upper.items():
            model.blocks[name].copy_(cayley(upper, 16) - torch.eye(16))
    label = torch.tensor([0, 2, 1])
    wanted, given = turned(image), model(image)
    torch.testing.assert_close(given, wanted, atol=1e-10, rtol=0)
    F.cross_entropy(wanted, label).backward()
    F.cross_entropy(given, label).backward()
    for name, upper in turned.rotations.upper.items():
        free_upper = upper.detach().clone().requires_grad_()
        (cayley(free_upper, 16) * model.blocks[name].grad).sum().backward()
        torch.testing.assert_close(free_upper.grad, upper.grad, atol=1e-10, rtol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), wanted.detach(), atol=1e-10, rtol=0)


@HALVES
def test_it_is_not_orthogonal(random_clip, half):
    model = moved(free(random_clip(), half))
    for name, (encoder, parameter, rows) in model.places.items():
        before, after = as64(model.frozen_weight(name)), as64(model.merge_weights(encoder)[encoder][parameter][rows])
        assert np.abs(np.linalg.norm(after, axis=1) / np.linalg.norm(before, axis=1) - 1).max() > 1e-3


def test_all_else_is_orthcrs():
    assert BlockFT.defaults.keys() == (OrthCR.defaults.keys() - {"MONITOR"}) | {"HALF"}
    assert all(BlockFT.defaults[key] == OrthCR.defaults[key] for key in BlockFT.defaults.keys() - {"HALF"})
    assert BlockFT.deciding_keys == OrthCR.deciding_keys and BlockFT.losses is OrthCR.losses
    files = {}
    for name in ("OrthCR", "BlockFT"):
        cfg = setup_cfg(parse(["--trainer", name]))
        same = cfg.TRAINER[name.upper()]
        files[name] = {key: same[key] for key in same if key not in ("HALF", "MONITOR")}, cfg.INPUT, cfg.OPTIM.MAX_EPOCH
    assert files["OrthCR"] == files["BlockFT"]


@HALVES
def test_it_starts_where_orthcr_starts_and_trains(make_trainer, take_steps, half):
    first = {}
    for name, opts in (("OrthCR", []), ("BlockFT", ["TRAINER.BLOCKFT.HALF", half])):
        trainer = make_trainer(*opts, "OPTIM.LR", 1e-3, trainer=name, out=name)
        torch.manual_seed(0)
        steps = take_steps(trainer, 3)
        first[name] = steps[0]
    assert first["BlockFT"] == pytest.approx(first["OrthCR"], rel=1e-5, abs=1e-5)
    assert all(m.any() for m in trainer.model.blocks.values()) and steps[2]["cross_kl"] > 1e-4
    assert "rotation_degrees" not in trainer.facts()
