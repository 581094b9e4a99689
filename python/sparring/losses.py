"""Losses that attacks ascend: one value per example, larger where the network is closer to being fooled.

======== ============================================ ==================================================
loss     without targets                              with targets
======== ============================================ ==================================================
"ce"     cross-entropy of the label                   minus the cross-entropy of the target
"margin" max of z_j over j != y, minus z_y            z_t minus the max of z_j over j != t
"dlr"    (max of z_j over j != y - z_y) / (z1 - z3)   (z_t - z_y) / (z1 - (z3 + z4) / 2)
"prob"   -p_y                                         p_t
======== ============================================ ==================================================

z are the logits, y the label, t the target, p the softmax, z1 >= z2 >= ... the sorted logits. Margin: Carlini & Wagner
2017, equation f6; difference of logits ratio: Croce & Hein 2020, equations 6 and 7. A callable is given the logits
and the targets, or the labels where there are no targets, and returns (B,) values, which are ascended as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Loss: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]

NAMES = ("ce", "margin", "dlr", "prob")
_FEW = 256  # numbers that Python compares sooner than torch
_CLASSES_NEEDED = {"ce": 2, "prob": 2, "margin": 2, "dlr": 3}
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def evaluate(loss: Loss, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the loss of each example, (B,), in float32, or float64 for float64 logits; differentiable in `logits`.

    Parameters
    ----------
    loss
        One of `NAMES`, or a callable (see the module).
    logits
        (B, K), floating-point.
    labels, targets
        Integers (B,) in 0 ... K - 1, on the device of `logits`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described, or a callable does not return (B,) numbers.
    """
    check(loss, logits, labels, targets)
    return value(loss, logits, labels.long(), None if targets is None else targets.long())


def value(loss: Loss, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """As `evaluate`, for arguments that were checked before; labels and targets are int64."""
    z = logits if logits.dtype is torch.float64 else logits.float()
    if callable(loss):
        result = loss(z, (labels if targets is None else targets).clone())
        if not isinstance(result, Tensor) or result.shape != labels.shape or not result.is_floating_point():
            what = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"loss must return one number per example, shape {tuple(labels.shape)}, but gave {what}")
        return result
    wanted = labels if targets is None else targets
    sign = -1 if targets is None else 1
    if loss == "ce":
        return -sign * F.cross_entropy(z, wanted, reduction="none")
    if loss == "prob":
        return sign * _at(z.softmax(1), wanted)
    if loss == "margin":
        return sign * (_at(z, wanted) - _best_other(z, wanted))
    top = z.sort(dim=1, descending=True, stable=True).values
    if targets is None:
        return (_best_other(z, labels) - _at(z, labels)) / (top[:, 0] - top[:, 2] + 1e-12)
    return (_at(z, targets) - _at(z, labels)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def bernoulli(log_p: Tensor, classes: Tensor) -> Tensor:
    """``-log p_y - sum of log(1 - p_k) over k != y``, (B,), where each class has a probability of its own.

    For models that return ``log p_k`` (B, K), such as `sparring.networks.RBF`; a callable loss like any other.
    """
    log_p = log_p.clamp(max=-1e-6)  # at p = 1 the other class is impossible
    others = torch.log(-torch.expm1(log_p)).scatter(1, classes[:, None], 0)
    return -_at(log_p, classes) - others.sum(1)


class Span(NamedTuple):
    """Least and greatest of some classes; (0, 0) where there are none."""

    low: int
    high: int


def span_of(classes: Tensor) -> Span:
    """Read from the tensor, which waits for a device: once a call is often enough."""
    count = len(classes)
    if not count:
        return Span(0, 0)
    ends = classes.tolist() if count <= _FEW and classes.is_cpu else [int(end) for end in torch.aminmax(classes)]
    return Span(min(ends), max(ends))


def check(
    loss: Loss,
    logits: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    spans: tuple[Span, Span | None] | None = None,
) -> None:
    """TypeError or ValueError unless the arguments are as `evaluate` wants them.

    `spans` of labels and targets, or of more than these, are read from them if they are not given.
    """
    check_name(loss)
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"the model must return floating-point logits (B, K), but gave {_what(logits)}")
    batch, classes = logits.shape
    needed = 1 if callable(loss) else _CLASSES_NEEDED[loss] + (loss == "dlr" and targets is not None)
    if classes < needed:
        advice = _advice(classes)
        raise ValueError(f"loss {loss!r} needs at least {needed} classes, but the model has {classes}{advice}")
    labels_span, targets_span = spans or (None, None)
    check_classes(labels, "labels", batch, classes, logits.device, labels_span)
    if targets is not None:
        check_classes(targets, "targets", batch, classes, logits.device, targets_span)


def _advice(classes: int) -> str:
    if classes != 1:
        return ""
    return "; where the one logit z stands for two classes, return torch.cat([torch.zeros_like(z), z], 1)"


def check_two_classes(logits: Tensor) -> None:
    """ValueError unless there are two classes to tell apart."""
    if logits.ndim == 2 and logits.shape[1] < 2:
        count = logits.shape[1]
        raise ValueError(
            "the model must return logits of two classes at least, (B, K) with K >= 2, for the likeliest of one class "
            f"never changes; it has {count}{_advice(count)}"
        )


def check_name(loss: Any) -> None:
    """TypeError or ValueError unless `loss` is one of `NAMES` or a callable."""
    if callable(loss):
        return
    if not isinstance(loss, str):
        raise TypeError(f"loss must be one of {', '.join(NAMES)} or a callable, not {type(loss).__name__}")
    if loss not in NAMES:
        raise ValueError(f"loss must be one of {', '.join(NAMES)} or a callable; got {loss!r}")


def check_classes(
    classes: Any, name: str, batch: int, limit: int, device: torch.device, span: Span | None = None
) -> None:
    """Error unless `classes` is an integer tensor (batch,) with entries in 0 ... limit - 1, on `device`."""
    check_indices(classes, name, batch, device)
    low, high = span or span_of(classes)
    if batch and (low < 0 or high >= limit):
        raise ValueError(f"{name} must lie in 0 ... {limit - 1}, the model's classes; measured {low} ... {high}")


def check_indices(classes: Any, name: str, batch: int, device: torch.device) -> None:
    """Error unless `classes` is an integer tensor (batch,) on `device`."""
    if not isinstance(classes, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, not {type(classes).__name__}")
    if classes.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor of integers, not one of layout {classes.layout}")
    if classes.dtype not in INTEGERS:
        raise TypeError(f"{name} must be integers (class indices), not {str(classes.dtype).removeprefix('torch.')}")
    if classes.shape != (batch,):
        raise ValueError(f"{name} has shape {tuple(classes.shape)}; expected one class per example, ({batch},)")
    if classes.device != device:
        raise ValueError(f"{name} is on device '{classes.device}', but the examples on '{device}'; nothing is moved")


def _at(z: Tensor, index: Tensor) -> Tensor:
    return z.gather(1, index[:, None])[:, 0]


def _best_other(z: Tensor, index: Tensor) -> Tensor:
    """The largest entry of each row besides the one at `index`."""
    return z.scatter(1, index[:, None], -torch.inf).max(1).values


def _what(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
