"""What steps stand for is torch's as it came: a program may have put something else in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    ) for name in ("forward", "__call__", "_call_impl", "__getattr__")),
)  # fmt: skip

_ORIGINALS = [(place, name, getattr(place, name)) for place, name in _PLACES if hasattr(place, name)]


def patched() -> list[str]:
    """Names of functions and methods of torch's that are not those that this module met when it was imported."""
    return [name for place, name, original in _ORIGINALS if getattr(place, name) is not original]
