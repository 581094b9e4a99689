"""Decoupled direction and norm: a ball that shrinks while the model is fooled and grows while it is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring import ops
from sparring.attacks._norms import Bounds, Norm
from sparring.attacks._problem import Backward, Preprocessing, positive
from sparring.attacks._result import AttackResult
from sparring.attacks.minimum_norm.hunt import Hunt, counted, diameter, hunted, linear_distance, only
from sparring.gradients import Lowered

WIDEST = 0.3
"""Radius of the first ball at most, as a share of the box's diameter."""


@dataclass(frozen=True)
class Pace:
    """By which factors the ball shrinks and grows, and how long a step is as a share of its radius.

    Towards the end both factors come close to 1 and steps close to 0.
    """

    shrink: float = 0.95
    grow: float = 1.05
    step: float = 1.0
    sparsity: float = 0.2  # in L1: the share of entries that the first steps move


def descend(hunt: Hunt, steps: int, aims: Tensor | None, delta: Tensor, radius: Tensor, pace: Pace) -> None:
    """So many steps from `delta` in balls that begin with `radius` (float64 (B,))."""
    loss = hunt.aiming(aims)
    moved = (delta != 0).flatten(1).sum(1)
    entries = torch.where(moved > 0, moved / 1.5, pace.sparsity * max(1, hunt.inputs[:1].numel())).clamp(min=1).long()
    for step in range(steps):
        answer = hunt.ask(delta, loss)
        left = 1 - 0.9 * step / steps
        inside = hunt.ball.length(delta.double()).minimum(radius)
        shrunk, grown = inside * (1 - (1 - pace.shrink) * left), radius * (1 + (pace.grow - 1) * left)
        if step:
            radius = torch.where(answer.fooled, shrunk, grown.minimum(hunt.distance.maximum(radius)))
        if step % 4 == 3:
            entries = ((delta != 0).flatten(1).sum(1) / 1.5).clamp(min=1).long()
        delta = moved_in(hunt, delta, answer.grad, radius, radius * (pace.step * left), entries)


def moved_in(hunt: Hunt, delta: Tensor, grad: Tensor, radius: Tensor, step: Tensor, entries: Tensor) -> Tensor:
    """`delta` after the steepest step, in the ball of this radius and in the box."""
    ball = hunt.ball
    if ball.name == "L1":
        moved: Tensor = ops.l1_step(delta, grad, ball.inputs, radius, step, entries, ball.bounds, check_finite=False)
        return moved
    column = ball.column
    ahead = delta + ball.steepest(grad) * column(step.to(grad.dtype))
    if ball.name == "L2":
        length = ball.length(ahead).clamp(min=torch.finfo(ahead.dtype).tiny)
        return ball.points(ahead * column((radius / length).to(ahead.dtype))) - ball.inputs
    edge = column(radius.to(ahead.dtype))
    return ball.points(ahead.clamp(-edge, edge)) - ball.inputs


def one_round(hunt: Hunt, steps: int, aims: Tensor | None, wide: float, pace: Pace) -> None:
    """A search from outside in; the first ball has `wide` times the distance known, or promised by the gradient."""
    start = hunt.ask(torch.zeros_like(hunt.inputs), hunt.aiming(aims))
    known = torch.where(hunt.distance.isfinite(), hunt.distance, linear_distance(hunt, start))
    radius = (wide * known).clamp(max=WIDEST * diameter(hunt))
    descend(hunt, steps - 1, aims, torch.zeros_like(hunt.inputs), radius, pace)


def refine(hunt: Hunt, steps: int, aims: Tensor | None = None) -> None:
    """A search from the nearest points so far, in balls that they are just outside of."""
    at = hunt.distance.isfinite().nonzero()[:, 0]
    if steps < 1 or len(at) == 0:
        return
    part = hunt.part(at)
    delta = part.best()
    pace = Pace(shrink=0.97, grow=1.02, step=0.3)
    radius = part.distance * pace.shrink
    if part.ball.name == "L1":
        delta = ops.project_l1_box(delta, part.inputs, radius, part.ball.bounds, check_finite=False)
    else:
        delta = part.ball.points(pace.shrink * delta) - part.inputs
    descend(part, steps, None if aims is None else aims[at], delta, radius, pace)


def ddn(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = 2,
    steps: int = 100,
    first_radius: float | None = None,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    batch_size: int | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Decoupled direction and norm (Rony et al. 2019) in L2, L1 and Linf, from outside in.

    Every step goes along the steepest direction of the norm and back into a ball that shrinks by a twentieth while the
    model is fooled and grows by one while it is not; then, for a third of the steps, from the nearest point found.
    In L1 the step is that of APGD, on as many entries as the perturbation has, and the projection exact.

    Parameters
    ----------
    norm
        2, 1 or inf.
    steps
        Gradients for each example.
    first_radius
        Of the ball, as a multiple of the distance at which the model would be fooled were it linear; None: 12 in L1, 3
        in L2 and Linf. Wide balls find what is near where gradients at the input mislead, as on networks trained to
        withstand; the paper begins with the number 1.

    The other arguments and the result are described in :mod:`sparring.attacks`; where no point was found, the input is
    returned.
    """
    positive("first_radius", first_radius)
    steps, name = counted(steps), only(norm, "L2", "L1", "Linf")
    wide = first_radius or (12.0 if name == "L1" else 3.0)

    def approach(hunt: Hunt) -> None:
        last = steps // 3
        one_round(hunt, steps - last, None, wide, Pace())
        refine(hunt, last)

    return hunted(
        model, inputs, labels, approach, norm=name, targets=targets, bounds=bounds,
        preprocessing=preprocessing, eot=eot, backward=backward, batch_size=batch_size, return_result=return_result,
    )  # fmt: skip
