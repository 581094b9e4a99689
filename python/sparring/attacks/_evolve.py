"""Differential evolution of many independent problems at once, each with its own population and random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Strategy = Literal["rand1bin", "best1bin", "currenttobest1bin"]

# Problems (b,), their candidates (b, P, D) -> cost (b, P), and which candidates have reached the goal, bool (b, P).
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evolution:
    """What `evolve` found, one entry per problem.

    Attributes
    ----------
    best
        (B, D), the best candidate: one that reached the goal if any did, and among those the one of least cost.
    cost
        (B,), its cost.
    reached
        bool (B,), whether it reached the goal.
    generations
        int64 (B,), the generation in which it was first reached, 0 being the initial one; the whole budget where it
        was not.
    """

    best: Tensor
    cost: Tensor
    reached: Tensor
    generations: Tensor


def evolve(
    objective: Objective,
    low: Tensor,
    high: Tensor,
    *,
    population: int = 64,
    generations: int = 100,
    strategy: Strategy = "best1bin",
    mutation: float | tuple[float, float] = (0.5, 1.0),
    recombination: float = 0.7,
    early_stop: bool = True,
    seeds: Sequence[int] | None = None,
) -> Evolution:
    """Minimise B functions of D numbers by differential evolution, without derivatives.

    In every generation each candidate meets one trial and gives way to it unless the trial is worse; a candidate that
    reached the goal is better than any that did not, and of two alike the one of lower cost. The trial is a mutant,
    from which the candidate keeps every number with probability ``1 - recombination`` (but for one, at random).

    Each problem has its own random numbers: its path depends neither on the other problems nor on how many there are,
    if its costs do not.

    Parameters
    ----------
    objective
        ``objective(problems, candidates)``: problems, int64 (b,), and candidates (b, P, D) -> cost (b, P), NaN being
        worst, and bool (b, P): which candidates have reached the goal.
    low, high
        (B, D): the box that is searched. A mutant outside is reflected at the side that it passed.
    population
        P, candidates of each problem, at least 4. The first ones are a Latin hypercube sample of the box.
    generations
        How many follow the first.
    strategy
        How a mutant is made, with F the mutation, and a, b, c different candidates at random other than the one it
        meets: "rand1bin" is a + F (b - c), "best1bin" is best + F (a - b), and "currenttobest1bin" is
        current + F (best - current) + F (a - b).
    mutation
        F in [0, 2], or (least, most) to draw it anew for each problem and generation.
    recombination
        CR in [0, 1].
    early_stop
        Stop working on a problem when a candidate has reached the goal.
    seeds
        Of each problem's random numbers, B integers; None: 0 to B - 1.

    Raises
    ------
    ValueError
        If an argument is out of range; the message names it.

    Notes
    -----
    Storn & Price 1997; the strategies, the drawn F and the names of the parameters are those of
    ``scipy.optimize.differential_evolution`` with ``updating="deferred"``, which solves one problem at a time.
    """
    _check_box(low, high)
    check(population, generations, strategy, mutation, recombination)
    least, most = mutation if isinstance(mutation, tuple) else (mutation, mutation)
    batch, size = low.shape
    if seeds is not None and len(seeds) != batch:
        raise ValueError(f"seeds must be {batch}, one for each problem; got {len(seeds)}")
    going = torch.arange(batch, device=low.device)  # the problems still worked on; rows of all that follows
    streams = [torch.Generator("cpu").manual_seed(int(seed)) for seed in (range(batch) if seeds is None else seeds)]

    u = _draw(streams, population, 2 * size).to(low)
    order = u[..., :size].argsort(dim=1, stable=True)
    members = low[:, None] + (high - low)[:, None] * ((order + u[..., size:]) / population)
    cost, reached = _judge(objective, going, members)
    found = Evolution(low.clone(), torch.full_like(low[:, 0], math.inf), going < 0, torch.full_like(going, generations))

    for generation in range(generations + 1):
        row = torch.arange(len(going), device=low.device)
        best = _best(cost, reached)
        # Written each time: what a problem has when it stops, early or not, is what it returns.
        done = reached[row, best]
        found.generations[going[done & ~found.reached[going]]] = generation
        found.best[going], found.cost[going], found.reached[going] = members[row, best], cost[row, best], done
        if early_stop and bool(done.any()):
            stay = ~done
            going, row, best = going[stay], row[: int(stay.sum())], best[stay]
            members, cost, reached = members[stay], cost[stay], reached[stay]
            streams = [stream for stream, stays in zip(streams, stay.tolist(), strict=True) if stays]
        if generation == generations or len(going) == 0:
            break

        u = _draw(streams, population, size + 5).to(low)
        scale = least + (most - least) * u[:, :1, :1]
        a, b, c = (members[row[:, None], others] for others in _three_others(u[..., 1:4]))
        champion = members[row, best][:, None]
        if strategy == "rand1bin":
            mutant = a + scale * (b - c)
        elif strategy == "best1bin":
            mutant = champion + scale * (a - b)
        else:
            mutant = members + scale * (champion - members) + scale * (a - b)
        crossed = u[..., 5:] < recombination
        crossed.scatter_(2, _integer(u[..., 4:5], size), True)
        trial = torch.where(crossed, _reflect(mutant, low[going, None], high[going, None]), members)

        trial_cost, trial_reached = _judge(objective, going, trial)
        wins = torch.where(trial_reached == reached, trial_cost <= cost, trial_reached)
        members = torch.where(wins[..., None], trial, members)
        cost, reached = torch.where(wins, trial_cost, cost), torch.where(wins, trial_reached, reached)
    return found


def _draw(streams: list[torch.Generator], *shape: int) -> Tensor:
    """Uniform in [0, 1), (problems, *shape), each problem's from its own stream."""
    u = torch.empty(len(streams), *shape, dtype=torch.float32, device="cpu")
    for out, stream in zip(u, streams, strict=True):
        torch.rand(shape, generator=stream, dtype=torch.float32, device="cpu", out=out)
    return u


