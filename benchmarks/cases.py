"""The cases and the order of their measurements: the most important first."""

from itertools import product
from typing import NamedTuple

CLASSES = [10, 50, 100, 500, 1000]
BATCHES = [1, 4, 32]
TEST_BATCHES = [32, 100]  # sizes of the batches of an evaluation
EVAL_BATCHES = 4  # number of batches of an evaluation
ADAPT_BATCHES = [1, 4]  # sizes of the batches of an adaptation
FIRST = "ViT-B/16"
OTHER_BACKBONES = [("CoOp", 50), ("OrthCR", 50), ("CoOp", 1000), ("OrthCR", 1000)]  # (trainer, classes)


class Backbone(NamedTuple):
    """The sizes of a CLIP."""

    patch: int
    image: tuple[int, int]  # (width, blocks) of the encoder
    text: tuple[int, int]  # (width, blocks) of the encoder
    embed: int


BACKBONES = {
    "ViT-B/16": Backbone(16, (768, 12), (512, 12), 512),
    "ViT-B/32": Backbone(32, (768, 12), (512, 12), 512),
    "ViT-L/14": Backbone(14, (1024, 24), (768, 12), 768),
}
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
    "TCP": ("vit_b16_ep100_ctxv1", []),
    "MMA": ("vit_b16_ep5", []),
    "TPT": ("vit_b16", []),
}
ADAPTING = ["TPT"]  # trainers without a training step


class Case(NamedTuple):
    """A measurement: one training step, one batch of an evaluation, or one batch of an evaluation that adapts."""

    kind: str  # "train", "eval" or "adapt"
    trainer: str
    backbone: str
    classes: int
    batch: int
    prec: str

    def __str__(self) -> str:
        return f"{self.kind} {self.trainer} {self.backbone} {self.classes} classes, batch {self.batch}, {self.prec}"


def first_cases(prec: str) -> list[Case]:
    """Return the most important cases, which are measured first."""
    both = "CoOp", "OrthCR"
    cases = [Case("train", name, FIRST, n, 4, prec) for n in (50, 500, 1000) for name in both]
    cases += [Case("eval", "CoOp", FIRST, 1000, batch, prec) for batch in (100, 32)]
    cases += [Case("train", name, FIRST, 50, 4, prec) for name in ("MaPLe", "PromptSRC", "CoCoOp", "CLIPLoRA")]
    cases += [Case("train", name, FIRST, 1000, 32, prec) for name in both]
    for n in (50, 500, 1000):
        cases += [Case("train", name, FIRST, n, 4, prec) for name in ("TCP", "MMA")]
        cases.append(Case("adapt", "TPT", FIRST, n, 1, prec))
    return cases


def plan_cases(
    trainers: list[str], classes: list[int], batches: list[int], precs: list[str], backbones: list[str]
) -> list[Case]:
    """Return the cases of these values in their order.

    The most important cases come first, then those of `FIRST` from few classes and images to many, then those of other
    backbones.

    Args:
        trainers: names.
        classes: numbers of classes.
        batches: batch sizes of training.
        precs: precisions.
        backbones: names.
    """
    kinds = [("train", batch) for batch in batches] + [("eval", batch) for batch in TEST_BATCHES]
    adapt = [("adapt", batch) for batch in ADAPT_BATCHES]
    grid = set()
    for backbone, prec, name, n in product(backbones, precs, trainers, classes):
        for kind, batch in adapt if name in ADAPTING else kinds:
            if backbone == FIRST or (kind == "train" and batch == 4 and (name, n) in OTHER_BACKBONES):
                grid.add(Case(kind, name, backbone, n, batch, prec))
    first = [case for prec in precs for case in first_cases(prec) if case in grid]
    rest = sorted(grid - set(first), key=lambda case: (case.backbone != FIRST, case.classes * case.batch, case))
    return first + rest
