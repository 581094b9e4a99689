"""Cholesky factorisation in blocks, verified: how far the exact product of the factor is from the matrix.

If ``|A - L L^T| <= e``, then no eigenvalue of A is below -e, since ``L L^T`` has none below 0. So one factorisation of
``c I - G`` proves that no eigenvalue of G is above c + e. Nothing is assumed of how triangular systems are solved
(libraries invert blocks), since what each solve leaves is measured; only the products of matrices must obey the bound
of `rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sparring.lipschitz import rounding

Column = Callable[[int], Tensor]
"""Of a block column j: the lower triangle from its diagonal block down to the band's edge, (rows, width)."""

_BLOCK = 256


def dense_error(matrix: Tensor) -> float:
    """Bound e of ``matrix - L L^T`` in the spectral norm, for a symmetric (n, n); inf if there is no factor."""
    n = len(matrix)
    edges = [*range(0, n, _BLOCK), n]
    return banded_error(lambda j: matrix[edges[j] :, edges[j] : edges[j + 1]], edges, len(edges))


def banded_error(column: Column, edges: list[int], band: int) -> float:
    """The same for a matrix that is zero beyond ``band`` blocks below the diagonal.

    Parameters
    ----------
    column : callable
        ``column(j)`` is what the lower triangle holds in block column j, from its diagonal block down to block
        j + band, as far as there is one.
    edges : list of int
        Where block columns begin, and the size of the matrix at the end.
    """
    blocks = len(edges) - 1
    factor: list[Tensor] = []  # of block column j, its rows from edges[j] on
    left_over, size, mass = 0.0, 0.0, 0.0
    for j in range(blocks):
        begin, width = edges[j], edges[j + 1] - edges[j]
        rest = column(j).clone()
        size += rounding.squares(rest)
        for i in range(max(0, j - band), j):
            above = factor[i][begin - edges[i] :]
            if len(above):
                rest[: len(above)].addmm_(above, above[:width].t(), alpha=-1)
        corner, info = torch.linalg.cholesky_ex(rest[:width])
        if int(info):
            return math.inf
        below = torch.linalg.solve_triangular(corner.t(), rest[width:], upper=True, left=False)
        of_column = torch.cat([corner, below])
        rest.addmm_(of_column, corner.t(), alpha=-1)
        rest[:width].tril_()  # above the diagonal nothing was factored
        left_over += rounding.squares(rest)
        mass += rounding.squares(of_column)
        factor.append(of_column)
        if j >= band:
            factor[j - band] = of_column[:0]  # no longer needed
    # An entry a of the lower triangle less its products l l' is rounded at most so often, each time by u of what is
    # there so far: |a| and the products' magnitudes at most. |L| |L|^T is in norm at most the sum of all squares of L.
    widest = max(after - before for before, after in pairwise(edges))
    operations = min(len(edges), 2 * band + 2) * widest + 2 * blocks + 8
    error = math.sqrt(2 * left_over) + rounding.gamma(operations) * (math.sqrt(2 * size) + 2 * mass)
    return error * (1 + 2.0**-40) if math.isfinite(error) else math.inf
