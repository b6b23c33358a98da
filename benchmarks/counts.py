"""The costs of a case, counted on fake tensors: operations and memory, in seconds, whatever the number of classes is.

    python -m benchmarks.counts --trainers CoOp OrthCR --classes 50 500 1000        a table of the predicted ratios

A fake tensor has a shape and no numbers. So the trainer's own step, and the reference formulation, run at their real
sizes without being computed. PyTorch's `FlopCounterMode` counts the operations of the matrix products, of attention and
of convolutions in both directions, and the `Tracker` of benchmarks/memory.py the bytes. FORMULAS adds what that counter
does not know: attention on a CPU, and the solves of OrthCR's Cayley map. All else, which mostly moves memory, is not
counted.

In evaluation the reference encodes the text for each batch. Ours encodes it once for EVAL_BATCHES batches; a real test
set has more.
"""

import argparse
import contextlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from clip.model import CLIP
from tabulate import tabulate
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dassl.engine import TRAINER_REGISTRY
from trainers.shared import encoders
from trainers.shared.packing import pack

from .cases import ADAPTING, BACKBONES, EVAL_BATCHES, FIRST, SETTINGS, Case
from .measure import FORMS, class_names, config
from .memory import Tracker, trainer_tensors


@dataclass(frozen=True)
class Costs:
    """The counted costs of a formulation.

    Attributes:
        gflop: GFLOP of a training step, of an adaptation, or of one of the EVAL_BATCHES batches of an evaluation.
        round: GFLOP of a round of `benchmarks.measure`: a step, or the batches of an evaluation that it measures.
        gib: at the peak of them.
    """

    gflop: float
    round: float
    gib: float


def solve(a, b, *args, **kwargs) -> float:
    """Return the operations of X = A^-1 B for the shapes of A [..., n, n] and B [..., n, k], by LU."""
    *batch, n, k = b
    return math.prod(batch) * (2 / 3 * n**3 + 2 * n**2 * k)


def solve_lu(lu, pivots, b, *args, **kwargs) -> float:
    *batch, n, k = b
    return math.prod(batch) * 2 * n**2 * k


def attention(q, k, v, *args, **kwargs) -> int:
    return sdpa_flop_count(q, k, v)


