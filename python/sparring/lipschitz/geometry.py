"""A convolution as a linear operator on inputs of one size: what it reads, how it is applied, and as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.lipschitz import rounding

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Geometry:
    """Everything about a convolution but its weights. One entry a spatial dimension.

    Output q, tap k reads the padded input at ``stride q + dilation k``; the padding is ``before`` and ``after``.
    """

    size: tuple[int, ...]  # of the input
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str
    outputs: tuple[int, ...] | None = None  # only the first so many, if there would be more

    @cached_property
    def out(self) -> tuple[int, ...]:
        padded = (n + b + a for n, b, a in zip(self.size, self.before, self.after, strict=True))
        reach = (d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))
        out = tuple((n - r - 1) // s + 1 for n, r, s in zip(padded, reach, self.stride, strict=True))
        return out if self.outputs is None else tuple(min(pair) for pair in zip(out, self.outputs, strict=True))

    @property
    def dims(self) -> int:
        return len(self.size)

    def source(self, dim: int) -> Tensor:
        """Which input entry output q reads by tap k in one dimension: int64 (kernel, out), -1 for a zero."""
        n = self.size[dim]
        place = (
            self.stride[dim] * torch.arange(self.out[dim])
            + self.dilation[dim] * torch.arange(self.kernel[dim])[:, None]
        )
        place = place - self.before[dim]
        if self.padding_mode == "circular":
            return place % n
        if self.padding_mode == "replicate":
            return place.clamp(0, n - 1)
        if self.padding_mode == "reflect":
            return (n - 1 - (n - 1 - place.abs()).abs()) if n > 1 else torch.zeros_like(place)
        return torch.where((place >= 0) & (place < n), place, -1)

    def copies(self) -> float:
        """Square of the norm of the padding: how often an entry of the input is copied at most."""
        if self.padding_mode == "zeros":
            return 1.0
        whole = replace(self, kernel=(1,) * self.dims, stride=(1,) * self.dims, dilation=(1,) * self.dims)
        return float(prod(int(torch.bincount(whole.source(dim).flatten()).max()) for dim in range(self.dims)))

    def used(self, weight: Tensor) -> Tensor:
        """``weight`` (O, I, *kernel) with zeros at taps that read nothing but padding."""
        kept = torch.ones(self.kernel, dtype=torch.bool)
        for dim in range(self.dims):
            reads = (self.source(dim) >= 0).any(1)
            kept &= reads.view([-1 if d == dim else 1 for d in range(self.dims)])
        return weight if bool(kept.all()) else torch.where(kept.to(weight.device), weight.detach(), 0)

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """The operator of ``weight`` (O, I, *kernel) on ``x`` (B, I, *size)."""
        sides = [side for b, a in zip(reversed(self.before), reversed(self.after), strict=True) for side in (b, a)]
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        if any(sides):
            x = F.pad(x, sides, mode=mode)
        with torch.backends.cudnn.flags(enabled=False):  # its transforms round as no bound here covers
            y = _CONV[self.dims](x, weight, stride=self.stride, dilation=self.dilation)
        kept: tuple[Any, ...] = (..., *(slice(n) for n in self.out))
        return y[kept]

    def places(self, tap: tuple[int, ...], sources: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Which input each output reads by a tap, counted in order, and whether any: int64 and bool (outputs,)."""
        place = torch.zeros(self.out, dtype=torch.int64)
        inside = torch.ones(self.out, dtype=torch.bool)
        for dim, (k, source) in enumerate(zip(tap, sources, strict=True)):
            along = source[k].view([-1 if d == dim else 1 for d in range(self.dims)])
            place = place * self.size[dim] + along
            inside &= along >= 0
        return place.flatten(), inside.flatten()

    def matrix(self, weight: Tensor) -> tuple[Tensor, float]:
        """The operator as a matrix (O prod(out), I prod(size)), and a bound of what rounding did to it, in norm.

        Entries are sums where padding lets several taps of an output read the same input.
        """
        outputs, inputs = weight.shape[:2]
        sources = [self.source(dim) for dim in range(self.dims)]
        full = weight.new_zeros(outputs, prod(self.out), inputs, prod(self.size))
        rows = torch.arange(prod(self.out))
        taps = list(product(*(range(k) for k in self.kernel)))
        for tap in taps:
            of_tap: tuple[Any, ...] = (slice(None), slice(None), *tap)
            place, inside = self.places(tap, sources)
            full[:, rows[inside], :, place[inside]] += weight[of_tap]
        flat = full.reshape(outputs * len(rows), -1)
        return flat, 0.0 if self.padding_mode == "zeros" else rounding.gamma(len(taps)) * magnitude_norm(self, weight)


def sides(
    padding: str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What ``padding`` of a layer in torch.nn is before and after, in every dimension."""
    if padding == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if padding == "same":
        both = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple(n // 2 for n in both), tuple(n - n // 2 for n in both)
    if isinstance(padding, str):
        raise ValueError(f"padding must be numbers, 'same' or 'valid'; got {padding!r}")
    return tuple(padding), tuple(padding)


def magnitude_norm(shape: Geometry, weight: Tensor) -> float:
    """A bound of the norm of the operator of ``|weight|``, and so of that of ``weight``."""
    return sums_norm(weight) * math.sqrt(shape.copies()) * (1 + 2.0**-50)


def sums_norm(weight: Tensor) -> float:
    """The same where padding copies nothing: by the largest sums over rows and over columns of the operator."""
    taps = weight.abs().flatten(2).sum(2)
    slack = 1 + rounding.gamma(weight.numel() + 8)
    return math.sqrt(float(taps.sum(1).max()) * float(taps.sum(0).max())) * slack
