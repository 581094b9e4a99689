"""Random search over few places of many images at once, each with a state and random numbers of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, float64, int32, int64, uint8

from sparring import _bridge as bridge


class SparseSearch:
    """Raises a loss by changing at most `k` places of every image of a batch: see ``csrc/ops/sparse_search.h``.

    The caller evaluates `trials` and hands the answers to `answered`, which draws the next. Every tensor among the
    attributes has one entry an image, so that images can leave.

    Parameters
    ----------
    x : (B, ...), float32 or float64, contiguous
        The images, in the bounds.
    channels
        How many entries, one in each channel, make a place; 1, or the images' second dimension.
    k : int64 (B,)
        Places that may differ, at most all of them.
    seeds : int64 (B,)
        Of each image's random numbers, on the images' device.
    bounds
        Ends of the box.
    local
        How likely a place joins beside another one.
    stop
        Leave an image as it is once it fools.

    Attributes
    ----------
    trials : (B, T, ...)
        Where to ask the model next: of every image the same number of points, at first one.
    queries : int
        Answered so far for each image that has not stopped.
    best : (B, ...), best_loss : float64 (B,), best_fooled : bool (B,)
        The best trial: one that fools before any other, then of highest loss; of those alike the last.
    used : int64 (B,)
        Number of the query, from 1, that first fooled; 0 where none did.
    """

    def __init__(
        self, x: Tensor, channels: int, k: Tensor, seeds: Tensor, bounds: tuple[float, float], *, local: float,
        stop: bool,
    ) -> None:  # fmt: skip
        rows, device = len(x), x.device
        self.bounds, self._local, self._stop, self._channels = bounds, local, stop, channels
        *planes, lines, columns = (1, 1, *(x.shape[2:] if channels > 1 else x.shape[1:]))
        self._grid = (math.prod(planes), lines, columns)
        self._most = max(1, int(k.max())) if rows else 1
        self.queries = 0
        self.x, self.best, self.k, self.seeds = x, x.clone(), k, seeds
        self.best_loss = torch.full((rows,), -math.inf, dtype=float64, device=device)
        self.best_fooled = torch.zeros(rows, dtype=torch.bool, device=device)
        self.used = torch.zeros(rows, dtype=int64, device=device)
        self._chosen = torch.zeros(rows, self._most, dtype=int32, device=device)
        self._swaps = torch.zeros(rows, dtype=int32, device=device)
        self._member = torch.zeros(rows, math.prod(self._grid), dtype=uint8, device=device)
        self._try(1)
        self._call(None, None, 1.0, proposes=True)

    def _try(self, trials: int) -> None:
        """Have so many trials of each image from now on; as yet they are all the best."""
        self.trials = self.best[:, None].repeat_interleave(trials, 1)
        shape = (len(self.best), trials, self._most)
        self._leaving, self._joining = (torch.zeros(shape, dtype=int32, device=self.best.device) for _ in range(2))

    def answered(self, loss: Tensor, fooled: Tensor, share: float, trials: int) -> None:
        """Judge the trials by their loss, (B, T), and whether they fool, bool (B, T); and draw the next.

        Of every image there are as many as `trials`, and `share` of its set, one place at least, is exchanged in each.
        """
        loss, fooled = loss.to(self.x.dtype).contiguous(), fooled.contiguous()
        same = trials == self.trials.shape[1]
        self.queries += self.trials.shape[1]
        self._call(loss, fooled, share, proposes=same)
        if not same:
            self._try(trials)
            self._call(None, None, share, proposes=True)

    def _call(self, loss: Tensor | None, fooled: Tensor | None, share: float, *, proposes: bool) -> None:
        bridge.native.sparse_search(
            self.x.dtype is float64,
            *bridge.place_of(self.x, "inputs"),
            len(self.x),
            self._most,
            self._channels,
            self.trials.shape[1],
            *self._grid,
            self.x.data_ptr(),
            self.trials.data_ptr(),
            self.best.data_ptr(),
            0 if loss is None else loss.data_ptr(),
            0 if fooled is None else fooled.data_ptr(),
            self.queries == 0,
            proposes,
            self.k.data_ptr(),
            self.seeds.data_ptr(),
            self.best_loss.data_ptr(),
            self.best_fooled.data_ptr(),
            self.used.data_ptr(),
            self._chosen.data_ptr(),
            self._leaving.data_ptr(),
            self._joining.data_ptr(),
            self._swaps.data_ptr(),
            self._member.data_ptr(),
            self.queries,
            share,
            self._local,
            self._stop,
            *self.bounds,
        )

    def keep(self, rows: Tensor) -> None:
        """Drop all images but `rows` (indices)."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.index_select(0, rows))
