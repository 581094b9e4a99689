"""Training loops."""

from __future__ import annotations

from sparring._progress import Progress
from sparring.training.config import PRESETS, RetrainConfig
from sparring.training.fooling import FoolingSet, balanced_targets, random_targets
from sparring.training.generators import generator_named
from sparring.training.loop import RetrainResult, Verdict, retrain

__all__ = [
    "PRESETS",
    "FoolingSet",
    "Progress",
    "RetrainConfig",
    "RetrainResult",
    "Verdict",
    "balanced_targets",
    "generator_named",
    "random_targets",
    "retrain",
]
