"""Every trainer on CUDA: with fake tensors on a machine without a GPU, with real ones where there is one.

`FakeTensorMode` follows shapes, dtypes and devices through real code without computing: a tensor left on the CPU, or
types that do not go together, fail as they would on a GPU. A backward pass cannot be followed. The numerics of half
precision are those of CPU autocast against fp32.
"""

import copy
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

import trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from orthcr.run.declarations import discover
from trainers.base import PRECISIONS, ClipTrainer, node_of
from trainers.coop import CoOp
from trainers.shared.packing import pack
from trainers.shared.templates import PROMPTSRC_TEMPLATES

discover(trainers)
METHODS = [name for name in TRAINER_REGISTRY.registered_names() if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]
FITTED = ("TipAdapter", "GDA")  # without steps
TRAINED = [name for name in METHODS if TRAINER_REGISTRY.get(name).learner and name not in FITTED]
CASES = [(name, []) for name in METHODS]
CASES += [("OrthCR", ["TRAINER.ORTHCR.REG", "none"]), ("OrthCR", ["TRAINER.ORTHCR.ENCODERS", "['image']"])]
CASES += [("CoOp", ["TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.CSC", True])]
CASES += [("CoOp", ["TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"])]
CASES += [("IVLP", ["TRAINER.IVLP.PROMPT_DEPTH_VISION", 0]), ("MMRL", ["TASK", "CD"])]
BOTH_VIEWS = ["INPUT.TRANSFORMS", '["normalize"]', "TRAINER.ORTHCR.ATTENTIVE", True, "TRAINER.ORTHCR.VIEWS", "both"]
CASES += [("OrthCR", [*BOTH_VIEWS, "TRAINER.ORTHCR.CUTOUT_BY", "similarity", "TRAINER.ORTHCR.N_BLOCKS", 4])]
CASES += [("OrthCR", [*BOTH_VIEWS, "TRAINER.ORTHCR.REG", "none"]), ("BlockFT", ["TRAINER.BLOCKFT.HALF", True])]
CASES += [("DePT", ["TRAINER.LINEAR_PROBE.TYPE", "similarity"]), ("DePT", ["TRAINER.LINEAR_PROBE.BASE", "KgCoOp"])]
CASES += [("DePT", ["TRAINER.LINEAR_PROBE.BASE", "MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", 2])]
CASES += [("CoPrompt", ["TRAINER.DISTILL", "mse"])]
CASES += [("FullFT", ["TRAINER.FULLFT.REG", "cross_kl"]), ("LinearProbe", ["TRAINER.ADAPTER.CONSTRAINT", "l2"])]


