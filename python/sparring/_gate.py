"""The gate that every tensor passes before its address is taken: what has no plain memory is refused by name.

Torch has tensors whose memory is not what they read as, or that have none; compiled code that took their address would
crash, or compute with what was never written.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_torch: Any = torch._C
_modes_on = _torch._len_torch_dispatch_stack
_transform = _torch._functorch.peek_interpreter_stack
_is_traced = _torch._is_tracing
_keys_of = _torch._dispatch_keys
_unpack_dual: Any = forward_ad.unpack_dual
_PLAIN_KEYS = ("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView", "AutocastCPU", "AutocastCUDA")
_UNUSUAL = (1 << 64) - 1
"""The dispatch keys, as bits, that a dense tensor in memory does not have: those of zero, lazily negated, sparse,
quantised and nested tensors, of what torch.func wraps, of subclasses with a ``__torch_dispatch__`` ..."""
for _key in _PLAIN_KEYS:
    _UNUSUAL &= ~_torch.DispatchKeySet(getattr(_torch.DispatchKey, _key)).raw_repr()
_PLAIN_TYPES = {Tensor, nn.Parameter}
_INHERITED = {Tensor.__torch_function__.__func__, _torch._disabled_torch_function_impl}  # type: ignore[attr-defined]


def recorded() -> bool:
    """Whether what this thread does is recorded or transformed: by torch.compile, torch.export, torch.jit.trace,
    make_fx, torch.func or a dispatch mode. Then a call has to be one of a registered operator, not of compiled code
    that writes memory behind torch's back."""
    return torch.compiler.is_compiling() or _modes_on() > 0 or _transform() is not None or _is_traced()


def refuse_tracing() -> None:
    """NotImplementedError where a graph is being recorded, which would hold an empty tensor for what a kernel gives."""
    if not _is_traced() and not _modes_on():
        return
    modes = _torch._TorchDispatchModeKey
    if _is_traced() or any(map(_torch._get_dispatch_mode, (modes.PROXY, modes.FUNCTIONAL, modes.FAKE))):
        raise NotImplementedError(
            "compiled kernels cannot be traced (torch.jit.trace, make_fx, FakeTensorMode), but for the primitives "
            "project_l1_box, project_l0_box, l1_step, recovery_step and sparse_pgd_step: call this outside of what is "
            "traced"
        )


def plain(tensor: Tensor, name: str, *, in_place: bool = False) -> Tensor:
    """`tensor`, if its numbers lie in memory as they read; else the same numbers so (a lazily negated view, a subclass
    that changes nothing).

    Raises
    ------
    TypeError
        If it has no plain memory: zero, fake, functional, nested, sparse and quantised tensors, those of torch.func and
        of subclasses that compute for themselves; and a lazily negated one that is to be used `in_place`.
    ValueError
        If its device has no kernels, or its memory was freed.
    NotImplementedError
        If it carries a tangent of forward-mode differentiation.
    """
    if type(tensor) in _PLAIN_TYPES and forward_ad._current_level < 0 and not tensor.is_neg() and not tensor.is_nested:
        try:  # what has no memory has no address, or none to give; and where there is one, the dtype tells the rest
            if tensor.data_ptr():
                return tensor
        except RuntimeError:
            pass
    return _made_plain(tensor, name, in_place)


def _made_plain(tensor: Tensor, name: str, in_place: bool) -> Tensor:
    kind = type(tensor)
    if kind not in _PLAIN_TYPES:
        override = kind.__torch_function__
        if getattr(override, "__func__", override) not in _INHERITED or _keys_of(tensor).has(_torch.DispatchKey.Python):
            raise TypeError(
                f"{name} is a {kind.__name__}, a subclass that computes for itself; pass an ordinary torch.Tensor"
            )
        with _torch.DisableTorchFunctionSubclass():
            tensor = tensor.as_subclass(Tensor)
    if tensor.device.type not in ("cpu", "cuda"):
        no_kernels(tensor, name)
    refuse_tangent(tensor, name)
    if not _keys_of(tensor).raw_repr() & _UNUSUAL:
        check_memory(tensor, name)
        return tensor
    if tensor.layout is torch.strided and (tensor.is_neg() or tensor.is_conj()):
        if in_place:
            raise TypeError(f"{name} is used in place, but is a {_called(tensor)}; pass {name}.resolve_neg()")
        check_memory(tensor, name)
        tensor = tensor.resolve_conj().resolve_neg()
        if not _keys_of(tensor).raw_repr() & _UNUSUAL:
            return tensor
    raise TypeError(
        f"{name} must be a dense tensor in memory, not a {_called(tensor)}; "
        f"{_REMEDIES.get(_called(tensor), 'leave the transform or mode that it belongs to')}"
    )


def refuse_tangent(tensor: Tensor, name: str) -> None:
    """NotImplementedError for a tensor with a tangent, which would be lost."""
    if forward_ad._current_level >= 0 and _unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(
            f"{name} carries a tangent, but there is no forward-mode derivative; pass {name}.detach(), or use "
            "reverse mode (torch.autograd.grad)"
        )


def _called(tensor: Tensor) -> str:
    """What kind of unusual tensor this is."""
    if tensor.layout is not torch.strided:
        return f"tensor of layout {tensor.layout}"
    if tensor.is_nested:
        return "nested tensor"
    if tensor.is_quantized:
        return "quantised tensor"
    if tensor._is_zerotensor():
        return "zero tensor"
    if _torch._functorch.is_functorch_wrapped_tensor(tensor):
        return "tensor of torch.func"
    if torch._is_functional_tensor(tensor):
        return "functional tensor"
    if tensor.is_neg() or tensor.is_conj():
        return "lazily negated view"
    return f"{type(tensor).__name__} with the dispatch keys {_keys_of(tensor)}"


_REMEDIES = {
    "zero tensor": "pass its .clone()",
    "quantised tensor": "pass its .dequantize()",
    "nested tensor": "pass its .to_padded_tensor(0.0)",
    **dict.fromkeys(
        (f"tensor of layout torch.{layout}" for layout in ("sparse_coo", "sparse_csr", "_mkldnn")),
        "pass its .to_dense()",
    ),
}


def check_memory(tensor: Tensor, name: str) -> None:
    """ValueError unless the tensor's storage, which can be shrunk under it, holds its entries."""
    reach = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    holds = tensor.untyped_storage().nbytes()
    if tensor.numel() and holds < (tensor.storage_offset() + 1 + sum(reach)) * tensor.itemsize:
        raise ValueError(f"{name}, of shape {tuple(tensor.shape)}, has no memory left: its storage holds {holds} bytes")


def no_kernels(tensor: Tensor, name: str) -> NoReturn:
    no_cuda = "this build of sparring has no CUDA kernels; supported: cpu"
    why = no_cuda if tensor.device.type == "cuda" else "supported: cpu, cuda"
    raise ValueError(f"{name} is on device '{tensor.device}', for which there are no kernels ({why})")
