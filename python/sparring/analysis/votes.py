"""What the members of an ensemble decide together, and when they had better not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sparring.gradients.mixture import mix

How = Literal["majority", "probs", "logits", "loss"]


@dataclass(frozen=True)
class Votes:
    """Decisions on B examples.

    Attributes
    ----------
    label : int64 (B,).
    confidence : float64 (B,), the share of votes for the label, or the mixture's probability for it.
    disagreement : float64 (B,), the share of the members that name another class.
    divergence : float64 (B,), the generalised Jensen-Shannon divergence in nats: the mean over the members of the KL
        divergence of their probabilities from the mean probabilities.
    """

    label: Tensor
    confidence: Tensor
    disagreement: Tensor
    divergence: Tensor


def votes(member_logits: Tensor, how: How = "majority", weights: Tensor | None = None) -> Votes:
    """Decide by the members' majority, or by their mean probabilities, logits or log-probabilities ("loss").

    Parameters
    ----------
    member_logits
        (M, B, K), as of `Ensemble.member_logits`.
    how
        "majority": of equally many votes the class with the larger mean probability wins.
    weights
        (M,), >= 0, which are divided by their sum; None: equal ones. They weigh votes, means, disagreement and
        divergence alike.
    """
    if how not in get_args(How):
        raise ValueError(f"how must be one of {', '.join(get_args(How))}; got {how!r}")
    if member_logits.ndim != 3:
        raise ValueError(f"member_logits must have shape (M, B, K); got {tuple(member_logits.shape)}")
    logits = member_logits.detach().double()
    members = len(logits)
    weights = logits.new_ones(members) if weights is None else weights.to(logits)
    if weights.shape != (members,) or not bool((weights >= 0).all()) or not float(weights.sum()) > 0:
        raise ValueError(f"weights must be {members} numbers >= 0, not all 0; got {weights.tolist()}")
    weights = weights / weights.sum()
    log_probs = mix(logits, weights, "probs")
    named = torch.nn.functional.one_hot(logits.argmax(2), logits.shape[2])
    share = (weights[:, None, None] * named).sum(0)
    if how == "majority":
        most = (share - share.amax(1, keepdim=True)).abs() < 1e-12  # equal but for rounding
        label = torch.where(most, log_probs, -torch.inf).argmax(1)
        confidence = share
    else:
        mixed = log_probs if how == "probs" else mix(logits, weights, how).log_softmax(1)
        label, confidence = mixed.argmax(1), mixed.exp()
    own = logits.log_softmax(2)
    divergence = (weights[:, None] * (own.exp() * (own - log_probs)).nan_to_num(0.0).sum(2)).sum(0)
    chosen = label[:, None]
    return Votes(label, confidence.gather(1, chosen)[:, 0], 1 - share.gather(1, chosen)[:, 0], divergence.clamp(min=0))


@dataclass(frozen=True)
class Coverage:
    """Accuracy on the examples that are answered, as fewer of them are.

    Attributes
    ----------
    coverage, accuracy : float64 (P,), the share answered, ascending to 1, and the share of these that is right. There
        is a point for each distinct confidence: examples of equal confidence are answered together or not at all.
    threshold : float64 (P,), the confidence that is enough for it.
    """

    coverage: Tensor
    accuracy: Tensor
    threshold: Tensor

    @property
    def area(self) -> float:
        """Area under the curve from 0 to 1, which before its first point is as high as there."""
        steps = torch.diff(self.coverage, prepend=self.coverage.new_zeros(1))
        before = torch.cat([self.accuracy[:1], self.accuracy[:-1]])
        return float((steps * (self.accuracy + before) / 2).sum())

    def at(self, coverage: float) -> float:
        """Accuracy where at least so many are answered."""
        if not 0 <= coverage <= 1:
            raise ValueError(f"coverage must be from 0 to 1; got {coverage}")
        index = int((self.coverage < coverage - 1e-12).sum())
        return float(self.accuracy[min(index, len(self.accuracy) - 1)])


def accuracy_coverage(confidence: Tensor, correct: Tensor) -> Coverage:
    """The accuracy on the most confident examples, for every share of them (SPEC B11).

    Parameters
    ----------
    confidence
        (B,), the larger the rather an example is answered; to abstain by disagreement give its negative.
    correct
        Bool (B,).
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or correct.dtype is not torch.bool:
        raise ValueError(
            f"confidence and correct must be of one shape (B,), correct bool; got {tuple(confidence.shape)} and "
            f"{correct.dtype} {tuple(correct.shape)}"
        )
    if len(confidence) == 0 or not bool(confidence.isfinite().all()):
        raise ValueError("confidence must hold at least one number, and only finite ones")
    order = confidence.double().argsort(descending=True, stable=True)
    sorted_confidence = confidence.double()[order]
    right = correct[order].double().cumsum(0)
    last = torch.cat([sorted_confidence[1:] != sorted_confidence[:-1], correct.new_ones(1)])
    counts = torch.arange(1, len(order) + 1, dtype=torch.float64, device=order.device)[last]
    return Coverage(counts / len(order), right[last] / counts, sorted_confidence[last])
