"""How `recover` moves a batch of images along their gradients: Adam with an L1 penalty, or steps in an L1 ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparring import ops


@dataclass(frozen=True)
class Canvas:
    """What an image may be: entries in `bounds`, and none closer to `black` than `floor` but black itself."""

    black: float
    bounds: tuple[float, float]
    floor: float

    def fit(self, image: Tensor, mask: Tensor | None, frozen: Tensor | None = None) -> None:
        """Clamp and floor `image` in place, and blacken where `mask` is False; leave the `frozen` rows alone."""
        ops.recovery_step(
            image, torch.zeros_like(image), lr=0.0, lam=0.0, mask=mask, frozen=frozen,
            black=self.black, bounds=self.bounds, floor=self.floor,
        )  # fmt: skip

    def sparsity(self, image: Tensor) -> Tensor:
        """Count the entries that are not black, int64 (B,)."""
        return (image != self.black).flatten(1).sum(1)


class Adam:
    """Adam on ``loss + lam |image - black|_1 / D``, every image with its own moments.

    `image` (B, ...) is the batch as it stands, `mask` bool of the same shape or None.
    """

    def __init__(
        self, start: Tensor, mask: Tensor | None, canvas: Canvas, *, lr: float, lam: float,
        penalty: Literal["subgradient", "prox"],
    ) -> None:  # fmt: skip
        self.image, self.mask, self.canvas = start.clone(), mask, canvas
        self.lr, self.lam, self.penalty = lr, lam, penalty
        self.canvas.fit(self.image, mask)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(start), torch.zeros_like(start)
        self.steps = 0

    def step(self, grad: Tensor, log_prob: Tensor, sparse: Tensor, frozen: Tensor | None) -> None:
        """Descend along `grad`, the gradient of ``-log_prob``, but for the `frozen` rows."""
        self.steps += 1
        ops.recovery_step(
            self.image, grad, lr=self.lr, lam=self.lam, penalty=self.penalty,
            exp_avg=self.exp_avg, exp_avg_sq=self.exp_avg_sq, step=self.steps, mask=self.mask, frozen=frozen,
            black=self.canvas.black, bounds=self.canvas.bounds, floor=self.canvas.floor,
        )  # fmt: skip

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those where `rows` (bool (B,)) is True."""
        self.image, self.exp_avg, self.exp_avg_sq = self.image[rows], self.exp_avg[rows], self.exp_avg_sq[rows]
        self.mask = None if self.mask is None else self.mask[rows]


class L1Ball:
    """Steps of L1 norm at most ``lr k`` on the k steepest entries, projected onto a ball around black.

    Each image has its own ball and step length. The ball grows by `growth` of the step's length while the image is
    sparse enough, and shrinks by it while it is not. A step was too long if it crossed that line, or raised the loss of
    a sparse image: the next is half as long, and later ones grow back by a quarter each.
    """

    def __init__(
        self, start: Tensor, mask: Tensor | None, canvas: Canvas, *, lr: float, k: int, growth: float,
        project_start: bool,
    ) -> None:  # fmt: skip
        self.mask, self.canvas = mask, canvas
        self.k, self.growth, self.longest = k, growth, lr * k
        self.origin = torch.full_like(start, canvas.black)
        self.image = start.clone() if mask is None else start.masked_fill(~mask, canvas.black)
        delta = self.image - self.origin
        self.length = torch.full((len(start),), self.longest, dtype=start.dtype, device=start.device)
        self.radius = self.length.clone()
        if project_start:
            self.image = self.origin + ops.project_l1_box(delta, self.origin, self.radius, canvas.bounds)
        else:
            self.radius = self.radius.maximum(delta.abs().flatten(1).sum(1))
        canvas.fit(self.image, mask)
        self.log_prob = torch.full_like(self.length, -torch.inf)
        self.sparse = torch.ones_like(self.length, dtype=torch.bool)

    def step(self, grad: Tensor, log_prob: Tensor, sparse: Tensor, frozen: Tensor | None) -> None:
        """Descend along `grad`, the gradient of ``-log_prob``, but for the `frozen` rows."""
        too_long = (sparse != self.sparse) | (sparse & (log_prob < self.log_prob))
        self.length = (self.length * torch.where(too_long, 0.5, 1.25)).clamp(max=self.longest)
        change = self.growth * self.length
        self.radius = (self.radius + torch.where(sparse, change, -change)).clamp(min=self.growth * self.longest)
        self.log_prob, self.sparse = log_prob, sparse
        ascent = -grad if self.mask is None else torch.where(self.mask, -grad, 0)
        delta = ops.l1_step(
            self.image - self.origin, ascent, self.origin, self.radius, self.length, self.k, self.canvas.bounds
        )
        moved = self.origin + delta
        self.canvas.fit(moved, self.mask)
        self.image = moved if frozen is None else torch.where(_like(frozen, moved), self.image, moved)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those where `rows` (bool (B,)) is True."""
        self.image, self.origin = self.image[rows], self.origin[rows]
        self.radius, self.length = self.radius[rows], self.length[rows]
        self.log_prob, self.sparse = self.log_prob[rows], self.sparse[rows]
        self.mask = None if self.mask is None else self.mask[rows]


def _like(rows: Tensor, image: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (image.dim() - 1))
