"""The arguments of kernels: which tensors they take, as rows, and that they fit each other."""

from __future__ import annotations

from torch import Tensor, float32, float64, int64

from sparring import _core
from sparring._gate import plain

LOSSES = ("ce", "margin", "dlr", "prob")
COMBINES = ("probs", "logits", "loss")
ACTIVATIONS = ("identity", "relu", "leaky_relu", "sigmoid", "tanh", "softplus")
"""softplus is torch's with its default beta (1) and threshold (20); leaky_relu wants a slope above 0."""

NUMBER = {name: number for names in (LOSSES, COMBINES, ACTIVATIONS) for number, name in enumerate(names)}


def supported(tensor: Tensor) -> bool:
    """Whether there are kernels for the device and type of `tensor`; for others, torch's own operations have to do."""
    if tensor.dtype is not float32 and tensor.dtype is not float64:
        return False
    return tensor.is_cpu or (tensor.is_cuda and bool(_core.build_info()["cuda"]))


def rows_of(tensor: Tensor, name: str, written: bool = False) -> tuple[int, int, int]:
    """Number of rows (all dimensions but the last), their length, and the stride from one to the next."""
    n = tensor.shape[-1]
    if tensor.is_contiguous():
        return (tensor.numel() // n if n else 0), n, n
    try:
        rows = tensor.view(-1, n)
    except RuntimeError:
        rows = None
    if rows is None or (n > 1 and rows.stride(1) != 1) or (written and len(rows) > 1 and rows.stride(0) < n):
        raise ValueError(f"{name}, of strides {tensor.stride()}, has no rows that are contiguous and equally far apart")
    return rows.shape[0], n, rows.stride(0)


def agree(shape: tuple[int, ...], wanted: tuple[int, ...], name: str, other: str) -> None:
    if shape != wanted:
        raise ValueError(f"{name} does not fit {other}: {shape}, not {wanted}")


def check_indices(indices: Tensor | None, name: str, batch: int, like: Tensor) -> None:
    if indices is None:
        return
    plain(indices, name, in_place=True)
    agree(tuple(indices.shape), (batch,), name, "the batch")
    if indices.dtype is not int64 or not ((indices.is_cpu and like.is_cpu) or indices.device == like.device):
        raise ValueError(f"{name} are {indices.dtype} on '{indices.device}', not int64 on '{like.device}'")


def same_kind(tensor: Tensor, other: Tensor, name: str) -> None:
    plain(tensor, name, in_place=True)
    if tensor.dtype is not other.dtype or not ((tensor.is_cpu and other.is_cpu) or tensor.device == other.device):
        raise ValueError(f"{name} is {tensor.dtype} on '{tensor.device}', not {other.dtype} on '{other.device}'")
