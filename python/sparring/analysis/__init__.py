"""What networks do with images, and how the members of an ensemble relate: measurements beside accuracy."""

from __future__ import annotations

from sparring.analysis.bracket import Bracket, BracketWarning, Curve, bracket, brackets
from sparring.analysis.members import Agreement, GradientCorrelation, agreement, gradient_correlation
from sparring.analysis.perturbation import ALPHAS, Group, Perturbations, perturb
from sparring.analysis.smoothness import Smoothness, smoothness
from sparring.analysis.transfer import TransferMatrix, transfer_matrix
from sparring.analysis.units import Directions, Units, units
from sparring.analysis.votes import Coverage, Votes, accuracy_coverage, votes

__all__ = [
    "ALPHAS",
    "Agreement",
    "Bracket",
    "BracketWarning",
    "Coverage",
    "Curve",
    "Directions",
    "GradientCorrelation",
    "Group",
    "Perturbations",
    "Smoothness",
    "TransferMatrix",
    "Units",
    "Votes",
    "accuracy_coverage",
    "agreement",
    "bracket",
    "brackets",
    "gradient_correlation",
    "perturb",
    "smoothness",
    "transfer_matrix",
    "units",
    "votes",
]
