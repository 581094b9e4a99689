"""What every attack needs of a model: to hold it still, to know where and how it works, and what stands before it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparring.gradients import Lowered
from sparring.gradients.home import home_of


@contextmanager
def held_still(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode with no parameter requiring a gradient; on exit every flag is as it was.

    Where several threads hold a module or a parameter, it is as it was when the last of them lets go. A class with a
    ``train`` of its own, which may do more than set flags, has it called.
    """
    held: list[_Held] = []
    try:
        with _lock:
            modules = [module for model in models for module in model.modules()]
            flags = [getattr(module, "training", None) for module in modules]
            for model in models:
                for module in _outermost([m for m in model.modules() if _switches_itself(m) and m.training]):
                    module.eval()
            for module, flag in zip(modules, flags, strict=True):
                if flag is not None:
                    held.append(_hold(module, "training", flag))
            for parameter in (parameter for model in models for parameter in model.parameters()):
                if is_lazy(parameter) or (parameter.is_leaf and not parameter.is_inference()):
                    held.append(_hold(parameter, "requires_grad", parameter.requires_grad))
        yield
    finally:
        with _lock:
            _let_go(held)


def answered(model: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The logits (B, K) that a model gives for a copy of `points`, without a graph, in memory of their own."""
    with torch.no_grad():
        logits = model(points.clone())
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(points):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must return logits ({len(points)}, K), but gave {got}")
    copied: Tensor = logits.detach().clone()
    return copied


def keep_still(model: nn.Module) -> None:
    """Within `held_still`, after code that may have set flags: set them back."""
    with _lock:
        for thing in (*model.modules(), *model.parameters()):
            held = _all_held.get(id(thing))
            if held is not None and getattr(thing, held.name):
                setattr(thing, held.name, False)


class _Held:
    """A flag that is held at False, what it was, and how many hold it."""

    def __init__(self, thing: Any, name: str, flag: bool) -> None:
        self.thing, self.name, self.flag, self.count = thing, name, flag, 0


_lock = threading.RLock()
_all_held: dict[int, _Held] = {}


def _hold(thing: Any, name: str, flag: bool) -> _Held:
    if getattr(thing, name):
        setattr(thing, name, False)  # which a class may refuse
    held = _all_held.setdefault(id(thing), _Held(thing, name, flag))
    held.count += 1
    return held


def _let_go(all_held: list[_Held]) -> None:
    free = []
    for held in all_held:
        held.count -= 1
        if held.count == 0:
            free.append(_all_held.pop(id(held.thing)))
    switching = [held for held in free if held.name == "training" and _switches_itself(held.thing)]
    try:
        for module in _outermost([held.thing for held in switching if held.flag]):
            module.train()
        for held in switching:
            if held.thing.training and not held.flag:  # within one that was not
                held.thing.eval()
    finally:
        for held in free:
            if getattr(held.thing, held.name) != held.flag:
                setattr(held.thing, held.name, held.flag)


def _outermost(modules: list[nn.Module]) -> list[nn.Module]:
    """Without those that are inside of another one, and are switched with it."""
    inside = {id(part) for module in modules for part in module.modules() if part is not module}
    return [module for module in modules if id(module) not in inside]


def _switches_itself(module: nn.Module) -> bool:
    kind = type(module)
    own = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
    return own and not isinstance(module, torch.jit.ScriptModule)


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where to make images for a model, and in which dtype: `home_of` it, or else the CPU and torch's default."""
    home = home_of(model)
    return home.device or torch.device("cpu"), home.dtype or torch.get_default_dtype()


class Normalize(nn.Module):
    """``(x - mean) / std``, channel by channel (the first dimension after the batch) or with one number for all."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def preprocessed(model: nn.Module, preprocessing: Mapping[str, Any] | nn.Module | None, inputs: Tensor) -> nn.Module:
    """`model` behind its preprocessing, if there is one: a module, or ``{"mean": ..., "std": ...}`` of the channels.

    Inputs and perturbations stay in the units of the bounds, in front of the preprocessing. No mode is changed.
    """
    if preprocessing is None:
        return model
    if isinstance(preprocessing, nn.Module):
        first = preprocessing
    else:
        if not isinstance(preprocessing, Mapping) or not {*preprocessing} <= {"mean", "std"}:
            raise ValueError(f"preprocessing must be a module or a dict of 'mean' and 'std'; got {preprocessing!r}")
        mean, std = (
            _per_channel(preprocessing.get(name, fill), name, inputs) for name, fill in (("mean", 0), ("std", 1))
        )
        if not bool((std > 0).all()):
            raise ValueError(f"preprocessing's std must be positive; got {preprocessing['std']!r}")
        first = Normalize(mean, std)
    return nn.Sequential(first, model)


def _per_channel(value: Any, name: str, inputs: Tensor) -> Tensor:
    try:
        numbers = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"preprocessing's {name} must be a number or one per channel; got {value!r}") from error
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"preprocessing's {name} must be finite; got {value!r}")
    if numbers.dim() > 1 or (numbers.dim() == 1 and len(numbers) not in (1, inputs.shape[1])):
        raise ValueError(
            f"preprocessing's {name} must be a number or one per channel ({inputs.shape[1]}); "
            f"got shape {tuple(numbers.shape)}"
        )
    return numbers.reshape(-1, *(1,) * (inputs.dim() - 2))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def backward_of(
    backward: nn.Module | Lowered | Callable[[Tensor], Tensor] | None,
    preprocessing: Mapping[str, Any] | nn.Module | None,
    inputs: Tensor,
) -> nn.Module | None:
    """What stands in for the model's gradient as a module, behind the same preprocessing as the model."""
    if backward is None:
        return None
    inner = backward.model if isinstance(backward, Lowered) else backward
    return preprocessed(inner if isinstance(inner, nn.Module) else Function(inner), preprocessing, inputs)
