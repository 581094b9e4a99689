"""Ensembles: several models that are attacked and evaluated as one."""

from __future__ import annotations

from sparring.ensembles.ensemble import Ensemble

__all__ = ["Ensemble"]
