"""Block-diagonal orthogonal matrices R of trained angles, and linear maps behind them (OrthCR, OrthSR).

    R = blockdiag(R_1 ... R_m),   R_i = (I + Q_i)^-1 (I - Q_i) = 2 (I + Q_i)^-1 - I,   Q_i = -Q_i^T       (1, Cayley)

The file reads downward: R from Q (`cayley`), R applied to rows (`rotate`), W R x with its gradients
(`rotated_linear`), and the trained tensors (`Rotations`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.autograd.function import once_differentiable

# largest entry of |R^T R - I|; fp32 rounds W x, a sum of a few thousand products, by about as much
TOLERANCE = 1e-5
CACHE = 2**20  # bytes of R that are computed at once on a CPU; 30 % faster than a whole encoder at once


class Cayley(torch.autograd.Function):
    """Equation (1) as R = 2 A - I with A = (I + Q)^-1, and its gradient dR = -2 A dQ A."""

    @staticmethod
    def forward(ctx, upper: torch.Tensor, b: int, inverse: Callable) -> torch.Tensor:
        row, col = torch.triu_indices(b, b, offset=1, device=upper.device)
        index = torch.zeros(b, b, dtype=torch.int64, device=upper.device)  # position in `upper` of each entry of Q
        sign, eye = upper.new_zeros(b, b), torch.eye(b, dtype=upper.dtype, device=upper.device)
        index[row, col] = index[col, row] = torch.arange(len(row), device=upper.device)
        sign[row, col], sign[col, row] = 1, -1
        entries = upper.index_select(1, index.flatten()).view(-1, b, b)
        a = inverse(torch.addcmul(eye, entries, sign, out=entries))
        ctx.save_for_backward(a, row * b + col, col * b + row)
        return torch.add(-eye, a, alpha=2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        a, above, below = ctx.saved_tensors
        d = (a.mT @ grad @ a.mT).flatten(1)
        return 2 * (d.index_select(1, below) - d.index_select(1, above)), None, None


def invert_exactly(matrices: torch.Tensor) -> torch.Tensor:
    """Return the inverses of [m, b, b] by LU with pivoting, without an error check that would wait for the GPU."""
    return torch.linalg.inv_ex(matrices)[0]


def invert_by_quarters(matrices: torch.Tensor) -> torch.Tensor:
    """Return the inverses of [m, b, b] by quarters, recursively down to 16 x 16.

    Products run many times as fast as LAPACK's small solves. There is no pivoting. Every block has a symmetric part of
    at least I, because that of I + Q is I, so it is invertible. Precision decreases as |Q| grows.
    """
    h = matrices.shape[-1] // 2
    if h < 16:
        return invert_exactly(matrices)
    (p, q), (r, s) = (rows.tensor_split([h], dim=-1) for rows in matrices.tensor_split([h], dim=-2))
    p = invert_by_quarters(p)
    pq, rp = p @ q, r @ p
    s = invert_by_quarters(torch.baddbmm(s, r, pq, alpha=-1))  # inverse of the Schur complement
    pqs = pq @ s
    upper, lower = [torch.baddbmm(p, pqs, rp), -pqs], [-(s @ rp), s]
    return torch.cat([torch.cat(upper, dim=-1), torch.cat(lower, dim=-1)], dim=-2)


def cayley(upper: torch.Tensor, b: int, exact: bool = True) -> torch.Tensor:
    """Return R of (1), by one batched inverse.

    Args:
        upper: strict upper triangles of the skew-symmetric Q, row by row, float [m, b (b - 1) / 2].
        b: block size.
        exact: whether R is orthogonal to rounding for any Q. False is three times as fast, and R is orthogonal within
            `TOLERANCE` while |Q| is moderate.

    Returns:
        Orthogonal matrices [m, b, b] of the dtype of `upper`; exactly I for Q = 0.
    """
    if exact:
        return polish(Cayley.apply(upper, b, invert_exactly))
    return Cayley.apply(upper, b, invert_by_quarters)


def polish(r: torch.Tensor) -> torch.Tensor:
    """Return R [m, b, b] after two Newton-Schulz steps, which make it orthogonal to rounding."""
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    for _ in range(2):
        r = r @ (1.5 * eye - 0.5 * r.mT @ r)
    return r


def blocks_of(rows: torch.Tensor, b: int) -> torch.Tensor:
    """Return a view [m, n, b] of rows [n, m b]."""
    return rows.unflatten(-1, (-1, b)).transpose(0, 1)


def rotate(rows: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Return rows float [n, m b] times the block-diagonal R [m, b, b], [n, m b]."""
    return torch.bmm(blocks_of(rows, r.shape[-1]), r).transpose(0, 1).reshape(rows.shape)


