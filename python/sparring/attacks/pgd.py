"""Projected gradient descent with a fixed step (on the negative loss): PGD in three norms, and SLIDE."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sparring.attacks._norms import Ball, Bounds, L1Ball, Norm, norm_name, unit
from sparring.attacks._problem import Backward, Options, Preprocessing, Query, positive, step_count
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Moves, Stage, search
from sparring.gradients import Lowered
from sparring.losses import Loss

L1Step = Literal["sparse", "euclidean"]


class FixedStep(Moves):
    """Steps of the same norm, each followed by the projection.

    In L1 on the `k` steepest entries (a count or share), or, without `k`, along the gradient, of that Euclidean norm.
    """

    def __init__(self, ball: Ball, delta: Tensor, step_size: float, k: int | float | None) -> None:
        super().__init__(ball, delta)
        self.k = k
        self.size = ball.eps * step_size

    def step(self, query: Query) -> None:
        ball = self.ball
        if isinstance(ball, L1Ball) and self.k is not None:
            self.delta = ball.ascend(self.delta, query.grad, self.size, self.k)
        else:
            direction = unit(query.grad) if isinstance(ball, L1Ball) else ball.steepest(query.grad)
            step = direction * ball.column(self.size.to(query.grad.dtype))
            self.delta = ball.project(self.delta + step)


def pgd(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = math.inf,
    steps: int = 40,
    step_size: float | None = None,
    step: L1Step = "sparse",
    k: int | float = 0.01,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = "ce",
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    early_stop: bool = False,
    keep_finished: bool = False,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Projected gradient descent (Madry et al. 2018) in the Linf, L2 or L1 norm.

    Each step goes along the steepest direction of the norm and back into the ball and the box. In L1 that is the step
    of SLIDE, spread over the `k` steepest entries that can still move, with the exact projection.

    Parameters
    ----------
    step_size
        Norm of a step as a share of `eps`; None: ``max(.01, 2.5 / steps)``, Madry's; in L1 .1, SLIDE's, but
        ``max(.1, 3 / steps)`` for Euclidean steps.
    step
        In L1: "sparse", as above, or "euclidean": along the gradient, the step's norm being Euclidean, as Fast-EG-l1
        (Jiang et al. 2023). For training: networks trained on few sparse steps learn to withstand those alone, their
        accuracy under a strong attack collapses while that under the attack of training rises (catastrophic
        overfitting). In other norms it is of no moment.
    k
        In L1, of sparse steps: entries that a step moves, as a count or, below 1, as a share of all. With many the
        attack is weak: a twentieth of the entries leaves twice as many digits of MNIST standing as a hundredth.

    The other arguments and the result are described in :mod:`sparring.attacks`.
    """
    if step not in get_args(L1Step):
        raise ValueError(f"step must be one of {', '.join(map(repr, get_args(L1Step)))}; got {step!r}")
    sparse = step == "sparse"
    if step_size is None:
        least, reach = (0.1, 0.0 if sparse else 3.0) if norm_name(norm) == "L1" else (0.01, 2.5)
        step_size = max(least, reach / max(1, step_count(steps)))
    positive("step_size", step_size)
    _check_k(k)
    options = Options(
        eps, norm, targets, bounds, loss, preprocessing, restarts, random_start, early_stop, keep_finished, batch_size,
        generator, return_result, eot, backward,
    )  # fmt: skip

    def begin(ball: Ball, start: Tensor, steps: int, previous: Moves | None) -> Moves:
        return FixedStep(ball, start, step_size, k if sparse else None)

    return search(model, inputs, labels, begin, [Stage(1.0, step_count(steps))], options)


def slide(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    quantile: float = 0.99,
    steps: int = 100,
    step_size: float = 0.1,
    restarts: int = 1,
    random_start: bool = False,
    loss: Loss = "ce",
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    early_stop: bool = False,
    keep_finished: bool = False,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Sparse L1 descent (Tramèr & Boneh 2019): each step moves the entries above a quantile of ``|grad|``.

    Two departures, both towards a stronger attack: entries at a face of the box that would leave it are passed over,
    and the projection is the nearest point of ball and box, not of one after the other.

    Parameters
    ----------
    quantile
        Share of the entries that stay; the rest share the step evenly.
    step_size
        L1 norm of a step as a share of `eps`.

    The other arguments and the result are described in :mod:`sparring.attacks`.
    """
    if not 0 <= quantile < 1:
        raise ValueError(f"quantile must be in [0, 1); got {quantile!r}")
    return pgd(
        model, inputs, labels, eps=eps, norm=1, steps=steps, step_size=step_size, k=1 - quantile, restarts=restarts,
        random_start=random_start, loss=loss, targets=targets, bounds=bounds, preprocessing=preprocessing,
        eot=eot, backward=backward, early_stop=early_stop, keep_finished=keep_finished, batch_size=batch_size,
        generator=generator, return_result=return_result,
    )  # fmt: skip


def _check_k(k: int | float) -> None:
    count = isinstance(k, int) and not isinstance(k, bool) and k >= 1
    if not count and not (isinstance(k, float) and 0 < k <= 1):
        raise ValueError(f"k must be an integer of at least 1, or a share in (0, 1]; got {k!r}")
