"""Checkpoints of a run: finding them, loading their weights, and the state of the random generators."""

import contextlib
import os
import os.path as osp
import random
import re

import numpy as np
import torch

from dassl.utils import load_checkpoint

BEST = "model-best.pth.tar"


def epochs(folder):
    """Return the epochs of the checkpoints in a folder, in order."""
    files = os.listdir(folder) if osp.isdir(folder) else []
    return sorted(int(m.group(1)) for m in (re.fullmatch(r"model\.pth\.tar-(\d+)", f) for f in files) if m)


def find_checkpoint(directory, name, epoch):
    """Return the checkpoint of model `name` in `directory`: that of `epoch`, else the best on val, else the newest.

    Raises:
        FileNotFoundError: there is none; the message says what there is.
    """
    folder = osp.join(directory, name)
    if not osp.isdir(directory):
        raise FileNotFoundError(f'there is no directory "{directory}": check --model-dir')
    if not osp.isdir(folder):
        others = [d for d in sorted(os.listdir(directory)) if epochs(osp.join(directory, d))]
        held = f"it holds checkpoints of another trainer: {others}" if others else "it holds no checkpoints"
        raise FileNotFoundError(f'no folder "{name}" in "{directory}": {held}')
    there = epochs(folder)
    best = osp.join(folder, BEST)
    if epoch is None and osp.exists(best):
        return best
    if not there:
        raise FileNotFoundError(f'no checkpoints in "{folder}"')
    if epoch not in (None, *there):
        raise FileNotFoundError(f'no checkpoint of epoch {epoch} in "{folder}": there are {there}, set --load-epoch')
    return osp.join(folder, f"model.pth.tar-{there[-1] if epoch is None else epoch}")


def load_weights(model, checkpoint, path):
    """Load the weights of a checkpoint.

    Raises:
        ValueError: in one line: they do not fit the model, or are not finite.
    """
    given = checkpoint.get("state_dict", checkpoint)
    if isinstance(given, dict) and hasattr(model, "translated"):
        with contextlib.suppress(AttributeError, TypeError):  # it is not of the form of the original either
            given = model.translated(given)
    if not isinstance(given, dict) or not all(isinstance(value, torch.Tensor) for value in given.values()):
        raise ValueError(f'the checkpoint "{path}" holds no state_dict of tensors: take one of a training')
    try:
        model.load_state_dict(given)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        for key, wanted in model.state_dict().items():
            if key in given and given[key].shape != wanted.shape:
                shapes = f'"{key}" has shape {list(given[key].shape)} there and {list(wanted.shape)} in this model'
                reason = f"{shapes}: use the backbone, trainer settings and classes of its training"
                break
        raise ValueError(f'the checkpoint "{path}" does not fit: {reason}') from error
    wrong = not_finite(model)
    if wrong:
        advice = "take an earlier epoch, or train again with a lower OPTIM.LR"
        raise ValueError(f'the checkpoint "{path}" has infinity or NaN in "{wrong}", its training diverged: {advice}')


def not_finite(model, optim=None):
    """Return the name of the first parameter with infinity or NaN, or buffer with NaN (masks are infinite); else "".

    Of an optimizer also, in the same way, what it keeps of the parameters.
    """
    for name, tensor in model.named_parameters():
        kept = optim.state.get(tensor, {}) if optim else {}
        tensors = [tensor, *(value for value in kept.values() if isinstance(value, torch.Tensor))]
        if not all(value.isfinite().all() for value in tensors):
            return name
    return next((name for name, tensor in model.named_buffers() if tensor.isnan().any()), "")


def remove_temporary(folder, keep):
    """Remove the temporary checkpoints that killed runs left behind, except that of epoch `keep`."""
    for epoch in epochs(folder):
        path = osp.join(folder, f"model.pth.tar-{epoch}")
        if epoch != keep and load_checkpoint(path).get("temporary"):
            os.remove(path)


def rng_state():
    """Return the state of all random generators as tensors and plain types, which load with weights_only=True."""
    kind, keys, *rest = np.random.get_state()
    numpy = (kind, torch.from_numpy(keys.astype(np.int64)), *rest)
    state = {"python": random.getstate(), "torch": torch.get_rng_state(), "numpy": numpy}
    if torch.cuda.is_initialized():  # else this run is on the CPU
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state):
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