def _judge(objective: Objective, problems: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    if len(problems) == 0:
        return members[..., 0], members[..., 0] > 0
    cost, reached = objective(problems, members)
    return cost.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf), reached


def _best(cost: Tensor, reached: Tensor) -> Tensor:
    """Index of the best member, the first if several are; (b, P) -> (b,)."""
    return torch.where(reached == reached.any(1, keepdim=True), cost, math.inf).argmin(1)


def _integer(u: Tensor, count: int) -> Tensor:
    """Integers below `count` from numbers in [0, 1); the clamp catches what rounds up to it."""
    return (u * count).long().clamp(max=count - 1)


def _three_others(u: Tensor) -> list[Tensor]:
    """For each member three different others, from (b, P, 3) numbers in [0, 1): three times (b, P)."""
    count = u.shape[1]
    taken = [torch.arange(count, device=u.device).expand(u.shape[:2])]
    for j in range(3):
        other = _integer(u[..., j], count - len(taken))  # among those not taken, in their order
        for before in torch.stack(taken).sort(0).values:
            other = other + (other >= before)
        taken.append(other)
    return taken[1:]


def _reflect(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mirror what is outside at the side of the box that it passed; one that is still outside goes to that side."""
    return (high - (high - (low + (x - low).abs())).abs()).maximum(low).minimum(high)


def check(
    population: int,
    generations: int,
    strategy: str,
    mutation: float | tuple[float, float],
    recombination: float,
    called: str = "generations",
) -> None:
    """TypeError or ValueError unless the settings are as `evolve` wants them."""
    for name, value in (("population", population), (called, generations)):
        if type(value) is not int:
            raise TypeError(f"{name} must be an integer; got {value!r}")
    ends = mutation if isinstance(mutation, tuple) and len(mutation) == 2 else (mutation,)
    for name, number in (*(("mutation", end) for end in ends), ("recombination", recombination)):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            accepted = "a number or a pair of numbers" if name == "mutation" else "a number"
            raise TypeError(f"{name} must be {accepted}; got {number!r}")
    least, most = mutation if isinstance(mutation, tuple) else (mutation, mutation)
    for setting, fine, accepted, given in (
        ("population", population >= 4, "at least 4", population),
        (called, generations >= 0, "at least 0", generations),
        ("strategy", strategy in get_args(Strategy), f"one of {', '.join(get_args(Strategy))}", strategy),
        ("mutation", 0 <= least <= most <= 2, "in [0, 2], or (least, most) in that order", mutation),
        ("recombination", 0 <= recombination <= 1, "in [0, 1]", recombination),
    ):
        if not fine:
            raise ValueError(f"{setting} must be {accepted}; got {given!r}")


def _check_box(low: Tensor, high: Tensor) -> None:
    if low.dim() != 2 or low.shape[1] == 0 or low.shape != high.shape or not low.is_floating_point():
        raise ValueError(
            "low and high must be floating point of one shape (B, D), D at least 1; "
            f"got {low.dtype} {tuple(low.shape)} and {high.dtype} {tuple(high.shape)}"
        )
    if not bool((low.isfinite() & high.isfinite() & (low <= high)).all()):
        raise ValueError("low and high must be finite, with low <= high everywhere")
