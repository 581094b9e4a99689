"""Data for the operations, and what has to be true of their answers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sparring import reference

Bounds = tuple[float, float]

DTYPES = (torch.float32, torch.float64)
SHAPES = ((0, 7), (1, 1), (1, 784), (5, 2), (5, 7), (5, 63), (5, 1, 28, 28), (64, 1), (64, 784), (5, 3072), (2, 150528))
BOXES: tuple[Bounds, ...] = ((0.0, 1.0), (-1.0, 1.0), (-0.42, 2.82), (-math.inf, math.inf), (0.0, math.inf))


def unit(dtype: torch.dtype) -> float:
    """Unit roundoff: 2^-24 or 2^-53."""
    return torch.finfo(dtype).eps / 2


def smallest(dtype: torch.dtype) -> float:
    """The least positive number of the type, a subnormal: what rounding can cost next to zero."""
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(
    shape: tuple[int, ...], dtype: torch.dtype, bounds: Bounds = (0.0, 1.0), *, seed: int = 0, spread: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A perturbation, normal times `spread`, and a point in the box with about a fifth of its entries on a face."""
    rng = generator(seed)
    lo, hi = max(bounds[0], -3.0), min(bounds[1], 3.0)
    x = lo + (hi - lo) * (1.2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 0.1)
    delta = spread * torch.randn(shape, generator=rng, dtype=torch.float64)
    return delta.to(dtype), x.to(dtype).clamp(lo, hi)


def flat(t: Tensor) -> Tensor:
    """(B, ...) to (B, D), float64."""
    return t.reshape(t.shape[0], math.prod(t.shape[1:])).to(torch.float64)


def per_row(value: float | Tensor, rows: int) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1).expand(rows)


def faces(bounds: Bounds, dtype: torch.dtype) -> Bounds:
    """The bounds as the data's type represents them."""
    lo, hi = torch.tensor(bounds, dtype=dtype).tolist()
    return lo, hi


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, the sign of zero included."""
    kind = {torch.float32: torch.int32, torch.float64: torch.int64}[a.dtype]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def assert_feasible(v: Tensor, x: Tensor, eps: float | Tensor, bounds: Bounds) -> None:
    """The promise of the projection, without a tolerance.

    The float64 sum of |v| is at most eps, in whatever order it is summed; and x + v is in the box, both as a sum
    rounded to the data's type and as a real number (for the x that are in the box themselves).
    """
    lo, hi = faces(bounds, v.dtype)
    total = x + v
    inside = (x >= lo) & (x <= hi)
    assert bool(((total >= lo) & (total <= hi) | ~inside).all()), "x + v leaves the box"
    a, b = flat(x).numpy(), flat(v).numpy()
    real = a + b
    back = real - a
    lost = (a - (real - back)) + (b - back)  # two-sum: real + lost is exactly a + b
    outside = (real > hi) | ((real == hi) & (lost > 0)) | (real < lo) | ((real == lo) & (lost < 0))
    assert not (outside & flat(inside).numpy().astype(bool)).any(), "x + v leaves the box by less than a rounding"

    magnitude = flat(v).abs()
    for row, radius in zip(magnitude, per_row(eps, len(v)).tolist(), strict=True):
        assert row.sum().item() <= radius
        assert np.sum(row.numpy()) <= radius
        assert math.fsum(row.tolist()) <= radius


def spared(dtype: torch.dtype, columns: int) -> float:
    """The share of eps that a projection may leave unused, so that its mass exceeds eps in no order of summation.

    In float32 four roundoffs; in float64, whose own sums err, six for every entry and two more.
    """
    return 4 * unit(torch.float32) if dtype == torch.float32 else 6 * (columns + 2) * unit(torch.float64)


def assert_optimal(v: Tensor, delta: Tensor, x: Tensor, eps: float | Tensor, bounds: Bounds) -> None:
    """One threshold t >= 0 explains every entry of a row: v_i = sign(delta_i) clip(|delta_i| - t, 0, cap_i).

    An entry strictly inside (0, cap_i) says that t is |delta_i| - |v_i|, one at 0 that t is at least |delta_i|, one at
    its cap that t is at most |delta_i| - cap_i. Tolerance: v is the rounded difference of |delta_i| and t, hence 4
    roundoffs of the largest |v|; and the differences are formed here in float64.
    """
    lo, hi = faces(bounds, v.dtype)
    d, point, kept = flat(delta), flat(x), flat(v).abs()
    room = torch.where(d > 0, hi - point, point - lo).clamp(min=0)
    assert bool(((kept == 0) | (flat(v).sign() == d.sign())).all()), "an entry changed its sign"
    assert bool((kept <= d.abs()).all()), "an entry grew"
    assert bool((kept <= room).all()), "an entry is beyond its cap"
    for m, c, k, radius in zip(d.abs(), room, kept, per_row(eps, len(v)).tolist(), strict=True):
        rounding = 4 * unit(v.dtype) * k.max().item() + 2 * unit(torch.float64) * m.max().item()
        slack = rounding + smallest(v.dtype)
        at_cap = k >= c * (1 - 2 * unit(v.dtype)) - smallest(v.dtype)
        lower = torch.where(at_cap, 0, m - k).max().item()
        upper = torch.where(k > 0, m - k, math.inf).min().item()
        assert lower <= upper + slack, f"no threshold: at least {lower} and at most {upper}"
        if k.sum().item() < radius * (1 - spared(v.dtype, len(k))) - slack * len(k):
            assert lower <= slack, "the radius is not used up and yet something was cut off"


def assert_near(
    v: Tensor, expected: Tensor, less: Tensor | None = None, *, units: float = 4.0, start: Tensor | None = None
) -> None:
    """Between `expected` and `less` (what is expected of a radius that is smaller by what may be `spared`), give or
    take `units` roundoffs of the row's largest entry, in the answer or where it `start`s from."""
    got, most = flat(v), flat(expected)
    least = most if less is None else flat(less)
    assert got.shape == most.shape
    error = torch.maximum(torch.minimum(most, least) - got, got - torch.maximum(most, least))
    if not got.numel():
        return
    largest = torch.cat([most, most if start is None else flat(start)], 1).abs().amax(1, keepdim=True)
    allowed = units * unit(v.dtype) * largest + smallest(v.dtype)
    assert bool((error <= allowed).all()), f"off by {(error / allowed).max().item():.3g} times the tolerance"


