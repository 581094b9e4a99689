"""The Lipschitz constant of an operation, and the call that it is wanted for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from sparring.lipschitz import rounding
from sparring.lipschitz.enclosure import Enclosure


class Refused(Exception):
    """An operation without a known bound; the message says why."""


class Slopes(NamedTuple):
    """Every difference quotient of the function lies in ``[low, high]``; torch's own is off by `jump` at most."""

    low: float
    high: float
    jump: float = 0.0

    @property
    def constant(self) -> float:
        """The Lipschitz constant."""
        return max(-self.low, self.high)


@dataclass(frozen=True)
class Gain:
    """A Lipschitz constant, and how it is known.

    Attributes
    ----------
    lower, upper
        Between which the constant lies; None for a lower end that nothing is known of.
    method
        How the upper end was found.
    certified
        Whether the upper end is proven.
    shape
        Of the weight, or whatever else the constant depends on.
    slopes
        Of an activation.
    matrix
        Of a dense layer that is given one vector, (out, in); its entries may be off by `error`, relatively.
    bias
        What such a layer adds, (out,), or None; not with a batch normalisation folded in.
    columns
        The constant of a layer with a weight where the distance of its operands is in L1: its longest column, rounded
        up; None if that is not known.
    """

    lower: float | None
    upper: float
    method: str
    certified: bool = True
    shape: str = ""
    slopes: Slopes | None = None
    matrix: Tensor | None = field(default=None, repr=False)
    error: float = 0.0
    bias: Tensor | None = field(default=None, repr=False)
    columns: float | None = None


@dataclass(frozen=True)
class Call:
    """One call of an operation: what it was given and gave, for a batch of one example.

    Attributes
    ----------
    x, out
        The activation, and the result.
    run
        Calls the operation again with another activation.
    tol, certified
        As in `layer_bounds`.
    known
        Enclosures found before, each with the tensors that its key names by where they lie.
    scale
        What each output channel is multiplied by afterwards, float64 (C,), where a batch normalisation is folded in.
    """

    x: Tensor
    out: Tensor
    run: Callable[[Tensor], Any]
    tol: float
    certified: bool
    known: dict[Any, tuple[Any, Enclosure]] = field(default_factory=dict)
    scale: Tensor | None = None


def exactly(value: float, method: str = "closed form", shape: str = "") -> Gain:
    """A constant that is attained."""
    return Gain(value, value, method, shape=shape)


def root(count: float) -> float:
    """The square root, rounded up unless it is a whole number."""
    value = math.sqrt(count)
    return value if value.is_integer() and value * value == count else rounding.up(value)


def product(a: float, b: float) -> float:
    """``a * b`` rounded up; inf if a factor is, even if the other is 0."""
    assert min(a, b) >= 0, "a factor is negative"
    if math.isinf(a) or math.isinf(b):
        return math.inf
    if a in (0, 1) or b in (0, 1):
        return a * b
    return rounding.up(a * b)


def total(parts: Sequence[float]) -> float:
    """The sum, rounded up."""
    sum_ = 0.0
    for part in parts:
        sum_ = sum_ + part if 0 in (sum_, part) else rounding.up(sum_ + part)
    return sum_


def length(parts: Sequence[float]) -> float:
    """The root of the sum of squares, rounded up."""
    present = [part for part in parts if part != 0]
    if len(present) <= 1:
        return sum(present)
    return rounding.up(math.hypot(*present) * (1 + (len(present) + 4) * rounding.UNIT))
