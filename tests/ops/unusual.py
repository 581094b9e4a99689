"""Tensors and NumPy arrays that are not plain memory, and calls of every operation to try them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from checks import sample
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from sparring import ops

ROWS, COLUMNS = 3, 8
REFUSED = (TypeError, ValueError, NotImplementedError)
ARRAYS = {
    "project_l1_box": ("delta", "x"),
    "project_l0_box": ("delta", "x"),
    "l1_step": ("delta", "grad", "x"),
    "recovery_step": ("image", "grad", "exp_avg", "exp_avg_sq"),
    "sparse_pgd_step": ("values", "mask", "grad", "x"),
}
CHANGED = {"recovery_step": ("image", "exp_avg", "exp_avg_sq"), "sparse_pgd_step": ("values", "mask")}
"""What is written in place."""
WRITTEN = {"out", *(name for names in CHANGED.values() for name in names)}


def good(op: str) -> dict[str, Any]:
    delta, x = sample((ROWS, COLUMNS), torch.float32)
    grad, _ = sample((ROWS, COLUMNS), torch.float32, seed=1)
    if op == "project_l1_box":
        return {"delta": delta, "x": x, "eps": 1.0}
    if op == "project_l0_box":
        return {"delta": delta, "x": x, "k": 3}
    if op == "l1_step":
        return {"delta": delta, "grad": grad, "x": x, "eps": 1.0, "step_size": 0.5, "k": 3}
    if op == "sparse_pgd_step":
        mask = sample((ROWS, COLUMNS), torch.float32, seed=2)[0]
        sizes = {"step_size": 0.25, "mask_step": 0.5}
        return {"values": 0.1 * delta, "mask": mask, "grad": grad, "x": x, "k": 3, **sizes}
    moments = {"exp_avg": 0.1 * delta, "exp_avg_sq": 0.1 * delta.square()}
    return {"image": x, "grad": grad, "lr": 0.1, "lam": 1.0, **moments}


def negated(t: Tensor) -> Tensor:
    """The same numbers, read through a negative bit."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


class Plain(Tensor):
    """A subclass that changes nothing."""


class Speaking(Tensor):
    """A subclass that overrides functions."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapping(Tensor):
    """A subclass that holds another tensor."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapping:
        made: Wrapping = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [a.inner if isinstance(a, Wrapping) else a for a in args]
        return func(*args, **(kwargs or {}))


def escaped(transform: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
    """What a transform of torch.func passes to the function, kept beyond its end."""

    def make(t: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def function(a: Tensor) -> Tensor:
            kept.append(a)
            return a.sum()

        transform(function)(t)
        return kept[0]

    return make


def freed(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def shrunk(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.nbytes - 4)
    return t


def shrunk_columns(t: Tensor) -> Tensor:
    t = t.repeat_interleave(2, 1)[:, ::2]
    t.untyped_storage().resize_(t.nbytes)
    return t


def misaligned(t: Tensor) -> Tensor:
    raw = bytearray(b"\0") + bytearray(t.numpy().tobytes())
    return torch.frombuffer(raw, dtype=t.dtype, offset=1).view(t.shape)


def from_mapped_file(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


# What an argument becomes, and whether it may be refused; what may not gives the ordinary answer.
UNUSUAL: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "a negative bit": (negated, False),
    "a negative bit, transposed": (lambda t: negated(t.T.contiguous()).T, False),
    "a parameter": (lambda t: nn.Parameter(t.clone(), requires_grad=False), False),
    "a plain subclass": (lambda t: t.clone().as_subclass(Plain), False),
    "made in inference mode": (from_mapped_file, False),
    "copied on write": (lambda t: torch._lazy_clone(t), False),
    "misaligned": (misaligned, False),
    "a zero tensor": (lambda t: torch._efficientzerotensor(t.shape), True),
    "a fake tensor": (lambda t: FakeTensorMode().from_tensor(t), True),
    "a functional tensor": (torch._to_functional_tensor, True),
    "escaped from vmap": (escaped(torch.func.vmap), True),
    "escaped from grad": (escaped(torch.func.grad), True),
    "escaped from jvp": (escaped(lambda f: lambda a: torch.func.jvp(f, (a,), (a,))), True),
    "escaped from functionalize": (escaped(torch.func.functionalize), True),
    "a subclass with functions of its own": (lambda t: t.clone().as_subclass(Speaking), True),
    "a subclass around another tensor": (Wrapping, True),
    "on the meta device": (lambda t: t.to("meta"), True),
    "nested": (lambda t: torch.nested.nested_tensor(list(t)), True),
    "nested, jagged": (lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged), True),
    "sparse": (lambda t: t.to_sparse(), True),
    "sparse rows": (lambda t: t.to_sparse_csr(), True),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), True),
    "of mkldnn": (lambda t: t.to_mkldnn(), True),
    "without memory": (freed, True),
    "with too little memory": (shrunk, True),
    "columns with too little memory": (shrunk_columns, True),
}
NUMPY: dict[str, tuple[Callable[[np.ndarray], Any], bool]] = {
    "big-endian": (lambda a: a.astype(">f4"), False),
    "read-only": (lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape), False),
    "negative strides": (lambda a: a[:, ::-1].copy()[:, ::-1], False),
    "misaligned": (lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape), False),
    "a matrix": (lambda a: a.copy().view(np.matrix), False),
    "a field": (lambda a: _field(a), False),
    "masked": (lambda a: np.ma.masked_array(a, a > 0), True),
    "structured": (lambda a: np.zeros(a.shape, [("a", "f4"), ("b", "f4")]), True),
    "of objects": (lambda a: a.astype(object), True),
    "long double": (lambda a: a.astype(np.longdouble), True),
    "half": (lambda a: a.astype(np.float16), True),
    "strings": (lambda a: a.astype(str), True),
}


def _field(a: np.ndarray) -> np.ndarray:
    packed = np.zeros(a.shape, [("flag", "u1"), ("value", "f4")])  # five bytes apart
    packed["value"] = a
    return packed["value"]


def run(op: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """What is returned and what was written, by argument."""
    answer = getattr(ops, op)(**arguments)
    written = {name: torch.as_tensor(arguments[name]) for name in CHANGED.get(op, ())}
    return written if op == "recovery_step" else {"out": torch.as_tensor(answer), **written}
