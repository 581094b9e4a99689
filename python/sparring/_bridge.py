"""From an array to what the compiled module takes: address, row stride, device and stream. The only place that knows
how.

Memory always belongs to the caller's library; nothing is moved between devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sparring import _core

native: Any = _core

Array: TypeAlias = Any
"""A torch tensor, a NumPy array, or anything with ``__dlpack__``."""


class Place(NamedTuple):
    """Where an op runs: ``device`` is -1 for the CPU, else a CUDA device with the current ``stream`` of it."""

    device: int
    stream: int
    threads: int


class Rows(NamedTuple):
    """A batch as rows of numbers that lie next to each other. ``tensor`` keeps the memory alive."""

    tensor: Tensor
    address: int
    stride: int


class PerRow(NamedTuple):
    """One number for all rows (``address`` 0), or one a row."""

    tensor: Tensor | None
    address: int
    value: float


def place_of(tensor: Tensor, name: str) -> Place:
    """Where an op on `tensor` runs; ValueError for a device that has no kernels."""
    if tensor.is_cpu:
        return _on_cpu(torch.get_num_threads())
    kind = tensor.device.type
    if kind == "cuda" and _core.build_info()["cuda"]:
        return Place(tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream, 1)
    why = "this build of sparring has no CUDA kernels; supported: cpu" if kind == "cuda" else "supported: cpu, cuda"
    raise ValueError(f"{name} is on device '{tensor.device}', for which there are no kernels ({why})")


@lru_cache
def _on_cpu(threads: int) -> Place:
    return Place(-1, 0, threads)


def as_tensor(array: Array, name: str) -> Tensor:
    """`array` as a tensor that shares its memory (a read-only NumPy array is copied)."""
    if isinstance(array, Tensor):
        if array.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense array, not one of layout {array.layout}")
        return array
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} must be an array of numbers, not of dtype {array.dtype}")
        if not array.flags.writeable or min(array.strides, default=0) < 0 or not array.dtype.isnative:
            array = np.array(array, dtype=array.dtype.newbyteorder("="))
        return torch.from_numpy(array)
    if hasattr(array, "__dlpack__"):
        return torch.utils.dlpack.from_dlpack(array)
    raise TypeError(
        f"{name} must be a torch tensor, a NumPy array or an array with __dlpack__, not {type(array).__name__}"
    )


def like(result: Tensor, array: Array) -> Array:
    """`result` as an array of the library that `array` comes from."""
    if isinstance(array, Tensor):
        return result
    if isinstance(array, np.ndarray):
        return result.numpy()
    namespace = getattr(array, "__array_namespace__", None)
    return result if namespace is None else namespace().from_dlpack(result)


def check_batch(tensor: Tensor, name: str) -> None:
    """TypeError unless float32 or float64; ValueError without a batch dimension."""
    if tensor.dtype is not torch.float32 and tensor.dtype is not torch.float64:
        raise TypeError(f"{name} must be float32 or float64, not {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.ndim < 1:
        raise ValueError(f"{name} must have a batch dimension (shape (B, ...)), but is a scalar")


def check_like(tensor: Tensor, name: str, model: Tensor, model_name: str) -> None:
    """Error unless `tensor` has the dtype, shape and device of `model`."""
    if tensor.dtype is not model.dtype:
        have, want = (str(t.dtype).removeprefix("torch.") for t in (tensor, model))
        raise TypeError(f"{name} is {have}, but {model_name} is {want}; both must have the same dtype")
    if tensor.shape != model.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but {model_name} has {tuple(model.shape)}; they must agree"
        )
    if tensor.device != model.device:
        raise ValueError(
            f"{name} is on device '{tensor.device}', but {model_name} on '{model.device}'; nothing is moved"
        )


def row_view(tensor: Tensor) -> Tensor | None:
    """`tensor` as (B, D) whose rows are contiguous, without a copy; None if its strides do not allow that."""
    if tensor.ndim != 2:
        try:
            tensor = tensor.view(shape_of(tensor))
        except RuntimeError:
            return None
    return tensor if tensor.shape[1] <= 1 or tensor.stride(1) == 1 else None


def shape_of(batch: Tensor) -> tuple[int, int]:
    """(B, D) of a batch of any shape."""
    rows = len(batch)
    return rows, batch.numel() // rows if rows else math.prod(batch.shape[1:])


def input_rows(tensor: Tensor, n: int) -> Rows:
    """The rows, of `n` numbers, of an input; copied where its strides do not allow to read them in place."""
    if tensor.is_contiguous():
        return Rows(tensor, tensor.data_ptr(), n)
    rows = row_view(tensor)
    if rows is None:
        rows = tensor.contiguous().view(tensor.shape[0], n)
    return Rows(rows, rows.data_ptr(), rows.stride(0))


def output_rows(tensor: Tensor, name: str, n: int) -> Rows:
    """The rows of a tensor that is written; ValueError where they cannot be written in place."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires grad; pass a tensor that does not (for example {name}.detach())")
    if tensor.is_contiguous():
        return Rows(tensor, tensor.data_ptr(), n)
    rows = row_view(tensor)
    if rows is None or (rows.shape[0] > 1 and rows.stride(0) < n):
        raise ValueError(f"{name} is written in place, so its rows must be contiguous and must not overlap")
    return Rows(rows, rows.data_ptr(), rows.stride(0))


