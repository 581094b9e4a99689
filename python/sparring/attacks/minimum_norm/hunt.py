"""What attacks of the smallest perturbation share: how they ask the model, and the nearest point of each example."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks._norms import Ball, Bounds, Norm, check_works, norm_name
from sparring.attacks._problem import (
    Backward,
    Options,
    Preprocessing,
    Problem,
    bounds_of,
    check_inputs,
    eps_of,
    step_count,
)
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Best, run
from sparring.gradients import Lowered
from sparring.losses import Loss

ROUNDING = 64
"""Units in the last place of the largest logit by which a class has to lead."""


class Nearest(Best):
    """For every example the nearest point that fools the model; the input itself where none was found.

    A distance of `enough` (B,) will do, if it is given.
    """

    def __init__(self, ball: Ball, enough: Tensor | None = None) -> None:
        super().__init__(ball, 0)
        self.nearest = ball.inputs.clone()
        self.distance = torch.full_like(self.loss, math.inf)
        self.enough = enough

    def points(self, ball: Ball) -> Tensor:
        return self.nearest

    def note(self, rows: Tensor, points: Tensor, distance: Tensor) -> None:
        """Take over what was found for the examples `rows`, where it is nearer than what was known."""
        nearer = distance < self.distance[rows]
        at = rows[nearer]
        self.nearest[at], self.distance[at] = points[nearer], distance[nearer]


class Answer(NamedTuple):
    """The model's at a point: a loss that rises towards the aim, its gradient, and whether the aim is reached there."""

    grad: Tensor
    loss: Tensor
    fooled: Tensor


class Hunt:
    """The examples of `problem`, which are the rows `at` of `nearest`; every point asked about is taken note of."""

    def __init__(self, problem: Problem, nearest: Nearest, at: Tensor, classes: int = 0) -> None:
        self.problem, self.nearest, self.at = problem, nearest, at
        self.classes = classes  # known from the first answer on

    @property
    def ball(self) -> Ball:
        return self.problem.ball

    @property
    def inputs(self) -> Tensor:
        return self.ball.inputs

    @property
    def distance(self) -> Tensor:
        """Of the nearest points so far, float64 (B,); inf where there is none."""
        return self.nearest.distance[self.at]

    def best(self) -> Tensor:
        """The perturbations that lead to the nearest points so far; 0 where there is none."""
        return self.nearest.nearest[self.at] - self.inputs

    def ask(self, delta: Tensor, loss: Loss = "margin") -> Answer:
        """The answer at ``inputs + delta``; the gradient is 0 where it, or the loss, is not finite."""
        points = self.ball.points(delta)
        found = self.problem.ask(points, loss)
        self.classes = found.logits.shape[1]
        fooled = self._note(points, found.logits)
        self.nearest.steps[self.at] += 1
        fine = found.grad.flatten(1).abs().amax(1).isfinite() & found.loss.isfinite()
        grad = torch.where(self.ball.column(fine), found.grad, 0)
        return Answer(grad, torch.where(fine, found.loss, -math.inf), fooled)

    def look(self, delta: Tensor) -> Tensor:
        """Whether the aim is reached at ``inputs + delta``, (B,): a prediction without a gradient."""
        points = self.ball.points(delta)
        return self._note(points, self.problem.logits(points))

    def _note(self, points: Tensor, logits: Tensor) -> Tensor:
        fooled = margins(self.problem, logits, self.problem.targets) > 0
        away = self.ball.length(points.double() - self.inputs.double())
        self.nearest.note(self.at, points, torch.where(fooled, away, math.inf))
        return fooled

    def unfinished(self) -> Tensor:
        """Those (indices) of which no point is known that is near enough."""
        if self.nearest.enough is None:
            return torch.arange(len(self.at), device=self.at.device)
        return (self.distance > self.nearest.enough[self.at]).nonzero()[:, 0]

    def part(self, rows: Tensor) -> Hunt:
        """The same for some of the examples (indices)."""
        if len(rows) == len(self.at):
            return self
        return Hunt(self.problem.rows(rows), self.nearest, self.at[rows], self.classes)

    def aiming(self, aims: Tensor | None) -> Loss:
        """The lead of the classes `aims` (B,) over the label; None: of any other class over it.

        Where the attack is targeted it is that of the target over all others.
        """
        labels, targets = self.problem.labels, self.problem.targets
        if aims is None or targets is not None:
            return "margin"

        def lead(logits: Tensor, classes: Tensor) -> Tensor:
            return (logits.gather(1, aims[:, None]) - logits.gather(1, labels[:, None]))[:, 0]

        return lead


