"""The parameters of the primitives besides their arrays: numbers, counts, masks and moments, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparring import _bridge as bridge
from sparring._bridge import Array

LARGEST_FLOAT32 = torch.finfo(torch.float32).max
LARGEST_INT = 2**63 - 1


class PerRow(NamedTuple):
    """One number for all rows (``address`` 0), or one a row."""

    tensor: Tensor | None
    address: int
    value: float

    @property
    def given(self) -> float | Tensor:
        return self.value if self.tensor is None else self.tensor


def not_negative(value: Any) -> Any:
    return value >= 0


def is_share(value: float) -> bool:
    return 0 <= value < 1


def is_positive(value: float) -> bool:
    return value > 0


def is_finite_float32(value: float) -> bool:
    return abs(value) <= LARGEST_FLOAT32


def finite_not_negative(value: Any) -> Any:
    return (value >= 0) & (value < math.inf)


def number(value: Any, name: str, accepted: str, valid: Callable[[float], Any]) -> float:
    """A single number that satisfies `valid`."""
    if type(value) is not float:
        found = scalar(value, name)
        if found is None:
            raise TypeError(f"{name} must be a number, not an array of shape {tuple(value.shape)}")
        value = found
    if not valid(value):
        raise ValueError(f"{name} is {value}; accepted: {accepted}")
    return float(value)


def count(value: Any, name: str) -> int:
    """An integer >= 1; at most 2^63 - 1, which stands for all above it."""
    if type(value) is not int:
        try:
            found = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
        except (TypeError, RuntimeError):
            found = 0
    else:
        found = value
    if found < 1:
        raise ValueError(f"{name} is {value!r}; accepted: integers >= 1")
    return min(found, LARGEST_INT)


def scalar(value: Any, name: str) -> float | int | None:
    """`value` as a float, or as an int within float64's range; None if it is an array with a dimension.

    Numbers are Python's and NumPy's, fractions, decimals, and arrays without a dimension; a bool is none.
    """
    given = value
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim > 0:
            return None
        value = bridge.as_tensor(value, name).item()
    if isinstance(value, np.generic):
        value = float(value) if isinstance(value, np.floating) else value.item()
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        if hasattr(value, "__dlpack__"):
            return scalar(bridge.as_tensor(value, name), name)
        raise TypeError(f"{name} must be a number or an array of numbers, not {type(given).__name__}")
    try:
        as_float = float(value)
    except OverflowError:
        raise ValueError(f"{name} is beyond the numbers of float64, which end at 1.8e308") from None
    return int(value) if isinstance(value, Integral) else as_float


def per_row(value: Any, name: str, batch: Tensor, accepted: str, valid: Callable[[Any], Any]) -> PerRow:
    """A parameter that is one number or one a row, in float64. `valid` says of a number, or of a tensor entrywise,
    whether it will do."""
    if type(value) is not float:
        found = scalar(value, name)
        if found is None:
            return _array(bridge.as_tensor(value, name).detach(), name, batch, accepted, valid)
        value = float(found)
    if not valid(value):
        raise ValueError(f"{name} is {value}; accepted: {accepted}")
    return PerRow(None, 0, value)


def _array(
    tensor: Tensor,
    name: str,
    batch: Tensor,
    accepted: str,
    valid: Callable[[Tensor], Tensor],
    dtype: torch.dtype = torch.float64,
) -> PerRow:
    if tensor.dtype is torch.bool or tensor.dtype.is_complex or tensor.is_quantized:
        raise TypeError(f"{name} must be a number or an array of numbers, not of dtype {tensor.dtype}")
    if tensor.shape != batch.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; accepted: a number, or one a row, shape ({batch.shape[0]},)"
        )
    if tensor.device != batch.device:
        raise ValueError(f"{name} is on device '{tensor.device}', but the batch on '{batch.device}'; nothing is moved")
    numbers = bridge.in_memory(tensor, name).to(dtype)
    if tensor.dtype is torch.uint64 and dtype is torch.int64:  # which wraps
        numbers = torch.where(numbers < 0, LARGEST_INT, numbers)
    wrong = ~valid(numbers)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name} is {tensor[row].item()} in row {row}; accepted: {accepted}")
    return PerRow(numbers, numbers.data_ptr(), 0)


def exceeds_float32(parameter: PerRow) -> bool:
    """Whether a number of it is finite, but not in float32."""
    largest = parameter.value if parameter.tensor is None else parameter.tensor.max() if len(parameter.tensor) else 0.0
    return bool(largest > LARGEST_FLOAT32)


def betas(value: Any) -> tuple[float, float]:
    """Adam's two decay rates."""
    accepted = "two numbers in [0, 1)"
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"betas must be {accepted}, not {value!r}") from None
    if type(first) is float and type(second) is float and 0 <= first < 1 and 0 <= second < 1:
        return first, second
    return number(first, "betas", accepted, is_share), number(second, "betas", accepted, is_share)


