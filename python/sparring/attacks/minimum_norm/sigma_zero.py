"""Sigma-zero: gradient descent on a smooth stand-in for the number of changed entries (Cinà et al. 2025)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparring.attacks._norms import Bounds, Norm
from sparring.attacks._problem import Backward, Preprocessing, positive
from sparring.attacks._result import AttackResult
from sparring.attacks.minimum_norm.hunt import Hunt, counted, hunted, only
from sparring.gradients import Lowered

THRESHOLD, THRESHOLD_RATE = 0.3, 0.01
"""Entries below a threshold become 0; it begins here, and moves by this share of the step."""


def smooth_count(hunt: Hunt, steps: int, aims: Tensor | None, *, first_step: float, sigma: float) -> None:
    """So many steps of Adam on what the margin lacks, plus the mean of ``d^2 / (d^2 + sigma)`` over the entries.

    In units of the box's width. After each step, entries below a threshold of the example's own become 0; it rises
    while the model is fooled and falls while it is not.
    """
    ball = hunt.ball
    loss = hunt.aiming(aims)
    width = ball.bounds[1] - ball.bounds[0]
    delta, mean, square = (torch.zeros_like(hunt.inputs) for _ in range(3))
    entries = max(1, delta[:1].numel())
    threshold = torch.full((len(hunt.at),), THRESHOLD, dtype=delta.dtype, device=delta.device)
    for step in range(steps):
        answer = hunt.ask(delta, loss)
        squares = _of_places(hunt, (delta / width).square())
        grad = 2 * sigma * (delta / width) / (squares + sigma).square() / entries
        grad -= ball.column((answer.loss < 0).to(delta.dtype) * width) * answer.grad
        grad /= ball.column(grad.flatten(1).abs().amax(1).clamp(min=1e-12))
        mean.lerp_(grad, 0.1)
        square.mul_(0.999).addcmul_(grad, grad, value=0.001)
        metric = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
        size = first_step * (0.1 + 0.45 * (1 + math.cos(math.pi * max(0, step - 1) / steps)))
        ahead = delta - width * size / (1 - 0.9 ** (step + 1)) * mean / metric
        delta = ball.points(ahead) - hunt.inputs
        threshold = (threshold + THRESHOLD_RATE * size * torch.where(answer.fooled, 1.0, -1.0)).clamp(0, 1)
        size_there = _of_places(hunt, delta.square()).sqrt()
        delta = torch.where(size_there < width * ball.column(threshold), 0, delta)


def _of_places(hunt: Hunt, squares: Tensor) -> Tensor:
    """Squares of what counts as one: of entries themselves, or of pixels summed over the channels, for each entry."""
    return squares if hunt.ball.name == "L0" else squares.sum(1, keepdim=True).expand_as(squares)


def prune(hunt: Hunt, most: int) -> None:
    """Undo the changes of the nearest points so far one by one, smallest first, where the model stays fooled.

    Needs one prediction for each changed entry, and no gradient; `most` of them for an example.
    """
    at = hunt.distance.isfinite().nonzero()[:, 0]
    if len(at) == 0:
        return
    part = hunt.part(at)
    delta = part.best()
    places = delta.flatten(1)[:, None] if hunt.ball.name == "L0" else delta.flatten(2)  # (B, C, places)
    size = places.abs().amax(1)
    size, order = torch.where(size == 0, math.inf, size).sort(dim=1)
    for number in range(min(most, int(size.isfinite().sum(1).max()))):
        place = order[:, number, None, None].expand(-1, places.shape[1], 1)
        trial = places.scatter(2, place, 0)
        fooled = part.look(trial.reshape(delta.shape))
        places = torch.where(fooled[:, None, None], trial, places)


def sigma_zero(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = 0,
    steps: int = 1000,
    first_step: float = 1.0,
    sigma: float = 1e-3,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    batch_size: int | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Perturbations of the fewest entries (Cinà et al. 2025, "Sigma-zero: gradient-based optimization of l0-norm").

    A departure from the paper: in the end changed entries are undone one by one where the model stays fooled.

    Parameters
    ----------
    norm
        0.
    steps
        Gradients for each example.
    first_step
        Of Adam, in widths of the box; it falls to a tenth.
    sigma
        How sharply the stand-in tells changed entries from others, in squared widths of the box.

    The other arguments and the result are described in :mod:`sparring.attacks`; where no point was found, the input is
    returned.
    """
    positive("first_step", first_step)
    positive("sigma", sigma)
    steps = counted(steps)

    def approach(hunt: Hunt) -> None:
        smooth_count(hunt, steps, None, first_step=first_step, sigma=sigma)
        prune(hunt, steps)

    return hunted(
        model, inputs, labels, approach, norm=only(norm, "L0", "pixels"), targets=targets, bounds=bounds,
        preprocessing=preprocessing, eot=eot, backward=backward, batch_size=batch_size, return_result=return_result,
    )  # fmt: skip
