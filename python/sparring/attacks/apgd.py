"""Auto-PGD: the step adapts to each example's progress (Croce & Hein 2020; in L1, with the sparsity, 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparring.attacks._norms import Ball, Bounds, L1Ball, Norm, norm_name
from sparring.attacks._problem import Backward, Options, Preprocessing, Query, step_count
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Moves, Stage, search
from sparring.gradients import Lowered
from sparring.losses import Loss

LARGE_EPS = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""The published schedule for L1: for 30 % of the steps a ball of 3 eps, then of 2 eps, then the ball asked for."""

INWARD = ((12.0, 0.05), (5.0, 0.05), (2.0, 0.05), (1.0, 0.85))
"""From outside in: a few steps each in balls of 12, 5 and 2 eps, the others in the ball asked for."""


class Auto(Moves):
    """Knows each example's point of highest loss, with its gradient, to go back there."""

    def __init__(self, ball: Ball, delta: Tensor) -> None:
        super().__init__(ball, delta)
        self.best_delta, self.best_grad = delta, torch.zeros_like(delta)
        self.best_loss = torch.full((len(delta),), -math.inf, dtype=torch.float64, device=delta.device)
        self.steps = 0

    def note(self, query: Query) -> None:
        better = query.loss > self.best_loss
        self.best_loss = torch.where(better, query.loss.double(), self.best_loss)
        column = self.ball.column(better)
        self.best_delta = torch.where(column, self.delta, self.best_delta)
        self.best_grad = torch.where(column, query.grad, self.best_grad)


class Momentum(Auto):
    """APGD in Linf and L2: halves the step and goes back to the best point where the loss stopped rising.

    At each of its checkpoints that is so if the loss rose in no more than `rho` of the steps since the last one, or if
    there neither the step nor the best loss had changed.
    """

    def __init__(self, ball: Ball, delta: Tensor, steps: int, rho: float) -> None:
        super().__init__(ball, delta)
        self.rho = rho
        self.size = 2 * ball.eps
        self.previous, self.last_loss = delta, torch.full_like(self.best_loss, math.inf)
        self.rises = torch.zeros_like(self.best_loss)
        self.loss_at_checkpoint, self.halved = self.best_loss, torch.ones_like(self.best_loss, dtype=torch.bool)
        self.interval, self.shortest = max(1, int(0.22 * steps)), max(1, int(0.06 * steps))
        self.shorter_by = max(1, int(0.03 * steps))
        self.since = 0

    def step(self, query: Query) -> None:
        self.note(query)
        loss = query.loss.double()
        if self.steps == 0:
            self.loss_at_checkpoint = loss
        self.rises += loss > self.last_loss
        self.last_loss = loss
        grad, delta = query.grad, self.delta
        if self.steps > 0:
            self.since += 1
        if self.since == self.interval:
            stuck = ~self.halved & (self.loss_at_checkpoint >= self.best_loss)
            halve = stuck | (self.rises <= self.rho * self.interval)
            self.halved, self.loss_at_checkpoint = halve, self.best_loss
            self.size = torch.where(halve, self.size / 2, self.size)
            delta = torch.where(self.ball.column(halve), self.best_delta, delta)
            grad = torch.where(self.ball.column(halve), self.best_grad, grad)
            self.rises, self.since = torch.zeros_like(self.rises), 0
            self.interval = max(self.interval - self.shorter_by, self.shortest)
        step = self.ball.steepest(grad) * self.ball.column(self.size.to(grad.dtype))
        ahead = self.ball.project(delta + step)
        if self.steps > 0:
            ahead = self.ball.project(delta + 0.75 * (ahead - delta) + 0.25 * (delta - self.previous))
        self.previous, self.delta = delta, ahead
        self.steps += 1


