"""OrthCR: orthogonal fine-tuning of CLIP with cross-regularization.

Every chosen weight W (out x in) of the frozen CLIP's transformer blocks is rotated on its input side:

    W' = W R,   R = blockdiag(R_1 ... R_m),   R_i = (I + Q_i)^-1 (I - Q_i),   Q_i = -Q_i^T          (1, Cayley)

In training the activations are turned instead, W' x = W (R x): no gradient of a whole weight is ever formed.
Only the strict upper triangles of the Q_i are trained, from zero: training starts at CLIP itself. R is orthogonal
whatever Q is, so the rows of W keep their norms and pairwise angles, and W keeps its singular values.

With tuned features f, g, those of the frozen CLIP f0, g0 (all of unit length), and its logit scale s:

    z   = s f  g^T       tuned image  x tuned text
    z_v = s f  g0^T      tuned image  x frozen text
    z_t = s f0 g^T       frozen image x tuned text
    z_0 = s f0 g0^T      zero-shot CLIP, the anchor ("bypass": no gradient),  p_0 = softmax(z_0 / tau)

    L = CE(z, y) + lambda * mean of the terms of REG                                                (2)

    cross_kl   KL(p_0 || softmax(z_v / tau)),  KL(p_0 || softmax(z_t / tau))
    cross_ce   CE(z_v, y),  CE(z_t, y)
    self_kl    KL(p_0 || softmax(z / tau))     (OrthSR)
    none       no term: plain orthogonal fine-tuning
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import PRECISIONS, ClipTrainer
from .shared.keys import SOME, TEMPLATE, Key
from .shared.prompts import template_for
from .shared.weights import ENCODERS, WEIGHTS, TunedCLIP

REGULARIZERS = ["cross_kl", "cross_ce", "self_kl", "none"]


# -------------------------------------------------------------------- equation (1)


TOLERANCE = 1e-5  # of |R^T R - I|, largest entry: what fp32 rounds W x by, summing a few thousand products, is as much


class Cayley(torch.autograd.Function):
    """R = 2 A - I with A = (I + Q)^-1, which is (1); dR = -2 A dQ A."""

    @staticmethod
    def forward(ctx, upper: torch.Tensor, b: int, inverse: Callable) -> torch.Tensor:
        row, col = torch.triu_indices(b, b, offset=1, device=upper.device)
        at = torch.zeros(b, b, dtype=torch.int64, device=upper.device)  # of each entry of Q in `upper`
        sign, eye = upper.new_zeros(b, b), torch.eye(b, dtype=upper.dtype, device=upper.device)
        at[row, col] = at[col, row] = torch.arange(len(row), device=upper.device)
        sign[row, col], sign[col, row] = 1, -1
        entries = upper.index_select(1, at.flatten()).view(-1, b, b)
        a = inverse(torch.addcmul(eye, entries, sign))
        ctx.save_for_backward(a, row * b + col, col * b + row)
        return torch.add(-eye, a, alpha=2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        a, above, below = ctx.saved_tensors
        d = (a.mT @ grad @ a.mT).flatten(1)
        return 2 * (d.index_select(1, below) - d.index_select(1, above)), None, None


def pivoted(matrices: torch.Tensor) -> torch.Tensor:
    """Inverses of [m, b, b], without a check that would wait for the GPU."""
    return torch.linalg.inv_ex(matrices)[0]


def inverse(matrices: torch.Tensor) -> torch.Tensor:
    """The same by quarters, down to 16 x 16: products run at many times the speed of LAPACK's small solves.

    There is no pivoting. None is needed to go on, as the symmetric part of every block met here is no smaller than I,
    that of I + Q; but digits are lost as |Q| grows.
    """
    h = matrices.shape[-1] // 2
    if h < 16:
        return pivoted(matrices)
    (p, q), (r, s) = (rows.tensor_split([h], dim=-1) for rows in matrices.tensor_split([h], dim=-2))
    p = inverse(p)
    pq, rp = p @ q, r @ p
    s = inverse(torch.baddbmm(s, r, pq, alpha=-1))  # of the Schur complement
    pqs = pq @ s
    upper, lower = [torch.baddbmm(p, pqs, rp), -pqs], [-(s @ rp), s]
    return torch.cat([torch.cat(upper, dim=-1), torch.cat(lower, dim=-1)], dim=-2)


def cayley(upper: torch.Tensor, b: int, exact: bool = True) -> torch.Tensor:
    """R of (1), by one batched inverse.

    Args:
        upper: strict upper triangles of the skew-symmetric Q, row by row, float [m, b (b - 1) / 2].
        b: block size.
        exact: orthogonal to rounding whatever Q; else three times as fast, and to `TOLERANCE` while |Q| is moderate.

    Returns:
        Orthogonal matrices [m, b, b] of the dtype given; exactly I for Q = 0.
    """
    return polish(Cayley.apply(upper, b, pivoted)) if exact else Cayley.apply(upper, b, inverse)


def polish(r: torch.Tensor) -> torch.Tensor:
    """R [m, b, b] after two Newton-Schulz steps towards the nearest orthogonal matrices: exact to rounding."""
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    for _ in range(2):
        r = r @ (1.5 * eye - 0.5 * r.mT @ r)
    return r


def blocks_of(rows: torch.Tensor, b: int) -> torch.Tensor:
    """[n, m b] -> a view [m, n, b]."""
    return rows.unflatten(-1, (-1, b)).transpose(0, 1)


def rotate(rows: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Rows times block-diagonal R: rows float [n, m b], r [m, b, b] -> [n, m b]."""
    return torch.bmm(blocks_of(rows, r.shape[-1]), r).transpose(0, 1).reshape(rows.shape)


