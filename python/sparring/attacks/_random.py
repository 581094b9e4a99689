"""Random numbers as a function of a seed and a counter, for a whole batch at once and the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # of SplitMix64, signed


def uniform(seeds: Tensor, first: int, draws: int, count: int) -> Tensor:
    """For each seed (int64 (B,)) the draws `first` ... ``first + draws - 1``, of `count` numbers in [0, 1) each.

    float64 (B, draws, count), multiples of 2**-53. SplitMix64 (Steele, Lea & Flood 2014) of the seed, jumped to the
    number's place: what a draw gives depends on its seed, its place and `count` alone.
    """
    places = torch.arange(first * count + 1, (first + draws) * count + 1, device=seeds.device)
    z = _mixed(seeds)[:, None] + places * _GOLDEN  # int64 wraps around, as it should
    return (_shifted(_mixed(z), 11).double() * 2.0**-53).reshape(len(seeds), draws, count)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, with zeros for the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
