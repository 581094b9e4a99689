"""A front end that has no useful gradient, differentiated as something else (Athalye, Carlini & Wagner 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
