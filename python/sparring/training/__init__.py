"""Training loops."""

from __future__ import annotations

from sparring._progress import Progress
from sparring.training.config import RetrainConfig
from sparring.training.fit import FitConfig, FitResult, fit, fit_adversarial, fit_mixture
from sparring.training.fooling import FoolingSet, balanced_targets, random_targets
from sparring.training.generators import generator_named
from sparring.training.loop import RetrainResult, Verdict, retrain
from sparring.training.metrics import METRICS, Metric
from sparring.training.parts import Parts
from sparring.training.presets import PRESETS

__all__ = [
    "METRICS",
    "PRESETS",
    "FitConfig",
    "FitResult",
    "FoolingSet",
    "Metric",
    "Parts",
    "Progress",
    "RetrainConfig",
    "RetrainResult",
    "Verdict",
    "balanced_targets",
    "fit",
    "fit_adversarial",
    "fit_mixture",
    "generator_named",
    "random_targets",
    "retrain",
]
