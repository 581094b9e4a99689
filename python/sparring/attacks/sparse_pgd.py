"""Sparse PGD: gradients for what few pixels change, and for which pixels these are."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sparring import ops
from sparring.attacks._norms import COUNTED, Ball, Bounds, L0Ball, Norm
from sparring.attacks._problem import Options, Preprocessing, Problem, Query, check, positive, step_count
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Best, Moves, Stage, climb, run
from sparring.attacks._seeds import example_seeds
from sparring.attacks._uniform import fill_uniform
from sparring.gradients import Lowered
from sparring.losses import Loss

Gradient = Literal["unprojected", "projected", "both"]


class Sparse(Moves):
    """Values that entries would be changed by, and a mask of which places are; with random numbers of each example."""

    ball: L0Ball

    def __init__(
        self, seeds: Tensor, projected: bool, size: float, mask_size: float, patience: int, ball: Ball, *_: object
    ) -> None:
        assert isinstance(ball, L0Ball)
        super().__init__(ball, torch.zeros_like(ball.inputs))
        self.seeds, self.patience = seeds, patience
        self.projected, self.size = projected, size * (ball.bounds[1] - ball.bounds[0])
        self.mask_size = mask_size * math.sqrt(ball.places)
        self.k = ball.eps.long()
        self.steps = 0
        # Each entry at an end of the bounds, the likelier the farther away it is.
        up, down = ball.high.square(), ball.low.square()
        chance = fill_uniform(torch.empty_like(ball.inputs), seeds, 0, 0.0, 1.0)
        self.values = torch.where(chance * (up + down) < up, ball.high, ball.low)
        self.mask = self.values.new_empty(len(self.values), ball.places)
        self.unchanged = torch.zeros_like(self.k)
        self._redraw(None)
        self.delta = self._moved(self.delta, 0.0, 0.0)
        self.unchanged.zero_()

    def step(self, query: Query) -> None:
        self.steps += 1
        stuck = self.unchanged >= self.patience
        self._redraw(stuck)
        self.unchanged.masked_fill_(stuck, 0)
        self.delta = self._moved(query.grad, self.size, self.mask_size)

    def _redraw(self, wanted: Tensor | None) -> None:
        """New masks, of mean 0 and variance 1."""
        fill_uniform(self.mask, self.seeds, 1 + self.steps, -math.sqrt(3), math.sqrt(3), wanted)

    def _moved(self, grad: Tensor, size: float, mask_size: float) -> Tensor:
        moved: Tensor = ops.sparse_pgd_step(
            self.values, self.mask, grad, self.ball.inputs, self.k, step_size=size, mask_step=mask_size,
            projected=self.projected, unchanged=self.unchanged, channels=self.ball.channels, bounds=self.ball.bounds,
            check_finite=False,
        )  # fmt: skip
        return moved


def sparse_pgd(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = "pixels",
    steps: int = 100,
    step_size: float = 0.25,
    mask_step: float = 0.25,
    gradient: Gradient = "both",
    patience: int = 1,
    restarts: int = 2,
    loss: Loss = "ce",
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    early_stop: bool = False,
    keep_finished: bool = False,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Change at most `eps` pixels (or entries) along gradients: sparse PGD (Zhong, Liu & Xu 2024).

    The perturbation is a value for every entry times a mask that is 1 at `eps` pixels and 0 elsewhere. The values move
    along the sign of the loss's gradient; the mask is where a continuous one is largest, which has a gradient too.

    Parameters
    ----------
    eps, norm
        How many pixels (or entries, "L0") may differ; see :func:`sparring.attacks.sparse_rs`.
    step_size
        Of the values, as a share of the bounds' width.
    mask_step
        Euclidean length of the mask's step, as a share of the square root of how many pixels there are.
    gradient
        Of the values: "projected" moves those of the chosen pixels alone, "unprojected" all; "both": one restart with
        the latter, the next with the former, and so on.
    patience
        A mask whose pixels stay the same for so many steps, at least 1, is drawn anew. The paper has 3.
    restarts
        Every one starts at random.

    The other arguments and the result are described in :mod:`sparring.attacks`.

    Notes
    -----
    Departures from the published attack: values start at the ends of the bounds, where they are bound to go, and masks
    uniformly at random; the best point kept is a fooling one before any other.
    """
    options = Options(
        eps, norm, targets, bounds, loss, preprocessing, restarts, True, early_stop, keep_finished, batch_size,
        generator, return_result, norms=COUNTED,
    )  # fmt: skip
    stages = [Stage(1.0, step_count(steps))]
    positive("step_size", step_size)
    positive("mask_step", mask_step)
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient must be one of {', '.join(get_args(Gradient))}; got {gradient!r}")
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise ValueError(f"patience must be an integer of at least 1; got {patience!r}")
    check(inputs, options)
    seeds = example_seeds(inputs, restarts, generator).to(inputs.device)

    def attack(problem: Problem, rows: slice) -> Best:
        best = Best(problem.ball, restarts * steps)
        everything = torch.arange(len(problem.labels), device=problem.labels.device)
        for restart in range(restarts):
            at = everything[~best.fooled] if early_stop else everything
            if len(at) == 0:
                break
            projected = gradient == "projected" or (gradient == "both" and restart % 2 == 1)
            start = partial(Sparse, seeds[rows][at, restart].contiguous(), projected, step_size, mask_step, patience)
            part = problem.rows(at)
            climb(part, at, start, part.ball.inputs, stages, best, restart * steps, options)
        return best

    return run(model, inputs, labels, attack, options)