def rotate_t(rows: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Return the transpose of `rotate`, [m b, n] for rows [n, m b], which needs no copy."""
    return torch.bmm(r.mT, blocks_of(rows, r.shape[-1]).mT).flatten(0, 1)


class Rotation:
    """The rotation R [m, b, b] of one place in one step. Caches W R, so that W is rotated at most once."""

    def __init__(self, r: torch.Tensor):
        self.r, self._merged = r, None

    @torch.no_grad()
    def merge(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return W R [o, m b], computed in the precision of W and R and rounded once to `dtype`."""
        if self._merged is None or self._merged.dtype != dtype:
            with torch.autocast(weight.device.type, enabled=False):
                self._merged = rotate_t(weight, self.r).to(dtype).t()
        return self._merged


class RotatedLinear(torch.autograd.Function):
    """The map y = W R x + b of activations x float [..., d], with gradients of x and the orthogonal R [m, b, b] only.

    There are two ways, for n vectors x and o rows of W. `rotated_linear` takes the one with fewer products:

        forward        backward for dy                                   products
        z = R x        u = W^T dy,   dx = R^T u,   dR = sum u x^T        6 n d b
        W' = W R       dx = W'^T dy,               dR = R sum dx x^T     2 (n + o) d b, because u = R dx

    Neither forms the gradient of a whole weight.

    Args:
        weight: W, or W' if `merged`; it has the dtype of x, as `bias` has.
        merged: which of the two it is.
    """

    @staticmethod
    def forward(ctx, x, r, weight, bias, merged: bool):
        rows, ctx.merged = x.reshape(-1, x.shape[-1]), merged
        rotated_rows = rows if merged else rotate_t(rows, r.mT.to(x.dtype)).t()
        ctx.save_for_backward(rows, r, weight)
        return torch.addmm(bias, rotated_rows, weight.t()).unflatten(0, x.shape[:-1])

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
    """Return W R x + b by `RotatedLinear`. Under autocast it has the autocast dtype, like `F.linear`."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    merged = len(weight) < 2 * x.shape[:-1].numel()
    weight = rotation.merge(weight, dtype) if merged else weight.to(dtype)
    return RotatedLinear.apply(x.to(dtype), rotation.r, weight, bias.to(dtype), merged)


class Rotations(nn.Module):
    """The trained tensors: for each name one of shape [m, b (b - 1) / 2], initially zero.

    Args:
        sizes: (m, b) by name.

    Attributes:
        exact: whether R is exact in training, too; see `decide_exact`. Without gradients it always is.
    """

    def __init__(self, sizes: dict[str, tuple[int, int]]):
        super().__init__()
        self.sizes, self.exact = sizes, False
        self.upper = nn.ParameterDict({name: torch.zeros(m, b * (b - 1) // 2) for name, (m, b) in sizes.items()})

    def forward(self, names: list[str], s: float = 1.0) -> dict[str, torch.Tensor]:
        """Return R [m, b, b] of s Q by name, in fp32 or fp64 even under autocast."""
        return self.compute(names, s, self.exact or not torch.is_grad_enabled())

    def compute(self, names: list[str], s: float, exact: bool) -> dict[str, torch.Tensor]:
        rotations = {}
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            for batch in self.batches(names):
                upper = torch.cat([self.upper[name] for name in batch])
                b = self.sizes[batch[0]][1]
                blocks = cayley(upper if s == 1 else s * upper, b, exact)
                rotations.update(zip(batch, blocks.split([self.sizes[name][0] for name in batch]), strict=True))
        return rotations

    def batches(self, names: list[str]) -> list[list[str]]:
        """Return the names in batches of one block size each.

        The rotations of a batch are computed at once: all on a GPU, and on a CPU as many as `CACHE` allows.
        """
        on_cpu, names_by_size = next(self.parameters()).device.type == "cpu", defaultdict(lambda: [[]])
        for name in names:
            b = self.sizes[name][1]
            batches = names_by_size[b]
            blocks = sum(self.sizes[name_in_batch][0] for name_in_batch in [*batches[-1], name])
            if on_cpu and batches[-1] and 4 * blocks * b * b > CACHE:
                batches.append([])
            batches[-1].append(name)
        return [batch for batches in names_by_size.values() for batch in batches]

    @torch.no_grad()
    def decide_exact(self) -> float:
        """Decide whether R has to be exact in training, and set `exact`.

        The decision depends on the weights alone, so that a resumed run decides in the same way.

        Returns:
            The largest entry of |R^T R - I| of the fast way.
        """
        error = max_error(self.compute(list(self.sizes), 1.0, exact=False).values())
        self.exact = not error <= TOLERANCE
        return error


def max_error(rotations: Iterable[torch.Tensor]) -> float:
    """Return the largest entry of |R^T R - I|."""
    errors = [(r.mT @ r - torch.eye(r.shape[-1], device=r.device)).abs().max() for r in rotations]
    return torch.stack(errors).max().item()  # NaN stays NaN
