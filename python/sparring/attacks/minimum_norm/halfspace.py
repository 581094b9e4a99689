"""The nearest point of a box in a half-space: the step of attacks that go by a linear approximation of the model."""

from __future__ import annotations

import torch
from torch import Tensor


def project_halfspace_box(w: Tensor, b: Tensor, x: Tensor, norm: str, bounds: tuple[float, float]) -> Tensor:
    """The smallest perturbations v with ``sum(w v) >= b`` and ``x + v`` in the bounds (Croce & Hein 2020, section 3).

    Parameters
    ----------
    w, x
        (B, ...).
    b
        (B,); v is 0 where b is not positive.
    norm
        "L2", "L1" or "Linf": in which v is smallest. In L1 entries move as far as they can, largest ``|w|`` first; else
        all move along w, or its sign, until they meet the box.

    Returns
    -------
    (B, ...) like `w`, computed in float64. Where no point of the box reaches b, the one that comes nearest.
    """
    rows, low, high = (part.flatten(1).double() for part in (w, bounds[0] - x, bounds[1] - x))
    wanted, size = b.double().clamp(min=0)[:, None], rows.abs()
    room = torch.where(rows > 0, high, torch.where(rows < 0, -low, 0.0)).clamp(min=0)
    if norm == "L1":
        largest, order = size.sort(dim=1, descending=True)
        free = room.gather(1, order)
        gained = (largest * free).cumsum(1)
        rest = (wanted - (gained - largest * free)).clamp(min=0) / largest.clamp(min=1e-300)
        moved = torch.zeros_like(rows).scatter_(1, order, free.minimum(rest))
    else:
        pace = size if norm == "L2" else torch.ones_like(size)  # of each entry while it is free
        gain = torch.where(room > 0, size * pace, 0.0)  # and by how much it brings the sum forward
        met, order = torch.where(gain > 0, room / pace, 0.0).sort(dim=1)  # when it meets the box
        gain_then = gain.gather(1, order)
        stopped = (met * gain_then).cumsum(1)
        still = gain_then.sum(1, keepdim=True) - gain_then.cumsum(1)
        before = (stopped + still * met < wanted).sum(1, keepdim=True)
        at = (before - 1).clamp(min=0)
        done = torch.where(before > 0, stopped.gather(1, at), 0.0)
        going = torch.where(before > 0, still.gather(1, at), gain_then.sum(1, keepdim=True))
        moved = ((wanted - done) / going.clamp(min=1e-300) * pace).minimum(room)
    return (moved * rows.sign()).to(w.dtype).reshape(w.shape)
