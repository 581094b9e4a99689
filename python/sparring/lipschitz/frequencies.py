"""The norm of a convolution from its frequencies: one small Hermitian matrix for each, and one certificate for each.

On a grid of Q points a convolution of stride 1 is block-diagonal in the Fourier basis; a stride s is one of stride 1 on
the s phases of the input, s times as many channels (polyphase). The Gram matrix at a frequency is a sum over lags of
the kernel's autocorrelation, so it is made without the matrix itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparring.lipschitz import kernels, rounding

_CHUNK = 2**28  # bytes of matrices at a time
_TWIDDLE_ERROR = 64  # units: an angle is a sum of up to three shares of 2 pi, each rounded thrice


@dataclass(frozen=True)
class Taps:
    """A kernel of stride 1: at ``position[t]`` the matrix ``weight[t]``; (T, dims) integers and float64 (T, O, C)."""

    position: Tensor
    weight: Tensor

    @property
    def extent(self) -> tuple[list[int], list[int]]:
        """The least and the largest position in every dimension."""
        return self.position.amin(0).tolist(), self.position.amax(0).tolist()


def polyphase(weight: Tensor, stride: tuple[int, ...], before: tuple[int, ...], dilation: tuple[int, ...]) -> Taps:
    """The kernel of (O, I, *kernel) on the phases of its input, of which those that no tap reads are left out."""
    outputs, inputs, *kernel = weight.shape
    phases: dict[tuple[int, ...], int] = {}
    positions: dict[tuple[int, ...], int] = {}
    places = []
    for tap in product(*(range(k) for k in kernel)):
        reads = [d * k - b for d, k, b in zip(dilation, tap, before, strict=True)]
        place = tuple(r // s for r, s in zip(reads, stride, strict=True))
        phase = tuple(r % s for r, s in zip(reads, stride, strict=True))
        places.append((tap, positions.setdefault(place, len(positions)), phases.setdefault(phase, len(phases))))
    taps = weight.new_zeros(len(positions), outputs, len(phases), inputs)
    for tap, at, phase_at in places:
        of_tap: tuple[Any, ...] = (slice(None), slice(None), *tap)
        taps[at, :, phase_at] = weight[of_tap]
    return Taps(torch.tensor(list(positions)), taps.flatten(2))


class Spectrum(NamedTuple):
    """The largest eigenvalue over all frequencies: ``lower <= it <= upper``; both are squares of norms."""

    lower: float
    upper: float


class Symbol:
    """The Gram matrices of ``taps`` as a function of the frequency, on the side with fewer channels.

    ``error`` bounds what rounding does to any of them, in norm.
    """

    def __init__(self, taps: Taps) -> None:
        weight = taps.weight if taps.weight.shape[1] <= taps.weight.shape[2] else taps.weight.transpose(1, 2)
        self.n = weight.shape[1]
        count, _, channels = weight.shape
        positions = [tuple(p) for p in taps.position.tolist()]
        pairs: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for a, b in product(range(count), repeat=2):
            lag = tuple(x - y for x, y in zip(positions[a], positions[b], strict=True))
            if lag >= (0,) * len(lag):
                pairs.setdefault(lag, []).append((a, b))
        self.lags = torch.tensor(list(pairs), dtype=torch.int64)
        terms = []
        for lag, of_lag in pairs.items():
            first, second = (torch.tensor(side) for side in zip(*of_lag, strict=True))
            # (n, channels) of every pair side by side: one product.
            correlation = weight[first].transpose(0, 1).flatten(1) @ weight[second].transpose(0, 1).flatten(1).t()
            if any(lag):
                terms.append(torch.stack([correlation + correlation.t(), correlation - correlation.t()]))
            else:
                terms.append(torch.stack([(correlation + correlation.t()) / 2, torch.zeros_like(correlation)]))
        self.terms = torch.stack(terms)
        magnitude = weight.abs().sum(0)
        squares = min(rounding.squares(magnitude), float(magnitude.sum(0).max()) * float(magnitude.sum(1).max()))
        operations = count * channels + count + len(terms) + _TWIDDLE_ERROR + 8
        self.error = 2 * rounding.gamma(operations) * squares * (1 + 2 * rounding.gamma(magnitude.numel() + count + 4))

    def at(self, frequency: Tensor, grid: tuple[int, ...], shift: tuple[float, ...]) -> Tensor:
        """Real symmetric (F, 2 n, 2 n) of the Hermitian matrices at ``frequency + shift``, whole numbers (F, dims)."""
        share = torch.zeros(len(frequency), len(self.lags), dtype=torch.float64)
        for dim, (points, offset) in enumerate(zip(grid, shift, strict=True)):
            # Twice the frequency is whole, so that the remainder is exact.
            turns = (2 * frequency[:, dim, None] + round(2 * offset)) * self.lags[:, dim]
            share += (turns % (2 * points)).to(torch.float64) / (2 * points)
        angle = 2 * math.pi * share
        twiddles = torch.stack([angle.cos(), angle.sin()], dim=2).to(self.terms)
        if self.n == 1:  # nothing is antisymmetric
            return (twiddles[:, :, 0] @ self.terms[:, 0].flatten(1))[:, :, None]
        return kernels.symmetric_symbol(self.terms, twiddles)

    def largest(
        self, grid: tuple[int, ...], shift: tuple[float, ...], *, tol: float, unless: float = math.inf
    ) -> Spectrum:
        """Of the exact Gram matrices at every point of the grid, the largest eigenvalue.

        Once that is known to exceed ``unless`` the rest is not looked at, and the upper end is inf.
        """
        size = self.n if self.n == 1 else 2 * self.n
        frequencies = _halved(grid, shift)
        lower, value = self._raised(self.at(_sample(frequencies), grid, shift), 0.0)
        bound = max(value * (1 + tol), 2.0**-1000)
        for some in torch.split(frequencies, max(1, _CHUNK // (8 * size * size))):
            pending, step = self.at(some, grid, shift), tol
            while True:
                proven = kernels.positive_definite(pending, pending.new_full((len(pending),), bound))
                pending = pending[~proven]
                if not len(pending):
                    break
                # Of those that may exceed the bound a few are looked at; most will not exceed what these raise it to.
                lower, value = self._raised(_sample(pending), lower)
                if lower > unless:
                    return Spectrum(lower, math.inf)
                bound = max(bound, value) * (1 + step)
                step *= 2
        # Cholesky to its end proves no eigenvalue of c I - G below -gamma trace, and the trace is at most size c.
        beyond = 2 * rounding.gamma(size + 8) * size * bound + rounding.UNIT * bound
        return Spectrum(lower, (bound + beyond + self.error) * (1 + 8 * rounding.UNIT))

    def _raised(self, matrices: Tensor, lower: float) -> tuple[float, float]:
        """A proven lower bound of the largest eigenvalue, ``lower`` or more; and about the largest of ``matrices``."""
        found = kernels.top_eigenpair(matrices, tol=1e-8)
        best = int(found.value.argmax())
        matrix, vector = matrices[best], found.vector[best]
        size = len(vector)
        quotient = float(vector @ (matrix @ vector)) / float(vector @ vector)
        lost = 2 * rounding.gamma(2 * size + 8) * math.sqrt(rounding.squares(matrix)) + self.error
        return max(lower, rounding.down(quotient - lost * (1 + 2.0**-40))), float(found.value[best])


def _sample(matrices: Tensor, count: int = 8) -> Tensor:
    return matrices[:: max(1, len(matrices) // count)]


def _halved(grid: tuple[int, ...], shift: tuple[float, ...]) -> Tensor:
    """The points of a grid, one of every two that are each other's negative, (F, dims).

    The matrices at a frequency and at its negative are conjugate.
    """
    points = torch.cartesian_prod(*(torch.arange(q) for q in grid)).reshape(-1, len(grid))
    sizes, twice = torch.tensor(grid), torch.tensor([round(2 * s) for s in shift])
    weights = torch.tensor([prod(grid[d + 1 :]) for d in range(len(grid))])
    mirrored = (-points - twice) % sizes
    return points[(points * weights).sum(1) <= (mirrored * weights).sum(1)]


def shifts(grid: tuple[int, ...]) -> Iterator[tuple[float, ...]]:
    """Offsets of a grid in which a compression may be embedded too, with a sign at the seam: 0 and 1/2 a dimension."""
    yield from product(*((0.0, 0.5) if q > 1 else (0.0,) for q in grid))
