"""Training loops."""

from __future__ import annotations

from sparring._progress import Progress
from sparring.training.config import PRESETS, RetrainConfig
from sparring.training.fooling import FoolingSet
from sparring.training.loop import RetrainResult, Verdict, retrain

__all__ = ["PRESETS", "FoolingSet", "Progress", "RetrainConfig", "RetrainResult", "Verdict", "retrain"]
