"""What plain Python values look like, to see whether they changed."""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size, torch.memory_format,
         torch.layout, slice, range, type(...), enum.Enum)  # fmt: skip
"""Values that cannot change."""

GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)

_MOST = 2000  # values that are looked at


class TooMuch(Exception):
    """There is more to look at than can be looked at in passing."""


def fingerprint(value: Any) -> Any:
    """Equal for a value that is as it was; another one after it, or what it holds, has changed.

    Looked into are containers and ordinary objects. Tensors, modules, functions and classes count as they are.

    Raises
    ------
    TooMuch
        For values without end.
    """
    return _look(value, {})


def _look(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, PLAIN):
        return type(value), repr(value) if isinstance(value, float) else value
    if isinstance(value, Tensor):
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, (fx.Proxy, nn.Module, ModuleType, FunctionType, BuiltinFunctionType, MethodType, type)):
        return id(value)
    if id(value) in seen:
        return "seen", seen[id(value)]
    seen[id(value)] = len(seen)
    if len(seen) > _MOST:
        raise TooMuch
    if isinstance(value, Mapping):
        return id(value), tuple((_look(key, seen), _look(one, seen)) for key, one in value.items())
    if isinstance(value, (list, tuple, deque)):
        return type(value) if isinstance(value, tuple) else id(value), tuple(_look(one, seen) for one in value)
    if isinstance(value, (set, frozenset)):
        return id(value), frozenset(map(id, value)), len(value)
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes() if value.nbytes < 2**16 else None
    if isinstance(value, GENERATORS):
        return id(value)
    own = getattr(value, "__dict__", None)
    return id(value), _look(own, seen) if isinstance(own, dict) else None
