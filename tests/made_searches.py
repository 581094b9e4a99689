"""A search for two inputs whose results are far apart, and what a Lipschitz bound must be against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparring.lipschitz import layer_bounds
from sparring.lipschitz.trees import tensors_in


def steepest(model: Callable[[Tensor], Any], shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """The largest difference quotient between inputs: along the Jacobian's leading direction, an entry, at random."""
    draws, largest, unit = torch.Generator().manual_seed(0), 0.0, torch.finfo(dtype).eps

    def value(x: Tensor) -> Tensor:
        torch.default_generator.manual_seed(0)  # for dropout, one function
        return torch.cat([part.flatten().double() for part in tensors_in(model(x + 0))])  # some work in place

    for scale in (1e-4, 1.0, 20.0):
        x = scale * torch.randn(1, *shape, generator=draws, dtype=torch.float64).to(dtype)
        directions = [torch.randn(x.shape, generator=draws, dtype=torch.float64).to(dtype)]
        directions.append(torch.zeros_like(x).index_fill_(-1, torch.tensor([0]), 1.0))
        try:
            jacobian = torch.autograd.functional.jacobian(value, x).reshape(-1, x.numel())
            directions.append(torch.linalg.svd(jacobian.double())[2][0].view_as(x).to(dtype))
        except RuntimeError:  # what has no derivative
            pass
        with torch.no_grad():
            for direction in directions:
                for step in (1e-4, 1.0):
                    end = x + max(scale, 1e-2) * step * direction / direction.norm()
                    rounded = 64 * unit * max(float(value(x).norm()), float(x.norm()))
                    moved = float((value(end) - value(x)).norm()) - rounded
                    largest = max(largest, moved / float((end.double() - x.double()).norm()))
    return largest


def holds(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether there is a bound at all; it must not be below what is found."""
    report = layer_bounds(model, shape, tol=1e-3)
    if report.upper == math.inf:
        assert report.refused
        return False
    own = "own dtype" in report.note
    found = steepest(model if own else model.double(), shape, torch.float32 if own else torch.float64)
    assert found <= report.upper * (1 + 1e-6) + 1e-9, f"found {found}, claimed {report.upper}"
    return True
