"""Balls in three norms: projections, directions, lengths and random points, against what defines them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring import attacks, reference
from sparring.attacks._norms import BALLS, NORMED, Ball, L1Ball, norm_name, slack
from sparring.attacks._problem import Problem, Query

ORDER = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}
DUAL = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}
ROWS, SHAPE = 12, (2, 3, 4)
BOX = (-0.3, 0.9)


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ball(norm: str, eps: float | Tensor = 0.5, dtype: torch.dtype = torch.float64, bounds: Any = BOX) -> Ball:
    inputs = torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    inputs = (bounds[0] + (bounds[1] - bounds[0]) * inputs).to(dtype)
    eps = torch.as_tensor(eps, dtype=torch.float64).expand(ROWS).clone()
    return BALLS[norm](inputs, eps, bounds)


def length(norm: str, delta: Tensor) -> Tensor:
    return torch.linalg.vector_norm(delta.double().flatten(1), ORDER[norm], dim=1)


def nearest(norm: str, ball: Ball, delta: Tensor) -> Tensor:
    """The projection onto ball and box together, by bisection for the multiplier of the ball."""
    low, high = ball.bounds[0] - ball.inputs, ball.bounds[1] - ball.inputs

    def at(multiplier: Tensor) -> Tensor:
        lam = ball.column(multiplier)
        shrunk = {"L2": delta / (1 + lam), "L1": delta.sign() * (delta.abs() - lam).clamp(min=0)}[norm]
        return shrunk.clamp(low, high)

    if norm == "Linf":
        eps = ball.column(ball.eps)
        return delta.clamp(-eps, eps).clamp(low, high)
    small, large = torch.zeros(ROWS).double(), torch.full((ROWS,), 1e6).double()
    for _ in range(200):
        middle = (small + large) / 2
        too_long = length(norm, at(middle)) > ball.eps
        small, large = torch.where(too_long, middle, small), torch.where(too_long, large, middle)
    return torch.where(ball.column(length(norm, at(torch.zeros(ROWS).double())) <= ball.eps), at(0 * small), at(large))


@pytest.mark.parametrize("size", [0.0, 0.05, 0.5, 1.0, 30.0])
@pytest.mark.parametrize("norm", NORMED)
def test_projection(norm: str, size: float) -> None:
    """To the nearest point; in L2, where the box cuts too, to one hardly farther away."""
    eps = torch.linspace(0.0, 2.0, ROWS)
    given = ball(norm, eps)
    delta = draw(1, ROWS, *SHAPE, scale=size)
    before = delta.clone()
    found, wanted = given.project(delta), nearest(norm, given, delta)
    assert torch.equal(delta, before)
    assert bool((length(norm, found) <= given.eps * (1 + 1e-12)).all())
    assert bool(((found >= given.low) & (found <= given.high)).all())
    if norm == "L2":
        away, least = (length("L2", delta - point) for point in (found, wanted))
        assert bool((away <= least * 1.03 + 1e-12).all()), (away / least).max()
        roomy = BALLS["L2"](given.inputs, given.eps, (-100.0, 100.0))
        torch.testing.assert_close(
            roomy.project(delta), delta * given.column((given.eps / length("L2", delta)).clamp(max=1).nan_to_num(1.0))
        )
    else:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(given.project(found), found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMED)
def test_what_is_allowed_is_left_alone(norm: str) -> None:
    given = ball(norm, 0.5)
    delta = given.project(draw(2, ROWS, *SHAPE, scale=0.1)) * 0.9
    torch.testing.assert_close(given.project(delta), delta, rtol=1e-14, atol=1e-15)
    assert torch.equal(given.project(torch.zeros_like(delta)), torch.zeros_like(delta))


@pytest.mark.parametrize("norm", NORMED)
def test_steepest_direction_has_norm_one_and_gains_the_dual_norm(norm: str) -> None:
    given, grad = ball(norm), draw(3, ROWS, *SHAPE)
    grad[0], grad[1] = 0, grad[1] * 1e-170
    direction = given.steepest(grad)
    assert length(norm, direction)[0] == 0
    torch.testing.assert_close(length(norm, direction)[2:], torch.ones(ROWS - 2).double())
    gained = (direction * grad).flatten(1).sum(1)[2:]
    torch.testing.assert_close(gained, torch.linalg.vector_norm(grad.flatten(1), DUAL[norm], dim=1)[2:])
    small = given.steepest((1e-30 * grad).float())  # whose squares are 0 in float32
    torch.testing.assert_close(small[2:].double(), direction[2:], rtol=1e-5, atol=1e-6)
    assert small.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", NORMED)
def test_exact_points_are_within_eps_and_lose_a_rounding_at_most(norm: str, dtype: torch.dtype) -> None:
    given = ball(norm, torch.logspace(-9, 1, ROWS), dtype)
    unit = torch.finfo(dtype).eps
    for seed in range(30):
        delta = given.project(draw(seed, ROWS, *SHAPE, scale=3.0).to(dtype))
        if norm == "L2":  # whose projection may come out too long by rounding
            delta = delta * (1 + unit * (seed % 3))
        points = given.exact_points(delta)
        moved = points.double() - given.inputs.double()
        assert points.dtype is dtype
        assert bool((length(norm, moved) <= given.eps).all())
        assert bool(((points.double() >= BOX[0]) & (points.double() <= BOX[1])).all())
        assert float((points - given.points(delta)).abs().max()) <= 8 * unit * (1 + float(delta.abs().max()))
        assert bool((given.points(delta) == (given.inputs + delta).clamp(*given.bounds)).all())


@pytest.mark.parametrize("norm", NORMED)
def test_lengths_are_measured_in_float64(norm: str) -> None:
    delta = draw(5, ROWS, *SHAPE).float() * 1e-25
    found = ball(norm).length(delta)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, length(norm, delta), rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMED)
def test_rows_and_scaled_balls_are_those_of_the_same_examples(norm: str) -> None:
    given = ball(norm, torch.linspace(0.1, 2.0, ROWS))
    delta = draw(6, ROWS, *SHAPE)
    whole = given.project(delta)
    for keep in (torch.tensor([7, 2, 2]), torch.arange(ROWS) % 3 == 1):
        part = given.rows(keep)
        assert type(part) is type(given)
        torch.testing.assert_close(part.project(delta[keep]), whole[keep], rtol=0, atol=1e-12)
    assert given.scaled(1.0) is given
    twice = given.scaled(2.0)
    assert torch.equal(twice.eps, 2 * given.eps)
    torch.testing.assert_close(twice.project(delta), BALLS[norm](given.inputs, 2 * given.eps, BOX).project(delta))


@pytest.mark.parametrize("norm", NORMED)
def test_random_points_fill_the_ball_and_follow_their_seeds(norm: str) -> None:
    roomy = ball(norm, torch.linspace(0.1, 2.0, ROWS), bounds=(-50.0, 50.0))
    seeds = [*range(100, 100 + ROWS)]
    drawn = roomy.random(seeds)
    assert torch.equal(drawn[3:5], roomy.rows(torch.tensor([3, 4])).random(seeds[3:5]))
    assert not torch.equal(drawn / roomy.column(roomy.eps), roomy.random(seeds[::-1]) / roomy.column(roomy.eps))
    assert bool((length(norm, drawn) <= roomy.eps * (1 + 1e-12)).all())
    assert len({tuple(row.flatten().tolist()) for row in drawn / roomy.column(roomy.eps)}) == ROWS
    share = torch.stack([length(norm, roomy.random(range(ROWS * i, ROWS * i + ROWS))) / roomy.eps for i in range(200)])
    if norm == "L1":  # noise longer than the ball, brought back onto it
        assert bool((share > 1 - 1e-9).all())
    else:  # evenly filled: the length to the power of the dimension is uniform
        filled = share.flatten() ** math.prod(SHAPE)
        grid = torch.linspace(0, 1, 11, dtype=torch.float64)
        assert float(((filled[:, None] <= grid).double().mean(0) - grid).abs().max()) < 0.05
    mean = torch.stack([roomy.random(range(ROWS * i, ROWS * i + ROWS)) for i in range(200)]).mean(0)
    assert float((mean / roomy.column(roomy.eps)).abs().max()) < 0.35
    assert roomy.rows(torch.arange(0)).random([]).shape == (0, *SHAPE)
    narrow = ball(norm, 5.0)
    point = narrow.inputs + narrow.random(seeds)
    assert bool(((point >= BOX[0] - 1e-12) & (point <= BOX[1] + 1e-12)).all())


def test_inputs_and_bounds_are_brought_inside() -> None:
    """The ends of the box are the nearest numbers of the type that are not outside."""
    for low, high in ((0.1, 0.7), (-0.7, -0.1), (-1 / 3, 1 / 3)):
        given = BALLS["Linf"](torch.tensor([[low - 1e-7, high + 1e-7]]), torch.tensor([0.5]).double(), (low, high))
        ends = [float(end) for end in given.bounds]
        assert low <= ends[0] <= low + 4e-8
        assert high - 4e-8 <= ends[1] <= high
        assert given.inputs.tolist() == [ends]
        assert float(torch.tensor(ends[0])) == ends[0]
    assert slack((0.0, 1.0)) == 1e-6
    assert slack((-4.0, 1.0)) == slack((0.0, 4.0)) == 4e-6


@pytest.mark.parametrize("names", [
    (math.inf, "Linf", "linf", "inf", "LINF", "Inf"), (2, 2.0, "L2", "l2"), (1, 1.0, "L1", "l1"),
    (0, 0.0, "L0", "l0"), ("pixels", "Pixels"),
])  # fmt: skip
def test_names_of_norms(names: tuple[Any, ...]) -> None:
    assert len({norm_name(name) for name in names}) == 1
    assert norm_name(names[0]) in BALLS
    assert BALLS[norm_name(names[0])].name == norm_name(names[0])


@pytest.mark.parametrize("norm", [True, False, 3, "l3", "", None, -1, 1.5, "pixel"])
def test_other_norms_are_refused(norm: Any) -> None:
    with pytest.raises(ValueError, match=r"norm is .*; accepted: inf, 2, 1"):
        norm_name(norm)


# -- attacks whose steps are all of one kind


class Line(torch.nn.Module):
    """Three classes whose logits are smooth and not linear in the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(draw(7, 3, math.prod(SHAPE)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.tanh(x.flatten(1) @ self.weight.T) * 2
        return out


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Query]]:
    found: list[tuple[Tensor, Query]] = []
    query = Problem.query

    def noted(self: Problem, delta: Tensor) -> Query:
        found.append((delta.clone(), query(self, delta)))
        return found[-1][1]

    monkeypatch.setattr(Problem, "query", noted)
    return found