Approach = Callable[[Hunt], None]
"""What an attack does with a hunt: ask about points, as near and as fooling as it can."""


def margins(problem: Problem, logits: Tensor, aims: Tensor | None) -> Tensor:
    """By how much the aim is reached, (B,), less what rounding may change in a batch of another size."""
    margin = losses.value("margin", logits, problem.labels, aims)
    return margin - ROUNDING * torch.finfo(margin.dtype).eps * logits.abs().amax(1)


def hunted(
    model: nn.Module | Lowered, inputs: Tensor, labels: Tensor, approach: Approach, *, norm: Norm,
    targets: Tensor | None, bounds: Bounds, preprocessing: Preprocessing | None, eot: int, backward: Backward | None,
    batch_size: int | None, return_result: bool, enough: float | Tensor | None = None,
) -> Tensor | AttackResult:  # fmt: skip
    """Run an attack of the smallest perturbation on every example that the model does not get wrong as it is.

    An approach may leave alone the examples of which it knows a point within `enough`.
    """
    check_inputs(inputs)
    near = None if enough is None else eps_of(enough, inputs)
    low, high = bounds_of(bounds)
    reach = max(1.0, (high - low) * inputs[:1].numel())  # no limit: every point of the box is nearer
    options = Options(
        reach, norm, targets, bounds, "margin", preprocessing, batch_size=batch_size, return_result=return_result,
        eot=eot, backward=backward, norms=(norm_name(norm),),
    )  # fmt: skip

    def attack(problem: Problem, rows: slice) -> Best:
        nearest = Nearest(problem.ball, None if near is None else near[rows])
        everyone = torch.arange(len(problem.labels), device=problem.labels.device)
        hunt = Hunt(replace(problem, aims=problem.targets), nearest, everyone)
        at_input = hunt.ask(torch.zeros_like(problem.ball.inputs))
        flat = at_input.grad.flatten(1)
        nearest.bad_grad |= ~at_input.fooled & ~(flat != 0).any(1)
        left = (~at_input.fooled).nonzero()[:, 0]
        if len(left):
            approach(hunt.part(left))
        return nearest

    return run(model, inputs, labels, attack, options)


def likeliest_others(hunt: Hunt, count: int) -> Tensor:
    """The `count` likeliest classes of each input besides the label, most likely first, (B, count)."""
    logits = hunt.problem.logits(hunt.inputs)
    count = min(count, logits.shape[1] - 1)
    return logits.scatter(1, hunt.problem.labels[:, None], -math.inf).topk(count, dim=1).indices


def per_example(value: float, hunt: Hunt) -> Tensor:
    """A number for each example, in the inputs' dtype."""
    return torch.full((len(hunt.at),), value, dtype=hunt.inputs.dtype, device=hunt.inputs.device)


def dual_length(norm: str, grad: Tensor) -> Tensor:
    """The norm of gradients (B, ...) that is dual to `norm`, float64 (B,): the loss gained by a step of length 1."""
    order = {"Linf": 1, "L2": 2, "L1": math.inf}[norm]
    length: Tensor = torch.linalg.vector_norm(grad.flatten(1), order, dim=1, dtype=torch.float64)
    return length


def diameter(hunt: Hunt) -> float:
    """Of the box, in the norm of the ball."""
    low, high = hunt.ball.bounds
    count = max(1, hunt.inputs[:1].numel())
    return (high - low) * {"Linf": 1.0, "L2": math.sqrt(count), "L1": float(count)}[hunt.ball.name]


def linear_distance(hunt: Hunt, answer: Answer) -> Tensor:
    """How far the aim is if the model is as linear as it looks at `answer`, a margin; float64 (B,), within the box."""
    width = diameter(hunt)
    away = -answer.loss.double() / dual_length(hunt.ball.name, answer.grad)
    # A tenth of the box at most: further out a gradient says nothing.
    return away.nan_to_num(width, posinf=width).clamp(1e-6 * width, 0.1 * width)


def counted(steps: int) -> int:
    """`steps`, at least 1."""
    if step_count(steps) < 1:
        raise ValueError(f"steps must be an integer of at least 1; got {steps!r}")
    return steps


def only(norm: Norm, *names: str) -> str:
    """The norm's name; ValueError if it is none of these."""
    name = norm_name(norm)
    check_works(name, names)
    return name
