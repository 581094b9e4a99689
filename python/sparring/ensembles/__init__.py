"""Ensembles: several models that are attacked and evaluated as one."""

from __future__ import annotations

from sparring.ensembles.ensemble import Ensemble
from sparring.ensembles.stacked import StackedEnsemble

__all__ = ["Ensemble", "StackedEnsemble"]