ATTACKS: dict[str, tuple[Callable[..., Any], float, int | float | None]] = {
    "Linf": (partial(attacks.pgd, norm=math.inf), 0.25, None),
    "Linf, own step": (partial(attacks.pgd, norm=math.inf, step_size=0.07), 0.07, None),
    "L2": (partial(attacks.pgd, norm=2), 0.25, None),
    "L1": (partial(attacks.pgd, norm=1, k=3), 0.1, 3),
    "L1, a share": (partial(attacks.pgd, norm=1, step_size=0.4, k=0.25), 0.4, 6),
    "slide": (partial(attacks.slide, quantile=0.75), 0.1, 6),
}


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_step_is_along_the_steepest_direction_and_back(
    visited: list[tuple[Tensor, Query]], name: str, random_start: bool
) -> None:
    attack, size, k = ATTACKS[name]
    norm = name.split(",")[0].replace("slide", "L1")
    eps = torch.linspace(0.1, 0.8, ROWS).double()
    given = ball(norm, eps)
    attack(Line(), given.inputs, torch.arange(ROWS) % 3, eps=eps, bounds=BOX, steps=10, random_start=random_start)
    assert len(visited) == 11
    assert bool((visited[0][0] == 0).all()) != random_start
    for (delta, query), (after, _) in pairwise(visited):
        if isinstance(given, L1Ball):
            assert k is not None
            wanted = reference.l1_step(delta, query.grad, given.inputs, eps, size * eps, int(k), given.bounds)
        else:
            wanted = given.project(delta + given.column(size * eps) * given.steepest(query.grad))
        torch.testing.assert_close(after, wanted, rtol=0, atol=1e-12)
