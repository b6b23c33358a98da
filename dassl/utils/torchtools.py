"""Saving and loading checkpoints, freezing layers, counting parameters."""

import contextlib
import os.path as osp
import shutil
import warnings
import zipfile

import numpy as np
import torch
import torch.nn as nn

from dassl.infrastructure import archives
from dassl.infrastructure.console import say
from dassl.infrastructure.files import NotAsWritten, atomic_write, check_zip, read_bytes, read_text, seal_zip
from dassl.names import check_availability


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Save a checkpoint atomically: at any time each file is either the old one or the complete new one.

    The file ends with its checksum, in the comment of the zip file that `torch.save` writes. `save_dir` then has the
    files `model.pth.tar-<epoch>` (or `model_name`), `checkpoint` with the name of the latest one, and, if `is_best`,
    a copy `model-best.pth.tar`.

    Args:
        state (dict): "state_dict", "epoch" (int) and anything else to save, e.g. "optimizer". Not changed.
        save_dir (str): directory, made if missing.
        is_best (bool): whether to write the copy.
        remove_module_from_keys (bool): drop the "module." that nn.DataParallel puts before parameter names.
        model_name (str): name of the file; "": the default above.

    Raises:
        OSError: `save_dir` cannot be written to, or the disk is full.
    """
    # NumPy scalars, for example an evaluator's result, cannot be loaded with weights_only=True
    state = {k: v.item() if isinstance(v, np.generic) else v for k, v in state.items()}
    if remove_module_from_keys:
        state["state_dict"] = {k.removeprefix("module."): v for k, v in state["state_dict"].items()}

    fpath = osp.join(save_dir, model_name or f"model.pth.tar-{state['epoch']}")
    save_sealed(state, fpath)
    say(f"Checkpoint saved to {fpath}")

    name_newest(save_dir, osp.basename(fpath))
    if is_best:
        best_fpath = osp.join(save_dir, "model-best.pth.tar")
        with open(fpath, "rb") as source, atomic_write(best_fpath) as f:
            shutil.copyfileobj(source, f)
        say(f'Best checkpoint saved to "{best_fpath}"')


def save_sealed(content, fpath):
    """Save tensors and plain containers atomically, for `load_checkpoint`. The file ends with its checksum.

    Raises:
        OSError: `fpath` cannot be written to, or the disk is full.
    """
    with atomic_write(fpath) as f:
        try:
            torch.save(content, f)
        except RuntimeError as error:  # torch's zip writer ends its file even so, which fails, and hides why
            if isinstance(error.__context__, (KeyboardInterrupt, OSError)):
                raise error.__context__ from None
            raise
        seal_zip(f)


def name_newest(save_dir, name):
    """Write the name of the newest checkpoint in `save_dir` to its file `checkpoint`, unless it is there already."""
    pointer, line = osp.join(save_dir, "checkpoint"), f"{name}\n".encode()
    with contextlib.suppress(OSError, ValueError):
        if read_bytes(pointer) == line:
            return
    with atomic_write(pointer) as f:
        f.write(line)


def load_checkpoint(fpath):
    """Load a checkpoint onto the CPU, without running code from its pickles; see `dassl.infrastructure.archives`.

    Returns:
        dict: its content. Objects that are neither tensors nor plain containers, for example the schedulers of the
            original Dassl, are inert `dassl.infrastructure.archives.Stub`s.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is cut off or damaged.
    """
    if fpath is None:
        raise ValueError("No checkpoint path given")
    if not osp.isfile(fpath):
        raise FileNotFoundError(f'No checkpoint at "{fpath}": check the directory, model name and epoch')
    open(fpath, "rb").close()  # an unreadable file raises here, with its own message
    try:
        if zipfile.is_zipfile(fpath):
            check_zip(fpath)
        checkpoint = archives.load(fpath)
    except NotAsWritten:
        raise
    except Exception as e:  # zipfile also raises several types
        raise ValueError(f'"{fpath}" is not a checkpoint or is cut off: copy or save it again') from e
    if not isinstance(checkpoint, dict):
        raise ValueError(f'"{fpath}" is not a checkpoint: it holds a {type(checkpoint).__name__}, not a dict')
    return checkpoint


def check_resumable(checkpoint, path):
    """Raise ValueError if a checkpoint has pickled objects in place of the state that a resumed training needs.

    Checkpoints of the original Dassl do, because it pickles the scheduler that follows the warm-up.
    """
    names = archives.stubs([value for key, value in checkpoint.items() if key != "val_result"])
    if names:
        advice = "start from its weights with MODEL.INIT_WEIGHTS and another --output-dir"
        raise ValueError(f'training cannot go on from "{path}", which holds pickled objects ({names[0]}): {advice}')


def own_weights(model, checkpoint, path):
    """Return the weights in a checkpoint with the names of the model.

    A model that supports the names of another code base has a method `rename_weights(weights)`. It returns weights with
    its own names unchanged, and raises ValueError for a malformed checkpoint of the other code base.

    Args:
        model: the module.
        checkpoint: {"state_dict": {...}}, or a state dict alone.
        path: its file, for the message.

    Raises:
        ValueError: the weights are not a dict of tensors with their names.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    has_names = isinstance(weights, dict) and all(type(name) is str for name in weights)
    if has_names and hasattr(model, "rename_weights"):
        weights = model.rename_weights(weights)
    if not has_names or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f'the checkpoint "{path}" holds no state_dict of tensors: take one of a training')
    return weights


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load the newest checkpoint of the directory `fdir` into a model and, if given, optimizer and scheduler.

    Returns:
        int: number of finished epochs, which is the epoch to start with.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`.
        RuntimeError: the parameters are not those of the model.
    """
    pointer = osp.join(fdir, "checkpoint")
    if not osp.isfile(pointer):
        raise FileNotFoundError(f'No file "{pointer}" to name the newest checkpoint: check the directory')
    name = read_text(pointer).partition("\n")[0].strip()
    fpath = osp.join(fdir, osp.basename(name))  # nothing outside `fdir`

    say(f'Loading checkpoint from "{fpath}"')
    checkpoint = load_checkpoint(fpath)
    if optimizer is not None or scheduler is not None:
        check_resumable(checkpoint, fpath)
    _unwrap(model).load_state_dict(checkpoint["state_dict"])
    say("Loaded model weights")
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if part is not None and checkpoint.get(name) is not None:
            part.load_state_dict(checkpoint[name])
            say(f"Loaded {name}")
    say(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model, weight_path):
    """Load the weights whose name (without "module.") and shape match the model's; report the others.

    Args:
        model (nn.Module): changed in place.
        weight_path (str): a checkpoint, either {"state_dict": {...}} or a bare state dict.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = own_weights(_unwrap(model), checkpoint, weight_path)
    weights = {k.removeprefix("module."): v for k, v in weights.items()}
    model_dict = _unwrap(model).state_dict()
    matched_weights = {k: v for k, v in weights.items() if k in model_dict and model_dict[k].shape == v.shape}
    if not matched_weights:
        warnings.warn(f'No weight in "{weight_path}" matches the model: nothing is loaded', stacklevel=2)
        return
    _unwrap(model).load_state_dict(model_dict | matched_weights)
    say(f'Successfully loaded pretrained weights from "{weight_path}"')
    discarded_names = [k for k in weights if k not in matched_weights]
    if discarded_names:
        say(f"** The following layers are discarded due to unmatched keys or layer size: {discarded_names}")


def count_num_param(model=None, params=None):
    """Return the number of elements in a model's parameters, or in `params`: parameters or parameter groups.

    Raises:
        ValueError: neither is given.
    """
    if model is None and params is None:
        raise ValueError("count_num_param() needs a model or params")
    total = 0
    for item in model.parameters() if model is not None else params:
        group = item["params"] if isinstance(item, dict) else item
        total += sum(p.numel() for p in ([group] if isinstance(group, torch.Tensor) else group))
    return total


def adjust_learning_rate(
    optimizer, base_lr, epoch, stepsize=20, gamma=0.1, linear_decay=False, final_lr=0, max_epoch=100
):
    """Set the learning rate of all parameter groups for an epoch, without a scheduler.

    The rate is base_lr * gamma ** (epoch // stepsize). With `linear_decay` it falls linearly from `base_lr` to
    `final_lr` at `max_epoch`.
    """
    lr = base_lr * gamma ** (epoch // stepsize)
    if linear_decay:
        progress = epoch / max_epoch
        lr = progress * final_lr + (1 - progress) * base_lr
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_bn_to_eval(module):
    """Put a module into evaluation mode if it is a batch normalisation; for `model.apply(set_bn_to_eval)`."""
    if "BatchNorm" in type(module).__name__:
        module.eval()


def init_network_weights(model, init_type="normal", gain=0.02):
    """Initialise the convolutions and linear maps of a model at random, biases with 0, normalisations with 1 and 0.

    Args:
        model (nn.Module): changed in place.
        init_type (str): normal (with standard deviation `gain`), xavier, kaiming or orthogonal.
        gain (float): gain of xavier and orthogonal, standard deviation of normal.

    Raises:
        ValueError: another `init_type`.
    """
    draws = {
        "normal": lambda weight: nn.init.normal_(weight, 0.0, gain),
        "xavier": lambda weight: nn.init.xavier_normal_(weight, gain=gain),
        "kaiming": lambda weight: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
        "orthogonal": lambda weight: nn.init.orthogonal_(weight, gain=gain),
    }
    check_availability(init_type, list(draws))

    def initialise(module):
        kind = type(module).__name__
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is None:
            return
        if "Conv" in kind or "Linear" in kind:
            draws[init_type](weight)
        elif "BatchNorm" in kind or "InstanceNorm" in kind:
            nn.init.ones_(weight)
        else:
            return
        if bias is not None:
            nn.init.zeros_(bias)

    model.apply(initialise)


def open_all_layers(model):
    """Put the model into training mode and make every parameter trainable."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model, open_layers):
    """Make only the named children of the model trainable; freeze the others, in evaluation mode.

    Args:
        model (nn.Module): changed in place.
        open_layers (str or list of str): names of direct children.

    Raises:
        ValueError: the model has no child of that name.
    """
    model = _unwrap(model)
    open_layers = [open_layers] if isinstance(open_layers, str) else open_layers
    children = dict(model.named_children())
    for name in open_layers:
        if name not in children:
            raise ValueError(f'The model has no layer "{name}"; it has {", ".join(children)}')
    for name, module in children.items():
        module.train(name in open_layers)
        module.requires_grad_(name in open_layers)


def _unwrap(model):
    return model.module if isinstance(model, nn.DataParallel) else model
