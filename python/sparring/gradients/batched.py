"""`input_grad` and `jacobian`: what attacks ask of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparring import losses
from sparring.gradients.lowered import Model
from sparring.gradients.lowering import lower
from sparring.gradients.mixture import loss_grad
from sparring.losses import Loss


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
    _check(x, precision)
    losses.check_name(loss)
    lowered = lower(model)
    logits, tape = lowered.forward(x, precision, unmixed=True)
    mixture = lowered.mixture if logits.ndim == 3 else None
    value, grad, mixed = loss_grad(loss, logits.float() if precision == "bf16" else logits, mixture, labels, targets)
    return InputGrad(lowered.backward(grad.to(logits.dtype), tape).to(x.dtype), value, mixed)


def jacobian(
    model: Model,
    x: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    chunk_size: int | None = None,
    precision: str = "float32",
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
    _check(x, precision)
    lowered = lower(model)
    logits, tape = lowered.forward(x, precision)
    if logits.ndim != 2:
        raise ValueError(f"the model must return logits (B, K), but gave shape {tuple(logits.shape)}")
    chosen = _chosen(classes, logits.shape[1])
    rows = chunk_size or len(chosen)
    result = x.new_empty((x.shape[0], len(chosen), *x.shape[1:]))
    for i in range(0, len(chosen), rows):
        some = torch.tensor(chosen[i : i + rows], device=x.device)
        seeds = torch.zeros((len(some), logits.shape[1]), dtype=logits.dtype, device=x.device)
        seeds.scatter_(1, some[:, None], 1)
        seeds = seeds.repeat(x.shape[0], 1)
        result[:, i : i + rows] = lowered.backward(seeds, tape).view(x.shape[0], len(some), *x.shape[1:])
    return result


def _check(x: Tensor, precision: str) -> None:
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16'; got {precision!r}")
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
