"""What PREC and TRAIN.COMPILE choose on a device; fused optimizers."""

from types import SimpleNamespace

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.optim import build_optimizer, optimizer
from trainers.base import ClipTrainer


@pytest.mark.parametrize(
    "device, bf16, precision, enabled, dtype",
    [
        ("cpu", False, "auto", False, None),
        ("cuda", True, "auto", True, torch.bfloat16),
        ("cuda", False, "auto", True, torch.float16),
        ("cuda", True, "amp", True, torch.float16),
        ("cuda", True, "fp16", True, torch.float16),
        ("cuda", True, "fp32", False, None),
    ],
)
def test_precision_of_a_device(monkeypatch, capsys, device, bf16, precision, enabled, dtype):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: bf16)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    trainer = SimpleNamespace(device=torch.device(device))
    ClipTrainer.set_precision(trainer, precision)
    assert trainer.autocast["enabled"] == enabled and dtype in (None, trainer.autocast["dtype"])
    assert trainer.scaler.is_enabled() == (dtype == torch.float16)
    assert ("PREC auto: " in capsys.readouterr().out) == (precision == "auto")


# ------------------------------------------------------------------ optimizers


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd", "adamw", "rmsprop", "radam"])
def test_fused_steps_are_the_plain_ones(name, noise, monkeypatch):
    """PyTorch has the kernels for CPUs, too."""
    cfg, results = get_cfg_default().OPTIM, []
    cfg.NAME, cfg.LR, cfg.WEIGHT_DECAY = name, 0.01, 0.1
    for fused in ({}, {"fused": True}):
        monkeypatch.setattr(optimizer, "_fused", lambda groups, fused=fused: fused)
        p = torch.nn.Parameter(noise(50))
        optim = build_optimizer([p], cfg)
        assert bool(optim.param_groups[0].get("fused")) == (bool(fused) and name not in ("rmsprop", "radam"))
        for step in range(5):
            p.grad = noise(50, seed=step + 1)
            optim.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("device, fused", [("cuda", True), ("cpu", False)])
def test_only_a_gpu_has_them(device, fused):
    groups = [{"params": [SimpleNamespace(is_cuda=device == "cuda")] * 2}]
    assert bool(optimizer._fused(groups)) == fused
    assert not optimizer._fused([*groups, {"params": [SimpleNamespace(is_cuda=False)]}])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fused_on_a_gpu(noise):
    optim = build_optimizer([torch.nn.Parameter(noise(5).cuda())], get_cfg_default().OPTIM)
    assert optim.param_groups[0]["fused"]


# ------------------------------------------------------------------ compiled encoders


@pytest.mark.parametrize("name, opts", [("OrthCR", ["TRAINER.ORTHCR.LAYERS", "[-1]"]), ("MaPLe", [])], ids=str)
def test_both_encoders_are_compiled_in_place(make_trainer, take_steps, monkeypatch, capsys, name, opts):
    """By the real switch, with the compiler's front end alone, which traces both seams."""
    compiled, compile = [], torch.compile

    def traced(f, **options):
        compiled.append(f)
        return compile(f, backend="eager")

    plain = make_trainer("OPTIM.LR", 0.01, *opts, trainer=name, out="plain")
    torch.manual_seed(0)
    losses = [step["loss"] for step in take_steps(plain, 2)]
    monkeypatch.setattr(torch, "compile", traced)
    trainer = make_trainer("TRAIN.COMPILE", True, "OPTIM.LR", 0.01, *opts, trainer=name)
    assert len(compiled) == 2 and "docs/speed.md" in capsys.readouterr().out
    assert trainer.model.state_dict().keys() == plain.model.state_dict().keys()
    torch.manual_seed(0)
    assert [step["loss"] for step in take_steps(trainer, 2)] == pytest.approx(losses, rel=1e-4)
    image = next(iter(trainer.test_loader))["img"][:20]
    logits = []
    for each in (plain, trainer):
        each.set_model_mode("eval")
        with torch.no_grad():
            logits.append(each.model_inference(image))
    torch.testing.assert_close(*logits, atol=1e-3, rtol=1e-4)


def test_without_a_compiler_one_line_says_so(make_trainer, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r'TRAIN\.COMPILE.*"no-such-compiler".*set CXX') as error:
        make_trainer("TRAIN.COMPILE", True, trainer="CoOp")
    assert "\n" not in str(error.value)
