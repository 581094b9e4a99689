"""The sparse projection against the float64 reference: which places are kept, and that the box is never left."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import BOXES, DTYPES, SHAPES, Bounds, assert_sparse_projection, generator, same_bits, sample, smallest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor


def project_checked(
    backend: Any,
    delta: Tensor,
    x: Tensor,
    k: int | float | Tensor,
    bounds: Bounds = (0.0, 1.0),
    channels: int = 1,
) -> Tensor:
    """The answer, after comparison with the reference."""
    before = delta.clone(), x.clone()
    v: Tensor = backend.project_l0_box(delta, x, k, bounds, channels=channels)
    assert v.shape == delta.shape
    assert v.dtype == delta.dtype
    assert same_bits(delta, before[0])
    assert same_bits(x, before[1])
    assert_sparse_projection(v, delta, x, k, bounds, channels)
    return v


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_at_every_shape(backend: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    delta, x = sample(shape, dtype)
    columns = x[:1].numel() if len(x) else 7
    for k in (0, 1, max(1, columns // 20), columns - 1, columns, columns + 5, 0.3):
        project_checked(backend, delta, x, k)


@pytest.mark.parametrize("shape", [(4, 3, 1), (4, 3, 50), (3, 2, 9, 9), (2, 40), (2, 3, 20000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pixels_are_kept_whole(backend: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    delta, x = sample(shape, dtype)
    channels = shape[1]
    places = delta[:1].numel() // channels
    for k in (0, 1, max(1, places // 10), places, 0.4):
        v = project_checked(backend, delta, x, k, channels=channels).reshape(shape[0], channels, places)
        count = max(1, round(k * places)) if isinstance(k, float) else min(k, places)
        assert bool(((v != 0).any(1).sum(1) <= count).all())


@pytest.mark.parametrize("bounds", BOXES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_in_every_box(backend: Any, bounds: Bounds, dtype: torch.dtype) -> None:
    delta, x = sample((5, 100), dtype, bounds, spread=2.0)
    for k in (1, 7, 0.5, 100):
        project_checked(backend, delta, x, k, bounds)
        project_checked(backend, delta, x, k, bounds, channels=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_and_shares_per_row(backend: Any, dtype: torch.dtype) -> None:
    delta, x = sample((5, 60), dtype)
    k = torch.tensor([0, 1, 20, 60, 1000])
    v = project_checked(backend, delta, x, k, channels=3)
    assert same_bits(backend.project_l0_box(delta, x, k.int(), channels=3), v)
    for row in range(5):
        one = slice(row, row + 1)
        assert same_bits(backend.project_l0_box(delta[one], x[one], int(k[row]), channels=3), v[one])
    share = torch.tensor([1e-9, 0.05, 0.5, 0.99, 1.0], dtype=torch.float64)
    by_share = project_checked(backend, delta, x, share, channels=3)
    assert same_bits(by_share, backend.project_l0_box(delta, x, torch.tensor([1, 1, 10, 20, 20]), channels=3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [0, 1, 2, 5, 64, 100, 499, 500])
def test_ties_go_to_the_lowest_index(backend: Any, dtype: torch.dtype, k: int) -> None:
    x = torch.full((2, 500), 0.5, dtype=dtype)
    delta = torch.where(torch.arange(500) % 3 == 0, -0.25, 0.25).to(dtype).expand(2, 500).contiguous()
    v = project_checked(backend, delta, x, k)
    assert torch.equal(v, torch.where(torch.arange(500) < k, delta, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [6, 130, 1000])
def test_many_ties(backend: Any, dtype: torch.dtype, columns: int) -> None:
    rng = generator(3)
    delta = (torch.randint(-3, 4, (4, columns), generator=rng) / 8).to(dtype)
    x = (torch.randint(0, 5, (4, columns), generator=rng) / 4).to(dtype)
    for k in (1, columns // 5, columns // 2, columns - 1, columns):
        project_checked(backend, delta, x, k)
        project_checked(backend, delta, x, k, channels=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_the_box_cuts_off_does_not_count(backend: Any, dtype: torch.dtype) -> None:
    """A large entry with no room brings less than a small one that can be kept; one outside has no room at all."""
    x = torch.tensor([[1.0, 0.5, 0.875, 0.5, 1.5, -0.5]], dtype=dtype)
    delta = torch.tensor([[9.0, 0.25, 1.0, -0.125, 4.0, -4.0]], dtype=dtype)
    assert project_checked(backend, delta, x, 1).tolist() == [[0, 0, 0.125, 0, 0, 0]]
    assert project_checked(backend, delta, x, 2).tolist() == [[0, 0.25, 0.125, 0, 0, 0]]
    assert project_checked(backend, delta, x, 6).tolist() == [[0, 0.25, 0.125, -0.125, 0, 0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gains_closer_than_a_roundoff_of_the_type(backend: Any, dtype: torch.dtype) -> None:
    """Gains of float32 numbers are told apart exactly: next to 1, m (2 - m) is flat."""
    eps = torch.finfo(torch.float32).eps
    x = torch.full((1, 5), 0.5, dtype=dtype)
    delta = torch.tensor([[0.25, 0.25 + eps, 0.25, 0.25 + 2 * eps, 0.25 + eps]], dtype=dtype)
    for k in range(6):
        v = project_checked(backend, delta, x, k)
        assert (v != 0).nonzero()[:, 1].tolist() == sorted([3, 1, 4, 0, 2][:k])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exponent", [-40, -30, -20, 0, 20, 37])
def test_every_size(backend: Any, dtype: torch.dtype, exponent: int) -> None:
    delta, x = sample((4, 50), dtype)
    for bounds in ((0.0, 1.0), (-math.inf, math.inf)):
        project_checked(backend, delta * 10.0**exponent, x, 5, bounds, channels=2)


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e-160, 1e150, 1e160, 1e300])
def test_sizes_whose_squares_float64_does_not_have(backend: Any, size: float) -> None:
    everywhere = (-math.inf, math.inf)
    delta, x = sample((4, 50), torch.float64)
    v = project_checked(backend, delta * size, torch.zeros_like(x), 5, everywhere)
    assert (v != 0).sum(1).tolist() == [5] * 4
    mixed = torch.tensor([[1e300, 0.0, 1e-300, -1e-10, 1e290]], dtype=torch.float64)
    zero = torch.zeros_like(mixed)
    for k, kept in ((1, [0]), (2, [0, 4]), (4, [0, 2, 3, 4]), (5, [0, 2, 3, 4])):
        v = backend.project_l0_box(mixed, zero, k, everywhere)
        assert (v != 0).nonzero()[:, 1].tolist() == kept


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subnormal_entries(backend: Any, dtype: torch.dtype) -> None:
    step = smallest(dtype)
    delta = torch.tensor([[step, -3 * step, 40 * step, 0.0, 1000 * step]], dtype=dtype)
    v = backend.project_l0_box(delta, torch.full_like(delta, 0.5), 3)
    assert v.tolist() == [[0.0, *delta[0, 1:].tolist()]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_signed_zeros(backend: Any, dtype: torch.dtype) -> None:
    for zero in (0.0, -0.0):
        delta = torch.full((2, 9), zero, dtype=dtype)
        assert same_bits(backend.project_l0_box(delta, torch.full_like(delta, 0.5), 3), torch.zeros_like(delta))
    delta, x = sample((3, 20), dtype)
    assert same_bits(backend.project_l0_box(delta, x, 0), torch.zeros_like(delta))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projecting_twice_changes_nothing(backend: Any, dtype: torch.dtype) -> None:
    delta, x = sample((8, 300), dtype, spread=3.0)
    for k in (1, 20, 300):
        once = project_checked(backend, delta, x, k, channels=3)
        assert same_bits(backend.project_l0_box(once, x, k, channels=3), once)


VALUES = st.one_of(st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, 1.0, -1.0, 2.0]), st.floats(-4, 4, width=32))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Bounds, int]:
    channels = draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 4)), channels * draw(st.integers(1, 15)))
    dtype = draw(st.sampled_from(DTYPES))
    bounds = draw(st.sampled_from(BOXES))
    lo, hi = max(bounds[0], -2.0), min(bounds[1], 2.0)
    lo, hi = torch.tensor([lo, hi]).tolist()
    delta = torch.from_numpy(draw(arrays("float32", shape, elements=VALUES))).to(dtype)
    point = st.one_of(st.sampled_from([lo, hi]), st.floats(lo, hi, width=32))
    x = torch.from_numpy(draw(arrays("float32", shape, elements=point))).to(dtype)
    k = torch.tensor(draw(st.lists(st.integers(0, 20), min_size=shape[0], max_size=shape[0])))
    return delta, x, k, bounds, channels


@given(problem=problems())
def test_anything(backend: Any, problem: tuple[Tensor, Tensor, Tensor, Bounds, int]) -> None:
    project_checked(backend, *problem)
