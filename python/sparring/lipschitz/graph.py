"""A network's forward as a graph of operations, each with what it does to distances."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from sparring.attacks._model import device_and_dtype
from sparring.gradients.lowering import obstacles
from sparring.lipschitz import layers
from sparring.lipschitz.enclosure import Enclosure
from sparring.lipschitz.gains.arithmetic import JOINS, Branch, Join
from sparring.lipschitz.gains.gain import Call, Gain, Refused, exactly, length, product, total
from sparring.lipschitz.gains.normalisation import channel_scale

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_UNKNOWN = object()  # the value of what could not be called

# What depends on the shape of an activation alone.
_SHAPE_METHODS = (
    "size",
    "dim",
    "ndimension",
    "numel",
    "is_floating_point",
    "new_zeros",
    "new_ones",
    "new_full",
    "get_device",
)
_LIKE = ("view_as", "reshape_as", "expand_as", "type_as")  # of their second argument
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "is_cuda")
_SHAPE_FUNCTIONS = (torch.zeros_like, torch.ones_like, torch.full_like, torch.numel, torch.is_floating_point)


@dataclass(frozen=True)
class Step:
    """What a node of the graph does.

    Attributes
    ----------
    name, kind
        Of the layer, and of the operation.
    join
        What the result depends on, and how its bound follows from theirs; None if the step is refused.
    gain
        Its constant, where it has one operand and one constant.
    """

    name: str
    kind: str
    join: Join | None
    gain: Gain | None = None


class Graph:
    """A model's forward for one example, as operations with their constants.

    The model is copied; nothing of it is touched, nor the global generator.

    Attributes
    ----------
    steps
        What depends on the input, in order, the output last.
    refused
        Names and reasons, of steps and of the forward as a whole.
    input, output
        Nodes; None if the forward cannot be traced.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int], *, tol: float, certified: bool) -> None:
        self.steps: dict[fx.Node, Step] = {}
        self.refused: list[tuple[str, str]] = _obstacles(model)
        self.input: fx.Node | None = None
        self.output: fx.Node | None = None
        if self.refused:
            return
        self._values: dict[fx.Node, Any] = {}
        self._active: set[fx.Node] = set()
        self._scales: dict[fx.Node, Tensor] = {}  # of batch normalisations, which the layer before takes in
        self._known: dict[Any, tuple[Tensor, Enclosure]] = {}
        self._tol, self._certified = tol, certified
        self._root = root = _copied(model)
        device, dtype = device_and_dtype(root)
        x = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = x.to(device, dtype)
        with torch.inference_mode(False), torch.no_grad(), generators_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about the user's model, which is only tried out here
            try:
                self._graph = _Tracer().trace(root, concrete_args=_defaults(root))
            except Exception as why:  # forward is the user's code, and met proxies in place of tensors
                self.refused.append(("forward", _line(f"cannot be traced: {type(why).__name__}: {why}")))
                return
            self._order = {node: i for i, node in enumerate(self._graph.nodes)}
            torch.manual_seed(0)
            self._interpret(x.clone())
            if not self.refused:
                torch.manual_seed(0)
                self._compare(x)

    def passes_on(self, node: fx.Node) -> bool:
        """Whether a step passes on all entries of its operand as they are, in the same order."""
        gain, join = self.steps[node].gain, self.steps[node].join
        if node in self._scales:
            return True
        if gain is None or join is None or gain.method != "copies":
            return False
        part = join.parts[0][0]
        count = part.value.numel()
        numbered = torch.arange(count, dtype=torch.float64, device=part.value.device)
        with torch.no_grad():
            result = self._call(node, {part.source: numbered.view(part.value.shape)})
        return isinstance(result, Tensor) and torch.equal(result.flatten(), numbered)

    def bounds(self, shortcuts: Mapping[fx.Node, tuple[fx.Node, float]] | None = None) -> dict[fx.Node, float]:
        """The Lipschitz constant of each node as a function of the input, bounded.

        A shortcut gives a node's constant as a function of an earlier node, where that is known in another way.
        """
        found = {cast(fx.Node, self.input): 1.0}
        for node, step in self.steps.items():
            bound = math.inf
            if step.join is not None:
                bound = step.join.join([product(gain, found.get(b.source, math.inf)) for b, gain in step.join.parts])
            if shortcuts and node in shortcuts:
                start, constant = shortcuts[node]
                bound = min(bound, product(constant, found[start]))
            found[node] = bound
        return found

    # --- Values -----------------------------------------------------------------------------------------------------

    def _interpret(self, x: Tensor) -> None:
        for node in self._graph.nodes:
            if node.op == "placeholder" and self.input is None:
                self.input, self._values[node] = node, x
                self._active.add(node)
            elif node.op == "placeholder":
                if not node.args:
                    self.refused.append(("forward", f"takes more than the input: {node.target}"))
                self._values[node] = node.args[0] if node.args else None
            elif node.op == "get_attr":
                self._values[node] = _attribute(self._root, cast(str, node.target))
            elif node.op == "output":
                self._end(node)
            else:
                self._work(node)

    def _end(self, node: fx.Node) -> None:
        self._values[node] = map_arg(node.args[0], lambda n: self._values[n])
        sources = [n for n in node.all_input_nodes if n in self._active]
        join = Join(tuple((Branch(self._values[n], n), 1.0) for n in sources), length, "copies")
        self.steps[node], self.output = Step("output", "output", join), node

    def _work(self, node: fx.Node) -> None:
        """The value of a call, and, if it depends on the input, what it does to distances."""
        operands = [n for n in node.all_input_nodes if n in self._active]
        if not operands or _is_shape(node):
            self._values[node] = self._call(node)
            return
        self._active.add(node)
        if any(self._values[n] is _UNKNOWN for n in operands):
            self._values[node] = _UNKNOWN
            return
        name, kind = self._named(node)
        tensors = [tensor for n in node.all_input_nodes for tensor in _tensors(self._values[n])]
        versions = [_version(tensor) for tensor in tensors]
        try:
            self._values[node] = self._call(node)
        except Exception as why:
            self._values[node] = _UNKNOWN
            self._refuse(node, name, kind, _line(f"fails: {type(why).__name__}: {why}"))
            return
        changed = [t for t, version in zip(tensors, versions, strict=True) if _version(t) != version]
        try:
            self._check_in_place(node, changed)
            join, gain = self._rule(node)
            if not all(tensor.is_floating_point() for tensor in _tensors(self._values[node])):
                raise Refused("gives whole numbers, so it jumps")
        except Refused as why:
            self._refuse(node, name, kind, str(why))
            return
        if any(user in self._scales for user in node.users):
            kind += " + BatchNorm"
        self.steps[node] = Step(name, kind, join, gain)

    def _refuse(self, node: fx.Node, name: str, kind: str, reason: str) -> None:
        self.refused.append((name, f"{kind}: {reason}"))
        self.steps[node] = Step(name, kind, None)

    def _call(self, node: fx.Node, others: Mapping[fx.Node, Any] | None = None) -> Any:
        """What the node computes; with `others` in place of some nodes' values."""
        values = {**self._values, **(others or {})}
        args, kwargs = cast(Any, map_arg((node.args, node.kwargs), lambda n: values[n]))
        if node.op == "call_module":
            module = self._module(node)
            if module.training and isinstance(module, _BATCH_NORMS):
                return args[0].clone()  # a batch of one has no statistics; refused in any case
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], cast(str, node.target))(*args[1:], **kwargs)
        return cast(Any, node.target)(*args, **kwargs)

    def _module(self, node: fx.Node) -> nn.Module:
        return self._root.get_submodule(cast(str, node.target))

    def _named(self, node: fx.Node) -> tuple[str, str]:
        """Of a module its name and class; of another call where it stands, and what is called."""
        if node.op == "call_module":
            return cast(str, node.target), type(self._module(node)).__name__.removeprefix("Parametrized")
        inside = [*node.meta.get("nn_module_stack", {})]
        target: Any = node.args[1] if node.target is getattr else node.target
        called = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        return ".".join([*inside[-1:], node.name]), called

    def _check_in_place(self, node: fx.Node, changed: Sequence[Tensor]) -> None:
        """What is changed in place must not be read again, by its node or by another that shares its memory."""
        memory = {tensor.untyped_storage().data_ptr() for tensor in changed}
        for other, value in self._values.items() if changed else ():
            shares = any(tensor.untyped_storage().data_ptr() in memory for tensor in _tensors(value))
            if shares and other is not node and any(self._order[user] > self._order[node] for user in other.users):
                raise Refused("changes in place what is read again")

    def _compare(self, x: Tensor) -> None:
        """Forward may do what tracing does not see; then it computes something else than its graph."""
        traced = [*_tensors(self._values[cast(fx.Node, self.output)])]
        called = [*_tensors(self._root(x))]
        alike = len(traced) == len(called) and all(
            a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-5, equal_nan=True)
            for a, b in zip(traced, called, strict=True)
        )
        if not alike:
            self.refused.append(
                ("forward", "computes something else than its traced graph, as where it changes in place")
            )

    # --- Constants --------------------------------------------------------------------------------------------------

    def _rule(self, node: fx.Node) -> tuple[Join, Gain | None]:
        """How the bound of a node follows from its operands'."""
        positional, named = [*node.args], dict(node.kwargs)
        if node.op == "call_module":
            name, attributes = layers.module_operation(self._module(node))
        else:
            target = positional.pop(1) if node.target is getattr else node.target
            name, attributes = layers.function_operation(target), {}
        if name in JOINS:
            return self._joined(node, name), None
        source = positional.pop(0) if positional else named.pop("input", None)
        others = [] if name in _LIKE else _nodes((positional, named))
        if not isinstance(source, fx.Node) or any(n in self._active for n in others):
            raise Refused("takes another argument than the first that depends on the input")
        if node.op == "call_module":
            if (positional or named) and not name.startswith("conv_transpose"):  # which takes the output's size
                raise Refused("is called with more than the input")
            positional, named = [], attributes
        if node in self._scales:
            gain = exactly(1.0, "in the layer before")
        elif isinstance(self._values[source], Tensor):
            options, settings = map_arg((tuple(positional), named), lambda n: self._values[n])
            gain = self._gain(node, name, source, options, settings)
        elif name == "getitem":
            gain = exactly(1.0, "one of several")
        else:
            raise Refused("is given several tensors")
        return Join(((Branch(self._values[source], source), gain.upper),), total, gain.method), gain

    def _gain(self, node: fx.Node, name: str, source: fx.Node, options: Any, settings: dict[str, Any]) -> Gain:
        rule = layers.RULES[name]
        call = Call(
            self._values[source], self._values[node], lambda x: self._call(node, {source: x}), self._tol,
            self._certified, self._known, self._scale_after(node),
        )  # fmt: skip
        return cast(Gain, _applied(rule, call, *options, **settings))

    def _scale_after(self, node: fx.Node) -> Tensor | None:
        """What a batch normalisation multiplies a layer's channels by, if nothing else reads the layer's result."""
        if node.op != "call_module" or not layers.has_channels(self._module(node), self._values[node]):
            return None
        after = next(iter(node.users)) if len(node.users) == 1 else None
        if after is None or after.op != "call_module" or after.args != (node,) or after.kwargs:
            return None
        norm = self._module(after)
        if not isinstance(norm, _BATCH_NORMS) or norm.training or norm.running_var is None:
            return None
        scale = channel_scale(norm.running_var, norm.weight, norm.eps)
        if not bool(scale.isfinite().all()):
            return None
        self._scales[after] = scale
        return scale

    def _joined(self, node: fx.Node, name: str) -> Join:
        def operand(n: fx.Node) -> Any:
            value = self._values[n]
            if n not in self._active:
                return value
            if not isinstance(value, Tensor):
                raise Refused("is given several tensors")
            return Branch(value, n)

        args, kwargs = map_arg((node.args, node.kwargs), operand)
        return cast(Join, _applied(JOINS[name], self._values[node], *args, **kwargs))


