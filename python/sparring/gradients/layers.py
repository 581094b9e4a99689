"""Which step stands for which torch module, function or method.

`MODULES` builds a step from a module. `FUNCTIONS` and `METHODS` build one from the arguments of a call whose first is
the network's activation; constants among them are `Live`. The builders have the signatures of what they stand for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparring.gradients.image_steps import AvgPool2d, Conv2d, GlobalAvgPool2d, MaxPool2d
from sparring.gradients.steps import (
    Activation,
    Affine,
    BatchNorm,
    Flatten,
    Identity,
    Linear,
    Live,
    NotLowered,
    Reshape,
    Softmax,
    Softplus,
    Step,
)

BATCH = object()
"""The batch size, where a call is given it (``x.view(len(x), -1)``)."""


def live(module: Any, name: str) -> Live:
    """Reads an attribute of a module, or of a proxy of one; parameters by the short way."""

    def read() -> Any:
        parameters = module._parameters
        return parameters[name] if name in parameters else getattr(module, name)

    return read


# --- Modules --------------------------------------------------------------------------------------------------------


def _linear(m: nn.Linear) -> Step:
    return Linear(live(m, "weight"), live(m, "bias"))


def _conv2d(m: nn.Conv2d) -> Step:
    if m.padding_mode != "zeros":
        raise NotLowered(f"padding_mode {m.padding_mode!r}")
    padding: Any = m.padding
    stride: Any = m.stride
    dilation: Any = m.dilation
    return Conv2d(live(m, "weight"), live(m, "bias"), stride, padding, dilation, m.groups)


def batch_norm(*ndims: int) -> Callable[[Any], Step]:
    def build(m: Any) -> Step:
        if m.training or m.running_mean is None or m.running_var is None:
            raise NotLowered("normalises with the statistics of the batch")
        return BatchNorm(m, ndims)

    return build


def _dropout(m: nn.Module) -> Step:
    if m.training:
        raise NotLowered("dropout in train mode")
    return Identity()


def _max_pool2d(m: nn.MaxPool2d) -> Step:
    if m.return_indices:
        raise NotLowered("max-pooling that returns indices")
    return MaxPool2d(m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


def _adaptive(output_size: Any) -> Step:
    if output_size not in (1, (1, 1), [1, 1]):
        raise NotLowered(f"adaptive pooling to {output_size}")
    return GlobalAvgPool2d()


def _last(dim: Any) -> None:
    if dim not in (1, -1):
        raise NotLowered(f"softmax over dimension {dim}")


def _softmax_module(log: bool) -> Callable[[Any], Step]:
    return lambda m: _softmax(log)(m.dim)


MODULES: dict[type[nn.Module], Callable[[Any], Step | list[Step]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.ReLU: lambda m: Activation("relu"),
    nn.Sigmoid: lambda m: Activation("sigmoid"),
    nn.Tanh: lambda m: Activation("tanh"),
    nn.LeakyReLU: lambda m: _leaky_relu(m.negative_slope),
    nn.Softplus: lambda m: _softplus(m.beta, m.threshold),
    nn.MaxPool2d: _max_pool2d,
    nn.AvgPool2d: lambda m: AvgPool2d(
        m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda m: _adaptive(m.output_size),
    nn.BatchNorm1d: batch_norm(2, 3),
    nn.BatchNorm2d: batch_norm(4),
    nn.Flatten: lambda m: Flatten(m.start_dim, m.end_dim),
    nn.Softmax: _softmax_module(log=False),
    nn.LogSoftmax: _softmax_module(log=True),
    nn.Identity: lambda m: Identity(),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), _dropout),
}


# --- Functions and methods ------------------------------------------------------------------------------------------


def _activation(name: str) -> Callable[..., Step]:
    return lambda inplace=False: Activation(name)


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> Step:
    if negative_slope <= 0:
        raise NotLowered(f"negative_slope {negative_slope}")
    return Activation("leaky_relu", negative_slope)


def _softplus(beta: float = 1, threshold: float = 20) -> Step:
    return Activation("softplus") if (beta, threshold) == (1, 20) else Softplus(beta, threshold)


def _softmax(log: bool) -> Callable[..., Step]:
    def build(dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Step:
        if dtype is not None:
            raise NotLowered("softmax in another dtype")
        _last(dim)
        return Softmax(log)

    return build


def _function_linear(weight: Live, bias: Live | None = None) -> Step:
    return Linear(weight, bias or (lambda: None))


def _function_conv2d(
    weight: Live,
    bias: Live | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Step:
    padding = padding if isinstance(padding, str) else _two(padding)
    return Conv2d(weight, bias or (lambda: None), _two(stride), padding, _two(dilation), groups)


def _function_dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> Step:
    if training:
        raise NotLowered("dropout in train mode")
    return Identity()


def _function_max_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Step:
    if return_indices:
        raise NotLowered("max-pooling that returns indices")
    return MaxPool2d(kernel_size, stride, padding, dilation, ceil_mode)


def _function_avg_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Step:
    return AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _flatten(start_dim: int = 0, end_dim: int = -1) -> Step:
    return Flatten(start_dim, end_dim)


def _reshape(*sizes: Any, shape: Any = None) -> Step:
    sizes = tuple(sizes[0] if sizes and isinstance(sizes[0], (tuple, list)) else sizes or shape or ())
    if sizes and sizes[0] is BATCH and all(type(size) is int for size in sizes[1:]):
        return Reshape(sizes[1:])
    if sizes and sizes[0] == -1 and all(type(size) is int and size > 0 for size in sizes[1:]):
        return Reshape(sizes[1:], inferred=True)
    raise NotLowered("a reshape that is not to (B, ...)")


def _function_reshape(shape: Any) -> Step:
    return _reshape(shape)


def _add(other: Any, *, alpha: float = 1) -> Step:
    if alpha != 1:
        raise NotLowered("add with alpha")
    return Affine("add", _live(other))


def _sub(other: Any, *, alpha: float = 1) -> Step:
    if alpha != 1:
        raise NotLowered("sub with alpha")
    return Affine("sub", _live(other))


def _mul(other: Any) -> Step:
    return Affine("mul", _live(other))


def _div(other: Any, *, rounding_mode: str | None = None) -> Step:
    if rounding_mode is not None:
        raise NotLowered("division with rounding")
    return Affine("div", _live(other))


def _neg() -> Step:
    return Affine("mul", lambda: -1.0)


def _same() -> Step:
    return Identity()


def _live(value: Any) -> Live:
    return value if callable(value) else lambda: value


def _two(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value)


_relu, _sigmoid, _tanh = _activation("relu"), _activation("sigmoid"), _activation("tanh")

METHODS: dict[str, Callable[..., Step]] = {
    "relu": _relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softmax": _softmax(log=False),
    "log_softmax": _softmax(log=True),
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "contiguous": _same,
}

FUNCTIONS: dict[Any, Callable[..., Step]] = {
    **dict.fromkeys((F.relu, torch.relu), _relu),
    **dict.fromkeys((F.sigmoid, torch.sigmoid), _sigmoid),
    **dict.fromkeys((F.tanh, torch.tanh), _tanh),
    F.leaky_relu: _leaky_relu,
    F.softplus: _softplus,
    **dict.fromkeys((F.softmax, torch.softmax), _softmax(log=False)),
    **dict.fromkeys((F.log_softmax, torch.log_softmax), _softmax(log=True)),
    F.linear: _function_linear,
    **dict.fromkeys((F.conv2d, torch.conv2d), _function_conv2d),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout), _function_dropout),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _function_max_pool2d),
    F.avg_pool2d: _function_avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive,
    torch.flatten: _flatten,
    torch.reshape: _function_reshape,
    **dict.fromkeys((operator.add, torch.add), _add),
    **dict.fromkeys((operator.sub, torch.sub), _sub),
    **dict.fromkeys((operator.mul, torch.mul), _mul),
    **dict.fromkeys((operator.truediv, torch.div), _div),
    **dict.fromkeys((operator.neg, torch.neg), _neg),
}

COMMUTATIVE = (operator.add, torch.add, operator.mul, torch.mul)
