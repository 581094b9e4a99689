"""Whether an example's result depends on the others of its batch: a bound is of one example's function alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from sparring.lipschitz.ambient import callers_device, seed
from sparring.lipschitz.trees import tensors_in
from sparring.lipschitz.wide import first_line, identical

_ROWS = 3


@dataclass
class Mixing:
    """Of a graph that is given a batch.

    Attributes
    ----------
    nodes
        Those whose result has entries that depend on two examples, and in words.
    axes
        Of the others the dimensions that grow with the batch.
    fails
        What went wrong instead, or "".
    """

    nodes: dict[fx.Node, str] = field(default_factory=dict)
    axes: dict[fx.Node, set[int]] = field(default_factory=dict)
    fails: str = ""


def mixing(values: Callable[[Tensor], Iterable[tuple[fx.Node, Any]]], x: Tensor) -> Mixing:
    """Follow NaN through the operations of a graph: in one of two examples, and then in the other.

    Parameters
    ----------
    values
        Gives each node with its value for an input, in order.
    x
        One example, (1, ...).
    """
    found = Mixing()
    both = torch.cat([x, x.flip(-1)])
    reached: dict[fx.Node, list[Tensor]] = {}
    try:
        alone = {node: [t.shape for t in tensors_in(value)] for node, value in values(x.clone())}
        for row in range(2):
            given = both.clone()
            given[row] = torch.nan
            for node, value in values(given):
                parts = [*tensors_in(value)]
                masks = [part.isnan() for part in parts]
                if row == 0:
                    reached[node] = masks
                    pairs = zip(alone[node], (part.shape for part in parts), strict=True)
                    found.axes[node] = set[int]().union(*(_grown(*pair) for pair in pairs))
                elif any(bool((a & b).any()) for a, b in zip(reached[node], masks, strict=True)):
                    found.nodes.setdefault(node, "mixes the examples of a batch")
                    return found
    except Exception as why:
        found.fails = f"cannot be called with a batch of two: {first_line(why)}"
    return found


def _grown(alone: torch.Size, together: torch.Size) -> set[int]:
    if len(alone) != len(together):
        return {*range(len(alone))}
    return {d for d, (n, m) in enumerate(zip(alone, together, strict=True)) if n != m}


def batch_obstacle(model: Callable[[Tensor], Any], x: Tensor) -> str:
    """Why results of a model are not those of its examples, each by itself; "" if they are.

    With others beside it, large or not numbers, an example's result is the same to the bit, and nearly what it is
    without them.
    """

    def call(given: Tensor, number: int = 0) -> list[Tensor]:
        seed(number)
        with callers_device():
            return [*tensors_in(model(given.clone()))]

    generator = torch.Generator().manual_seed(1)
    others = torch.rand(_ROWS, *x.shape[1:], generator=generator, dtype=torch.float64).to(x)
    batch = torch.cat([x, others[1:]])
    try:
        whole, alone = call(batch), call(x)
        for part, single in zip(whole, alone, strict=True):
            if part.ndim == 0 or len(part) != _ROWS or part.shape[1:] != single.shape[1:] or len(single) != 1:
                return f"gives shape {tuple(part.shape)} for a batch of {_ROWS}, not one row for each example"
        large, none = 1e3 * others + 1, torch.full_like(others, torch.nan)
        for row, other in ((0, large), (0, none), (1, large), (2, none)):
            beside = other.clone()
            beside[row] = batch[row]
            if not all(identical(a[row], b[row]) for a, b in zip(whole, call(beside), strict=True)):
                return "gives an example a result that depends on the others of its batch"
        random = not all(map(identical, whole, call(batch, 1)))
    except Exception as why:
        return f"cannot be called with a batch of {_ROWS}: {first_line(why)}"
    to = 1e-3 if x.dtype is torch.float32 else 1e-9 if x.dtype is torch.float64 else 0.1
    if not random and not all(torch.allclose(a[:1], b, rtol=to, atol=to) for a, b in zip(whole, alone, strict=True)):
        return "gives an example another result in a batch than by itself"
    return ""
