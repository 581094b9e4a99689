"""The loop of `recover`: step, note what is best, let go what is done, and begin again what is stuck."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.attacks._descent import Adam, L1Ball, View
from sparring.attacks._objective import Objective
from sparring.attacks._start import Starts

_STALL = 10
"""Steps after which an image that is where it was is stuck."""


@dataclass(frozen=True)
class Aims:
    """When an image is done, and how long it is pursued; as in `recover`."""

    steps: int
    p_min: float
    s_max: int
    by_margin: bool
    restarts: int
    keep_finished: bool


def pursue(
    objective: Objective, targets: Tensor, first: int, descent: Adam | L1Ball, starts: Starts, aims: Aims
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Step until every image is done or the budget spent; the fields of `Recovery`.

    `targets` (B,) and the images of `descent` are the rows from `first` on of those that `starts` is for.
    """
    best = descent.image.clone()
    # The probability, less 1 where the image is not sparse enough: any that is comes before any that is not.
    best_score = torch.full_like(targets, -math.inf, dtype=best.dtype)
    stop_step = torch.full_like(targets, aims.steps)
    restarts = torch.zeros_like(targets)
    by_margin = torch.full_like(targets, aims.by_margin, dtype=torch.bool)
    rows = torch.arange(len(targets), device=targets.device)  # that the images in the batch belong to
    frozen = torch.zeros_like(by_margin)
    anchor = descent.image.clone()
    for step in range(aims.steps + 1):
        lam = descent.schedule.lam_at(step)
        grad, loss, log_prob = objective(descent.image, targets[rows], by_margin[rows], lam)
        prob = log_prob.exp()
        view = View(loss, descent.canvas.sparsity(descent.image) <= aims.s_max, prob >= aims.p_min)
        score = torch.where(view.sparse, prob, prob - 1)
        better = score > best_score[rows]
        at = better.nonzero()[:, 0]  # entries by their index: picked out several times as fast as by a mask
        best.index_copy_(0, rows[at], descent.image.index_select(0, at))
        best_score[rows[at]] = score[at]
        done = frozen | (view.sparse & view.sure)
        if bool(done.any()):
            stop_step[rows[done]] = stop_step[rows[done]].clamp(max=step)
            if bool(done.all()):
                break
            if aims.keep_finished:
                frozen = done
            else:
                going = (~done).nonzero()[:, 0]
                rows, frozen, anchor = rows[going], frozen[going], anchor.index_select(0, going)
                grad, view = grad.index_select(0, going), view.at(going)
                descent.keep(going)
        if step == aims.steps:
            break
        if descent.mask is not None:
            grad = grad.where(descent.mask, 0)
        stuck = torch.zeros_like(frozen)
        if step % _STALL == 0 and step > 0:
            stuck = _same(descent.image, anchor)
            anchor = descent.image.clone()
        blind = _without_direction(grad)
        if len(blind):
            before = descent.image[blind]
            grad = grad.index_fill(0, blind, 0)
        descent.step(step, grad, view, frozen)
        if len(blind):
            stuck[blind] |= _same(descent.image[blind], before)
        late = descent.late(step) & ~stuck
        at = ((stuck | late) & ~frozen & (restarts[rows] < aims.restarts)).nonzero()[:, 0]
        if len(at):
            of, late = rows[at], late[at]
            restarts[of] += 1
            by_margin[of] = (restarts[of] > 1) & ~late | aims.by_margin
            masks = [None] * len(at) if descent.mask is None else [*descent.mask[at]]
            drawn = [
                starts.noise(row, attempt) if dense else starts.again(row, attempt, held)
                for row, attempt, dense, held in zip(
                    (first + of).tolist(), restarts[of].tolist(), late.tolist(), masks, strict=True
                )
            ]
            descent.restart(at, torch.stack(drawn).to(best.device, best.dtype), step + 1, late)
    prob = objective.log_prob(best, targets).exp()
    sparsity = descent.canvas.sparsity(best)
    success = (prob >= aims.p_min) & (sparsity <= aims.s_max)
    return best, prob, sparsity, torch.where(success, stop_step, aims.steps), success, restarts


def _without_direction(grad: Tensor) -> Tensor:
    """The images (indices) that have a gradient which is zero, or not finite, at every entry."""
    # The quickest norm tells most apart; entries whose squares are rounded to zero, or overflow, are looked at below.
    length: Tensor = torch.linalg.vector_norm(grad.flatten(1), dim=1)
    doubtful = (~((length > 0) & (length < math.inf))).nonzero()[:, 0]
    if len(doubtful) == 0:
        return doubtful
    part = grad[doubtful]
    return doubtful[~(part.isfinite() & (part != 0)).flatten(1).any(1)]


def _same(one: Tensor, other: Tensor) -> Tensor:
    same: Tensor = (one == other).flatten(1).all(1)
    return same
