"""From an array to what the compiled module takes: address, row stride, device and stream. The only place that knows
how, and the gate that every array passes on its way: what has no plain memory of its own is refused by name.

Memory always belongs to the caller's library; nothing is moved between devices.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sparring import _core
from sparring import _gate as gate
from sparring._gate import check_memory as check_memory

native: Any = _core

Array: TypeAlias = Any
"""A torch tensor, a NumPy array, or anything with ``__dlpack__``."""


class Place(NamedTuple):
    """Where an op runs: ``device`` is -1 for the CPU, else a CUDA device with the current ``stream`` of it."""

    device: int
    stream: int
    threads: int


class Rows(NamedTuple):
    """A batch as so many `rows` of `n` numbers that lie next to each other. ``tensor`` keeps the memory alive."""

    tensor: Tensor
    address: int
    stride: int
    rows: int
    n: int


def place_of(tensor: Tensor, name: str) -> Place:
    """Where an op on `tensor` runs; ValueError for a device that has no kernels, and what the gate
    raises."""
    gate.refuse_tracing()
    gate.plain(tensor, name, in_place=True)
    if tensor.is_cpu:
        return _on_cpu(torch.get_num_threads())
    if not (tensor.is_cuda and _core.build_info()["cuda"]):
        gate.no_kernels(tensor, name)
    return Place(tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream, 1)


@lru_cache
def _on_cpu(threads: int) -> Place:
    return Place(-1, 0, threads)


def as_tensor(array: Array, name: str) -> Tensor:
    """`array` as a plain tensor that shares its memory where that can be read in place."""
    return gate.plain(converted(array, name), name)


def converted(array: Array, name: str) -> Tensor:
    """`array` as a tensor; one that is a tensor already does not pass the gate."""
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        if not _readable(array, name):
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(array)
    if hasattr(type(array), "__torch_function__"):
        raise TypeError(
            f"{name} is a {type(array).__name__}, which stands for a tensor; trace with torch.export, torch.jit.trace "
            "or make_fx, or hide the call from symbolic tracing with torch.fx.wrap"
        )
    if hasattr(array, "__dlpack__"):
        try:
            return torch.utils.dlpack.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{name}, a {type(array).__name__}, cannot be read through DLPack: {error}") from error
    raise TypeError(
        f"{name} must be a torch tensor, a NumPy array or an array with __dlpack__, not {type(array).__name__}"
    )


def _readable(array: np.ndarray, name: str) -> bool:
    """Whether torch can read the array where it is; TypeError if its numbers are none of torch's."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; pass {name}.filled(...)")
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must be an array of numbers that torch has, not of dtype {array.dtype}")
    size = array.dtype.itemsize
    strides_fit = all(stride >= 0 and stride % size == 0 for stride in array.strides)
    return array.flags.writeable and array.flags.aligned and array.dtype.isnative and strides_fit


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
    rows = batch.shape[0]
    return rows, batch.numel() // rows if rows else math.prod(batch.shape[1:])


def input_rows(tensor: Tensor, name: str, count: int, n: int) -> Rows:
    """The rows, `count` of `n` numbers, of an input; copied where they cannot be read in place."""
    size = tensor.itemsize
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + count * n) * size:
        address, stride = tensor.data_ptr(), n
    else:
        check_memory(tensor, name)
        rows = row_view(tensor)
        tensor, stride = (tensor.contiguous(), n) if rows is None else (rows, rows.stride(0))
        address = tensor.data_ptr()
    if address % size:
        tensor, stride = tensor.clone(memory_format=torch.contiguous_format), n
        address = tensor.data_ptr()
    return Rows(tensor, address, stride, count, n)


def new_rows(like: Tensor, count: int, n: int) -> Rows:
    """A new tensor of that shape, dtype and device, and its rows."""
    tensor = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return Rows(tensor, tensor.data_ptr(), n, count, n)


