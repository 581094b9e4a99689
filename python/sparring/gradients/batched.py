"""`input_grad` and `jacobian`: what attacks ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sparring import losses
from sparring.losses import Loss

Model = Callable[[Tensor], Tensor]


class InputGrad(NamedTuple):
    """Gradient of each example's loss, like the input; its loss, (B,); the logits, (B, K). None requires a gradient."""

    grad: Tensor
    loss: Tensor
    logits: Tensor


def input_grad(
    model: Model,
    x: Tensor,
    labels: Tensor,
    loss: Loss = "ce",
    *,
    targets: Tensor | None = None,
    precision: str = "float32",
    memory: int = 2**30,
) -> InputGrad:
    """Gradient of each example's own loss towards that example.

    The losses are summed over the batch, so an example's gradient does not shrink with the batch. The model runs in
    the mode it is in; parameters, their ``grad`` and ``requires_grad`` are left alone, and no graph is kept. Works
    under ``torch.no_grad()`` and ``torch.inference_mode()``. Where the logits do not depend on `x` (a model that
    detaches or rounds), the gradient is zero.

    Parameters
    ----------
    model
        A module or any differentiable callable, from (B, ...) to logits (B, K).
    x
        (B, ...), floating-point.
    labels, targets
        Integers (B,); see `sparring.losses`.
    loss
        "ce", "margin", "dlr", "prob", or a callable from logits and labels (or targets) to (B,).
    """
    _check_input(x)
    losses.check_name(loss)
    with _recording():
        point = _leaf(x)
        logits = model(point)
        losses.check(loss, logits, labels, targets)
        value = losses.value(loss, logits, _indices(labels), None if targets is None else _indices(targets))
        grad = _towards(value.sum(), point)
    return InputGrad(grad, value.detach(), logits.detach())


def jacobian(
    model: Model,
    x: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    chunk_size: int | None = None,
    memory: int = 2**30,
) -> Tensor:
    """Derivatives of the logits of each example towards that example, (B, K, ...).

    Parameters
    ----------
    model, x
        As in `input_grad`.
    classes
        Which logits, K indices; None for all.
    """
    _check_input(x)
    with _recording():
        point = _leaf(x)
        logits = model(point)
        if logits.ndim != 2:
            raise ValueError(f"the model must return logits (B, K), but gave shape {tuple(logits.shape)}")
        chosen = _chosen(classes, logits.shape[1])
        result = x.new_empty((x.shape[0], len(chosen), *x.shape[1:]))
        for i, k in enumerate(chosen):
            result[:, i] = _towards(logits[:, k].sum(), point, keep=True)
    return result


@contextmanager
def _recording() -> Iterator[None]:
    """Autograd on, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _leaf(x: Tensor) -> Tensor:
    """`x` as a leaf of a new graph; a tensor from inference mode is copied, as autograd cannot save it."""
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def _indices(classes: Tensor) -> Tensor:
    return classes.long().clone() if classes.is_inference() else classes.long()


def _towards(scalar: Tensor, point: Tensor, keep: bool = False) -> Tensor:
    if not scalar.requires_grad:
        return torch.zeros_like(point)
    (grad,) = torch.autograd.grad(scalar, point, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(point) if grad is None else grad


def _check_input(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch tensor, not {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating-point, not {str(x.dtype).removeprefix('torch.')}")
    if x.ndim < 1:
        raise ValueError("x must have a batch dimension (shape (B, ...)), but is a scalar")


def _chosen(classes: Sequence[int] | Tensor | None, count: int) -> list[int]:
    if classes is None:
        return list(range(count))
    chosen = [int(k) for k in classes]
    if any(not 0 <= k < count for k in chosen):
        raise ValueError(f"classes must lie in 0 ... {count - 1}; got {chosen}")
    return chosen
