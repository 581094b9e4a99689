"""A network's forward as a graph of operations, each with what it does to distances."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from sparring.attacks._model import device_and_dtype
from sparring.gradients.plan import obstacles
from sparring.lipschitz import layers
from sparring.lipschitz.ambient import callers_device, generators_kept, quietly, seed
from sparring.lipschitz.batches import batch_obstacle, by_its_size, mixing
from sparring.lipschitz.gains.gain import Call, Gain, Refused, exactly, length, product, root, total
from sparring.lipschitz.gains.normalisation import channel_scale
from sparring.lipschitz.gains.rule import Branch, Join, Rule, axes_of
from sparring.lipschitz.gains.table import TABLE
from sparring.lipschitz.trees import leaves, tensors_in
from sparring.lipschitz.wide import changes, copied, difference, first_line, identical, recorded, sample, widened
from sparring.tracing import Untraceable, is_standard, record

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_UNKNOWN = object()  # the value of what could not be called


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
    operation
        Its name in `sparring.lipschitz.gains.table`, where it has one.
    """

    name: str
    kind: str
    join: Join | None
    gain: Gain | None = None
    operation: str = ""


class Graph:
    """A model's forward for one example, as operations with their constants.

    The model is copied; nothing of it is touched, nor the global generators. The copy is in float64 if that is the same
    function (`sparring.lipschitz.wide`), else as the model is.

    Attributes
    ----------
    steps
        What depends on the input, in order, the output last.
    refused
        Names and reasons, of steps and of the forward as a whole.
    input, output
        Nodes; None if the forward cannot be traced.
    other_function
        Why a copy in float64 is another function; "" if it is the same.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int], *, tol: float, certified: bool) -> None:
        self.steps: dict[fx.Node, Step] = {}
        self.refused: list[tuple[str, str]] = _obstacles(model)
        self.input: fx.Node | None = None
        self.output: fx.Node | None = None
        self.other_function = ""
        if self.refused:
            return
        self._values: dict[fx.Node, Any] = {}
        self._active: set[fx.Node] = set()
        self._along: dict[fx.Node, tuple[list[fx.Node], Any]] = {}  # what is worked on, and the dimensions
        self._scales: dict[fx.Node, Tensor] = {}  # of batch normalisations, which the layer before takes in
        self._known: dict[Any, tuple[Any, Any]] = {}
        self._tol, self._certified = tol, certified
        wide, self.other_function = widened(model, input_shape)
        inner = copied(model) if self.other_function else wide
        self._root = root = (
            nn.Sequential(inner) if layers.is_known(inner) or is_standard(inner) else inner
        )  # one operation cannot be traced
        x = sample(1, input_shape).to(*device_and_dtype(model)).to(device_and_dtype(root)[1])
        with torch.no_grad(), generators_kept(), quietly():
            try:
                seed(1)  # other numbers than in a call
                with callers_device():
                    self._graph = record(root, layers.is_known)
            except Untraceable as why:
                self.refused.append(("forward", str(why)))
                return
            self._order = {node: i for i, node in enumerate(self._graph.nodes)}
            seed(0)
            self._interpret(x.clone())
            if not self.refused:
                self._compare(x)
            if not self.refused:
                self.refused += [("forward", f"changes its own {name}") for name in changes(model, inner)]
            if not self.refused:
                self._check_batches(x)

    def value(self, node: fx.Node) -> Tensor:
        """Of a node, for the example that the graph was made with."""
        return cast(Tensor, self._values[node])

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

    def jumps(self) -> float:
        """How far results may be from those of the function without the jumps of `Slopes.jump`, in the norm."""
        found: dict[fx.Node, float] = {}
        for node, step in self.steps.items():
            if step.join is None:
                return math.inf
            found[node] = step.join.join([product(gain, found.get(b.source, 0.0)) for b, gain in step.join.parts])
            jump = step.gain.slopes.jump if step.gain is not None and step.gain.slopes is not None else 0.0
            if jump:
                found[node] = total([found[node], product(jump, root(self._values[node].numel()))])
        return float(found[cast(fx.Node, self.output)])

    # --- Values -----------------------------------------------------------------------------------------------------

    def _interpret(self, x: Tensor) -> None:
        for node in self._graph.nodes:
            if node.op == "placeholder" and self.input is None:
                self.input, self._values[node] = node, x
                self._active.add(node)
            elif node.op == "placeholder" and not node.args:
                self.refused.append(("forward", f"takes more than the input: {node.target}"))
                self._values[node] = None
            elif node.op == "output":
                self._end(node)
            elif node.op in ("placeholder", "get_attr"):
                self._values[node] = self._constant(node)
            else:
                self._work(node)

    def _end(self, node: fx.Node) -> None:
        self._values[node] = map_arg(node.args[0], lambda n: self._values[n])
        sources = [n for n in _nodes(node.args[0]) if n in self._active]  # what is returned twice counts twice
        join = Join(tuple((Branch(self._values[n], n), 1.0) for n in sources), length, "copies")
        self.steps[node], self.output = Step("output", "output", join), node

    def _work(self, node: fx.Node) -> None:
        """The value of a call, and, if it depends on the input, what it does to distances."""
        operands = [n for n in node.all_input_nodes if n in self._active]
        name, kind = self._named(node)
        tensors = [tensor for n in node.all_input_nodes for tensor in tensors_in(self._values[n])]
        versions = [_version(tensor) for tensor in tensors]
        if any(self._values[n] is _UNKNOWN for n in node.all_input_nodes):
            self._values[node] = _UNKNOWN
            self._active.add(node)
            return
        try:
            self._values[node] = self._call(node)
        except Exception as why:
            self._values[node] = _UNKNOWN
            self._active.add(node)
            self._refuse(node, name, kind, f"fails: {first_line(why)}")
            return
        changed = [t for t, version in zip(tensors, versions, strict=True) if _version(t) != version]
        try:
            if not operands:
                if changed:
                    raise Refused("changes a constant in place")
                return
            operation, rule, arguments = self._rule(node)
            if rule.work is None:
                return
            self._active.add(node)
            self._check_in_place(node, changed)
            join, gain = self._work_out(node, operation, rule, arguments)
        except Refused as why:
            self._active.add(node)
            self._refuse(node, name, kind, str(why))
            return
        if any(user in self._scales for user in node.users):
            kind += " + BatchNorm"
        self.steps[node] = Step(name, kind, join, gain, operation)

    def _refuse(self, node: fx.Node, name: str, kind: str, reason: str) -> None:
        self.refused.append((name, f"{kind}: {reason}"))
        self.steps[node] = Step(name, kind, None)

    def _call(self, node: fx.Node, others: Mapping[fx.Node, Any] | None = None) -> Any:
        """What the node computes; with `others` in place of some nodes' values."""
        values = {**self._values, **(others or {})}
        args, kwargs = cast(Any, map_arg((node.args, node.kwargs), lambda n: values[n]))
        with callers_device():
            if node.op == "call_module":
                module = self._module(node)
                if module.training and isinstance(module, _BATCH_NORMS):
                    return args[0].clone()  # a batch of one has no statistics; refused in any case
                return module(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], cast(str, node.target))(*args[1:], **kwargs)
            return cast(Any, node.target)(*args, **kwargs)

    def _constant(self, node: fx.Node) -> Any:
        """Of an attribute, or of an argument of forward that has a default."""
        if node.op == "placeholder":
            return node.args[0] if node.args else None
        found: Any = self._root
        for part in cast(str, node.target).split("."):
            found = getattr(found, part)
        return found

    def _again(self, x: Tensor) -> Iterable[tuple[fx.Node, Any]]:
        """Each node with its value for another input, in order."""
        values: dict[fx.Node, Any] = {cast(fx.Node, self.input): x}
        for node in self._graph.nodes:
            if node is self.input:
                pass
            elif node.op == "output":
                values[node] = map_arg(node.args[0], lambda n: values[n])
            elif node.op in ("placeholder", "get_attr"):
                values[node] = self._constant(node)
            else:
                values[node] = self._call(node, values)
            yield node, values[node]

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

    # --- Checks of what the graph takes for granted -----------------------------------------------------------------

    def _check_in_place(self, node: fx.Node, changed: Sequence[Tensor]) -> None:
        """What is changed in place must not be read again, by its node or by another that shares its memory."""
        memory = {tensor.untyped_storage().data_ptr() for tensor in changed}
        for other, value in self._values.items() if changed else ():
            shares = any(tensor.untyped_storage().data_ptr() in memory for tensor in tensors_in(value))
            if shares and other is not node and any(self._order[user] > self._order[node] for user in other.users):
                raise Refused("changes in place what is read again")

    def _compare(self, x: Tensor) -> None:
        """Forward may do what tracing does not see; then it does something else than its graph."""
        given = x.clone()
        traced = recorded(lambda x: [*self._again(x)], given)
        called = recorded(self._root, x.clone())
        found = difference(called.done, traced.done, identical, dtypes=True)
        if found:
            self.refused.append(
                ("forward", f"does something else than its traced graph, as where it changes in place: {found}")
            )

    def _check_batches(self, x: Tensor) -> None:
        """An example's result must not depend on the others of its batch."""
        found = mixing(self._again, x)
        for node, (operands, dims) in self._along.items():
            for operand in operands:
                value = self._values[operand]
                if axes_of(dims, value.ndim) & found.axes.get(operand, set()):
                    found.nodes.setdefault(node, "works along the batch")
        if not found.nodes and not found.fails:
            try:
                found.nodes = by_its_size(self._graph.nodes, self._active, self._values, self._again, x)
            except Exception as why:
                found.fails = f"cannot be called with a larger batch: {first_line(why)}"
        for node, reason in found.nodes.items():
            if node in self.steps:
                self._refuse(node, *self._named(node), reason)
        if not found.nodes:
            reason = found.fails or batch_obstacle(self._root, x)
            self.refused += [("forward", reason)] if reason else []

    # --- Constants --------------------------------------------------------------------------------------------------

    def _rule(self, node: fx.Node) -> tuple[str, Rule, dict[str, Any]]:
        """Of an operation its name, its rule, and its arguments by the rule's names, checked against what it admits."""
        args, kwargs = [*node.args], dict(node.kwargs)
        if node.op == "call_module":
            name, attributes = layers.module_operation(self._module(node))
            sizes_asked = name.startswith("conv_transpose") and len(args) + len(kwargs) <= 2
            if (len(args) > 1 or kwargs) and not sizes_asked:
                raise Refused("is called with more than the input")
            if any(n in self._active for n in _nodes((args[1:], kwargs))):
                raise Refused(TABLE[name].otherwise)
            args, kwargs = args[:1], attributes
        else:
            target = args.pop(1) if node.target is getattr else node.target
            name = layers.function_operation(target)
        rule = TABLE[name]
        if rule.work is None:
            if any(n in self._active for n in _nodes((args[1:], {k: v for k, v in kwargs.items() if k != "input"}))):
                raise Refused(rule.otherwise)
            return name, rule, {}
        arguments = rule.bound(args, kwargs)
        rule.check_operands(arguments, lambda value: [n for n in _nodes(value) if n in self._active])
        return name, rule, arguments

    def _work_out(
        self, node: fx.Node, name: str, rule: Rule, arguments: dict[str, Any]
    ) -> tuple[Join, Gain | None]:  # fmt: skip
        """How the bound of a node follows from its operands', once shapes and dtypes are as the rule states."""
        moving = [n for argument in rule.moving for n in _nodes(arguments[argument]) if n in self._active]
        if not moving:
            raise Refused(rule.otherwise)
        source = moving[0]
        out, x = self._values[node], self._values[source]
        if not isinstance(x, Tensor):
            if name != "getitem" or rule.joins:
                raise Refused("is given several tensors")
            return Join(((Branch(x, source), 1.0),), total, "one of several"), exactly(1.0, "one of several")
        _check_value(out)
        operands = [cast(Tensor, self._values[n]) for n in moving]
        if not all(isinstance(operand, Tensor) for operand in operands):
            raise Refused("is given several tensors")
        values = map_arg(arguments, lambda n: self._values[n])
        rule.check_result(operands, out, cast(Any, values))
        if rule.along is not None:
            self._along[node] = moving, cast(Any, values)[rule.along]
        if rule.joins:
            branches = cast(Any, map_arg(arguments, self._operand))
            return cast(Join, _applied(rule, out, **branches)), None
        if node in self._scales:
            gain = exactly(1.0, "in the layer before")
        else:
            call = Call(
                x, out, lambda x: self._call(node, {source: x}), self._tol, self._certified, self._known,
                self._scale_after(node),
            )  # fmt: skip
            gain = cast(Gain, _applied(rule, call, **{**cast(Any, values), "input": None}))
        return Join(((Branch(x, source), gain.upper),), total, gain.method), gain

    def _operand(self, node: fx.Node) -> Any:
        return Branch(self._values[node], node) if node in self._active else self._values[node]

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
        normal = scale.abs() >= torch.finfo(scale.dtype).tiny
        if not bool((scale.isfinite() & (normal | ((scale == 0) & (norm.weight == 0)))).all()):
            return None
        self._scales[after] = scale
        return scale


