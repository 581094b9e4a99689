"""One step along the gradient, all the way to the edge of the ball."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparring.attacks._norms import Bounds, Norm
from sparring.attacks._problem import Backward, Options, Preprocessing, Problem
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Best, run
from sparring.gradients import Lowered
from sparring.losses import Loss


def fgsm(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = math.inf,
    loss: Loss = "ce",
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    batch_size: int | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Fast gradient sign method: ``x + eps sign(grad)`` (Goodfellow et al. 2015), clipped to the bounds.

    With another norm the step goes along the steepest direction of that norm: for 2 it is :func:`fgm`, for 1 it spends
    all of `eps` on the one entry of largest gradient (as far as the bounds let it). Arguments and result as described
    in :mod:`sparring.attacks`; what is returned is this one step, whether it helped or not.
    """

    def one_step(problem: Problem, rows: slice) -> Best:
        ball = problem.ball
        query = problem.query(torch.zeros_like(ball.inputs))
        best = Best(ball, 1)
        best.delta = ball.project(ball.steepest(query.grad) * ball.column(ball.eps.to(query.grad.dtype)))
        best.bad_grad = query.bad_grad
        return best

    options = Options(
        eps, norm, targets, bounds, loss, preprocessing, batch_size=batch_size, return_result=return_result, eot=eot,
        backward=backward,
    )  # fmt: skip
    return run(model, inputs, labels, one_step, options)


def fgm(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    loss: Loss = "ce",
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    batch_size: int | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Fast gradient method: ``x + eps grad / |grad|_2``, clipped to the bounds; :func:`fgsm` with norm 2."""
    return fgsm(
        model, inputs, labels, eps=eps, norm=2, loss=loss, targets=targets, bounds=bounds, preprocessing=preprocessing,
        eot=eot, backward=backward, batch_size=batch_size, return_result=return_result,
    )  # fmt: skip
