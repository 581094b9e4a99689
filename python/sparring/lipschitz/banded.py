"""A convolution padded with zeros as it is, certified: its Gram matrix is banded, and so is the factor of that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from sparring.lipschitz import cholesky, rounding
from sparring.lipschitz.geometry import Geometry, magnitude_norm

_WIDTH = 128
"""Channels of several positions are taken together until there are so many, for products of matrices to be worth it."""


@dataclass(frozen=True)
class _Side:
    """Gram matrix over the positions of one side of the operator, in order, each with ``channels`` rows."""

    positions: tuple[int, ...]
    channels: int
    reach: tuple[int, ...]  # how far apart two positions are at most that share an entry of the other side

    @property
    def band(self) -> int:
        """Blocks below the diagonal."""
        strides = [prod(self.positions[d + 1 :]) for d in range(len(self.positions))]
        return min(prod(self.positions) - 1, sum(r * s for r, s in zip(self.reach, strides, strict=True)))

    @property
    def cost(self) -> float:
        """Multiplications of the factorisation."""
        return 0.5 * prod(self.positions) * self.channels * (self.channels * (self.band + 1.0)) ** 2


def _sides(weight: Tensor, shape: Geometry) -> tuple[_Side, _Side]:
    """Of outputs that read a common input, and of inputs that are read by a common output."""
    reads = [d * (k - 1) for d, k in zip(shape.dilation, shape.kernel, strict=True)]
    outputs = tuple(min(o - 1, r // s) for o, r, s in zip(shape.out, reads, shape.stride, strict=True))
    inputs = tuple(min(n - 1, r) for n, r in zip(shape.size, reads, strict=True))
    return _Side(shape.out, weight.shape[0], outputs), _Side(shape.size, weight.shape[1], inputs)


def cost(weight: Tensor, shape: Geometry) -> float:
    """Multiplications that `proven_upper` takes at its first try."""
    return min(side.cost for side in _sides(weight, shape))


def proven_upper(weight: Tensor, shape: Geometry, value: float, tol: float) -> float:
    """A number that the norm does not exceed: tried ``tol`` above ``value``, then ten times as far and so on."""
    sides = _sides(weight, shape)
    by_outputs = sides[0].cost <= sides[1].cost
    side = sides[0] if by_outputs else sides[1]
    stacked = (weight if by_outputs else weight.transpose(0, 1)).flatten(2).permute(2, 0, 1)  # (taps, channels, others)
    taps, channels, others = stacked.shape
    flat = stacked.reshape(taps * channels, others)
    products = (flat @ flat.t()).view(taps, channels, taps, channels).transpose(1, 2).reshape(taps * taps, -1)
    reads = _reads(shape) if by_outputs else _reads(shape).t()
    # reads[p, q]: by which tap the position p of this side shares the other side's q, -1 if by none.
    count, together = len(reads), max(1, _WIDTH // channels)
    edges = [channels * p for p in [*range(0, count, together), count]]
    band = (side.band + together - 1) // together
    blocks = _blocks(reads, side.band)
    # Positions away from the border have the same few sums of products of taps.
    sums = {
        pairs: products[torch.tensor([a * taps + b for a, b in pairs])].sum(0).view(channels, channels)
        for pairs in {pairs for of_position in blocks for pairs in of_position.values()}
    }
    step = tol
    error = rounding.gamma(others * taps + taps + 4) * magnitude_norm(shape, weight) ** 2 * (1 + 2.0**-40)
    while math.isfinite(step):
        shift = (value * (1 + step)) ** 2 if value > 0 else step

        def column(j: int, shift: float = shift) -> Tensor:
            first, last = j * together, min(count, (j + 1) * together)
            below = min(count, (j + band + 1) * together)
            lower = weight.new_zeros(below - first, channels, last - first, channels)
            for p in range(first, last):
                for other, pairs in blocks[p].items():
                    torch.neg(sums[pairs], out=lower[other - first, :, p - first])
                lower[p - first, :, p - first].diagonal().add_(shift)
            return lower.view(-1, channels * (last - first))

        beyond = cholesky.banded_error(column, edges, band)
        if math.isfinite(beyond):
            square = shift + beyond + 2 * rounding.UNIT * (shift + error) + error
            return rounding.up(math.sqrt(rounding.up(square * (1 + 8 * rounding.UNIT))))
        step *= 10
    raise ValueError("the operator has NaN or inf")


def _reads(shape: Geometry) -> Tensor:
    """By which tap an output reads an input, both counted in order; -1 if by none: int64 (outputs, inputs)."""
    table = torch.full((prod(shape.out), prod(shape.size)), -1)
    rows = torch.arange(prod(shape.out))
    sources = [shape.source(dim) for dim in range(shape.dims)]
    for number, tap in enumerate(product(*(range(k) for k in shape.kernel))):
        place, inside = shape.places(tap, sources)
        table[rows[inside], place[inside]] = number
    return table


def _blocks(reads: Tensor, band: int) -> list[dict[int, tuple[tuple[int, int], ...]]]:
    """For every position p and each not before it that shares something: the pairs of taps (its own, p's) by which."""
    found: list[dict[int, tuple[tuple[int, int], ...]]] = []
    for p in range(len(reads)):
        shared = (reads[p : p + band + 1] >= 0) & (reads[p] >= 0)
        pairs: dict[int, list[tuple[int, int]]] = {}
        for other, q in shared.nonzero().tolist():
            pairs.setdefault(p + other, []).append((int(reads[p + other, q]), int(reads[p, q])))
        found.append({other: tuple(sorted(of_other)) for other, of_other in pairs.items()})
    return found
