"""The cases and the order of their measurements: the most important first."""

from itertools import product
from typing import NamedTuple

from . import flops

CLASSES = [10, 50, 100, 500, 1000]
BATCHES = [1, 4, 32]
EVAL_BATCHES = [32, 100]
FIRST = "ViT-B/16"
OTHERS = [("CoOp", 50), ("OrthCR", 50), ("CoOp", 1000), ("OrthCR", 1000)]  # (trainer, classes) of other backbones

SETTINGS = {  # YAML in configs/trainers/<trainer>, and KEY VALUE pairs
    "CoOp": ("vit_b16", []),
    "OrthCR": ("vit_b16", []),
    "MaPLe": ("vit_b16_c2_ep5_batch4_2ctx", []),
    "PromptSRC": ("vit_b16_c2_ep20_batch4_4+4ctx", []),
    "CoCoOp": ("vit_b16_c4_ep10_batch1_ctxv1", []),
    "CLIPLoRA": ("vit_b16", ["TRAINER.CLIPLORA.DROPOUT", "0.0"]),  # the reference forms W', which can have no dropout
    "KgCoOp": ("vit_b16_ep100_ctxv1", []),
    "ProGrad": ("vit_b16_ep100_ctx", []),
    "IVLP": ("vit_b16_c2_ep20_batch4_4+4ctx", []),
    "VPT": ("vit_b16_c2_ep5_batch4_4", []),
    "MMRL": ("vit_b16", []),
    "OrthSR": ("vit_b16", []),
    "FullFT": ("vit_b16", []),
    "CLIP_Adapter": ("vit_b16", []),
}


class Case(NamedTuple):
    """A measurement: one training step, or one batch of an evaluation."""

    kind: str  # "train" or "eval"
    trainer: str
    backbone: str
    classes: int
    batch: int
    prec: str

    def __str__(self) -> str:
        return f"{self.kind} {self.trainer} {self.backbone} {self.classes} classes, batch {self.batch}, {self.prec}"

    def gflop(self, formulation: str) -> float:
        count = flops.of_step if self.kind == "train" else flops.of_evaluation
        return count(self.trainer, self.backbone, self.classes, self.batch, formulation)

    @property
    def predicted(self) -> float:
        """The ratio reference / ours of the operations."""
        return self.gflop("reference") / self.gflop("ours")

    @property
    def measured(self) -> tuple[float, float]:
        """The GFLOP of a round: (reference, ours). A round of an evaluation of ours has the first and a later batch."""
        if self.kind == "train":
            return self.gflop("reference"), self.gflop("ours")
        image = self.batch * flops.image_forward(flops.BACKBONES[self.backbone])
        return self.gflop("reference"), image + flops.EVAL_BATCHES * (self.gflop("ours") - image) + image


def telling(prec: str) -> list[Case]:
    """Return the most important cases, which are measured first."""
    both = "CoOp", "OrthCR"
    cases = [Case("train", name, FIRST, n, 4, prec) for n in (50, 500, 1000) for name in both]
    cases += [Case("eval", "CoOp", FIRST, 1000, batch, prec) for batch in (100, 32)]
    cases += [Case("train", name, FIRST, 50, 4, prec) for name in ("MaPLe", "PromptSRC", "CoCoOp", "CLIPLoRA")]
    return cases + [Case("train", name, FIRST, 1000, 32, prec) for name in both]


def plan(
    trainers: list[str], classes: list[int], batches: list[int], precs: list[str], backbones: list[str]
) -> list[Case]:
    """Return the cases of these values in their order.

    The most important cases come first, then those of `FIRST` by their operations, then those of other backbones.

    Args:
        trainers: names.
        classes: numbers of classes.
        batches: batch sizes of training.
        precs: precisions.
        backbones: names.
    """
    kinds = [("train", batch) for batch in batches] + [("eval", batch) for batch in EVAL_BATCHES]
    grid = set()
    for backbone, prec, name, n, (kind, batch) in product(backbones, precs, trainers, classes, kinds):
        if backbone == FIRST or (kind == "train" and batch == 4 and (name, n) in OTHERS):
            grid.add(Case(kind, name, backbone, n, batch, prec))
    first = [case for prec in precs for case in telling(prec) if case in grid]
    rest = sorted(grid - set(first), key=lambda case: (case.backbone != FIRST, sum(case.measured), case))
    return first + rest
