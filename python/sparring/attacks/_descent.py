"""How `recover` moves a batch of images along their gradients: Adam with an L1 penalty, or steps in an L1 ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sparring import ops


@dataclass(frozen=True)
class Canvas:
    """What an image may be: entries in `bounds`, and none closer to `black` than `floor` but black itself."""

    black: float
    bounds: tuple[float, float]
    floor: float

    def fit(self, image: Tensor, mask: Tensor | None) -> None:
        """Clamp and floor `image` in place, and blacken where `mask` is False."""
        ops.recovery_step(
            image, torch.zeros_like(image), lr=0.0, lam=0.0, mask=mask,
            black=self.black, bounds=self.bounds, floor=self.floor,
        )  # fmt: skip

    def fitted(self, start: Tensor, mask: Tensor | None, rows: Tensor) -> Tensor:
        """`start` made to fit, which is of the images `rows` of those that `mask` is for; changed in place."""
        self.fit(start, None if mask is None else mask[rows])
        return start

    def sparsity(self, image: Tensor) -> Tensor:
        """Count the entries that are not black, int64 (B,)."""
        # Ones as numbers of the image's type add up several times as fast as bools.
        visible = torch.ne(image, self.black, out=torch.empty_like(image))
        return visible.flatten(1).sum(1, dtype=torch.float64 if image[:1].numel() > 2**24 else image.dtype).long()


@dataclass(frozen=True)
class Schedule:
    """Rates of the steps, counted from 0: `lam_final` from `lam_step` on, and half of `lr` from `lr_step` on."""

    lr: float
    lam: float
    lam_final: float | None = None
    lam_step: int | None = None
    lr_step: int | None = None

    def lr_at(self, step: int) -> float:
        return self.lr if self.lr_step is None or step < self.lr_step else self.lr / 2

    def lam_at(self, step: int) -> float:
        if self.lam_final is None or self.lam_step is None or step < self.lam_step:
            return self.lam
        return self.lam_final


class View(NamedTuple):
    """What is known of each image before a step, (B,): its loss, and whether it is sparse and probable enough."""

    loss: Tensor
    sparse: Tensor
    sure: Tensor

    def at(self, rows: Tensor) -> View:
        return View(*(part[rows] for part in self))


class Adam:
    """Adam on ``loss + weight lam |image - black|_1 / D``, every image with its own moments.

    `image` (B, ...) is the batch as it stands, `mask` bool of the same shape or None.
    """

    def __init__(
        self, start: Tensor, mask: Tensor | None, canvas: Canvas, schedule: Schedule, *, weight: float,
        penalty: Literal["subgradient", "prox"],
    ) -> None:  # fmt: skip
        self.image, self.mask, self.canvas = start.clone(), mask, canvas
        self.schedule, self.weight, self.penalty = schedule, weight, penalty
        self.canvas.fit(self.image, mask)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(start), torch.zeros_like(start)
        self.begun = torch.zeros(len(start), dtype=torch.int64, device=start.device)  # the first step of each image

    def step(self, step: int, grad: Tensor, view: View, frozen: Tensor) -> None:
        """Descend along `grad`, but for the `frozen` rows."""
        for begun in {*self.begun.tolist()}:  # more than one only where images have begun again
            ops.recovery_step(
                self.image, grad, lr=self.schedule.lr_at(step), lam=self.weight * self.schedule.lam_at(step),
                penalty=self.penalty, exp_avg=self.exp_avg, exp_avg_sq=self.exp_avg_sq, step=step + 1 - begun,
                mask=self.mask, frozen=frozen | (self.begun != begun),
                black=self.canvas.black, bounds=self.canvas.bounds, floor=self.canvas.floor,
            )  # fmt: skip

    def late(self, step: int) -> Tensor:
        """Which images have had their time, bool (B,): none."""
        return torch.zeros_like(self.begun, dtype=torch.bool)

    def restart(self, rows: Tensor, start: Tensor, step: int, late: Tensor) -> None:
        """Begin the images `rows` (indices) again at `start`, with `step`."""
        self.image[rows] = self.canvas.fitted(start, self.mask, rows)
        self.exp_avg[rows], self.exp_avg_sq[rows], self.begun[rows] = 0, 0, step

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        self.image, self.exp_avg, self.exp_avg_sq, self.begun = (
            part.index_select(0, rows) for part in (self.image, self.exp_avg, self.exp_avg_sq, self.begun)
        )
        self.mask = None if self.mask is None else self.mask[rows]


_OUTWARDS, _INWARDS = 20, 150
"""Steps without gain after which an image is late: one that goes outwards, and one that goes inwards."""
_RATE = 0.1
"""By which share the ball of an image that goes inwards shrinks in a step, or grows."""


class L1Ball:
    """Sparse steps, each projected onto an L1 ball around black that is each image's own.

    An image begins outwards. Steps of L1 norm at most ``lr k`` move the k steepest entries; the ball grows by `growth`
    of the step's length while the image is sparse enough, and shrinks by it while it is not. A step was too long if it
    crossed that line, or raised the loss of a sparse image: the next is half as long, and later ones grow back by a
    quarter each.

    One that is late begins again inwards, from a dense start that soon is of its class: its ball shrinks by a tenth in
    a step while the target is probable enough, and grows by a tenth while it is not. A step moves a fifth of the lit
    entries by half of `lr`. On networks trained to withstand attacks that finds what the way outwards does not; on
    others it takes more steps.

    An image gains when what it lowers is at its lowest by a hundredth: outwards its loss while it is sparse enough,
    inwards its norm while its target is probable enough.
    """

    def __init__(
        self, start: Tensor, mask: Tensor | None, canvas: Canvas, schedule: Schedule, *, k: int, growth: float,
        project_start: bool,
    ) -> None:  # fmt: skip
        self.mask, self.canvas, self.schedule, self.k, self.growth = mask, canvas, schedule, k, growth
        self.origin = torch.full_like(start, canvas.black)
        self.image = start.clone() if mask is None else start.masked_fill(~mask, canvas.black)
        self.length = torch.full((len(start),), schedule.lr_at(0) * k, dtype=start.dtype, device=start.device)
        self.radius = self.length.clone()
        if project_start:
            delta = self.image - self.origin
            self.image = self.origin + ops.project_l1_box(delta, self.origin, self.radius, canvas.bounds)
        else:
            self.radius = self.radius.maximum(self._norm(self.image))
        canvas.fit(self.image, mask)
        self.loss = torch.full_like(self.length, torch.inf)
        self.sparse = torch.ones_like(self.length, dtype=torch.bool)
        self.inwards = torch.zeros_like(self.sparse)
        self.lowest = self.loss
        self.gained = torch.zeros_like(self.sparse, dtype=torch.int64)  # the step of the last gain

    def step(self, step: int, grad: Tensor, view: View, frozen: Tensor) -> None:
        """Descend along `grad`, but for the `frozen` rows."""
        norm = self._norm(self.image)
        self._note_gains(step, view, norm)
        self._adapt(step, view)
        length, k = self.length, torch.full_like(self.gained, self.k)
        if bool(self.inwards.any()):
            k = torch.where(self.inwards, (self.canvas.sparsity(self.image) // 5).clamp(min=4), k)
            each = max(self.schedule.lr_at(step) / 2, self.canvas.floor)
            length = torch.where(self.inwards, (each * k).to(length), length)
            smaller, larger = self.radius.minimum(norm) * (1 - _RATE), self.radius.maximum(norm) * (1 + _RATE)
            self.radius = torch.where(self.inwards, torch.where(view.sure, smaller, larger), self.radius)
        delta = ops.l1_step(self.image - self.origin, -grad, self.origin, self.radius, length, k, self.canvas.bounds)
        moved = self.origin + delta
        self.canvas.fit(moved, self.mask)
        self.image = torch.where(_like(frozen, moved), self.image, moved)

    def _note_gains(self, step: int, view: View, norm: Tensor) -> None:
        lowered, counts = torch.where(self.inwards, norm, view.loss), torch.where(self.inwards, view.sure, view.sparse)
        gains = counts & (self.lowest.isinf() | (lowered < self.lowest - 0.01 * self.lowest.abs()))
        self.lowest = torch.where(gains, lowered, self.lowest)
        self.gained = torch.where(gains, step, self.gained)

    def _adapt(self, step: int, view: View) -> None:
        """Adapt length and radius to how far the last step went; of no moment to the images that go inwards."""
        longest = self.schedule.lr_at(step) * self.k
        too_long = (view.sparse != self.sparse) | (view.sparse & (view.loss > self.loss))
        self.length = (self.length * torch.where(too_long, 0.5, 1.25)).clamp(max=longest)
        change = self.growth * self.length
        radius = (self.radius + torch.where(view.sparse, change, -change)).clamp(min=self.growth * longest)
        self.radius = torch.where(self.inwards, self.radius, radius)
        self.loss, self.sparse = view.loss, view.sparse

    def late(self, step: int) -> Tensor:
        """Which images have had their time, bool (B,)."""
        return step - self.gained >= torch.where(self.inwards, _INWARDS, _OUTWARDS)

    def restart(self, rows: Tensor, start: Tensor, step: int, late: Tensor) -> None:
        """Begin the images `rows` (indices) again at `start`, with `step`, in balls that hold it; inwards if `late`."""
        longest = self.schedule.lr_at(step) * self.k
        self.image[rows] = self.canvas.fitted(start, self.mask, rows)
        self.length[rows] = longest
        self.radius[rows] = self._norm(self.image[rows]).clamp(min=longest)
        self.loss[rows], self.sparse[rows] = torch.inf, True
        self.inwards[rows], self.lowest[rows], self.gained[rows] = late, torch.inf, step

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        self.image, self.origin = self.image.index_select(0, rows), self.origin.index_select(0, rows)
        self.radius, self.length = self.radius[rows], self.length[rows]
        self.loss, self.sparse = self.loss[rows], self.sparse[rows]
        self.inwards, self.lowest, self.gained = self.inwards[rows], self.lowest[rows], self.gained[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def _norm(self, image: Tensor) -> Tensor:
        return (image - self.canvas.black).abs().flatten(1).sum(1)


def _like(rows: Tensor, image: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (image.dim() - 1))
