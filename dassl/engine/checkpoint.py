"""What a checkpoint is made of: where it lies, how its weights are loaded, the state of the random generators."""

import os
import os.path as osp
import random
import re

import numpy as np
import torch

from dassl.utils import load_checkpoint

BEST = "model-best.pth.tar"


def epochs(folder):
    """Epochs that a folder has checkpoints of, in order."""
    files = os.listdir(folder) if osp.isdir(folder) else []
    return sorted(int(m.group(1)) for m in (re.fullmatch(r"model\.pth\.tar-(\d+)", f) for f in files) if m)


def find_checkpoint(directory, name, epoch):
    """Path of the checkpoint of model `name` in `directory`: of `epoch`, else the best on val, else the newest.

    Raises:
        FileNotFoundError: it is not there; says what is.
    """
    folder = osp.join(directory, name)
    if not osp.isdir(directory):
        raise FileNotFoundError(f'there is no directory "{directory}": check --model-dir')
    if not osp.isdir(folder):
        others = [d for d in sorted(os.listdir(directory)) if epochs(osp.join(directory, d))]
        held = f"it holds checkpoints of {others}, of another trainer" if others else "it holds no checkpoints"
        raise FileNotFoundError(f'no folder "{name}" in "{directory}": {held}')
    there = epochs(folder)
    best = osp.join(folder, BEST)
    if epoch is None and osp.exists(best):
        return best
    if not there or epoch not in (None, *there):
        have = f"there are {there}" if there else "there are none at all"
        raise FileNotFoundError(f'no checkpoint of epoch {epoch} in "{folder}": {have}; choose with --load-epoch')
    return osp.join(folder, f"model.pth.tar-{there[-1] if epoch is None else epoch}")


def load_weights(model, checkpoint, path):
    """`model.load_state_dict` with an error of one line."""
    given = checkpoint.get("state_dict", checkpoint)
    try:
        model.load_state_dict(given)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        for key, wanted in model.state_dict().items():
            if key in given and given[key].shape != wanted.shape:
                told = (
                    f'"{key}" is {list(given[key].shape)} there and {list(wanted.shape)} in this model; use the '
                    f"backbone, trainer settings and classes that it was trained with"
                )
                break
        raise ValueError(f'the checkpoint "{path}" does not fit: {told}') from error


def remove_temporary(folder, but):
    """Remove the checkpoints that a run killed at the wrong moment left for resuming; the one of epoch `but` stays."""
    for epoch in epochs(folder):
        path = osp.join(folder, f"model.pth.tar-{epoch}")
        if epoch != but and load_checkpoint(path).get("temporary"):
            os.remove(path)


def rng_state():
    """State of all random generators as tensors and plain types, which load with weights_only=True."""
    kind, keys, pos, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), pos, has_gauss, gauss),
    }
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
