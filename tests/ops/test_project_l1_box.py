"""The projection against the float64 reference, its promises (exact feasibility, optimality), and its extremes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import (
    BOXES,
    DTYPES,
    SHAPES,
    Bounds,
    assert_near,
    assert_projection,
    flat,
    generator,
    same_bits,
    sample,
    smallest,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from sparring import reference


def project_checked(backend: Any, delta: Tensor, x: Tensor, eps: float | Tensor, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """The answer, after it has passed everything that is true of every answer."""
    before = delta.clone(), x.clone()
    v: Tensor = backend.project_l1_box(delta, x, eps, bounds)
    assert v.shape == delta.shape
    assert v.dtype == delta.dtype
    assert same_bits(delta, before[0])
    assert same_bits(x, before[1])
    assert_projection(v, delta, x, eps, bounds)
    return v


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_at_every_shape(backend: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    delta, x = sample(shape, dtype)
    for share in (0.001, 0.1, 0.9):
        project_checked(backend, delta, x, share * flat(delta).abs().sum(1).mean().nan_to_num().item())


@pytest.mark.parametrize("bounds", BOXES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_in_every_box(backend: Any, bounds: Bounds, dtype: torch.dtype) -> None:
    delta, x = sample((5, 100), dtype, bounds, spread=2.0)
    for eps in (0.3, 7.0, 60.0, 1e6):
        project_checked(backend, delta, x, eps, bounds)


def test_bounds_that_float32_cannot_represent(backend: Any) -> None:
    delta, x = sample((5, 100), torch.float32, (-0.1, 0.7))
    project_checked(backend, delta, x, 5.0, (-0.1, 0.7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_radius_per_row(backend: Any, dtype: torch.dtype, kind: torch.dtype) -> None:
    delta, x = sample((6, 50), dtype)
    eps = torch.tensor([0.0, 0.1, 1.0, 3.3, 10.0, 1000.0], dtype=kind)
    v = project_checked(backend, delta, x, eps)
    for row, radius in enumerate(eps.tolist()):
        alone = backend.project_l1_box(delta[row : row + 1], x[row : row + 1], radius)
        assert same_bits(v[row : row + 1], alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_already_inside_come_back_bit_for_bit(backend: Any, dtype: torch.dtype) -> None:
    x = torch.full((4, 64), 0.5, dtype=dtype)
    delta = (torch.randint(-16, 17, (4, 64), generator=generator(0)) / 64).to(dtype)  # all sums exact
    mass = flat(delta).abs().sum(1)
    for eps in ((1 + 1e-6) * mass, 2 * mass, 1e30, math.inf):
        assert same_bits(backend.project_l1_box(delta, x, eps), delta)
    # On the sphere itself an entry may lose a roundoff, to leave room for any order of summation.
    project_checked(backend, delta, x, mass)


@pytest.mark.parametrize("shape", [(8, 60), (64, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_exactly_on_the_sphere(backend: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """What is to be cut off is far below a roundoff of the entries: the search for t must not creep towards it."""
    x = torch.full(shape, 0.5, dtype=dtype)
    for scale in (0.0007, 1 / 3):
        delta = torch.full(shape, scale, dtype=dtype)
        eps = torch.tensor([math.fsum(row) for row in delta.tolist()], dtype=torch.float64)
        project_checked(backend, delta, x, eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projecting_twice_changes_nothing(backend: Any, dtype: torch.dtype) -> None:
    delta, x = sample((8, 300), dtype, spread=3.0)
    for eps in (1e-3, 2.0, 50.0):
        once = project_checked(backend, delta, x, eps)
        assert same_bits(backend.project_l1_box(once, x, eps), once)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaling_by_a_power_of_two_scales_the_answer(backend: Any, dtype: torch.dtype) -> None:
    delta, x = sample((4, 100), dtype)
    v = project_checked(backend, delta, x, 3.0)
    for scale in (2.0**-40, 0.25, 2.0**40):
        scaled = backend.project_l1_box(scale * delta, scale * x, scale * 3.0, (0.0, scale))
        assert same_bits(scaled, scale * v)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exponent", [-20, -10, -3, 0, 3, 7, 10, 20])
def test_magnitude_over_radius_from_1e_20_to_1e20(backend: Any, dtype: torch.dtype, exponent: int) -> None:
    delta, x = sample((4, 50), dtype)
    for unit_of_eps in (1.0, 1e-10):
        project_checked(backend, delta * (10.0**exponent * unit_of_eps), x, unit_of_eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_huge_entries_that_tie_share_the_radius(backend: Any, dtype: torch.dtype) -> None:
    delta = torch.tensor([[1e20, -1e20, 1e20, 1.0, 0.0]], dtype=dtype)
    x = torch.tensor([[0.5, 0.5, 0.9375, 0.5, 0.5]], dtype=dtype)
    v = project_checked(backend, delta, x, 0.75)
    assert_near(v, torch.tensor([[0.34375, -0.34375, 0.0625, 0, 0]]), units=32.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [2.0, 1e2, 1e6, 1e20])
def test_radius_next_to_a_mass_that_many_thresholds_give(backend: Any, dtype: torch.dtype, size: float) -> None:
    """Entries far beyond their caps: |v|_1 is 2, 1.75 or 1.25 over wide ranges of t, and eps is just beside it."""
    x = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.5]], dtype=dtype)
    delta = torch.tensor([[size, -size, 0.9 * size, 0.5 * size, size, 1e-6, 0.0]], dtype=dtype)
    for mass in (2.0, 1.75, 1.25):
        for share in (0.0, 1e-15, 1e-9, 1e-6, 1e-4, 9e-4):
            project_checked(backend, delta, x, mass * (1 - share))
            project_checked(backend, delta, x, mass * (1 + share))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tail", ["cauchy", "lognormal"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-math.inf, math.inf)], ids=str)
def test_heavy_tails(backend: Any, dtype: torch.dtype, tail: str, bounds: Bounds) -> None:
    normal, x = sample((8, 200), torch.float64, bounds)
    sign = normal.sign()
    draw = {
        "cauchy": torch.empty(8, 200, dtype=torch.float64).cauchy_(generator=generator(1)),
        "lognormal": sign * torch.exp(20 * normal.abs()).clamp(max=1e30),
    }[tail]
    for eps in (1e-6, 1.0, 30.0):
        project_checked(backend, draw.to(dtype), x.to(dtype), eps, bounds)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0.0, 0.01, 100.0])
def test_long_rows_that_do_not_go_on_as_they_began(backend: Any, dtype: torch.dtype, start: float) -> None:
    """The threshold is first guessed from a row's beginning."""
    delta, x = sample((3, 17_000), dtype)
    delta[0, :5000] *= start
    delta[1, :12_000] *= start
    for share in (1e-4, 0.05, 0.8):  # in the last, too many entries stay to be copied out
        project_checked(backend, delta, x, share * delta.abs().sum(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", [0, 4095, 4096, 9999])
def test_nan_anywhere_in_a_long_row(backend: Any, dtype: torch.dtype, at: int) -> None:
    delta, x = sample((2, 10_000), dtype)
    delta[1, at] = math.nan
    v = backend.project_l1_box(delta, x, 3.0, check_finite=False)
    assert v[1].isnan().all()
    assert_projection(v[:1], delta[:1], x[:1], 3.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 3, 130, 784])
def test_all_entries_equal(backend: Any, dtype: torch.dtype, columns: int) -> None:
    x = torch.full((2, columns), 0.5, dtype=dtype)
    for value in (0.25, -0.1, 1e10):
        project_checked(backend, torch.full_like(x, value), x, 0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_signed_zeros(backend: Any, dtype: torch.dtype) -> None:
    x = torch.full((2, 9), 0.5, dtype=dtype)
    for zero in (0.0, -0.0):
        for eps in (0.0, 1.0):
            v = backend.project_l1_box(torch.full_like(x, zero), x, eps)
            assert not v.any()
    delta = torch.tensor([[-0.0, 3.0, 0.0, -2.0]], dtype=dtype)
    project_checked(backend, delta, torch.full_like(delta, 0.5), 0.25)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_radius_zero_gives_exactly_zero(backend: Any, dtype: torch.dtype) -> None:
    delta, x = sample((4, 100), dtype, spread=1e3)
    assert not backend.project_l1_box(delta, x, 0.0).any()
    assert not backend.project_l1_box(delta, x, torch.zeros(4, dtype=dtype)).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [1e-38, 1e-42, 1e-300, 5e-324])
def test_tiny_radius(backend: Any, dtype: torch.dtype, eps: float) -> None:
    delta, x = sample((4, 100), dtype)
    project_checked(backend, delta, x, eps)
    project_checked(backend, delta * 1e-38, x, eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subnormal_entries(backend: Any, dtype: torch.dtype) -> None:
    step = smallest(dtype)
    delta = torch.tensor([[step, -3 * step, 40 * step, 0.0, 1000 * step]], dtype=dtype)
    x = torch.full_like(delta, 0.5)
    assert bool(delta[0, 0] != 0)
    for eps in (0.0, step, 7 * step, 1043 * step, 1044 * step):
        project_checked(backend, delta, x, eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_point_on_a_face_moves_inwards_only(backend: Any, dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=dtype)
    delta = torch.tensor([[-0.5, 0.5, 0.5, -0.5]], dtype=dtype)
    v = project_checked(backend, delta, x, 0.5)
    assert_near(v.abs(), torch.tensor([[0.0, 0.25, 0.0, 0.25]]), units=32.0)
    v = project_checked(backend, delta, x, 10.0)
    assert v.tolist() == [[0.0, 0.5, 0.0, -0.5]]


def test_point_outside_the_box_has_no_room_outwards(backend: Any) -> None:
    x = torch.tensor([[-0.25, -0.25, 1.5, 1.5]])
    delta = torch.tensor([[-0.5, 0.5, 0.5, -0.5]])
    assert backend.project_l1_box(delta, x, 10.0).abs().tolist() == [[0.0, 0.5, 0.0, 0.5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_column(backend: Any, dtype: torch.dtype) -> None:
    delta = torch.tensor([[0.5], [-0.5], [3.0], [1e20], [0.1]], dtype=dtype)
    x = torch.tensor([[0.25], [0.25], [0.25], [0.5], [1.0]], dtype=dtype)
    v = project_checked(backend, delta, x, 0.375)
    assert_near(v, torch.tensor([[0.375], [-0.25], [0.375], [0.375], [0.0]]), units=32.0)


NUMBERS = (0.0, -0.0, 0.25, -0.25, 0.5, 1.0, -1.0, 2.0, 1e-40, -1e-38, 1e-10, 1e10, -1e20)
# As float32 has them: NumPy 1 compares a float with a float32 in float64, and Hypothesis looks whether they are equal.
VALUES = st.one_of(st.sampled_from(torch.tensor(NUMBERS).tolist()), st.floats(-4, 4, width=32))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Bounds]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 40)))
    dtype = draw(st.sampled_from(DTYPES))
    bounds = draw(st.sampled_from([*BOXES[:2], *BOXES[3:]]))
    lo, hi = max(bounds[0], -2.0), min(bounds[1], 2.0)
    delta = torch.from_numpy(draw(arrays("float32", shape, elements=VALUES))).to(dtype)
    point = st.one_of(st.sampled_from([lo, hi, (lo + hi) / 2]), st.floats(lo, hi, width=32))
    x = torch.from_numpy(draw(arrays("float32", shape, elements=point))).to(dtype)
    radius = st.one_of(st.sampled_from([0.0, 0.25, 1.0, 1e-38, 1e-12, 1e20]), st.floats(0, 50))
    eps = torch.tensor(draw(st.lists(radius, min_size=shape[0], max_size=shape[0])), dtype=torch.float64)
    if draw(st.booleans()):  # next to all that the box leaves of delta
        eps = draw(st.sampled_from([1 - 1e-3, 1 - 1e-6, 1 - 1e-12, 1.0, 1 + 1e-12, 1 + 1e-6])) * flat(
            reference.project_l1_box(delta, x, math.inf, bounds)
        ).abs().sum(1)
    return delta, x, eps, bounds


@given(problem=problems())
def test_property_feasible_optimal_idempotent(backend: Any, problem: tuple[Tensor, Tensor, Tensor, Bounds]) -> None:
    delta, x, eps, bounds = problem
    v = project_checked(backend, delta, x, eps, bounds)
    assert same_bits(backend.project_l1_box(v, x, eps, bounds), v)
