"""How a model is built, and whether it still is: `Signature`."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from sparring.gradients.originals import Intact
from sparring.tracing import PLAIN

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks"))

_DICTS = ("_parameters", "_buffers", "_modules", *HOOKS)

Getter = Callable[[dict[str, Any]], Any]

_global_hooks = attrgetter(*GLOBAL_HOOKS)


class Signature:
    """What a plan depends on, but for weights; `same` says whether it is as it was, within microseconds a module.

    Modules are known by weak references alone: whoever keeps a signature does not keep the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._built = [_built(module) for module in _modules_of(model)]
        self._intact = Intact({kind for _, kind, *_ in self._built})
        self._hooks = _hooks_of_all()

    def same(self, model: nn.Module) -> bool:
        try:
            return (
                self._built[0].module() is model
                and self._hooks == _hooks_of_all()
                and self._intact()
                and all(itertools.starmap(_stands, self._built))
            )
        except (RuntimeError, KeyError):  # another thread changes a dict, or an attribute is gone
            return False


def _hooks_of_all() -> list[int]:
    return [*map(len, _global_hooks(torch_module))]


def _modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules, each once, but for what is inside of TorchScript."""
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            if not isinstance(module, torch.jit.ScriptModule):
                waiting += [part for part in [*vars(module).get("_modules", {}).values()] if part is not None]
    return [*found.values()]


class _Built(NamedTuple):
    """One module: its class and its attributes."""

    module: weakref.ref[nn.Module]
    kind: type[nn.Module]
    names: list[str] | None  # of all attributes; None where there is no looking inside
    plain_of: Getter
    plain: Any  # attributes whose values cannot change, which are compared
    dicts_of: Getter
    inside: Any  # what is in its dicts; None where they are empty


def _built(module: nn.Module) -> _Built:
    values = vars(module)
    names = None if isinstance(module, torch.jit.ScriptModule) else [*values]
    plain_of = _getter([name for name, value in [*values.items()] if is_plain(value)])
    dicts_of = _getter([name for name in _DICTS if name in values])
    inside = _inside(values) if any(dicts_of(values)) else None
    return _Built(weakref.ref(module), type(module), names, plain_of, plain_of(values), dicts_of, inside)


def _stands(
    ref: weakref.ref[nn.Module], kind: type, names: list[str] | None, plain_of: Getter, plain: Any, dicts_of: Getter,
    inside: Any,
) -> bool:  # fmt: skip
    """Whether a module is as it was when this was noted of it."""
    module = ref()
    if type(module) is not kind:
        return False
    if names is None:
        return True
    values = module.__dict__
    if [*values] != names or plain_of(values) != plain:
        return False
    return _inside(values) == inside if any(dicts_of(values)) else inside is None


def _inside(values: dict[str, Any]) -> list[Any]:
    """Parts, types, dtypes and shapes of the module's own parameters and buffers, and whether there are hooks."""
    found: list[Any] = []
    for name in _DICTS:
        ones = values.get(name)
        if not ones:
            continue
        if name == "_modules":
            found += [(key, id(part)) for key, part in ones.items()]
        elif name in HOOKS:
            found.append(name)
        else:
            found += [(k, None if t is None or is_lazy(t) else (type(t), t.dtype, t.shape)) for k, t in ones.items()]
    return found


def _getter(names: list[str]) -> Getter:
    """A tuple of the values under these names."""
    return itemgetter(*names, names[0]) if names else _nothing


def _nothing(values: dict[str, Any]) -> tuple[()]:
    return ()


def is_plain(value: Any) -> bool:
    return type(value) in PLAIN or (type(value) is tuple and all(map(is_plain, value)))
