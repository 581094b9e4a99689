"""From the logits of an ensemble's members, (M, B, K), to those of the ensemble, (B, K), and to its loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring import losses
from sparring.gradients import kernels
from sparring.gradients.kernels import LossGrad
from sparring.losses import Loss, Span

_BETWEEN_EQUALS = 1e-6  # of the mean probability, added to a share of votes


def mix(logits: Tensor, weights: Tensor, combine: str) -> Tensor:
    """The logits of a mixture, (B, K), from its members', (M, B, K): see `sparring.Ensemble`.

    To autograd, a vote has the gradient of the mean probabilities.
    """
    weights = weights.to(logits.dtype)[:, None, None]
    if combine == "logits":
        return (weights * logits).sum(0)
    if combine == "loss":
        return (weights * logits.log_softmax(-1)).sum(0)
    mixed = (weights.log() + logits.log_softmax(-1)).logsumexp(0)
    if combine == "vote":
        votes = (weights * F.one_hot(logits.argmax(-1), logits.shape[-1])).sum(0)
        shown = torch.logaddexp(votes.log(), mixed.detach() + math.log(_BETWEEN_EQUALS))
        return shown + (mixed - mixed.detach()) if mixed.requires_grad else shown
    return mixed


class Combine:
    """`mix` as a step, in float32 at least."""

    def __init__(self, ensemble: Any) -> None:
        self.ensemble = ensemble

    @property
    def combine(self) -> str:
        return str(self.ensemble.combine)

    @property
    def differentiated(self) -> str:
        """`combine`, or what stands in for it where that has no gradient."""
        return "probs" if self.combine == "vote" else self.combine

    @property
    def weights(self) -> Tensor:
        weights: Tensor = self.ensemble.weights
        return weights

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, torch.dtype]]:
        logits = x if x.dtype is torch.float64 else x.float()
        mixed = mix(logits, self.weights, self.differentiated)
        shown = mix(logits, self.weights, self.combine) if self.combine == "vote" else mixed
        return shown, (logits, mixed, x.dtype)

    def backward(self, grad: Tensor, saved: tuple[Tensor, Tensor, torch.dtype]) -> Tensor:
        logits, mixed, dtype = saved
        members, batch, classes = logits.shape
        blocks = grad.view(batch, grad.shape[0] // max(1, batch), classes)
        weights = self.weights.to(logits.dtype)[:, None, None]
        share = weights  # of each member's log-probability in the mixture
        if self.differentiated == "probs":
            share = (weights.log() + logits.log_softmax(-1) - mixed).exp()
        result = share.unsqueeze(2) * blocks
        if self.combine != "logits":
            result = result - logits.softmax(-1).unsqueeze(2) * result.sum(-1, keepdim=True)
        return result.view(members, grad.shape[0], classes).to(dtype)


def loss_grad(
    loss: Loss,
    logits: Tensor,
    mixture: Combine | None,
    labels: Tensor,
    targets: Tensor | None,
    spans: tuple[Span, Span | None] | None = None,
) -> LossGrad:
    """Loss of each example and its gradient towards the logits of a model, (B, K), or of its members, (M, B, K)."""
    losses.check(loss, logits if mixture is None else logits[0], labels, targets, spans)
    result = _loss_grad(loss, logits, mixture, labels, targets)
    if mixture is not None and mixture.combine == "vote":
        result = result._replace(combined=mix(logits, mixture.weights, "vote"))
    return result


def _loss_grad(loss: Loss, logits: Tensor, mixture: Combine | None, labels: Tensor, targets: Tensor | None) -> LossGrad:
    labels, targets = labels.long(), None if targets is None else targets.long()
    if isinstance(loss, str) and kernels.supported(logits):
        how = "probs" if mixture is None else mixture.differentiated
        weights = None if mixture is None else mixture.weights
        return kernels.loss_grad(logits, weights, labels, targets, loss, how)
    with torch.inference_mode(False), torch.enable_grad():
        if logits.is_inference() or labels.is_inference():  # which autograd cannot keep
            logits, labels = logits.clone(), labels.clone()
            targets = None if targets is None else targets.clone()
        leaf = logits.detach().requires_grad_()
        if mixture is None:
            mixed, value = leaf, losses.value(loss, leaf, labels, targets)
        else:
            weights = mixture.weights.clone()  # autograd cannot keep what was made in inference mode
            mixed = mix(leaf, weights, mixture.differentiated)
            if mixture.combine == "loss":
                each = torch.stack([losses.value(loss, one, labels, targets) for one in leaf])
                value = (weights.to(each)[:, None] * each).sum(0)
            else:
                value = losses.value(loss, mixed, labels, targets)
        if not value.requires_grad:
            raise ValueError("loss must be differentiable: what it returns does not depend on the logits through torch")
        (grad,) = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
    return LossGrad(value.detach(), grad, mixed.detach())
