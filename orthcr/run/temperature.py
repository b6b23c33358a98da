"""Calibration of a model's probabilities: one temperature, fitted on val, saved beside the model.

    orthcr calibrate --model-dir OUT [--root DATA]                 for a finished training
    python train.py ... TEST.CALIBRATE True                             at the end of the training

The probabilities are softmax(logits / T). T > 0 minimises the cross-entropy on the val split of the training's data
(Guo et al., ICML 2017). No test image is used, and no accuracy changes. OUT/temperature.json has T, and the checkpoint
and the strength that T was fitted for. predict.py and evaluations use T if they load this checkpoint at this strength.
"""

import os.path as osp
import sys

import torch

from dassl.engine.checkpoint import find_checkpoint
from dassl.infrastructure.files import explain_read_error, file_hash, read_json, write_json
from dassl.infrastructure.streams import progress
from dassl.metrics import confidence, expected_calibration_error, fit_temperature
from dassl.metrics.calibration import cross_entropy

TEMPERATURE = "temperature.json"  # in the output directory of the training


def calibrate(trainer, folder: str) -> dict:
    """Fit the temperature of a trained model, write it into its folder and return the content of the file.

    Args:
        trainer: trainer with the weights of `folder`'s default checkpoint and the val split of its training.
        folder: output directory of the training.

    Raises:
        ValueError: there is no val split, or the cross-entropy on it has no minimum.
    """
    if trainer.val_loader is None:
        raise ValueError(f"{trainer.cfg.DATASET.NAME} has no val split to fit a temperature on: train with val images")
    logits, labels = compute_logits(trainer, trainer.val_loader)
    t, is_correct = fit_temperature(logits, labels), logits.argmax(1) == labels
    temperatures = {"before": 1.0, "after": t}
    content = {
        "temperature": t,
        "split": "val",
        "images": len(labels),
        "cross_entropy": {when: cross_entropy(logits, labels, value) for when, value in temperatures.items()},
        "ece": {
            when: expected_calibration_error(confidence(logits, value), is_correct)
            for when, value in temperatures.items()
        },
        "of": identity(trainer, folder),
    }
    write_json(content, osp.join(folder, TEMPERATURE), seal=True)
    ce, ece = content["cross_entropy"], content["ece"]
    change = f"cross-entropy {ce['before']:.3f} -> {ce['after']:.3f}, ece {ece['before']:.1f}% -> {ece['after']:.1f}%"
    print(f"Temperature {t:.3f}, fitted on {len(labels):,} val images ({change}): {osp.join(folder, TEMPERATURE)}")
    return content


@torch.no_grad()
def compute_logits(trainer, loader) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [n, n_cls] and labels int64 [n] of a loader's images, on the CPU."""
    trainer.set_model_mode("eval")
    logits, labels = [], []
    for batch in progress(loader, desc="calibrating", unit="batch", leave=False):
        image, label = trainer.parse_batch_test(batch)
        logits.append(trainer.model_inference(image))
        labels.append(label)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def calibrate_at_the_end(trainer, folder: str) -> dict:
    """Calibrate after a training and its test; return additional entries for the results.

    If `calibrate` raises, print the reason and return {}.

    Args:
        trainer: trainer after `train()`.
        folder: its output directory.
    """
    trainer.load_model(folder)  # the checkpoint that predictions load: the best on val may not be the last
    try:
        t = calibrate(trainer, folder)["temperature"]
    except ValueError as error:
        print(f"TEST.CALIBRATE: {error}")
        return {}
    evaluator = trainer.evaluator
    if not hasattr(evaluator, "scores"):  # there was no test, or the evaluator is the user's own
        return {"temperature": t}
    ece = expected_calibration_error(confidence(evaluator.scores, t), evaluator.y_pred == evaluator.y_true)
    print(f"* ece: {ece:.1f}%\n* temperature: {t:.3f}")
    return {"ece": ece, "temperature": t}


def read_temperature(folder: str) -> dict | None:
    """Return the content of a folder's temperature.json; None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = osp.join(folder, TEMPERATURE)
    if not folder or not osp.exists(path):
        return None
    try:
        content = read_json(path)
        content["temperature"] = float(content["temperature"])
        if not 1e-4 < content["temperature"] < 1e4 or not isinstance(content["of"], dict):
            raise ValueError(f"a temperature of {content['temperature']}")
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({explain_read_error(error)}): remove it, or calibrate again") from error
    return content


def temperature_of(trainer, folder: str, epoch: int | None = None) -> float | None:
    """Return the temperature for the model that `trainer` has loaded from `folder`; None if there is none.

    Args:
        trainer: trainer after `load_model`.
        folder: output directory of the training.
        epoch: epoch of the checkpoint; None: the default checkpoint.

    Raises:
        ValueError: the file is damaged.
    """
    content = read_temperature(folder)
    if content is None:
        return None
    if content["of"] != identity(trainer, folder, epoch):
        problem = "is for another checkpoint or strength: the probabilities are not calibrated"
        print(f"{osp.join(folder, TEMPERATURE)} {problem}", file=sys.stderr)
        return None
    return content["temperature"]


def identity(trainer, folder: str, epoch: int | None = None) -> dict:
    """Return the identity of a loaded model: the checksum of each checkpoint, and the strength.

    The weights in memory are not compared, because they depend on the classes in some methods.
    """
    files = {}
    for name in trainer.get_model_names() if osp.isdir(folder) else []:
        try:
            files[name] = file_hash(find_checkpoint(folder, name, epoch))
        except FileNotFoundError:  # a checkpoint in the format of the method's original code
            files[name] = ""
    return {"checkpoints": files, "strength": getattr(getattr(trainer, "model", None), "strength", 1.0)}
