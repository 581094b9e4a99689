"""Whether an example's result depends on the others of its batch: a bound is of one example's function alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from sparring.lipschitz.ambient import callers_device, seed
from sparring.lipschitz.trees import tensors_in
from sparring.lipschitz.wide import first_line, identical

_ROWS = 3
_MANY, _NUMBERS = 257, 2**18  # rows of a batch to see which sizes grow with it, unless it has more numbers than this

_SIZED = (
    "view", "reshape", "unflatten", "expand", "broadcast_to", "repeat", "tile", "view_as", "reshape_as", "expand_as",
    "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "shape",
    "size",
)  # fmt: skip
"""What may take a size that grows with the batch: the numbers in the result are others for no other size."""


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


def by_its_size(
    nodes: Iterable[fx.Node],
    moving: Collection[fx.Node],
    alone: Mapping[fx.Node, Any],
    values: Callable[[Tensor], Iterable[tuple[fx.Node, Any]]],
    x: Tensor,
) -> dict[fx.Node, str]:
    """Nodes that use how many examples there are for anything but shapes, and why that will not do.

    Whatever is computed of a size that grows with the batch counts, as ``x.shape[0] // 1000`` is the same for batches
    that can be tried.

    Parameters
    ----------
    nodes, moving
        Of the graph, in order; and those that depend on the input's numbers.
    alone
        Their values for one example.
    values, x
        As in `mixing`.
    """
    nodes = [*nodes]
    if all(node in moving or not any(n in moving for n in node.all_input_nodes) for node in nodes):
        return {}  # no shape is read
    rows = max(_ROWS, min(_MANY, _NUMBERS // max(1, x.numel())))
    many = dict(values(x.expand(rows, *x.shape[1:]).clone()))
    found: dict[fx.Node, str] = {}
    counts: set[fx.Node] = set()  # what follows from the number of examples, and
    shaped: set[fx.Node] = set()  # tensors of which only the shape does
    for node in nodes:
        of_counts = [n for n in node.all_input_nodes if n in counts]
        if node.op == "output" or node not in many:
            continue
        if node in moving:
            sizes = zip(tensors_in(alone[node]), tensors_in(many[node]), strict=False)
            if of_counts and not _takes_a_size(node, counts):
                found[node] = "computes with the size of the batch"
            elif node.op != "placeholder" and any(a.numel() * rows != b.numel() for a, b in sizes):
                found[node] = "gives a size that does not grow as the batch"
        elif [*tensors_in(alone[node])]:
            of_shaped = any(n in moving or n in shaped for n in node.all_input_nodes)
            if not of_counts and not any(n in shaped for n in node.all_input_nodes) and _same(alone, many, node):
                continue
            if (of_counts and not _takes_a_size(node, counts)) or (of_shaped and not _only_grows(alone, many, node)):
                counts.add(node)
            elif of_counts or of_shaped:
                shaped.add(node)
        elif any(n in moving or n in shaped for n in node.all_input_nodes) or _is_entry(node, of_counts):
            counts |= {node} if _differ(alone[node], many[node]) else set()
        elif of_counts:
            counts.add(node)
    return found


def _name(node: fx.Node) -> str:
    target = node.args[1] if node.target is getattr else node.target
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _is_entry(node: fx.Node, counts: Collection[fx.Node]) -> bool:
    """Whether a node takes one of several sizes, by a constant index."""
    return _name(node) == "getitem" and [*counts] == [node.args[0]]


def _takes_a_size(node: fx.Node, counts: Collection[fx.Node]) -> bool:
    fill = node.kwargs.get("fill_value", node.args[-1] if node.args else None) if "full" in _name(node) else None
    return node.op != "call_module" and _name(node) in _SIZED and fill not in counts


def _same(alone: Mapping[fx.Node, Any], many: Mapping[fx.Node, Any], node: fx.Node) -> bool:
    return all(map(identical, tensors_in(alone[node]), tensors_in(many[node])))


def _only_grows(alone: Mapping[fx.Node, Any], many: Mapping[fx.Node, Any], node: fx.Node) -> bool:
    """Whether tensors have the same numbers, each as many times as there are more examples."""
    pairs = zip(tensors_in(alone[node]), tensors_in(many[node]), strict=True)
    return all(one.numel() < all_.numel() and torch.equal(_numbers(one), _numbers(all_)) for one, all_ in pairs)


def _numbers(tensor: Tensor) -> Tensor:
    return torch.unique(tensor)  # type: ignore[no-any-return]


def _differ(one: Any, other: Any) -> bool:
    try:
        return bool(one != other)
    except Exception:
        return True


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
