"""Gains of layers with a weight: linear layers and convolutions, and what a batch normalisation makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.lipschitz import rounding
from sparring.lipschitz.gains.gain import Call, Gain, Refused
from sparring.lipschitz.geometry import sides
from sparring.lipschitz.spectral import spectral_norm
from sparring.networks import SMALLEST_SCALE

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

FOLDING_ERROR = 8 * rounding.UNIT
"""Relative error of an entry of a weight that `folded` returns."""


def enclosed(call: Call, weight: Tensor, kind: str, groups: int = 1, **options: Any) -> Gain:
    """`spectral_norm`, of the weight times `call.scale` if there is one."""
    weight, error = weight.detach(), 0.0
    given = weight, call.scale
    key = (*(None if t is None else (t.data_ptr(), t.dtype, t.shape, t.stride()) for t in given), kind, groups,
           str(options))  # fmt: skip
    if call.scale is not None:
        weight = folded(weight, call.scale, kind, groups)
        error = folding_error(weight, options.get("padding_mode", "zeros"), options.get("padding", 0))
    if key not in call.known:
        try:
            found = spectral_norm(weight, kind, groups=groups, tol=call.tol, certified=call.certified, **options)
        except (TypeError, ValueError) as why:
            raise Refused(str(why)) from why
        call.known[key] = given, found  # which keeps the memory that the key names
    norm = call.known[key][1]
    shape = shape_text(weight.shape, kind, groups, options.get("stride", 1), options.get("input_shape"))
    columns = None if options.get("padding_mode", "zeros") != "zeros" else longest_column(weight, kind, groups, options)
    if not error:
        return Gain(norm.lower, norm.upper, norm.method, norm.certified, shape, columns=columns)
    ends = rounding.down(norm.lower - error), rounding.up(norm.upper + error)
    return Gain(*ends, norm.method, norm.certified, shape, columns=columns)


def longest_column(weight: Tensor, kind: str, groups: int, options: Mapping[str, Any]) -> float:
    """The norm of the longest column of a layer's matrix, bounded: how far its results move if one input does by 1.

    Of a convolution an input meets a tap of the kernel once at most, and only taps of which the steps of the window
    lead to it: those whose place, times the dilation, leaves the same rest when divided by the stride. Valid for a
    weight that `folded` has made, too.
    """
    wide = weight.detach().to(torch.float64)
    largest = float(wide.abs().max()) if wide.numel() else 0.0
    if largest == 0:
        return 0.0
    squares, dims = (wide / largest).square(), weight.ndim - 2
    if kind.startswith("conv_transpose"):
        columns = squares.flatten(1).sum(1)  # which every tap takes further
    else:
        by_group = squares.reshape(groups, -1, *weight.shape[1:]).sum(1)  # (groups, in, *kernel)
        steps, apart = (each(options.get(name, 1), dims) for name in ("stride", "dilation"))
        for dim, (step, dilation) in enumerate(zip(steps, apart, strict=True)):
            rest = torch.arange(weight.shape[2 + dim], device=wide.device) * dilation % step
            shape = [*by_group.shape]
            shape[2 + dim] = step
            by_group = by_group.new_zeros(shape).index_add_(2 + dim, rest, by_group)
        columns = by_group
    error = FOLDING_ERROR + rounding.gamma(weight.numel() + 16)
    return rounding.up(rounding.up(largest * math.sqrt(float(columns.max()))) * (1 + error))


def folded(weight: Tensor, scale: Tensor, kind: str, groups: int = 1) -> Tensor:
    """The weight with each output channel multiplied by its entry of `scale`, in float64.

    With `scale` from `normalisation.channel_scale` an entry is off by at most `FOLDING_ERROR`, relatively: one rounding
    here, at most five there.
    """
    wide, ones = weight.to(torch.float64), (1,) * (weight.ndim - 2)
    if "transpose" not in kind:
        return wide * scale.view(-1, 1, *ones)
    by_group = wide.reshape(groups, -1, *wide.shape[1:]) * scale.view(groups, 1, -1, *ones)
    return by_group.flatten(0, 1)


def folding_error(weight: Tensor, mode: str, padding: Any) -> float:
    """Bound of the norm of the layer whose weight E is what `folded` may have lost, |E| <= FOLDING_ERROR |weight|.

    For a matrix |E|_2 <= |E|_F. A convolution is the sum over the kernel's taps t of E_t times the map that says which
    entry of the image an output reads. That map's norm is 1, or, where the padding repeats entries, the root of how
    often an entry is read, at most 1 + 2 padding along each dimension. And sum_t |E_t|_F <= sqrt(taps) |E|_F.
    """
    taps, dims = math.prod(weight.shape[2:]), weight.ndim - 2
    reads = 1
    if mode != "zeros":
        pads = weight.shape[2:] if isinstance(padding, str) else each(padding, dims)
        reads = math.prod(1 + 2 * pad for pad in pads)
    underflow = weight.numel() * math.ulp(0.0)
    return FOLDING_ERROR * math.sqrt(taps * reads * rounding.squares(weight)) * (1 + 2.0**-40) + underflow


def each(value: Any, dims: int) -> tuple[int, ...]:
    """An option of a layer with so many dimensions, which may be one number for all."""
    if not isinstance(value, Sequence):
        return (int(value),) * dims
    return tuple(value) * (dims if len(value) == 1 else 1)


def shape_text(shape: Sequence[int], kind: str, groups: int = 1, stride: Any = 1, input_shape: Any = None) -> str:
    """Such as "9216×4096", or "3×11×11×96 stride 4 at 224×224": inputs first, outputs last."""
    if kind == "dense":
        return f"{shape[1]}×{shape[0]}"
    ends = (shape[0], shape[1] * groups) if "transpose" in kind else (shape[1] * groups, shape[0])
    text = "×".join(map(str, (ends[0], *shape[2:], ends[1])))
    steps = each(stride, len(shape) - 2)
    if any(step != 1 for step in steps):
        text += f" stride {steps[0] if len({*steps}) == 1 else '×'.join(map(str, steps))}"
    if groups > 1:
        text += f" groups {groups}"
    return text if input_shape is None else f"{text} at {'×'.join(map(str, input_shape))}"


def linear(call: Call, weight: Tensor, bias: Tensor | None = None) -> Gain:
    gain = enclosed(call, weight, "dense")
    if call.x.numel() != weight.shape[1]:  # several vectors
        return gain
    if call.scale is None:
        return replace(gain, matrix=weight.detach(), bias=bias)
    matrix = folded(weight.detach(), call.scale, "dense")
    below = (matrix.abs() < torch.finfo(matrix.dtype).tiny) & (weight != 0) & (call.scale[:, None] != 0)
    if bool(below.any()):
        return gain  # the error of what leaves the normal numbers is no share of it
    return replace(gain, matrix=matrix, error=FOLDING_ERROR)


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def convolution(dims: int) -> Callable[..., Gain]:
    def rule(
        call: Call,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> Gain:
        # A module pads by what it noted when it was made, which may be another padding than it says by now.
        before, after = sides(padding if isinstance(padding, str) else each(padding, dims), weight.shape[2:],
                              each(dilation, dims))  # fmt: skip
        around = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
        x = F.pad(call.x, around, "constant" if padding_mode == "zeros" else padding_mode) if any(around) else call.x
        said = _CONVOLVE[dims](x, weight, bias, stride, 0, dilation, groups)
        if said.shape != call.out.shape or not torch.allclose(said, call.out, rtol=1e-2, atol=1e-2 * _size(call.out)):
            raise Refused("computes something else than its attributes say")
        return enclosed(
            call, weight, f"conv{dims}d", groups, input_shape=tuple(call.x.shape[-dims:]), stride=stride,
            padding=padding, padding_mode=padding_mode, dilation=dilation,
        )  # fmt: skip

    return rule


def transposed(dims: int) -> Callable[..., Gain]:
    def rule(
        call: Call,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Gain:
        shape = tuple(call.x.shape[-dims:])
        options = zip(*(each(option, dims) for option in (stride, padding, dilation)), strict=True)
        # How far the output goes beyond what the kernel reaches; a call may ask for a size of its own.
        extra = tuple(
            m - ((n - 1) * s - 2 * p + d * (k - 1) + 1)
            for n, m, k, (s, p, d) in zip(shape, call.out.shape[-dims:], weight.shape[2:], options, strict=True)
        )
        return enclosed(
            call, weight, f"conv_transpose{dims}d", groups, input_shape=shape, stride=stride, padding=padding,
            dilation=dilation, output_padding=extra,
        )  # fmt: skip

    return rule


def matmul(call: Call, other: Any) -> Gain:
    if not isinstance(other, Tensor) or other.ndim != 2 or call.x.ndim < 2:
        raise Refused("a product with something other than a constant matrix")
    gain = enclosed(call, other.t(), "dense")
    return replace(gain, matrix=other.detach().t()) if call.x.numel() == other.shape[0] else gain


def max_norm(call: Call, s: Tensor) -> Gain:
    """Units max(0, d_u - max_i |x_i - v_ui| / |s_ui|): the gradient of each is of one input i, of size 1 / |s_ui|.

    So the derivative J has one entry a row, J^T J is diagonal, and its entry i at most sum_u 1 / s_ui^2.
    """
    inverse = s.detach().to(torch.float64).abs().clamp(min=SMALLEST_SCALE).reciprocal()
    largest = inverse.max()  # taken out, so that no square leaves the range
    columns = (inverse / largest).square().sum(0)
    upper = rounding.up(float(largest) * float(columns.max().sqrt()) * (1 + rounding.gamma(len(s) + 16)))
    return Gain(None, upper, "longest column", shape=f"{s.shape[1]}×{s.shape[0]}")