def _applied(rule: Rule, first: Any, **arguments: Any) -> Any:
    """What a rule gives; where it fails the operation is refused."""
    assert rule.work is not None
    if not rule.joins:
        arguments.pop("input")
    try:
        return _spread(rule.work, first, arguments)
    except RuntimeError as why:
        raise Refused(str(why).strip().splitlines()[0]) from None


def _spread(work: Any, first: Any, arguments: dict[str, Any]) -> Any:
    """Call a function with its arguments by name, as `inspect.BoundArguments` has them."""
    bound = inspect.BoundArguments(inspect.signature(work), cast(Any, {}))
    parameters = [*bound.signature.parameters]
    bound.arguments.update({parameters[0]: first, **arguments})
    return work(*bound.args, **bound.kwargs)


def _check_value(value: Any) -> None:
    """Refused unless a value is made of tensors, whose numbers can be seen and are finite."""
    for one in leaves(value):
        if not isinstance(one, Tensor) or one.is_meta or one.is_sparse or one.is_quantized:
            raise Refused("gives something else than plain tensors with numbers")
        if not bool(one.isfinite().all()):
            raise Refused("gives NaN or inf")


def _obstacles(model: nn.Module) -> list[tuple[str, str]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or a state dict, not {type(model).__name__}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    without = [("model", f"{name} is on the meta device: it has no numbers") for name, t in tensors if t.is_meta]
    return [("model", reason) for reason in obstacles(model)] + without


def _nodes(value: Any) -> list[fx.Node]:
    """The nodes in an argument, as often as they are there."""
    found: list[fx.Node] = []
    map_arg(value, found.append)
    return found


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; what was made in inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version
