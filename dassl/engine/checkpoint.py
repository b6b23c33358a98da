"""Functions on checkpoints: find them, load their weights, and save the state of the random generators."""

import os
import os.path as osp
import random
import re

import numpy as np
import torch

from dassl.utils import load_checkpoint
from dassl.utils.torchtools import own_weights

BEST = "model-best.pth.tar"


def epochs(folder):
    """Return the epochs of the checkpoints in a folder, in order."""
    files = os.listdir(folder) if osp.isdir(folder) else []
    return sorted(int(m.group(1)) for m in (re.fullmatch(r"model\.pth\.tar-(\d+)", f) for f in files) if m)


def find_checkpoint(directory, name, epoch):
    """Return the file of a checkpoint.

    Args:
        directory: directory of a training.
        name: name of the model.
        epoch: epoch of the checkpoint; None: the best on val if it exists, else the newest.

    Raises:
        FileNotFoundError: there is no such checkpoint. The message lists those that exist.
    """
    folder = osp.join(directory, name)
    if not osp.isdir(directory):
        raise FileNotFoundError(f'there is no directory "{directory}": check --model-dir')
    if not osp.isdir(folder):
        others = [d for d in sorted(os.listdir(directory)) if epochs(osp.join(directory, d))]
        content = f"it holds checkpoints of another trainer: {others}" if others else "it holds no checkpoints"
        raise FileNotFoundError(f'no folder "{name}" in "{directory}": {content}')
    saved_epochs = epochs(folder)
    best_path = osp.join(folder, BEST)
    if epoch is None and osp.exists(best_path):
        return best_path
    if not saved_epochs:
        raise FileNotFoundError(f'no checkpoints in "{folder}"')
    if epoch is None:
        epoch = saved_epochs[-1]
    if epoch not in saved_epochs:
        problem = f'no checkpoint of epoch {epoch} in "{folder}"'
        raise FileNotFoundError(f"{problem}: there are {saved_epochs}, set --load-epoch")
    return osp.join(folder, f"model.pth.tar-{epoch}")


def load_weights(model, checkpoint, path):
    """Load the weights of a checkpoint.

    Raises:
        ValueError: they do not fit the model, or are not finite. The message has one line.
    """
    weights = own_weights(model, checkpoint, path)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, LookupError, TypeError) as error:  # the load_state_dict of a learner may raise other types
        reason = " ".join(str(error).split())
        for key, tensor in model.state_dict().items():
            if key in weights and weights[key].shape != tensor.shape:
                shapes = f'"{key}" has shape {list(weights[key].shape)} there and {list(tensor.shape)} in this model'
                reason = f"{shapes}: use the backbone, trainer settings and classes of its training"
                break
        raise ValueError(f'the checkpoint "{path}" does not fit: {reason}') from error
    name = not_finite(model)
    if name:
        advice = "take an earlier epoch, or train again with a lower OPTIM.LR"
        raise ValueError(f'the checkpoint "{path}" has infinity or NaN in "{name}": its training diverged, {advice}')


def not_finite(model, optim=None):
    """Return the name of the first parameter with infinity or NaN, or of the first buffer with NaN; "": there is none.

    Buffers may be infinite, because attention masks are.

    Args:
        model: the module.
        optim: its optimizer, whose state of each parameter is checked as well.
    """
    for name, tensor in model.named_parameters():
        state = optim.state.get(tensor, {}) if optim else {}
        tensors = [tensor, *(value for value in state.values() if isinstance(value, torch.Tensor))]
        if not all(value.isfinite().all() for value in tensors):
            return name
    return next((name for name, tensor in model.named_buffers() if tensor.isnan().any()), "")


def remove_temporary(folder, keep):
    """Remove the temporary checkpoints of killed runs, except the one of epoch `keep`."""
    for epoch in epochs(folder):
        path = osp.join(folder, f"model.pth.tar-{epoch}")
        if epoch != keep and load_checkpoint(path).get("temporary") is True:
            os.remove(path)


def rng_state():
    """Return the state of all random generators as tensors and plain types, which load with weights_only=True."""
    kind, keys, *position = np.random.get_state()
    numpy = (kind, torch.from_numpy(keys.astype(np.int64)), *position)
    state = {"python": random.getstate(), "torch": torch.get_rng_state(), "numpy": numpy}
    if torch.cuda.is_initialized():  # a run on the CPU does not initialise CUDA
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state):
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *position))
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
