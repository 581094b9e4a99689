"""The losses that a mixture is trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.gradients import kernels
from sparring.gradients.mixture import mix


def mixture_loss(
    logits: Tensor, labels: Tensor, log_weights: Tensor, combine: str = "probs", *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each example for a mixture, (B,), differentiable in the logits and the weights.

    Parameters
    ----------
    logits
        Of the members, (M, B, K).
    labels
        int64 (B,).
    log_weights
        (M,), the logarithms of weights that sum to 1.
    combine
        As in `sparring.Ensemble`; of "vote", which has no derivative, the loss is that of "probs".
    label_smoothing
        Share of each label that is spread over all classes.

    One kernel computes the loss and its derivatives, where there is one and labels are not smoothed.
    """
    combine = "probs" if combine == "vote" else combine
    if label_smoothing == 0 and kernels.supported(logits) and len(logits) > 1:
        loss: Tensor = _MixtureLoss.apply(logits, log_weights, labels, combine)  # type: ignore[no-untyped-call]
        return loss
    if combine == "loss":
        each = [F.cross_entropy(one, labels, reduction="none", label_smoothing=label_smoothing) for one in logits]
        return (log_weights.exp().to(logits.dtype)[:, None] * torch.stack(each)).sum(0)
    mixed = mix(logits, log_weights.exp(), combine)
    return F.cross_entropy(mixed, labels, reduction="none", label_smoothing=label_smoothing)


def members_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum over the members of their own cross-entropies, (B,), from their logits (M, B, K)."""
    members = len(logits)
    if label_smoothing == 0 and members > 1:
        even = logits.new_zeros(members)
        return mixture_loss(logits, labels, even, "loss")
    flat = F.cross_entropy(
        logits.flatten(0, 1), labels.repeat(members), reduction="none", label_smoothing=label_smoothing
    )
    return flat.view(members, -1).sum(0)


class _MixtureLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_weights: Tensor, labels: Tensor, combine: str) -> Tensor:
        shares = bool(ctx.needs_input_grad[1])
        result = kernels.loss_grad(logits, log_weights.exp(), labels, None, "ce", combine, shares=shares)
        ctx.save_for_backward(result.grad, result.shares)
        ctx.dtype = log_weights.dtype
        return result.loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        towards_logits, shares = ctx.saved_tensors
        towards_weights = None if shares is None else (grad @ shares).to(ctx.dtype)
        return towards_logits * grad[:, None], towards_weights, None, None
