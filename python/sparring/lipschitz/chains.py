"""Dense layers that follow each other, bounded together: tighter than the product of their norms, and proven.

What is between two layers has slopes in [0, h], as ReLU with h = 1: for two inputs, the differences dz before and dv
after such a function satisfy dv (dz - dv / h) >= 0. With a multiplier t > 0 for each unit, LipSDP (Fazlyab et al. 2019,
"Efficient and accurate estimation of Lipschitz constants", with diagonal multipliers T = diag(t)) asks for

    |dx|^2 + sum_k 2 dv_k^T T_k (dv_k / h_k - W_k dv_{k-1}) - |W_l dv_{l-1}|^2 / L^2 >= 0   for all dx, dv (dv_0 = dx).

The sum is at most 0 for differences that the network makes, so L is then a bound. The form is that of a block
tridiagonal matrix, once another block has taken the last term (Schur complement):

    [ I        -W_1^T T_1                           ]
    [ -T_1 W_1  2 T_1 / h_1  -W_2^T T_2             ]
    [           -T_2 W_2      ...                   ]
    [                          2 T_{l-1} / h_{l-1}  W_l^T ]
    [                               W_l             L^2 I ]

Multipliers may come from anywhere: `Blocks.positive` proves the matrix positive definite by one factorisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from sparring._arguments import number
from sparring.lipschitz import cholesky, given, rounding
from sparring.lipschitz.ambient import plain_arithmetic

LARGEST = 6000
"""Units of a chain, beyond which it is not bounded as one."""

_EFFORT = 4e11  # operations to improve multipliers with
_EVALUATIONS = 300  # at most so many evaluations of the bound
_SHARPNESS = (30.0, 100.0, 300.0, 1000.0)  # of the smooth maximum of eigenvalues, in turn
_FAR = 10.0  # of log L^2, above what is known: where the line search is to turn round
_INSIDE = 2.0**-23  # share of each multiplier that is left, so that no block comes to be singular but for rounding
_SLACK = tuple(10.0**exponent for exponent in range(-9, 0))  # of L^2, tried in turn


@plain_arithmetic()
def chain_bound(
    weights: Sequence[Tensor],
    slopes: Sequence[float] | None = None,
    *,
    error: Sequence[float] | None = None,
    improve: bool = True,
) -> float:
    """An upper bound of the Lipschitz constant of dense layers with activations between them, in the Euclidean norm.

    The bound is LipSDP's with one multiplier a unit, proven in floating-point arithmetic. Multipliers start from those
    of ECLipsE-Fast (Xu & Sivaranjani 2024, "ECLipsE: efficient compositional Lipschitz constant estimation for deep
    neural networks"), for which the bound is no larger than the product of the layers' norms, and are improved by
    L-BFGS towards the optimum, a convex problem.

    Parameters
    ----------
    weights : sequence of Tensor
        W_1 (n_1, n_0), ..., W_l (n_l, n_{l-1}), any float type, worked on in float64.
    slopes : sequence of float, optional
        For each of the l - 1 activations h: its slopes lie in [0, h]. None: 1, as for ReLU and tanh.
    error : sequence of float, optional
        How far entries of each weight may be off, as a share of them. None: exact.
    improve : bool
        False stops at the multipliers in closed form.

    Returns
    -------
    float
        inf where nothing could be proven, as for weights that are not finite.

    Raises
    ------
    TypeError, ValueError
        If weights are not dense real matrices, or shapes do not fit.
    """
    matrices = [given.numbers(weight, "weights").detach().to(torch.float64) for weight in weights]
    limits = [1.0] * (len(matrices) - 1) if slopes is None else _floats(slopes, "slopes")
    errors = [0.0] * len(matrices) if error is None else _floats(error, "error")
    _check(matrices, limits, errors)
    if not all(bool(matrix.isfinite().all()) for matrix in matrices):
        return math.inf
    if 0.0 in limits or not all(bool(matrix.any()) for matrix in matrices):
        return 0.0
    # Slopes in [0, 2^e h] are those in [0, h] and then a factor, so they are as exact to scale as weights.
    scaled = [rounding.scaled(matrix) for matrix in matrices]
    exponents = [exponent for _, exponent in scaled] + [math.frexp(h)[1] - 1 for h in limits]
    limits = [2 * math.frexp(h)[0] for h in limits]
    matrices = [matrix for matrix, _ in scaled]
    inner = [m if k == 0 else m * limits[k - 1] for k, m in enumerate(matrices)]  # for slopes in [0, 1]
    upper = math.inf
    try:
        for units, square in candidates(inner, improve):
            multipliers = [1 / (2 * unit * h) for unit, h in zip(units, limits, strict=True)]
            upper = _verified(Blocks(matrices, multipliers, limits, errors), square)
            if upper < math.inf:
                break
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined] # no eigenvalues, so no multipliers
        return math.inf
    return rounding.times_power(upper, sum(exponents), math.inf)


def _floats(values: Sequence[float], name: str) -> list[float]:
    return [number(value, name, "numbers >= 0", lambda value: value >= 0) for value in values]


def _check(matrices: Sequence[Tensor], limits: Sequence[float], errors: Sequence[float]) -> None:
    if len(matrices) < 2 or any(m.ndim != 2 for m in matrices):
        raise ValueError(f"weights must be at least two matrices, got {len(matrices)} tensors")
    for below, above in pairwise(matrices):
        if below.shape[0] != above.shape[1]:
            raise ValueError(f"weights of shape {tuple(below.shape)} and {tuple(above.shape)} do not follow each other")
    if len(limits) != len(matrices) - 1 or not all(0 <= h < math.inf for h in limits):
        raise ValueError(f"slopes must be {len(matrices) - 1} numbers >= 0, one between two weights; got {limits}")
    if len(errors) != len(matrices) or not all(0 <= e < 0.1 for e in errors):
        raise ValueError(f"error must be {len(matrices)} small numbers >= 0, one for each weight; got {errors}")


# --- Multipliers ----------------------------------------------------------------------------------------------------
# With m = 1 / (2 t) for each unit the Schur complements of the blocks, from the first, are M^-1 (M - A_k / 4) M^-1,
# where A_1 = W_1 W_1^T and A_{k+1} = W_{k+1} M_k (M_k - A_k / 4)^-1 M_k W_{k+1}^T; and L^2 = lambda_max(A_l).


def candidates(weights: Sequence[Tensor], improve: bool) -> Iterator[tuple[list[Tensor], float]]:
    """Multipliers and the L^2 they give; others, larger, where no proof is found with the first."""
    closed = _closed_form(weights)
    if improve:
        yield _improved(weights, *closed)
    yield closed


def _next(gram: Tensor, unit: Tensor, weight: Tensor) -> Tensor | None:
    """A_{k+1}, or a little above; None where M_k - A_k / 4 is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(torch.diag(unit * (1 - _INSIDE)) - gram / 4)
    if int(info):
        return None
    root: Tensor = torch.linalg.solve_triangular(factor, (weight * unit).mT, upper=False)
    return root.mT @ root


def _closed_form(weights: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """ECLipsE-Fast: M_k = |A_k| / 2, so that no Schur complement is below 1 / |A_k|; and L^2 of it."""
    gram = weights[0] @ weights[0].mT
    units = []
    for weight in weights[1:]:
        norm = float(torch.linalg.eigvalsh(gram)[-1])
        unit = gram.new_full((len(gram),), norm / 2 * (1 + 2.0**-20))
        following = _next(gram, unit, weight)
        assert following is not None  # M - A / 4 >= |A| / 4
        units.append(unit)
        gram = following
    return units, float(torch.linalg.eigvalsh(gram)[-1])


def _improved(weights: Sequence[Tensor], units: list[Tensor], square: float) -> tuple[list[Tensor], float]:
    """Multipliers of a smaller L^2, and that: L-BFGS on log M for a smooth maximum of eigenvalues, ever sharper."""
    cost = 20 * sum(float(len(unit)) ** 3 for unit in units) + 20 * float(len(weights[-1])) ** 3
    left = int(min(_EVALUATIONS, _EFFORT / cost))
    first = weights[0] @ weights[0].mT
    sizes = [len(unit) for unit in units]
    best, best_square = torch.cat(units).log(), square

    def log_square(sharpness: float, point: Tensor) -> Tensor | None:
        """The smooth log L^2; None where there is no bound. Keeps the best point."""
        nonlocal best, best_square
        gram: Tensor | None = first
        for weight, unit in zip(weights[1:], torch.split(point.exp(), sizes), strict=True):
            gram = _next(gram, unit, weight) if gram is not None else None
        if gram is None:
            return None
        values = torch.linalg.eigvalsh(gram)
        if float(values[-1].detach()) < best_square:
            best, best_square = point.detach().clone(), float(values[-1].detach())
        smooth: Tensor = (sharpness * values.clamp(min=1e-300).log()).logsumexp(0) / sharpness
        return smooth

    for i, sharpness in enumerate(_SHARPNESS):
        left -= _descend(partial(log_square, sharpness), best, left // (len(_SHARPNESS) - i))
    return list(torch.split(best.exp(), sizes)), best_square


def _descend(function: Callable[[Tensor], Tensor | None], point: Tensor, evaluations: int) -> int:
    """L-BFGS from ``point``; how often the function was evaluated. Where it has no value, it counts as too large."""
    if evaluations < 2:
        return 0
    variable, count, last = point.clone().requires_grad_(), 0, 0.0

    def closure() -> Tensor:
        nonlocal count, last
        count += 1
        with torch.enable_grad():
            value = function(variable)
            if value is not None:
                (variable.grad,) = torch.autograd.grad(value, variable)
                if bool(variable.grad.isfinite().all()):
                    last = float(value.detach())
                    return value.detach()
        variable.grad = torch.zeros_like(variable)
        return variable.new_tensor(last + _FAR)

    optimizer = torch.optim.LBFGS(
        [variable], lr=1.0, max_iter=evaluations, max_eval=evaluations, tolerance_grad=0.0, tolerance_change=1e-6,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return count


# --- Proof ----------------------------------------------------------------------------------------------------------


class Blocks:
    """The matrix of the module's text, rows and columns scaled by powers of two so that its diagonal is near 1.

    Attributes
    ----------
    diagonal, below
        Blocks (n_k, n_k) and (n_{k+1}, n_k). The first layer's input is eliminated where it is the longer side: its
        block is I, and leaves -T_1 W_1 W_1^T T_1 to the next.
    error
        Bound of the spectral norm of what is unknown of these blocks.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        multipliers: Sequence[Tensor],
        limits: Sequence[float],
        errors: Sequence[float],
    ) -> None:
        first, last = matrices[0], matrices[-1]
        units, sizes = [first.new_ones(first.shape[1])], [first.new_ones(first.shape[1])]
        for t, h in zip(multipliers, limits, strict=True):
            value = torch.nextafter(2 * t / h, t.new_zeros(()))
            units.append(power_near_root(value))
            sizes.append(value * units[-1] ** 2)  # exact, as is every product with a power of two
        rows = [unit * t for unit, t in zip(units[1:], multipliers, strict=True)]
        self.below = [-row[:, None] * w * unit for row, w, unit in zip(rows, matrices, units, strict=False)]
        self.below.append(last * units[-1])
        lost = [e + 2 * rounding.UNIT for e in errors]
        first_lost, within = lost[0], 0.0
        eliminated = first.shape[1] > first.shape[0]
        self.diagonal = [torch.diag(size) for size in sizes[eliminated:]]
        if eliminated:
            b, self.below, lost = self.below[0], self.below[1:], lost[1:]
            self.diagonal[0] -= b @ b.mT
            # |fl(b b^T) - b b^T| <= gamma |b| |b|^T, whose norm is at most |b|_F^2; and twice what is lost of b.
            mass = rounding.squares(b)
            within = (rounding.gamma(b.shape[1] + 4) + 3 * first_lost) * mass + rounding.UNIT * (mass + 8)
        of_blocks = sum(e**2 * rounding.squares(block) for e, block in zip(lost, self.below, strict=True))
        self.error = (within + math.sqrt(2 * of_blocks)) * (1 + 2.0**-40) + 1e-250

    def positive(self, upper: float) -> bool:
        """Whether the matrix with L = `upper` is proven to have no negative eigenvalue."""
        square = self.below[-1].new_full((len(self.below[-1]),), rounding.down(upper * upper))
        unit = power_near_root(square)
        diagonal = [*self.diagonal, torch.diag(square * unit**2)]
        below = [*self.below[:-1], self.below[-1] * unit[:, None]]
        error = self.error * max(1.0, float(unit[0]))
        edges = [0]
        for block in diagonal:
            edges.append(edges[-1] + len(block))
        margin = error + rounding.gamma(4 * max(map(len, diagonal)) + 64) * 6 * edges[-1]
        for _ in range(2):
            beyond = cholesky.banded_error(_columns(diagonal, below, margin), edges, 1)
            if not math.isfinite(beyond):
                return False
            if beyond + error <= margin:
                return True
            margin = 1.5 * (beyond + error)
        return False


def power_near_root(value: Tensor) -> Tensor:
    """The power of two near the root of the reciprocal."""
    exponent = -(torch.frexp(value).exponent.to(torch.int64) // 2)
    return ((exponent + 1023) << 52).view(torch.float64)  # by its bits, so exactly


def _columns(diagonal: Sequence[Tensor], below: Sequence[Tensor], margin: float) -> Callable[[int], Tensor]:
    """Block columns of the matrix less margin I, the diagonal rounded downwards."""

    def column(j: int) -> Tensor:
        block = diagonal[j].clone()
        entries = block.diagonal()
        entries.copy_(torch.nextafter(entries - margin, entries.new_full((), -math.inf)))
        return torch.cat([block, *below[j : j + 1]])

    return column


def _verified(blocks: Blocks, square: float) -> float:
    """The least L, of those a little above the root of `square`, for which the matrix is proven positive definite."""
    for slack in _SLACK:
        upper = rounding.up(math.sqrt(square * (1 + slack)))
        if blocks.positive(upper):
            return upper
    return math.inf