def assert_projection(v: Tensor, delta: Tensor, x: Tensor, eps: float | Tensor, bounds: Bounds = (0.0, 1.0)) -> None:
    """Everything that is true of a projection: feasible, optimal, and next to the reference's."""
    assert_feasible(v, x, eps, bounds)
    assert_optimal(v, delta, x, eps, bounds)
    assert_near(v, *(reference.project_l1_box(delta, x, radius, bounds) for radius in radii(v, eps)))


def assert_sparse_projection(
    v: Tensor, delta: Tensor, x: Tensor, k: int | float | Tensor, bounds: Bounds = (0.0, 1.0), channels: int = 1
) -> None:
    """In the box, and the reference's: the same places, and every entry within a roundoff of the room that it has."""
    assert_feasible(v, x, math.inf, bounds)
    wanted = reference.project_l0_box(delta, x, k, bounds, channels)
    got, expected = flat(v), flat(wanted)
    assert torch.equal(got != 0, expected != 0), "other places are kept"
    assert bool(((got - expected).abs() <= 4 * unit(v.dtype) * expected.abs() + smallest(v.dtype)).all())


def assert_step(
    v: Tensor,
    delta: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    k: int | float | Tensor,
    bounds: Bounds = (0.0, 1.0),
) -> None:
    """Feasible and next to the reference's; 4 roundoffs more than for a projection, and of `delta` too, since the step
    and its sum with `delta` are rounded before it."""
    assert_feasible(v, x, eps, bounds)
    wanted = (reference.l1_step(delta, grad, x, radius, step_size, k, bounds) for radius in radii(v, eps))
    assert_near(v, *wanted, units=8.0, start=delta)


def radii(v: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """eps, one for each row, and what it becomes when the most is spared."""
    radius = per_row(eps, len(v))
    return radius, radius * (1 - spared(v.dtype, flat(v).shape[1]))
