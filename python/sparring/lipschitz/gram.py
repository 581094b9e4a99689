"""The largest eigenvalue of a Gram matrix, proven: from above by a factorisation, from below by what made it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparring.lipschitz import cholesky, lanczos, rounding

SMALL = 384
"""Up to this size eigenvalues come from a full decomposition, and the ends are as close as rounding lets them be."""

_BLOCK = 512


def gram(matrix: Tensor) -> Tensor:
    """``matrix @ matrix.T`` of (m, n), the lower triangle in blocks; the upper one is mirrored."""
    m = len(matrix)
    if m <= _BLOCK:
        return matrix @ matrix.t()
    product = matrix.new_empty(m, m)
    for begin in range(0, m, _BLOCK):
        end = min(begin + _BLOCK, m)
        torch.mm(matrix[begin:end], matrix[:end].t(), out=product[begin:end, :end])
        product[:begin, begin:end] = product[begin:end, :begin].t()
    return product


def top(product: Tensor, tol: float) -> lanczos.Ritz:
    """The largest eigenvalue of a symmetric matrix and its vector, to about ``tol``; the residual is an estimate."""
    if len(product) <= SMALL:
        values, vectors = torch.linalg.eigh(product)
        return lanczos.Ritz(float(values[-1]), vectors[:, -1], 0.0)
    # The error of the value is the square of the vector's, so that float32 is enough, and half the memory to pass over.
    narrow = product.to(torch.float32)
    found = lanczos.largest(lambda v: narrow @ v, lanczos.start_vector(len(narrow), narrow), tol=tol)
    return lanczos.Ritz(found.value, found.vector.to(product), found.residual)


def proven_upper(product: Tensor, value: float, error: float, tol: float) -> float:
    """A number that no eigenvalue of the exact Gram matrix exceeds.

    Parameters
    ----------
    product : (m, m)
        What was computed of it; only the lower triangle is read. Destroyed.
    value : float
        About its largest eigenvalue.
    error : float
        Bound of the spectral norm of ``product`` less the exact matrix.
    tol : float
        How far above ``value`` to try first, relatively; ten times as far after each failure.
    """
    m = len(product)
    trace = float(product.diagonal().sum())
    least = 4 * rounding.gamma(2 * m + 16) * max(m * value - trace, value) / value if value > 0 else 0.0
    step = max(tol, least)
    original = product.diagonal().clone()
    product.neg_()
    while math.isfinite(step):
        shift = value * (1 + step)
        torch.sub(shift, original, out=product.diagonal())
        beyond = cholesky.dense_error(product)
        if math.isfinite(beyond):
            # The subtraction on the diagonal rounds once.
            return (shift + beyond + rounding.UNIT * (shift + float(original.abs().max())) + error) * (
                1 + 4 * rounding.UNIT
            )
        step *= 10
    raise ValueError("the matrix has NaN or inf")
