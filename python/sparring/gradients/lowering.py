"""From a module to the steps of its forward and backward pass: `lower`."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from sparring.gradients import layers
from sparring.gradients.image_steps import Conv2d, MaxPool2d
from sparring.gradients.lowered import Lowered, Model
from sparring.gradients.steps import Activation, Identity, Linear, Live, NotLowered, Step

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (int, float, bool, str, tuple)
_SIZES = object()  # the shape of an activation
_UNKNOWN = object()  # an entry of it, not the batch size

_Plan = tuple[list[Step] | None, list[str]]
_plans: weakref.WeakKeyDictionary[nn.Module, tuple[Any, _Plan, dict[Any, tuple[int, int]]]] = (
    weakref.WeakKeyDictionary()
)


def lower(model: Model) -> Lowered:
    """Take a model apart into layers whose backward pass towards the input is hand-derived.

    Lowered are chains of linear layers, convolutions, ReLU, sigmoid, tanh, leaky ReLU and softplus, max- and
    average-pooling, flatten and reshape, batch normalisation and dropout in eval mode, arithmetic with constants (a
    normalisation), softmax, and `sparring.Ensemble`, in a module whose forward ``torch.fx`` can trace. Anything else is
    left to autograd as a whole, and ``.reasons`` says why.

    The result is accepted wherever a model is. It is cached: lowering the same model again costs microseconds, unless a
    module, an attribute, the mode or a hook of it changed. Contents of lists and globals that forward reads are not
    watched.
    """
    if isinstance(model, Lowered):
        return model
    if not isinstance(model, nn.Module):
        return Lowered(model, None, [f"{type(model).__name__} is not a torch.nn.Module"])
    signature = _signature(model)
    known = _plans.get(model)
    if known is None or known[0] != signature:
        known = _plans[model] = (signature, _plan(model), {})
    return Lowered(model, *known[1], known[2])


def _signature(model: nn.Module) -> Any:
    """What the steps depend on; differs after any change to it. Weights are not part of it."""
    parts: list[Any] = [len(getattr(torch_module, f"_global{name}")) for name in _HOOKS[:2]]
    for module in model.modules():
        values = vars(module)
        parts.append((id(module), *(len(values[name]) for name in _HOOKS)))
        parts.append(tuple(value if type(value) in _PLAIN else id(value) for value in values.values()))
    return parts


def _plan(model: nn.Module) -> _Plan:
    reasons = obstacles(model)
    if reasons:
        return None, reasons
    if type(model) in layers.MODULES:
        try:
            step = layers.MODULES[type(model)](weakref.proxy(model))  # the cache must not keep its key alive
        except NotLowered as why:
            return None, [f"{type(model).__name__}: {why}"]
        return _listed(step), [reason for one in _listed(step) for reason in getattr(one, "reasons", [])]
    graph = traced(model)
    return (None, [graph]) if isinstance(graph, str) else _Chain(model).follow(graph)


def obstacles(model: nn.Module) -> list[str]:
    """What makes a call of a module more than its forward."""
    if any(getattr(torch_module, f"_global{name}") for name in _HOOKS[:2]):
        return ["global module hooks"]
    reasons = []
    for name, module in model.named_modules():
        label = f"{name or 'model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            reasons.append(f"{label}: a TorchScript module")
        elif any(vars(module)[hooks] for hooks in _HOOKS):
            reasons.append(f"{label}: has hooks")
        elif "forward" in vars(module):
            reasons.append(f"{label}: its forward is an attribute of the instance")
        elif "_call_impl" in vars(module) or type(module).__call__ is not nn.Module.__call__:
            reasons.append(f"{label}: is not called as modules are")
        for tensor_name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if type(tensor) not in (Tensor, nn.Parameter):
                reasons.append(f"{label}: {tensor_name} is a {type(tensor).__name__}")
    return reasons


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # arithmetic with them is recorded, not done

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in layers.MODULES or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module) -> fx.Graph | str:
    """The graph of forward, or why there is none; `model` and torch's generator are left as they were."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            graph = _Tracer().trace(model)
    except Exception as error:  # forward is the user's code, and met proxies in place of tensors
        return f"forward cannot be traced: {type(error).__name__}: {error}".splitlines()[0]
    finally:
        changed = set()
        for module, values in before:
            now = vars(module)
            changed |= {name for name in now if name not in values or values[name] is not now[name]}
            now.clear()
            now.update(values)
    if changed:
        made = all(name.startswith("_tensor_constant") for name in changed)
        return "forward makes a tensor" if made else f"forward sets {', '.join(sorted(changed))}"
    return graph


def _listed(steps: Step | list[Step]) -> list[Step]:
    return steps if isinstance(steps, list) else [steps]


def _fused(steps: list[Step]) -> list[Step]:
    """Activations as part of the layer before, ReLU as part of the max-pooling after it."""
    fused: list[Step] = []
    for step in steps:
        last = fused[-1] if fused else None
        if isinstance(step, Activation) and isinstance(last, (Linear, Conv2d)) and last.activation is None:
            last.activation = step
        elif isinstance(step, MaxPool2d) and isinstance(last, Conv2d) and last.activation is not None:
            if last.activation.name == "relu":
                last.activation, step.relu = None, True
            fused.append(step)
        elif not isinstance(step, Identity):
            fused.append(step)
    return fused


