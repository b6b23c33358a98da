"""OrthCR: orthogonal fine-tuning of CLIP with cross-regularization.

Every chosen weight W (out x in) of the frozen CLIP's transformer blocks is rotated on its input side:

    W' = W R,   R = blockdiag(R_1 ... R_m),   R_i = (I + Q_i)^-1 (I - Q_i),   Q_i = -Q_i^T          (1, Cayley)

Only the strict upper triangles of the Q_i are trained, from zero: training starts at CLIP itself. R is orthogonal
for any Q, so the rows of W keep their norms and pairwise angles, and W keeps its singular values.
shared/rotations.py computes R, and never forms the gradient of a whole weight.

The loss keeps the tuned CLIP near the frozen one, by the equations (2) and (3) of regularized.py.
"""

import torch
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .regularized import RegularizedTrainer
from .shared import blocks
from .shared.beside_dassl import say
from .shared.rotations import Rotation, Rotations, cayley, max_error, rotate, rotated_linear
from .shared.weights import TunedCLIP


class OrthogonalCLIP(TunedCLIP):
    """CLIP with W R in place of every chosen W: y = W R x + b, in rows y = (x R^T) W^T + b."""

    def __init__(self, node, clip_model, classnames: list[str], template: str, node_name: str = "TRAINER.ORTHCR"):
        super().__init__(clip_model, classnames, template, node, node_name)
        widths = {name: self.frozen_weight(name).shape[1] for name in self.places}
        self.rotations = Rotations(blocks.block_sizes(widths, node.BLOCK_SIZE, node.N_BLOCKS, node_name))

    def compute_changes(self, names, s=1.0):
        return {name: Rotation(r) for name, r in self.rotations(names, s).items()}

    def apply_change(self, rotation, x, weight, bias):
        return rotated_linear(rotation, x, weight, bias)

    def merge(self, rotation, weight):
        return rotate(weight, rotation.r)

    @torch.no_grad()
    def degrees(self) -> dict[str, float]:
        """Return the mean and the largest rotation angle of the R_i at s = 1, in degrees.

        R_i rotates b / 2 planes by angles theta. The eigenvalues of its symmetric part are the cos(theta), each twice.
        Equivalently, theta = 2 arctan |lambda| for the eigenvalues lambda of Q.
        """
        cosines = []
        for name, (_, b) in self.rotations.sizes.items():
            r = cayley(self.rotations.upper[name].detach().cpu().double(), b)
            # 2 cos(theta) in ascending order; for an odd b the last one belongs to the axis
            eigenvalues = torch.linalg.eigvalsh(r + r.mT)
            cosines.append(eigenvalues[:, 0 : b // 2 * 2 : 2].flatten() / 2)
        angles = torch.cat(cosines).clamp(-1, 1).acos().rad2deg()
        return {"mean": angles.mean().item(), "max": angles.max().item()}

    @torch.no_grad()
    def drift(self) -> tuple[float, float]:
        """Return the error of the rotations and the drift of the energies.

        Returns:
            The largest entry of |R^T R - I|, and the largest relative change of a weight's hyperspherical energy.
        """
        rotations, energies = self.rotations(list(self.places)), []
        for name, r in rotations.items():
            weight = self.frozen_weight(name)
            energy_0 = self.compute_frozen_once(
                f"energy of {name}", lambda weight=weight: hyperspherical_energy(weight)
            )
            energies.append((hyperspherical_energy(rotate(weight, r)) / energy_0 - 1).abs())
        return max_error(rotations.values()), torch.stack(energies).max().item()


def hyperspherical_energy(weight: torch.Tensor, rows: int = 512) -> torch.Tensor:
    """Return the sum of 1 / |w_i - w_j| over pairs of unit-length rows (Liu et al. 2018), in fp64.

    Args:
        weight: float [out, in].
        rows: number of leading rows to use.
    """
    unit = F.normalize(weight[:rows].double(), dim=-1)
    return (1 / F.pdist(unit).clamp(min=1e-9)).sum()  # the clamp keeps the sum finite if two rows are equal


@TRAINER_REGISTRY.register()
class OrthCR(RegularizedTrainer):
    """Orthogonal fine-tuning with cross-regularization."""

    defaults = RegularizedTrainer.defaults | {
        **blocks.KEYS,  # b and m of (1)
        # whether to write the orthogonality error and the energy drift to TensorBoard each epoch
        "MONITOR": True,
    }
    deciding_keys = RegularizedTrainer.deciding_keys | blocks.DECIDING_KEYS
    learner = "rotations"
    classifier = OrthogonalCLIP
    angle: dict[str, float] | None = None  # `OrthogonalCLIP.degrees` at the end of training

    def before_epoch(self):
        super().before_epoch()
        was_exact = self.model.rotations.exact
        error = self.model.rotations.decide_exact()
        if self.model.rotations.exact != was_exact:
            steps = "no" if was_exact else "two"
            measurement = f"epoch {self.epoch + 1}: |R^T R - I| is {error:.0e}"
            say(f"{measurement}: {steps} Newton-Schulz steps per rotation from this epoch on")

    def after_epoch(self):
        if self.node.MONITOR:
            error, energy = self.model.drift()
            self.write_scalar("orthcr/orthogonality_error", error, self.epoch + 1)
            self.write_scalar("orthcr/energy_drift", energy, self.epoch + 1)
            for statistic, angle in self.model.degrees().items():
                self.write_scalar(f"orthcr/rotation_degrees_{statistic}", angle, self.epoch + 1)
        super().after_epoch()

    def after_train(self):
        super().after_train()
        self.angle = self.model.degrees()
        mean, largest_angle = self.angle["mean"], self.angle["max"]
        say(f"Weights were rotated by {mean:.1f} degrees on average, {largest_angle:.1f} at most")

    def facts(self):
        return super().facts() | {"rotation_degrees": self.angle or self.model.degrees()}
