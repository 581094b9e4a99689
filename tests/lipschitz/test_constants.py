"""Constants of any dtype in a network's arithmetic."""

from __future__ import annotations

import math
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


def normalisation(variance: float, weight: float) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(4).double().eval()
    norm.running_var.fill_(variance)
    nn.init.constant_(norm.weight, weight)
    return norm


@pytest.mark.parametrize(("variance", "weight"), [(1e300, 1e-200), (1e300, 1e-170), (1.0, 1e-310), (1.0, 1e-323)])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_scales_below_the_normal_numbers(variance: float, weight: float, before: int) -> None:
    """Nothing that is not constant has the bound 0."""
    layers = [nn.Linear(4, 4).double() for _ in range(before)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1e-20 if before == 1 else 1.0)
    report = layer_bounds(nn.Sequential(*layers, normalisation(variance, weight)).eval(), (4,))
    assert report.refused == ()
    true = weight / (variance + 1e-5) ** 0.5 * (4e-20 if before == 1 else 16.0 if before else 1.0)
    assert max(true * (1 - 1e-9), 5e-324) <= report.upper < math.inf


def test_products_below_the_normal_numbers() -> None:
    """A scale that is normal, times a weight that is, is below them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), normalisation(1.0, 1e-300)).double().eval()
    nn.init.constant_(model[0].weight, 1e10)
    nn.init.constant_(model[2].weight, 1e-26)
    assert layer_bounds(model, (4,)).upper >= 1.6e-315 * (1 - 1e-5)


def test_scales_of_zero_are_zero() -> None:
    assert layer_bounds(normalisation(1e300, 0.0), (4,)).upper == 0
