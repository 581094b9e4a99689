"""What all ensembles share: from the logits of the members, (M, B, K), to those of the ensemble, (B, K)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparring.gradients.mixture import mix

COMBINES = ("probs", "logits", "loss", "vote")
DOUBTS = ("confidence", "disagreement", "divergence")


class Mixture(nn.Module, ABC):
    """Members whose answers are mixed; `Ensemble` and `StackedEnsemble` say how the members are kept.

    Parameters
    ----------
    count
        Of the members.
    combine, weights, abstain
        As in `sparring.Ensemble`.
    """

    weights: Tensor

    def __init__(
        self,
        count: int,
        combine: str,
        weights: Sequence[float] | Tensor | None,
        abstain: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if count == 0:
            raise ValueError("models must hold one model at least")
        if combine not in COMBINES:
            raise ValueError(f"combine must be one of {', '.join(COMBINES)}; got {combine!r}")
        unknown = {*(abstain or {})} - {*DOUBTS}
        if unknown:
            raise ValueError(f"abstain must have limits of {', '.join(DOUBTS)}; got {', '.join(sorted(unknown))}")
        self.combine, self.abstain = combine, dict(abstain or {})
        self.register_buffer("weights", _normalised(weights, count))

    def __len__(self) -> int:
        return len(self.weights)

    def forward(self, x: Tensor) -> Tensor:
        return mix(self.member_logits(x), self.weights.to(x.device), self.combine)

    def decide(self, x: Tensor) -> Tensor:
        """The class of each example, int64 (B,), or -1 where `abstain` has it that the ensemble should not say."""
        from sparring.analysis.votes import votes

        found = votes(self.member_logits(x), "majority" if self.combine == "vote" else self.combine, self.weights)  # type: ignore[arg-type]
        label = found.label
        for name, limit in self.abstain.items():
            value = getattr(found, name)
            label = label.where(value >= limit if name == "confidence" else value <= limit, -1)
        return label

    @abstractmethod
    def member_logits(self, x: Tensor) -> Tensor:
        """Logits of each member, (M, B, K)."""

    @abstractmethod
    def member(self, index: int) -> nn.Module:
        """Member `index` as a module of its own."""

    def extra_repr(self) -> str:
        return f"combine={self.combine!r}"


def _normalised(weights: Sequence[float] | Tensor | None, count: int) -> Tensor:
    numbers = torch.ones(count, dtype=torch.float64, device="cpu")
    if weights is not None:
        numbers = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach().clone()
    if numbers.shape != (count,):
        raise ValueError(f"weights has shape {tuple(numbers.shape)}; expected one per model, ({count},)")
    total = float(numbers.sum())
    if not bool((numbers >= 0).all()) or not 0 < total < math.inf:
        raise ValueError(f"weights must be at least 0, finite, and not all 0; got {numbers.tolist()}")
    return numbers / total
