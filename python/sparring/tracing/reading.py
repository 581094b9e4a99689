"""What the forward of a user's module reads beside its arguments: only what can be watched, or it is not followed."""

from __future__ import annotations

import builtins
import weakref
from collections.abc import Mapping
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from sparring.tracing.code import Code, read

PLAIN = frozenset([
    bool, int, float, complex, str, bytes, type(None), type(...), range, slice,
    torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout,
])  # fmt: skip
"""Types, and no others derived from them, of values that cannot change."""

_BUILTINS = frozenset([
    "len", "range", "enumerate", "zip", "int", "float", "bool", "str", "tuple", "list", "dict", "set", "frozenset",
    "sum", "min", "max", "abs", "reversed", "sorted", "slice", "super", "all", "any", "map", "pow", "divmod", "round",
    "complex",
])  # fmt: skip
# What a class may define beside methods that are called by name.
_HARMLESS = frozenset([
    "__init__", "__repr__", "__str__", "__doc__", "__module__", "__qualname__", "__name__", "__annotations__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__constants__", "__dict__", "__weakref__",
    "__firstlineno__", "__static_attributes__", "__init_subclass__", "__class_getitem__", "__orig_bases__",
    "__parameters__", "__slots__", "__classcell__", "__abstractmethods__", "__hash__", "__dir__",
    "__jit_unused_properties__", "__jit_ignored_attributes__",
])  # fmt: skip
_MISSING = object()
# What every module has, but what forward is made of.
_BOOKKEEPING = {*vars(nn.Module())} - {"training", "_parameters", "_buffers", "_modules"}
_ASKING = ("get_", "is_", "are_")  # torch's functions that tell how a program is set up
_SETTLED = frozenset([  # and such as tell of a tensor, or whether something is done that would be seen here
    "is_tensor", "is_floating_point", "is_complex", "is_storage", "is_scripting", "is_tracing", "is_compiling",
    "is_exporting", "is_dynamo_compiling", "is_in_onnx_export",
])  # fmt: skip
_CODE = (FunctionType, BuiltinFunctionType, type)


class Unreadable(Exception):
    """Why what a function reads, or does, cannot be followed."""