def rotate_t(rows: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """The same transposed, [m b, n], which takes no copy."""
    return torch.bmm(r.mT, blocks_of(rows, r.shape[-1]).mT).flatten(0, 1)


class Rotation:
    """R [m, b, b] of a place in one step, and W R once that is worth its price: nothing is rotated twice."""

    def __init__(self, r: torch.Tensor):
        self.r, self._merged = r, None

    @torch.no_grad()
    def merged(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """W R [o, m b]: rotated in the precision of W and R, rounded once."""
        if self._merged is None or self._merged.dtype != dtype:
            with torch.autocast(weight.device.type, enabled=False):
                self._merged = rotate_t(weight, self.r).to(dtype).t()
        return self._merged


class RotatedLinear(torch.autograd.Function):
    """y = W R x + b of activations x float [..., d], with gradients of x and of the orthogonal R [m, b, b] alone.

    For n vectors x and o rows of W, whichever takes fewer products:

        forward        backward, with dy given
        z = R x        u = W^T dy,   dx = R^T u,   dR = sum u x^T        6 n d b
        W' = W R       dx = W'^T dy,               dR = R sum dx x^T     2 (n + o) d b, as u = R dx

    The gradient of a whole weight is not formed in either.

    Args:
        weight: W, or W' if `merged`; of the dtype of x, as `bias` is.
    """

    @staticmethod
    def forward(ctx, x, r, weight, bias, merged: bool):
        rows, ctx.merged = x.reshape(-1, x.shape[-1]), merged
        turned = rows if merged else rotate_t(rows, r.mT.to(x.dtype)).t()
        ctx.save_for_backward(rows, r, weight)
        return torch.addmm(bias, turned, weight.t()).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, r, weight = ctx.saved_tensors
        dx = grad.reshape(-1, grad.shape[-1]) @ weight
        b, dtype = r.shape[-1], rows.dtype
        outer = torch.bmm(blocks_of(dx, b).mT, blocks_of(rows, b)).to(r.dtype)
        if ctx.merged:
            dr = r @ outer
        else:
            dr = outer
            dx = rotate(dx, r.to(dtype)) if ctx.needs_input_grad[0] else None
        return None if dx is None else dx.unflatten(0, grad.shape[:-1]), dr, None, None, None


def rotated_linear(rotation: Rotation, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """W R x + b, by `RotatedLinear`; in the dtype of the autocast, if there is one, as `F.linear`."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    merged = len(weight) < 2 * x.shape[:-1].numel()
    weight = rotation.merged(weight, dtype) if merged else weight.to(dtype)
    return RotatedLinear.apply(x.to(dtype), rotation.r, weight, bias.to(dtype), merged)


class Rotations(nn.Module):
    """The trained tensors: one [m, b (b - 1) / 2] of zeros for each name; `sizes` gives (m, b) of each.

    Attributes:
        exact: whether R is exact in training, too, not only without gradients, as in evaluation; see `check`.
    """

    def __init__(self, sizes: dict[str, tuple[int, int]]):
        super().__init__()
        self.sizes, self.exact = sizes, False
        self.upper = nn.ParameterDict({name: torch.zeros(m, b * (b - 1) // 2) for name, (m, b) in sizes.items()})

    def forward(self, names: list[str]) -> dict[str, torch.Tensor]:
        """R [m, b, b] by name, in fp32 or more whatever the autocast."""
        return self.compute(names, self.exact or not torch.is_grad_enabled())

    def compute(self, names: list[str], exact: bool) -> dict[str, torch.Tensor]:
        """All blocks of one encoder and size at once; both encoders would be slower: malloc maps 32 MB afresh."""
        groups, rotations = defaultdict(list), {}
        for name in names:
            groups[name.split("_")[0], self.sizes[name][1]].append(name)
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            for (_, b), group in groups.items():
                blocks = cayley(torch.cat([self.upper[name] for name in group]), b, exact)
                rotations.update(zip(group, blocks.split([self.sizes[name][0] for name in group]), strict=True))
        return rotations

    @torch.no_grad()
    def check(self) -> float:
        """Decides whether R has to be exact in training from here on: by the weights alone, as a resumed run does.

        Returns:
            The largest entry of |R^T R - I| of the fast way.
        """
        error = max_error(self.compute(list(self.sizes), exact=False).values())
        self.exact = not error <= TOLERANCE
        return error


def max_error(rotations: Iterable[torch.Tensor]) -> float:
    """The largest entry of |R^T R - I|."""
    errors = [(r.mT @ r - torch.eye(r.shape[-1], device=r.device)).abs().max() for r in rotations]
    return torch.stack(errors).max().item()  # NaN stays NaN


# -------------------------------------------------------------------- equation (2)


def regularizer(kind: str, z, z_v, z_t, z_0, label: torch.Tensor, tau: float) -> torch.Tensor:
    """The mean of the terms of `kind` in (2); logits float [B, n_cls], label int64 [B] -> scalar."""

    def kl(student):
        p_0 = F.softmax(z_0 / tau, dim=-1)
        return F.kl_div(F.log_softmax(student / tau, dim=-1), p_0, reduction="batchmean")

    if kind == "cross_kl":
        return (kl(z_v) + kl(z_t)) / 2
    if kind == "cross_ce":
        return (F.cross_entropy(z_v, label) + F.cross_entropy(z_t, label)) / 2
    return kl(z)  # self_kl


# -------------------------------------------------------------------- the tuned CLIP


class OrthogonalCLIP(TunedCLIP):
    """CLIP with W R in place of every chosen W: y = W R x + b, in rows y = (x R^T) W^T + b."""

    def __init__(self, node, clip_model, classnames: list[str], template: str, where: str = "TRAINER.ORTHCR"):
        super().__init__(clip_model, classnames, template, node, where)
        sizes = {n: block_sizes(n, self.weight(n).shape[1], node.BLOCK_SIZE, where) for n in self.places}
        self.rotations = Rotations(sizes)
        self.energies: dict[str, torch.Tensor] = {}  # of the frozen weights, see `drift`

    def changes(self, names):
        return {name: Rotation(r) for name, r in self.rotations(names).items()} if names else {}

    def tuned(self, rotation, x, weight, bias):
        return rotated_linear(rotation, x, weight, bias)

    def merge(self, rotation, weight):
        return rotate(weight, rotation.r)

    @torch.no_grad()
    def drift(self) -> tuple[float, float]:
        """(largest |R^T R - I|, largest relative change of the hyperspherical energy of a rotated weight's rows)."""
        rotations, energies = self.rotations(list(self.places)), []
        for name, r in rotations.items():
            if name not in self.energies:
                self.energies[name] = hyperspherical_energy(self.weight(name))
            energies.append((hyperspherical_energy(rotate(self.weight(name), r)) / self.energies[name] - 1).abs())
        return max_error(rotations.values()), torch.stack(energies).max().item()


def block_sizes(name: str, width: int, b: int, where: str) -> tuple[int, int]:
    """(number of blocks, block size) for `width` inputs; b = 0 means one block."""
    b = b or width
    if width % b:
        fit = [n for n in (16, 32, 64, 128, 256) if width % n == 0]
        raise ValueError(f"{where}.BLOCK_SIZE {b} does not divide the {width} inputs of {name}: take one of {fit} or 0")
    return width // b, b


def hyperspherical_energy(weight: torch.Tensor, rows: int = 512) -> torch.Tensor:
    """Sum of 1 / |w_i - w_j| over pairs of unit-length rows (Liu et al. 2018), of the first `rows` ones, in fp64."""
    unit = F.normalize(weight[:rows].double(), dim=-1)
    return (1 / F.pdist(unit).clamp(min=1e-9)).sum()  # two equal rows must not make it infinite


@TRAINER_REGISTRY.register()
class OrthCR(ClipTrainer):
    """Orthogonal fine-tuning with cross-regularization."""

    defaults = {
        # both: the cross terms of (2) tie each to the other one's frozen side
        "ENCODERS": Key(ENCODERS, choices=ENCODERS, rule=SOME),
        # blocks to rotate, e.g. [-2, -1]; [] = all: every block starts at the identity, none is risky
        "LAYERS": Key([], of=int),
        # of each block; all: rotations are cheap next to the forward pass
        "WEIGHTS": Key(WEIGHTS, choices=WEIGHTS, rule=SOME),
        # b of (1); 64: a head's width, and a cheap solve. 0 = one full block, slow on a ViT-B
        "BLOCK_SIZE": Key(64, low=0, rule=("not 1: a 1 x 1 rotation is the number 1", lambda b: b != 1)),
        # of (2); the abstract's words, with zero-shot CLIP as teacher, not the labels again
        "REG": Key("cross_kl", choices=REGULARIZERS),
        # weight of the regularizer in (2); 1: as much as the cross-entropy. Tuned values: the YAMLs
        "LAMBDA": Key(1.0, low=0, high=10**6),
        # temperature of the KL terms; 1: CLIP's own confidence, more: its ranking rather than its choice
        "TAU": Key(1.0, above=0, high=10**6),
        # prompt; "" = the data set's own, so that the anchor is the zero-shot CLIP people report
        "TEMPLATE": TEMPLATE,
        # write the orthogonality error and the energy drift to TensorBoard each epoch
        "MONITOR": True,
        # for the encoders; R of (1) and all of (2) are fp32
        "PREC": Key("amp", choices=PRECISIONS),
    }
    learner = "rotations"
    classifier = OrthogonalCLIP

    def build_classifier(self, clip_model, classnames):
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return self.classifier(self.node, clip_model, classnames, template, self.key())

    def losses(self, image, label):
        node = self.node
        if node.REG == "none":  # no bypass to run
            return super().losses(image, label)
        z, z_v, z_t, z_0 = self.model.all_logits(image)
        reg = node.LAMBDA * regularizer(node.REG, z, z_v, z_t, z_0, label, node.TAU)
        return {"ce": F.cross_entropy(z, label), node.REG: reg}, z

    def before_epoch(self):
        super().before_epoch()
        if isinstance(self.model, OrthogonalCLIP):
            was, error = self.model.rotations.exact, self.model.rotations.check()
            if self.model.rotations.exact != was:
                steps = "no" if was else "two"
                figure = f"epoch {self.epoch + 1}: |R^T R - I| is {error:.0e}"
                print(f"{figure}: {steps} Newton-Schulz steps a rotation from here on")

    def after_epoch(self):
        if self.node.get("MONITOR"):
            error, energy = self.model.drift()
            self.write_scalar("orthcr/orthogonality_error", error, self.epoch + 1)
            self.write_scalar("orthcr/energy_drift", energy, self.epoch + 1)
        super().after_epoch()
