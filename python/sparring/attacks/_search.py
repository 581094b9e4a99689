"""The loop that all gradient attacks share: query the model, remember the best point of each example, move on.

An attack brings its moves (:class:`Moves`); starts, restarts, early stopping, batches and the result are here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks._model import backward_of, held_still, preprocessed
from sparring.attacks._norms import Ball, ball_of
from sparring.attacks._problem import Options, Problem, Query, bounds_of, check, examples, module_of
from sparring.attacks._result import AttackResult, GradientMaskingWarning
from sparring.attacks._seeds import example_seeds
from sparring.gradients import Lowered, lower
from sparring.gradients.batched import spans_of
from sparring.gradients.home import explained


class Moves:
    """How an attack moves: every tensor among its attributes has one entry an example, so that examples can leave.

    `delta` is the perturbation to query next; `step` is given the answer and moves `delta` on.
    """

    def __init__(self, ball: Ball, delta: Tensor) -> None:
        self.ball, self.delta = ball, delta

    def step(self, query: Query) -> None:
        raise NotImplementedError

    def keep(self, rows: Tensor) -> None:
        """Drop all examples but `rows`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, Ball):
                setattr(self, name, value.rows(rows))


class Best:
    """The best point of each example so far: a fooling one before any other, then the one of highest loss."""

    def __init__(self, ball: Ball, budget: int) -> None:
        count, device = len(ball.inputs), ball.inputs.device
        self.delta = torch.zeros_like(ball.inputs)
        self.loss = torch.full((count,), -math.inf, device=device, dtype=torch.float64)
        self.fooled, self.bad_grad = (torch.zeros(count, dtype=torch.bool, device=device) for _ in range(2))
        self.steps = torch.full((count,), budget, device=device)

    def points(self, ball: Ball) -> Tensor:
        """What to return: (B, ...)."""
        return ball.exact_points(self.delta)

    def update(self, rows: Tensor, delta: Tensor, query: Query, step: int, *, first_only: bool) -> None:
        """Take note of the answers for the examples `rows`; with `first_only` fooled ones are settled."""
        fooled, loss = self.fooled[rows], query.loss.double()
        better = (query.fooled > fooled) | ((query.fooled == fooled) & (loss > self.loss[rows]))
        if first_only:
            better &= ~fooled
        new = query.fooled & ~fooled
        at = rows[better]
        self.delta[at], self.loss[at] = delta[better], loss[better]
        self.steps[rows[new]] = step
        self.fooled[at] = query.fooled[better]
        self.bad_grad[rows] |= query.bad_grad & ~fooled


Begin = Callable[[Ball, Tensor, int, "Moves | None"], Moves]
"""An attack's moves: in a ball, from a start, for so many steps, after those of an earlier stage if there was one."""


class Stage(NamedTuple):
    """So many steps in a ball `scale` times the size of the one asked for; only points of the last stage count."""

    scale: float
    steps: int