class Sparse(Auto):
    """APGD in L1: each step moves as many entries as the best perturbation has, divided by 1.5.

    At each checkpoint, where that sparsity still falls, the step is eps again and the search goes back to the best
    point; where it does not, the step shrinks by 1.5, to a tenth of eps at least.
    """

    def __init__(self, ball: L1Ball, delta: Tensor, steps: int, share: float | None) -> None:
        super().__init__(ball, delta)
        self.l1 = ball
        entries = delta[0].numel() if len(delta) else 1
        self.count = (
            torch.full_like(self.best_loss, share * entries) if share is not None else self._entries(delta) / 1.5
        )
        self.sparsity = torch.full_like(self.best_loss, entries) if share is not None else self._entries(delta)
        self.size = ball.eps
        self.interval = max(1, int(0.04 * steps))

    @staticmethod
    def _entries(delta: Tensor) -> Tensor:
        return (delta != 0).flatten(1).sum(1).double()

    def step(self, query: Query) -> None:
        self.note(query)
        grad, delta = query.grad, self.delta
        if self.steps > 0 and self.steps % self.interval == 0:
            entries = self._entries(self.best_delta)
            falls = entries < 0.95 * self.sparsity
            self.count, self.sparsity = entries / 1.5, entries
            self.size = torch.where(falls, self.l1.eps, (self.size / 1.5).maximum(self.l1.eps / 10))
            delta = torch.where(self.ball.column(falls), self.best_delta, delta)
            grad = torch.where(self.ball.column(falls), self.best_grad, grad)
        k = self.count.clamp(min=1).long()
        self.delta = self.l1.ascend(delta, grad, self.size, k)
        self.steps += 1


def apgd(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = math.inf,
    steps: int = 100,
    rho: float = 0.75,
    schedule: Sequence[tuple[float, float]] | str | None = "auto",
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = "ce",
    targets: Tensor | None = None,
    target_classes: int | None = None,
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
    """Auto-PGD (Croce & Hein 2020, 2021), free of a step size to choose; the strongest attack here for its time.

    Parameters
    ----------
    rho
        In Linf and L2: the share of steps that must raise the loss for the step to stay as long.
    schedule
        Stages ``(scale, share)``: for that share of the steps, the ball of ``scale * eps``, the last scale being 1.
        None: the ball asked for all along. "auto": :data:`INWARD` in L1, None in L2 and Linf. The paper has
        :data:`LARGE_EPS` in L1. On networks trained to withstand L1 steps get stuck without one: of one such network
        of MNIST .35 are left standing at eps 10 without, .21 with the paper's, .07 with INWARD; on networks trained
        without attacks the three differ by a hundredth. In L2 a schedule can help as much (there .53 for .73), or cost
        some hundredths; in Linf it makes no difference. `docs/evaluation.md` has the figures.
    target_classes
        Steer, in as many restarts, to each of the so many likeliest classes besides the label, to be fooled by any:
        APGD-T with ``loss="dlr", target_classes=9``. Excludes `targets`.

    The other arguments and the result are described in :mod:`sparring.attacks`.

    Notes
    -----
    Departures from the published L1 attack: its step passes over entries at a face of the box that would leave it, ties
    in ``|grad|`` are broken by position, and the projection is exact: the budget is not overrun.
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must be in [0, 1]; got {rho!r}")
    if target_classes is not None and (targets is not None or target_classes < 1):
        raise ValueError(f"target_classes must be at least 1, and targets be left out; got {target_classes!r}")
    if isinstance(schedule, str):
        if schedule != "auto":
            raise ValueError(f"schedule must be pairs (scale, share), None or 'auto'; got {schedule!r}")
        schedule = INWARD if norm_name(norm) == "L1" else None
    stages = _stages(step_count(steps), ((1.0, 1.0),) if schedule is None else schedule)
    options = Options(
        eps, norm, targets, bounds, loss, preprocessing, restarts, random_start, early_stop, keep_finished, batch_size,
        generator, return_result, eot, backward,
    )  # fmt: skip

    def begin(ball: Ball, start: Tensor, steps: int, previous: Moves | None) -> Moves:
        if isinstance(previous, Auto):
            start = ball.project(previous.best_delta)
        if isinstance(ball, L1Ball):
            return Sparse(ball, start, steps, None if previous is not None else 0.2 if random_start else 0.05)
        return Momentum(ball, start, steps, rho)

    return search(model, inputs, labels, begin, stages, options, aims=target_classes)


def _stages(steps: int, schedule: Sequence[tuple[float, float]]) -> list[Stage]:
    if not schedule or schedule[-1][0] != 1 or any(scale <= 0 or not 0 <= share <= 1 for scale, share in schedule):
        raise ValueError(
            f"schedule must be pairs (scale > 0, share in [0, 1]), the last with scale 1; got {schedule!r}"
        )
    before = [Stage(scale, int(share * steps)) for scale, share in schedule[:-1]]
    left = steps - sum(stage.steps for stage in before)
    if left < 0:
        raise ValueError(f"schedule's shares must add up to 1 at most; got {schedule!r}")
    return [*(stage for stage in before if stage.steps), Stage(1.0, left)]
