"""Sparring: adversarial robustness with compiled primitives, on the CPU and on CUDA."""

from __future__ import annotations

__version__ = "0.1.0"
