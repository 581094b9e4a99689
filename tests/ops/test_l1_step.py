"""The steepest L1 step: which coordinates move, how far, and that the projection follows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import BOXES, DTYPES, SHAPES, Bounds, assert_near, assert_step, generator, same_bits, sample
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from sparring import reference

EVERYWHERE: Bounds = (-math.inf, math.inf)


def step_checked(
    backend: Any,
    delta: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    k: int | float | Tensor,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """The answer, after comparison with the reference."""
    v: Tensor = backend.l1_step(delta, grad, x, eps, step_size, k, bounds)
    assert v.shape == delta.shape
    assert v.dtype == delta.dtype
    assert_step(v, delta, grad, x, eps, step_size, k, bounds)
    return v


def inside(x: Tensor, eps: float, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """A feasible perturbation of x that has reached a face in some entries."""
    noise = torch.randn(x.shape, generator=generator(9), dtype=torch.float64)
    return reference.project_l1_box(3 * noise, x, 0.9 * eps, bounds).to(x.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_at_every_shape(backend: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    grad, x = sample(shape, dtype)
    columns = max(1, x[:1].numel())
    eps = 0.05 * columns
    delta = inside(x, eps)
    for k in (1, max(1, columns // 20), columns, 0.3):
        step_checked(backend, delta, grad, x, eps, 0.5 * eps, k)


@pytest.mark.parametrize("bounds", BOXES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_in_every_box(backend: Any, bounds: Bounds, dtype: torch.dtype) -> None:
    grad, x = sample((5, 100), dtype, bounds)
    delta = inside(x, 6.0, bounds)
    for k in (1, 7, 0.5, 1.0):
        step_checked(backend, delta, grad, x, 6.0, 2.0, k, bounds)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_per_row(backend: Any, dtype: torch.dtype) -> None:
    grad, x = sample((5, 60), dtype)
    delta = inside(x, 2.0)
    eps = torch.tensor([0.0, 1.0, 2.0, 3.0, 50.0], dtype=dtype)
    size = torch.tensor([1.0, 0.0, 0.5, 2.0, 9.0], dtype=torch.float64)
    k = torch.tensor([1, 2, 30, 60, 1000])
    v = step_checked(backend, delta, grad, x, eps, size, k)
    assert same_bits(backend.l1_step(delta, grad, x, eps, size, k.int(), (0.0, 1.0)), v)
    for row in range(5):
        one = slice(row, row + 1)
        alone = backend.l1_step(
            delta[one], grad[one], x[one], eps[row].item(), size[row].item(), int(k[row]), (0.0, 1.0)
        )
        assert same_bits(alone, v[one])


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 40), (0.5, 20), (0.3, 12), (0.01, 1), (1e-9, 1)])
def test_fraction_of_the_row(backend: Any, fraction: float, count: int) -> None:
    grad, x = sample((3, 40), torch.float32, EVERYWHERE)
    zero = torch.zeros_like(x)
    by_fraction = backend.l1_step(zero, grad, x, 1e9, 1.0, fraction, EVERYWHERE)
    assert (by_fraction != 0).sum(1).tolist() == [count] * 3
    assert same_bits(by_fraction, backend.l1_step(zero, grad, x, 1e9, 1.0, count, EVERYWHERE))


def test_fraction_per_row(backend: Any) -> None:
    grad, x = sample((4, 40), torch.float32)
    k = torch.tensor([1.0, 0.5, 0.3, 1e-9], dtype=torch.float64)
    v = step_checked(backend, torch.zeros_like(x), grad, x, 2.0, 1.0, k)
    assert same_bits(v, backend.l1_step(torch.zeros_like(x), grad, x, 2.0, 1.0, torch.tensor([40, 20, 12, 1])))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 5, 64, 100, 499, 500])
def test_ties_go_to_the_lowest_index(backend: Any, dtype: torch.dtype, k: int) -> None:
    zero = torch.zeros(2, 500, dtype=dtype)
    sign = torch.where(torch.arange(500) % 3 == 0, -1, 1).to(dtype).expand(2, 500).contiguous()
    v = backend.l1_step(zero, sign, zero, 1e9, float(k), k, EVERYWHERE)
    expected = torch.where(torch.arange(500) < k, sign, 0)
    torch.testing.assert_close(v, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [5, 129, 1000])
def test_selection_with_many_ties_is_the_references(backend: Any, dtype: torch.dtype, columns: int) -> None:
    grad = torch.randint(-3, 4, (4, columns), generator=generator(3)).to(dtype)
    zero = torch.zeros_like(grad)
    for k in (1, columns // 5, columns // 2, columns - 1, columns):
        v = backend.l1_step(zero, grad, zero, 1e9, 1.0, k, EVERYWHERE)
        wanted = reference.l1_step(zero, grad, zero, 1e9, 1.0, k, EVERYWHERE)
        assert torch.equal(v != 0, wanted != 0)
        assert torch.equal(v.sign().double(), wanted.sign())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_has_its_norm(backend: Any, dtype: torch.dtype) -> None:
    grad, x = sample((4, 200), dtype, EVERYWHERE)
    for k in (1, 3, 50, 200):
        v = backend.l1_step(torch.zeros_like(x), grad, x, 1e9, 0.7, k, EVERYWHERE)
        moved = v.double().abs()
        torch.testing.assert_close(moved.sum(1), torch.full((4,), 0.7, dtype=torch.float64), rtol=1e-6, atol=0)
        torch.testing.assert_close(moved.amax(1), torch.full((4,), 0.7 / k, dtype=torch.float64), rtol=1e-6, atol=0)
        assert bool((v * grad >= 0).all()), "the step ascends"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_asked_for_than_can_move(backend: Any, dtype: torch.dtype) -> None:
    grad = torch.tensor([[0.0, 2.0, -0.0, -1.0, 0.0]], dtype=dtype)
    x = torch.full_like(grad, 0.5)
    v = backend.l1_step(torch.zeros_like(x), grad, x, 10.0, 0.5, 4)
    assert v.tolist() == [[0.0, 0.25, 0.0, -0.25, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_can_move(backend: Any, dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5]], dtype=dtype)
    delta = torch.tensor([[0.0, 0.0, 0.5, -0.5]], dtype=dtype)
    outwards = torch.tensor([[-1.0, 2.0, 3.0, -4.0]], dtype=dtype)
    for grad in (outwards, torch.zeros_like(x)):
        assert same_bits(backend.l1_step(delta, grad, x, 10.0, 1.0, 2), delta)
        v = backend.l1_step(delta, grad, x, 0.5, 1.0, 2)
        assert_near(v, torch.tensor([[0.0, 0.0, 0.25, -0.25]]), units=32.0)  # it is still projected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_coordinates_at_a_face_are_passed_over_only_outwards(backend: Any, dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5]], dtype=dtype)
    delta = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0]], dtype=dtype)
    grad = torch.tensor([[-9.0, 8.0, 7.0, -6.0, 5.0, -4.0, 1.0]], dtype=dtype)
    v = backend.l1_step(delta, grad, x, 10.0, 0.75, 3)
    assert v.tolist() == [[0.0, 0.25, 0.0, -0.25, 0.5, 0.25, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_step_is_the_projection(backend: Any, dtype: torch.dtype) -> None:
    grad, x = sample((4, 90), dtype)
    delta, _ = sample((4, 90), dtype, seed=5)
    assert same_bits(backend.l1_step(delta, grad, x, 2.0, 0.0, 5), backend.project_l1_box(delta, x, 2.0))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_scale_of_the_gradient_does_not_matter(backend: Any, scale: float) -> None:
    grad, x = sample((4, 90), torch.float32)
    grad = grad.clamp(min=-2, max=2) + 2 * grad.sign()  # none becomes a subnormal when scaled
    delta = inside(x, 2.0)
    for k in (1, 13):
        step_checked(backend, delta, grad * scale, x, 2.0, 1.0, k)


def test_gradients_next_to_each_other_are_told_apart(backend: Any) -> None:
    grad = torch.full((1, 300), 1.0)
    grad[0, 200] = torch.nextafter(grad[0, 200], torch.tensor(2.0))
    grad[0, 250] = torch.nextafter(grad[0, 250], torch.tensor(0.0))
    grad = torch.cat([grad, grad * 1e-44, -grad])
    zero = torch.zeros_like(grad)
    first = backend.l1_step(zero, grad, zero, 1e9, 1.0, 1, EVERYWHERE).ne(0)
    assert first[0].nonzero().flatten().tolist() == [200]
    assert first[2].nonzero().flatten().tolist() == [200]
    all_but_one = backend.l1_step(zero, grad, zero, 1e9, 1.0, 299, EVERYWHERE).eq(0)
    assert all_but_one[0].nonzero().flatten().tolist() == [250]
    assert torch.equal(all_but_one, reference.l1_step(zero, grad, zero, 1e9, 1.0, 299, EVERYWHERE).eq(0))


GRID = st.integers(-8, 8).map(lambda i: i / 8)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float, float, int, Bounds]:
    """On a grid of eighths, so that faces are met exactly and ties are many."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 40)))
    dtype = draw(st.sampled_from(DTYPES))
    delta, grad = (torch.from_numpy(draw(arrays("float64", shape, elements=GRID))).to(dtype) for _ in range(2))
    x = torch.from_numpy(draw(arrays("float64", shape, elements=GRID))).to(dtype)
    bounds = draw(st.sampled_from([(-1.0, 1.0), EVERYWHERE]))
    eps = draw(st.sampled_from([0.0, 0.5, 2.0, 1000.0]))
    size = draw(st.sampled_from([0.0, 0.25, 1.0, 8.0]))
    return delta, grad, x, eps, size, draw(st.integers(1, 50)), bounds


@given(problem=problems())
def test_property_equals_reference(
    backend: Any, problem: tuple[Tensor, Tensor, Tensor, float, float, int, Bounds]
) -> None:
    step_checked(backend, *problem)


@given(problem=problems())
def test_property_selection_is_the_references(
    backend: Any, problem: tuple[Tensor, Tensor, Tensor, float, float, int, Bounds]
) -> None:
    _, grad, x, _, _, k, bounds = problem
    zero = torch.zeros_like(x)
    v = backend.l1_step(zero, grad, x, 1e9, 1.0, k, bounds)
    assert torch.equal(v != 0, reference.l1_step(zero, grad, x, 1e9, 1.0, k, bounds) != 0)
