"""Sparring: adversarial robustness with compiled primitives, on the CPU and on CUDA.

The primitives (:func:`project_l1_box`, :func:`l1_step`, :func:`recovery_step`) and gradients (:func:`input_grad`,
:func:`jacobian`, :func:`lower`) are here; everything else is in the submodules ``attacks``, ``networks``, ``data``,
``training`` and ``reference``, imported when first used.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from sparring.gradients import InputGrad, input_grad, jacobian, lower
from sparring.ops import l1_step, project_l1_box, recovery_step

__version__ = "0.1.0"

__all__ = [
    "InputGrad",
    "__version__",
    "input_grad",
    "jacobian",
    "l1_step",
    "lower",
    "project_l1_box",
    "recovery_step",
]

_SUBMODULES = (
    "attacks",
    "data",
    "gradients",
    "info",
    "library",
    "losses",
    "networks",
    "reference",
    "report",
    "runs",
    "training",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"sparring.{name}")
    raise AttributeError(f"module 'sparring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
