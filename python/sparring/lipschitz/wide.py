"""A network in float64: its function in exact arithmetic, nearly, if its forward does the same whatever the dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparring.attacks._model import device_and_dtype
from sparring.lipschitz.ambient import callers_device, generators_kept, quietly, seed
from sparring.lipschitz.trees import leaves, tensors_in

_ROWS = 2  # of the batch that is tried: what normalises by the batch needs as many


@dataclass(frozen=True)
class _Operation:
    """One call of torch's own operations.

    Attributes
    ----------
    name
        The same for an operation that works in place.
    options
        Arguments but for tensors.
    sources
        Of the tensors that come of the input, by which operation each was last written, -1 for the input itself.
    constants
        Other tensors.
    shapes
        Of the results.
    """

    name: str
    options: tuple[Any, ...]
    sources: tuple[int, ...]
    constants: tuple[Tensor, ...]
    shapes: tuple[tuple[int, ...], ...]

    def options_without_dtype(self) -> tuple[Any, ...]:
        return tuple(option for option in self.options if not isinstance(option, torch.dtype))


class Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What is done to a tensor and all that comes of it, in order; casts that lose nothing are not counted.

    Tensors are followed by their memory, so a view and what is written in place count as well.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done: list[_Operation] = []
        self._kept: list[Tensor] = [x]  # memory that is freed might be used again
        self._writers = {_memory(x): -1}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [*tensors_in((args, kwargs))]
        moving = [tensor for tensor in given if _memory(tensor) in self._writers]
        sources = tuple(self._writers[_memory(tensor)] for tensor in moving)
        out = func(*args, **kwargs)
        if moving:
            made = [*tensors_in(out)]
            writer = sources[0]
            if not _holds(func, moving, made):
                writer = len(self.done)
                options = tuple(one for one in leaves((args, kwargs)) if not isinstance(one, Tensor))
                constants = tuple(tensor.detach() for tensor in given if _memory(tensor) not in self._writers)
                name = str(func).removeprefix("aten.").replace("_.", ".")
                self.done.append(_Operation(name, options, sources, constants, tuple(tuple(t.shape) for t in made)))
            self._kept += made
            self._writers.update({_memory(tensor): writer for tensor in made if tensor.numel()})
        return out


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _holds(func: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> bool:
    """Whether a call is a cast to a dtype that holds all numbers of the one before."""
    if func is not torch.ops.aten._to_copy.default or not made:
        return False
    return torch.promote_types(given[0].dtype, made[0].dtype) is made[0].dtype


def difference(one: Sequence[_Operation], other: Sequence[_Operation], alike: Callable[[Tensor, Tensor], bool],
               *, dtypes: bool) -> str:  # fmt: skip
    """The first operation that two records do not share, in words; "" if there is none."""
    for a, b in zip(one, other, strict=False):
        name = a.name
        if a.name != b.name:
            return f"{name} in place of {b.name}"
        options = (a.options, b.options) if dtypes else (a.options_without_dtype(), b.options_without_dtype())
        if repr(options[0]) != repr(options[1]):  # NaN is alike, 1 and 1.0 are not
            pairs = [(c, d) for c, d in zip(*options, strict=False) if repr(c) != repr(d)] or [options]
            return f"{name} with {pairs[0][0]} in place of {pairs[0][1]}"
        if a.sources != b.sources:
            return f"{name} of something that was changed in place"
        if a.shapes != b.shapes or len(a.constants) != len(b.constants):
            return f"{name} of another shape"
        if not all(c.shape == d.shape and alike(c, d) for c, d in zip(a.constants, b.constants, strict=True)):
            return f"{name} with another constant"
    longer = one if len(one) > len(other) else other
    return f"{longer[min(len(one), len(other))].name} or not" if len(one) != len(other) else ""


def identical(one: Tensor, other: Tensor) -> bool:
    """The same dtype and numbers; NaN is as NaN."""
    if one.dtype is not other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one, other) or (
        one.is_floating_point() and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
    )


def _alike(dtype: torch.dtype) -> Callable[[Tensor, Tensor], bool]:
    """Whether constants are the same but for what `dtype` rounds where they are computed."""
    unit = torch.finfo(dtype).eps

    def compare(one: Tensor, other: Tensor) -> bool:
        if not (one.is_floating_point() and other.is_floating_point()):
            return identical(one, other)
        one, other = one.double(), other.double()
        size = float(one.abs().nan_to_num(posinf=0.0).max()) if one.numel() else 0.0
        return torch.allclose(one, other, rtol=unit**0.5, atol=8 * unit * size, equal_nan=True)

    return compare


def copied(model: nn.Module) -> nn.Module:
    """A copy that may be called and changed; ValueError if there is none."""
    try:
        return copy.deepcopy(model)
    except Exception as why:
        raise ValueError(f"model cannot be copied: {why}") from why


def changes(model: nn.Module, called: nn.Module) -> list[str]:
    """Names of a model's tensors that calls of its copy, of whatever dtype, have changed."""
    before, after = _tensors_of(model), _tensors_of(called)
    return [
        name
        for name, tensor in before.items()
        if name not in after or not identical(tensor.to(after[name]), after[name].detach())
    ]


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and what else are attributes."""
    return {
        f"{name}.{key}".strip("."): value.detach()
        for name, module in model.named_modules()
        for key, value in {**module._parameters, **module._buffers, **vars(module)}.items()
        if isinstance(value, Tensor)
    }


def widened(model: nn.Module, shape: Sequence[int]) -> tuple[nn.Module, str]:
    """A copy of a network with its stored numbers as float64, and why that is another function ("" if it is the same).

    Both are called once, with a batch of random numbers of this shape (without the batch), and what they do to it is
    compared, operation by operation with all numbers: an ``eps`` that follows the dtype, a cast, autocast, a branch on
    the dtype. The ``eps`` that `nn.RMSNorm` takes from the dtype is set to what it is in the network.
    """
    device, dtype = device_and_dtype(model)
    x = sample(_ROWS, shape).to(device, dtype)
    wide = copied(model).double()
    for module in wide.modules():
        if type(module) is nn.RMSNorm and module.eps is None:
            module.eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    try:
        own = recorded(copied(model), x)
    except Exception as why:
        return wide, f"it cannot be called with a batch of two: {first_line(why)}"
    name = str(dtype).removeprefix("torch.")
    try:
        of_wide = recorded(copied(wide), x.double())
    except Exception as why:
        return wide, f"a copy in float64 fails: {first_line(why)}"
    found = difference(own.done, of_wide.done, _alike(dtype), dtypes=False)
    return wide, found and f"a copy in float64 does something else than the network in {name}: {found}"


def recorded(call: Callable[[Tensor], Any], x: Tensor) -> Record:
    """What a forward does to x."""
    with torch.no_grad(), generators_kept(), quietly(), callers_device():
        seed(0)
        record = Record(x)
        with record:
            call(x)
    return record


def sample(rows: int, shape: Sequence[int]) -> Tensor:
    """Random numbers in [0, 1), float64 (rows, *shape), the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(rows, *shape, generator=generator, dtype=torch.float64, device="cpu")


def in_float64(model: nn.Module, shape: Sequence[int], purpose: str) -> nn.Module:
    """The copy in float64; ValueError if it is another function than the network."""
    wide, reason = widened(model, shape)
    if reason:
        raise ValueError(f"model has no float64 copy, which {purpose} needs: {reason}")
    return wide


def first_line(why: Exception) -> str:
    return f"{type(why).__name__}: {why}".strip().splitlines()[0]
