"""A mixture of any models, itself a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sparring.ensembles.mixture import Mixture
from sparring.gradients import layers
from sparring.gradients.lowering import lower
from sparring.gradients.members import Members, stacked
from sparring.gradients.mixture import Combine
from sparring.gradients.steps import AutogradMembers, Step


class Ensemble(Mixture):
    """Several models as one: a module from inputs (B, ...) to logits (B, K).

    Dense members of one architecture are stacked for gradients (`sparring.input_grad`): one matrix product in place of
    M, with copies of their weights as they are when a call begins.
    To train many members of one architecture, `sparring.StackedEnsemble` is faster.

    Parameters
    ----------
    models
        Modules that return logits of one shape.
    combine
        What is mixed, and what a loss is taken of.

        ========== ======================================== ============================
        combine    forward returns                          loss (in `sparring.input_grad`)
        ========== ======================================== ============================
        "probs"    log of the mean probabilities            of these
        "logits"   mean logits                              of these
        "loss"     mean of the log-probabilities            mean of the members' losses
        "vote"     log of the share of votes for each class as for "probs"
        ========== ======================================== ============================

        A vote changes by jumps and has no gradient: what is differentiated, and attacked, are the mean probabilities.
        Of classes with equally many votes the one with the larger mean probability is a little ahead: to each share a
        millionth of it is added.
    weights
        M numbers >= 0, of which the means are weighted; divided by their sum, and kept as the buffer ``weights``
        (float64). None: equal ones.
    abstain
        When `decide` says nothing: below this "confidence", or above this "disagreement" or "divergence", as
        `sparring.analysis.Votes` defines them. ``{"confidence": .8, "disagreement": .3}`` abstains for either.
    """

    members_have_plans = True  # each is lowered by itself

    def __init__(
        self,
        models: Iterable[nn.Module],
        combine: str = "probs",
        weights: Sequence[float] | Tensor | None = None,
        abstain: Mapping[str, float] | None = None,
    ) -> None:
        members = [*models]
        super().__init__(len(members), combine, weights, abstain)
        self.models = nn.ModuleList(members)

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits of each member, (M, B, K)."""
        logits = [model(x) for model in self.models]
        shapes = {tuple(one.shape) for one in logits}
        if len(shapes) > 1:
            raise ValueError(f"the members of an ensemble must return logits of one shape, but gave {sorted(shapes)}")
        return torch.stack(logits)

    def member(self, index: int) -> nn.Module:
        """Member `index`, the module itself."""
        return self.models[index]

    def members_by_autograd(self) -> list[Step]:
        """The members, left to autograd, and their mixture."""
        return [AutogradMembers(self), Combine(self)]


def _steps(ensemble: Ensemble) -> list[Step]:
    members = [lower(model) for model in ensemble.models]
    return [stacked(members) or Members(members), Combine(ensemble)]


layers.MODULES[Ensemble] = _steps