class SameTypes(TorchDispatchMode):
    """Matrix products of mixed types fail on a GPU; fake ones would not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            dtypes = {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
            assert len(dtypes) == 1, f"{func} of more than one dtype: {dtypes}"
        return func(*args, **kwargs or {})


@pytest.fixture
def fake_cuda():
    """fake_cuda(trainer, precision): a trainer built on the CPU, as it would be on a GPU; fake from then on."""
    with ExitStack() as stack:

        def move(trainer, precision):
            stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
            stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_: True))
            stack.enter_context(FakeTensorMode())
            stack.enter_context(SameTypes())
            stack.enter_context(mock.patch("trainers.shared.encoders.pack", pack_fake))
            stack.enter_context(mock.patch("trainers.shared.memory.free_memory", lambda device: 80.0))
            trainer.device = torch.device("cuda")
            trainer.set_precision(precision)
            for module in trainer.model.modules():
                for name, p in module._parameters.items():
                    module._parameters[name] = p if p is None else nn.Parameter(on_cuda(p), p.requires_grad)
                for name, buffer in module._buffers.items():
                    module._buffers[name] = buffer if buffer is None else on_cuda(buffer)
            return trainer

        yield move


def on_cuda(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def pack_fake(ids, shared, parts, device):
    """As for prompts of all lengths: what fake tokens say cannot be read."""
    with unset_fake_temporarily():
        n, length = ids.shape
        known = torch.arange(length) * (torch.arange(length) <= length - 1 - torch.arange(n).unsqueeze(1) % 3)
        packings, place = pack(known, 1 if shared is None else shared, parts, torch.device("cpu"))
    packings = [p._replace(tokens=on_cuda(p.tokens), ends=on_cuda(p.ends)) for p in packings]
    return packings, on_cuda(place)


def batch_of(trainer, n=5):
    label = torch.zeros(n, dtype=torch.int64)
    return {"img": torch.empty(n, 3, *trainer.cfg.INPUT.SIZE), "label": label, "domain": label}


def check(tensor, shape):
    assert tensor.device.type == "cuda" and tensor.dtype == torch.float32 and tensor.shape == shape


def step_and_evaluate(trainer):
    trainer.set_model_mode("train")
    if trainer.optim is not None:
        image, label = trainer.parse_batch_train(batch_of(trainer))
        with torch.autocast(**trainer.autocast):
            terms, logits = trainer.losses(image, label)
        check(logits, (5, trainer.num_classes))
        for term in terms.values():
            check(term, ())
        assert sum(terms.values()).requires_grad
        check(compute_accuracy(logits, label)[0], (1,))
    trainer.set_model_mode("eval")
    with torch.no_grad():
        image, _ = trainer.parse_batch_test(batch_of(trainer))
        for _ in range(2):  # the second time with what is kept
            check(trainer.model_inference(image), (5, trainer.num_classes))


# amp and bf16 differ in one dtype, and fp32 is without autocast: a method of each kind has all three
KINDS = ("OrthCR", "CoOp", "CoCoOp", "MaPLe", "MMA", "LinearProbe")
PRECISE = [(name, [], precision) for name in KINDS for precision in PRECISIONS if precision not in ("auto", "amp")]


@pytest.mark.parametrize("name, opts, precision", [*((*case, "amp") for case in CASES), *PRECISE], ids=str)
def test_every_trainer_on_a_gpu_that_is_not_there(make_trainer, fake_cuda, monkeypatch, name, opts, precision):
    """PromptSRC with 3 of its 60 templates, which go one by one through the same lines."""
    monkeypatch.setattr("trainers.promptsrc.PROMPTSRC_TEMPLATES", PROMPTSRC_TEMPLATES[:3])
    monkeypatch.setattr("trainers.tpt.PromptTunedCLIP.gradient", lambda model, loss, ctx: torch.zeros_like(ctx))
    step_and_evaluate(fake_cuda(make_trainer(*opts, trainer=name), precision))


class LeavesOneBehind(CoOp):
    """A tensor that `.to(device)` does not know of."""

    def build_classifier(self, clip_model, classnames):
        model = super().build_classifier(clip_model, classnames)
        model.bias = [torch.zeros(len(classnames))]
        model.register_forward_hook(lambda module, args, logits: logits + module.bias[0])
        return model


class MixesTypes(CoOp):
    """A product of fp32 and half precision where autocast does not help."""

    def losses(self, image, label):
        terms, logits = super().losses(image, label)
        with torch.autocast("cuda", enabled=False):
            half = torch.empty(logits.shape[1], 2, dtype=torch.float16, device=logits.device)
            return terms | {"mixed": (logits @ half).mean()}, logits


@pytest.mark.parametrize("trainer_class, reason", [(LeavesOneBehind, "device"), (MixesTypes, "dtype")])
def test_what_would_fail_on_a_gpu_fails_here(make_cfg, fake_cuda, trainer_class, reason):
    trainer = fake_cuda(type("CoOp", (trainer_class,), {})(make_cfg(trainer="CoOp")), "fp32")
    with pytest.raises(Exception, match=reason):
        step_and_evaluate(trainer)


# ------------------------------------------------------------------ numerics


@pytest.mark.parametrize("reg", ["cross_kl", "cross_ce", "self_kl", "none"])
def test_bf16_of_orthcr_is_fp32_but_for_its_rounding(make_trainer, take_steps, reg):
    compare_with_bf16(make_trainer, take_steps, "OrthCR", ["TRAINER.ORTHCR.REG", reg])


BF16 = (
    "CoOp CoCoOp KgCoOp ProGrad TCP DePT MaPLe IVLP VPT PromptSRC MMRL MMRLpp CoPrompt CLIP_Adapter LinearProbe".split()
)
BF16 += "CLIPLoRA FullFT BlockFT MMA TwoStageFS CLIP_SVD".split()


@pytest.mark.parametrize("name", BF16)
def test_bf16_is_fp32_but_for_its_rounding(make_trainer, take_steps, name):
    compare_with_bf16(make_trainer, take_steps, name, [])


def compare_with_bf16(make_trainer, take_steps, name, opts):
    """The same training steps, gradients included, and an evaluation of the same tensors, in real bf16 autocast."""
    results, trained, state = {}, {}, None
    for enabled in (False, True):
        trainer = make_trainer(*opts, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.01, trainer=name, out=str(enabled))
        trainer.autocast |= {"enabled": enabled, "dtype": torch.bfloat16}
        torch.manual_seed(0)
        steps = take_steps(trainer, 3)
        learner = trainer.model.get_submodule(trainer.learner)
        trained[enabled] = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
        state = state or copy.deepcopy(learner.state_dict())  # after three steps in fp32
        learner.load_state_dict(state)
        trainer.set_model_mode("eval")
        batch = next(iter(trainer.test_loader))["img"]
        with torch.no_grad():
            results[enabled] = steps, trainer.model_inference(batch)
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    (exact, logits), (rounded, half_logits) = results[False], results[True]
    for a, b in zip(exact, rounded, strict=True):
        assert a.keys() == b.keys()
        assert b["loss"] == pytest.approx(a["loss"], rel=0.03) and b["loss"] != a["loss"]
    assert half_logits.dtype == torch.float32
    assert 1e-4 < (half_logits - logits).abs().max() < 0.03 * logits.abs().max()
    assert float(torch.cosine_similarity(trained[False], trained[True], dim=0)) > 0.98


def test_the_loss_scale_of_amp_is_in_the_checkpoint(make_trainer, take_steps):
    """GradScaler works on a CPU, too: a resumed run goes on with the scale that the interrupted one had."""
    opts = ["OPTIM.MAX_EPOCH", 2, "OPTIM.LR", 0.01]
    trainer, other, fp32 = (make_trainer(*opts, out=out) for out in ("out", "out", "out"))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    take_steps(trainer, 3)
    assert trainer.scaler.get_scale() == 2.0**13
    trainer.save_model(0, trainer.output_dir)
    other.scaler = torch.amp.GradScaler("cpu")
    assert other.resume_model_if_exist(other.output_dir) == 1
    assert other.scaler.state_dict() == trainer.scaler.state_dict()
    assert fp32.resume_model_if_exist(fp32.output_dir) == 1 and not fp32.scaler.is_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["amp", "bf16"])
@pytest.mark.parametrize("name", TRAINED)
def test_half_precision_on_a_gpu(make_trainer, take_steps, name, precision):
    losses = []
    for prec in ("fp32", precision):
        key = f"TRAINER.{node_of(TRAINER_REGISTRY.get(name))}.PREC"
        trainer = make_trainer("USE_CUDA", True, key, prec, trainer=name, out=prec)
        torch.manual_seed(0)
        losses.append([step["loss"] for step in take_steps(trainer, 2)])
        assert all(p.dtype == torch.float32 and p.is_cuda for p in trainer.model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]
