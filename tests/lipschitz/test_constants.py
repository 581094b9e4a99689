"""Constants of any dtype in a network's arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring.lipschitz import layer_bounds


class With(nn.Module):
    """``function(x, constant)`` with a buffer."""

    def __init__(self, function: Callable[[Any, Any], Any], constant: Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.constant)


LEAST = [(torch.int8, 2.0**7), (torch.int16, 2.0**15), (torch.int32, 2.0**31), (torch.int64, 2.0**63)]


@pytest.mark.parametrize(("dtype", "size"), LEAST)
def test_least_integer_of_a_dtype(dtype: torch.dtype, size: float) -> None:
    constant = torch.tensor([torch.iinfo(dtype).min, 1, 2, 1], dtype=dtype)
    for function in (operator.mul, torch.multiply):
        report = layer_bounds(With(function, constant), (4,))
        assert size <= report.upper <= size * (1 + 1e-12)
    assert 1 <= layer_bounds(With(operator.truediv, constant), (4,)).upper <= 1 + 1e-12
    alone = layer_bounds(With(operator.truediv, constant[:1].clone()), (4,))
    assert 1 / size <= alone.upper <= 1 / size * (1 + 1e-12)


def test_integers_that_float64_does_not_hold() -> None:
    size = 2**53 + 1
    assert layer_bounds(With(operator.mul, torch.tensor([size])), (4,)).upper > 2.0**53
    assert layer_bounds(With(lambda x, _: x * size, torch.zeros(1)), (4,)).upper > 2.0**53


def test_bools() -> None:
    assert layer_bounds(With(operator.mul, torch.tensor([True, False, True, True])), (4,)).upper == 1.0
    assert layer_bounds(With(operator.mul, torch.tensor([False])), (4,)).upper == 0.0
