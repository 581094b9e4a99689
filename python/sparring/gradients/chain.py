"""From the graph of a forward to its steps."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from sparring.gradients import layers
from sparring.gradients.image_steps import Conv2d, MaxPool2d
from sparring.gradients.signature import is_plain
from sparring.gradients.steps import Activation, Identity, Linear, Live, NotLowered, Step

TensorsOf = Callable[[str, nn.Module], Any]

_SIZES = object()  # the shape of an activation
_UNKNOWN = object()  # an entry of it, not the batch size

_IN_PLACE = frozenset(
    getattr(operator, name) for name in dir(operator) if name.startswith("i") and name[1:] in dir(operator)
)


class NoChain(Exception):
    """With the list of reasons why a graph is not a chain of layers that are known."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def follow(graph: fx.Graph, model: nn.Module, tensors_of: TensorsOf) -> list[Step]:
    """The steps along the one path from input to output; `NoChain` where there is none.

    `tensors_of` a module of `model`, and its name, is something with its attributes and its tensors, or other ones.
    """
    return _Chain(model, tensors_of).follow(graph)


def listed(steps: Step | list[Step]) -> list[Step]:
    return steps if isinstance(steps, list) else [steps]


def fused(steps: list[Step]) -> list[Step]:
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


class _Chain:
    def __init__(self, model: nn.Module, tensors_of: TensorsOf) -> None:
        self.modules = dict(model.named_modules())
        self.tensors_of = tensors_of
        self.steps: list[Step] = []
        self.reasons: list[str] = []
        self.chain: list[fx.Node] = []
        self.sizes: dict[fx.Node, Any] = {}

    def follow(self, graph: fx.Graph) -> list[Step]:
        for node in graph.nodes:
            if node.op == "placeholder":
                self.chain.append(node)
            elif node.op == "output":
                if node.args[0] is not self.chain[-1]:
                    self.reasons.append("forward returns something else than its last activation")
            elif any(source in self.chain or source in self.sizes for source in node.all_input_nodes):
                self._visit(node)
            elif node.op != "get_attr" and not node.users:
                self.reasons.append(f"{_label(node, self.modules)}: its result is not used; does it change something?")
        if self.reasons:
            raise NoChain(self.reasons)
        return self.steps

    def _visit(self, node: fx.Node) -> None:
        size = self._size(node)
        if size is not None:
            self.sizes[node] = size
            return
        try:
            used = [source for source in node.all_input_nodes if source in self.chain]
            if used != [self.chain[-1]]:
                raise NotLowered("a branch: not a chain of layers")
            self.steps += listed(self._step(node))
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
            if len(node.args) != 1 or node.kwargs:
                raise NotLowered("called with more than an activation")
            return known_layer(module, self.tensors_of(str(node.target), module))
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
        if _changes_something(node):
            raise NotLowered(f"{node.name} changes a tensor in place")
        sources = {source: self._constant(source) for source in node.all_input_nodes}

        def compute() -> Any:
            args: Any = fx.map_arg(node.args, lambda source: sources[source]())
            kwargs: Any = fx.map_arg(node.kwargs, lambda source: sources[source]())
            target: Any = getattr(args[0], node.target) if isinstance(node.target, str) else node.target
            return target(*(args[1:] if isinstance(node.target, str) else args), **kwargs)

        return compute


def known_layer(module: nn.Module, tensors: Any) -> Step | list[Step]:
    """The steps of a layer that is known, with its `tensors`; its settings are read once, so they must not change."""
    settings = {*getattr(module, "__constants__", ())} - {"eps", "momentum"}  # which are read in every call
    for name in sorted(settings):
        if name in vars(module) and not is_plain(vars(module)[name]):
            raise NotLowered(f"its {name} is a {type(vars(module)[name]).__name__}, which may change unseen")
    found: Step | list[Step] = layers.MODULES[type(module)](tensors)
    return found


def _changes_something(node: fx.Node) -> bool:
    if "out" in node.kwargs or node.target in _IN_PLACE or node.target is operator.setitem:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _label(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(modules[str(node.target)]).__name__})"
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
