"""Whether a plan is its model: `disagreement`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparring.gradients.lowered import Lowered, run
from sparring.gradients.steps import NotLowered

_ROWS = 4  # of the caller's
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # relative to a row's largest entry
_COARSE = 5e-2  # for what has fewer bits
_ASIDE = 0.01  # how far, in terms of its deviation, a row is moved for another look


def disagreement(lowered: Lowered, x: Tensor) -> str | None:
    """Why a plan must not stand for its model, on rows of `x` (B, ...); None where both agree.

    Compared are the logits and the gradient of a weighted sum of them, and the model's answer with that to the same
    question again. Where a unit is at its kink, rounding decides its derivative: gradients that differ are compared
    once more a little aside, where both have other units at their kinks, and have to differ again to count.
    """
    rows = x.detach()[_spread(len(x), x.device)] if len(x) > _ROWS else x.detach()
    try:
        why = _difference(lowered, rows)
        if why is not None and "gradient" in why:
            aside = rows + _ASIDE * (rows.flatten(1).mean(1).reshape(-1, *[1] * (rows.ndim - 1)) - rows)
            return why if _difference(lowered, aside) is not None else None
        return why
    except NotLowered as why_not:
        return str(why_not)
    except Exception:
        # A model may want all its rows, or fail on any; then it will say so itself.
        alone = len(rows) < len(x)
        return "the model cannot be asked about a few of the rows alone" if alone else "the model fails on them"


def _difference(lowered: Lowered, rows: Tensor) -> str | None:
    steps, model = lowered.plan.steps or [], lowered.model
    if lowered.mixture is not None:  # each member by itself; how they are mixed is ours
        steps, model = steps[:-1], lowered.mixture.ensemble.member_logits
    logits, grad = _by_autograd(model, rows)
    with torch.no_grad():
        again = model(rows.clone())
        if again.shape != logits.shape or logits.ndim < 2:
            return "the model does not return logits (B, K)"
        ours, tape = run(steps, rows, "float32")
        if ours.shape != logits.shape:
            return f"the plan gives logits of shape {tuple(ours.shape)}, the model {tuple(logits.shape)}"
        if not _close(again.flatten(0, -2), logits.flatten(0, -2)):
            return "the model's answer to the same question changes"
        if not _close(ours.flatten(0, -2), logits.flatten(0, -2)):
            return "the plan's logits are not the model's"
        towards = _weights(ours)
        for step, saved in reversed(tape):
            towards = step.backward(towards, saved)
    count = len(rows)
    return (
        None
        if _close(towards.reshape(count, -1), grad.reshape(count, -1))
        else "the plan's gradient is not the model's"
    )


def _by_autograd(model: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = rows.clone().requires_grad_()
        logits = model(leaf.clone())
        if not logits.requires_grad:
            return logits.detach(), torch.zeros_like(rows)
        (grad,) = torch.autograd.grad(logits, leaf, _weights(logits), allow_unused=True, materialize_grads=True)
    return logits.detach().clone(), grad


def _weights(logits: Tensor) -> Tensor:
    """Numbers between 1 and 2 that tell the logits apart, of the same shape."""
    count = torch.arange(logits.numel(), device=logits.device).reshape(logits.shape)
    return (1 + (count * 0.6180339887) % 1).to(logits.dtype)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors (N, D) agree, row by row."""
    tolerance = _TOLERANCE.get(other.dtype, _COARSE)
    if other.is_cuda and other.dtype is torch.float32:
        tolerance *= 5  # TF32
    if not one.numel():
        return True
    one, other = one.double(), other.double()
    scale = other.abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
    off = (one - other).abs() <= tolerance * scale + 1e-3 * tolerance * scale.amax()
    return bool((off | (one == other) | (one.isnan() & other.isnan())).all())


def _spread(count: int, device: torch.device) -> Tensor:
    return torch.arange(_ROWS, device=device) * (count - 1) // (_ROWS - 1)
