"""The parameters of the primitives besides their arrays: numbers, counts, masks and moments, checked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparring import _bridge as bridge
from sparring._bridge import Array


def not_negative(value: Any) -> Any:
    return value >= 0


def number(value: Any, name: str, accepted: str, valid: Any) -> float:
    """A single number that satisfies `valid`."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not valid(value):
        raise ValueError(f"{name} is {value}; accepted: {accepted}")
    return float(value)


def is_share(value: float) -> bool:
    return 0 <= value < 1


def is_positive(value: float) -> bool:
    return value > 0


def finite_not_negative(value: Any) -> Any:
    return (value >= 0) & (value < math.inf)


def moments(exp_avg: Array | None, exp_avg_sq: Array | None, image: Tensor, n: int) -> list[bridge.Rows]:
    """Adam's moments, both or neither."""
    if (exp_avg is None) != (exp_avg_sq is None):
        raise ValueError("exp_avg and exp_avg_sq go together: pass both (an Adam step) or neither (a plain one)")
    if exp_avg is None or exp_avg_sq is None:
        return []
    return [moment(exp_avg, "exp_avg", image, n), moment(exp_avg_sq, "exp_avg_sq", image, n)]


def moment(array: Array, name: str, image: Tensor, n: int) -> bridge.Rows:
    tensor = bridge.writable(array, name)
    bridge.check_like(tensor, name, image, "image")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is written in place, so it must be contiguous")
    return bridge.output_rows(tensor, name, n)


def bools(array: Array, name: str, image: Tensor, shapes: tuple[torch.Size, ...]) -> Tensor:
    """A contiguous bool tensor of one of the `shapes`, where `image` is."""
    tensor = bridge.as_tensor(array, name)
    if tensor.dtype is not torch.bool:
        raise TypeError(f"{name} must be bool, not {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.shape not in shapes:
        accepted = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted: {accepted}")
    if tensor.device != image.device:
        raise ValueError(f"{name} is on device '{tensor.device}', but image on '{image.device}'; nothing is moved")
    return tensor.contiguous()


def coordinates(k: Any, batch: Tensor) -> bridge.PerRow:
    """k as counts: integers >= 1, or fractions of D."""
    if type(k) is int and k >= 1:
        return bridge.PerRow(None, 0, k)
    n = bridge.shape_of(batch)[1]
    is_array = not isinstance(k, (int, float))
    k_array = bridge.as_tensor(k, "k") if is_array and hasattr(k, "__dlpack__") else None
    if isinstance(k, float) or (k_array is not None and k_array.dtype.is_floating_point):
        share = bridge.per_row(
            k, "k", batch, "integers >= 1, or fractions of D in (0, 1]", lambda f: (f > 0) & (f <= 1)
        )
        if share.tensor is None:
            return bridge.PerRow(None, 0, max(1, round(share.value * n)))
        counts = (share.tensor * n).round().clamp(min=1).to(torch.int64)
        return bridge.PerRow(counts, counts.data_ptr(), 0)
    return bridge.per_row(k, "k", batch, "integers >= 1, or fractions of D in (0, 1]", lambda c: c >= 1, torch.int64)
