"""Schedules and optimizers against values worked out by hand."""

import math
import warnings

import pytest
import torch
import torch.nn as nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.backbone = nn.Linear(3, 4)
        self.classifier = nn.Linear(4, 2)


# ---------------------------------------------------------------- schedules


def optim_cfg(**keys):
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR, cfg.WEIGHT_DECAY = "sgd", 1.0, 0.0
    for key, value in keys.items():
        setattr(cfg, key, value)
    return cfg


def build_schedule(cfg, lrs=(1.0,)):
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    optimizer = build_optimizer(groups, cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def run(optimizer, scheduler, epochs):
    """Learning rates of `epochs` epochs, one list a parameter group; no warning may be given."""
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(epochs):
            rates.append([g["lr"] for g in optimizer.param_groups])
            assert scheduler.get_last_lr() == rates[-1]
            optimizer.step()
            scheduler.step()
    return rates


C = {"WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 0.125}
L = {"WARMUP_TYPE": "linear", "WARMUP_MIN_LR": 0.01}
STEP = {"LR_SCHEDULER": "single_step", "STEPSIZE": (2,), "GAMMA": 0.5}
MULTI = {"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5), "GAMMA": 0.5}
COS = {"LR_SCHEDULER": "cosine", "MAX_EPOCH": 4}
R8 = math.sqrt(0.125)  # cos(pi / 4) / 2
SCHEDULES = [
    (STEP, 0, True, [1, 1, 0.5, 0.5, 0.25]),
    (STEP | {"STEPSIZE": (-1,), "MAX_EPOCH": 3}, 0, True, [1, 1, 1, 0.5]),
    (MULTI, 0, True, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
    (COS, 0, True, [1, 0.5 + R8, 0.5, 0.5 - R8, 0]),
    (STEP | C, 3, True, [0.125, 0.125, 0.125, 1, 1, 0.5, 0.5, 0.25]),
    (STEP | C, 3, False, [0.125, 0.125, 0.125, 1, 0.5, 0.5, 0.25, 0.25]),
    (MULTI | C, 3, True, [0.125, 0.125, 0.125, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    (MULTI | C, 3, False, [0.125, 0.125, 0.125, 1, 1, 0.5, 0.5]),
    (COS | C, 2, True, [0.125, 0.125, 1, 0.5 + R8, 0.5]),
    (COS | C, 2, False, [0.125, 0.125, 1, 1 - 2 * R8, 0]),
    (STEP | L, 4, True, [0.01, 0.25, 0.5, 0.75, 1, 1, 0.5, 0.5]),
    (STEP | L, 3, False, [0.01, 1 / 3, 2 / 3, 1, 0.5, 0.5, 0.25]),
    (MULTI | L, 4, True, [0.01, 0.25, 0.5, 0.75, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    (MULTI | L, 4, False, [0.01, 0.25, 0.5, 0.75, 1, 0.5, 0.5]),
    (COS | L, 1, True, [0.01, 1, 0.5 + R8, 0.5, 0.5 - R8]),
    (COS | L, 1, False, [0.01, 1, 0.5 / (0.5 + R8), (0.5 - R8) / (0.5 + R8), 0]),
]


@pytest.mark.parametrize(("keys", "warmup", "recount", "expected"), SCHEDULES)
def test_schedule_values_and_exact_resume(keys, warmup, recount, expected, tmp_path):
    cfg = optim_cfg(**keys, WARMUP_EPOCH=warmup, WARMUP_RECOUNT=recount)
    lrs = (1.0, 0.3)
    whole = run(*build_schedule(cfg, lrs), len(expected))
    assert [r[0] for r in whole] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for t, (first, second) in enumerate(whole):  # every group has its own rate, warm-up constants aside
        same = t < warmup and (cfg.WARMUP_TYPE == "constant" or t == 0)
        assert second == pytest.approx(first if same else 0.3 * first, rel=1e-12, abs=1e-12)

    for stop in range(1, len(expected)):
        optimizer, scheduler = build_schedule(cfg, lrs)
        run(optimizer, scheduler, stop)
        torch.save({"o": optimizer.state_dict(), "s": scheduler.state_dict()}, tmp_path / "s.pt")
        state = torch.load(tmp_path / "s.pt", weights_only=True)
        optimizer, scheduler = build_schedule(cfg, lrs)
        optimizer.load_state_dict(state["o"])
        scheduler.load_state_dict(state["s"])
        assert run(optimizer, scheduler, len(expected) - stop) == whole[stop:]


def test_schedule_state_is_plain():
    def check(x):
        assert type(x) in (dict, list, int, float, bool, str, type(None)), type(x)
        for item in [*x, *x.values()] if isinstance(x, dict) else x if isinstance(x, list) else ():
            check(item)

    for keys in (STEP, MULTI, COS):
        for warmup in (0, 2):
            check(build_schedule(optim_cfg(**keys, WARMUP_EPOCH=warmup))[1].state_dict())


def test_warmup_before_a_scheduler_of_ones_own():
    for kind, value, warmup in ((ConstantWarmupScheduler, 0.2, [0.2, 0.2]), (LinearWarmupScheduler, 0.1, [0.1, 0.5])):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        successor = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        rates = run(optimizer, kind(optimizer, successor, 2, value), 5)
        assert [r[0] for r in rates] == pytest.approx([*warmup, 1, 0.5, 0.25])


def test_coop_schedule():
    """CoOp's own: SGD 0.002, cosine over 50 epochs, one constant epoch at 1e-5."""
    keys = {"LR_SCHEDULER": "cosine", "MAX_EPOCH": 50, "WARMUP_TYPE": "constant", "WARMUP_EPOCH": 1}
    rates = run(*build_schedule(optim_cfg(**keys), (0.002,)), 50)
    expected = [1e-5] + [0.001 * (1 + math.cos(math.pi * t / 50)) for t in range(49)]
    assert [r[0] for r in rates] == pytest.approx(expected, rel=1e-9)


def test_schedule_errors():
    with pytest.raises(ValueError, match='"cosin".*"cosine"'):
        build_schedule(optim_cfg(LR_SCHEDULER="cosin"))
    with pytest.raises(ValueError, match='"constnt".*"constant"'):
        build_schedule(optim_cfg(WARMUP_TYPE="constnt", WARMUP_EPOCH=1))
    with pytest.raises(ValueError, match="STEPSIZE"):
        build_schedule(optim_cfg(STEPSIZE=(1.5,)))
    with pytest.raises(ValueError, match="STEPSIZE"):
        build_schedule(optim_cfg(LR_SCHEDULER="multi_step", STEPSIZE=3))


# ---------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", "Adam"),
        ("amsgrad", "Adam"),
        ("sgd", "SGD"),
        ("rmsprop", "RMSprop"),
        ("radam", "RAdam"),
        ("adamw", "AdamW"),
    ],
)
def test_optimizer_by_name_gets_trainable_parameters_only(name, kind):
    cfg = optim_cfg(NAME=name, LR=0.01, WEIGHT_DECAY=0.02, MOMENTUM=0.8, ADAM_BETA1=0.7, ADAM_BETA2=0.95)
    net = Net()
    net.backbone.requires_grad_(False)
    wanted = [net.scale, net.classifier.weight, net.classifier.bias]
    for model in (net, net.parameters(), list(net.parameters()), [{"params": net.parameters()}]):
        optimizer = build_optimizer(model, cfg)
        (group,) = optimizer.param_groups
        assert type(optimizer) is getattr(torch.optim, kind)
        assert [id(p) for p in group["params"]] == [id(p) for p in wanted]
        assert (group["lr"], group["weight_decay"]) == (0.01, 0.02)
        assert group.get("momentum", 0.8) == 0.8 and group.get("betas", (0.7, 0.95)) == (0.7, 0.95)
        assert group.get("amsgrad", False) == (name == "amsgrad")


def test_settings_of_one_optimizer_only():
    params = [nn.Parameter(torch.ones(1))]
    (group,) = build_optimizer(params, optim_cfg(SGD_NESTEROV=True, SGD_DAMPNING=0)).param_groups
    assert group["nesterov"] and group["dampening"] == 0
    assert build_optimizer(params, optim_cfg(SGD_DAMPNING=1)).param_groups[0]["dampening"] == 1
    rmsprop = build_optimizer(params, optim_cfg(NAME="rmsprop", RMSPROP_ALPHA=0.7))
    assert rmsprop.param_groups[0]["alpha"] == 0.7


def test_radam_decouples_weight_decay():
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer([p], optim_cfg(NAME="radam", LR=0.1, WEIGHT_DECAY=0.5))
    for _ in range(2):  # no adaptive term yet: bias-corrected momentum, which is the gradient
        p.grad = torch.tensor([3.0])
        optimizer.step()
    # p1 = 2 * .95 - .3 = 1.6, p2 = 1.6 * .95 - .3
    assert p.item() == pytest.approx(1.22, rel=1e-6)


def test_sgd_first_steps_by_hand():
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer([p], optim_cfg(LR=0.5, MOMENTUM=0.5, WEIGHT_DECAY=0.25))
    for _ in range(2):
        p.grad = torch.tensor([2.0])
        optimizer.step()
    # v1 = 2 + .25 = 2.25, p1 = 1 - 1.125 = -.125; v2 = 1.125 + 2 - .03125 = 3.09375, p2 = -.125 - 1.546875
    assert p.item() == pytest.approx(-1.671875, rel=1e-6)


def test_staged_lr_and_param_groups():
    net = Net()
    net.classifier.bias.requires_grad_(False)
    cfg = optim_cfg(LR=0.1, STAGED_LR=True, NEW_LAYERS="classifier", BASE_LR_MULT=0.01)
    base, new = build_optimizer(nn.DataParallel(net), cfg).param_groups
    assert base["lr"] == pytest.approx(0.001) and new["lr"] == 0.1
    assert [id(p) for p in base["params"]] == [id(net.scale), id(net.backbone.weight), id(net.backbone.bias)]
    assert [id(p) for p in new["params"]] == [id(net.classifier.weight)]
    with pytest.warns(UserWarning, match="STAGED_LR"):
        groups = [{"params": net.scale, "lr": 0.7}]
        (group,) = build_optimizer(net, cfg, param_groups=groups).param_groups
    assert group["lr"] == 0.7 and group["params"] == [net.scale]
    with pytest.raises(TypeError, match="STAGED_LR"):
        build_optimizer([net.scale], cfg)


def test_optimizer_errors():
    with pytest.raises(ValueError, match='"adamm".*"adam"'):
        build_optimizer(Net(), optim_cfg(NAME="adamm"))
    with pytest.raises(ValueError, match="Nothing to train"):
        build_optimizer(Net().requires_grad_(False), optim_cfg())
