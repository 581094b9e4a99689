"""The spectral norm of a matrix, enclosed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparring.lipschitz import gram, kernels, rounding
from sparring.lipschitz.enclosure import Enclosure, unscaled


def enclose(matrix: Tensor, *, tol: float, certified: bool, entry_error: float = 0.0) -> Enclosure:
    """Enclosure of the largest singular value of ``matrix`` (m, n), any float type.

    Gram matrix on the short side in float64, its largest eigenvalue by Lanczos, a Cholesky factorisation that proves a
    number a little above (Rump 2006, with the error of the factorisation measured). `docs/lipschitz.md` has the proof.

    ``entry_error`` bounds the norm of what is unknown of ``matrix``.
    """
    wide, exponent = rounding.scaled(matrix)
    if wide.numel() == 0 or not bool(wide.any()):
        return Enclosure(0.0, 0.0, "zero", certified)
    if wide.shape[0] > wide.shape[1]:
        wide = wide.t()
    wide = wide.contiguous()
    m, n = wide.shape
    product = gram.gram(wide)
    # What is rounded is a share of |W| |W|^T; the norm of that is at most |W|_F^2, and at most the product of the
    # largest sums of magnitudes over rows and over columns.
    rows, squares = kernels.absolute_sums(wide)
    columns = torch.linalg.vector_norm(wide, 1, dim=0) * (1 + 2 * rounding.gamma(m))
    magnitude = min(float(squares.sum()), float(rows.max()) * float(columns.max())) * (1 + rounding.gamma(m + 8))
    error = rounding.gamma(n + 2) * magnitude
    found = gram.top(product, tol)
    vector = found.vector
    lost = rounding.gamma(m + 2) * math.sqrt(magnitude) * float(torch.linalg.vector_norm(vector)) * (1 + 2.0**-20)
    lower = rounding.stretch(vector @ wide, vector, lost)
    if certified:
        margin = tol if m > gram.SMALL else 0.0
        square = gram.proven_upper(product, max(lower**2, found.value if m <= gram.SMALL else 0.0), error, 1.5 * margin)
        upper, method = rounding.up(math.sqrt(rounding.up(square))), "Gram matrix and Cholesky"
    else:
        upper, method = math.sqrt(max(found.value + found.residual, lower**2)), "Lanczos"
    error = math.ldexp(entry_error, -exponent)
    return unscaled(Enclosure(max(0.0, lower - error), max(upper, lower) + error, method, certified), exponent)
