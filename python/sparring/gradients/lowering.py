"""From a module to the steps of its forward and backward pass: `lower`."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import fx, nn

from sparring.gradients import layers
from sparring.gradients.chain import NoChain, TensorsOf, follow, fused, known_layer, listed
from sparring.gradients.lowered import Lowered, Model
from sparring.gradients.plan import Plan, obstacles
from sparring.gradients.signature import Signature
from sparring.gradients.steps import Autograd, NotLowered, Step
from sparring.tracing import Reads, Untraceable, trace

_plans: weakref.WeakKeyDictionary[nn.Module, tuple[Signature, Plan]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def lower(model: Model) -> Lowered:
    """Take a model apart into layers whose backward pass towards the input is hand-derived.

    Lowered are chains of linear layers, convolutions, ReLU, sigmoid, tanh, leaky ReLU and softplus, max- and
    average-pooling, flatten and reshape, batch normalisation and dropout in eval mode, arithmetic with constants (a
    normalisation), softmax, and `sparring.Ensemble`, in `torch.nn.Sequential` or in a module whose forward can be
    traced. Anything else is left to autograd as a whole, and ``.reasons`` says why.

    What is promised: the plan is compared with the model on the first inputs that it meets, logits and one gradient,
    and the model is asked twice; where they differ, autograd does the work, and ``.reasons`` says so. The plan is made
    anew where a module, an attribute, the mode or a hook changed, or a plain value or function outside of the model
    that forward reads. A forward that reads lists, dicts or objects which are not the model's, draws random numbers,
    hides something from autograd (``torch.no_grad``, a `torch.autograd.Function`), or changes what it holds is left to
    autograd. Forward is traced on a copy: neither the live model nor any other thread sees anything of it.

    Weights are those of the moment when a call (`sparring.input_grad`, an attack) begins, however they were changed.

    The result is accepted wherever a model is. Lowering the same model again costs microseconds. A deep copy, or what
    comes out of a pickle, is that of a copy of the model.
    """
    if isinstance(model, Lowered):
        return model.renewed(lower)
    if not isinstance(model, nn.Module):
        return Lowered(model, Plan(None, [f"{type(model).__name__} is not a torch.nn.Module"]))
    with _lock:
        known = _plans.get(model)
    if known is None or not known[0].same(model) or any(reads.changed() for reads in known[1].reads):
        try:
            known = Signature(model), _plan(model)
        except RuntimeError as error:  # another thread changes what is looked at
            return Lowered(model, Plan(None, [str(error)]))
        with _lock:
            _plans[model] = known
    return Lowered(model, known[1])


def lowered_with(model: nn.Module, tensors_of: TensorsOf, call: Model, like: nn.Module) -> Lowered:
    """`lower` for a network like `model` whose tensors are elsewhere, and that is called by `call`.

    `tensors_of` a module of `model`, and its name, is something with its attributes and the other tensors. What forward
    reads is watched in `like`, which has modules of the same names.
    """
    reasons = obstacles(model, _has_plans_inside)
    return Lowered(call, Plan(None, reasons) if reasons else _made(model, tensors_of, like))


def traced(model: nn.Module) -> fx.Graph | str:
    """The graph of forward, whose nodes are the layers that are known, or why there is none."""
    try:
        return trace(model, _is_known)[0]
    except Untraceable as why:
        return str(why)


def _plan(model: nn.Module) -> Plan:
    reasons = obstacles(model, _has_plans_inside)
    # The cache must not keep its key alive.
    plan = (
        Plan(None, reasons)
        if reasons
        else _made(model, lambda name, module: module if name else weakref.proxy(module), model)
    )
    plan.by_autograd = _by_autograd(model, weakref.proxy(model))
    return plan


def _by_autograd(model: nn.Module, reference: Any) -> list[Step] | None:
    """Autograd on each member of an ensemble, and what is in front of it, so that the mixture's loss is what it is."""
    kind: Any = type(model)
    if obstacles(model, lambda part: True):  # what it is called with counts, too
        return None
    if kind in layers.MODULES and hasattr(kind, "members_by_autograd"):
        return list(kind.members_by_autograd(reference))
    if type(model) is not nn.Sequential or not len(model):
        return None
    *before, last = model
    behind = _by_autograd(last, last)
    return behind and [Autograd(nn.Sequential(*before).train(model.training)), *behind]


def _made(model: nn.Module, tensors_of: TensorsOf, like: nn.Module) -> Plan:
    reads: list[Reads] = []
    try:
        steps = fused(_walk(model, "", tensors_of, like, reads))
    except NoChain as why:
        return Plan(None, why.reasons)
    reads += [one for step in steps for plan in getattr(step, "plans", []) for one in plan.reads]
    return Plan(steps, [reason for step in steps for reason in getattr(step, "reasons", [])], reads)


def _walk(module: nn.Module, name: str, tensors_of: TensorsOf, like: nn.Module, reads: list[Reads]) -> list[Step]:
    """Steps of a module: of a layer that is known, of each part of a `Sequential`, or of a forward that is traced."""
    kind = type(module)
    label = f"{name} ({kind.__name__})" if name else kind.__name__
    if kind in layers.MODULES:
        try:
            return listed(known_layer(module, tensors_of(name, module)))
        except NotLowered as why:
            raise NoChain([f"{label}: {why}"]) from None
    prefix = f"{name}." if name else ""
    if kind is nn.Sequential:
        parts, reasons = [], []
        for key, part in module._modules.items():
            try:
                parts += _walk(part, prefix + key, tensors_of, like, reads)  # type: ignore[arg-type]
            except NoChain as why:
                reasons += why.reasons
        if reasons:
            raise NoChain(reasons)
        return parts
    if kind.__module__.startswith(("torch.nn", "torch.ao.nn")):
        raise NoChain([f"{label}: not a layer that is known"])
    try:
        graph, read = trace(module, _is_known)
        read.bind(like, name)
        reads.append(read)
    except Untraceable as why:
        raise NoChain([str(why) if not name else f"{label}: {why}"]) from None
    try:
        return follow(graph, module, lambda inner, part: tensors_of(_joined(name, inner), part))
    except NoChain as why:
        raise NoChain([prefix + reason for reason in why.reasons]) from None


def _has_plans_inside(module: nn.Module) -> bool:
    """Whether the modules in a module are lowered by themselves: the members of an ensemble."""
    return type(module) in layers.MODULES and hasattr(module, "members_have_plans")


def _is_known(module: nn.Module) -> bool:
    return type(module) in layers.MODULES


def _joined(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name and inner else name or inner
