"""What an operation's rule states of itself: which calls it covers. The walker refuses all others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from sparring.lipschitz.gains.gain import Refused
from sparring.lipschitz.trees import tensors_in


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

    def __post_init__(self) -> None:
        assert all(factor >= 0 for _, factor in self.parts), "a factor is negative or NaN"


class Size(NamedTuple):
    """What shape a result may have: see the constants below. `last`: of how many dimensions the rule takes care."""

    text: str
    last: int = 0


SAME = Size("that of the input")
BROADCAST = Size("what all operands broadcast to; the rule counts the copies")
REDUCED = Size("the input's, the dimensions along which it works left out or of one entry")
COUNTED = Size("any: the rule finds out of which entry of the input each entry of the result is a copy")
PARTS = Size("any: operands are put side by side")


def last(dimensions: int) -> Size:
    """Only the last dimensions differ, and there are others: the rule works with the sizes of these."""
    return Size(f"the input's but for the last {dimensions}; the rule reads their sizes", dimensions)


KEPT = "the operand's"
HELD = "one that holds all of the operands' numbers"


@dataclass(frozen=True)
class Rule:
    """The constant of an operation, and what is taken for granted in it.

    Attributes
    ----------
    work
        Called with a `Call`, which stands for ``input``, and then as the operation itself: the `Gain`. If `joins`, with
        the result and then as the operation: the `Join`; operands that depend on the input are each a `Branch`. None:
        the result depends on the shape of its operands alone.
    moving
        The arguments that may depend on the input.
    together
        Whether several of them may at once, or the same one twice.
    shapes
        Arguments that may depend on the input as only their shape and dtype matter.
    size
        The shape that a result may have.
    numbers
        The dtype that a result may have. Operands and results are floating-point numbers in any case.
    along
        The argument that says along which dimensions entries come together or move; None among its values is all.
        The batch must not be one of them.
    otherwise
        What to say where another argument depends on the input.
    """

    work: Callable[..., Any] | None
    moving: tuple[str, ...] = ("input",)
    together: bool = False
    shapes: tuple[str, ...] = ()
    size: Size = SAME
    numbers: str = KEPT
    along: str | None = None
    joins: bool = False
    otherwise: str = "takes another argument than the first that depends on the input"

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by the rule's names for them, defaults filled in; Refused if it has others."""
        assert self.work is not None
        signature = inspect.signature(self.work)
        first, *others = signature.parameters.values()
        if not self.joins:
            others = [first.replace(name="input", kind=inspect.Parameter.POSITIONAL_OR_KEYWORD), *others]
        args, kwargs = _by_name([*signature.parameters.values()], args, kwargs)
        try:
            found = signature.replace(parameters=others).bind(*args, **kwargs)
        except TypeError as why:
            raise Refused(f"is called in a way that is not known: {why}") from None
        found.apply_defaults()
        return dict(found.arguments)

    def check_operands(self, arguments: Mapping[str, Any], active: Callable[[Any], Sequence[fx.Node]]) -> None:
        """Refused unless what depends on the input are arguments that may; `active` finds it in an argument."""
        moving = {name: nodes for name, value in arguments.items() if (nodes := active(value))}
        for name in moving:
            if name not in (*self.moving, *self.shapes):
                raise Refused(self.otherwise)
        if not self.together and sum(len(nodes) for name, nodes in moving.items() if name in self.moving) > 1:
            raise Refused(self.otherwise)

    def check_result(self, operands: Sequence[Tensor], out: Any, arguments: Mapping[str, Any]) -> None:
        """Refused unless dtype and shape of the result are as stated, for these operands that depend on the input."""
        results = [*tensors_in(out)]
        for x in operands:
            _check_numbers(self.numbers, x, results)
        x = operands[0]
        expected: tuple[int, ...] | None = None
        if self.size is SAME:
            expected = tuple(x.shape)
        elif self.size is BROADCAST:
            shapes = [t.shape for t in tensors_in(arguments)]
            expected = tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
        elif self.size is REDUCED:
            assert self.along is not None
            expected = _reduced(x.shape, arguments[self.along], bool(arguments.get("keepdim", False)))
        elif self.size is PARTS:
            if sum(t.numel() for t in tensors_in(arguments)) != results[0].numel():
                raise Refused("gives more entries than it is given")
        elif self.size.last:
            kept = x.ndim - self.size.last
            if kept < 1:
                raise Refused(f"is given {x.ndim} dimensions: the batch would be one that it works along")
            expected = (*x.shape[:kept], *results[0].shape[kept:]) if results[0].ndim == x.ndim else None
            if expected is None:
                raise Refused(f"gives {results[0].ndim} dimensions for {x.ndim}")
        if expected is not None and any(tuple(result.shape) != expected for result in results):
            given = ", ".join(str(tuple(result.shape)) for result in results)
            raise Refused(f"gives shape {given}, where its rule covers {expected} alone: {self.size.text}")


_ALIASES = {"axis": "dim", "keepdims": "keepdim"}  # which torch takes as well


def _by_name(
    parameters: Sequence[inspect.Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call, with what a rule takes as ``*dims`` in its place where it is called by that name."""
    names = {parameter.name for parameter in parameters}
    named = {_ALIASES[k] if k not in names and _ALIASES.get(k) in names else k: v for k, v in kwargs.items()}
    given = [*args]
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and parameter.name in named:
            given = ([named.pop("input")] if "input" in named else given) + [named.pop(parameter.name)]
    return given, named


def axes_of(dims: Any, ndim: int) -> set[int]:
    """Dimensions as operations name them, counted from the first; None and () are all."""
    if dims is None or dims in ((), [], ((),), ([],)):
        return {*range(ndim)}
    if isinstance(dims, int):
        return {dims % ndim}
    return set[int]().union(*(axes_of(dim, ndim) for dim in dims))


def _reduced(shape: Sequence[int], dims: Any, keep: bool) -> tuple[int, ...]:
    gone = axes_of(dims, len(shape))
    return tuple(1 if d in gone else n for d, n in enumerate(shape) if keep or d not in gone)


def _check_numbers(stated: str, x: Tensor, results: Sequence[Tensor]) -> None:
    for result in results:
        if result.is_complex() or x.is_complex():
            raise Refused("works with complex numbers")
        if not result.is_floating_point():
            raise Refused("gives whole numbers, so it jumps")
        held = torch.promote_types(x.dtype, result.dtype) is result.dtype
        if not held:
            raise Refused(f"rounds {_text(x.dtype)} to {_text(result.dtype)}, so it jumps")
        if stated is KEPT and result.dtype is not x.dtype:
            raise Refused(f"gives {_text(result.dtype)} for {_text(x.dtype)}")


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
