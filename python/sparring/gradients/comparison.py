"""Whether a plan is its model: `disagreement`."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.gradients.lowered import Lowered, run, taken
from sparring.gradients.steps import NotLowered

_ROWS = 4  # of the caller's
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # relative to a row's largest entry
_COARSE = 5e-2  # for what has fewer bits
TELLS_NOTHING = "on these rows all gradients are zero"

_ASIDE = 0.01  # how far, in terms of its deviation, a row is moved for another look


def disagreement(lowered: Lowered, x: Tensor) -> str | None:
    """Why a plan must not stand for its model, on rows of `x` (B, ...); None where both agree.

    Compared are the logits and the gradient of a weighted sum of them, and the model's answer with that to the same
    question again. Where a unit is at its kink, rounding decides its derivative: gradients that differ are compared
    once more a little aside, where both have other units at their kinks, and have to differ again to count.
    """
    rows = _spread(x.detach())
    try:
        why = _difference(lowered, rows)
        if why is not None and "gradient is" in why:
            aside = rows + _ASIDE * (rows.flatten(1).mean(1).reshape(-1, *[1] * (rows.ndim - 1)) - rows)
            return why if _difference(lowered, aside) not in (None, TELLS_NOTHING) else None
        return why
    except NotLowered as why_not:
        return str(why_not)
    except Exception:
        # A model may want all its rows, or fail on any; then it will say so itself.
        alone = len(rows) < len(x)
        return "the model cannot be asked about a few of the rows alone" if alone else "the model fails on them"


def _difference(lowered: Lowered, rows: Tensor) -> str | None:
    steps, by_autograd = lowered.plan.steps or [], taken(lowered.by_autograd, rows, "float32")
    if len(by_autograd) > 1 and lowered.mixture is not None:  # each member by itself; how they are mixed is ours
        steps, by_autograd = steps[:-1], by_autograd[:-1]
    logits, tape = run(by_autograd, rows, "float32")
    again, _ = run(by_autograd, rows, "float32")
    ours, our_tape = run(steps, rows, "float32")
    if again.shape != logits.shape or logits.ndim < 2:
        return "the model does not return logits (B, K)"
    if ours.shape != logits.shape:
        return f"the plan gives logits of shape {tuple(ours.shape)}, the model {tuple(logits.shape)}"
    if not torch.equal(again, logits) and not _close(again, logits):
        return "the model's answer to the same question changes"
    if not _close(ours, logits):
        return "the plan's logits are not the model's"
    weights = _weights(logits)
    grad = lowered.backward(weights, tape).reshape(len(rows), -1)
    towards = lowered.backward(weights, our_tape).reshape(len(rows), -1)
    if not _close(towards, grad):
        return "the plan's gradient is not the model's"
    return None if grad.any() else TELLS_NOTHING


def _weights(logits: Tensor) -> Tensor:
    """Numbers between 1 and 2 that tell the logits apart, of the same shape."""
    numbers = [1 + (count * 0.6180339887) % 1 for count in range(logits.numel())]
    return torch.tensor(numbers, dtype=logits.dtype, device=logits.device).reshape(logits.shape)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors (..., D) agree, row by row."""
    tolerance = _TOLERANCE.get(other.dtype, _COARSE)
    if other.is_cuda and other.dtype is torch.float32:
        tolerance *= 5  # TF32
    if not one.numel():
        return True
    if bool(((one - other).abs_() <= other.abs().amax(-1, keepdim=True).mul_(tolerance)).all()):
        return True
    # Not so simple: rows much smaller than others, and what is not finite.
    one, other = one.double(), other.double()
    scale = other.abs().nan_to_num(0, 0, 0).amax(-1, keepdim=True)
    near = (one - other).abs() <= tolerance * scale + 1e-3 * tolerance * scale.amax()
    return bool((near | (one == other) | (one.isnan() & other.isnan())).all())


def _spread(rows: Tensor) -> Tensor:
    """A few rows, from all over the batch."""
    if len(rows) <= _ROWS:
        return rows
    return torch.stack([rows[at * (len(rows) - 1) // (_ROWS - 1)] for at in range(_ROWS)])
