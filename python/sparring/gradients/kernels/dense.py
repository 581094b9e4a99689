"""Between matrix products: bias and activation, and the losses at the end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, float64

from sparring import _bridge as bridge
from sparring._gate import plain
from sparring.gradients.kernels._arguments import NUMBER, agree, check_indices, rows_of, same_kind


class LossGrad(NamedTuple):
    """Losses, (B,); their gradient, like the logits; the logits of the ensemble, (B, K); d loss / d log w, (B, M)."""

    loss: Tensor
    grad: Tensor
    combined: Tensor
    shares: Tensor | None = None


def bias_activation_(
    z: Tensor, bias: Tensor | None, kind: str = "identity", *, slope: float = 0.01, out: Tensor | None = None
) -> Tensor:
    """``activation(z + bias)``, in place or into `out`.

    Parameters
    ----------
    z : (..., H)
        Rows contiguous.
    bias : (H,) or (M, H), optional
        One a network of a stack, for `z` of shape (M, ..., H).
    kind : one of `ACTIVATIONS`
    slope : float
        Of leaky_relu.
    out : like `z`, optional
        Where to write instead.
    """
    rows, n, stride = rows_of(z, "z", written=out is None)
    target, out_stride, groups = z, stride, 1
    if out is not None:
        out_rows, out_n, out_stride = rows_of(out, "out", written=True)
        agree((out_rows, out_n), (rows, n), "out", "z")
        same_kind(out, z, "out")
        target = out
    if bias is not None:
        groups = 1 if bias.ndim == 1 else bias.shape[0]
        agree(tuple(bias.shape), (n,) if bias.ndim == 1 else (z.shape[0], n), "bias", "z")
        same_kind(bias, z, "bias")
        bias = bias.contiguous()
    bridge.native.bias_activation(
        z.dtype is float64,
        *bridge.place_of(z, "z"),
        rows,
        n,
        z.data_ptr(),
        stride,
        0 if bias is None else bias.data_ptr(),
        n,
        max(1, rows // max(1, groups)),
        NUMBER[kind],
        slope,
        target.data_ptr(),
        out_stride,
    )
    return target


def activation_backward_(grad: Tensor, output: Tensor, kind: str, *, slope: float = 0.01) -> Tensor:
    """Multiply `grad` in place by the activation's derivative, which follows from the activation's output alone.

    Parameters
    ----------
    grad : (..., H) or (..., K, H)
        Rows contiguous; K gradients of every row of `output`.
    output : (..., H)
        What `bias_activation_` gave.
    kind, slope
        As in `bias_activation_`.
    """
    rows, n, stride = rows_of(grad, "grad", written=True)
    output_rows, output_n, output_stride = rows_of(output, "output")
    lead = -1 if grad.ndim == output.ndim else -2
    agree((*grad.shape[:lead], n), (*output.shape[:-1], output_n), "grad", "output")
    same_kind(output, grad, "output")
    bridge.native.activation_backward(
        grad.dtype is float64,
        *bridge.place_of(grad, "grad"),
        rows,
        n,
        grad.data_ptr(),
        stride,
        output.data_ptr(),
        output_stride,
        max(1, rows // max(1, output_rows)),
        NUMBER[kind],
        slope,
    )
    return grad


def loss_grad(
    logits: Tensor,
    weights: Tensor | None,
    labels: Tensor,
    targets: Tensor | None = None,
    loss: str = "ce",
    combine: str = "probs",
    *,
    shares: bool = False,
) -> LossGrad:
    """Loss of each example and its gradient towards the logits of one network, or of all of an ensemble.

    Parameters
    ----------
    logits : (B, K) or (M, B, K)
        K contiguous, else any strides: (B, M K) from stacked networks is ``.view(B, M, K).transpose(0, 1)``.
    weights : (M,), optional
        Of the members; >= 0, sum 1. None: equal ones.
    labels, targets : (B,) int64
        The loss is of the target where there are targets; see :mod:`sparring.losses`. A row with a class outside
        0 ... K - 1 becomes NaN.
    loss, combine : one of `LOSSES`, one of `COMBINES`
        "probs" and "logits": the loss of the mixed probabilities, or of the mean logits; "loss": the mean of losses.
    shares : bool
        Whether the derivatives towards the logarithms of the members' weights are wanted; of several members only.

    Returns
    -------
    LossGrad
        ``combined``: log of the mixed probabilities; the mean logits; for "loss" the mean of the members' log softmax;
        for one network the `logits` themselves.
    """
    *lead, batch, classes = logits.shape
    *_, row_stride, stride = logits.stride()
    if classes > 1 and stride != 1:
        logits = logits.contiguous()
        row_stride = logits.stride(-2)
    members = lead[0] if lead else 1
    check_indices(labels, "labels", batch, logits)
    labels = labels.contiguous()
    if targets is not None:
        check_indices(targets, "targets", batch, logits)
        targets = targets.contiguous()
    value, grad = logits.new_empty(batch), torch.empty_like(logits)
    if members > 1:
        if weights is None:
            weights = logits.new_full((members,), 1 / members, dtype=float64)
        weights = plain(weights, "weights").to(logits.device, float64).contiguous()
        agree(tuple(weights.shape), (members,), "weights", "logits")
        combined = logits.new_empty(batch, classes)
    else:
        weights, combined = None, logits.view(batch, classes) if lead else logits
    by_member = logits.new_empty(batch, members) if shares and members > 1 else None
    bridge.native.loss_grad(
        logits.dtype is float64,
        *bridge.place_of(logits, "logits"),
        batch,
        members,
        classes,
        logits.data_ptr(),
        logits.stride(0),
        row_stride,
        0 if weights is None else weights.data_ptr(),
        labels.data_ptr(),
        0 if targets is None else targets.data_ptr(),
        NUMBER[loss],
        NUMBER[combine],
        value.data_ptr(),
        grad.data_ptr(),
        grad.stride(0),
        grad.stride(-2),
        0 if weights is None else combined.data_ptr(),
        0 if by_member is None else by_member.data_ptr(),
    )
    return LossGrad(value, grad, combined, by_member)
