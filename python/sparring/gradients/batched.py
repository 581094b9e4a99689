"""`input_grad` and `jacobian`: what attacks ask of a model."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparring import losses
from sparring.gradients import fused
from sparring.gradients.home import explained
from sparring.gradients.lowered import Lowered, Model, without_grad
from sparring.gradients.lowering import lower
from sparring.gradients.mixture import loss_grad
from sparring.gradients.steps import NotLowered
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
    the mode it is in (in training mode batch normalisation counts, and dropout draws); parameters, their ``grad`` and
    ``requires_grad`` are left alone, and no graph is kept. Works
    under ``torch.no_grad()`` and ``torch.inference_mode()``. The weights are those of the moment when the call begins;
    the model may write to what it is given, which is a copy of `x`. Where the logits do not depend on `x` (a model that
    detaches or rounds), the gradient is zero.

    An example's result depends on the rest of the batch only in rounding, where the order of summation in a matrix
    product or convolution depends on the batch size. On x86 CPUs, for perceptrons, an ensemble of twenty and two small
    convolutional networks, batches of 16 to 1024 gave the same bits with one thread. Batches of one or two, and on some
    processors those with two threads, differed by at most 14 units in the last place of the largest entry of the
    example's gradient, unless that turned a ReLU or the maximum of a window the other way.

    Parameters
    ----------
    model
        What `sparring.lower` returned; or a module, which is lowered if it can be; or any differentiable callable.
        From (B, ...) to logits (B, K).
    x
        (B, ...), floating-point.
    labels, targets
        Integers (B,); see `sparring.losses`.
    loss
        "ce", "margin", "dlr", "prob", or a callable from logits and labels (or targets) to (B,). An
        `sparring.Ensemble` that combines losses is given the logits of one member at a time.
    precision
        "float32": that of `x`, whatever it is. "bf16": layers in bfloat16 (autograd: under autocast), loss in float32;
        where the processor has it 1.6 to 2 times as fast for ten to a hundred small members, or one on a batch of 1024;
        the same time for one on a batch of 128. Copies of linear layers' weights are kept. On two MNIST networks
        gradients kept a median cosine above .999 to float32's, and 20 steps of PGD left the same accuracy to .002.
    memory
        Bytes for the activations of a lowered model; a batch that needs more is worked on in parts.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described, or the model does not return (B, K).
    """
    _check(x, precision)
    losses.check_name(loss)
    batch = x.shape[0]
    losses.check_indices(labels, "labels", batch, x.device)
    if targets is not None:
        losses.check_indices(targets, "targets", batch, x.device)
    with explained(model, x, "x"):
        taken = lower(model).take(x, precision)
        return asked(taken, x, labels, loss, targets, spans_of(labels, targets), precision, memory)


Spans = tuple[losses.Span, losses.Span | None]


def spans_of(labels: Tensor, targets: Tensor | None) -> Spans:
    return losses.span_of(labels), None if targets is None else losses.span_of(targets)


def asked(
    lowered: Lowered, x: Tensor, labels: Tensor, loss: Loss, targets: Tensor | None, spans: Spans,
    precision: str = "float32", memory: int = 2**30,
) -> InputGrad:  # fmt: skip
    """`input_grad` of a model that was taken for the call, and of classes whose `spans` are known: nothing waits."""
    try:
        return _asked(lowered, x, labels, loss, targets, spans, precision, memory)
    except NotLowered:  # known only now that the steps are gone through
        left = lowered.left_to_autograd(x, precision)
        return _asked(left, x, labels, loss, targets, spans, precision, memory)


