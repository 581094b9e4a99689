"""What steps stand for is torch's as it came: a program may have put something else in its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from operator import attrgetter, is_
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.tracing import look_up

_CALLS = ("forward", "__call__", "_call_impl", "__getattr__")
_FUNCTIONS = (F, torch, Tensor)
_PLACES: tuple[tuple[Any, str], ...] = (
    *((F, name) for name in (
        "linear", "conv2d", "relu", "relu_", "leaky_relu", "leaky_relu_", "softplus", "softmax", "log_softmax",
        "dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "max_pool2d", "avg_pool2d",
        "batch_norm", "adaptive_avg_pool2d", "sigmoid", "tanh",
    )),
    *((torch, name) for name in (
        "relu", "relu_", "sigmoid", "tanh", "softmax", "log_softmax", "conv2d", "max_pool2d", "flatten", "reshape",
        "add", "sub", "mul", "div", "neg", "batch_norm",
    )),
    *((Tensor, name) for name in (
        "relu", "sigmoid", "tanh", "softmax", "log_softmax", "flatten", "view", "reshape", "add", "sub", "mul",
        "div", "neg", "contiguous", "__add__", "__radd__", "__sub__", "__mul__", "__rmul__", "__truediv__",
        "__neg__", "size",
    )),
    *((kind, name) for kind in (
        nn.Module, nn.Sequential, nn.Linear, nn.Conv2d, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.Softplus,
        nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten, nn.Softmax,
        nn.LogSoftmax, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    ) for name in _CALLS),
    (nn.Conv2d, "_conv_forward"), (nn.BatchNorm1d, "_check_input_dim"), (nn.BatchNorm2d, "_check_input_dim"),
    (nn.Sequential, "__iter__"),
)  # fmt: skip

_ORIGINALS = [(place, name, getattr(place, name)) for place, name in _PLACES if hasattr(place, name)]


def patched() -> list[str]:
    """Names of functions and methods of torch's that are not those that this module met when it was imported."""
    return [name for place, name, original in _ORIGINALS if getattr(place, name, None) is not original]


class Intact:
    """Whether modules of some classes are called as they were, and what they use is torch's own, if it was.

    Called, it says so, within a few microseconds. What torch's own classes use is read from the code of their forwards;
    others may use anything.
    """

    def __init__(self, kinds: Collection[type[nn.Module]]) -> None:
        names = None if patched() else _names_used_by(kinds)
        own = [kind for kind in kinds if not _is_torch_s(kind)]
        wanted: dict[Any, list[str]] = {nn.Module: list(_CALLS)}
        for kind in kinds:
            if kind not in own:
                wanted[kind] = [*_CALLS, *_methods_of(kind)]
        for place, name, _ in _ORIGINALS:
            if place in _FUNCTIONS and (names is None or name in names):
                wanted.setdefault(place, []).append(name)
        self._getters: list[tuple[Any, Callable[[Any], tuple[Any, ...]]]] = [
            *((place, attrgetter(*names, names[0])) for place, names in wanted.items()),  # of two names: a tuple
            *((kind, _calls_of) for kind in own),
        ]
        self._found = [*self._values()]

    def _values(self) -> Iterator[Any]:
        return chain.from_iterable([get(place) for place, get in self._getters])

    def __call__(self) -> bool:
        try:
            return all(map(is_, self._values(), self._found))
        except AttributeError:  # one is gone
            return False


def _is_torch_s(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.")


def _methods_of(kind: type) -> list[str]:
    """Of those that forward calls."""
    code = getattr(getattr(kind, "forward", None), "__code__", None)
    names = ("__iter__", *(code.co_names if code is not None else ()))
    return [name for name in names if isinstance(look_up(kind, name), FunctionType)]


def _calls_of(kind: type) -> tuple[Any, ...]:
    """As they stand in the class, whatever its descriptors do."""
    return tuple(look_up(kind, name) for name in _CALLS)


def _names_used_by(kinds: Iterable[type]) -> set[str] | None:
    """Names in the forwards of these classes, and in the functions of torch's that have them; None: any."""
    found: set[str] = set()
    waiting = []
    for kind in kinds:
        if not _is_torch_s(kind):
            return None
        waiting.append(getattr(kind, "forward", None))
    while waiting:
        code = getattr(waiting.pop(), "__code__", None)
        new = {*code.co_names} - found if code is not None else set()
        found |= new
        waiting += [original for _, name, original in _ORIGINALS if name in new]
        waiting += [getattr(kind, name, None) for name in new for kind in kinds]  # methods that forwards call
    return found
