"""What one call from Python costs on one image of 784 numbers, by pytest-benchmark: there is no peer to interleave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparring import ops

pytestmark = pytest.mark.benchmark(group="one row of 784")
LIMIT = 15.0  # microseconds


@pytest.fixture
def row() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 784, generator=generator)
    return torch.randn(1, 784, generator=generator), x, torch.empty_like(x), torch.randn(1, 784, generator=generator)


def test_project_l1_box(benchmark: Any, latency: Callable[..., None], row: tuple[torch.Tensor, ...]) -> None:
    delta, x, out, _ = row
    benchmark(ops.project_l1_box, delta, x, 12.0, out=out)
    latency("project_l1_box", benchmark, LIMIT)


def test_l1_step(benchmark: Any, latency: Callable[..., None], row: tuple[torch.Tensor, ...]) -> None:
    delta, x, out, grad = row
    delta = ops.project_l1_box(delta, x, 12.0)
    benchmark(ops.l1_step, delta, grad, x, 12.0, 12.0, 39, out=out)
    latency("l1_step", benchmark, LIMIT)


def test_recovery_step(benchmark: Any, latency: Callable[..., None], row: tuple[torch.Tensor, ...]) -> None:
    _, image, m, grad = row
    m.zero_()
    v = torch.zeros_like(m)
    benchmark(ops.recovery_step, image, grad, lr=1e-3, lam=0.1, penalty="prox", exp_avg=m, exp_avg_sq=v)
    latency("recovery_step", benchmark, LIMIT)
