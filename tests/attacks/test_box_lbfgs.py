"""L-BFGS in a box, many problems at once, on every backend: optimality, dense BFGS, and what a step promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, float32, float64

from sparring.attacks._box_lbfgs import ACCEPTED, CONVERGED, PENALTIES, REJECTED, STUCK, BoxLbfgs

Run = Callable[..., Any]
BOUNDS = (-1.0, 2.0)
SHAPES = [(1, 1), (3, 2), (5, 33), (4, 130), (2, 300)]


class Bowls(NamedTuple):
    """Losses ``-|F (z - a)|^2 / 2`` of rows, which are to rise."""

    factors: Tensor  # (B, n + 2, n)
    tops: Tensor  # (B, n)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients and the losses."""
        off = torch.einsum("bij,bj->bi", self.factors, z - self.tops)
        return -torch.einsum("bij,bi->bj", self.factors, off), -off.square().sum(1) / 2


def bowls(rows: int, n: int, dtype: torch.dtype = float64, seed: int = 0) -> tuple[Tensor, Bowls]:
    """Centres in the box, some at its faces, and losses whose tops are mostly outside."""
    draws = torch.Generator().manual_seed(seed)
    low, high = BOUNDS
    x = (low + (high - low) * torch.rand(rows, n, generator=draws, dtype=float64) * 1.4 - 0.4).clamp(low, high)
    factors = torch.randn(rows, n + 2, n, generator=draws, dtype=float64) / math.sqrt(n)
    tops = 2 * torch.randn(rows, n, generator=draws, dtype=float64)
    return x.to(dtype), Bowls(factors.to(dtype), tops.to(dtype))


