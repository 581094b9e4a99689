"""Gains of what copies and moves entries, of arithmetic, and of dropout; and how branches come together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparring.lipschitz import rounding
from sparring.lipschitz.gains.gain import Call, Gain, Refused, exactly, length, product, root, total
from sparring.lipschitz.gains.rule import Branch, Join
from sparring.lipschitz.trees import tensors_in


def copying(call: Call, *options: Any, **named: Any) -> Gain:
    """Every output is a copy of an input entry, or constant: the root of how often an entry is copied at most.

    Which it is, the operation itself says of numbered entries, 1 to n and then -1 to -n: what stays is constant, what
    changes its sign is a copy of the entry of that number.
    """
    numbers = torch.arange(1, call.x.numel() + 1, dtype=torch.float64, device=call.x.device).view(call.x.shape)
    there, back, found = (_flat(result) for result in (call.run(numbers), call.run(-numbers), call.out))
    if not there.shape == back.shape == found.shape:
        raise Refused("gives another shape for another dtype")
    moved = there != back
    source = there[moved].to(torch.int64)
    exact = torch.equal(source.to(there), there[moved]) and torch.equal(-there[moved], back[moved])
    if not exact or bool(((source < 1) | (source > call.x.numel())).any()):
        raise Refused("does something else than copy")
    copied = torch.equal(found[moved], call.x.flatten().to(found)[source - 1])
    if not copied or not torch.equal(found[~moved], there[~moved].to(found)):  # also an even function stays
        raise Refused("does something else than copy")
    most = int(torch.bincount(source).max()) if source.numel() else 0
    return exactly(root(most), "copies" if most <= 1 else f"{most} copies")


def _flat(result: Any) -> Tensor:
    return torch.cat([part.flatten() for part in tensors_in(result)])


def flip(call: Call, *dims: Any) -> Gain:
    return copying(call)


def roll(call: Call, shifts: Any, dims: Any = None) -> Gain:
    return copying(call)


def interpolate(
    call: Call, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *options: Any, **named: Any
) -> Gain:
    if mode not in ("nearest", "nearest-exact"):
        raise Refused(f"interpolates by {mode!r}")
    return copying(call)


def cast(call: Call, *options: Any, **named: Any) -> Gain:
    if not torch.equal(call.out.to(torch.float64), call.x.to(torch.float64)):
        raise Refused("does something else than copy")
    return exactly(1.0, "copies")


def masked_fill(call: Call, mask: Tensor, value: Any) -> Gain:
    return exactly(root(call.out.numel() // max(1, call.x.numel())), "copies")


def negated(call: Call) -> Gain:
    return exactly(1.0)


def dropout(call: Call, p: float = 0.5, training: bool = True, inplace: bool = False) -> Gain:
    if not training or p == 0:
        return exactly(1.0, "copies")
    return exactly(rounding.up(1 / (1 - p)) if p < 1 else 0.0, f"1 / (1 - {p:g}), in training mode")


def alpha_dropout(call: Call, p: float = 0.5, training: bool = False, inplace: bool = False) -> Gain:
    if training and p > 0:
        raise Refused("is in training mode")
    return exactly(1.0, "copies")


# --- Branches -------------------------------------------------------------------------------------------------------


def added(out: Tensor, input: Any, other: Any, alpha: Any = 1) -> Join:
    size = float(_sizes(alpha, out).max())
    parts = [(part, factor) for part, factor in ((input, 1.0), (other, size)) if isinstance(part, Branch)]
    weighted = tuple((part, product(factor, _copies(part, out))) for part, factor in parts)
    if not math.isfinite(size):
        raise Refused("by a factor that is not finite")
    return Join(weighted, total, f"sum of {len(weighted)} branches" if len(weighted) > 1 else "shift")


def subtracted_from(out: Tensor, input: Any, other: Any, alpha: Any = 1) -> Join:
    return added(out, other, input, alpha)


def multiplied(out: Tensor, input: Any, other: Any) -> Join:
    branch, factor = (input, other) if isinstance(input, Branch) else (other, input)
    return _scaled(out, branch, float(_sizes(factor, out).max()))


def divided(out: Tensor, input: Any, other: Any, rounding_mode: str | None = None) -> Join:
    if rounding_mode is not None:
        raise Refused("rounds to whole numbers, so it jumps")
    least = float(_sizes(other, out).min())
    return _scaled(out, input, rounding.up(1 / least) if least > 0 else math.inf)


def _sizes(constant: Any, out: Tensor) -> Tensor:
    """Magnitudes in float64, of Python's numbers both as they are and as the dtype of the result rounds them.

    Widened before their sign is dropped, for the least integer of a dtype has no magnitude in it. From 2^53 on, where
    float64 does not hold all integers, the neighbours on both sides.
    """
    if isinstance(constant, Tensor):
        wide = constant.detach().to(torch.float64).abs().flatten()
    else:
        exact = torch.tensor([float(abs(constant))], dtype=torch.float64)
        wide = torch.cat([exact, exact.to(out.dtype).to(torch.float64)])
    beyond = wide[wide >= 2.0**53]
    return torch.cat([wide, rounding.below(beyond), rounding.above(beyond)])


def _scaled(out: Tensor, branch: Branch, factor: float) -> Join:
    if not math.isfinite(factor):
        raise Refused("by a factor that is not finite")
    return Join(((branch, product(factor, _copies(branch, out))),), total, "largest factor")


def _copies(branch: Branch, out: Tensor) -> float:
    """The norm of broadcasting a branch to the shape of the result."""
    return root(out.numel() // max(1, branch.value.numel()))


def side_by_side(out: Tensor, tensors: Sequence[Any], dim: int = 0) -> Join:
    return _orthogonal([(part, 1.0) for part in tensors if isinstance(part, Branch)])


def larger(out: Tensor, input: Any, other: Any) -> Join:
    # |max(a, b) - max(a', b')| <= max(|a - a'|, |b - b'|), entry by entry.
    return _orthogonal([(part, _copies(part, out)) for part in (input, other) if isinstance(part, Branch)])


def selected(out: Tensor, condition: Any, input: Any, other: Any) -> Join:
    return larger(out, input, other)  # of each pair the same one, whatever the input


def _orthogonal(parts: Sequence[tuple[Branch, float]]) -> Join:
    return Join(tuple(parts), length, f"root of {len(parts)} squares" if len(parts) > 1 else "copies")
