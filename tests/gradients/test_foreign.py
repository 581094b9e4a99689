"""Programs that change what a model computes by ways that are hard to see: plans are right before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp

X, Y = torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) - 0.5, torch.arange(8) % 4
IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SET: dict[str, float] = {}


def agree(model: nn.Module, x: Tensor = X) -> Tensor:
    """Checks the gradient and the logits against autograd on the model as a function; gives the gradient."""
    found, wanted = sp.input_grad(model, x, Y), sp.input_grad(lambda z: model(z), x, Y)
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.grad, wanted.grad)
    return found.grad


def three(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), activation, nn.Linear(9, 4)).eval()


def images(*front: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()


def put(thing: Any, name: str, value: Any) -> None:
    setattr(thing, name, value)


SETTINGS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any], Tensor]] = {
    "a number of NumPy": (
        lambda: three(nn.Softplus(np.float64(1.0))), lambda m: put(m[1], "beta", np.float64(9.0)), X
    ),
    "a slope of NumPy": (
        lambda: three(nn.LeakyReLU(np.float64(0.1))), lambda m: put(m[1], "negative_slope", np.float64(0.9)), X
    ),
    "in an ensemble": (
        lambda: sp.Ensemble([three(nn.LeakyReLU(np.float32(0.1))), three(nn.Tanh())]),
        lambda m: put(m.models[0][1], "negative_slope", np.float32(0.9)), X,
    ),
    "a list": (
        lambda: images(nn.MaxPool2d([2, 2], [1, 1])), lambda m: put(m[0], "stride", [2, 2]), IMAGES
    ),
    "an entry of a list": (
        lambda: images(nn.AvgPool2d([3, 3], [1, 1])), lambda m: m[0].stride.__setitem__(0, 3), IMAGES
    ),
    "a list of a convolution": (
        lambda: images(nn.Conv2d(3, 3, 3), nn.ReLU()), lambda m: put(m[0], "stride", [3, 1]),
        IMAGES,
    ),
    "another dict of parameters": (
        lambda: three(nn.ReLU()), lambda m: m[0].__dict__.update(copy.deepcopy(nn.Linear(12, 9)).__dict__), X
    ),
    "a copy of the dict of parameters": (
        lambda: three(nn.ReLU()),
        lambda m: [put(m[0], "_parameters", {**m[0]._parameters}), put(m[0], "weight", nn.Parameter(m[0].weight + 1))],
        X,
    ),
    "saved tensors": (lambda: three(nn.ReLU()), lambda m: None, X),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_and_dicts(name: str) -> None:
    make, change, x = SETTINGS[name]
    model = make()
    before = agree(model, x)
    if name == "saved tensors":
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 0.5, lambda t: t):
            after = agree(model, x)
    else:
        change(model)
        after = agree(model, x)
    assert not torch.equal(before, after)


class Odd(nn.Parameter):
    """Whose linear layer has another derivative than it should."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [a.as_subclass(Tensor) if isinstance(a, Odd) else a for a in args]
        if func is F.linear:
            return func(args[0], args[1].round(), *args[2:]) + 3 * args[0].sum(1, keepdim=True)
        return func(*args, **(kwargs or {}))


def test_weights_of_another_class() -> None:
    model = three(nn.ReLU())
    agree(model)
    model[0]._parameters["weight"] = model[0].weight.data.as_subclass(Odd)  # type: ignore[assignment]
    agree(model)


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 3 * output


STACKS: dict[str, Callable[[sp.StackedEnsemble], Any]] = {
    "slope": lambda s: put(s.net[1], "negative_slope", 0.9),  # type: ignore[index]
    "hook": lambda s: s.net[1].register_forward_hook(doubled),  # type: ignore[index]
    "hook of the stack": lambda s: s.register_forward_hook(doubled),
    "another activation": lambda s: s.net.__setitem__(1, nn.Tanh()),  # type: ignore[operator]
    "parametrization": lambda s: nn.utils.parametrize.register_parametrization(s.net[0], "bias", Doubled()),  # type: ignore[index]
    "members' logits": lambda s: put(s, "member_logits", lambda z, old=s.member_logits: 2 * old(z)),
}


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("name", STACKS)
def test_a_stack_is_what_it_computes(name: str, asked: bool) -> None:
    torch.manual_seed(0)
    stack = sp.StackedEnsemble(
        [nn.Sequential(nn.Linear(12, 9), nn.LeakyReLU(0.1), nn.Linear(9, 4)) for _ in range(3)]
    ).eval()
    before = agree(stack) if asked else None
    STACKS[name](stack)
    after = agree(stack)
    assert before is None or not torch.equal(before, after)


@pytest.mark.parametrize("combine", ["probs", "logits"])
def test_an_ensemble_is_what_it_computes(combine: str) -> None:
    model = sp.Ensemble([nn.Linear(12, 4), nn.Linear(12, 4)], combine=combine)
    agree(model)
    old = model.member_logits
    model.member_logits = lambda z: 2 * old(z)  # type: ignore[method-assign]
    agree(model)
    other = sp.Ensemble([three(nn.Tanh()), nn.Linear(12, 4)], combine=combine)
    handle = other.register_forward_hook(doubled)
    agree(other)
    handle.remove()
    agree(other)
    assert sp.lower(other).is_lowered