def bounds_of(bounds: Any, dtype: torch.dtype) -> tuple[float, float]:
    """(lo, hi) with lo < hi; infinite ends allowed."""
    try:
        lo, hi = bounds
    except (TypeError, ValueError):
        raise TypeError(f"bounds must be two numbers (lo, hi), not {bounds!r}") from None
    if type(lo) is not float or type(hi) is not float:
        lo, hi = (number(end, "bounds", "two numbers (lo, hi)", lambda end: end == end) for end in (lo, hi))
    if not lo < hi:
        raise ValueError(f"bounds are ({lo}, {hi}); accepted: lo < hi")
    if dtype is torch.float32 and (lo > LARGEST_FLOAT32 or hi < -LARGEST_FLOAT32):
        raise ValueError(f"bounds are ({lo}, {hi}); accepted for float32: a box with numbers of that type in it")
    return lo, hi


def moments(exp_avg: Array | None, exp_avg_sq: Array | None, image: Tensor, rows: int, n: int) -> list[bridge.Rows]:
    """Adam's moments, both or neither."""
    if (exp_avg is None) != (exp_avg_sq is None):
        raise ValueError("exp_avg and exp_avg_sq go together: pass both (an Adam step) or neither (a plain one)")
    if exp_avg is None or exp_avg_sq is None:
        return []
    return [_moment(exp_avg, "exp_avg", image, rows, n), _moment(exp_avg_sq, "exp_avg_sq", image, rows, n)]


def _moment(array: Array, name: str, image: Tensor, rows: int, n: int) -> bridge.Rows:
    tensor = bridge.writable(array, name)
    bridge.check_like(tensor, name, image, "image")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is written in place, so it must be contiguous")
    return bridge.output_rows(tensor, name, rows, n)


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
    return bridge.in_memory(tensor, name)


def counters(array: Array, name: str, batch: Tensor) -> Tensor:
    """A contiguous int64 tensor, one number a row, that is written in place."""
    tensor = bridge.writable(array, name)
    if tensor.dtype is not torch.int64:
        raise TypeError(f"{name} must be int64, not {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.shape != batch.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted: one a row, shape ({batch.shape[0]},)")
    if tensor.device != batch.device:
        raise ValueError(f"{name} is on device '{tensor.device}', but the batch on '{batch.device}'; nothing is moved")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is written in place, so it must be contiguous")
    return bridge.output_rows(tensor, name, 1, batch.shape[0]).tensor


def coordinates(k: Any, batch: Tensor, places: int | None = None, *, least: int = 1) -> PerRow:
    """k as counts: integers >= `least`, or shares of `places` (None: D) of at least one place."""
    of = "D" if places is None else "the places"
    accepted = f"integers >= {least}, or fractions of {of} in (0, 1]"
    found = k if type(k) is int else scalar(k, "k")
    if isinstance(found, int):
        if found < least:
            raise ValueError(f"k is {found}; accepted: {accepted}")
        return PerRow(None, 0, min(found, LARGEST_INT))
    n = bridge.shape_of(batch)[1] if places is None else places
    if isinstance(found, float):
        if not 0 < found <= 1:
            raise ValueError(f"k is {found}; accepted: {accepted}")
        return PerRow(None, 0, max(1, round(found * n)))
    array = bridge.as_tensor(k, "k").detach()
    if not array.dtype.is_floating_point:
        return _array(array, "k", batch, accepted, lambda c: c >= least, torch.int64)
    share = _array(array, "k", batch, accepted, lambda f: (f > 0) & (f <= 1))
    assert share.tensor is not None
    counts = (share.tensor * n).round().clamp(min=1).to(torch.int64)
    return PerRow(counts, counts.data_ptr(), 0)


def channels_of(channels: Any, n: int) -> int:
    """In how many equal parts, one a channel, a row of `n` entries is laid out."""
    found = count(channels, "channels")
    if n % found:
        raise ValueError(f"channels is {found}; accepted: divisors of the {n} entries of an example")
    return found
