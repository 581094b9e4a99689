"""Random numbers on the device, each example's from a seed of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring import _bridge as bridge


def fill_uniform(
    out: Tensor, seeds: Tensor, occasion: int, low: float, high: float, wanted: Tensor | None = None
) -> Tensor:
    """Fill the rows of `out` that are `wanted` (bool (B,); None: all) with numbers uniform in [low, high).

    They follow from the row's seed, int64 (B,), and the `occasion` alone. `out` (B, ...), float32 or float64, is
    contiguous; it is returned.
    """
    bridge.native.uniform_rows(
        out.dtype is torch.float64,
        *bridge.place_of(out, "out"),
        *bridge.shape_of(out),
        seeds.data_ptr(),
        occasion,
        0 if wanted is None else wanted.data_ptr(),
        low,
        high,
        out.data_ptr(),
    )
    return out