def search(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    begin: Begin,
    stages: Sequence[Stage],
    options: Options,
    *,
    aims: int | None = None,
) -> Tensor | AttackResult:
    """Attack every example, and return what the caller of the attack asked for.

    With `aims` the loss steers, restart after restart, to the so many most likely classes other than the label.
    """
    check(inputs, options)
    ways = options.restarts * (aims or 1)
    seeds = example_seeds(inputs, options.restarts, options.generator) if options.random_start else None
    budget = sum(stage.steps for stage in stages)

    def attack(problem: Problem, rows: slice) -> Best:
        ranked = _likeliest_others(problem, aims) if aims else None
        best = Best(problem.ball, ways * budget)
        for way in range(ways):
            going = ~best.fooled if options.early_stop else torch.ones_like(best.fooled)
            if not bool(going.any()):
                break
            at = going.nonzero()[:, 0]
            part = problem.rows(at) if len(at) < len(going) else problem
            if ranked is not None:
                part = replace(part, aims=ranked[at, way % ranked.shape[1]])
            start = torch.zeros_like(part.ball.inputs)
            if seeds is not None:
                drawn = seeds[rows, way // (aims or 1)]
                start = part.ball.scaled(stages[0].scale).random(drawn[at.cpu()].tolist())
            climb(part, at, begin, start, stages, best, way * budget, options)
        return best

    return run(model, inputs, labels, attack, options)


def run(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    attack: Callable[[Problem, slice], Best],
    options: Options,
) -> Tensor | AttackResult:
    """Have `attack` find a point for each example, batch after batch, with the model held still."""
    module = module_of(model)
    inputs, labels, targets, eps = examples(module, inputs, labels, options)
    losses.check_name(options.loss)
    whole = preprocessed(module, options.preprocessing, inputs)
    stand_in = backward_of(options.backward, options.preprocessing, inputs)
    size = options.batch_size or max(1, len(inputs))
    results = []
    with (
        held_still(whole, *([] if stand_in is None else [stand_in])),
        torch.inference_mode(False),
        explained(whole, inputs, "inputs"),
    ):
        ball = ball_of(options.norm, inputs, eps, bounds_of(options.bounds))
        lowered = lower(whole)
        lowered = lowered.take(inputs) if options.gradients else lowered
        backward = None if stand_in is None else lower(stand_in).take(inputs)
        everything = Problem(
            lowered, ball, labels, targets, options.loss, targets, spans_of(labels, targets), options.eot, backward
        )
        for first in range(0, max(1, len(inputs)), size):
            rows = slice(first, first + size)
            part = torch.arange(len(inputs), device=inputs.device)[rows]
            problem = everything.rows(part) if size < len(inputs) else everything
            results.append(_result(problem, attack(problem, rows)) if len(inputs) else _empty(problem))
    result = AttackResult(*(torch.cat([getattr(r, f.name) for r in results]) for f in fields(AttackResult)))
    _warn_of_masking(result)
    return result if options.return_result else result.adv


def climb(
    problem: Problem, at: Tensor, begin: Begin, start: Tensor, stages: Sequence[Stage], best: Best, before: int,
    options: Options,
) -> None:  # fmt: skip
    """One start of the examples `at`, through all stages."""
    moves: Moves | None = None
    for scale, steps in stages[:-1]:
        moves = begin(problem.ball.scaled(scale), start, steps, moves)
        for _ in range(steps):
            query = problem.query(moves.delta)
            best.bad_grad[at] |= query.bad_grad & ~best.fooled[at]
            moves.step(query)
        before += steps
    moves = begin(problem.ball, start, stages[-1].steps, moves)
    for step in range(stages[-1].steps + 1):
        query = problem.query(moves.delta)
        best.update(at, moves.delta, query, before + step, first_only=options.early_stop)
        if step == stages[-1].steps:
            return
        if options.early_stop:
            going = ~best.fooled[at]
            left = int(going.sum())
            if left == 0:
                return
            # To take examples out means to copy all others; a few that are done may stay.
            if not options.keep_finished and left <= 0.9 * len(at):
                at, problem, query = at[going], problem.rows(going), query.rows(going)
                moves.keep(going)
        moves.step(query)


def _likeliest_others(problem: Problem, count: int) -> Tensor:
    """The `count` likeliest classes of each example other than its label, most likely first: (B, count)."""
    logits = problem.expected_logits(problem.ball.inputs)
    count = min(count, logits.shape[1] - 1)
    return logits.scatter(1, problem.labels[:, None], -math.inf).topk(count, dim=1).indices


def _result(problem: Problem, best: Best) -> AttackResult:
    """Judge the points as they are returned."""
    adv = best.points(problem.ball)
    logits = problem.logits(adv)
    with torch.no_grad():
        loss = losses.value(problem.loss, logits, problem.labels, problem.targets)
    distance = problem.ball.length(adv.double() - problem.ball.inputs.double())
    return AttackResult(adv, problem.fooled(logits), distance, loss, best.steps, best.bad_grad)


def _empty(problem: Problem) -> AttackResult:
    none = torch.zeros(0, device=problem.labels.device)
    return AttackResult(problem.ball.inputs, none.bool(), none.double(), none, none.long(), none.bool())


def _warn_of_masking(result: AttackResult) -> None:
    standing = ~result.success
    masked = int((result.bad_grad & standing).sum())
    if masked > 0.1 * len(standing):
        warnings.warn(
            f"gradients are likely masked: {masked} of the {int(standing.sum())} examples that the attack did not fool "
            "had a gradient that was zero, NaN or inf on the way (AttackResult.bad_grad says which), so that they may "
            "be less robust than they look. Try loss='margin' or 'dlr', float64, or an attack without gradients.",
            GradientMaskingWarning,
            stacklevel=4,
        )
