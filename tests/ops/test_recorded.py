"""Under tracers, transforms and modes of torch a call is one of the registered operator, or refused."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from checks import same_bits, sample
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from unusual import ARRAYS, CHANGED, COLUMNS, ROWS, good, run

from sparring import ops

pytestmark = pytest.mark.filterwarnings("ignore:.*(prototype|beta state|deprecat|experimental)")


def test_tangents_are_refused_not_dropped() -> None:
    for op, names in ARRAYS.items():
        for name in names:
            arguments = good(op)
            with forward_ad.dual_level():
                arguments[name] = forward_ad.make_dual(arguments[name], torch.ones(ROWS, COLUMNS))
                with pytest.raises(NotImplementedError, match=rf"\b{name}\b.*forward"):
                    run(op, arguments)
    with forward_ad.dual_level():
        eps = forward_ad.make_dual(torch.ones(ROWS), torch.ones(ROWS))
        with pytest.raises(NotImplementedError, match=r"\beps\b"):
            ops.project_l1_box(**good("project_l1_box") | {"eps": eps})
        assert same_bits(
            run("project_l1_box", good("project_l1_box"))["out"], ops.project_l1_box(**good("project_l1_box"))
        )
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda d: ops.project_l1_box(d, torch.rand(2, 3), 1.0), (torch.rand(2, 3),), (torch.ones(2, 3),))


def test_what_autograd_saved_of_an_array_written_is_stale() -> None:
    weight = torch.ones(ROWS, COLUMNS, requires_grad=True)
    for op, name in (
        ("project_l1_box", "out"),
        ("project_l0_box", "out"),
        ("l1_step", "out"),
        ("recovery_step", "image"),
        ("recovery_step", "exp_avg"),
        ("sparse_pgd_step", "values"),
        ("sparse_pgd_step", "mask"),
    ):
        arguments = good(op)
        arguments.setdefault(name, torch.ones(ROWS, COLUMNS))
        loss = (weight * arguments[name]).sum()
        run(op, arguments)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class Logging(TorchDispatchMode):
    """Notes what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(str(func))
        return func(*args, **(kwargs or {}))


def as_function(op: str) -> Callable[..., Any]:
    """The operation as a function of its arrays alone."""
    numbers = {name: value for name, value in good(op).items() if not isinstance(value, Tensor)}

    def function(*arrays: Tensor) -> Any:
        return getattr(ops, op)(**dict(zip(ARRAYS[op], arrays, strict=True)), **numbers)

    return function


