"""Layers of a lowered network: each goes forward, and backward towards its input only.

``forward(x)`` returns the output and what ``backward`` needs of it. ``backward(grad, saved)`` takes, for each example,
the gradients of R scalars: (B * R, ...), those of an example one after the other; `saved` is of the B examples.
Weights are read from their module at each call and used in the dtype of `x`. `grad` may be overwritten.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from sparring.gradients import kernels
from sparring.gradients.products import Bfloat16, linear, small_enough_to_keep

aten = torch.ops.aten

Live = Callable[[], Any]
"""Reads a tensor from its module, so that it is never a stale copy."""


class NotLowered(Exception):
    """Why a layer, or a layer on such an input, is left to autograd."""


class Step(Protocol):
    """One layer. With an attribute ``takes_precision``, forward takes the precision as well, and sees to it itself."""

    @property
    def forward(self) -> Callable[..., tuple[Tensor, Any]]: ...

    @property
    def backward(self) -> Callable[[Tensor, Any], Tensor]: ...


class Activation:
    """An elementwise function, with its derivative as a function of its output."""

    _forwards: ClassVar[dict[str, Callable[..., Tensor]]] = {
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "softplus": F.softplus,
    }

    def __init__(self, name: str, slope: float = 0.01) -> None:
        self.name, self.slope = name, slope

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self._function(x)
        return y, y

    def over(self, z: Tensor, bias: Tensor | None = None) -> Tensor:
        """The function of ``z + bias``; `z` (..., H) is overwritten, `bias` is (H,), or (M, H) for `z` (M, ..., H)."""
        if kernels.supported(z):
            return kernels.bias_activation_(z, bias, self.name, slope=self.slope)
        if bias is not None:
            z += bias if bias.ndim == 1 else bias.unsqueeze(1)
        return z.relu_() if self.name == "relu" else self._function(z)

    def backward(self, grad: Tensor, saved: Tensor) -> Tensor:
        if saved.ndim == 2:
            grad, (batch, units) = grad.contiguous(), saved.shape
            self.towards(grad.view(batch, grad.shape[0] // batch if batch else 0, units), saved)
            return grad
        form = form_of(saved)
        grad, output = grad.contiguous(memory_format=form), flat(saved.contiguous(memory_format=form))
        self.towards(flat(grad).view(len(output), grad.shape[0] // max(1, len(output)), output.shape[1]), output)
        return grad

    def towards(self, grad: Tensor, output: Tensor) -> Tensor:
        """Multiply `grad` (..., R, H) in place by the derivative where the function is `output` (..., H)."""
        if kernels.supported(grad):
            return kernels.activation_backward_(grad, output, self.name, slope=self.slope)
        output = output.unsqueeze(-2)
        if self.name == "relu":
            masked: Tensor = aten.threshold_backward.grad_input(grad, output, 0, grad_input=grad)
            return masked
        if self.name == "sigmoid":
            return grad.mul_(output * (1 - output))
        if self.name == "tanh":
            return grad.mul_(1 - output * output)
        if self.name == "leaky_relu":
            return grad.mul_(torch.where(output > 0, 1, self.slope))
        return grad.mul_(-torch.expm1(-output))

    def _function(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope) if self.name == "leaky_relu" else self._forwards[self.name](x)


IDENTITY = Activation("identity")


class Softplus:
    """log(1 + exp(beta x)) / beta, and x where beta x is above `threshold`; backward needs its input."""

    def __init__(self, beta: float, threshold: float) -> None:
        self.options = (beta, threshold)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.softplus(x, *self.options), x

    def backward(self, grad: Tensor, saved: Tensor) -> Tensor:
        blocks, x = _blocks(grad.contiguous(), saved)
        result: Tensor = aten.softplus_backward(blocks, x, *self.options)
        return result.view(grad.shape)


class Linear:
    """y = x Wᵀ + b over the last dimension, and an activation."""

    activation: Activation | None = None
    keeps_bfloat16 = True  # its weights in bfloat16, for the next call
    _in_bfloat16: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __init__(self, weight: Live, bias: Live) -> None:
        self.weight, self.bias = weight, bias
        self._bfloat16 = Bfloat16()

    def take(self, x: Tensor, precision: str) -> Linear:
        """With its weights in bfloat16, where it keeps them so."""
        if precision != "bf16" or not self.keeps_bfloat16 or not small_enough_to_keep(self.weight()):
            return self
        taken = copy.copy(self)
        taken._in_bfloat16 = self._bfloat16.of(self.weight(), self.bias())
        return taken

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int | None, Tensor, Tensor | None]]:
        need(x, 2, None, "a linear layer")
        if self._in_bfloat16 is not None and x.dtype is torch.bfloat16:
            return self._forward_in_bfloat16(x, *self._in_bfloat16)
        weight, bias, features = as_dtype(self.weight(), x), as_dtype(self.bias(), x), x.shape[-1]
        if self.activation is None:
            return self.product(x, weight, bias), (features, weight, None)
        fused = kernels.supported(x)  # bias and activation in one pass
        y = self.activation.over(self.product(x, weight, None if fused else bias), bias if fused else None)
        return y, (features, weight, y)

    def backward(self, grad: Tensor, saved: tuple[int | None, Tensor, Tensor | None]) -> Tensor:
        features, weight, output = saved
        if self.activation is not None and output is not None:
            grad = self.activation.backward(grad, output)
        if features is None:  # the weight is that of the way back
            return linear(grad, weight)
        return self.product_back(grad, weight, features)

    def _forward_in_bfloat16(
        self, x: Tensor, weight: Tensor, back: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, tuple[int | None, Tensor, Tensor | None]]:
        relu = self.activation is not None and self.activation.name == "relu"
        y = linear(x, weight, bias, relu=relu)
        if self.activation is not None and not relu:
            y = self.activation.over(y)
        return y, (None, back, None if self.activation is None else y)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer on `x` without its activation."""
        return linear(x, weight, bias)

    def product_back(self, grad: Tensor, weight: Tensor, features: int) -> Tensor:
        """From the gradient behind `product` to that at its input, which had so many `features`."""
        return linear(grad, weight.t())


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

    def __init__(self, module: Any, ndims: tuple[int, ...]) -> None:
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
        if scale.numel() != x.shape[1]:
            raise NotLowered(f"batch normalisation of {scale.numel()} channels on {x.shape[1]}")
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
    """Any model, differentiated by autograd; under ``torch.no_grad()`` and inference mode as well.

    The model is given a copy, which it may write to, and what is kept of its answer is one.
    """

    takes_precision = True

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model

    def take(self, x: Tensor, precision: str) -> Autograd:
        """With a copy of a model whose tensors were made in inference mode: autograd cannot keep those."""
        model = self.model
        if isinstance(model, nn.Module) and any(
            not is_lazy(t) and t.is_inference() for t in (*model.parameters(), *model.buffers())
        ):
            with torch.inference_mode(False):
                return Autograd(copy.deepcopy(model))
        return self

    def forward(self, x: Tensor, precision: str) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        autocast = torch.autocast(x.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        x = x.float() if precision == "bf16" and x.dtype is torch.bfloat16 else x
        with torch.inference_mode(False), torch.enable_grad(), autocast:
            leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            output = self._called(leaf.clone())
        if not isinstance(output, Tensor):
            raise TypeError(f"the model must return a tensor of logits, not {type(output).__name__}")
        return output.detach().clone(), (leaf, output)

    def _called(self, x: Tensor) -> Any:
        return self.model(x)

    def _blocks(self, grad: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Gradients like the output, one for each of R."""
        return _blocks(grad, output)[0].unbind(1)

    def backward(self, grad: Tensor, saved: tuple[Tensor, Tensor]) -> Tensor:
        leaf, output = saved
        blocks = self._blocks(grad.to(output.dtype), output)
        if not output.requires_grad or not len(leaf):
            return leaf.new_zeros((len(blocks) * len(leaf), *leaf.shape[1:]))
        with torch.inference_mode(False):
            towards = [
                torch.autograd.grad(output, leaf, block.clone(), retain_graph=True, allow_unused=True)[0]
                for block in blocks
            ]
            found = [torch.zeros_like(leaf) if grad is None else grad for grad in towards]
        return found[0] if len(found) == 1 else torch.stack(found, 1).flatten(0, 1)


class AutogradMembers(Autograd):
    """The logits of an ensemble's members, (M, B, K), as it computes them itself, differentiated by autograd."""

    def take(self, x: Tensor, precision: str) -> AutogradMembers:
        """As `Autograd.take`; of an ensemble that may be known by a proxy."""
        whole: Any = self.model
        taken = Autograd(next(iter(whole.modules()))).take(x, precision)
        return self if taken.model is next(iter(whole.modules())) else AutogradMembers(taken.model)

    def _called(self, x: Tensor) -> Any:
        whole: Any = self.model
        return whole.member_logits(x)

    def _blocks(self, grad: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        members, batch, classes = output.shape
        return grad.view(members, batch, grad.shape[1] // max(1, batch), classes).unbind(2)


def _blocks(grad: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    """`grad` as (B, R, ...) and `saved` as (B, 1, ...)."""
    count = grad.shape[0] // max(1, saved.shape[0])
    return grad.view(saved.shape[0], count, *saved.shape[1:]), saved.unsqueeze(1)


def as_dtype(weight: Any, x: Tensor) -> Any:
    """`weight` in bfloat16 if that is what is computed in; another dtype than that of `x` is a matter for the model."""
    if weight is None or weight.dtype is x.dtype:
        return weight
    if x.dtype is torch.bfloat16 and weight.dtype is torch.float32:
        return weight.bfloat16()
    raise NotLowered(f"weights are {weight.dtype}, inputs {x.dtype}")


def need(x: Tensor, least: int, most: int | None, what: str) -> None:
    if x.ndim < least or (most is not None and x.ndim > most):
        raise NotLowered(f"{what} on an input with {x.ndim} dimensions")


def form_of(x: Tensor) -> torch.memory_format:
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def flat(x: Tensor) -> Tensor:
    """`x` as (B, N) in the order of its memory; a copy if it is neither contiguous nor channels-last."""
    if form_of(x) is torch.channels_last:
        x = x.permute(0, 2, 3, 1)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
