"""The experiments of "Intriguing properties of neural networks" and "Explaining and harnessing adversarial examples" on
MNIST, each table beside the papers' own (SPEC C1-C6, C9-C11).

`recipes` says how each network is trained, `tables` what is measured on them, `experiment` runs all of it, stage by
stage, and can go on where it was stopped; `paper` has the published numbers.
"""

from __future__ import annotations

from sparring.intriguing.experiment import STAGES, Plan, conduct
from sparring.intriguing.recipes import RECIPES, Recipe, train

__all__ = ["RECIPES", "STAGES", "Plan", "Recipe", "conduct", "train"]
