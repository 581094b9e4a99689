"""A model as steps, for as long as nothing but its weights changes: `Plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from sparring.gradients.originals import patched
from sparring.gradients.signature import GLOBAL_HOOKS, HOOKS
from sparring.gradients.steps import Step
from sparring.tracing import Reads, look_up


class Plan:
    """Steps that a model was taken apart into, or the reasons why it was not.

    Attributes
    ----------
    steps
        None where the model is left to autograd.
    reasons
        Why it is.
    reads
        What the model's forwards read beside their arguments.
    sizes
        Bytes that an example takes, by its kind: see `Lowered.examples_in`.
    by_autograd
        What stands in for the steps, where it is not autograd on the model as a whole.
    verdicts
        For each kind of input that the plan has met: why autograd does the work there, or None where the plan does;
        it was compared with the model then.
    """

    def __init__(self, steps: list[Step] | None, reasons: list[str], reads: Sequence[Reads] = ()) -> None:
        self.steps, self.reasons, self.reads = steps, reasons, reads
        self.by_autograd: list[Step] | None = None
        self.sizes: dict[Any, tuple[int, int]] = {}
        self.verdicts: dict[Any, str | None] = {}


def _modules_of(
    model: nn.Module, stops_at: Callable[[nn.Module], bool] | None, name: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    yield name, model
    if stops_at is None or not stops_at(model):
        for key, module in model.named_children():
            yield from _modules_of(module, stops_at, f"{name}.{key}" if name else key)


def obstacles(model: nn.Module, stops_at: Callable[[nn.Module], bool] | None = None) -> list[str]:
    """What makes a call of a module more than its forward; not looked for inside of modules that it `stops_at`."""
    if any(getattr(torch_module, name) for name in GLOBAL_HOOKS):
        return ["global module hooks"]
    if patched():
        return [f"torch's {', '.join(patched())} is not torch's own"]
    reasons = []
    for name, module in _modules_of(model, stops_at):
        label = f"{name or 'model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            reasons.append(f"{label}: a TorchScript module")
            continue
        if any(vars(module).get(hooks) for hooks in HOOKS):
            reasons.append(f"{label}: has hooks")
        elif shadowed := [key for key in vars(module) if callable(look_up(type(module), key))]:
            reasons.append(f"{label}: its {shadowed[0]} is an attribute of the instance")
        elif type(module).__call__ is not nn.Module.__call__:
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
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and all(type(mode) is DeviceContext for mode in _modes())
    )
