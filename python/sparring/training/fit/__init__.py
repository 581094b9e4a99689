"""Training on attacks on the fly: `fit`, `fit_adversarial` and `fit_mixture`."""

from __future__ import annotations

from sparring.training.fit.config import TEST_EPS, FitConfig
from sparring.training.fit.loop import FitResult, fit, fit_adversarial, fit_mixture
from sparring.training.fit.losses import members_loss, mixture_loss
from sparring.training.fit.parallel import MemberParallel

__all__ = [
    "TEST_EPS",
    "FitConfig",
    "FitResult",
    "MemberParallel",
    "fit",
    "fit_adversarial",
    "fit_mixture",
    "members_loss",
    "mixture_loss",
]