def writable(array: Array, name: str) -> Tensor:
    """`array` as a tensor through which the caller's own memory is written."""
    if isinstance(array, Tensor):
        return as_tensor(array, name)
    if isinstance(array, np.ndarray) and (not array.flags.writeable or min(array.strides, default=0) < 0):
        raise ValueError(f"{name} is written in place, so it must be writable and have positive strides")
    if type(array).__module__.partition(".")[0] in ("jax", "jaxlib"):
        raise TypeError(f"{name} is written in place, but JAX arrays are immutable")
    return as_tensor(array, name)


def per_row(
    value: Any, name: str, batch: Tensor, accepted: str, valid: Callable[[Any], Any], dtype: torch.dtype = torch.float64
) -> PerRow:
    """A parameter that is one number or one a row. `valid` says of a number, or of a tensor entrywise, whether it will
    do."""
    if type(value) is float or type(value) is int:
        if not valid(value):
            raise ValueError(f"{name} is {value}; accepted: {accepted}")
        return PerRow(None, 0, value)
    if not (isinstance(value, (Tensor, np.ndarray, np.generic)) or hasattr(value, "__dlpack__")):
        raise TypeError(f"{name} must be a number or an array of shape (B,), not {type(value).__name__}")
    tensor = as_tensor(np.asarray(value) if isinstance(value, np.generic) else value, name).detach()
    if tensor.dtype is torch.bool or tensor.dtype.is_complex:
        raise TypeError(f"{name} must be a number or an array of numbers, not of dtype {tensor.dtype}")
    if dtype is torch.int64 and tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must be an integer or an array of integers, not of dtype {tensor.dtype}")
    if tensor.ndim == 0:
        return per_row(tensor.item(), name, batch, accepted, valid, dtype)
    if tensor.shape != batch.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; accepted: a number, or one a row, shape ({batch.shape[0]},)"
        )
    if tensor.device != batch.device:
        raise ValueError(f"{name} is on device '{tensor.device}', but the batch on '{batch.device}'; nothing is moved")
    wrong = ~valid(tensor)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name} is {tensor[row].item()} in row {row}; accepted: {accepted}")
    tensor = tensor.to(dtype).contiguous()
    return PerRow(tensor, tensor.data_ptr(), 0)


def bounds_of(bounds: Any) -> tuple[float, float]:
    """(lo, hi) with lo < hi; infinite ends allowed."""
    try:
        lo, hi = bounds
        lo, hi = float(lo), float(hi)
    except (TypeError, ValueError):
        raise TypeError(f"bounds must be two numbers (lo, hi), not {bounds!r}") from None
    if not lo < hi:
        raise ValueError(f"bounds are ({lo}, {hi}); accepted: lo < hi")
    return lo, hi


def status_for(place: Place, tensor: Tensor, wanted: bool) -> Tensor | None:
    """Where a CUDA kernel writes the lowest row that is not finite; None where it need not or where the CPU returns
    it."""
    if place.device < 0 or not wanted:
        return None
    return torch.full((), native.NO_ROW, dtype=torch.int64, device=tensor.device)


def raise_if_not_finite(row: int, status: Tensor | None, inputs: dict[str, Tensor]) -> None:
    """ValueError that names the lowest row with NaN or inf and the argument that has it there."""
    if status is not None:
        row = int(status.item())
    if row == native.NO_ROW:
        return
    guilty = [name for name, tensor in inputs.items() if not bool(torch.isfinite(tensor[row]).all())]
    raise ValueError(
        f"{' and '.join(guilty)} has NaN or inf in row {row}; pass check_finite=False to let such rows through"
    )
