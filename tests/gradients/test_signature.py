"""A plan is made anew whenever the model is built otherwise, and when what it uses of torch is not what it was."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring.gradients import originals
from sparring.gradients.signature import Signature


class Named(nn.Module):
    """With a forward of its own, and an attribute of a kind that is not compared."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(32, 4), nn.LeakyReLU(0.3)
        self.parents: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x.flatten(1)))


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), Named(), nn.Softplus()
    ).eval()  # fmt: skip


def replace(module: nn.Module, name: str, value: Any) -> None:
    setattr(module, name, value)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "dilation": lambda m: replace(m[0], "dilation", (2, 2)) or replace(m[0], "padding", (2, 2)),
    "stride and padding": lambda m: replace(m[0], "stride", (1, 2)) or replace(m[0], "padding", (1, 5)),
    "kernel of a pooling": lambda m: replace(m[3], "kernel_size", (1, 2)) or replace(m[3], "stride", (2, 2)),
    "slope": lambda m: replace(m[4].act, "negative_slope", 0.7),
    "eps": lambda m: replace(m[1], "eps", 0.5),
    "a part": lambda m: replace(m[4], "act", nn.Tanh()),
    "a part in the place of another": lambda m: m.__setitem__(2, nn.Tanh()),
    "parts that change places": lambda m: m._modules.update({"2": m[5], "5": m[2]}),
    "the order of the parts": lambda m: m._modules.update({"2": m._modules.pop("2")}),
    "a part more": lambda m: m.append(nn.Sigmoid()),
    "a part less": lambda m: m.pop(5),
    "the class of a part": lambda m: replace(m[2], "__class__", nn.Tanh),
    "the mode of a part": lambda m: m[1].train() and None,
    "a bias less": lambda m: replace(m[0], "bias", None),
    "a forward of its own": lambda m: replace(m[2], "forward", torch.tanh),
    "a hook": lambda m: m[2].register_forward_hook(lambda module, args, output: output * 2),
    "a hook before": lambda m: m[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_has_another_plan(change: str) -> None:
    model = make()
    x, labels = torch.rand(5, 1, 8, 8), torch.arange(5) % 4
    sp.input_grad(model, x, labels)
    assert sp.lower(model).is_lowered, sp.lower(model).reasons
    before, known = sp.input_grad(model, x, labels), Signature(model)
    assert known.same(model)
    CHANGES[change](model)
    assert not known.same(model)
    found, wanted = sp.input_grad(model, x, labels), sp.input_grad(lambda z: model(z), x, labels)
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.grad, wanted.grad)
    assert not torch.equal(found.logits, before.logits)


def test_weights_and_what_does_not_count_leave_the_plan() -> None:
    model = make()
    known = Signature(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model[4].parents.append(model)
    model[0].weight = nn.Parameter(torch.ones(2, 1, 3, 3))
    assert known.same(model)
    assert not known.same(make())


def test_nothing_keeps_a_model_whose_parts_know_it() -> None:
    model = make()
    model[4].parents.append(model)
    sp.input_grad(model, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("place", "name", "instead"), [
    (F, "relu", lambda x, inplace=False: torch.tanh(x)), (F, "linear", lambda x, w, b=None: x @ w.t() * 2),
    (nn.ReLU, "forward", lambda self, x: torch.sigmoid(x)), (nn.Module, "_call_impl", None),
    (torch, "relu", lambda x: torch.tanh(x)), (nn.Linear, "__call__", None),
])  # fmt: skip
def test_torch_s_own_functions_are_watched(
    place: Any, name: str, instead: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x, labels = torch.randn(4, 4), torch.arange(4) % 3
    sp.input_grad(model, x, labels)
    original = getattr(place, name)
    known = Signature(model)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, instead or (lambda self, *args: original(self, *args) * 3))
        assert not known.same(model)
        found, wanted = sp.input_grad(model, x, labels), sp.input_grad(lambda z: model(z), x, labels)
        torch.testing.assert_close(found.logits, wanted.logits)
        torch.testing.assert_close(found.grad, wanted.grad)
        assert originals.patched()
    sp.input_grad(model, x, labels)
    assert sp.lower(model).is_lowered


def test_what_torch_s_classes_use() -> None:
    used = originals._names_used_by({nn.Sequential, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten})
    assert used is not None
    assert {"conv2d", "relu", "max_pool2d", "flatten"} <= used
    assert originals._names_used_by({nn.Linear, Named}) is None


def test_a_plan_that_was_taken_is_of_its_kind_of_inputs() -> None:
    model = make()
    x, labels = torch.rand(5, 1, 8, 8), torch.arange(5) % 4
    step = sp.lower(model).take(x)
    assert sp.lower(step) is step
    assert step.take(x[:2]) is step
    torch.testing.assert_close(sp.input_grad(step, x, labels).grad, sp.input_grad(model, x, labels).grad)
    model.double()
    found = sp.input_grad(step, x.double(), labels)
    wanted = sp.input_grad(lambda z: model(z), x.double(), labels)
    torch.testing.assert_close(found.grad, wanted.grad)
    assert step.take(x.double(), "bf16") is not step


def test_what_is_shown_of_a_plan() -> None:
    assert repr(sp.lower(nn.Sequential(nn.Linear(4, 2), nn.Tanh()).eval())) == "Lowered(Linear)"
    shown = repr(sp.lower(nn.Sequential(nn.Linear(4, 2), nn.GELU())))
    assert shown == "Lowered(reasons=['1 (GELU): not a layer that is known'])"


@pytest.mark.parametrize("name", ["gain", "shift", "linear"])
def test_a_class_that_comes_to_have_what_its_modules_have(name: str) -> None:
    """An attribute of the class is found before parameters, buffers and modules."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.linear = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0])), nn.Linear(4, 3)
            self.register_buffer("shift", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x * self.gain + self.shift)

    model = Scaled().eval()
    x, labels = torch.rand(5, 4), torch.arange(5) % 3
    before = sp.input_grad(model, x, labels)
    assert sp.lower(model).is_lowered, sp.lower(model).reasons
    setattr(Scaled, name, staticmethod(torch.sin) if name == "linear" else torch.full((4,), 0.3))
    found, wanted = sp.input_grad(model, x, labels), sp.input_grad(lambda z: model(z), x, labels)
    assert found.logits.shape != before.logits.shape or not torch.equal(found.logits, before.logits)
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.grad, wanted.grad)


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * math.tau + torch.pi)


@pytest.mark.parametrize(("place", "name"), [(math, "tau"), (torch, "pi")])
def test_constants_of_libraries_are_watched(place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, labels = Turned().eval(), torch.rand(5, 4), torch.arange(5) % 3
    before = sp.input_grad(model, x, labels)
    assert sp.lower(model).is_lowered, sp.lower(model).reasons
    monkeypatch.setattr(place, name, 0.5)
    found, wanted = sp.input_grad(model, x, labels), sp.input_grad(lambda z: model(z), x, labels)
    assert not torch.equal(found.logits, before.logits)
    torch.testing.assert_close(found.logits, wanted.logits)