def _asked(
    lowered: Lowered, x: Tensor, labels: Tensor, loss: Loss, targets: Tensor | None, spans: Spans, precision: str,
    memory: int,
) -> InputGrad:  # fmt: skip
    batch, rows = x.shape[0], lowered.examples_in(memory, x, precision)
    if rows >= batch:
        return _input_grad(lowered, x, labels, loss, targets, spans, precision)
    parts = [
        _input_grad(lowered, x[i : i + rows], labels[i : i + rows], loss, _part(targets, i, rows), spans, precision)
        for i in range(0, batch, rows)
    ]
    return InputGrad(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def jacobian(
    model: Model,
    x: Tensor,
    classes: Sequence[int] | Tensor | None = None,
    *,
    chunk_size: int | None = None,
    precision: str = "float32",
    memory: int = 2**30,
) -> Tensor:
    """Derivatives of the logits of each example towards that example, (B, K, ...), in the dtype of `x`.

    Parameters
    ----------
    model, x, precision
        As in `input_grad`.
    classes
        Which logits: K indices. None: all.
    chunk_size
        Of how many logits the derivatives are worked on at once. None: as many as `memory` allows.
    memory
        Bytes for intermediate results, besides the (B, K, ...) that are returned.
    """
    _check(x, precision)
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ValueError(f"chunk_size must be at least 1, an integer, or None; got {chunk_size!r}")
    with explained(model, x, "x"):
        lowered = lower(model).take(x, precision)
        try:
            return _whole_jacobian(lowered, x, classes, chunk_size, precision, memory)
        except NotLowered:
            left = lowered.left_to_autograd(x, precision)
            return _whole_jacobian(left, x, classes, chunk_size, precision, memory)


def _whole_jacobian(
    lowered: Lowered, x: Tensor, classes: Sequence[int] | Tensor | None, chunk_size: int | None, precision: str,
    memory: int,
) -> Tensor:  # fmt: skip
    room = lowered.examples_in(memory, x, precision)
    if room < x.shape[0]:
        return torch.cat(
            [_jacobian(lowered, part, classes, chunk_size or 1, precision) for part in torch.split(x, room)]
        )
    return _jacobian(lowered, x, classes, chunk_size or max(1, room // max(1, x.shape[0])), precision)


def _input_grad(
    lowered: Lowered, x: Tensor, labels: Tensor, loss: Loss, targets: Tensor | None, spans: Spans, precision: str
) -> InputGrad:
    if isinstance(loss, str) and precision == "float32":
        whole = fused.input_grad(lowered, x, labels, targets, loss, spans)
        if whole is not None:
            return InputGrad(whole.grad, whole.loss, whole.combined)
    with without_grad():
        logits, tape = lowered.forward(x, precision, unmixed=True)
        mixture = lowered.mixture if logits.ndim == 3 else None
        logits_ = logits.float() if precision == "bf16" else logits
        result = loss_grad(loss, logits_, mixture, labels, targets, spans)
        grad = lowered.backward(_as(result.grad, logits.dtype), tape)
        return InputGrad(_as(grad, x.dtype), result.loss, result.combined)


def _jacobian(
    lowered: Lowered, x: Tensor, classes: Sequence[int] | Tensor | None, chunk_size: int, precision: str
) -> Tensor:
    logits, tape = lowered.forward(x, precision)
    if logits.ndim != 2:
        raise ValueError(f"the model must return logits (B, K), but gave shape {tuple(logits.shape)}")
    seeds = torch.eye(logits.shape[1], dtype=logits.dtype, device=x.device)
    if classes is not None:
        seeds = seeds[_chosen(classes, logits.shape[1])]
    parts = []
    for some in torch.split(seeds, chunk_size) if seeds.shape[0] else ():
        grad = lowered.backward(some.repeat(x.shape[0], 1), tape)
        parts.append(_as(grad, x.dtype).view(x.shape[0], some.shape[0], *x.shape[1:]))
    if not parts:
        return x.new_empty((x.shape[0], 0, *x.shape[1:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _part(targets: Tensor | None, start: int, count: int) -> Tensor | None:
    return None if targets is None else targets[start : start + count]


def _check(x: Tensor, precision: str) -> None:
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16'; got {precision!r}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch tensor, not {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating-point, not {str(x.dtype).removeprefix('torch.')}")
    if x.layout is not torch.strided or x.is_meta or x.is_quantized:
        raise TypeError(f"x must be a dense tensor with numbers, not {_kind(x)}")
    if x.ndim < 1:
        raise ValueError("x must have a batch dimension (shape (B, ...)), but is a scalar")


def _kind(x: Tensor) -> str:
    return "one on the meta device" if x.is_meta else "a quantised one" if x.is_quantized else f"of layout {x.layout}"


def _chosen(classes: Sequence[int] | Tensor, count: int) -> list[int]:
    try:
        chosen = [operator.index(k) for k in classes]
    except TypeError:
        raise TypeError(f"classes must be integers in 0 ... {count - 1}; got {classes!r}") from None
    if any(not 0 <= k < count for k in chosen):
        raise ValueError(f"classes must lie in 0 ... {count - 1}; got {chosen}")
    return chosen