def output_rows(tensor: Tensor, name: str, count: int, n: int) -> Rows:
    """The rows of a tensor that is written; ValueError where they cannot be written in place."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires grad; pass a tensor that does not (for example {name}.detach())")
    size = tensor.itemsize
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + count * n) * size:
        address, stride = tensor.data_ptr(), n
    else:
        check_memory(tensor, name)
        rows = row_view(tensor)
        if rows is None or (count > 1 and rows.stride(0) < n):
            raise ValueError(f"{name} is written in place, so its rows must be contiguous and must not overlap")
        tensor, address, stride = rows, rows.data_ptr(), rows.stride(0)
    if address % size:
        raise ValueError(f"{name} is written in place, so its address must be a multiple of {size} bytes")
    return Rows(tensor, address, stride, count, n)


def in_memory(tensor: Tensor, name: str) -> Tensor:
    """`tensor` as contiguous and aligned memory, copied where it is not."""
    check_memory(tensor, name)
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % tensor.itemsize else tensor


def writable(array: Array, name: str) -> Tensor:
    """`array` as a tensor through which the caller's own memory is written."""
    if isinstance(array, Tensor):
        return gate.plain(array, name, in_place=True)
    if isinstance(array, np.ndarray) and not _readable(array, name):
        raise ValueError(
            f"{name} is written in place, so it must be writable, aligned, in native byte order and of positive strides"
        )
    if type(array).__module__.partition(".")[0] in ("jax", "jaxlib"):
        raise TypeError(f"{name} is written in place, but JAX arrays are immutable")
    tensor = as_tensor(array, name)
    if not isinstance(array, np.ndarray) and tensor.is_cpu:
        try:  # without a version of the protocol that tells, read-only arrays must not be given
            array.__dlpack__()
        except BufferError as error:
            raise ValueError(f"{name} is written in place, so it must be writable: {error}") from error
    return tensor


def written(*arrays: Array) -> None:
    """Tell autograd that these were changed, as any operation in place does: what it saved of them is stale."""
    for array in arrays:
        if isinstance(array, Tensor) and not array.is_inference():
            increment_version(array)


def refuse_overlap(changed: Rows, name: str, others: dict[str, Rows | Tensor | None], rule: str) -> None:
    """ValueError if memory that is written is also another argument's: rows, or a contiguous tensor."""
    begin, end = changed.address, _end(changed)
    for other, memory in others.items():
        if memory is None:
            continue
        if isinstance(memory, Tensor):
            memory = Rows(memory, memory.data_ptr(), memory.numel(), 1, memory.numel())
        if memory.address < end and begin < _end(memory) and overlap(changed, memory):
            raise ValueError(f"{other} shares memory with {name}, {rule}")


def _end(rows: Rows) -> int:
    return rows.address + ((rows.rows - 1) * rows.stride + rows.n) * rows.tensor.itemsize


def overlap(a: Rows, b: Rows) -> bool:
    """Whether two arrays share a byte; rows of `a` do not overlap each other."""
    if a.rows * a.n == 0 or b.rows * b.n == 0:
        return False
    (a_at, a_stride, a_size, a_count), (b_at, b_stride, b_size, b_count) = _pieces(a), _pieces(b)
    if a_stride == b_stride:  # piece i of a and piece i + k of b are `apart + k stride` bytes from each other
        apart = b_at - a_at
        k = max((-b_size - apart) // b_stride + 1, 1 - a_count)
        return k < b_count and apart + k * b_stride < a_size
    for start in range(a_at, a_at + a_count * a_stride, a_stride):
        first = max(0, (start - b_size - b_at) // b_stride + 1)  # the first piece of b that ends after the start
        if first < b_count and b_at + first * b_stride < start + a_size:
            return True
    return False


def _pieces(rows: Rows) -> tuple[int, int, int, int]:
    """Address, bytes from one piece to the next, bytes of one, their number."""
    size = rows.tensor.itemsize
    if rows.rows == 1 or rows.stride in (0, rows.n):
        length = rows.n * size * (rows.rows if rows.stride else 1)
        return rows.address, length, length, 1
    return rows.address, rows.stride * size, rows.n * size, rows.rows


def status_for(place: Place, tensor: Tensor, wanted: bool) -> Tensor | None:
    """Where a CUDA kernel writes the lowest row that is not finite; None where it need not or where the CPU returns
    it."""
    if place.device < 0 or not wanted:
        return None
    return torch.full((), native.NO_ROW, dtype=torch.int64, device=tensor.device)


def scratch_for(place: Place, batch: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """A row of `n` for each team that may work at the same time."""
    return torch.empty((place.threads if place.device < 0 else batch.shape[0], n), dtype=dtype, device=batch.device)


def raise_if_not_finite(row: int, status: Tensor | None, inputs: dict[str, Tensor]) -> None:
    """ValueError that names the lowest row with NaN or inf and the argument that has it there."""
    if status is not None:
        row = int(status.item())
    if row == native.NO_ROW:
        return
    guilty = [name for name, tensor in inputs.items() if not bool(torch.isfinite(tensor[row]).all())]
    what = " and ".join(guilty) or "a sum of finite entries"
    raise ValueError(f"{what} has NaN or inf in row {row}; pass check_finite=False to let such rows through")
