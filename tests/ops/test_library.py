"""The operations as torch operators: schemas, fake tensors, tracing, derivatives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import DTYPES, same_bits, sample
from torch import Tensor

import sparring as sp
from sparring import library

DOUBLE = torch.float64


def problem(dtype: torch.dtype, shape: tuple[int, ...] = (4, 30)) -> tuple[Tensor, Tensor, Tensor]:
    delta, x = sample(shape, dtype)
    return delta, sample(shape, dtype, seed=1)[0], x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 30), (2, 3, 5, 5), (0, 8)], ids=str)
@pytest.mark.parametrize("differentiated", [False, True])
def test_opcheck_project_l1_box(dtype: torch.dtype, shape: tuple[int, ...], differentiated: bool) -> None:
    delta, _, x = problem(dtype, shape)
    delta.requires_grad_(differentiated)
    for eps in (torch.tensor(1.0, dtype=DOUBLE), torch.ones(shape[0], dtype=DOUBLE)):
        torch.library.opcheck(library.project_l1_box, (delta, x, eps, 0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("differentiated", [False, True])
def test_opcheck_project_l0_box(dtype: torch.dtype, differentiated: bool) -> None:
    delta, _, x = problem(dtype)
    delta.requires_grad_(differentiated)
    for k in (torch.tensor(3), torch.tensor([0, 1, 2, 40])):
        torch.library.opcheck(library.project_l0_box, (delta, x, k, 0.0, 1.0, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_l1_step(dtype: torch.dtype) -> None:
    one, k = torch.tensor(1.0, dtype=DOUBLE), torch.tensor(3)
    torch.library.opcheck(library.l1_step, (*problem(dtype), one, one, k, 0.0, 1.0))
    ones, ks = torch.ones(4, dtype=DOUBLE), torch.tensor([1, 2, 3, 4])
    torch.library.opcheck(library.l1_step, (*problem(dtype), ones, ones, ks, 0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adam", [False, True], ids=["plain", "adam"])
def test_opcheck_recovery_step(dtype: torch.dtype, adam: bool) -> None:
    _, grad, image = problem(dtype)
    moments = (torch.zeros_like(image), torch.zeros_like(image)) if adam else (None, None)
    lr, lam = torch.tensor(0.1, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE)
    mask, frozen = torch.arange(30) % 3 > 0, torch.tensor([False, True, False, False])
    options = (True, 1, 0.9, 0.999, 1e-4, 0.0, 0.0, 1.0, 0.05)
    torch.library.opcheck(library.recovery_step, (image, grad, *moments, lr, lam, mask, frozen, *options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("counts", [False, True])
def test_opcheck_sparse_pgd_step(dtype: torch.dtype, counts: bool) -> None:
    values, grad, x = problem(dtype)
    unchanged = torch.zeros(4, dtype=torch.int64) if counts else None
    mask, sizes = grad[:, :10].contiguous(), (torch.tensor(0.25, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE))
    options = (True, 3, 0.0, 1.0)
    torch.library.opcheck(
        library.sparse_pgd_step, (values, mask, unchanged, grad, x, torch.tensor(3), *sizes, *options)
    )


def compiled(function: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_projection_equals_the_eager_one(dtype: torch.dtype) -> None:
    def attack(delta: Tensor, grad: Tensor, x: Tensor) -> Tensor:
        stepped = delta + 0.1 * grad.sign()
        return x + sp.project_l1_box(stepped, x, 2.0, (0.0, 1.0))

    assert same_bits(compiled(attack)(*problem(dtype)), attack(*problem(dtype)))


@pytest.mark.parametrize("k", [3, 0.1, torch.tensor([1, 2, 3, 4])], ids=str)
def test_compiled_step_equals_the_eager_one(k: Any) -> None:
    def attack(delta: Tensor, grad: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        return sp.l1_step(delta, grad, x, eps, 0.5, k) * 2

    eps = torch.tensor([0.5, 1.0, 2.0, 4.0])
    assert same_bits(compiled(attack)(*problem(torch.float32), eps), attack(*problem(torch.float32), eps))


@pytest.mark.parametrize("k", [3, 0.1, torch.tensor([0, 2, 3, 4])], ids=str)
def test_compiled_sparse_projection_equals_the_eager_one(k: Any) -> None:
    def attack(delta: Tensor, grad: Tensor, x: Tensor) -> Tensor:
        return x + sp.project_l0_box(delta + 0.1 * grad.sign(), x, k, channels=2)

    assert same_bits(compiled(attack)(*problem(torch.float32)), attack(*problem(torch.float32)))


def test_compiled_recovery_step_works_in_place() -> None:
    def search(image: Tensor, grad: Tensor, first: Tensor, second: Tensor) -> Tensor:
        for step in (1, 2):
            sp.recovery_step(
                image, grad * step, lr=0.1, lam=1.0, penalty="prox", exp_avg=first, exp_avg_sq=second, step=step
            )
        return image.sum(1)

    _, grad, image = problem(torch.float32)
    eager = [image.clone(), torch.zeros_like(image), torch.zeros_like(image)]
    traced = [t.clone() for t in eager]
    sums = search(eager[0], grad, *eager[1:]), compiled(search)(traced[0], grad, *traced[1:])
    for mine, theirs in zip([*eager, sums[0]], [*traced, sums[1]], strict=True):
        assert same_bits(mine, theirs)


def test_compiled_sparse_pgd_step_works_in_place() -> None:
    def search(values: Tensor, mask: Tensor, grad: Tensor, x: Tensor, unchanged: Tensor) -> Tensor:
        delta = sp.sparse_pgd_step(values, mask, grad, x, 2, step_size=0.25, mask_step=1.0, unchanged=unchanged)
        return delta + sp.sparse_pgd_step(
            values, mask, 2 * grad, x, 0.1, step_size=0.25, mask_step=1.0, unchanged=unchanged, projected=True
        )

    values, grad, x = problem(torch.float32)
    eager = [values, grad.flip(1), grad, x, torch.zeros(4, dtype=torch.int64)]
    traced = [t.clone() for t in eager]
    assert same_bits(search(*eager), compiled(search)(*traced))
    for mine, theirs in zip(eager, traced, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-math.inf, math.inf)], ids=str)
def test_derivatives_of_the_projection(bounds: tuple[float, float]) -> None:
    """Against finite differences: on the sphere, inside it, and with eps one number for all rows."""
    delta, x = sample((3, 6), DOUBLE, (0.1, 0.9))
    delta, x = (t.requires_grad_() for t in (delta, x))
    for radius in (torch.tensor([0.4, 1.1, 100.0], dtype=DOUBLE), torch.tensor(0.7, dtype=DOUBLE)):
        eps = radius.requires_grad_()
        assert torch.autograd.gradcheck(lambda d, p, e: sp.project_l1_box(d, p, e, bounds), (delta, x, eps))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-math.inf, math.inf)], ids=str)
def test_derivatives_of_the_sparse_projection(bounds: tuple[float, float]) -> None:
    """Against finite differences, the places that are kept being far ahead of the others."""
    delta, x = sample((3, 6), DOUBLE, (0.1, 0.9))
    delta, x = (t.requires_grad_() for t in (delta, x))
    for k in (0, 2, torch.tensor([1, 2, 3])):
        assert torch.autograd.gradcheck(lambda d, p, k=k: sp.project_l0_box(d, p, k, bounds, channels=2), (delta, x))


def test_a_radius_that_is_a_number_has_no_derivative() -> None:
    delta, x = sample((3, 6), DOUBLE)
    sp.project_l1_box(delta.requires_grad_(), x, 0.5).sum().backward()
    assert delta.grad is not None
    with torch.no_grad():
        assert not sp.project_l1_box(delta, x, 0.5).requires_grad


def test_output_given_is_refused_where_a_derivative_is_wanted() -> None:
    delta, x = sample((3, 6), DOUBLE)
    with pytest.raises(ValueError, match=r"\bout\b"):
        sp.project_l1_box(delta.requires_grad_(), x, 0.5, out=torch.empty_like(x))
