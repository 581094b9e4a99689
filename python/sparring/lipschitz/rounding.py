"""What floating-point arithmetic may have lost: the terms that turn a computed number into a proven one.

Everything here is float64, with unit roundoff u = 2^-53. A sum of n products, in any order and with or without fused
multiply-add, is off by at most gamma(n) times the sum of their magnitudes (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 3.1). Matrices are scaled before they come here, so that nothing overflows, and what is lost
to underflow is below the last unit of what is kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = 2.0**-53


def gamma(operations: int) -> float:
    """An upper bound of n u / (1 - n u)."""
    if operations >= 2**40:
        raise ValueError(f"{operations} operations in a row are beyond what the bounds on rounding cover")
    return operations * UNIT * (1 + 2.0**-10)


def up(value: float) -> float:
    """The next number above: an upper bound of what a single operation rounded to ``value``."""
    return math.nextafter(value, math.inf)


def above(values: Tensor) -> Tensor:
    """`up` of each entry."""
    return torch.nextafter(values, torch.full_like(values, math.inf))


def below(values: Tensor) -> Tensor:
    """`down` of each entry, also of negative ones."""
    return torch.nextafter(values, torch.full_like(values, -math.inf))


def down(value: float) -> float:
    """The next number below, but not below 0."""
    return max(0.0, math.nextafter(value, -math.inf))


def squares(tensor: Tensor) -> float:
    """An upper bound of the sum of squares of a float64 tensor."""
    return up(float(tensor.reshape(-1).dot(tensor.reshape(-1))) * (1 + 2 * gamma(tensor.numel() + 2)))


def stretch(image: Tensor, vector: Tensor, lost: float) -> float:
    """At most ``|T vector| / |vector|``, where ``image`` is T vector but for an error of norm ``lost``."""
    length = float(torch.linalg.vector_norm(image)) * (1 - gamma(image.numel() + 4))
    size = float(torch.linalg.vector_norm(vector)) * (1 + gamma(vector.numel() + 4))
    return down(down(length - lost) / size)


def scaled(weight: Tensor) -> tuple[Tensor, int]:
    """``weight`` as float64 times a power of two, its largest magnitude in [1/2, 1); and the exponent to undo it with.

    Exact, but for entries below 2^-1000 of the largest, which may lose all they have; that changes no norm by more than
    2^-53 of it, and who uses this allows for as much.
    """
    wide = weight.detach().to(torch.float64)
    largest = float(wide.abs().max()) if wide.numel() else 0.0
    if largest == 0.0:
        return wide, 0
    exponent = math.frexp(largest)[1]
    first = -exponent // 2
    return wide * 2.0**first * 2.0 ** (-exponent - first), exponent


def times_power(value: float, exponent: int, direction: float) -> float:
    """``value * 2**exponent``, rounded towards ``direction`` (0 or inf) where it leaves the range of normal numbers."""
    try:
        result = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf if direction == math.inf else math.nextafter(math.inf, 0)
    exact = math.frexp(result)[0] == math.frexp(value)[0]
    return result if exact else math.nextafter(result, direction)