def lowered_with(model: nn.Module, tensors_of: Callable[[str, nn.Module], Any], call: Model) -> Lowered:
    """`lower` for a network like `model` whose tensors are elsewhere, and that is called by `call`.

    `tensors_of` a module of `model`, and its name, is something with its attributes and the other tensors.
    """
    reasons = obstacles(model)
    if reasons:
        return Lowered(call, None, reasons)
    if type(model) in layers.MODULES:
        return Lowered(call, _listed(layers.MODULES[type(model)](tensors_of("", model))), [])
    graph = traced(model)
    return Lowered(call, *((None, [graph]) if isinstance(graph, str) else _Chain(model, tensors_of).follow(graph)))


class _Chain:
    """Follows a graph along the one path from input to output."""

    def __init__(self, model: nn.Module, tensors_of: Callable[[str, nn.Module], Any] | None = None) -> None:
        self.modules = dict(model.named_modules())
        self.tensors_of = tensors_of or (lambda name, module: module if name else weakref.proxy(module))
        self.steps: list[Step] = []
        self.reasons: list[str] = []
        self.chain: list[fx.Node] = []
        self.sizes: dict[fx.Node, Any] = {}

    def follow(self, graph: fx.Graph) -> _Plan:
        for node in graph.nodes:
            if node.op == "placeholder":
                if self.chain:
                    return None, ["forward takes more than one argument"]
                self.chain.append(node)
            elif node.op == "output":
                if node.args[0] is not self.chain[-1]:
                    self.reasons.append("forward returns something else than its last activation")
            elif any(source in self.chain or source in self.sizes for source in node.all_input_nodes):
                self._visit(node)
        if self.reasons:
            return None, self.reasons
        return _fused(self.steps), [reason for step in self.steps for reason in getattr(step, "reasons", [])]

    def _visit(self, node: fx.Node) -> None:
        size = self._size(node)
        if size is not None:
            self.sizes[node] = size
            return
        try:
            used = [source for source in node.all_input_nodes if source in self.chain]
            if used != [self.chain[-1]]:
                raise NotLowered("a branch: not a chain of layers")
            self.steps += _listed(self._step(node))
        except NotLowered as why:
            self.reasons.append(f"{_label(node, self.modules)}: {why}")
        self.chain.append(node)

    def _size(self, node: fx.Node) -> Any:
        """What `node` is if it is a shape or an entry of one: the batch size is known by name."""
        source: Any
        source, *rest = node.args or (None,)
        if source in self.chain and not node.kwargs:
            if node.target == "size":
                return (layers.BATCH if rest == [0] else _UNKNOWN) if rest else _SIZES
            if node.target is getattr and rest == ["shape"]:
                return _SIZES
        if source in self.sizes and self.sizes[source] is _SIZES and node.target is operator.getitem:
            return layers.BATCH if rest == [0] else _UNKNOWN
        return None

    def _step(self, node: fx.Node) -> Step | list[Step]:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if type(module) not in layers.MODULES:
                raise NotLowered("not a layer that is known")
            return layers.MODULES[type(module)](self.tensors_of(str(node.target), module))
        table: dict[Any, Any] = layers.METHODS if node.op == "call_method" else layers.FUNCTIONS
        if node.target not in table:
            raise NotLowered("not an operation that is known")
        kwargs = dict(node.kwargs)
        args = [kwargs.pop("input")] if not node.args and "input" in kwargs else [*node.args]
        if args[0] is not self.chain[-1] and node.target in layers.COMMUTATIVE:
            args.reverse()
        if args[0] is not self.chain[-1]:
            raise NotLowered("the activation is not its first argument")
        try:
            options = {name: self._argument(value) for name, value in kwargs.items()}
            step: Step = table[node.target](*map(self._argument, args[1:]), **options)
            return step
        except TypeError as error:
            raise NotLowered(f"its arguments ({error})") from error

    def _argument(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(self._argument(item) for item in value)
        if not isinstance(value, fx.Node):
            return value
        return self.sizes[value] if value in self.sizes else self._constant(value)

    def _constant(self, node: fx.Node) -> Live:
        """Reads or computes a value that does not depend on the input."""
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            return layers.live(self.tensors_of(path, self.modules[path]), name)
        if node.op not in ("call_function", "call_method") or any(n in self.chain for n in node.all_input_nodes):
            raise NotLowered(f"{node.name} is not a constant")
        sources = {source: self._constant(source) for source in node.all_input_nodes}

        def compute() -> Any:
            args: Any = fx.map_arg(node.args, lambda source: sources[source]())
            kwargs: Any = fx.map_arg(node.kwargs, lambda source: sources[source]())
            target: Any = getattr(args[0], node.target) if isinstance(node.target, str) else node.target
            return target(*(args[1:] if isinstance(node.target, str) else args), **kwargs)

        return compute


def _label(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(modules[str(node.target)]).__name__})"
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
