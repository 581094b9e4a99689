"""What attacks without gradients ask of the model: its answer alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparring import losses
from sparring.attacks._model import answered
from sparring.attacks._problem import Problem, Query, fooled


def answer(problem: Problem, delta: Tensor) -> Query:
    """Loss at ``inputs + delta``, and whether the aim is reached there; the gradient is left 0."""
    return judged(problem, problem.ball.points(delta), problem.labels, problem.targets)


def judged(problem: Problem, points: Tensor, labels: Tensor, targets: Tensor | None) -> Query:
    """The same at any points, which have these labels and targets."""
    logits = answered(problem.model, points)
    losses.check(problem.loss, logits, labels, targets, problem.spans)
    losses.check_two_classes(logits)
    with torch.no_grad():
        loss = losses.value(problem.loss, logits, labels, targets).nan_to_num(nan=-math.inf)
    reached = fooled(logits, labels, targets)
    return Query(torch.zeros_like(points[:, :0]), loss, reached, torch.zeros_like(reached))
