"""What the forward of a user's module reads and changes beside its arguments and itself, told from its code."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparring.tracing.state import GENERATORS, PLAIN

_TRUSTED = ("torch", "sparring")
_LIBRARIES = frozenset(
    (
        "torch",
        "sparring",
        "math",
        "operator",
        "functools",
        "itertools",
        "typing",
        "warnings",
        "logging",
        "einops",
        "numpy",
    )
)
_UNFIT = frozenset(
    ("random", "secrets", "time", "datetime", "uuid", "os", "sys", "io", "socket", "threading", "ctypes")
)
_BUILTINS = frozenset(
    ("open", "input", "eval", "exec", "globals", "locals", "compile", "__import__", "setattr", "delattr")
)
_HARMLESS = (BuiltinFunctionType, ModuleType)
_MISSING = object()


class Reads(NamedTuple):
    """What forward reads.

    Attributes
    ----------
    reasons
        Why what it reads, or does, cannot be followed; empty where it can.
    watched
        Where it finds plain values and functions outside of the model, under which name, and what is there.
    """

    reasons: list[str]
    watched: list[tuple[Any, str, Any]]

    def changed(self) -> bool:
        """Whether one of them is another one now."""
        return any(not _same(_look_up(place, name), value) for place, name, value in self.watched)


def reads(modules: Iterable[nn.Module]) -> Reads:
    """What the forwards of these modules, and the functions that these call, read.

    torch's own modules and functions are trusted. Not traceable is a forward that uses a list, a dict or an object that
    is not the model's, as these may change; that sets a global; that uses `random`, a clock or files; or a
    `torch.autograd.Function`.
    """
    scan = _Scan()
    foreign = [module for module in modules if not _is_trusted(type(module))]
    for kind in dict.fromkeys(map(type, foreign)):
        scan.function(forward_of(kind), kind)
    for module in foreign:
        for name, value in vars(module).items():
            scan.held(name, value)
    scan.follow()
    return Reads([*dict.fromkeys(scan.reasons)], scan.watched)


def forward_of(kind: type) -> Any:
    """The forward of a class, as it stands in its text."""
    return next((vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)), None)


class _Scan:
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.watched: list[tuple[Any, str, Any]] = []
        self._waiting: list[tuple[FunctionType, type | None]] = []
        self._seen: set[Any] = set()

    def function(self, function: Any, kind: type | None = None) -> None:
        """Have the code of a function looked at, a method of `kind` maybe."""
        while isinstance(function, (functools.partial, functools.partialmethod, staticmethod, classmethod, MethodType)):
            for bound in (*getattr(function, "args", ()), *getattr(function, "keywords", {}).values()):
                self.value("an argument of a partial function", bound)
            function = function.func if hasattr(function, "func") else function.__func__
        if not isinstance(function, (FunctionType, BuiltinFunctionType)):
            self.reasons.append(f"forward calls a {type(function).__name__}")
        elif isinstance(function, FunctionType) and (function, kind) not in self._seen:
            self._seen.add((function, kind))
            self._waiting.append((function, kind))

    def follow(self) -> None:
        while self._waiting:
            function, kind = self._waiting.pop()
            if (function.__module__ or "").partition(".")[0] not in _TRUSTED:
                self._code(function, kind)

    def held(self, name: str, value: Any) -> None:
        """An attribute of a module."""
        if isinstance(value, GENERATORS):
            self.reasons.append(f"holds a random generator ({name})")
        elif isinstance(value, (FunctionType, functools.partial, MethodType)):
            self.function(value)

    def value(self, name: str, value: Any, place: Any = None) -> None:
        """What forward finds under a name outside of the model."""
        if isinstance(value, PLAIN):
            self._watch(place, name, value)
        elif isinstance(value, tuple):
            self._watch(place, name, value)
            for one in value:
                self.value(name, one)
        elif isinstance(value, (FunctionType, functools.partial, MethodType)):
            self._watch(place, name, value)
            self.function(value)
        elif isinstance(value, type):
            if issubclass(value, torch.autograd.Function):
                self.reasons.append(f"forward uses {name}, a torch.autograd.Function")
        elif isinstance(getattr(value, "__self__", value), GENERATORS):
            self.reasons.append(f"forward draws random numbers ({name})")
        elif isinstance(value, (nn.Module, Tensor)) or not (
            isinstance(value, _HARMLESS) or _root(type(value)) in _LIBRARIES
        ):
            self.reasons.append(f"forward uses {name}, a {type(value).__name__} that is not the model's and may change")

    def _watch(self, place: Any, name: str, value: Any) -> None:
        if place is not None:
            self.watched.append((place, name, _bare(value)))

    def _code(self, function: FunctionType, kind: type | None) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                self.value(name, _look_up(cell, ""), cell)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if not isinstance(default, Tensor):
                self.value("a default", default)
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            self.function(wrapped, kind)
        names: dict[str, None] = {}
        for code in _codes(function.__code__):
            names |= dict.fromkeys(code.co_names)
            for operation in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                if dis.opmap[operation] in code.co_code[::2]:
                    self.reasons.append(f"{function.__qualname__} sets a global")
        for name in names:
            self._name(name, function, kind, names)

    def _name(self, name: str, function: FunctionType, kind: type | None, names: dict[str, None]) -> None:
        outside = function.__globals__
        if name in _UNFIT and name not in outside and _imports(function):
            self.reasons.append(f"forward imports {name}")
        if kind is not None:
            self._of_class(name, kind)
        if name not in outside:
            if name in _BUILTINS:
                self.reasons.append(f"forward calls {name}")
            return
        value = outside[name]
        if not isinstance(value, ModuleType):
            self.value(name, value, outside)
            if isinstance(value, type) and not _is_trusted(value) and value.__module__ != "builtins":
                self._members(value, names)
            return
        root = value.__name__.partition(".")[0]
        if root in _UNFIT or (root == "numpy" and ("random" in names or value.__name__.startswith("numpy.random"))):
            self.reasons.append(f"forward uses {value.__name__}")
        elif root not in _LIBRARIES:
            self._members(value, names)

    def _members(self, namespace: Any, names: dict[str, None]) -> None:
        for name in names:
            if name in vars(namespace):
                self.value(name, _bare(vars(namespace)[name]), namespace)

    def _of_class(self, name: str, kind: type) -> None:
        """Methods, properties and constants that a class of the user's has under a name that its code uses."""
        for base in kind.__mro__:
            if _is_trusted(base) or name not in vars(base) or base is object:
                continue
            value = vars(base)[name]
            if isinstance(value, (property, functools.cached_property)):
                self.function(value.fget if isinstance(value, property) else value.func, kind)
                self._watch(base, name, value)
            elif isinstance(value, (FunctionType, staticmethod, classmethod, functools.partialmethod)):
                self.function(value, kind)
                self._watch(base, name, value)
            elif not isinstance(value, (type, ModuleType)) and not _is_builtin_descriptor(value):
                self.value(name, value, base)


def _bare(value: Any) -> Any:
    """The function in a static method, which is what a class gives under its name."""
    return value.__func__ if isinstance(value, staticmethod) else value


def _is_builtin_descriptor(value: Any) -> bool:
    """Slots and the like."""
    return hasattr(type(value), "__get__") and _root(type(value)) == "builtins"


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is_trusted(kind: type) -> bool:
    return _root(kind) in _TRUSTED


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _imports(function: FunctionType) -> bool:
    return any(dis.opmap["IMPORT_NAME"] in code.co_code[::2] for code in _codes(function.__code__))


def _look_up(place: Any, name: str) -> Any:
    if isinstance(place, dict):
        return place.get(name, _MISSING)
    if inspect.isclass(place) or isinstance(place, ModuleType):
        return _bare(vars(place).get(name, _MISSING))
    try:
        return place.cell_contents
    except ValueError:  # nothing there yet
        return _MISSING


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, PLAIN) and bool(one == other))
