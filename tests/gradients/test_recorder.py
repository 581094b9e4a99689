"""What a graph does not show is refused when forward is followed, before anything is compared."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import sparring as sp
from sparring.gradients.chain import _changes_something
from sparring.gradients.plan import obstacles
from sparring.tracing import Reads, Untraceable, record, trace


class Made(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.body = nn.Linear(4, 3), body
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 4))
        self.register_buffer("shift", torch.ones(4))
        self.count = 0
        self.names: list[int] = []

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


class Blind(Reads):
    """Takes any code to be readable."""

    def of_class(self, kind: type) -> None:
        pass

    def attribute(self, module: nn.Module, kind: type, path: str, name: str) -> None:
        pass


def graph_of(body: Callable[[Any, Tensor], Any]) -> fx.Graph:
    return trace(Made(body).eval(), lambda module: False)[0]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad


class Awake(torch.autograd.Function):
    """Whose forward enables gradients again."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        with torch.enable_grad():
            return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad


def without_gradients(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
    return self.linear(y)


def in_inference_mode(self: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = x * 2
    return self.linear(y)


def set_grad(self: Any, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(False):
        return self.linear(x)


def under_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return self.linear(x)


def counts(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    return self.linear(x)


def appends(self: Any, x: Tensor) -> Tensor:
    self.names.append(1)
    return self.linear(x)


def sets_a_buffer(self: Any, x: Tensor) -> Tensor:
    self.shift = x
    return self.linear(x)


def writes_a_weight(self: Any, x: Tensor) -> Tensor:
    self.scale.data = self.scale * 2
    return self.linear(x)


def branches(self: Any, x: Tensor) -> Tensor:
    return self.linear(x) if x.sum() > 0 else x


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "no_grad": (without_gradients, r"without_gradients uses a context \(with\)"),
    "inference mode": (in_inference_mode, r"in_inference_mode uses a context \(with\)"),
    "set_grad_enabled": (set_grad, r"set_grad uses a context \(with\)"),
    "autocast": (under_autocast, r"under_autocast uses a context \(with\)"),
    "a function of autograd": (lambda self, x: Double.apply(x), "forward reads Double, a FunctionMeta"),
    "random numbers": (lambda self, x: x + torch.rand(4), r"forward draws random numbers \(rand\)"),
    "random numbers in place": (lambda self, x: x + torch.empty(4).normal_(), "forward draws random numbers"),
    "random numbers like others": (lambda self, x: x + torch.randn_like(self.shift), "forward draws random numbers"),
    "an attribute": (counts, "counts sets an attribute"),
    "a list": (appends, "forward reads names, a list"),
    "a buffer": (sets_a_buffer, "sets_a_buffer sets an attribute"),
    "data of a weight": (writes_a_weight, "writes_a_weight sets an attribute"),
    "a tensor": (lambda self, x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]), "forward makes a tensor"),
    "values": (branches, "forward cannot be traced: TraceError"),
    "another module": (lambda self, x: nn.Linear(4, 3)(x), "forward calls a module that is not one|random numbers"),
    "an error": (lambda self, x: self.nothing(x), "forward cannot be traced: AttributeError"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_shows_is_refused(name: str) -> None:
    body, why = REFUSED[name]
    with pytest.raises(Untraceable, match=why):
        graph_of(body)


@pytest.mark.parametrize(("body", "why"), [
    (without_gradients, "forward disables gradients"), (in_inference_mode, "forward disables gradients"),
    (set_grad, "forward disables gradients"), (under_autocast, "forward uses autocast"),
    (lambda self, x: Double.apply(x), r"forward uses a torch\.autograd\.Function|disables gradients"),
    (lambda self, x: Awake.apply(x), r"forward uses a torch\.autograd\.Function"),
    (writes_a_weight, r"forward sets \.data of a tensor"),
])  # fmt: skip
def test_what_the_code_does_not_tell_is_noticed_while_it_is_recorded(
    body: Callable[[Any, Tensor], Any], why: str
) -> None:
    with pytest.raises(Untraceable, match=why):
        record(Made(body).eval(), lambda module: False, Blind())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_mode_of_the_caller_does_not_matter(mode: Callable[[], Any]) -> None:
    with mode():
        graph = graph_of(lambda self, x: self.linear(x * self.scale))
    assert [node.op for node in graph.nodes] == ["placeholder", "get_attr", "call_function", "call_module", "output"]


def test_arguments_of_forward() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    class Default(nn.Module):
        def forward(self, x: Tensor, factor: float = 2.0, **options: Any) -> Tensor:
            return x * factor

    with pytest.raises(Untraceable, match=r"forward takes more than one argument \(x, y\)"):
        trace(Two(), lambda module: False)
    assert len(trace(Default(), lambda module: False)[0].nodes) == 3


def test_leaves_are_one_node_and_containers_are_walked() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), Inner()), nn.ReLU())

    def calls(is_leaf: Callable[[nn.Module], bool]) -> list[str]:
        return [str(node.target) for node in trace(model, is_leaf)[0].nodes if node.op == "call_module"]

    assert calls(lambda module: False) == ["0.0", "1"]
    assert calls(lambda module: isinstance(module, Inner)) == ["0.0", "0.1", "1"]


