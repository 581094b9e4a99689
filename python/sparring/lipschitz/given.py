"""Arguments of this package's functions, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def network(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def numbers(tensor: Any, name: str) -> Tensor:
    """A tensor of real floating-point numbers that can be read."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a tensor of floats; got {got}")
    readable(tensor, name)
    return tensor


def readable(tensor: Tensor, name: str) -> None:
    if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise ValueError(f"{name} must have numbers, as a dense tensor; got {kind} on '{tensor.device}'")


def finite(tensor: Tensor) -> bool:
    """Whether all numbers are, of any floating-point type."""
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())


def positive(value: Any, name: str) -> None:
    try:
        good = not isinstance(value, str) and math.isfinite(value) and value > 0
    except (TypeError, RuntimeError, ValueError):
        good = False
    if not good:
        kind = ValueError if isinstance(value, (int, float)) else TypeError
        raise kind(f"{name} must be a positive number; got {value!r}")


def integers(value: Any, name: str, accepted: str) -> tuple[int, ...]:
    """One integer or several, of any type that stands for an index."""
    try:
        if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Tensor)):
            return tuple(operator.index(one) for one in value)
        return (operator.index(value),)
    except (TypeError, RuntimeError):
        raise TypeError(f"{name} must be {accepted}; got {value!r}") from None
