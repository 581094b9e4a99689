"""The spectral norm of a convolution, enclosed: at its stride, padding, dilation, groups and input size."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from sparring.lipschitz import banded, dense, lanczos, rounding
from sparring.lipschitz.enclosure import Enclosure, larger, unscaled
from sparring.lipschitz.frequencies import Symbol, Taps, polyphase, shifts
from sparring.lipschitz.geometry import Geometry, magnitude_norm, sums_norm

_SMALL = 768, 2**22
"""Up to this short side and number of entries the operator is made into a matrix: exact, and as fast as anything."""

_AFFORDABLE = 2.5e11
"""Multiplications that tightening one group may take; about ten seconds of one core."""

_NEAR = 5e-4
"""How near the lower end is brought to the norm where the upper one is not near either."""

_SHIFTED = 300
"""Up to so many points, a grid is also tried shifted."""


def enclose(weight: Tensor, shape: Geometry, groups: int, *, method: str, tol: float, certified: bool) -> Enclosure:
    """Enclosure of the norm of a convolution, ``weight`` (O, I / groups, *kernel): the largest of its groups' norms."""
    return _largest(
        shape.used(weight),
        groups,
        lambda part: _enclose_group(part, shape, method, tol, certified),
        lambda part: magnitude_norm(shape, part),
    )


def enclose_any_size(weight: Tensor, groups: int, *, tol: float) -> Enclosure:
    """Enclosure of the supremum over all sizes of the norm at stride 1, which no stride and no zero padding exceeds.

    For every vector the Gram matrix's quadratic form is a trigonometric polynomial, so its maximum is at most
    1 / cos(pi degree / points) times that over a grid, in each dimension (Ehlich & Zeller 1964). Dilation changes
    nothing.
    """
    dims = weight.ndim - 2
    grid = tuple(max(1, 32 * (k - 1)) for k in weight.shape[2:])
    between = prod(math.cos(math.pi / 32) if q > 1 else 1.0 for q in grid)

    def of_group(part: Tensor) -> Enclosure:
        taps = polyphase(part, (1,) * dims, (0,) * dims, (1,) * dims)
        found = Symbol(taps).largest(grid, (0.0,) * dims, tol=0.1 * tol)
        upper = rounding.up(math.sqrt(found.upper / between * (1 + 2.0**-50)))
        return Enclosure(rounding.down(math.sqrt(found.lower)), upper, "frequencies, any size", True)

    return _largest(weight, groups, of_group, sums_norm)


def _largest(
    weight: Tensor, groups: int, enclose_one: Callable[[Tensor], Enclosure], bound: Callable[[Tensor], float]
) -> Enclosure:
    """Of the groups' norms, each enclosed unless a cheap ``bound`` shows that it cannot be the largest."""
    wide, exponent = rounding.scaled(weight)
    best = Enclosure(0.0, 0.0, "zero", True)
    for part in wide.chunk(groups):
        if bound(part) > best.lower:
            best = larger(enclose_one(part), best)
    return unscaled(best, exponent)


def _enclose_group(weight: Tensor, shape: Geometry, method: str, tol: float, certified: bool) -> Enclosure:
    outputs, inputs = weight.shape[:2]
    sides = outputs * prod(shape.out), inputs * prod(shape.size)
    small = min(sides) <= _SMALL[0] and prod(sides) <= _SMALL[1]
    if method == "dense" or (method == "auto" and small):
        matrix, error = shape.matrix(weight)
        return dense.enclose(matrix, tol=tol, certified=certified, entry_error=error)
    zeros = shape.padding_mode == "zeros"
    if method == "banded" and not zeros:
        raise ValueError(f"method 'banded' is for padding with zeros; padding_mode is {shape.padding_mode!r}")
    pointwise = max(weight.shape[2:]) == 1
    affordable = zeros and not pointwise and banded.cost(weight, shape) <= _AFFORDABLE
    if method == "banded" or (method == "auto" and affordable):
        lower = _lower(weight, shape, 0.1 * tol)
        return Enclosure(lower, banded.proven_upper(weight, shape, lower, tol), "banded Cholesky", True)
    return _by_frequencies(weight, shape, tol)


