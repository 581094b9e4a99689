"""FAB: towards the boundary by the nearest points of its linear approximations (Croce & Hein 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparring.attacks._norms import Bounds, Norm
from sparring.attacks._problem import Backward, Preprocessing
from sparring.attacks._result import AttackResult
from sparring.attacks.minimum_norm.halfspace import project_halfspace_box
from sparring.attacks.minimum_norm.hunt import Answer, Hunt, counted, hunted, likeliest_others, only
from sparring.gradients import Lowered

BEYOND = 1e-3
"""How far beyond the linear boundary `sharpen` aims, as a share of the way there from the input."""
OVERSHOOT, BACK, MOST_TO_INPUT = 1.05, 0.9, 0.1
"""The paper's eta, beta and alpha_max."""


def to_boundary(hunt: Hunt, delta: Tensor, answer: Answer, beyond: float = 0.0) -> Tensor:
    """The smallest perturbation that fools the model, were it as linear as `answer` at `delta` says."""
    ball = hunt.ball
    needed = (answer.grad.double() * delta.double()).flatten(1).sum(1) - answer.loss.double()
    moved: Tensor = project_halfspace_box(
        answer.grad, needed + beyond * needed.abs(), ball.inputs, ball.name, ball.bounds
    )
    return moved


def sharpen(hunt: Hunt, steps: int) -> None:
    """From the nearest points so far towards the nearest points of the boundary there, as far as they come nearer.

    Sequential quadratic programming: a step that does not lead to a nearer fooling point is shortened to a third of
    its length, one that does is followed by one twice as long.
    """
    at = hunt.distance.isfinite().nonzero()[:, 0]
    if steps < 1 or len(at) == 0:
        return
    part = hunt.part(at)
    base = part.best()
    there = part.ask(base)
    share = torch.ones_like(part.distance)
    for _ in range(steps - 1):
        ahead = to_boundary(part, base, there, BEYOND)
        trial = base + part.ball.column(share.to(base.dtype)) * (ahead - base)
        before = part.distance
        answer = part.ask(trial)
        better = part.distance < before
        column = part.ball.column(better)
        base = torch.where(column, part.best(), base)
        there = Answer(
            torch.where(column, answer.grad, there.grad), torch.where(better, answer.loss, there.loss), answer.fooled
        )
        share = torch.where(better, (2 * share).clamp(max=1), share / 3)


def towards(hunt: Hunt, steps: int, aims: Tensor | None) -> None:
    """So many steps of FAB from the inputs, towards the classes `aims` (B,), or any.

    A step goes to a point between the nearest ones, on the linear boundary, to where it is and to the input, a little
    beyond; where the model is fooled it then goes back towards the input.
    """
    ball, loss = hunt.ball, hunt.aiming(aims)
    delta = torch.zeros_like(hunt.inputs)
    for _ in range(steps):
        answer = hunt.ask(delta, loss)
        from_input = to_boundary(hunt, delta, answer)
        here = ball.points(delta)
        from_here = project_halfspace_box(
            answer.grad * ball.column(-answer.loss.sign()), answer.loss.double().abs(), here, ball.name, ball.bounds
        )
        near, far = ball.length(from_here.double()), ball.length(from_input.double())
        share = ball.column((near / (near + far)).nan_to_num(0.0).clamp(max=MOST_TO_INPUT).to(delta.dtype))
        ahead = (1 - share) * (delta + OVERSHOOT * from_here) + share * OVERSHOOT * from_input
        ahead = ball.points(ahead) - hunt.inputs
        fooled = hunt.look(ahead)
        delta = torch.where(ball.column(fooled), BACK * ahead, ahead)


def fab(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = 2,
    steps: int = 100,
    target_classes: int | None = None,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    batch_size: int | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Fast adaptive boundary attack in L2, L1 and Linf (Croce & Hein 2020), for the smallest perturbation.

    Each step solves, exactly, for the nearest point of the box at which the model would be fooled were it linear. The
    last tenth of the steps goes from the nearest point found along the boundary there. Only the likeliest wrong class
    is looked at in a step (the paper looks at all, FAB-T at one that stays the same).

    Parameters
    ----------
    norm
        2, 1 or inf.
    steps
        Gradients for each example (and target class), and as many predictions.
    target_classes
        Aim, one after the other, at the so many likeliest classes besides the label: FAB-T. Excludes `targets`.

    The other arguments and the result are described in :mod:`sparring.attacks`; where no point was found, the input is
    returned.
    """
    if target_classes is not None and (targets is not None or target_classes < 1):
        raise ValueError(f"target_classes must be at least 1, and targets be left out; got {target_classes!r}")
    steps = counted(steps)

    def approach(hunt: Hunt) -> None:
        last = steps // 10
        others = None if target_classes is None else likeliest_others(hunt, target_classes)
        for way in range(1 if others is None else others.shape[1]):
            towards(hunt, steps - last, None if others is None else others[:, way])
            sharpen(hunt, last)

    return hunted(
        model, inputs, labels, approach, norm=only(norm, "L2", "L1", "Linf"), targets=targets, bounds=bounds,
        preprocessing=preprocessing, eot=eot, backward=backward, batch_size=batch_size, return_result=return_result,
    )  # fmt: skip
