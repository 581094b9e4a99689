"""What networks do with images, and how the members of an ensemble relate: measurements beside accuracy."""

from __future__ import annotations

from sparring.analysis.members import Agreement, GradientCorrelation, agreement, gradient_correlation
from sparring.analysis.perturbation import ALPHAS, Group, Perturbations, perturb
from sparring.analysis.transfer import TransferMatrix, transfer_matrix
from sparring.analysis.votes import Coverage, Votes, accuracy_coverage, votes

__all__ = [
    "ALPHAS",
    "Agreement",
    "Coverage",
    "GradientCorrelation",
    "Group",
    "Perturbations",
    "TransferMatrix",
    "Votes",
    "accuracy_coverage",
    "agreement",
    "gradient_correlation",
    "perturb",
    "transfer_matrix",
    "votes",
]