def _by_frequencies(weight: Tensor, shape: Geometry, tol: float) -> Enclosure:
    if shape.padding_mode == "circular" and all(n % s == 0 for n, s in zip(shape.size, shape.stride, strict=True)):
        taps = polyphase(weight, shape.stride, shape.before, shape.dilation)
        period = tuple(n // s for n, s in zip(shape.size, shape.stride, strict=True))
        found = Symbol(taps).largest(_thinned(period, taps), (0.0,) * shape.dims, tol=0.1 * tol)
        if shape.out == period:
            upper = rounding.up(math.sqrt(rounding.up(found.upper)))
            return Enclosure(rounding.down(math.sqrt(found.lower)), upper, "frequencies", True)
        # Outputs beyond a period repeat; if there are fewer, they are some of them.
        square = found.upper * prod(-(-o // q) for o, q in zip(shape.out, period, strict=True))
    else:
        taps = polyphase(weight, shape.stride, _embedded(shape), shape.dilation)
        symbol, grid = Symbol(taps), _thinned(_grid(shape, taps), taps)
        offsets = shifts(grid) if prod(grid) <= _SHIFTED else [(0.0,) * shape.dims]
        square = math.inf
        for offset in offsets:
            square = min(square, symbol.largest(grid, offset, tol=0.1 * tol, unless=square).upper)
        square *= shape.copies()
    upper = min(rounding.up(math.sqrt(square * (1 + 2.0**-50))), magnitude_norm(shape, weight))
    lower = _lower(weight, shape, max(tol, _NEAR))
    return Enclosure(lower, max(lower, upper), "frequencies of a larger grid", True)


def _thinned(grid: tuple[int, ...], taps: Taps) -> tuple[int, ...]:
    """One point in dimensions in which there is a single tap, since all frequencies have the same Gram matrix there."""
    return tuple(q if low < high else 1 for q, low, high in zip(grid, *taps.extent, strict=True))


def _embedded(shape: Geometry) -> tuple[int, ...]:
    """The padding of the operator that is embedded: zeros are part of it, anything else is part of its input."""
    return shape.before if shape.padding_mode == "zeros" else (0,) * shape.dims


def _grid(shape: Geometry, taps: Taps) -> tuple[int, ...]:
    """The least grid on which no tap, wrapped around, reaches an input that an output does not read already."""
    low, high = taps.extent
    padded = list(shape.size)
    if shape.padding_mode != "zeros":
        padded = [n + b + a for n, b, a in zip(shape.size, shape.before, shape.after, strict=True)]
    lengths = [-(-n // s) for n, s in zip(padded, shape.stride, strict=True)]
    return tuple(max(1, o + h, n - b) for o, h, n, b in zip(shape.out, high, lengths, low, strict=True))


def _lower(weight: Tensor, shape: Geometry, tol: float) -> float:
    """A number that the norm is not below: how much longer one vector gets, found by the Lanczos method in float32."""
    narrow = weight.to(torch.float32)
    size = (1, weight.shape[1], *shape.size)

    def squared(v: Tensor) -> Tensor:
        with torch.enable_grad():
            x = v.view(size).requires_grad_()
            y = shape.apply(narrow, x)
            return torch.autograd.grad(y.square().sum() / 2, x)[0].view(-1)

    start = lanczos.start_vector(prod(size), narrow)
    found = lanczos.largest(squared, start, tol=max(tol, 1e-7))
    vector = found.vector.to(torch.float64).view(size)
    magnitudes = math.sqrt(rounding.squares(shape.apply(weight.abs(), vector.abs())))
    lost = rounding.gamma(weight[0].numel() + 2) * magnitudes * (1 + 2.0**-20)
    return rounding.stretch(shape.apply(weight, vector), vector, lost)
