"""Optimizers by name."""

import warnings

import torch
import torch.nn as nn

from dassl.utils import check_availability


def _adam_args(c):
    return {"lr": c.LR, "weight_decay": c.WEIGHT_DECAY, "betas": (c.ADAM_BETA1, c.ADAM_BETA2)}


def _momentum_args(c):
    return {"lr": c.LR, "weight_decay": c.WEIGHT_DECAY, "momentum": c.MOMENTUM}


def _fused(groups):
    """Return the argument for one kernel a step rather than several for each tensor, if that is worth it.

    On a GPU it is; on a CPU it saved 8 ms of a step of 5 s (OrthCR, ViT-B/16, 144 tensors), and would change old runs'
    last bits.
    """
    return {"fused": True} if all(p.is_cuda for group in groups for p in group["params"]) else {}


OPTIMIZERS = {
    "adam": lambda params, c: torch.optim.Adam(params, **_adam_args(c), **_fused(params)),
    "amsgrad": lambda params, c: torch.optim.Adam(params, **_adam_args(c), amsgrad=True, **_fused(params)),
    "sgd": lambda params, c: torch.optim.SGD(
        params, **_momentum_args(c), dampening=c.SGD_DAMPNING, nesterov=c.SGD_NESTEROV, **_fused(params)
    ),
    "rmsprop": lambda params, c: torch.optim.RMSprop(params, **_momentum_args(c), alpha=c.RMSPROP_ALPHA),
    # Dassl's RAdam decouples the weight decay as AdamW does
    "radam": lambda params, c: torch.optim.RAdam(params, **_adam_args(c), decoupled_weight_decay=True),
    "adamw": lambda params, c: torch.optim.AdamW(params, **_adam_args(c), **_fused(params)),
}
AVAI_OPTIMS = list(OPTIMIZERS)


def build_optimizer(model, optim_cfg, param_groups=None):
    """Build the optimizer `optim_cfg.NAME` for those parameters that require a gradient.

    With STAGED_LR there are two parameter groups: first the layers not in NEW_LAYERS, at LR * BASE_LR_MULT, then
    those in it, at LR.

    Args:
        model (nn.Module or iterable): a model, or parameters, or parameter groups (dicts).
        optim_cfg (CfgNode): cfg.OPTIM.
        param_groups (iterable): parameters or groups to use instead of `model`; STAGED_LR is then ignored.

    Returns:
        torch.optim.Optimizer

    Raises:
        ValueError: an unknown name, or nothing to train.
        TypeError: STAGED_LR without an nn.Module.
    """
    check_availability(optim_cfg.NAME, AVAI_OPTIMS)
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            warnings.warn("STAGED_LR is ignored because param_groups are given", stacklevel=2)
    elif optim_cfg.STAGED_LR:
        param_groups = _staged_groups(model, optim_cfg)
    else:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model

    groups = list(param_groups)
    if not all(isinstance(g, dict) for g in groups):
        groups = [{"params": groups}]
    groups = [{**g, "params": _trainable(g["params"])} for g in groups]
    if not any(g["params"] for g in groups):
        raise ValueError("Nothing to train: no parameter given to the optimizer requires a gradient")
    return OPTIMIZERS[optim_cfg.NAME](groups, optim_cfg)


def _staged_groups(model, optim_cfg):
    if not isinstance(model, nn.Module):
        raise TypeError(f"STAGED_LR needs the model as an nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.DataParallel):
        model = model.module
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else new_layers
    base, new_parameters = [], []
    for name, param in model.named_parameters():
        (new_parameters if name.split(".")[0] in new_layers else base).append(param)
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new_parameters}]


def _trainable(params):
    params = [params] if isinstance(params, torch.Tensor) else params
    return [p for p in params if p.requires_grad]
