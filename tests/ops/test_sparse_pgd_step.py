"""The step of sparse PGD against the float64 reference, whose gradients are autograd's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import BOXES, DTYPES, SHAPES, Bounds, assert_feasible, generator, same_bits, sample, unit
from torch import Tensor

from sparring import reference

Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def problem(shape: tuple[int, ...], dtype: torch.dtype, channels: int = 1, bounds: Bounds = (0.0, 1.0)) -> Problem:
    """values, which stay in the box, mask, grad, x."""
    grad, x = sample(shape, dtype, bounds)
    values = 0.75 * reference.project_l0_box(sample(shape, dtype, seed=1)[0], x, 10**9, bounds).to(dtype)
    places = math.prod(shape[1:]) // channels
    mask = torch.randn(shape[0], places, generator=generator(2), dtype=torch.float64).to(dtype)
    return values, mask, grad, x


def chosen(mask: Tensor, k: Any) -> Tensor:
    """bool (B, P): the k places of largest mask."""
    count = torch.as_tensor(k, dtype=torch.float64).reshape(-1, 1)
    if isinstance(k, float):
        count = (count * mask.shape[1]).round().clamp(min=1)
    return mask.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < count


def step_checked(
    backend: Any, start: Problem, k: Any, *, step_size: Any = 0.25, mask_step: Any = 1.0, channels: int = 1,
    projected: bool = False, bounds: Bounds = (0.0, 1.0),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Perturbation, values and mask after the step, compared with the reference."""
    values, mask, grad, x = start
    v, m = values.clone(), mask.clone()
    unchanged = torch.arange(len(v))
    sizes: dict[str, Any] = {"step_size": step_size, "mask_step": mask_step}
    delta: Tensor = backend.sparse_pgd_step(
        v, m, grad, x, k, projected=projected, unchanged=unchanged, channels=channels, bounds=bounds, **sizes
    )
    want, want_v, want_m, _ = reference.sparse_pgd_step(
        values, mask, grad, x, k, projected=projected, channels=channels, bounds=bounds, **sizes
    )
    least = 4 * unit(v.dtype)
    torch.testing.assert_close(v.double(), want_v, rtol=least, atol=least)
    torch.testing.assert_close(m.double(), want_m, rtol=least, atol=least * float(torch.as_tensor(mask_step).max() + 4))
    old, new = chosen(mask, k), chosen(m, k)  # of the very mask: a rounding may decide which of two places is ahead
    by_place = (len(v), channels, m.shape[1])
    assert same_bits(delta, torch.where(new[:, None], v.reshape(by_place), 0).reshape(v.shape))
    assert ((delta.double() - want).abs() > least).sum() <= 2 * channels * len(v)
    assert torch.equal(unchanged, torch.where((old == new).all(1), torch.arange(len(v)) + 1, 0))
    assert_feasible(v, x, math.inf, bounds)
    return delta, v, m


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("projected", [False, True])
def test_equals_reference_at_every_shape(
    backend: Any, shape: tuple[int, ...], dtype: torch.dtype, projected: bool
) -> None:
    start = problem(shape, dtype)
    columns = start[1].shape[1]
    for k in (0, 1, max(1, columns // 20), columns // 2 + 1, columns, columns + 5, 0.3):
        step_checked(backend, start, k, projected=projected)


@pytest.mark.parametrize("shape", [(4, 3, 1), (4, 3, 50), (3, 2, 9, 9), (2, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("projected", [False, True])
def test_pixels(backend: Any, shape: tuple[int, ...], dtype: torch.dtype, projected: bool) -> None:
    channels = shape[1]
    start = problem(shape, dtype, channels)
    for k in (0, 1, 3, 0.4, torch.arange(shape[0])):
        delta, v, _ = step_checked(backend, start, k, channels=channels, projected=projected)
        by_place = (shape[0], channels, -1)
        changed = (delta != 0).reshape(by_place).any(1, keepdim=True)
        assert same_bits(delta, torch.where(changed, v.reshape(by_place), 0).reshape(shape))


@pytest.mark.parametrize("bounds", BOXES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_in_every_box(backend: Any, bounds: Bounds, dtype: torch.dtype) -> None:
    start = problem((5, 100), dtype, 4, bounds)
    step_checked(backend, start, 7, channels=4, bounds=bounds)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_per_row(backend: Any, dtype: torch.dtype) -> None:
    start = problem((5, 60), dtype, 3)
    k, step = torch.tensor([0, 1, 5, 20, 1000]), torch.tensor([0.0, 0.1, 0.5, 1.0, 9.0])
    turn = torch.tensor([3.0, 0.0, 0.5, 9.0, 1e3], dtype=torch.float64)
    delta, v, m = step_checked(backend, start, k, step_size=step, mask_step=turn, channels=3)
    for row in range(5):
        one = slice(row, row + 1)
        alone = [t[one].clone() for t in start]
        got = backend.sparse_pgd_step(
            *alone, int(k[row]), step_size=step[row].item(), mask_step=turn[row].item(), channels=3
        )
        for mine, theirs in ((got, delta), (alone[0], v), (alone[1], m)):
            assert same_bits(mine, theirs[one])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_masks_of_one_sign_and_ties(backend: Any, dtype: torch.dtype, sign: int) -> None:
    """The search among positive masks and among the others; equal ones go by index."""
    values, _, grad, x = problem((3, 200), dtype)
    still = torch.zeros_like(grad)
    mask = sign * (1 + torch.randint(0, 4, (3, 200), generator=generator(5))).to(dtype)
    for k in (1, 30, 100, 199, 200):
        delta = backend.sparse_pgd_step(values.clone(), mask.clone(), still, x, k, step_size=0.0, mask_step=1.0)
        assert torch.equal(delta, torch.where(chosen(mask, k), values, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_gradient_nothing_moves(backend: Any, dtype: torch.dtype) -> None:
    values, mask, grad, x = problem((3, 30), dtype)
    v, m, unchanged = values.clone(), mask.clone(), torch.zeros(3, dtype=torch.int64)
    for step in (1, 2):
        backend.sparse_pgd_step(v, m, torch.zeros_like(grad), x, 5, step_size=0.25, mask_step=1.0, unchanged=unchanged)
        assert same_bits(v, values + 0.0)
        assert same_bits(m, mask)
        assert unchanged.tolist() == [step] * 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_outside_the_box_are_brought_in(backend: Any, dtype: torch.dtype) -> None:
    _, mask, grad, x = problem((3, 30), dtype)
    v = 5 * torch.randn(3, 30, generator=generator(7)).to(dtype)
    step_checked(backend, (v, mask, grad, x), 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e25, 3e37])
def test_gradients_of_every_size(backend: Any, dtype: torch.dtype, size: float) -> None:
    """The mask's step has its length however large or small they are."""
    values, mask, grad, x = problem((3, 30), dtype, 3)
    grad = torch.where(grad.abs() < 0.01, 0.01, grad)
    moved = []
    for scale in (1.0, size):
        m = mask.clone()
        backend.sparse_pgd_step(values.clone(), m, grad * scale, x, 5, step_size=0.25, mask_step=2.0, channels=3)
        moved.append(m)
        length = (m.double() - mask.double()).norm(dim=1)
        torch.testing.assert_close(length, torch.full((3,), 2.0, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_and_masks_of_every_size(backend: Any, dtype: torch.dtype) -> None:
    values, mask, grad, x = problem((3, 30), dtype)
    largest = torch.finfo(dtype).max
    for bounds in ((0.0, 1.0), (-math.inf, math.inf)):
        v, m = values.clone(), mask.clone()
        m[:, 0], m[:, 1] = largest, -largest
        for step in (1e300, 1e308):
            delta = backend.sparse_pgd_step(v, m, grad, x, 5, step_size=step, mask_step=step, bounds=bounds)
            assert bool(v.isfinite().all() & m.isfinite().all() & delta.isfinite().all())
            assert bool(((x + v >= bounds[0]) & (x + v <= bounds[1])).all())
