"""Sparring: adversarial robustness with compiled primitives, on the CPU and on CUDA.

The primitives (:func:`project_l1_box`, :func:`project_l0_box`, :func:`l1_step`, :func:`recovery_step`,
:func:`sparse_pgd_step`) and gradients (:func:`input_grad`, :func:`jacobian`, :func:`lower`) are here; everything else
is in the submodules ``attacks``, ``networks``, ``data``, ``training`` and ``reference``. All of it, and torch, is
imported when first used, so that the command can answer at once, an interrupt too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparring.analysis.transfer import transfer_matrix
    from sparring.ensembles import Ensemble, StackedEnsemble
    from sparring.evaluation.evaluate import evaluate
    from sparring.gradients import InputGrad, input_grad, jacobian, lower
    from sparring.ops import l1_step, project_l0_box, project_l1_box, recovery_step, sparse_pgd_step

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
    "project_l0_box",
    "project_l1_box",
    "recovery_step",
    "sparse_pgd_step",
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
    "ops",
    "reference",
    "report",
    "runs",
    "training",
)


# Where names that are here are from.
_SOURCES = {
    "evaluate": "evaluation",
    "transfer_matrix": "analysis",
    **dict.fromkeys(("Ensemble", "StackedEnsemble"), "ensembles"),
    **dict.fromkeys(("InputGrad", "input_grad", "jacobian", "lower"), "gradients"),
    **dict.fromkeys(("l1_step", "project_l0_box", "project_l1_box", "recovery_step", "sparse_pgd_step"), "ops"),
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"sparring.{name}")
    if name in _SOURCES:
        found = getattr(importlib.import_module(f"sparring.{_SOURCES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'sparring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
