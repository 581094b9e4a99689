"""The largest eigenvalue of one symmetric operator, nearly: what a certificate is then tried a little above of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Ritz(NamedTuple):
    """An approximate eigenpair: value, unit vector, and the norm of the residual."""

    value: float
    vector: Tensor
    residual: float


def largest(apply: Callable[[Tensor], Tensor], start: Tensor, *, tol: float, steps: int = 400) -> Ritz:
    """Largest eigenvalue by the Lanczos method with full reorthogonalisation (Golub & Van Loan 2013, section 10.1).

    Parameters
    ----------
    apply : callable
        The operator on a vector like ``start``, symmetric and with no eigenvalue far below 0.
    start : (n,)
        Not zero. In float32 the pair is as good as float32 allows, which for the value is squared.
    tol : float
        Ends once the largest Ritz value is expected to be within this share of the eigenvalue.
    steps : int
        Products with the operator at most, and vectors of n that are kept.
    """
    n = len(start)
    steps = min(steps, n)
    basis = start.new_empty(min(steps, 32), n)
    basis[0] = start / torch.linalg.vector_norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    earlier = 0.0
    for k in range(1, steps + 1):
        image = apply(basis[k - 1])
        diagonal.append(float(image.dot(basis[k - 1])))
        for _ in range(2):  # once leaves too much in float32
            image = image - (basis[:k] @ image) @ basis[:k]
        beside.append(float(torch.linalg.vector_norm(image)))
        ended = k == steps or beside[-1] <= torch.finfo(start.dtype).eps * max(diagonal)
        if ended or k % 8 == 0:
            small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
            if k > 1:
                off = torch.tensor(beside[:-1], dtype=torch.float64)
                small += torch.diag(off, 1) + torch.diag(off, -1)
            values, vectors = torch.linalg.eigh(small)
            value, weights = float(values[-1]), vectors[:, -1]
            residual = beside[-1] * abs(float(weights[-1]))
            # The value is off by about residual^2 over the distance to the next eigenvalue, which is not known, or by
            # what eight steps still added.
            if ended or (value - earlier <= 0.1 * tol * value and residual <= (tol**0.5) * value):
                vector = weights.to(basis) @ basis[:k]
                return Ritz(value, vector / torch.linalg.vector_norm(vector), residual)
            earlier = value
        if k == len(basis):
            basis = torch.cat([basis, basis.new_empty(min(len(basis), steps - k), n)])
        basis[k] = image / beside[-1]
    raise AssertionError("the last step returns")


def start_vector(n: int, like: Tensor) -> Tensor:
    """The same vector every time, in no special direction."""
    generator = torch.Generator().manual_seed(0x5EED)
    return torch.randn(n, generator=generator, dtype=torch.float64).to(like)