@pytest.mark.parametrize("body", [
    lambda self, x: self.linear(x * self.scale.clamp(0.6, 1.5)), lambda self, x: self.linear(x + self.shift.mul(3)),
    lambda self, x: self.linear(x / self.scale.add(1).sqrt()), lambda self, x: self.linear(x - self.shift.view(1, 4)),
    lambda self, x: self.linear(x * torch.clamp(self.scale, min=0.7)),
    lambda self, x: self.linear(self.scale.exp() * x),
    lambda self, x: self.linear(x * self.scale.sum(dim=0, keepdim=True)),
])  # fmt: skip
def test_constants_are_computed_from_weights_anew(body: Callable[[Any, Tensor], Tensor]) -> None:
    model = Made(body).double().eval()
    x, y = torch.rand(3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    for _ in range(2):
        found, wanted = sp.input_grad(model, x, y), sp.input_grad(lambda z: model(z), x, y)
        assert sp.lower(model).is_lowered, sp.lower(model).reasons
        torch.testing.assert_close(found.grad, wanted.grad)
        torch.testing.assert_close(found.logits, wanted.logits)
        with torch.no_grad():
            model.scale.mul_(1.3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_every_obstacle_is_named() -> None:
    """Not the first alone: what stands in the way of the fast path is told at once."""

    class Called(nn.Linear):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x)

    scripted = torch.jit.script(nn.ReLU())
    hooked, patched, odd = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    handle = hooked.register_forward_hook(lambda module, args, output: None)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    odd.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Strange))
    model = nn.Sequential(scripted, hooked, patched, Called(2, 2), odd, nn.ReLU(), torch.jit.script(nn.Tanh()))
    assert obstacles(model) == [
        "0 (RecursiveScriptModule): a TorchScript module", "1 (Linear): has hooks",
        "2 (Linear): its forward is an attribute of the instance", "3 (Called): is not called as modules are",
        "4 (Linear): weight is a Strange", "6 (RecursiveScriptModule): a TorchScript module",
    ]  # fmt: skip
    handle.remove()
    assert obstacles(nn.Sequential(hooked, nn.ReLU())) == []


class Strange(torch.Tensor):
    pass


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
@pytest.mark.parametrize("memory", [1, 10**3, 10**4, 10**9])
def test_parts_of_a_batch_fit_into_memory(batch: int, memory: int) -> None:
    """Twice what an example leaves on the tape, for gradients take as much; and parts are of equal size."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8)).double().eval()
    x = torch.rand(batch, 16, dtype=torch.float64)
    lowered = sp.lower(model).take(x)
    rows = lowered.examples_in(memory, x, "float32")
    assert rows >= 1
    if batch == 1:
        return
    taped, largest = lowered.plan.sizes[(x.shape[1:], x.dtype, "float32")]
    assert taped >= 8 * 32
    assert largest >= 8 * 32
    room = min(memory // (2 * taped), 2**23 * torch.get_num_threads() // largest)
    if batch <= room:
        assert rows == room
    else:
        parts = -(-batch // max(1, room))
        assert rows == -(-batch // parts)
        assert parts == -(-batch // rows)
    with pytest.raises(ValueError, match="memory must be at least 1 byte"):
        lowered.examples_in(0, x, "float32")


def test_what_changes_something_is_no_constant() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    changing = [
        graph.call_function(torch.add, (x, x), {"out": x}), graph.call_function(operator.setitem, (x, 0, x)),
        graph.call_function(operator.iadd, (x, x)), graph.call_function(operator.imatmul, (x, x)),
        graph.call_method("add_", (x, x)), graph.call_function(torch.relu_, (x,)),
    ]  # fmt: skip
    harmless = [
        graph.call_function(torch.add, (x, x)), graph.call_function(operator.getitem, (x, 0)),
        graph.call_function(operator.add, (x, x)), graph.call_method("__add__", (x, x)), graph.call_method("add", (x,)),
    ]  # fmt: skip
    assert [_changes_something(node) for node in changing] == [True] * len(changing)
    assert [_changes_something(node) for node in harmless] == [False] * len(harmless)


@pytest.mark.parametrize("body", [
    lambda self, x: self.linear(torch.relu(input=x)), lambda self, x: F.linear(input=x, weight=self.linear.weight),
    lambda self, x: self.linear(F.leaky_relu(input=x, negative_slope=0.3)),
])  # fmt: skip
def test_the_input_may_be_named(body: Callable[[Any, Tensor], Tensor]) -> None:
    model, x, labels = Made(body).eval(), torch.rand(5, 4) - 0.5, torch.arange(5) % 3
    found, wanted = sp.input_grad(model, x, labels), sp.input_grad(lambda z: model(z), x, labels)
    assert sp.lower(model).is_lowered, sp.lower(model).reasons
    torch.testing.assert_close(found.grad, wanted.grad)
