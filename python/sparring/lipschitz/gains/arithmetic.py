"""Gains of what copies and moves entries, of arithmetic, and of dropout; and how branches come together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparring.lipschitz import rounding
from sparring.lipschitz.gains.gain import Call, Gain, Refused, exactly, length, product, root, total


def _copying(call: Call, *options: Any, **named: Any) -> Gain:
    """Every output is a copy of an input entry, or constant: the root of how often an entry is copied at most."""
    with torch.enable_grad():
        x = torch.zeros_like(call.x, dtype=torch.float64, requires_grad=True)
        out = call.run(x)
        parts = [out] if isinstance(out, Tensor) else [*out]
        if not all(part.is_floating_point() for part in parts):
            raise Refused("rounds to whole numbers, so it jumps")
        (copies,) = torch.autograd.grad([part.sum(dtype=torch.float64) for part in parts], x)
    most = round(float(copies.max())) if copies.numel() else 0
    return exactly(root(most), "copies" if most <= 1 else f"{most} copies")


def _interpolate(
    call: Call, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *options: Any, **named: Any
) -> Gain:
    if mode not in ("nearest", "nearest-exact"):
        raise Refused(f"interpolates by {mode!r}")
    return _copying(call)


def _unchanged(call: Call, *options: Any, **named: Any) -> Gain:
    return exactly(1.0, "copies")


def _negated(call: Call) -> Gain:
    return exactly(1.0)


def _dropout(call: Call, p: float = 0.5, training: bool = True, inplace: bool = False) -> Gain:
    if not training or p == 0:
        return exactly(1.0, "copies")
    return exactly(rounding.up(1 / (1 - p)) if p < 1 else 0.0, f"1 / (1 - {p:g}), in training mode")


def _alpha_dropout(call: Call, p: float = 0.5, training: bool = False, inplace: bool = False) -> Gain:
    if training and p > 0:
        raise Refused("is in training mode")
    return exactly(1.0, "copies")


COPYING = (
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "permute", "transpose", "swapaxes",
    "movedim", "t", "T", "mT", "squeeze", "unsqueeze", "contiguous", "clone", "expand", "expand_as", "repeat", "tile",
    "repeat_interleave", "getitem", "narrow", "select", "index_select", "chunk", "split", "unbind", "roll", "flip",
    "pad", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "to", "type_as", "float", "double", "half",
    "bfloat16",
)  # fmt: skip

RULES: dict[str, Callable[..., Gain]] = {
    **dict.fromkeys(COPYING, _copying),
    "interpolate": _interpolate,
    **dict.fromkeys(("detach", "identity"), _unchanged),
    "neg": _negated,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), _alpha_dropout),
}


# --- Branches -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """An operand that depends on the input: its value, and the node that it comes from."""

    value: Tensor
    source: fx.Node


@dataclass(frozen=True)
class Join:
    """How branches come together: the bound of the result is `join` of each branch's bound times its factor."""

    parts: tuple[tuple[Branch, float], ...]
    join: Callable[[Sequence[float]], float]
    method: str


def _added(out: Tensor, a: Any, b: Any, alpha: Any = 1) -> Join:
    if isinstance(alpha, Branch):
        raise Refused("a product of two activations")
    parts = [(part, factor) for part, factor in ((a, 1.0), (b, abs(float(alpha)))) if isinstance(part, Branch)]
    return _sum([(part, product(factor, _copies(part, out))) for part, factor in parts])


def _subtracted_from(out: Tensor, a: Any, b: Any, alpha: Any = 1) -> Join:
    return _added(out, b, a, alpha)


def _sum(parts: Sequence[tuple[Branch, float]]) -> Join:
    return Join(tuple(parts), total, f"sum of {len(parts)} branches" if len(parts) > 1 else "shift")


def _multiplied(out: Tensor, a: Any, b: Any) -> Join:
    if isinstance(a, Branch) and isinstance(b, Branch):
        raise Refused("a product of two activations has no Lipschitz constant")
    branch, other = (a, b) if isinstance(a, Branch) else (b, a)
    return _scaled(out, branch, float(_sizes(other).max()))


def _divided(out: Tensor, a: Any, b: Any, rounding_mode: str | None = None) -> Join:
    if isinstance(b, Branch):
        raise Refused("divides by an activation, so it has no Lipschitz constant")
    if rounding_mode is not None:
        raise Refused("rounds to whole numbers, so it jumps")
    least = float(_sizes(b).min())
    return _scaled(out, a, rounding.up(1 / least) if least > 0 else math.inf)


def _sizes(constant: Any) -> Tensor:
    return torch.as_tensor(constant).detach().abs().to(torch.float64)


def _scaled(out: Tensor, branch: Branch, factor: float) -> Join:
    if not math.isfinite(factor):
        raise Refused("by a factor that is not finite")
    return Join(((branch, product(factor, _copies(branch, out))),), total, "largest factor")


def _copies(branch: Branch, out: Tensor) -> float:
    """The norm of broadcasting a branch to the shape of the result."""
    return root(out.numel() // max(1, branch.value.numel()))


def _side_by_side(out: Tensor, operands: Sequence[Any], *options: Any, **named: Any) -> Join:
    return _orthogonal([(part, 1.0) for part in operands if isinstance(part, Branch)])


def _larger(out: Tensor, a: Any, b: Any) -> Join:
    # |max(a, b) - max(a', b')| <= max(|a - a'|, |b - b'|), entry by entry.
    return _orthogonal([(part, _copies(part, out)) for part in (a, b) if isinstance(part, Branch)])


def _orthogonal(parts: Sequence[tuple[Branch, float]]) -> Join:
    return Join(tuple(parts), length, f"root of {len(parts)} squares" if len(parts) > 1 else "copies")


JOINS: dict[str, Callable[..., Join]] = {
    **dict.fromkeys(("add", "sub", "subtract"), _added),
    "rsub": _subtracted_from,
    **dict.fromkeys(("mul", "multiply"), _multiplied),
    **dict.fromkeys(("div", "truediv", "divide", "true_divide"), _divided),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _side_by_side),
    **dict.fromkeys(("maximum", "minimum"), _larger),
}
"""Called with the result, then as the operation itself; operands that depend on the input are each a `Branch`."""
