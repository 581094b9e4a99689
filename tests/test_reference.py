"""The oracle itself: against exact rational arithmetic, a general-purpose optimiser, and torch's Adam."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from sparring.reference import l1_step, project_l0_box, project_l1_box, recovery_step

Row = list[float]


def exact_projection(delta: Row, x: Row, eps: float, lo: float, hi: float) -> list[Fraction]:
    """In rationals: the mass is evaluated from its definition at every kink, and is linear between two of them."""
    rooms = [Fraction(hi) - Fraction(p) if d > 0 else Fraction(p) - Fraction(lo) for d, p in zip(delta, x, strict=True)]
    rooms = [max(room, Fraction(0)) for room in rooms]
    sizes = [abs(Fraction(d)) for d in delta]

    def kept(t: Fraction) -> list[Fraction]:
        return [min(max(m - t, Fraction(0)), room) for m, room in zip(sizes, rooms, strict=True)]

    kinks = {Fraction(0), *sizes, *(m - room for m, room in zip(sizes, rooms, strict=True))}
    left, *others = sorted(kink for kink in kinks if kink >= 0)
    t = left
    if sum(kept(left)) > Fraction(eps):
        for right in others:
            above, below = sum(kept(left)), sum(kept(right))
            if below <= Fraction(eps):
                t = left + (right - left) * (above - Fraction(eps)) / (above - below)
                break
            left = right
    return [v if d > 0 else -v for v, d in zip(kept(t), delta, strict=True)]


def assert_equals_exact(delta: Row, x: Row, eps: float, lo: float, hi: float) -> None:
    v = project_l1_box(torch.tensor([delta]).double(), torch.tensor([x]).double(), eps, (lo, hi))[0].tolist()
    exact = exact_projection(delta, x, eps, lo, hi)
    # A few roundings of the largest entry, one for each of the sums it went through.
    slack = (8 + len(x)) * 2.0**-53 * float(max(map(abs, exact))) + 5e-324
    for mine, truth in zip(v, exact, strict=True):
        assert abs(Fraction(mine) - truth) <= Fraction(slack)


NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 1e-12, 1e10, -1e10, 1e20, -1e20, 1e20, 1e-30]),
    st.floats(-3, 3, width=32),
)


@given(data=st.data(), columns=st.integers(1, 6))
def test_projection_equals_exact_arithmetic(data: st.DataObject, columns: int) -> None:
    delta = [float(np.float32(d)) for d in data.draw(st.lists(NUMBERS, min_size=columns, max_size=columns))]
    x = data.draw(st.lists(st.floats(0, 1, width=32), min_size=columns, max_size=columns))
    eps = data.draw(st.one_of(st.sampled_from([0.0, 1e-20, 1e-3, 0.5, 1e10]), st.floats(0, 6)))
    assert_equals_exact(delta, x, eps, *data.draw(st.sampled_from([(0.0, 1.0), (-1.0, 2.0), (-1e30, 1e30)])))


@pytest.mark.parametrize("ratio", [10.0**e for e in range(-20, 21, 5)])
def test_projection_at_any_ratio_of_magnitude_to_radius(ratio: float) -> None:
    delta = [ratio * d for d in (1.0, -1.0, 0.75, 0.5, 0.999999)]
    for eps in (1.0, 1e-10):
        scaled = [eps * d for d in delta]
        assert_equals_exact([float(np.float32(d)) for d in scaled], [0.5, 0.25, 0.0, 1.0, 0.5], eps, 0.0, 1.0)


def test_projection_is_the_nearest_feasible_point() -> None:
    """Against a quadratic programme in v = p - q, which knows nothing of thresholds."""
    rng = np.random.default_rng(0)
    for eps in (0.3, 1.0, 2.5):
        delta, x = rng.normal(size=6), rng.uniform(size=6)
        solution = minimize(
            lambda z, d=delta: 0.5 * np.sum((z[:6] - z[6:] - d) ** 2),
            np.zeros(12),
            jac=lambda z, d=delta: np.concatenate([z[:6] - z[6:] - d, d - z[:6] + z[6:]]),
            bounds=[*((0, 1 - p) for p in x), *((0, p) for p in x)],
            constraints={"type": "ineq", "fun": lambda z, e=eps: e - z.sum(), "jac": lambda z: -np.ones(12)},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        v = project_l1_box(torch.from_numpy(delta)[None], torch.from_numpy(x)[None], eps)[0].numpy()
        np.testing.assert_allclose(v, solution.x[:6] - solution.x[6:], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
def test_sparse_projection_is_the_nearest_feasible_point(channels: int) -> None:
    """Against all choices of places."""
    rng = torch.Generator().manual_seed(0)
    places = 6 // channels
    for k in range(places + 1):
        delta, x = torch.randn(20, 6, generator=rng).double(), torch.rand(20, 6, generator=rng).double()
        v = project_l0_box(delta, x, k, channels=channels)
        clipped = (x + delta).clamp(0, 1) - x
        best = torch.full((20,), math.inf, dtype=torch.float64)
        for chosen in itertools.combinations(range(places), k):
            kept = torch.zeros(channels, places, dtype=torch.float64)
            kept[:, list(chosen)] = 1
            best = best.minimum((clipped * kept.flatten() - delta).square().sum(1))
        torch.testing.assert_close((v - delta).square().sum(1), best)
        assert bool(((v.reshape(20, channels, places) != 0).any(1).sum(1) <= k).all())


def test_projection_of_rows_independent_of_each_other() -> None:
    rng = torch.Generator().manual_seed(0)
    delta, x = torch.randn(5, 2, 3, generator=rng), torch.rand(5, 2, 3, generator=rng)
    eps = torch.tensor([0.0, 0.1, 1.0, 2.0, 50.0])
    v = project_l1_box(delta, x, eps)
    assert v.shape == delta.shape
    assert v.dtype == torch.float64
    for row in range(5):
        one = slice(row, row + 1)
        assert torch.equal(v[one], project_l1_box(delta[one], x[one], eps[row].item()))
    assert project_l1_box(delta[:0], x[:0], 1.0).shape == (0, 2, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite(value: float) -> None:
    good = torch.full((3, 4), 0.5)
    for position in range(3):
        arrays = [good.clone() for _ in range(3)]
        arrays[position][1, 2] = value
        delta, grad, x = arrays
        results = [l1_step(delta, grad, x, 1.0, 0.5, 2)]
        if position != 1:
            results += [project_l1_box(delta, x, 1.0), project_l0_box(delta, x, 2)]
        for v in results:
            assert v.isnan().all(1).tolist() == [False, True, False]
            assert v.isnan().any(1).tolist() == [False, True, False]


def plain_step(delta: Row, grad: Row, x: Row, size: float, k: int, lo: float, hi: float) -> Row:
    """The step before the projection, one coordinate at a time."""
    free = [
        i
        for i in range(len(x))
        if grad[i] != 0 and not (grad[i] > 0 and x[i] + delta[i] >= hi) and not (grad[i] < 0 and x[i] + delta[i] <= lo)
    ]
    chosen = sorted(free, key=lambda i: (-abs(grad[i]), i))[:k]
    return [d + (math.copysign(size / len(chosen), grad[i]) if i in chosen else 0.0) for i, d in enumerate(delta)]


@given(data=st.data(), columns=st.integers(1, 12), k=st.integers(1, 14))
def test_step_moves_the_right_coordinates(data: st.DataObject, columns: int, k: int) -> None:
    grid = st.lists(st.integers(-4, 4).map(lambda i: i / 4), min_size=columns, max_size=columns)
    delta, grad, x = data.draw(grid), data.draw(grid), [abs(p) for p in data.draw(grid)]
    tensors = [torch.tensor([row], dtype=torch.float64) for row in (delta, grad, x)]
    v = l1_step(*tensors, 2.0, 1.5, k)
    stepped = torch.tensor([plain_step(delta, grad, x, 1.5, k, 0.0, 1.0)], dtype=torch.float64)
    torch.testing.assert_close(v, project_l1_box(stepped, tensors[2], 2.0), rtol=1e-14, atol=1e-15)


def test_step_by_a_fraction_and_by_a_number_per_row() -> None:
    grad = torch.arange(1.0, 11.0).repeat(3, 1)
    zero = torch.zeros(3, 10)
    everywhere = (-math.inf, math.inf)
    assert (l1_step(zero, grad, zero, 9.0, 1.0, 0.3, everywhere) != 0).sum(1).tolist() == [3, 3, 3]
    assert (l1_step(zero, grad, zero, 9.0, 1.0, 0.01, everywhere) != 0).sum(1).tolist() == [1, 1, 1]
    v = l1_step(zero, grad, zero, 9.0, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2, 20]), everywhere)
    assert (v != 0).sum(1).tolist() == [1, 2, 10]
    torch.testing.assert_close(v.sum(1), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


def test_adam_with_a_subgradient_is_torchs() -> None:
    rng = torch.Generator().manual_seed(0)
    image, target = (torch.rand(3, 20, generator=rng, dtype=torch.float64) for _ in range(2))
    theirs = image.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.05, eps=1e-4)
    first: Tensor | None = torch.zeros_like(image)
    second: Tensor | None = torch.zeros_like(image)
    for step in range(1, 21):
        adam.zero_grad()
        (0.5 * (theirs - target).square().sum() + 0.3 * (theirs - 0.25).abs().sum() / 20).backward()
        adam.step()
        with torch.no_grad():
            theirs.clamp_(0, 1)
        image, first, second = recovery_step(
            image, image - target, lr=0.05, lam=0.3, black=0.25, exp_avg=first, exp_avg_sq=second, step=step
        )
    torch.testing.assert_close(image, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("adam", [False, True], ids=["plain", "adam"])
def test_soft_threshold_minimises_its_objective(adam: bool) -> None:
    """z minimises |z - u|^2 / (2 rate) + lam/D |z - black|, u the step without a penalty: no nearby z is better."""
    rng = torch.Generator().manual_seed(1)
    image, grad = (torch.randn(2, 30, generator=rng, dtype=torch.float64) for _ in range(2))
    moments: dict[str, Any] = {"exp_avg": grad * 0, "exp_avg_sq": grad * 0} if adam else {}
    shared = {"lr": 0.3, "bounds": (-math.inf, math.inf), "black": 0.1, "penalty": "prox", **moments}
    weight = 20.0 / 30
    u = recovery_step(image, grad, lam=0.0, **shared)[0]
    z, _, second = recovery_step(image, grad, lam=20.0, **shared)
    rate = torch.tensor(0.3) if second is None else 0.3 / ((second / (1 - 0.999)).sqrt() + 1e-4)

    def objective(at: Tensor) -> Tensor:
        return (at - u).square() / (2 * rate) + weight * (at - 0.1).abs()

    assert bool((z == 0.1).any())
    assert not bool((z == 0.1).all())
    for shift in (1e-4, 0.01, 0.3):
        assert bool((objective(z) <= objective(z + shift) + 1e-12).all())
        assert bool((objective(z) <= objective(z - shift) + 1e-12).all())
    assert bool((objective(z) <= objective(torch.full_like(z, 0.1)) + 1e-12).all())


def test_mask_frozen_floor_and_bounds() -> None:
    image = torch.tensor([[0.5, 0.05, 0.9, 0.3], [0.5, 0.05, 0.9, 0.3], [2.0, 0.05, 0.9, math.nan]])
    grad = torch.tensor([[0.0, 0.0, -9.0, 9.0]] * 3)
    mask = torch.tensor([False, True, True, True])
    frozen = torch.tensor([False, True, False])
    moments = torch.ones(3, 4), torch.ones(3, 4)
    new, first, second = recovery_step(
        image, grad, lr=0.1, lam=0.0, floor=0.1, mask=mask, frozen=frozen, exp_avg=None, exp_avg_sq=None
    )
    assert new[0].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert torch.equal(new[1], image[1].double())
    assert new[2].tolist()[:3] == image[2].double().tolist()[:3]
    assert bool(new[2, 3].isnan())
    assert first is None
    assert second is None
    _, first, second = recovery_step(
        image, grad, lr=0.1, lam=0.0, mask=mask, frozen=frozen, exp_avg=moments[0], exp_avg_sq=moments[1]
    )
    assert first is not None
    assert second is not None
    assert (first == 1).tolist() == [[True, False, False, False], [True] * 4, [True] * 4]
    assert (second == 1).tolist() == [[True, False, False, False], [True] * 4, [True] * 4]
