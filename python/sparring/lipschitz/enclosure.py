"""Two numbers between which a norm lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparring.lipschitz import rounding


@dataclass(frozen=True)
class Enclosure:
    """``lower <= norm <= upper``.

    Attributes
    ----------
    lower, upper : float
        Rounded outwards: both hold for the exact norm of the weights as they are stored.
    method : str
        How the upper end was found.
    certified : bool
        Whether the upper end is proven. If not, it is the estimate that an iteration came to.
    """

    lower: float
    upper: float
    method: str
    certified: bool

    def __post_init__(self) -> None:
        if not 0 <= self.lower <= self.upper:
            raise ValueError(f"not an enclosure: [{self.lower}, {self.upper}]")

    @property
    def gap(self) -> float:
        """How far the ends are apart, as a share of the lower: ``upper / lower - 1``; 0 for a norm of 0."""
        if self.upper == self.lower:
            return 0.0
        return self.upper / self.lower - 1 if self.lower > 0 else math.inf

    def __str__(self) -> str:
        return f"[{self.lower:.9g}, {self.upper:.9g}] by {self.method}{'' if self.certified else ', not certified'}"


def larger(one: Enclosure, other: Enclosure) -> Enclosure:
    """Of the larger of two norms."""
    by = one if one.upper >= other.upper else other
    return Enclosure(max(one.lower, other.lower), by.upper, by.method, one.certified and other.certified)


def unscaled(enclosure: Enclosure, exponent: int) -> Enclosure:
    """Of a matrix that `rounding.scaled` multiplied by ``2**-exponent``, the enclosure before that.

    What was lost of small entries, and what the last additions rounded, is allowed for.
    """
    slack = 2.0**-52 * enclosure.upper
    lower = max(0.0, enclosure.lower - slack)
    return Enclosure(
        rounding.times_power(lower, exponent, 0.0),
        rounding.times_power(rounding.up(enclosure.upper + slack), exponent, math.inf) if enclosure.upper > 0 else 0.0,
        enclosure.method,
        enclosure.certified,
    )