def test_convolutions_that_are_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    model, old = images(nn.Conv2d(3, 3, 3), nn.ReLU()), nn.Conv2d._conv_forward
    before = agree(model, IMAGES)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "_conv_forward", lambda s, x, w, b: 5 * old(s, x, w, b))
        assert not torch.equal(agree(model, IMAGES), before)
    factor = {"k": 1.0}
    model[0]._conv_forward = lambda x, w, b: factor["k"] * F.conv2d(x, w, b)  # type: ignore[method-assign]
    agree(model, IMAGES)
    factor["k"] = 5.0
    agree(model, IMAGES)


class Base(nn.Module):
    gain: Any = 1.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(12, 4)
        self.register_buffer("flag", torch.zeros(1))
        self.cfg, self.called = Config(), torch.enable_grad()(Scaled())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)

    @property
    def k(self) -> float:
        return SET["k"]


class Config(nn.Module):
    def __getattr__(self, name: str) -> Any:
        return SET["k"] if name == "scale" else super().__getattr__(name)


class Scaled:
    k = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.k


def net(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return type("Net", (Base,), {"forward": forward})().eval()  # type: ignore[no-any-return]


class Inherits(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class InheritsGain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * super().gain


class InheritsProperty(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * super().k


def any_positive(self: Any, x: Tensor) -> Tensor:
    scale = 1.0
    for buffer in self.buffers():
        if bool((buffer > 0).any()):
            scale = 3.0
    return self.fc(x) * scale  # type: ignore[no-any-return]


READS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "a buffer by its dict": (
        lambda: net(lambda s, x: s.fc(x) * (1 + s._buffers["flag"].item())), lambda m: m.flag.fill_(1)
    ),
    "by the state dict": (
        lambda: net(lambda s, x: s.fc(x) * (1 + s.state_dict()["flag"].item())), lambda m: m.flag.fill_(1)
    ),
    "any buffer": (lambda: net(any_positive), lambda m: m.flag.fill_(1)),
    "whether gradients are wanted": (
        lambda: net(lambda s, x: s.fc(x) * (2.0 if next(s.parameters()).requires_grad else 1.0)),
        lambda m: m.requires_grad_(False),
    ),
    "a method of the base": (Inherits, lambda m: put(Base, "forward", lambda s, x: 3 * s.fc(x))),
    "an attribute of the base": (InheritsGain, lambda m: put(Base, "gain", 5.0)),
    "a property of the base": (InheritsProperty, lambda m: SET.update(k=5.0)),
    "a module that makes up attributes": (lambda: net(lambda s, x: s.fc(x) * s.cfg.scale), lambda m: SET.update(k=5.0)),
    "a function put into torch": (lambda: net(lambda s, x: F.scaled(s.fc(x))), lambda m: SET.update(k=5.0)),  # type: ignore[attr-defined]
    "a dict put into torch": (lambda: net(lambda s, x: s.fc(x) * torch.made_up["k"]), lambda m: SET.update(k=5.0)),  # type: ignore[attr-defined]
    "a callable object in a wrapper": (lambda: net(lambda s, x: s.called(s.fc(x))), lambda m: put(Scaled, "k", 5.0)),
    "the default dtype": (
        lambda: net(lambda s, x: s.fc(x) * (3.0 if torch.get_default_dtype() == torch.float64 else 1.0)),
        lambda m: torch.set_default_dtype(torch.float64),
    ),
    "determinism": (
        lambda: net(lambda s, x: s.fc(x) * (3.0 if torch.are_deterministic_algorithms_enabled() else 1.0)),
        lambda m: torch.use_deterministic_algorithms(True),
    ),
    "a backend's flag": (
        lambda: net(lambda s, x: s.fc(x) * (3.0 if torch.backends.mkldnn.deterministic else 1.0)),  # type: ignore[attr-defined]
        lambda m: put(torch.backends.mkldnn, "deterministic", True),
    ),
    "hooks of the state": (
        lambda: net(lambda s, x: s.fc(x) * (1 + len(s._state_dict_hooks))),
        lambda m: m.register_state_dict_post_hook(lambda *args: None),
    ),
    "names of buffers": (
        lambda: net(lambda s, x: s.fc(x) * (2.0 if "k" in s._non_persistent_buffers_set else 1.0)),
        lambda m: m._non_persistent_buffers_set.add("k"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_what_forward_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Base, "gain", 1.0)
    monkeypatch.setattr(Base, "forward", Base.forward)
    monkeypatch.setattr(Scaled, "k", 1.0)
    monkeypatch.setattr(torch, "made_up", SET, raising=False)
    monkeypatch.setattr(F, "scaled", lambda x: x * SET["k"], raising=False)
    SET["k"] = 1.0
    deterministic = torch.backends.mkldnn.deterministic  # type: ignore[attr-defined]
    make, change = READS[name]
    model = make()
    before = agree(model)
    try:
        change(model)
        after = agree(model)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.backends.mkldnn.deterministic = deterministic  # type: ignore[attr-defined]
    assert not torch.equal(before, after)


class Usual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not torch.is_tensor(x):
            return x
        return self.fc(x.to(self.fc.weight.dtype))  # type: ignore[no-any-return]


def test_what_users_ask_of_tensors_without_their_numbers() -> None:
    agree(net(lambda s, x: s.fc(x.to(next(s.parameters()).dtype)) * len(x) / x.shape[0]))
    agree(Usual())