def minimise(
    x: Tensor, factors: Tensor, tops: Tensor, weight: Tensor, penalty: str, steps: int = 400, history: int = 8,
    tolerance: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The last points, and what became of the last trials."""
    descent = BoxLbfgs(x, penalty, BOUNDS, history=history, tolerance=tolerance)
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    verdict = none.to(torch.uint8)
    for _ in range(steps):
        grad, loss = Bowls(factors, tops)(descent.trial)
        verdict = descent.accept(weight, grad, loss, loss.new_full((len(x),), -1.0), none)
        descent.advance(weight, verdict != REJECTED)
    return descent.point, verdict


def objective(penalty: str, weight: Tensor, x: Tensor, z: Tensor, loss: Tensor) -> Tensor:
    r = (z - x).double()
    size = {"squared L2": r.square().sum(1), "L2": r.norm(dim=1), "L1": r.abs().sum(1)}[penalty]
    return weight * size - loss.double()


def unmet(penalty: str, weight: Tensor, x: Tensor, z: Tensor, grad: Tensor) -> Tensor:
    """How far from optimal, (B,): the largest entry of the least subgradient that no face of the box balances."""
    r, g = z - x, -grad
    c = weight[:, None]
    if penalty == "L1":
        g = torch.where(r == 0, g.sign() * (g.abs() - c).clamp(min=0), g + c * r.sign())
    elif penalty == "squared L2":
        g = g + 2 * c * r
    else:
        length = r.norm(dim=1, keepdim=True)
        steep = g.norm(dim=1, keepdim=True)
        g = torch.where(length > 0, g + c * r / length, g * (1 - c / steep).clamp(min=0))
    held = ((z <= BOUNDS[0]) & (g > 0)) | ((z >= BOUNDS[1]) & (g < 0))
    return g.masked_fill(held, 0).abs().amax(1)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_minima_meet_the_optimality_conditions(run: Run, shape: tuple[int, int], penalty: str) -> None:
    x, losses = bowls(*shape)
    weight = torch.logspace(-2, 0.5, shape[0], dtype=float64)
    steps = 60 if shape[1] > 100 else 150
    z, _ = run(minimise, x, *losses, weight, penalty, steps=steps)
    assert ((z >= BOUNDS[0]) & (z <= BOUNDS[1])).all()
    grad, _ = losses(z)
    start, _ = losses(x)
    assert (unmet(penalty, weight, x, z, grad) <= 1e-4 * start.abs().amax(1)).all()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_float32_comes_as_near_as_its_rounding_allows(run: Run, penalty: str) -> None:
    x, losses = bowls(4, 40, float32)
    weight = torch.full((4,), 0.3, dtype=float64)
    z, _ = run(minimise, x, *losses, weight, penalty, steps=80)
    exact, _ = run(minimise, x.double(), *(part.double() for part in losses), weight, penalty, steps=150)
    wide = Bowls(*(part.double() for part in losses))
    values = [objective(penalty, weight, x.double(), at.double(), wide(at.double())[1]) for at in (z, exact)]
    assert (values[0] - values[1] <= 1e-5 * values[1].abs()).all()


def dense_direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """``-H g`` with the inverse Hessian of BFGS written out, from ``s.y / y.y`` of the newest pair."""
    identity = torch.eye(len(gradient), dtype=float64)
    s, y = pairs[-1]
    inverse = (s @ y) / (y @ y) * identity
    for s, y in pairs:
        left = identity - torch.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
    return -inverse @ gradient


def walk(x: Tensor, factors: Tensor, tops: Tensor, weight: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
    """Accepted points in order, and the trial after the last, in a box so wide that it does not matter."""
    descent = BoxLbfgs(x, "squared L2", (-1e6, 1e6), history=3, tolerance=0.0)
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    points: list[Tensor] = []
    for _ in range(steps):
        grad, loss = Bowls(factors, tops)(descent.trial)
        verdict = descent.accept(weight, grad, loss, loss.new_full((len(x),), -1.0), none)
        if int(verdict[0]) != REJECTED:
            points.append(descent.point.clone())
        descent.advance(weight, verdict != REJECTED)
    return points, descent.trial


def test_directions_are_those_of_bfgs(run: Run) -> None:
    x, losses = bowls(1, 12)
    weight = torch.tensor([0.2], dtype=float64)
    points, trial = run(walk, x, *losses, weight, steps=6)
    gradients = [2 * weight[:, None] * (z - x) - losses(z)[0] for z in points]
    pairs = [(b - a)[0] for a, b in pairwise(points)]
    changes = [(b - a)[0] for a, b in pairwise(gradients)]
    expected = points[-1][0] + dense_direction(gradients[-1][0], [*zip(pairs, changes, strict=True)][-3:])
    assert len(pairs) >= 4  # more than are remembered
    assert torch.allclose(trial[0], expected, rtol=1e-9, atol=1e-9)


def walk_on(x: Tensor, factors: Tensor, tops: Tensor, weight: float, then: float) -> tuple[Tensor, Tensor]:
    """Accepted points under one weight, and the trial after the last under another."""
    descent = BoxLbfgs(x, "squared L2", (-1e6, 1e6), history=8, tolerance=0.0)
    none = torch.zeros(1, dtype=torch.bool, device=x.device)
    points = []
    while True:
        grad, loss = Bowls(factors, tops)(descent.trial)
        weights = torch.full((1,), weight, dtype=float64, device=x.device)
        verdict = descent.accept(weights, grad, loss, loss.new_full((1,), -1.0), none)
        if int(verdict[0]) != REJECTED:
            points.append(descent.point.clone())
        last = len(points) == 4
        descent.advance(weights * (then / weight if last else 1), verdict != REJECTED)
        if last:
            return torch.cat(points), descent.trial


def test_a_new_weight_keeps_the_pairs_true(run: Run) -> None:
    """The direction is that of pairs gathered under the new weight."""
    x, losses = bowls(1, 12)
    points, trial = run(walk_on, x, *losses, weight=0.2, then=1.4)
    gradients = 2 * 1.4 * (points - x) - torch.cat([losses(z[None])[0] for z in points])
    pairs = [*zip(points.diff(dim=0), gradients.diff(dim=0), strict=True)]
    assert torch.allclose(trial[0], points[-1] + dense_direction(gradients[-1], pairs), rtol=1e-9, atol=1e-9)


class Course(NamedTuple):
    """Verdicts on the answers given, the trials asked for, and the state after the last."""

    verdicts: Tensor
    trials: Tensor
    point: Tensor
    best: Tensor
    best_distance: Tensor
    margin: Tensor


def course(x: Tensor, losses: Tensor, grads: Tensor, margins: Tensor) -> Course:
    """Of one row, without a penalty, for whatever the model answers."""
    descent = BoxLbfgs(x, "squared L2", (-10.0, 10.0), history=2, tolerance=1e-6)
    weight, none = x.new_zeros(1), torch.zeros(1, dtype=torch.bool, device=x.device)
    verdicts, trials = [], [descent.trial.clone()]
    for loss, grad, margin in zip(losses, grads, margins, strict=True):
        verdict = descent.accept(weight, grad[None], loss[None], margin[None], none)
        descent.advance(weight, verdict != REJECTED)
        verdicts.append(verdict)
        trials.append(descent.trial.clone())
    state = (descent.point, descent.best, descent.best_distance, descent.margin)
    return Course(torch.cat(verdicts), torch.cat(trials), *state)


def answers(*given: tuple[float, list[float], float]) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gradients and margins."""
    columns = zip(*given, strict=True)
    losses, grads, margins = (torch.tensor(column, dtype=float64) for column in columns)
    return losses, grads, margins


ORIGIN = torch.zeros(1, 2, dtype=float64)


def test_a_trial_that_does_not_lower_the_objective_goes_back(run: Run) -> None:
    found = run(course, ORIGIN, *answers((0, [1, 0], -1), (-1, [0, 0], -1), (5, [1, 0], 2)))
    assert found.verdicts.tolist() == [ACCEPTED, REJECTED, ACCEPTED]
    step = float(found.trials[1, 0])  # along which the slope is -1; the parabola through both values has its minimum at
    share = max(0.1, min(0.5, step / (2 * (step + 1))))
    assert float(found.trials[2, 0]) == pytest.approx(share * step, rel=1e-12)
    assert torch.equal(found.point, found.trials[2:3])
    assert torch.equal(found.best, found.trials[2:3])
    assert float(found.best_distance[0]) == pytest.approx(float(found.trials[2].square().sum()), rel=1e-12)
    assert float(found.margin[0]) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_answers_that_are_not_finite_are_never_taken(run: Run, bad: float) -> None:
    found = run(course, ORIGIN, *answers((0, [1, 0], -1), (bad, [1, 0], 1), (1, [bad, 0], 1)))
    assert found.verdicts.tolist() == [ACCEPTED, REJECTED, REJECTED]
    assert torch.allclose(found.trials[3], 0.01 * found.trials[1])  # to a tenth, twice
    assert math.isinf(float(found.best_distance[0]))
    assert run(course, ORIGIN, *answers((bad, [1, 0], 1))).verdicts.tolist() == [STUCK]


def test_a_row_without_a_way_down_is_given_up(run: Run) -> None:
    found = run(course, ORIGIN, *answers((0, [1, 0], -1), *[(-1, [1, 0], -1)] * 13))
    assert found.verdicts.tolist() == [ACCEPTED, *[REJECTED] * 12, STUCK]


def test_where_nothing_can_fall_the_trial_stays_and_converges(run: Run) -> None:
    at_faces = torch.tensor([[10.0, -10.0]], dtype=float64)
    found = run(course, at_faces, *answers((0, [1, -1], -1), (0, [1, -1], -1)))
    assert found.verdicts.tolist() == [ACCEPTED, CONVERGED]
    assert torch.equal(found.trials, at_faces.expand(3, 2))


def frozen_row(x: Tensor, factors: Tensor, tops: Tensor) -> tuple[Tensor, Tensor]:
    descent = BoxLbfgs(x, "squared L2", BOUNDS, history=4, tolerance=0.0)
    weight = torch.full((len(x),), 0.1, dtype=float64, device=x.device)
    frozen = torch.tensor([False, True], device=x.device)
    kept = []
    for step in range(4):
        grad, loss = Bowls(factors, tops)(descent.trial)
        verdict = descent.accept(weight, grad, loss, loss.new_full((2,), 1.0), frozen if step > 1 else frozen & False)
        descent.advance(weight, (verdict != REJECTED) & ~(frozen if step > 0 else frozen & False))
        state = (descent.trial, descent.point, descent.best, descent.best_distance[:, None], descent.margin[:, None])
        kept.append(torch.cat([part.to(float64) for part in state], 1))
    return torch.stack(kept), verdict


def test_frozen_rows_stay_as_they_are(run: Run) -> None:
    x, losses = bowls(2, 7)
    states, verdict = run(frozen_row, x, *losses)
    assert int(verdict[1]) == REJECTED
    assert torch.equal(states[1, 1], states[3, 1])
    assert not torch.equal(states[1, 0], states[3, 0])


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_row_does_not_depend_on_others_nor_on_threads(penalty: str) -> None:
    x, losses = bowls(64, 50, float32)
    weight = torch.full((64,), 0.2, dtype=float64)

    def by_rows(rows: slice) -> Tensor:
        """The loss of each row computed on its own, so that the model's rounding is the same."""
        descent = BoxLbfgs(x[rows].clone(), penalty, BOUNDS, history=5, tolerance=1e-6)
        none = torch.zeros(len(descent.x), dtype=torch.bool)
        for _ in range(25):
            found = [
                Bowls(losses.factors[rows][i : i + 1], losses.tops[rows][i : i + 1])(descent.trial[i : i + 1])
                for i in range(len(none))
            ]
            grad, loss = torch.cat([g for g, _ in found]), torch.cat([v for _, v in found])
            verdict = descent.accept(weight[rows], grad, loss, loss.new_full((len(none),), -1.0), none)
            descent.advance(weight[rows], verdict != REJECTED)
        return descent.point

    threads = torch.get_num_threads()
    whole = by_rows(slice(0, 64))
    try:
        torch.set_num_threads(1)
        assert torch.equal(by_rows(slice(0, 64)), whole)
        assert torch.equal(by_rows(slice(7, 9)), whole[7:9])
    finally:
        torch.set_num_threads(threads)
