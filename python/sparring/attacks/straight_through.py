"""What has no useful gradient, differentiated as something else (Athalye, Carlini & Wagner 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class StraightThrough(nn.Module):
    """Compute ``front(x)`` and differentiate ``backward(x)``: backward pass differentiable approximation (BPDA).

    Put in front of a network in the place of what hides its gradient: rounding, JPEG, thresholds, anything that leaves
    autograd. The values stay those of `front` to the bit.

    Parameters
    ----------
    front
        A module or function from (B, ...) to a tensor; it is given a copy, outside of autograd.
    backward
        A differentiable module or function from the same inputs to the same shape and dtype, close to `front`.
        None: the identity, for a front end that gives nearly what it is given.

    Raises
    ------
    TypeError, ValueError
        If one of them is not callable; in a call, if they return different shapes or dtypes.

    Examples
    --------
    >>> coarse = sp.attacks.StraightThrough(lambda x: (x * 8).round() / 8)
    >>> sp.attacks.pgd(torch.nn.Sequential(coarse, network), x, y, eps=8 / 255)

    An attack on a model as it is takes the gradient from there by its option `backward`, which maps to logits:
    ``pgd(model, x, y, eps=8 / 255, backward=torch.nn.Sequential(coarse, network))``.
    """

    def __init__(self, front: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        for name, function in (("front", front), ("backward", backward)):
            if not callable(function) and (name == "front" or function is not None):
                raise TypeError(f"{name} must be a module or a function, not {type(function).__name__}")
        self.front, self.backward = front, backward

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.front(x.detach().clone())
        if not torch.is_grad_enabled():
            return y
        through = x if self.backward is None else self.backward(x)
        for name, value in (("front", y), ("backward", through)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must return a tensor, not {type(value).__name__}")
        if y.shape != through.shape or y.dtype != through.dtype or y.device != through.device:
            raise ValueError(f"front must return what backward does, {_kind(through)}, but gave {_kind(y)}")
        answer: Tensor = _Instead.apply(through, y)  # type: ignore[no-untyped-call]
        return answer


class Differentiable(nn.Module):
    """The same model, differentiated through what has no useful derivative: an attack's `backward`.

    Rounding to whole numbers in any way, the sign, a cast to integers, and the softmax of (B, K) pass the gradient on
    as it is; ``detach``, ``.data`` and ``torch.no_grad`` do not stop it. What the model returns stays the same but for
    rounding, and for casts, whose values stay floating-point numbers. Nothing can be done about what leaves torch
    (NumPy, PIL), custom `torch.autograd.Function`, and comparisons; `StraightThrough` can where one knows of it.

    `sparring.evaluate` tries it where gradients look masked. On a network as it should be it changes nothing but a
    softmax at the end.

    Examples
    --------
    >>> sp.attacks.apgd(model, x, y, eps=0.3, backward=sp.attacks.Differentiable(model))
    """

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be a module or a function, not {type(model).__name__}")
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled()), _Through():
            return self.model(x)


_ROUNDING = {
    getattr(place, name)
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
    for place in (torch, Tensor)
}  # fmt: skip
_ROUNDING_IN_PLACE = {getattr(Tensor, name + "_") for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")}
_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax}
_DETACHING = {torch.detach, torch.detach_, Tensor.detach, Tensor.detach_, Tensor.data.__get__}  # type: ignore[attr-defined]
_CASTS = {Tensor.byte, Tensor.char, Tensor.short, Tensor.int, Tensor.long, Tensor.to, Tensor.type}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


class _Through(TorchFunctionMode):
    """Within it, torch's functions let gradients through."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled and args and not args[0]:
            return None
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not (x.requires_grad and x.is_floating_point()):
            return func(*args, **kwargs)
        if func in _DETACHING:
            return x
        if func in _ROUNDING_IN_PLACE:
            return x.add_((func(x.detach().clone(), *args[1:], **kwargs) - x).detach())
        y = func(*args, **kwargs)
        if not isinstance(y, Tensor):
            return y
        straight = func in _ROUNDING or (func in _SOFTMAX and x.ndim == 2)
        if straight or (func in _CASTS and y.dtype in _INTEGERS):
            return x + (y.to(x.dtype) - x).detach()
        return y


class _Instead(torch.autograd.Function):
    """The second tensor, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, through: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