def attention_backward(grad, q, k, v, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


aten = torch.ops.aten
FORMULAS = {
    aten._linalg_solve_ex: solve,
    aten.linalg_lu_solve: solve_lu,
    aten.linalg_inv_ex: lambda a, *args, **kwargs: solve(a, a),
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def count(case: Case) -> dict[str, Costs]:
    """Return the costs of each formulation of `measure.FORMS`."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build(case)
    half = torch.autocast("cpu", torch.bfloat16, enabled=case.prec != "fp32")
    with FakeTensorMode(allow_non_fake_inputs=True), use_real_ids(), half:
        make_fake(trainer.model)
        image = torch.empty(case.batch, 3, *trainer.cfg.INPUT.SIZE)
        label = torch.zeros(case.batch, dtype=torch.int64)
        embed = BACKBONES[case.backbone].embed
        # encoded once a run, in no step
        trainer.model.compute_frozen_once("templates", lambda: torch.empty(case.classes, embed))
        costs = {}
        for name, form in FORMS.items():
            with form(trainer.model):
                if case.kind == "train":
                    costs[name] = step(trainer, image, label)
                elif case.kind == "adapt":
                    costs[name] = adaptation(trainer, image)
                else:
                    costs[name] = evaluation(trainer, image, batches=2 if name == "ours" else 1)
    return costs


def build(case: Case):
    """Return the trainer of a case without data and optimizer, whose CLIP has memory and no values."""
    cfg, size = config(case, case.backbone, "none"), BACKBONES[case.backbone]
    (width, blocks), (text, text_blocks) = size.image, size.text
    with torch.device("meta"):
        model = CLIP(size.embed, 224, blocks, width, size.patch, 77, 49408, text, text // 64, text_blocks)
    model.to_empty(device="cpu").eval().requires_grad_(False)
    for block in model.transformer.resblocks:
        block.attn_mask = model.build_attention_mask()
    method = TRAINER_REGISTRY.get(case.trainer)
    trainer = method.__new__(method)
    trainer.cfg, trainer.device, trainer.optim = cfg, torch.device("cpu"), None
    trainer.model = trainer.build_classifier(model, class_names(case.classes))
    trainer.model.templates = trainer.model.templates[:1]  # as in `measure.build`
    trainer.set_precision("fp32")
    return trainer


def make_fake(model: nn.Module) -> None:
    """Replace tensors of floats by fake ones, in place. Integers stay, because the ids of the tokens are read."""
    fakes = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in fakes:
                fakes[id(parameter)] = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
            module._parameters[name] = fakes.get(id(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = torch.empty_like(buffer)


@contextlib.contextmanager
def use_real_ids():
    """Compute the plans of prompts on real token ids, for memory without a limit, in the context."""

    def pack_real(*args):
        with unset_fake_temporarily():
            return pack(*args)

    no_limit = mock.patch("trainers.shared.memory.free_memory", lambda device: math.inf)
    with mock.patch.object(encoders, "pack", pack_real), no_limit:
        yield


def count_operations(trainer, work: Callable) -> tuple[float, float]:
    """Return the GFLOP of work(), and the GiB at its peak."""
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter, Tracker(trainer_tensors(trainer)) as tracker:
        work()
    return counter.get_total_flops() / 1e9, tracker.peak / 2**30


def step(trainer, image: torch.Tensor, label: torch.Tensor) -> Costs:
    """Return the costs of a training step."""

    def work():
        trainer.backward(trainer.losses(image, label)[0])

    trainer.model.train()
    trainer.model.zero_grad()
    gflop, gib = count_operations(trainer, work)
    return Costs(gflop, gflop, gib)


@torch.no_grad()
def evaluation(trainer, image: torch.Tensor, batches: int) -> Costs:
    """Return the costs of an evaluation, of which a round measures this number of batches."""
    trainer.model.eval()
    first, gib = count_operations(trainer, lambda: trainer.model(image))
    later_costs, _ = count_operations(trainer, lambda: trainer.model(image))
    return Costs(later_costs + (first - later_costs) / EVAL_BATCHES, first + (batches - 1) * later_costs, gib)


def adaptation(trainer, image: torch.Tensor) -> Costs:
    """Return the costs of the adaptation to a batch of images, whose views are counted without memory."""
    views = image.unsqueeze(1).expand(-1, trainer.node.VIEWS, -1, -1, -1)

    def gradient(loss, ctx):  # FlopCounterMode does not follow `torch.autograd.grad`
        loss.backward(inputs=[ctx])
        return ctx.grad

    trainer.model.eval()
    with mock.patch.object(trainer.model, "gradient", gradient):
        gflop, gib = count_operations(trainer, lambda: trainer.model(views))
    return Costs(gflop, gflop, gib)


def main() -> None:
    """Print the ratios reference / ours of the operations."""
    parser = argparse.ArgumentParser("python -m benchmarks.counts", description=main.__doc__)
    parser.add_argument("--trainers", nargs="+", choices=list(SETTINGS), help="default: all of this kind")
    parser.add_argument("--classes", nargs="+", type=int, default=[50, 500, 1000])
    parser.add_argument("--kind", choices=["train", "eval", "adapt"], default="train")
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    rows = []
    trainers = [name for name in SETTINGS if (name in ADAPTING) == (args.kind == "adapt")]
    for trainer in args.trainers or trainers:
        row = {f"{args.kind}, batch {args.batch}": trainer}
        for classes in args.classes:
            costs = count(Case(args.kind, trainer, FIRST, classes, args.batch, "fp32"))
            row[f"{classes:,} classes"] = costs["reference"].gflop / costs["ours"].gflop
        rows.append(row)
    print(tabulate(rows, "keys", "github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
