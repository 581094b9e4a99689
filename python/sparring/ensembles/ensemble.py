"""A mixture of models, itself a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sparring.gradients import layers
from sparring.gradients.lowering import lower
from sparring.gradients.members import Members, stacked
from sparring.gradients.mixture import Combine, mix
from sparring.gradients.steps import Step

COMBINES = ("probs", "logits", "loss")


class Ensemble(nn.Module):
    """Several models as one: a module from inputs (B, ...) to logits (B, K).

    Dense members of one architecture are stacked for gradients (`sparring.input_grad`): one matrix product in place of
    M. The stack copies their weights, and is renewed when a weight changes; a change through ``.data`` goes unseen.

    Parameters
    ----------
    models
        Modules that return logits of one shape.
    combine
        What is mixed, and what a loss is taken of.

        ========== ======================================= ============================
        combine    forward returns                         loss (in `sparring.input_grad`)
        ========== ======================================= ============================
        "probs"    log of the mean probabilities           of these
        "logits"   mean logits                             of these
        "loss"     mean of the log-probabilities           mean of the members' losses
        ========== ======================================= ============================
    weights
        M numbers >= 0, of which the means are weighted; divided by their sum, and kept as the buffer ``weights``
        (float64). None: equal ones.
    """

    weights: Tensor

    def __init__(
        self, models: Iterable[nn.Module], combine: str = "probs", weights: Sequence[float] | Tensor | None = None
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        if len(self.models) == 0:
            raise ValueError("models must hold one model at least")
        if combine not in COMBINES:
            raise ValueError(f"combine must be one of {', '.join(COMBINES)}; got {combine!r}")
        self.combine = combine
        self.register_buffer("weights", _normalised(weights, len(self.models)))

    def __len__(self) -> int:
        return len(self.models)

    def forward(self, x: Tensor) -> Tensor:
        return mix(self.member_logits(x), self.weights.to(x.device), self.combine)

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits of each member, (M, B, K)."""
        logits = [model(x) for model in self.models]
        shapes = {tuple(one.shape) for one in logits}
        if len(shapes) > 1:
            raise ValueError(f"the members of an ensemble must return logits of one shape, but gave {sorted(shapes)}")
        return torch.stack(logits)

    def extra_repr(self) -> str:
        return f"combine={self.combine!r}"


def _normalised(weights: Sequence[float] | Tensor | None, count: int) -> Tensor:
    numbers = torch.ones(count, dtype=torch.float64)
    if weights is not None:
        numbers = torch.as_tensor(weights, dtype=torch.float64).detach().clone()
    if numbers.shape != (count,):
        raise ValueError(f"weights has shape {tuple(numbers.shape)}; expected one per model, ({count},)")
    total = float(numbers.sum())
    if not bool((numbers >= 0).all()) or not 0 < total < math.inf:
        raise ValueError(f"weights must be at least 0, finite, and not all 0; got {numbers.tolist()}")
    return numbers / total


def _steps(ensemble: Ensemble) -> list[Step]:
    members = [lower(model) for model in ensemble.models]
    return [stacked(members) or Members(members), Combine(ensemble)]


layers.MODULES[Ensemble] = _steps
