"""How the members of an ensemble relate: whether they err together, and whether their gradients point the same way."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring.attacks._model import held_still
from sparring.ensembles.mixture import Mixture
from sparring.ensembles.stacked import StackedEnsemble
from sparring.gradients import input_grad, kernels
from sparring.losses import Loss
from sparring.training.evaluate import logits_of

Models = Mixture | Sequence[nn.Module]


@dataclass(frozen=True)
class Agreement:
    """How often members are right and wrong on the same examples (SPEC B10).

    Attributes
    ----------
    correct : bool (M, N).
    accuracy : float64 (M,).
    covariance : float64 (M, M), of being right, over the N examples (divided by N).
    correlation : float64 (M, M); 0 where a member is always right or always wrong, but 1 with itself.
    jaccard : float64 (M, M), of the misclassified examples: those of both by those of either; 1 where there are none.
    """

    correct: Tensor
    accuracy: Tensor
    covariance: Tensor
    correlation: Tensor
    jaccard: Tensor

    @classmethod
    def from_correct(cls, correct: Tensor) -> Agreement:
        """From bool (M, N), whether member m is right on example n."""
        if correct.ndim != 2 or correct.dtype is not torch.bool or correct.shape[1] == 0:
            raise ValueError(f"correct must be bool (M, N) with N > 0; got {correct.dtype} {tuple(correct.shape)}")
        both, examples = kernels.agreement_counts(correct).double(), correct.shape[1]
        right = both.diagonal()
        accuracy = right / examples
        covariance = both / examples - accuracy[:, None] * accuracy
        deviation = (accuracy * (1 - accuracy)).sqrt()
        scale = deviation[:, None] * deviation
        correlation = torch.where(scale > 0, covariance / scale, 0.0)
        correlation.fill_diagonal_(1)
        # wrong both, and wrong either
        union = examples - both
        meet = examples - right[:, None] - right + both
        jaccard = torch.where(union > 0, meet / union, 1.0)
        return cls(correct, accuracy, covariance, correlation.clamp(-1, 1), jaccard)

    def between(self, matrix: Tensor) -> tuple[float, float]:
        """Mean and standard deviation of a matrix over the pairs of different members; NaN if there are none."""
        return pairs_mean_and_spread(matrix)


def agreement(models: Models, inputs: Tensor, labels: Tensor) -> Agreement:
    """Whether each member is right on each example, and how that agrees between members.

    Parameters
    ----------
    models
        An ensemble, or modules, in eval mode meanwhile.
    inputs, labels
        (N, ...) and int64 (N,); clean ones, or adversarial ones.
    """
    _check_alike(inputs, labels)
    rows = [logits_of(model, inputs).argmax(1) == labels for model in members_of(models)]
    return Agreement.from_correct(torch.stack(rows))


@dataclass(frozen=True)
class GradientCorrelation:
    """Cosines between the input gradients of members.

    Attributes
    ----------
    mean, std : float64 (M, M), over the examples; an example where one of the two gradients is zero counts as 0.
    zeros : int64 (M,), examples on which a member's gradient is zero.
    """

    mean: Tensor
    std: Tensor
    zeros: Tensor

    def between(self) -> tuple[float, float]:
        """Mean and standard deviation of the mean cosine over the pairs of different members."""
        return pairs_mean_and_spread(self.mean)


def gradient_correlation(
    models: Models, inputs: Tensor, labels: Tensor, loss: Loss = "ce", *, memory: int = 2**28
) -> GradientCorrelation:
    """Cosines between the gradients of the members' own losses towards the inputs.

    Parameters
    ----------
    models, inputs, labels
        As for `agreement`.
    loss
        As in `sparring.input_grad`.
    memory
        Bytes for the gradients of all members, (M, B, D), of so many examples B as are worked on at once.
    """
    members = members_of(models)
    _check_alike(inputs, labels)
    examples, entries = len(inputs), inputs[0].numel()
    together = min(examples, max(1, memory // (len(members) * entries * inputs.element_size())))
    grads = inputs.new_empty(len(members), together, entries)
    sums: list[Tensor] = []
    with ExitStack() as held:
        for model in members:
            held.enter_context(held_still(model))
        for x, y in zip(torch.split(inputs, together), torch.split(labels, together), strict=True):
            for row, model in zip(grads, members, strict=True):
                row[: len(x)] = input_grad(model, x, y, loss).grad.flatten(1)
            part = kernels.pairwise_cosine(grads[:, : len(x)])
            sums = [a + b for a, b in zip(sums, part, strict=True)] if sums else list(part)
    mean = sums[0] / examples
    std = (sums[1] / examples - mean**2).clamp(min=0).sqrt()
    return GradientCorrelation(mean, std, sums[2])


def members_of(models: Models) -> list[nn.Module]:
    """The members as modules; those of a stack are copies."""
    if isinstance(models, Mixture):
        members = [models.member(i) for i in range(len(models))]
        return [member.eval() for member in members] if isinstance(models, StackedEnsemble) else members
    members = [*models]
    if not members:
        raise ValueError("models must hold one model at least")
    return members


def _check_alike(inputs: Tensor, labels: Tensor) -> None:
    if len(inputs) == 0 or labels.shape != (len(inputs),):
        raise ValueError(
            f"inputs must hold at least one example, and labels one class for each; got shapes {tuple(inputs.shape)} "
            f"and {tuple(labels.shape)}"
        )


def pairs_mean_and_spread(matrix: Tensor) -> tuple[float, float]:
    """Mean and standard deviation above the diagonal of a symmetric matrix; NaN where there are too few."""
    size = len(matrix)
    upper = matrix[torch.ones(size, size, dtype=torch.bool, device=matrix.device).triu(1)]
    mean = float(upper.mean()) if len(upper) else float("nan")
    return mean, float(upper.std()) if len(upper) > 1 else float("nan")
