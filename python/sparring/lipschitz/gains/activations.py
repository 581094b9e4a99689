"""Gains of activations: between which slopes their graphs run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparring.lipschitz import rounding
from sparring.lipschitz.gains.gain import Call, Gain, Refused, Slopes

RISING = Slopes(0.0, 1.0)

# Largest slopes, at the zero of the second derivative (40 digits by mpmath, rounded up), and below it a number that
# the negative slopes do not reach: they are smaller in magnitude.
SILU = Slopes(-0.1, 1.0998393201288671)  # x = 2.3994
MISH = Slopes(-0.12, 1.0884981612517283)  # x = 1.4906
GELU = Slopes(-0.13, 1.1289041451851550)  # x = sqrt(2)
GELU_TANH = Slopes(-0.13, 1.1289930686587721)  # x = 1.4185
ERF = Slopes(0.0, 1.1283791670955128)  # 2 / sqrt(pi), at 0
SELU = Slopes(0.0, 1.7580993408473769)  # scale * alpha, at 0 from below
# torch computes softplus as x itself from `threshold` on, a jump of log(1 + e^-threshold) in place of the limit.
SOFTPLUS_THRESHOLD = 15.0


def _between(*slopes: float) -> Slopes:
    return Slopes(min(1.0, *slopes), max(1.0, *slopes))


def _prelu(weight: Tensor) -> Slopes:
    return _between(float(weight.min()), float(weight.max()))


def _rrelu(lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False) -> Slopes:
    return _between(lower, upper) if training else _between((lower + upper) / 2)


def _elu(alpha: float = 1.0, inplace: bool = False) -> Slopes:
    return Slopes(min(0.0, alpha), max(1.0, alpha))  # alpha e^x below 0


def _celu(alpha: float = 1.0, inplace: bool = False) -> Slopes:
    if alpha <= 0:
        raise Refused(f"alpha is {alpha}: its slope e^(x / alpha) has no limit")
    return RISING


def _gelu(approximate: str = "none") -> Slopes:
    return GELU if approximate == "none" else GELU_TANH


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Slopes:
    if not threshold >= SOFTPLUS_THRESHOLD:
        raise Refused(f"jumps at its threshold {threshold} by more than float32 rounds")
    if not abs(beta) > 0:
        raise Refused(f"beta is {beta}")
    return RISING._replace(jump=rounding.up(math.exp(-threshold) / abs(beta) * (1 + 2.0**-40)))  # log(1 + e) <= e


def _threshold(threshold: float, value: float, inplace: bool = False) -> Slopes:
    if threshold != value:
        raise Refused("jumps at its threshold: no Lipschitz constant")
    return RISING


def _fixed(slopes: Slopes) -> Callable[..., Slopes]:
    return lambda *options, **named: slopes


SLOPES: dict[str, Callable[..., Slopes]] = {
    "relu": _fixed(RISING),
    "relu6": _fixed(RISING),
    "hardtanh": _fixed(RISING),
    "clamp": _fixed(RISING),
    "clip": _fixed(RISING),
    "clamp_min": _fixed(RISING),
    "clamp_max": _fixed(RISING),
    "leaky_relu": lambda negative_slope=0.01, inplace=False: _between(negative_slope),
    "prelu": _prelu,
    "rrelu": _rrelu,
    "elu": _elu,
    "celu": _celu,
    "selu": _fixed(SELU),
    "gelu": _gelu,
    "silu": _fixed(SILU),
    "mish": _fixed(MISH),
    "sigmoid": _fixed(Slopes(0.0, 0.25)),
    "logsigmoid": _fixed(RISING),
    "tanh": _fixed(RISING),
    "tanhshrink": _fixed(RISING),
    "softshrink": _fixed(RISING),
    "softplus": _softplus,
    "softsign": _fixed(RISING),
    "hardsigmoid": _fixed(Slopes(0.0, rounding.up(1 / 6))),
    "hardswish": _fixed(Slopes(-0.5, 1.5)),
    "threshold": _threshold,
    "abs": _fixed(Slopes(-1.0, 1.0)),
    "sin": _fixed(Slopes(-1.0, 1.0)),
    "cos": _fixed(Slopes(-1.0, 1.0)),
    "atan": _fixed(RISING),
    "erf": _fixed(ERF),
}
"""By the name that torch gives the function; called with the function's other arguments."""


def slopes_of(name: str) -> Callable[..., Gain]:
    """The rule of the activation of this name."""

    def rule(call: Call, *options: Any, **named: Any) -> Gain:
        slopes = SLOPES[name](*options, **named)
        if not math.isfinite(slopes.low) or not math.isfinite(slopes.high):
            raise Refused("its slope is not finite")
        return Gain(slopes.constant, slopes.constant, "largest slope", slopes=slopes)

    return rule
