"""Layers of a lowered network: each goes forward, and backward towards its input only.

``forward(x)`` returns the output and what ``backward`` needs of it. ``backward(grad, saved)`` takes, for each example,
the gradients of R scalars: (B * R, ...), those of an example one after the other; `saved` is of the B examples.
Weights are read from their module at each call and used in the dtype of `x`. `grad` may be overwritten.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

aten = torch.ops.aten

Live = Callable[[], Any]
"""Reads a tensor from its module, so that it is never a stale copy."""


class NotLowered(Exception):
    """Why a layer, or a layer on such an input, is left to autograd."""


class Step(Protocol):
    """One layer."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]: ...

    def backward(self, grad: Tensor, saved: Any) -> Tensor: ...


class Linear:
    """y = x Wᵀ + b over the last dimension."""

    def __init__(self, weight: Live, bias: Live) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        _need(x, 2, None, "a linear layer")
        return F.linear(x, _as(self.weight(), x), _as(self.bias(), x)), None

    def backward(self, grad: Tensor, saved: None) -> Tensor:
        result: Tensor = grad @ _as(self.weight(), grad)
        return result


class Conv2d:
    """Cross-correlation with zero padding; "same" pads the odd row and column at the end, as torch does."""

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

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        _need(x, 4, 4, "a convolution")
        weight = _as(self.weight(), x)
        padding, extra = self._padding(weight)
        if any(extra):
            x = F.pad(x, (0, extra[1], 0, extra[0]))
        y = F.conv2d(x, weight, _as(self.bias(), x), self.stride, padding, self.dilation, self.groups)
        return y, tuple(x.shape[1:])

    def backward(self, grad: Tensor, saved: tuple[int, ...]) -> Tensor:
        weight = _as(self.weight(), grad)
        padding, extra = self._padding(weight)
        size = (grad.shape[0], *saved)
        result: Tensor = conv2d_input(size, weight, grad, self.stride, padding, self.dilation, self.groups)  # type: ignore[no-untyped-call]
        return result[:, :, : saved[1] - extra[0], : saved[2] - extra[1]] if any(extra) else result

    def _padding(self, weight: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns added on either side, and further ones at the end."""
        if not isinstance(self.padding, str):
            return self.padding, (0, 0)
        if self.padding == "valid":
            return (0, 0), (0, 0)
        rows, columns = (d * (k - 1) for d, k in zip(self.dilation, weight.shape[2:], strict=True))
        return (rows // 2, columns // 2), (rows % 2, columns % 2)


class Activation:
    """An elementwise function whose derivative follows from its output (softplus: from its input)."""

    forwards: ClassVar[dict[str, Callable[..., Tensor]]] = {
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "leaky_relu": F.leaky_relu,
        "softplus": F.softplus,
    }

    def __init__(self, name: str, *options: float) -> None:
        self.name, self.options = name, options

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.forwards[self.name](x, *self.options)
        return y, x if self.name in ("softplus", "leaky_relu") else y

    def backward(self, grad: Tensor, saved: Tensor) -> Tensor:
        blocks, saved = _blocks(grad, saved)
        if self.name == "relu":
            aten.threshold_backward.grad_input(blocks, saved, 0, grad_input=blocks)
        elif self.name == "sigmoid":
            aten.sigmoid_backward.grad_input(blocks, saved, grad_input=blocks)
        elif self.name == "tanh":
            aten.tanh_backward.grad_input(blocks, saved, grad_input=blocks)
        elif self.name == "leaky_relu":
            aten.leaky_relu_backward.grad_input(blocks, saved, *self.options, False, grad_input=blocks)
        else:
            aten.softplus_backward.grad_input(blocks, saved, *self.options, grad_input=blocks)
        return grad


class Softmax:
    """Softmax, or its logarithm, over the last dimension."""

    def __init__(self, log: bool) -> None:
        self.log = log

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.log_softmax(-1) if self.log else x.softmax(-1)
        return y, y

    def backward(self, grad: Tensor, saved: Tensor) -> Tensor:
        blocks, saved = _blocks(grad, saved)
        if self.log:
            return (blocks - saved.exp() * blocks.sum(-1, keepdim=True)).view(grad.shape)
        return (saved * (blocks - (blocks * saved).sum(-1, keepdim=True))).view(grad.shape)


class MaxPool2d:
    """Maximum of each window; the gradient goes to the one entry that was it."""

    def __init__(self, size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> None:
        self.options = (size, stride or size, padding, dilation, ceil_mode)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        _need(x, 4, 4, "max-pooling")
        y, indices = F.max_pool2d(x, *self.options, return_indices=True)
        return y, (indices, tuple(x.shape[1:]))

    def backward(self, grad: Tensor, saved: Any) -> Tensor:
        indices, shape = saved
        repeats = grad.shape[0] // max(1, indices.shape[0])
        if repeats > 1:
            indices = indices.repeat_interleave(repeats, 0)
        size, stride, padding, dilation, ceil_mode = self.options
        pooled = grad.new_empty((grad.shape[0], *shape))  # only its shape counts
        pairs = [_pair(option) for option in (size, stride, padding, dilation)]
        result: Tensor = aten.max_pool2d_with_indices_backward(grad.contiguous(), pooled, *pairs, ceil_mode, indices)
        return result


class AvgPool2d:
    """Mean of each window."""

    def __init__(
        self, size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, divisor: int | None
    ) -> None:
        self.options = (_pair(size), _pair(stride or size), _pair(padding), ceil_mode, count_include_pad, divisor)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        _need(x, 4, 4, "average-pooling")
        return F.avg_pool2d(x, *self.options), tuple(x.shape[1:])

    def backward(self, grad: Tensor, saved: tuple[int, ...]) -> Tensor:
        pooled = grad.new_empty((grad.shape[0], *saved))  # only its shape counts
        result: Tensor = aten.avg_pool2d_backward(grad.contiguous(), pooled, *self.options)
        return result


class GlobalAvgPool2d:
    """Mean over height and width, which stay as 1 x 1."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        _need(x, 4, 4, "average-pooling")
        return x.mean((2, 3), keepdim=True), tuple(x.shape[1:])

    def backward(self, grad: Tensor, saved: tuple[int, ...]) -> Tensor:
        return (grad / math.prod(saved[1:])).expand(-1, *saved).contiguous()


class Reshape:
    """(B, ...) to (B, *shape). Where the first size was -1 in the model, what is left for it has to be B."""

    def __init__(self, shape: Sequence[int], inferred: bool = False) -> None:
        self.shape, self.inferred = tuple(shape), inferred

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        if self.inferred and math.prod(self.shape) != math.prod(x.shape[1:]):
            raise NotLowered("a reshape that mixes examples")
        return x.reshape(x.shape[0], *self.shape), tuple(x.shape[1:])

    def backward(self, grad: Tensor, saved: tuple[int, ...]) -> Tensor:
        return grad.reshape(grad.shape[0], *saved)


class Flatten:
    """Dimensions `start` ... `end` as one."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        if x.ndim < 2 or self.start % x.ndim == 0:
            raise NotLowered("flattens the batch dimension")
        return x.flatten(self.start, self.end), tuple(x.shape[1:])

    def backward(self, grad: Tensor, saved: tuple[int, ...]) -> Tensor:
        return grad.reshape(grad.shape[0], *saved)


class Affine:
    """y = x + c, x - c, x c or x / c with a constant that broadcasts over `x`."""

    forwards: ClassVar[dict[str, Callable[[Tensor, Any], Tensor]]] = {
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "div": operator.truediv,
    }

    def __init__(self, kind: str, constant: Live) -> None:
        self.kind, self.constant = kind, constant

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        constant = self.constant()
        if isinstance(constant, Tensor) and constant.ndim:
            reaches = constant.ndim > x.ndim or (constant.ndim == x.ndim and constant.shape[0] != 1)
            if reaches or any(c not in (1, n) for c, n in zip(constant.shape[::-1], x.shape[::-1], strict=False)):
                raise NotLowered(f"a constant of shape {tuple(constant.shape)} with an input {tuple(x.shape)}")
            constant = constant.to(x.dtype)
        return self.forwards[self.kind](x, constant), constant

    def backward(self, grad: Tensor, saved: Any) -> Tensor:
        return self.forwards[self.kind](grad, saved) if self.kind in ("mul", "div") else grad


class BatchNorm:
    """Batch normalisation with its running statistics: an affine map of each channel."""

    def __init__(self, module: nn.modules.batchnorm._BatchNorm, ndims: tuple[int, ...]) -> None:
        self.module, self.ndims = module, ndims

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        module = self.module
        if x.ndim not in self.ndims:
            raise NotLowered(f"batch normalisation of an input with {x.ndim} dimensions")
        assert module.running_mean is not None
        assert module.running_var is not None
        scale = (module.running_var + module.eps).rsqrt()
        if module.weight is not None:
            scale = scale * module.weight
        shift = -module.running_mean * scale
        if module.bias is not None:
            shift = shift + module.bias
        channels = (-1,) + (1,) * (x.ndim - 2)
        scale, shift = scale.to(x.dtype).view(channels), shift.to(x.dtype).view(channels)
        return torch.addcmul(shift, x, scale), scale

    def backward(self, grad: Tensor, saved: Tensor) -> Tensor:
        return grad.mul_(saved)


class Identity:
    """Dropout in eval mode, and layers that do nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    def backward(self, grad: Tensor, saved: None) -> Tensor:
        return grad


class Autograd:
    """Any model, differentiated by autograd; under ``torch.no_grad()`` and inference mode as well."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model

    def forward(self, x: Tensor, half: bool = False) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        autocast = torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), autocast:
            leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            output = self.model(leaf)
        if not isinstance(output, Tensor):
            raise TypeError(f"the model must return a tensor of logits, not {type(output).__name__}")
        return output.detach(), (leaf, output)

    def backward(self, grad: Tensor, saved: tuple[Tensor, Tensor]) -> Tensor:
        leaf, output = saved
        blocks, _ = _blocks(grad.to(output.dtype), output)
        if not output.requires_grad:
            return leaf.new_zeros((grad.shape[0], *leaf.shape[1:]))
        with torch.inference_mode(False):
            towards = [
                torch.autograd.grad(output, leaf, block.clone(), retain_graph=True, allow_unused=True)[0]
                for block in blocks.unbind(1)
            ]
            found = [torch.zeros_like(leaf) if grad is None else grad for grad in towards]
        return found[0] if len(found) == 1 else torch.stack(found, 1).flatten(0, 1)


def _blocks(grad: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    """`grad` as (B, R, ...) and `saved` as (B, 1, ...)."""
    count = grad.shape[0] // max(1, saved.shape[0])
    return grad.view(saved.shape[0], count, *saved.shape[1:]), saved.unsqueeze(1)


def _as(weight: Any, x: Tensor) -> Any:
    """`weight` in bfloat16 if that is what is computed in; another dtype than that of `x` is a matter for the model."""
    if weight is None or weight.dtype is x.dtype:
        return weight
    if x.dtype is torch.bfloat16 and weight.dtype is torch.float32:
        return weight.bfloat16()
    raise NotLowered(f"weights are {weight.dtype}, inputs {x.dtype}")


def _need(x: Tensor, least: int, most: int | None, what: str) -> None:
    if x.ndim < least or (most is not None and x.ndim > most):
        raise NotLowered(f"{what} on an input with {x.ndim} dimensions")


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
