"""Pooling, and the input gradient of convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, float64

from sparring import _bridge as bridge
from sparring._gate import plain
from sparring.gradients.kernels._arguments import agree, same_kind, supported

_FEW_CHANNELS = 4  # up to here the matrix product with the columns takes less time than torch's convolution backward

Pair: TypeAlias = "tuple[int, int]"
"""Vertical, horizontal."""


def relu_pool_fits(kernel: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)) -> bool:
    """Whether `relu_pool` has such windows: undilated, of at most 255 entries, none wholly outside the image."""
    few = 0 < kernel[0] * kernel[1] <= 255
    return few and tuple(dilation) == (1, 1) and all(0 <= 2 * p <= k for p, k in zip(padding, kernel, strict=True))


def relu_pool(
    z: Tensor,
    bias: Tensor | None,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    activation: str = "relu",
    *,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """``max_pool2d(activation(z + bias))``, to the bit what torch gives, and what its backward pass needs.

    Parameters
    ----------
    z : (B, C, H, W)
        In channels-last form, for which it is fastest, or contiguous; any other is copied.
    bias : (C,), optional
    kernel, stride, padding
        For which `relu_pool_fits`.
    activation : "relu" or "identity"
        Other activations that never fall may as well come after the pooling.
    ceil_mode : bool
        As in `torch.nn.MaxPool2d`.

    Returns
    -------
    out : (B, C, OH, OW)
        In the form of `z`.
    index : like `out`, uint8
        Which entry of its window an output is, line by line; 255 where ReLU let nothing through.
    """
    if activation not in ("relu", "identity"):
        raise ValueError(f"activation must be 'relu' or 'identity', not {activation!r}")
    if not relu_pool_fits(kernel, padding):
        raise ValueError(f"there is no kernel for windows {tuple(kernel)} with padding {tuple(padding)}")
    z, form, lanes = _image(z)
    batch, channels, *size = z.shape
    if bias is not None:
        agree(tuple(bias.shape), (channels,), "bias", "z")
        same_kind(bias, z, "bias")
        bias = bias.contiguous()
    out_size = [_windows(size[i], kernel[i], stride[i], padding[i], ceil_mode=ceil_mode) for i in (0, 1)]
    out = torch.empty((batch, channels, *out_size), dtype=z.dtype, device=z.device, memory_format=form)
    index = torch.empty_like(out, dtype=torch.uint8)
    bridge.native.relu_pool(
        z.dtype is float64,
        *bridge.place_of(z, "z"),
        [batch * channels // lanes, channels, lanes, *size, *out_size, *kernel, *stride, *padding],
        activation == "relu",
        z.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        index.data_ptr(),
    )
    return out, index


def relu_pool_backward(
    grad: Tensor, index: Tensor, size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair = (0, 0)
) -> Tensor:
    """The gradient at the `z` of `relu_pool`, (B, C, *`size`), from `grad` at its output; in the form of `index`."""
    index, form, lanes = _image(plain(index, "index", in_place=True))
    batch, channels, *out_size = index.shape
    agree(tuple(grad.shape), tuple(index.shape), "grad", "index")
    if index.dtype is not torch.uint8 or index.device != grad.device:
        raise ValueError(f"index is {index.dtype} on '{index.device}', not torch.uint8 on '{grad.device}'")
    for i in (0, 1):
        if abs(_windows(size[i], kernel[i], stride[i], padding[i]) - out_size[i]) > 1:  # ceil_mode makes one more
            raise ValueError(f"an image of size {tuple(size)} does not have {tuple(out_size)} windows")
    grad = grad.contiguous(memory_format=form)
    grad_z = torch.empty((batch, channels, *size), dtype=grad.dtype, device=grad.device, memory_format=form)
    bridge.native.relu_pool_backward(
        grad.dtype is float64,
        *bridge.place_of(grad, "grad"),
        [batch * channels // lanes, channels, lanes, *size, *out_size, *kernel, *stride, *padding],
        grad.data_ptr(),
        index.data_ptr(),
        grad_z.data_ptr(),
    )
    return grad_z


def conv_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_shape: Sequence[int],
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The gradient at a convolution's input, of shape `input_shape`, from `grad` at its output.

    With few input channels, a matrix product and a sum over the windows that an entry lies under; else torch's own.

    Parameters
    ----------
    grad : (B, C_out, OH, OW)
        In channels-last form or contiguous; any other is copied.
    weight : (C_out, C_in / groups, KH, KW)
    input_shape : (B, C_in, H, W)
    """
    batch, channels, *size = input_shape
    if groups > 1 or channels > _FEW_CHANNELS or not supported(grad):
        # of the input, only the shape and the memory format count
        form = torch.channels_last if grad.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        like = torch.empty(tuple(input_shape), dtype=grad.dtype, device=grad.device, memory_format=form)
        given: Tensor = torch.ops.aten.convolution_backward(
            grad, like, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )[0]
        return given
    grad, _, lanes = _image(grad)
    out_channels, *out_size = grad.shape[1:]
    taps = weight.shape[2:]
    agree(tuple(weight.shape), (out_channels, channels, *taps), "weight", "grad and input_shape")
    same_kind(weight, grad, "weight")
    windows = tuple(_windows(size[i], dilation[i] * (taps[i] - 1) + 1, stride[i], padding[i]) for i in (0, 1))
    agree((grad.shape[0], *out_size), (batch, *windows), "grad", "input_shape")
    positions = out_size[0] * out_size[1]
    of_taps = weight.permute(2, 3, 1, 0).reshape(-1, out_channels)
    if lanes == out_channels:
        columns = of_taps @ grad.permute(0, 2, 3, 1).reshape(batch * positions, out_channels).t()
        image_stride, tap_stride = positions, batch * positions
    else:
        columns = of_taps @ grad.view(batch, out_channels, positions)
        image_stride, tap_stride = of_taps.shape[0] * positions, positions
    out = torch.empty(tuple(input_shape), dtype=grad.dtype, device=grad.device)
    bridge.native.col2im(
        grad.dtype is float64,
        *bridge.place_of(grad, "grad"),
        *input_shape,
        *out_size,
        *taps,
        *stride,
        *padding,
        *dilation,
        columns.data_ptr(),
        image_stride,
        tap_stride,
        out.data_ptr(),
    )
    return out


def _image(tensor: Tensor) -> tuple[Tensor, torch.memory_format, int]:
    """`tensor`, (B, C, H, W), in channels-last or contiguous form; which of them; how many channels lie innermost."""
    if tensor.is_contiguous() and tensor.shape[1] > 1 and not tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor, torch.contiguous_format, 1
    return tensor.contiguous(memory_format=torch.channels_last), torch.channels_last, tensor.shape[1]


def _windows(size: int, kernel: int, stride: int, padding: int, *, ceil_mode: bool = False) -> int:
    """How many windows lie along an axis; with `ceil_mode` also one that begins inside but does not end there."""
    room = size + 2 * padding - kernel
    if room < 0:
        raise ValueError(f"a window of {kernel} does not fit into {size} with padding {padding}")
    count = room // stride + 1
    return count + 1 if ceil_mode and room % stride > 0 and count * stride < size + padding else count
