"""Sparring: adversarial robustness with compiled primitives, on the CPU and on CUDA.

The primitives (:func:`project_l1_box`, :func:`l1_step`, :func:`recovery_step`) and gradients (:func:`input_grad`,
:func:`jacobian`, :func:`lower`) are here; everything else is in the submodules ``attacks``, ``networks``, ``data``,
``training`` and ``reference``, imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparring.ensembles import Ensemble, StackedEnsemble
from sparring.gradients import InputGrad, input_grad, jacobian, lower
from sparring.ops import l1_step, project_l1_box, recovery_step

if TYPE_CHECKING:
    from sparring.analysis.transfer import transfer_matrix
    from sparring.evaluation.evaluate import evaluate

__version__ = "0.1.0"

__all__ = [
    "Ensemble",
    "InputGrad",
    "StackedEnsemble",
    "__version__",
    "evaluate",
    "input_grad",
    "jacobian",
    "l1_step",
    "lower",
    "project_l1_box",
    "recovery_step",
    "transfer_matrix",
]

_SUBMODULES = (
    "adapters",
    "analysis",
    "attacks",
    "data",
    "ensembles",
    "evaluation",
    "gradients",
    "info",
    "library",
    "lipschitz",
    "losses",
    "networks",
    "reference",
    "report",
    "runs",
    "training",
)


# Names here that live in a submodule, imported when first used.
_LAZY = {"evaluate": "evaluation", "transfer_matrix": "analysis"}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"sparring.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(f"sparring.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'sparring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
