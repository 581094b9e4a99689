"""Bounds of a dense chain of which some units are constant: the same chain for many examples, each with its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparring.lipschitz import kernels, rounding
from sparring.lipschitz.chains import Blocks, candidates, power_near_root

LARGEST = 2000
"""Rows of the matrix of LipSDP, beyond which no such bounds are made."""

_SLACK = tuple(10.0**exponent for exponent in range(-7, 0))  # of L^2, tried in turn


class MaskedChain:
    """LipSDP of a chain (`sparring.lipschitz.chains`) without some of its units.

    Their rows and columns leave the matrix of LipSDP, with the multipliers that are best for the whole chain. So the
    bound is no larger than the chain's, and found without a search.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        scaled = [rounding.scaled(weight) for weight in weights]
        matrices = [matrix for matrix, _ in scaled]
        self._factor = rounding.times_power(1.0, sum(exponent for _, exponent in scaled), math.inf)
        units, whole = next(iter(candidates(matrices, improve=True)))
        self._least = whole * 2.0**-24  # squares below are not tried: rounding would be too much of them
        ones = [1.0] * len(units)
        blocks = Blocks(matrices, [1 / (2 * unit) for unit in units], ones, [0.0] * len(matrices))
        self._error, self._output = blocks.error, blocks.below[-1]
        self._inner = torch.block_diag(*blocks.diagonal)  # type: ignore[no-untyped-call]
        begin = 0
        for block, below in zip(blocks.diagonal, blocks.below[:-1], strict=False):
            middle, end = begin + len(block), begin + len(block) + len(below)
            self._inner[middle:end, begin:middle] = below
            self._inner[begin:middle, middle:end] = below.mT
            begin = middle
        self._inputs = len(self._inner) - sum(map(len, units))  # where they are not eliminated
        last = len(blocks.diagonal[-1])
        self._output = torch.cat([self._output.new_zeros(len(self._output), len(self._inner) - last), self._output], 1)

    @property
    def size(self) -> int:
        """Rows of the matrix."""
        return len(self._inner) + len(self._output)

    def bounds(self, hidden: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Upper bounds of the constants, float64 (B,); inf where nothing is proven.

        Parameters
        ----------
        hidden : sequence of Tensor
            (B, n_k): 1 for units that are left, 0 for others.
        rows : Tensor
            (B, n_l): the same for the chain's results.
        """
        left = torch.cat([rows.new_ones(len(rows), self._inputs), *hidden], 1)
        inner = self._inner * left[:, :, None] * left[:, None, :]
        inner.diagonal(dim1=1, dim2=2).add_(1 - left)
        output = self._output * rows[:, :, None] * left[:, None, :]
        factor, info = torch.linalg.cholesky_ex(inner)
        root = torch.linalg.solve_triangular(factor, output.mT, upper=False)
        squares = kernels.top_eigenpair(root.mT @ root, tol=1e-7).value.clamp(min=self._least)
        upper = torch.full_like(squares, torch.inf)
        for slack in _SLACK:
            pending = (upper.isinf() & (info == 0) & squares.isfinite()).nonzero()[:, 0]
            if not len(pending):
                break
            tried = (squares[pending] * (1 + slack)).sqrt()
            proven = self._proven(inner[pending], output[pending], tried)
            upper[pending[proven]] = tried[proven]
        return rounding.above(upper * self._factor)

    def _proven(self, inner: Tensor, output: Tensor, upper: Tensor) -> Tensor:
        """Whether the matrices with L = `upper` have no negative eigenvalue."""
        units, (hidden, outputs) = inner.shape[1], (inner.shape[1], output.shape[1])
        square = upper * upper * (1 - 2 * rounding.UNIT)
        scale = power_near_root(square)
        # shift I - matrix: 4 - (1 ... 2) on the diagonal, and what is to be shown positive is the matrix less margin I.
        size = hidden + outputs
        negative = inner.new_empty(len(inner), size, size)
        negative[:, :units, :units] = -inner
        negative[:, units:, :units] = -output * scale[:, None, None]
        negative[:, :units, units:] = negative[:, units:, :units].mT
        negative[:, units:, units:] = torch.diag_embed(-(square * scale**2)[:, None].expand(-1, outputs))
        trace = -negative.diagonal(dim1=1, dim2=2).sum(1).clamp(max=0)
        error = self._error * scale.clamp(min=1)
        # The last for what the diagonal rounds here and when it is taken from the shift again.
        margin = error + 2 * rounding.gamma(size + 8) * trace + 64 * rounding.UNIT
        negative.diagonal(dim1=1, dim2=2).add_(margin[:, None]).add_(4)
        return kernels.positive_definite(negative, negative.new_full((len(negative),), 4.0))
