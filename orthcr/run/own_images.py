"""Additional results of a run on own images: the gain over zero-shot CLIP, the misclassified images, the next command.

OUT/wrong.csv, wrong.png      misclassified images, the highest probability first
OUT/confusion.png             confusion matrix
"zero_shot_accuracy"          entry of results.json: the accuracy of the frozen CLIP on the same images
"""

import contextlib
import csv
import io
import os
import os.path as osp
import shlex

import torch
from yacs.config import CfgNode

from dassl.data.workers import read_in_order
from dassl.evaluation.evaluator import confusion_matrix
from dassl.infrastructure.files import spreadsheet_cell
from dassl.utils import atomic_write, progress
from orthcr.reports.predictions import draw_confusion_matrix, draw_contact_sheet
from orthcr.run.config_files import CONFIGS
from trainers.base import ClipTrainer
from trainers.shared.classes import same_to_clip
from trainers.shared.prompts import template_features, template_for

HEADS = "path", "label", "predicted", "probability"


def warn_before_training(cfg: CfgNode, classnames: list[str]) -> None:
    """Print warnings before a training: for class names that CLIP cannot tell apart, and for the tiny CLIP.

    Args:
        cfg: config of the run.
        classnames: names of the classes, in the order of their labels.
    """
    for names in same_to_clip(classnames):
        quoted_names = " and ".join(f'"{name}"' for name in names)
        print(f"{quoted_names} are the same to CLIP, which cannot tell them apart: rename one of these classes")
    if cfg.MODEL.BACKBONE.NAME == "tiny":
        files = sorted((CONFIGS / "trainers" / cfg.TRAINER.NAME).glob("vit_b16*.yaml"))  # names as in original code
        better_flag = "--backbone ViT-B/16"
        if files:
            better_flag = f"--config-file configs/trainers/{cfg.TRAINER.NAME}/{files[0].name}"
        print("The tiny CLIP is used. It was trained on drawn shapes only.")
        print(f"For photographs give {better_flag} and another --output-dir (ViT-B/16; 335 MB are downloaded once).")


def report_results(trainer) -> dict:
    """Print and write the additional results after `trainer.test()`; return the entries for results.json."""
    cfg = trainer.cfg
    loader = trainer.val_loader if trainer.results.get("split") == "val" else trainer.test_loader
    predicted = getattr(trainer.evaluator, "y_pred", None)
    items = loader.dataset.data_source if loader else []
    if predicted is None or trainer.evaluator.y_true.tolist() != [item.label for item in items]:
        return {}  # there was no test, or the user's own evaluator has no predictions in the order of the images
    zero_shot, probabilities = run_second_pass(trainer, loader, predicted)
    rows = [
        (item.impath, item.classname, trainer.lab2cname[int(predicted[k])], probabilities[k])
        for k, item in enumerate(items)
        if k in probabilities
    ]
    entries = {}
    if zero_shot is not None:
        entries["zero_shot_accuracy"] = zero_shot
        gain = trainer.results["accuracy"] - zero_shot
        print(f"* zero-shot CLIP on the same images: {zero_shot:.1f}%; the training brought {gain:+.1f}")
    write_wrong(sorted(rows, key=lambda row: -row[-1]), len(items), cfg.OUTPUT_DIR)
    names = [trainer.lab2cname[label] for label in sorted(trainer.lab2cname)]
    matrix = confusion_matrix(trainer.evaluator.y_true, predicted, len(names)).numpy()
    path = osp.join(cfg.OUTPUT_DIR, "confusion.png")
    draw_confusion_matrix(matrix, names, path)
    print(f"The confusion matrix is in {path}")
    return entries


@torch.no_grad()
def run_second_pass(trainer, loader, predicted: torch.Tensor) -> tuple[float | None, dict[int, float]]:
    """Return the frozen CLIP's accuracy in percent, and {index: probability} of the misclassified images.

    Only the misclassified images go through the trained model again. The accuracy is None if no CLIP was trained.

    Args:
        trainer: trainer after `test()`.
        loader: loader of the images.
        predicted: labels predicted by the trained model, int64 [n].
    """
    has_zero_shot = isinstance(trainer, ClipTrainer) and bool(trainer.learner)
    wrong_mask, n_correct, probabilities = predicted != trainer.evaluator.y_true, 0, {}
    if not has_zero_shot and not wrong_mask.any():
        return None, {}
    text = frozen_text(trainer).t() if has_zero_shot else None
    batches = read_in_order(loader.dataset, loader.batch_size, loader.num_workers)
    for batch in progress(batches, desc="zero-shot CLIP", unit="batch", leave=False):
        image, label = trainer.parse_batch_test(batch)
        if has_zero_shot:
            with torch.autocast(**trainer.autocast):
                features = trainer.model.frozen_image(image)
            n_correct += int((features.float() @ text).argmax(1).eq(label).sum())
        index = batch["index"]
        is_wrong = wrong_mask[index]
        if is_wrong.any():
            p = trainer.model_inference(image[is_wrong.to(image.device)]).float().softmax(1).cpu()
            label_probabilities = p.gather(1, predicted[index[is_wrong]].unsqueeze(1)).squeeze(1)
            probabilities.update(zip(index[is_wrong].tolist(), label_probabilities.tolist(), strict=True))
    accuracy = 100 * n_correct / len(predicted) if has_zero_shot else None
    return accuracy, probabilities


def frozen_text(trainer) -> torch.Tensor:
    """Return the frozen CLIP's class features, float32 [n_cls, d], with the prompts of the method or the data set."""
    model = trainer.model
    if model.templates:
        return model.template_text
    templates = [template_for(trainer.cfg.DATASET.NAME, trainer.node.get("TEMPLATE", ""))]
    with torch.autocast(trainer.device.type, enabled=False):
        return template_features(model.text_encoder, model.classnames, templates)


def write_wrong(rows: list[tuple], total: int, folder: str) -> None:
    """Write OUT/wrong.csv and, if an image was misclassified, OUT/wrong.png.

    Args:
        rows: (path, label, predicted class, probability) of each misclassified image.
        total: number of evaluated images.
        folder: the output directory OUT.
    """
    table, picture = (osp.join(folder, f"wrong.{kind}") for kind in ("csv", "png"))
    text = io.StringIO()
    cells = [[*map(spreadsheet_cell, names), f"{p:.3f}"] for *names, p in rows]
    csv.writer(text).writerows([HEADS, *cells])
    with atomic_write(table) as f:
        f.write(text.getvalue().encode())
    with contextlib.suppress(FileNotFoundError):
        os.remove(picture)  # of an earlier evaluation
    files = table
    if rows:
        titles = [(path, f"{guess}, {100 * p:.0f} %\nis {label}") for path, label, guess, p in rows[:24]]
        draw_contact_sheet(titles, picture)
        files = f"{table}, the highest probabilities also in {picture}"
    print(f"{len(rows):,} of {total:,} images are misclassified: {files}")


def next_command(folder: str) -> str:
    """Return a line with the command that classifies other images with this model."""
    predict = "python predict.py" if osp.exists("predict.py") else "orthcr predict"
    return f"Classify other images with: {predict} --model-dir {shlex.quote(folder)} IMAGES_OR_FOLDERS"
