"""Published averages on the 11 real data sets with ViT-B/16. Tables show them beside the measured figures."""

from collections.abc import Iterable

from datasets.catalogue import BENCHMARKS, targets, variants
from orthcr.reports.names import format_shots
from orthcr.reports.runs import Run

PUBLISHED = "published average"
SOURCE = (
    "published average: ViT-B/16, 16 shots, 11 data sets, not of these runs. Base-to-new as its authors give it "
    "(ProGrad: as KgCoOp's ran it, IVLP: PromptSRC's, CLIP-LoRA: a later re-run, TCP: as the README of CLIP-SVD, "
    "DePT: over CoOp, MMRL: as the list Awesome-Prompt-Adapter-Learning-for-VLMs, OrthSR: as the public reviews of its "
    "submission to ICLR 2025 have it, which was withdrawn), few-shot as the README of CLIP-SVD, "
    "transfers as that of VLM-LwEIB"
)
SHOTS = (1, 2, 4, 8, 16)
# trainer: base, new, H; few-shot at 1, 2, 4, 8, 16 shots; cross-dataset, domain generalization
BASE_TO_NEW = {
    "ZeroshotCLIP": (69.34, 74.22, 71.70),
    "CoOp": (82.69, 63.22, 71.66),
    "CoCoOp": (80.47, 71.69, 75.83),
    "KgCoOp": (80.73, 73.60, 77.00),
    "ProGrad": (82.48, 70.75, 76.16),
    "MaPLe": (82.28, 75.14, 78.55),
    "IVLP": (84.21, 71.79, 77.51),
    "PromptSRC": (84.26, 76.10, 79.97),
    "MMRL": (85.68, 77.16, 81.20),
    "TCP": (84.13, 75.36, 79.51),
    "MMA": (83.20, 76.80, 79.87),
    "DePT": (83.66, 71.82, 77.29),
    "CoPrompt": (84.00, 77.23, 80.48),
    "CLIPLoRA": (84.10, 74.80, 79.18),
    "OrthSR": (83.82, 76.55, 80.02),
    "GDA": (83.96, 74.53, 78.97),
    "TwoStageFS": (85.55, 75.48, 80.20),
    "CLIP_SVD": (84.38, 76.29, 80.13),
}
FEW_SHOT = {
    "CoOp": (68.09, 70.13, 73.59, 76.45, 79.01),
    "CoCoOp": (66.95, 67.63, 71.98, 72.92, 75.02),
    "KgCoOp": (69.51, 71.57, 74.48, 75.82, 77.26),
    "ProGrad": (68.20, 71.78, 74.21, 77.93, 79.20),
    "TCP": (70.63, 73.59, 76.07, 78.39, 80.98),
    "MaPLe": (69.27, 72.58, 75.37, 78.89, 81.79),
    "CLIP_Adapter": (67.87, 70.20, 72.65, 76.92, 79.86),
    "TipAdapterF": (70.62, 73.08, 75.75, 78.51, 81.15),
    "CLIPLoRA": (72.20, 75.41, 77.32, 80.10, 82.89),
    "GDA": (69.39, 73.09, 76.24, 79.71, 81.70),
    "LPpp": (70.35, 72.93, 75.77, 77.94, 80.32),
    "CLIP_SVD": (73.20, 76.06, 78.18, 80.55, 82.97),
}
TRANSFER = {
    "ZeroshotCLIP": (65.15, 57.18),
    "CoOp": (63.88, 59.28),
    "CoCoOp": (65.74, 59.91),
    "MaPLe": (66.30, 60.27),
    "PromptSRC": (65.81, 60.65),
}


def averages(
    protocol: str, source: str, data_sets: Iterable[str], shots: int | None, runs: Iterable[Run]
) -> dict[str, dict[str, float]]:
    """Return {trainer: {column head: published percent}}; {} if the table's average is over other data sets.

    Args:
        protocol: base2new, fewshot, xd or dg.
        source: training data set of the transfers.
        data_sets: data sets of the table's average.
        shots: shots of all trainings; None if the columns differ in shots.
        runs: runs of the table; only ViT-B/16 has published averages.
    """
    if {run.backbone for run in runs} != {"ViT-B/16"} or shots not in (None, 16):
        return {}
    if protocol == "xd":
        rows = targets("ImageNet")
    elif protocol == "dg":
        rows = variants("ImageNet")
    else:
        rows = main_data_sets()
    if set(data_sets) != {row.name for row in rows}:
        return {}
    if protocol in ("xd", "dg"):
        if source != "ImageNet":
            return {}
        column = ("xd", "dg").index(protocol)
        return {trainer: {"average": row[column]} for trainer, row in TRANSFER.items()}
    if protocol == "base2new":
        return {trainer: dict(zip(("base", "new", "H"), row, strict=True)) for trainer, row in BASE_TO_NEW.items()}
    if protocol == "fewshot":
        heads = list(map(format_shots, SHOTS))
        rows = {trainer: dict(zip(heads, row, strict=True)) for trainer, row in FEW_SHOT.items()}
        return {"ZeroshotCLIP": {format_shots(0): 65.36}} | rows
    return {}


def main_data_sets() -> list:
    """Return the 11 data sets of the base-to-new and few-shot protocols."""
    return [row for row in BENCHMARKS if not row.embedded and not row.variant_of]
