"""Layers of a lowered network that work on images, (B, C, H, W): convolutions and pooling. See `steps`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.gradients import kernels
from sparring.gradients.steps import Activation, Live, as_dtype, aten, flat, form_of, need


class Conv2d:
    """Cross-correlation with zero padding, and an activation; "same" pads the odd row at the end, as torch does.

    On the CPU images are worked on in channels-last form, whatever form they come in.
    """

    activation: Activation | None = None

    def __init__(
        self,
        weight: Live,
        bias: Live,
        stride: tuple[int, int],
        padding: tuple[int, int] | str,
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        self.weight, self.bias, self.stride, self.dilation, self.groups = weight, bias, stride, dilation, groups
        self.padding = padding

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[tuple[int, ...], Tensor | None]]:
        need(x, 4, 4, "a convolution")
        weight = as_dtype(self.weight(), x)
        padding, extra = self._padding(weight)
        if any(extra):
            x = F.pad(x, (0, extra[1], 0, extra[0]))
        if x.device.type == "cpu":
            x = channels_last(x)
        groups = self.groups_of(x.shape[1])
        y = F.conv2d(x, weight, as_dtype(self.bias(), x), self.stride, padding, self.dilation, groups)
        if self.activation is None:
            return y, (tuple(x.shape[1:]), None)
        y = unflat(self.activation.over(flat(y)), y)
        return y, (tuple(x.shape[1:]), y)

    def backward(self, grad: Tensor, saved: tuple[tuple[int, ...], Tensor | None]) -> Tensor:
        shape, output = saved
        if self.activation is not None and output is not None:
            grad = self.activation.backward(grad, output)
        weight = as_dtype(self.weight(), grad)
        padding, extra = self._padding(weight)
        size = (grad.shape[0], *shape)
        groups = self.groups_of(shape[0])
        result = kernels.conv_input_grad(grad, weight, size, self.stride, padding, self.dilation, groups)
        return result[:, :, : shape[1] - extra[0], : shape[2] - extra[1]] if any(extra) else result

    def groups_of(self, channels: int) -> int:
        """The groups that so many channels of the input form."""
        return self.groups

    def _padding(self, weight: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns added on either side, and further ones at the end."""
        if not isinstance(self.padding, str):
            return self.padding, (0, 0)
        if self.padding == "valid":
            return (0, 0), (0, 0)
        rows, columns = (d * (k - 1) for d, k in zip(self.dilation, weight.shape[2:], strict=True))
        return (rows // 2, columns // 2), (rows % 2, columns % 2)


class MaxPool2d:
    """Maximum of each window, after ReLU where that is part of it; the gradient goes to the one entry that was it."""

    def __init__(self, size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> None:
        options = (size, size if stride is None else stride, padding, dilation)
        self.size, self.stride, self.padding, self.dilation = map(pair, options)
        self.ceil_mode, self.relu = ceil_mode, False

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        need(x, 4, 4, "max-pooling")
        size, stride, padding, dilation = self.size, self.stride, self.padding, self.dilation
        whole = x.float() if x.dtype is torch.bfloat16 else x  # for which there are kernels
        if kernels.supported(whole) and kernels.relu_pool_fits(size, padding, dilation):
            kind = "relu" if self.relu else "identity"
            y, index = kernels.relu_pool(whole, None, size, stride, padding, kind, ceil_mode=self.ceil_mode)
            return y.to(x.dtype), (index, tuple(x.shape[1:]))
        if self.relu:
            x = x.relu()
        y, index = F.max_pool2d(x, size, stride, padding, dilation, self.ceil_mode, return_indices=True)
        return y, (index, tuple(x.shape[1:]), y)

    def backward(self, grad: Tensor, saved: Any) -> Tensor:
        index, shape, *output = saved
        count = grad.shape[0] // max(1, index.shape[0])
        if count > 1:
            index, *output = (tensor.repeat_interleave(count, 0) for tensor in (index, *output))
        if not output:
            whole = grad.float() if grad.dtype is torch.bfloat16 else grad
            result = kernels.relu_pool_backward(whole, index, shape[1:], self.size, self.stride, self.padding)
            return result.to(grad.dtype)
        if self.relu:
            grad = grad * (output[0] > 0)
        grad = grad.contiguous()
        pooled = grad.new_empty((grad.shape[0], *shape))  # only its shape counts
        options = (list(self.size), list(self.stride), list(self.padding), list(self.dilation), self.ceil_mode)
        given: Tensor = aten.max_pool2d_with_indices_backward(grad, pooled, *options, index)
        return given


class AvgPool2d:
    """Mean of each window."""

    def __init__(
        self, size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, divisor: int | None
    ) -> None:
        sizes = (size, size if stride is None else stride, padding)
        self.options: tuple[Any, ...] = (*map(pair, sizes), ceil_mode, count_include_pad, divisor)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        need(x, 4, 4, "average-pooling")
        return F.avg_pool2d(x, *self.options), tuple(x.shape[1:])

    def backward(self, grad: Tensor, saved: tuple[int, ...]) -> Tensor:
        pooled = grad.new_empty((grad.shape[0], *saved))  # only its shape counts
        result: Tensor = aten.avg_pool2d_backward(grad.contiguous(), pooled, *self.options)
        return result


class GlobalAvgPool2d:
    """Mean over height and width, which stay as 1 x 1."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        need(x, 4, 4, "average-pooling")
        return x.mean((2, 3), keepdim=True), tuple(x.shape[1:])

    def backward(self, grad: Tensor, saved: tuple[int, ...]) -> Tensor:
        return (grad / math.prod(saved[1:])).expand(-1, *saved).contiguous()


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def channels_last(x: Tensor) -> Tensor:
    """`x` in channels-last form, with strides that say so even where there is one channel or one pixel."""
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, strides)


def unflat(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `flat`, for rows that came from `like`."""
    if form_of(like) is torch.channels_last:
        batch, channels, height, width = like.shape
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return rows.view(like.shape)
