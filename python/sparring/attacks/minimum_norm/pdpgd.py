"""PDPGD: primal-dual proximal gradient descent (Matyasko & Chau 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparring.attacks._norms import Bounds, Norm
from sparring.attacks._problem import Backward, Preprocessing, positive
from sparring.attacks._result import AttackResult
from sparring.attacks.minimum_norm.hunt import Hunt, counted, hunted, only, per_example
from sparring.gradients import Lowered

PROXIMAL_STEPS = 5
"""Of the inner iteration; in L1 no entry shrinks by more than these times the smallest threshold."""
MOST = -math.log(1e-6)
"""Largest logarithm of the ratio of the two multipliers."""


def primal_dual(hunt: Hunt, steps: int, rate: float) -> None:
    """So many steps of proximal Adam on the distance and ``softplus`` of what the margin lacks.

    The weights of the two are the softmax of a dual variable, which grows while the model is not fooled and shrinks
    while it is. The rate falls to a hundredth, that of the dual variable from .1 to .01.
    """
    ball = hunt.ball
    delta, mean, square = (torch.zeros_like(hunt.inputs) for _ in range(3))
    dual = per_example(-math.log(0.01), hunt)
    ratio = torch.exp(-dual)  # of the weights of distance and margin, whose running means are below
    distance_share, margin_share = ratio / (1 + ratio), 1 / (1 + ratio)
    for step in range(steps):
        answer = hunt.ask(delta)
        lacks = -answer.loss
        slope = torch.where(lacks > 0, torch.sigmoid(lacks.clamp(max=1e6)), 0)
        grad = -ball.column(slope) * answer.grad
        mean.lerp_(grad, 0.1)
        square.mul_(0.999).addcmul_(grad, grad, value=0.001)
        metric = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
        here = rate * 0.01 ** (step / steps)
        ahead = delta - here / (1 - 0.9 ** (step + 1)) * mean / metric
        steepest = metric.flatten(1).amax(1)
        delta = _proximal(hunt, ahead, metric / ball.column(steepest), distance_share / margin_share * here / steepest)
        left = 1 - step / max(1, steps - 1)
        dual = (dual + 0.1 * (0.9 * left + 0.1) * lacks.sign()).clamp(-MOST, MOST)
        wanted = torch.sigmoid(-dual)
        distance_share, margin_share = 0.9 * distance_share + 0.1 * wanted, 0.9 * margin_share + 0.1 * (1 - wanted)


def _proximal(hunt: Hunt, ahead: Tensor, metric: Tensor, threshold: Tensor) -> Tensor:
    """From `ahead` towards the minimum of ``threshold |v| + sum metric (v - ahead)^2 / 2`` in the box, a few steps."""
    ball = hunt.ball
    column = ball.column(threshold)
    ahead = ball.points(ahead) - hunt.inputs
    v = ahead
    for _ in range(PROXIMAL_STEPS):
        moved = v + (ahead - v) * metric
        if ball.name == "L1":
            moved = moved.sign() * (moved.abs() - column).clamp(min=0)
        else:
            length = ball.column(ball.length(moved).clamp(min=1e-12).to(moved.dtype))
            moved = moved * (1 - column / length).clamp(min=0)
        v = ball.points(moved) - hunt.inputs
    return v


def pdpgd(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = 1,
    steps: int = 500,
    rate: float = 0.1,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    batch_size: int | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Primal-dual proximal gradient descent for the smallest L1 or L2 perturbation (Matyasko & Chau 2021).

    Parameters
    ----------
    norm
        1 or 2.
    steps
        Gradients for each example.
    rate
        Of the first steps of Adam.

    The other arguments and the result are described in :mod:`sparring.attacks`; where no point was found, the input is
    returned.
    """
    positive("rate", rate)
    steps = counted(steps)

    def approach(hunt: Hunt) -> None:
        primal_dual(hunt, steps, rate)

    return hunted(
        model, inputs, labels, approach, norm=only(norm, "L1", "L2"), targets=targets, bounds=bounds,
        preprocessing=preprocessing, eot=eot, backward=backward, batch_size=batch_size, return_result=return_result,
    )  # fmt: skip
