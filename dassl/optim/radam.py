"""RAdam by Dassl's import path."""

import torch

from dassl.absent import absent_names


class RAdam(torch.optim.RAdam):
    """Rectified Adam (Liu et al., 2020) with Dassl's arguments: torch's, with decoupled weight decay.

    Raises:
        ValueError: `degenerated_to_sgd` is False, which leaves out the first steps; torch's RAdam cannot do that.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, degenerated_to_sgd=True):
        if not degenerated_to_sgd:
            raise ValueError("RAdam here takes degenerated_to_sgd=True only: leave the argument out")
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)


__getattr__ = absent_names("dassl.optim.radam")
