"""Block-diagonal orthogonal matrices R of trained angles, and linear maps behind them (OrthCR, OrthSR).

    R = blockdiag(R_1 ... R_m),   R_i = (I + Q_i)^-1 (I - Q_i) = 2 (I + Q_i)^-1 - I,   Q_i = -Q_i^T       (1, Cayley)

Read downward: Q to R (`cayley`), R on rows (`rotate`), W R x and its gradients (`rotated_linear`), what is trained.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.autograd.function import once_differentiable

TOLERANCE = 1e-5  # of |R^T R - I|, largest entry: what fp32 rounds W x by, summing a few thousand products, is as much
CACHE = 2**20  # bytes of R that are computed at once on a CPU: 30 % less time than for those of an encoder


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
        a = inverse(torch.addcmul(eye, entries, sign, out=entries))
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


def rotate_t(rows: torch.Tensor, r: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The same transposed, [m b, n], which takes no copy; `out` gives the memory."""
    out = None if out is None else out.unflatten(0, r.shape[:2])
    return torch.bmm(r.mT, blocks_of(rows, r.shape[-1]).mT, out=out).flatten(0, 1)


class Rotation:
    """R [m, b, b] of a place in one step, and W R once that is worth its price: nothing is rotated twice.

    Args:
        spare: memory of earlier W R, which no graph needs any more: on a CPU new memory costs as much as rotating. None
            where graphs would not hold the rotation that they were made with.
    """

    def __init__(self, r: torch.Tensor, spare: list[torch.Tensor] | None = None):
        self.r, self.spare, self._merged = r, spare, None

    @torch.no_grad()
    def merged(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """W R [o, m b]: rotated in the precision of W and R, rounded once."""
        if self._merged is None or self._merged.dtype != dtype:
            with torch.autocast(weight.device.type, enabled=False):
                at = self.spare.pop() if self.spare and dtype == self.r.dtype else None
                self._merged = rotate_t(weight, self.r, at).to(dtype).t()
        return self._merged

    def __del__(self):
        if self.spare is not None and self._merged is not None and self._merged.dtype == self.r.dtype:  # not rounded
            self.spare.append(self._merged.t())


class RotatedLinear(torch.autograd.Function):
    """y = W R x + b of activations x float [..., d], with gradients of x and of the orthogonal R [m, b, b] alone.

    For n vectors x and o rows of W, whichever takes fewer products:

        forward        backward, with dy given
        z = R x        u = W^T dy,   dx = R^T u,   dR = sum u x^T        6 n d b
        W' = W R       dx = W'^T dy,               dR = R sum dx x^T     2 (n + o) d b, as u = R dx

    The gradient of a whole weight is not formed in either.

    Args:
        weight: W, or W' if `merged`; of the dtype of x, as `bias` is.
        merged: the `Rotation` whose memory W' is, which lives as long as the graph; None for W.
    """

    @staticmethod
    def forward(ctx, x, r, weight, bias, merged: "Rotation | None"):
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
    merged = rotation if len(weight) < 2 * x.shape[:-1].numel() else None
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

    def forward(self, names: list[str], s: float = 1.0) -> dict[str, torch.Tensor]:
        """R [m, b, b] of s Q by name, in fp32 or more whatever the autocast."""
        return self.compute(names, s, self.exact or not torch.is_grad_enabled())

    def compute(self, names: list[str], s: float, exact: bool) -> dict[str, torch.Tensor]:
        rotations = {}
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            for some in self.batches(names):
                upper = torch.cat([self.upper[name] for name in some])
                blocks = cayley(upper if s == 1 else s * upper, self.sizes[some[0]][1], exact)
                rotations.update(zip(some, blocks.split([self.sizes[name][0] for name in some]), strict=True))
        return rotations

    def batches(self, names: list[str]) -> list[list[str]]:
        """Names of one block size, to be computed at once: all on a GPU, on a CPU what its cache holds."""
        on_cpu, by_size = next(self.parameters()).device.type == "cpu", defaultdict(lambda: [[]])
        for name in names:
            batches, b = by_size[self.sizes[name][1]], self.sizes[name][1]
            blocks = sum(self.sizes[other][0] for other in [*batches[-1], name])
            if on_cpu and batches[-1] and 4 * blocks * b * b > CACHE:
                batches.append([])
            batches[-1].append(name)
        return [some for batches in by_size.values() for some in batches]

    @torch.no_grad()
    def check(self) -> float:
        """Decides whether R has to be exact in training from here on: by the weights alone, as a resumed run does.

        Returns:
            The largest entry of |R^T R - I| of the fast way.
        """
        error = max_error(self.compute(list(self.sizes), 1.0, exact=False).values())
        self.exact = not error <= TOLERANCE
        return error


def max_error(rotations: Iterable[torch.Tensor]) -> float:
    """The largest entry of |R^T R - I|."""
    errors = [(r.mT @ r - torch.eye(r.shape[-1], device=r.device)).abs().max() for r in rotations]
    return torch.stack(errors).max().item()  # NaN stays NaN
