"""Attacks: one readable function each, over the compiled primitives of `sparring.ops`."""

from __future__ import annotations

from sparring.attacks.recovery import Recovery, recover

__all__ = ["Recovery", "recover"]
