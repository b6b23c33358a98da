"""Learning-rate schedules, stepped once an epoch, with the same values as Dassl's.

Without warm-up the learning rate of epoch t = 0, 1, ... is (LR, S = STEPSIZE, T = MAX_EPOCH)

    single_step   s(t) = LR * GAMMA ** floor(t / S)
    multi_step    s(t) = LR * GAMMA ** (number of milestones in S that are <= t)
    cosine        s(t) = LR * (1 + cos(pi t / T)) / 2

and with a warm-up of W = WARMUP_EPOCH > 0 epochs

    t < W         constant: WARMUP_CONS_LR        linear: WARMUP_MIN_LR if t = 0, else LR * t / W
    t >= W        s(t - W) if WARMUP_RECOUNT, else LR * s(t) / s(W)

so that epoch W is at LR either way. With several parameter groups LR is the group's own.
"""

from collections import Counter

from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

from dassl.utils import check_availability

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]


class _WarmupScheduler(LRScheduler):
    """A schedule by `warmup_lr` for `warmup_epoch` epochs, then by `successor`, a scheduler of the same optimizer."""

    def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self):
        """Return the learning rates of the warm-up epoch `self.last_epoch`, one per parameter group."""
        raise NotImplementedError

    def get_lr(self):
        return self.warmup_lr() if self.last_epoch < self.warmup_epoch else self.successor.get_last_lr()

    def step(self):
        if self.last_epoch < self.warmup_epoch:
            super().step()
        else:
            self.successor.step()
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self):
        """Return the state of both schedulers, in plain Python types."""
        return super().state_dict() | {"successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict):
        """Load what `state_dict` returned and set the optimizer's learning rates to match."""
        self.successor.load_state_dict(state_dict["successor"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "successor"})
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class ConstantWarmupScheduler(_WarmupScheduler):
    """The learning rate `cons_lr` for `warmup_epoch` epochs, then `successor`."""

    def __init__(self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self):
        return [self.cons_lr] * len(self.base_lrs)


class LinearWarmupScheduler(_WarmupScheduler):
    """`min_lr` in epoch 0, then linearly up to the full rate at `warmup_epoch`, then `successor`."""

    def __init__(self, optimizer, successor, warmup_epoch, min_lr, last_epoch=-1):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self):
        if self.last_epoch == 0:
            return [self.min_lr] * len(self.base_lrs)
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]


class _MultiStepLR(MultiStepLR):
    """A MultiStepLR that saves its milestones as a plain dict, which every PyTorch loads with weights_only=True."""

    def state_dict(self):
        return super().state_dict() | {"milestones": dict(self.milestones)}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict | {"milestones": Counter(state_dict["milestones"])})


def build_lr_scheduler(optimizer, optim_cfg):
    """Build the schedule `optim_cfg.LR_SCHEDULER` with its warm-up; the module docstring gives the formulas.

    Args:
        optimizer (torch.optim.Optimizer): its learning rates are set for epoch 0.
        optim_cfg (CfgNode): cfg.OPTIM.

    Returns:
        torch.optim.lr_scheduler.LRScheduler: call `step()` once an epoch, after the optimizer's steps.

    Raises:
        ValueError: an unknown schedule or kind of warm-up; STEPSIZE is not an integer (single_step) or not a
            list of integers (multi_step).
    """
    check_availability(optim_cfg.LR_SCHEDULER, AVAI_SCHEDS)
    stepsize = optim_cfg.STEPSIZE

    if optim_cfg.LR_SCHEDULER == "single_step":
        stepsize = stepsize[-1] if isinstance(stepsize, (list, tuple)) else stepsize
        if not isinstance(stepsize, int):
            raise ValueError(f"single_step takes one integer as OPTIM.STEPSIZE, got {stepsize!r}")
        scheduler = StepLR(optimizer, stepsize if stepsize > 0 else optim_cfg.MAX_EPOCH, optim_cfg.GAMMA)
    elif optim_cfg.LR_SCHEDULER == "multi_step":
        if not isinstance(stepsize, (list, tuple)):
            raise ValueError(f"multi_step takes a list of integers as OPTIM.STEPSIZE, got {stepsize!r}")
        scheduler = _MultiStepLR(optimizer, stepsize, optim_cfg.GAMMA)
    else:
        scheduler = CosineAnnealingLR(optimizer, float(optim_cfg.MAX_EPOCH))

    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    check_availability(optim_cfg.WARMUP_TYPE, ["constant", "linear"])
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR)
