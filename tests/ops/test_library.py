"""The operations as torch operators: schema, fake tensors, tracing."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, same_bits, sample
from torch import Tensor

import sparring as sp
import sparring.library  # noqa: F401  (registers the operators)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 30), (2, 3, 5, 5), (0, 8)], ids=str)
def test_opcheck_project_l1_box(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    delta, x = sample(shape, dtype)
    for eps in (torch.tensor(1.0, dtype=torch.float64), torch.ones(shape[0], dtype=torch.float64)):
        torch.library.opcheck(torch.ops.sparring.project_l1_box.default, (delta, x, eps, 0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_l1_step(dtype: torch.dtype) -> None:
    delta, x = sample((4, 30), dtype)
    grad, _ = sample((4, 30), dtype, seed=1)
    one, k = torch.tensor(1.0, dtype=torch.float64), torch.tensor(3)
    torch.library.opcheck(torch.ops.sparring.l1_step.default, (delta, grad, x, one, one, k, 0.0, 1.0))
    ones, ks = torch.ones(4, dtype=torch.float64), torch.tensor([1, 2, 3, 4])
    torch.library.opcheck(torch.ops.sparring.l1_step.default, (delta, grad, x, ones, ones, ks, 0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_function_equals_the_eager_one(dtype: torch.dtype) -> None:
    def attack(delta: Tensor, grad: Tensor, x: Tensor) -> Tensor:
        stepped = delta + 0.1 * grad.sign()
        return x + sp.project_l1_box(stepped, x, 2.0, (0.0, 1.0))

    delta, x = sample((4, 30), dtype)
    grad, _ = sample((4, 30), dtype, seed=1)
    compiled = torch.compile(attack, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(delta, grad, x), attack(delta, grad, x))


def test_compiled_step_with_numbers_per_row() -> None:
    def attack(delta: Tensor, grad: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        return sp.l1_step(delta, grad, x, eps, 0.5, 3) * 2

    delta, x = sample((4, 30), torch.float32)
    grad, _ = sample((4, 30), torch.float32, seed=1)
    eps = torch.tensor([0.5, 1.0, 2.0, 4.0])
    compiled = torch.compile(attack, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(delta, grad, x, eps), attack(delta, grad, x, eps))
