"""`trace` and `record`: from a module to the graph of its forward."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from sparring.tracing.reading import Reads, Unreadable, Withheld, may_be_held

IsLeaf = Callable[[nn.Module], bool]

# What draws from torch's generators; dropout is a step of the graph, for whoever reads it to judge.
_RANDOM = frozenset(
    (
        "rand",
        "randn",
        "randint",
        "rand_like",
        "randn_like",
        "randint_like",
        "randperm",
        "bernoulli",
        "bernoulli_",
        "normal",
        "normal_",
        "uniform_",
        "random_",
        "exponential_",
        "geometric_",
        "cauchy_",
        "log_normal_",
        "multinomial",
        "poisson",
        "binomial",
        "gumbel_softmax",
        "fractional_max_pool2d",
        "fractional_max_pool3d",
        "seed",
        "manual_seed",
        "initial_seed",
        "set_rng_state",
        "get_rng_state",
    )
)
_OWN = frozenset(vars(nn.Module()))  # attributes that every module has, but for its mode
_OWN -= {"training"}
_KNOWN_OF_TENSORS = frozenset(
    ["dtype", "shape", "device", "ndim", "layout", "size", "dim", "numel", "is_floating_point"]
)
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


class Untraceable(Exception):
    """Why forward has no graph."""


def trace(model: nn.Module, is_leaf: IsLeaf) -> tuple[fx.Graph, Reads]:
    """The graph of ``model(x)``, and what forward reads beside `x`; nothing of `model` or of the program is touched.

    Parameters
    ----------
    model
        Its forward runs on a copy, once. The copy's parameters and buffers have the shape, dtype and device of the
        model's, but no memory and no meaning; it is not given the model's lists, dicts and other objects.
    is_leaf
        Which modules are one node of the graph; all others in `torch.nn` but `Sequential` are, too.

    Raises
    ------
    Untraceable
        Where forward does what a graph does not show: it follows values, hides something from autograd, draws random
        numbers, makes tensors, or reads or changes what is not its own. Or where it fails on proxies.
    """
    for module in model.modules():
        if hasattr(type(module), "__del__"):
            raise Untraceable(f"{type(module).__name__} has a __del__, which a copy would call")
    reads = Reads()
    root = _copied(model, {})
    for module in root.modules():
        if not (is_standard(module) or is_leaf(module)):
            try:
                reads.of_class(type(module))
            except Unreadable as why:
                raise Untraceable(str(why)) from None
    before = _state(root)
    graph = record(root, is_leaf, reads)
    now = _state(root)
    changed = sorted({name for name in {*before, *now} if before.get(name) != now.get(name)})
    if any("_tensor_constant" in name for name in changed):
        raise Untraceable("forward makes a tensor")
    if changed:
        raise Untraceable(f"forward sets {', '.join(changed)}")
    return graph, reads


def record(root: nn.Module, is_leaf: IsLeaf, reads: Reads | None = None) -> fx.Graph:
    """The graph of ``root(x)``, for a `root` that no one else has: meanwhile its modules have other classes.

    With `reads`, forward is followed only where these can be told from its code.
    """
    recorder = _Recorder(root, is_leaf, reads)
    kinds = [(module, type(module)) for module in root.modules()]
    try:
        for module, kind in kinds:
            object.__setattr__(module, "__class__", recorder.watched(kind))
        with torch.inference_mode(False), torch.enable_grad(), _Functions(recorder.tensors):
            return recorder.run()
    except Untraceable:
        raise
    except Unreadable as error:
        raise Untraceable(str(error)) from None
    except Exception as error:  # forward is the user's code, and met proxies in place of tensors
        raise Untraceable(f"forward cannot be traced: {_line(error)}") from error
    finally:
        for module, kind in kinds:
            object.__setattr__(module, "__class__", kind)
        recorder.forget()


class _Recorder(fx.Tracer):
    """Of one root. `Tracer.trace` is not used: it changes `nn.Module` for all threads."""

    def __init__(self, root: nn.Module, is_leaf: IsLeaf, reads: Reads | None) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type] # none
        self.root, self._kind = root, type(root)
        self._reads = reads
        self._leaves = {id(module) for module in root.modules() if is_standard(module) or is_leaf(module)}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {}
        self.paths = {id(module): name for name, module in root.named_modules()}
        tensors = (*root.named_parameters(), *root.named_buffers())
        self._names = {id(tensor): name for name, tensor in tensors}
        self.tensors = self._names.keys()
        self._proxies: dict[str, fx.Proxy] = {}
        self._watched: dict[type, type] = {}
        self._autocast = _autocast()

    def run(self) -> fx.Graph:
        first, *others = _parameters_of(self.root)
        x = self.create_proxy("placeholder", first, (), {})
        if others:
            raise Untraceable(f"forward takes more than one argument ({', '.join((first, *others))})")
        output = self._called(self.root, self._kind, x)
        self.create_node("output", "output", (self.create_arg(output),), {})
        return self.graph

    def watched(self, kind: type[nn.Module]) -> type[nn.Module]:
        """A class like `kind` whose calls and tensors are recorded here."""
        if kind not in self._watched:
            recorder = self

            class Watched(nn.Module):
                def __init_subclass__(cls, **options: Any) -> None:  # no register of the user's hears of it
                    pass

                def __call__(self, *args: Any, **kwargs: Any) -> Any:
                    return recorder.call(self, kind, args, kwargs)

                def __getattribute__(self, name: str) -> Any:
                    recorder.read(self, kind, name)
                    return super().__getattribute__(name)

                def __getattr__(self, name: str) -> Any:
                    return recorder.attribute(super().__getattr__(name))

            about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": None}
            self._watched[kind] = type.__new__(type(kind), kind.__name__, (Watched, kind), about)
        return self._watched[kind]

    def forget(self) -> None:
        """Have no class among the subclasses of the user's."""
        for watched in self._watched.values():
            with suppress(TypeError):  # of a class with slots
                watched.__bases__ = (nn.Module,)
        self._watched.clear()

    def call(self, module: Any, kind: type[nn.Module], args: Any, kwargs: Any) -> Any:
        if id(module) not in self.paths:
            raise Untraceable("forward calls a module that is not one of the model's")
        return self.call_module(module, functools.partial(self._called, module, kind), args, kwargs)

    def _called(self, module: nn.Module, kind: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
        if self._reads is not None:
            self._reads.of_class(kind)
        return nn.Module.__call__(module, *args, **kwargs)

    def read(self, module: nn.Module, kind: type[nn.Module], name: str) -> None:
        """An attribute of a module is read, by forward or by torch."""
        if self._reads is not None and name not in _OWN and not name.startswith("__"):
            self._reads.attribute(module, kind, self.paths[id(module)], name)

    def path_of_module(self, mod: nn.Module) -> str:
        path: str = self.paths[id(mod)]
        return path

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._leaves

    def attribute(self, value: Any) -> Any:
        """What an attribute of a module is to forward: a node, where it is a parameter or a buffer."""
        name = self._names.get(id(value)) if isinstance(value, Tensor) else None
        if name is None:
            return value
        if name not in self._proxies:
            self._proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self._proxies[name]

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind != "get_attr" and self._reads is not None:
            self._refuse_what_no_graph_shows()
        return super().create_node(kind, *args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def _refuse_what_no_graph_shows(self) -> None:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise Untraceable("forward disables gradients")
        if _autocast() != self._autocast:
            raise Untraceable("forward uses autocast")
        frame = sys._getframe(2)
        while frame is not None and frame.f_code is not _Recorder.run.__code__:
            if frame.f_code is _APPLY:
                raise Untraceable("forward uses a torch.autograd.Function")
            frame = frame.f_back  # type: ignore[assignment]


class _Proxy(fx.Proxy):
    """`fx.Proxy`, which forward must not write to: ``weight.data = ...`` leaves no node."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise Untraceable(f"forward sets .{name} of a tensor")
        super().__setattr__(name, value)


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    """``proxy += other``: another tensor, where it is not one of the model's."""
    plain = getattr(operator, name)

    def changed(self: _Proxy, other: Any) -> Any:
        if self.node.op == "get_attr":
            raise Untraceable(f"forward changes {self.node.target} in place")
        return plain(self, other)

    return changed


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(_Proxy, f"__i{_name}__", _in_place(_name))


class _Functions(TorchFunctionMode):
    """Sees every function of torch before it does anything."""

    def __init__(self, tensors: Collection[int]) -> None:
        super().__init__()
        self._tensors = tensors  # ids of the copy's own, whose numbers mean nothing

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = func.__self__.__name__ if getattr(func, "__name__", "") == "__get__" else getattr(func, "__name__", "")
        given = [*args, *(kwargs or {}).values()]
        given += [one for several in given if isinstance(several, (list, tuple)) for one in several]
        if called not in _KNOWN_OF_TENSORS and any(id(one) in self._tensors for one in given):
            raise Untraceable(f"forward reads a tensor of the model's by other ways than its name ({called})")
        if getattr(func, "__name__", "") in _RANDOM:
            raise Untraceable(f"forward draws random numbers ({func.__name__})")
        return func(*args, **(kwargs or {}))


def is_standard(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, which are one node of a graph, but for `Sequential`."""
    return type(module).__module__.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(module, nn.Sequential)


def _parameters_of(root: nn.Module) -> list[str]:
    """Names of the arguments of forward that have no default."""
    parameters = inspect.signature(root.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return needed or [p.name for p in parameters][:1] or ["x"]


def _copied(module: nn.Module, made: dict[int, Any]) -> Any:
    """A module like another one, made without a call of its code; `made` are the copies, by the id of the original."""
    if id(module) in made:
        return made[id(module)]
    copied = made[id(module)] = object.__new__(type(module))
    own: dict[str, Any] = {}
    object.__setattr__(copied, "__dict__", own)
    for name, value in [*vars(module).items()]:
        if name in ("_parameters", "_buffers"):
            own[name] = {key: _without_memory(one, made) for key, one in [*value.items()]}
        elif name == "_modules":
            own[name] = {key: one and _copied(one, made) for key, one in [*value.items()]}
        elif name in _OWN:
            own[name] = value.copy() if isinstance(value, (dict, set)) else value
        else:
            own[name] = value if may_be_held(value) else Withheld(type(value))
    return copied


def _without_memory(tensor: Tensor | None, made: dict[int, Any]) -> Tensor | None:
    """A tensor like another one whose entries are one and the same, so that it cannot be written to."""
    if tensor is None or id(tensor) in made:
        return made[id(tensor)] if tensor is not None else None
    one = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    if isinstance(tensor, nn.Parameter):
        one = nn.Parameter(one, tensor.requires_grad and (one.is_floating_point() or one.is_complex()))
    made[id(tensor)] = one
    return one


def _state(root: nn.Module) -> dict[str, int]:
    """What a module and those in it hold, by name."""
    state: dict[str, int] = {}
    for path, module in root.named_modules():
        for name, value in vars(module).items():
            inside = value.items() if name in ("_parameters", "_buffers", "_modules") else [(name, value)]
            state.update((f"{path}.{key}".strip("."), id(one)) for key, one in inside)
    return state


def _autocast() -> Any:
    kinds = ("cpu", "cuda")
    return torch.is_autocast_cache_enabled(), *(
        (torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds
    )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
