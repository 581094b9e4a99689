"""How robust a model is: attacks run on the same examples, every success checked, and put together."""

from __future__ import annotations

from sparring.evaluation.evaluate import evaluate
from sparring.evaluation.plan import BATTERIES, NAMES
from sparring.evaluation.result import AttackRow, Evaluation, WorstCase

__all__ = ["BATTERIES", "NAMES", "AttackRow", "Evaluation", "WorstCase", "evaluate"]
