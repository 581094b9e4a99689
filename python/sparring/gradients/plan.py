"""A model as steps, for as long as nothing but its weights changes: `Plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from sparring.gradients.steps import Step
from sparring.tracing import Reads, fingerprint, forward_of, reads

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks"))
_OWN = frozenset(vars(nn.Module()))  # attributes that every module has


class Plan:
    """Steps that a model was taken apart into, or the reasons why it was not.

    Attributes
    ----------
    steps
        None where the model is left to autograd.
    reasons
        Why it is.
    sizes
        Bytes that an example takes, by its kind: see `Lowered.examples_in`.
    verdicts
        For each kind of input that the plan has met: why autograd does the work there, or None where the plan does;
        it was compared with the model then.
    """

    def __init__(self, steps: list[Step] | None, reasons: list[str]) -> None:
        self.steps, self.reasons = steps, reasons
        self.sizes: dict[Any, tuple[int, int]] = {}
        self.verdicts: dict[Any, str | None] = {}


class Signature:
    """What a plan depends on; `same` says whether that is as it was. Weights are not part of it."""

    def __init__(self, model: nn.Module) -> None:
        self.reads: Reads = reads(model.modules())
        self._parts = _parts(model)

    def same(self, model: nn.Module) -> bool:
        return not self.reads.changed() and self._parts == _parts(model)


def _parts(model: nn.Module) -> list[Any]:
    parts: list[Any] = [len(getattr(torch_module, name)) for name in _GLOBAL_HOOKS]
    for module in model.modules():
        values, kind = vars(module), type(module)
        parts.append((id(module), kind, forward_of(kind), *(len(values[name]) for name in _HOOKS if name in values)))
        trusted = kind.__module__.startswith(("torch.", "sparring."))
        parts.append([_seen(value, trusted or name in _OWN) for name, value in values.items()])
    return parts


def _seen(value: Any, shallow: bool) -> Any:
    if type(value) in (int, bool, str, float, type(None)):
        return value
    return id(value) if shallow else fingerprint(value)


def own_modules(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that a plan is made of; the members of an ensemble have plans of their own."""
    yield name, model
    if not getattr(model, "members_have_plans", False):
        for key, module in model.named_children():
            yield from own_modules(module, f"{name}.{key}" if name else key)


def obstacles(model: nn.Module) -> list[str]:
    """What makes a call of a module more than its forward."""
    if any(getattr(torch_module, name) for name in _GLOBAL_HOOKS):
        return ["global module hooks"]
    reasons = []
    for name, module in own_modules(model):
        label = f"{name or 'model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            reasons.append(f"{label}: a TorchScript module")
            continue
        if any(vars(module).get(hooks) for hooks in _HOOKS):
            reasons.append(f"{label}: has hooks")
        elif "forward" in vars(module):
            reasons.append(f"{label}: its forward is an attribute of the instance")
        elif "_call_impl" in vars(module) or type(module).__call__ is not nn.Module.__call__:
            reasons.append(f"{label}: is not called as modules are")
        elif getattr(module, "_compiled_call_impl", None) is not None:
            reasons.append(f"{label}: is compiled")
        for tensor_name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if type(tensor) not in (Tensor, nn.Parameter):
                reasons.append(f"{label}: {tensor_name} is a {type(tensor).__name__}")
    return reasons


_modes: Callable[[], list[Any]] = _get_current_function_mode_stack


def undisturbed(x: Tensor) -> bool:
    """Whether a call of torch's functions does what it says: no autocast, no mode of the caller's, a plain tensor."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled(x.device.type)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and all(type(mode) is DeviceContext for mode in _modes())
    )
