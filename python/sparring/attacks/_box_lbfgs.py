"""L-BFGS in a box for many problems at once, each with a state and a pace of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, float64, int64, uint8

from sparring import _bridge as bridge

PENALTIES = ("squared L2", "L2", "L1")
"""|r|_2^2, |r|_2 and |r|_1, as ``csrc/ops/penalised.h`` numbers them."""

MOST_PAIRS = 16
"""That a history may have."""

REJECTED, ACCEPTED, CONVERGED, STUCK = range(4)
"""What `BoxLbfgs.accept` says of a trial: see ``csrc/ops/lbfgs_accept.h``."""

FIRST_STEP = 0.03
"""Root mean square of a step without knowledge of the curvature, as a share of the box's width."""


class BoxLbfgs:
    """Minimises ``weight penalty(z - x) - loss(z)`` over a box, for every row of a batch on its own.

    The caller evaluates the loss at `trial`, hands loss and gradient to `accept`, and asks by `advance` for the next
    trial, in between maybe with another weight, float64 (B,). Every tensor among the attributes has one entry a row, so
    that rows can leave.

    Parameters
    ----------
    x : (B, ...), float32 or float64, contiguous
        The centres, in the box.
    penalty
        One of `PENALTIES`.
    bounds
        Ends of the box.
    start : (B, ...)
        The first trials, in the box; None: the centres.
    history
        Pairs of steps and changes of the gradient to remember, 1 ... `MOST_PAIRS`.
    tolerance
        A row has converged where a step lowers its objective by this share of it, or less.

    Attributes
    ----------
    trial : (B, ...)
        Where to evaluate the loss next.
    margin : (B,)
        At z, the last point accepted.
    best : (B, ...), best_distance : float64 (B,)
        Of all trials with a margin above 0 the nearest, and its distance (its square for "squared L2" and "L2"); inf
        where there was none.
    """

    def __init__(
        self, x: Tensor, penalty: str, bounds: tuple[float, float], *, history: int, tolerance: float,
        start: Tensor | None = None,
    ) -> None:  # fmt: skip
        rows, device = len(x), x.device
        self.bounds, self.history, self.tolerance = bounds, history, tolerance
        self._penalty = PENALTIES.index(penalty)
        self.x = x
        self.trial, self.best = (x if start is None else start).clone(), x.clone()
        self.margin = torch.full((rows,), -math.inf, dtype=x.dtype, device=device)
        self.best_distance = torch.full((rows,), math.inf, dtype=float64, device=device)
        self.point, self._grad = x.clone(), torch.zeros_like(x)
        self._loss = torch.full((rows,), math.nan, dtype=float64, device=device)
        self._distance = torch.zeros(rows, dtype=float64, device=device)
        self._s, self._y = (torch.empty(rows, history, x[:1].numel(), dtype=x.dtype, device=device) for _ in range(2))
        self._pairs, self._shrinks = (torch.zeros(rows, dtype=int64, device=device) for _ in range(2))

    def accept(self, weight: Tensor, grad: Tensor, loss: Tensor, margin: Tensor, frozen: Tensor) -> Tensor:
        """Judge the trials, but of rows that are `frozen` (bool (B,)): one of the four verdicts a row, uint8 (B,)."""
        rows, n = len(self.x), self.x[:1].numel()
        verdict = torch.empty(rows, dtype=uint8, device=self.x.device)
        grad, loss, margin = (given.to(self.x.dtype).contiguous() for given in (grad, loss, margin))
        bridge.native.lbfgs_accept(
            self.x.dtype is float64,
            *bridge.place_of(self.x, "inputs"),
            rows,
            n,
            self._penalty,
            self.x.data_ptr(),
            grad.data_ptr(),
            loss.data_ptr(),
            margin.data_ptr(),
            weight.data_ptr(),
            frozen.data_ptr(),
            self.tolerance,
            self.trial.data_ptr(),
            self.point.data_ptr(),
            self._grad.data_ptr(),
            self._loss.data_ptr(),
            self._distance.data_ptr(),
            self.margin.data_ptr(),
            self.history,
            self._s.data_ptr(),
            self._y.data_ptr(),
            self._pairs.data_ptr(),
            self._shrinks.data_ptr(),
            self.best.data_ptr(),
            self.best_distance.data_ptr(),
            verdict.data_ptr(),
        )
        return verdict

    def advance(self, weight: Tensor, wanted: Tensor) -> None:
        """Have a new trial for the rows `wanted` (bool (B,)), whose last one was not rejected."""
        rows, n = len(self.x), self.x[:1].numel()
        place = bridge.place_of(self.x, "inputs")
        slots = rows if place.device >= 0 else place.threads
        scratch = torch.empty(slots, n, dtype=self.x.dtype, device=self.x.device)
        low, high = self.bounds
        bridge.native.lbfgs_direction(
            self.x.dtype is float64,
            *place,
            rows,
            n,
            self._penalty,
            self.x.data_ptr(),
            self.point.data_ptr(),
            self._grad.data_ptr(),
            weight.data_ptr(),
            self._distance.data_ptr(),
            wanted.data_ptr(),
            self.history,
            self._s.data_ptr(),
            self._y.data_ptr(),
            self._pairs.data_ptr(),
            FIRST_STEP * (high - low),
            low,
            high,
            self.trial.data_ptr(),
            scratch.data_ptr(),
        )

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