def generators_kept() -> AbstractContextManager[None]:
    """On exit the global generators, on every device in use, are as they were."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.random.fork_rng(range(torch.cuda.device_count()) if used else ())


def _applied(rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a rule gives; where the call has other arguments than it knows, or it fails, the operation is refused."""
    try:
        inspect.signature(rule).bind(*args, **kwargs)
    except TypeError as why:
        raise Refused(f"is called in a way that is not known: {why}") from None
    try:
        return rule(*args, **kwargs)
    except RuntimeError as why:
        raise Refused(_line(str(why))) from None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return layers.is_known(m) or super().is_leaf_module(m, module_qualified_name)


def _obstacles(model: nn.Module) -> list[tuple[str, str]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or a state dict, not {type(model).__name__}")
    return [("model", reason) for reason in obstacles(model)]


def _copied(model: nn.Module) -> nn.Module:
    """A copy, whose forward can be traced: a module that stands for one operation is put inside another."""
    try:
        root = copy.deepcopy(model)
    except Exception as why:
        raise ValueError(f"model cannot be copied: {why}") from why
    return nn.Sequential(root) if _Tracer().is_leaf_module(root, "") else root


def _defaults(root: nn.Module) -> dict[str, Any]:
    """Arguments of forward that have a default keep it."""
    _, *others = inspect.signature(root.forward).parameters.values()
    return {p.name: p.default for p in others if p.default is not inspect.Parameter.empty}


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    if node.target is getattr:
        return node.args[1] in _SHAPE_ATTRIBUTES
    return node.target in _SHAPE_FUNCTIONS


def _attribute(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    map_arg(value, found.append)
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; what was made in inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _line(text: str) -> str:
    return text.strip().splitlines()[0]