def twice(op: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Arrays to trace with, and twice other arrays to run on."""
    arrays = [value for value in good(op).values() if isinstance(value, Tensor)]
    others = [0.7 * value for value in arrays]
    return arrays, others, [value.clone() for value in others]


@pytest.mark.parametrize("op", ARRAYS)
@pytest.mark.parametrize(
    "tool", ["jit.trace", "make_fx", "make_fx, symbolic", "make_fx, fake", "export", "functionalize"]
)
def test_a_recorded_call_is_the_registered_operator(op: str, tool: str) -> None:
    arrays, others, same = twice(op)
    function = as_function(op)
    recorders: dict[str, Callable[[], Callable[..., Any]]] = {
        "jit.trace": lambda: torch.jit.trace(function, tuple(arrays), check_trace=False),
        "make_fx": lambda: make_fx(function)(*arrays),
        "make_fx, symbolic": lambda: make_fx(function, tracing_mode="symbolic")(*arrays),
        "make_fx, fake": lambda: make_fx(function, tracing_mode="fake")(*arrays),
        "export": lambda: torch.export.export(_Module(function), tuple(arrays)).module(),
        "functionalize": lambda: torch.func.functionalize(function),
    }
    recorded = recorders[tool]()
    if op in CHANGED and tool == "functionalize":  # which torch does not do with operators that write
        with pytest.raises(RuntimeError, match="alias annotations"):
            recorded(*others)
        return
    assert same_bits(recorded(*others), function(*same))
    for mine, theirs in zip(others, same, strict=True):
        assert same_bits(mine, theirs)


class _Module(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arrays: Tensor) -> Any:
        return self.function(*arrays)


@pytest.mark.parametrize("op", ARRAYS)
@pytest.mark.parametrize(
    "mode", [Logging, lambda: FlopCounterMode(display=False), nullcontext], ids=["log", "flops", "none"]
)
def test_dispatch_modes_see_the_registered_operator(op: str, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    with mode() as seen:
        got = run(op, good(op))
    for key, tensor in run(op, good(op)).items():
        assert same_bits(got[key], tensor)
    if isinstance(seen, Logging):
        assert f"sparring.{op}.default" in seen.called


def test_fake_tensors_give_fake_ones() -> None:
    with FakeTensorMode():
        delta, x = torch.randn(4, 10), torch.rand(4, 10)
        for answer in (
            ops.project_l1_box(delta, x, 1.0),
            ops.project_l0_box(delta, x, 3, channels=2),
            ops.l1_step(delta, delta, x, 1.0, 0.5, 3),
        ):
            assert type(answer).__name__ == "FakeTensor"
            assert answer.shape == (4, 10)
        ops.recovery_step(x, delta, lr=0.1, lam=0.1)
        moved = ops.sparse_pgd_step(delta, delta.clone(), delta, x, 3, step_size=0.1, mask_step=0.1)
        assert type(moved).__name__ == "FakeTensor"


def test_under_torch_func() -> None:
    delta, x = sample((2, ROWS, COLUMNS), torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's: that it calls once for each, which is right
        got = torch.func.vmap(lambda d, p: ops.project_l1_box(d, p, 1.0))(delta, x)
    assert same_bits(got, torch.stack([ops.project_l1_box(d, p, 1.0) for d, p in zip(delta, x, strict=True)]))


def test_symbolic_tracing_is_refused_by_name() -> None:
    for op in ARRAYS:
        with pytest.raises(TypeError, match=r"Proxy.*(fx\.wrap|make_fx)"):
            torch.fx.symbolic_trace(_symbolic(op))


def _symbolic(op: str) -> Callable[..., Any]:
    function = as_function(op)
    return {
        2: lambda a, b: function(a, b),
        3: lambda a, b, c: function(a, b, c),
        4: lambda a, b, c, d: function(a, b, c, d),
    }[len(ARRAYS[op])]


@pytest.mark.parametrize("op", ARRAYS)
def test_another_default_device_moves_nothing(op: str) -> None:
    want = run(op, good(op))
    arguments = good(op)
    with torch.device("meta"):
        getattr(ops, op)(**arguments)
        answer = None if op == "recovery_step" else getattr(ops, op)(**good_on_cpu(op))
    assert answer is None or same_bits(answer, want["out"])


def good_on_cpu(op: str) -> dict[str, Any]:
    with torch.device("cpu"):
        return good(op)


@pytest.mark.parametrize("tracer", ["jit.trace", "make_fx"])
def test_kernels_that_are_not_operators_refuse_to_be_traced(tracer: str) -> None:
    from sparring.gradients import kernels

    def function(z: Tensor) -> Tensor:
        return kernels.relu_pool(z, None, (2, 2), (2, 2))[0]

    z = torch.rand(1, 3, 4, 4)
    trace = (lambda: torch.jit.trace(function, (z,))) if tracer == "jit.trace" else (lambda: make_fx(function)(z))
    warnings.simplefilter("ignore")
    with pytest.raises(NotImplementedError, match="traced"):
        trace()


def test_every_thread_has_its_own_mode() -> None:
    """A mode or a trace in one thread leaves calls in another as they are."""
    answers = []
    with FakeTensorMode():
        thread = threading.Thread(target=lambda: answers.append(run("project_l1_box", good("project_l1_box"))["out"]))
        thread.start()
        thread.join()
    assert same_bits(answers[0], run("project_l1_box", good("project_l1_box"))["out"])
