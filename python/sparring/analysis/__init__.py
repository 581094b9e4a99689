"""What networks do with images: measurements beside accuracy."""

from __future__ import annotations

from sparring.analysis.perturbation import ALPHAS, Group, Perturbations, perturb

__all__ = ["ALPHAS", "Group", "Perturbations", "perturb"]