class Reads:
    """What was read, where it stood, and whether it is still there."""

    def __init__(self) -> None:
        self._names: list[tuple[Mapping[str, Any], str, Any]] = []  # in globals, and in torch's modules
        self._cells: list[tuple[CellType, Any]] = []
        self._functions: list[tuple[FunctionType, Any]] = []
        self._attributes: dict[tuple[str, str], tuple[bool, Any]] = {}  # by path of a module: its own, or its class's
        self._modules: dict[str, weakref.ref[nn.Module]] = {}

    def bind(self, model: nn.Module, prefix: str = "") -> None:
        """Watch the attributes of this model, whose modules have the names of those that were read behind a prefix."""
        modules = dict(model.named_modules())
        for path, _ in self._attributes:
            self._modules[path] = weakref.ref(modules[f"{prefix}.{path}".strip(".")])

    def changed(self) -> bool:
        """Whether anything is another thing now."""
        return (
            any(not _same(place.get(name, _MISSING), value) for place, name, value in self._names)
            or any(not _same(_contents(cell), value) for cell, value in self._cells)
            or any(not _same_function(function, parts) for function, parts in self._functions)
            or any(self._moved(path, name, *found) for (path, name), found in self._attributes.items())
        )

    def _moved(self, path: str, name: str, own: bool, value: Any) -> bool:
        module = self._modules[path]()
        if module is None:
            return True
        in_class = look_up(type(module), name)
        if own:
            return in_class is not _MISSING or not _same(vars(module).get(name, _MISSING), value)
        return name in vars(module) or not _same(in_class, value)

    # --- Filled while forward is traced ------------------------------------------------------------------------------

    def attribute(self, module: nn.Module, kind: type, path: str, name: str) -> None:
        """An attribute of a module of a class `kind`, which is read; its tensors and modules are nodes of the graph."""
        in_class = look_up(kind, name)
        if in_class is not _MISSING:
            self._in_class(kind, path, name, in_class)
        elif name in vars(module):
            value = vars(module)[name]
            if isinstance(value, Withheld):
                raise Unreadable(f"forward reads {name}, a {value.kind.__name__}")
            self._check(name, value)
            self._attributes[path, name] = (True, value)
        elif any(name in vars(module)[place] for place in ("_parameters", "_buffers", "_modules")):
            self._attributes[path, name] = (False, _MISSING)

    def _in_class(self, kind: type, path: str, name: str, value: Any) -> None:
        self._attributes[path, name] = (False, value)
        self._of_base(next(base for base in kind.__mro__ if name in vars(base)), kind, name, value)

    def _of_base(self, base: type, kind: type, name: str, value: Any) -> None:
        if isinstance(value, property) and value.fget is not None:
            self.function(value.fget, kind)
        elif isinstance(value, (FunctionType, staticmethod)):
            self.function(value.__func__ if isinstance(value, staticmethod) else value, kind)
        elif not _is_trusted_type(base):
            self._check(name, value)

    def of_class(self, kind: type) -> None:
        """A class of modules, whose forward is called."""
        for base in kind.__mro__:
            if not _is_trusted_type(base) and base is not object:
                own = [name for name in vars(base) if name.startswith("__") and name not in _HARMLESS]
                if own:
                    raise Unreadable(f"{base.__name__} has a {own[0]} of its own")

    def function(self, function: Any, kind: type | None = None) -> None:
        """A function that is called, a method of `kind` maybe."""
        if not isinstance(function, FunctionType):
            raise Unreadable(f"forward calls a {type(function).__name__}")
        if any(function is known for known, _ in self._functions):
            return
        self._functions.append((function, _parts_of(function)))
        trusted = _is_trusted(str(function.__globals__.get("__name__")))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            value = _contents(cell)
            if name == "__class__" or (trusted and not isinstance(value, FunctionType)):
                if callable(value) and not _is_trusted_type(type(value)) and not isinstance(value, _CODE):
                    raise Unreadable(f"forward calls a {type(value).__name__}")
                continue
            self._cells.append((cell, value))
            self._check(name, value)
        if trusted:
            return
        code = read(function.__code__)
        if code.refused:
            raise Unreadable(f"{function.__name__} {code.refused}")
        if {*vars(function)} - {"__wrapped__"}:
            raise Unreadable(f"{function.__name__} has attributes")
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._check("a default", default)
        for name in code.names:
            self._name(name, function, code)
        for name in sorted(code.attributes & _BOOKKEEPING):
            raise Unreadable(f"forward reads {name}")
        if code.calls_super and kind is not None:
            for base in kind.__mro__:
                for name in code.attributes & {*vars(base)}:
                    self._names.append((vars(base), name, vars(base)[name]))
                    self._of_base(base, kind, name, vars(base)[name])

    def _name(self, name: str, function: FunctionType, code: Code) -> None:
        place = function.__globals__
        value = place.get(name, _MISSING)
        self._names.append((place, name, value))
        if value is not _MISSING:
            self._check(name, value, code)
            return
        found = vars(builtins).get(name)
        self._names.append((vars(builtins), name, found))
        error = isinstance(found, type) and issubclass(found, Exception)
        if name not in _BUILTINS and not error:
            raise Unreadable(f"forward uses {name}")

    def _check(self, name: str, value: Any, code: Code | None = None) -> None:
        """Unreadable unless a value can be watched by what it is."""
        if type(value) in PLAIN or value is _MISSING:
            return
        if type(value) is tuple:
            for one in value:
                self._check(name, one)
        elif isinstance(value, ModuleType) and code is not None and _is_trusted(value.__name__):
            self._inside(value, code, set())
        elif isinstance(value, FunctionType):
            self.function(value)
        elif not _of_library(value) and not _is_class_of_torch(value):
            raise Unreadable(f"forward reads {name}, a {type(value).__name__} that may change unseen")

    def _inside(self, module: ModuleType, code: Code, seen: set[str]) -> None:
        """What code may mean inside of a module of torch's, or in `math`."""
        seen.add(module.__name__)
        for name in code.attributes & {*vars(module)}:
            value = vars(module)[name]
            self._names.append((vars(module), name, value))
            if name == "backends" or (name.startswith(_ASKING) and name not in _SETTLED and callable(value)):
                raise Unreadable(f"forward asks for {module.__name__}.{name}")
            if isinstance(value, ModuleType):
                if _is_trusted(value.__name__) and value.__name__ not in seen:
                    self._inside(value, code, seen)
            elif isinstance(value, type) and issubclass(value, torch.autograd.Function):
                raise Unreadable(f"forward uses {name}, a torch.autograd.Function")
            elif isinstance(value, FunctionType) and not _is_trusted(str(value.__module__)):
                self.function(value)
            elif not isinstance(value, (FunctionType, type)) and not _is_trusted(str(type(value).__module__)):
                self._check(f"{module.__name__}.{name}", value)


class Withheld:
    """In the place of a value that a copy of a module is not given."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


def may_be_held(value: Any) -> bool:
    """Whether a copy of a module may have the same value."""
    if type(value) is tuple:
        return all(map(may_be_held, value))
    return type(value) in PLAIN or isinstance(value, FunctionType) or _of_library(value)


def look_up(kind: type, name: str) -> Any:
    """What a class has under a name, as it stands there."""
    for base in kind.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return _MISSING


def _of_library(value: Any) -> bool:
    """Whether a value is a function of torch's or of `math`, which belongs to no object."""
    if not isinstance(value, BuiltinFunctionType):
        return False
    owner = getattr(value, "__self__", None)
    if isinstance(owner, ModuleType):
        return _is_trusted(owner.__name__)
    return (owner is None or isinstance(owner, type)) and _is_trusted(str(getattr(value, "__module__", "")))


def _is_class_of_torch(value: Any) -> bool:
    return isinstance(value, type) and _is_trusted_type(value) and not issubclass(value, torch.autograd.Function)


def _is_trusted(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "sparring", "math", "_operator", "operator")


def _is_trusted_type(kind: type) -> bool:
    return _is_trusted(kind.__module__)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing there yet
        return _MISSING


def _parts_of(function: FunctionType) -> Any:
    return function.__code__, function.__defaults__, dict(function.__kwdefaults__ or {}), set(vars(function))


def _same_function(function: FunctionType, parts: Any) -> bool:
    now = _parts_of(function)
    return now[0] is parts[0] and now[1] is parts[1] and now[2:] == parts[2:]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, MethodType):
        return bool(one == other)
    return one is other or (type(one) is type(other) and type(one) in PLAIN and bool(one == other))
