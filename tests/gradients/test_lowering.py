"""Lowered networks against autograd in float64: random chains, what is refused, and that weights are read live."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring import networks
from sparring.gradients import lowering


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def redraw(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, in float64 and eval mode."""
    generator = seeded(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.abs_().add_(0.1)
    return model.double().eval()


def assert_agrees(model: nn.Module, x: Tensor, tolerance: float = 1e-11) -> None:
    """Gradient, loss, logits and Jacobian of the lowered model are autograd's."""
    lowered = sp.lower(model)
    assert lowered.is_lowered, lowered.reasons
    labels = torch.arange(len(x)) % model(x).shape[1]
    ours, reference = (sp.input_grad(m, x, labels) for m in (lowered, lambda z: model(z)))
    assert lowered.is_lowered, lowered.reasons
    for name in ("grad", "loss", "logits"):
        a, b = getattr(ours, name), getattr(reference, name)
        assert a.shape == b.shape
        assert not a.requires_grad
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max()), name
    jacobians = [sp.jacobian(m, x) for m in (lowered, lambda z: model(z))]
    assert jacobians[0].shape == (len(x), ours.logits.shape[1], *x.shape[1:])
    assert (jacobians[0] - jacobians[1]).abs().max() <= tolerance * (1 + jacobians[1].abs().max())


ACTIVATIONS = [nn.ReLU, nn.Sigmoid, nn.Tanh, lambda: nn.LeakyReLU(0.2), lambda: nn.Softplus(2, 5), nn.Softplus]


@st.composite
def convolutions(draw: st.DrawFn, channels: int) -> nn.Conv2d:
    groups = draw(st.sampled_from([1, channels]))
    stride = draw(st.sampled_from([1, 2, (2, 1)]))
    kernel = draw(st.sampled_from([1, 2, 3, (3, 2)]))
    padding = draw(st.sampled_from(["same", "valid", 0, 1, (0, 1)]))
    return nn.Conv2d(
        channels,
        channels * draw(st.integers(1, 2)),
        kernel,
        1 if padding == "same" else stride,
        padding,
        draw(st.sampled_from([1, 2])),
        groups,
        draw(st.booleans()),
    )


@st.composite
def image_networks(draw: st.DrawFn) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 2
    for _ in range(draw(st.integers(1, 2))):
        conv = draw(convolutions(channels))
        channels = conv.out_channels
        layers.append(conv)
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(channels, affine=draw(st.booleans())))
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
        if draw(st.booleans()):
            layers.append(nn.Dropout2d())
    pools = [
        nn.MaxPool2d(2, 2, 1),
        nn.MaxPool2d(3, 1, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.AvgPool2d(2, 1, 1, count_include_pad=False),
        nn.AvgPool2d((2, 1), divisor_override=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Identity(),
    ]
    layers += [draw(st.sampled_from(pools)), nn.Flatten()]
    features = nn.Sequential(*layers).eval()(torch.zeros(1, 2, 25, 24)).shape[1]
    layers.append(nn.Linear(features, draw(st.integers(2, 4))))
    return nn.Sequential(*layers)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=30)
@given(image_networks(), st.integers(0, 2**20), st.integers(1, 3))
def test_image_networks(model: nn.Module, seed: int, batch: int) -> None:
    x = torch.randn(batch, 2, 25, 24, generator=seeded(seed), dtype=torch.float64)
    assert_agrees(redraw(model, seed), x)


@given(st.data())
def test_dense_networks(data: st.DataObject) -> None:
    draw = data.draw
    width = 6
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(draw(st.integers(0, 3))):
        units = draw(st.integers(1, 5))
        layers += [nn.Linear(width, units, bias=draw(st.booleans())), nn.Identity()]
        width = units
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(width))
        layers += [draw(st.sampled_from(ACTIVATIONS))() for _ in range(draw(st.integers(0, 2)))]
    layers.append(nn.Linear(width, draw(st.integers(2, 4))))
    if draw(st.booleans()):
        layers.append(draw(st.sampled_from([nn.Softmax(1), nn.LogSoftmax(-1)])))
    seed = draw(st.integers(0, 2**20))
    x = torch.randn(draw(st.integers(1, 4)), 3, 2, generator=seeded(seed), dtype=torch.float64)
    assert_agrees(redraw(nn.Sequential(*layers), seed), x)


class Functional(nn.Module):
    """A normalisation, functions and methods in place of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(2))
        self.register_buffer("std", 1 + torch.rand(2, 1, 1))
        self.conv = nn.Conv2d(2, 3, 3)
        self.weight = nn.Parameter(torch.rand(4, 3, 2, 2))
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * (1 + (x - self.mean[None, :, None, None]) / self.std)
        x = F.max_pool2d(torch.relu(self.conv(x)), 2)
        x = torch.nn.functional.conv2d(x, self.weight, stride=2).sigmoid()
        x = F.dropout(F.leaky_relu(F.softplus(x), 0.3), 0.5, self.training)
        x = torch.flatten(F.avg_pool2d(x, 1), 1).view(x.size(0), 4, 1, 1).reshape(x.shape[0], -1)
        x = F.adaptive_avg_pool2d(x.view(-1, 4, 1, 1), 1).flatten(1)
        x = F.linear(-x, self.linear.weight[:, :4], self.linear.bias)
        return F.log_softmax(x.tanh() + 0.5, dim=1)


def test_functions_and_methods() -> None:
    x = torch.rand(3, 2, 8, 8, generator=seeded(0), dtype=torch.float64)
    assert_agrees(redraw(Functional()), x)


class Forward(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def with_hook() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def with_own_forward() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].forward = lambda x: 3 * x
    return model


def sets_attribute(module: nn.Module, x: Tensor) -> Tensor:
    module.seen = x
    return module.linear(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "branch": (lambda: Forward(lambda m, x: x + m.linear(x)), "branch"),
    "unused result": (lambda: Forward(lambda m, x: (x.relu(), m.linear(x))[1]), "branch"),
    "control flow": (lambda: Forward(lambda m, x: x if x.sum() > 0 else m.linear(x)), "cannot be traced"),
    "unknown layer": (lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU()), r"1 \(GELU\)"),
    "unknown operation": (lambda: Forward(lambda m, x: m.linear(x).cumsum(1)), "cumsum"),
    "in place": (lambda: Forward(lambda m, x: m.linear(x.mul_(2))), "mul_"),
    "constant first": (lambda: Forward(lambda m, x: 1 - m.linear(x)), "first argument"),
    "noise": (lambda: Forward(lambda m, x: m.linear(x) + torch.randn(4)), "random"),
    "makes a tensor": (lambda: Forward(lambda m, x: m.linear(x) + torch.ones(4)), "makes a tensor"),
    "sets an attribute": (lambda: Forward(sets_attribute), "sets an attribute"),
    "train mode": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(), "statistics of the batch"),
    "no statistics": (lambda: nn.BatchNorm1d(4, track_running_stats=False), "statistics of the batch"),
    "dropout": (lambda: Forward(lambda m, x: F.dropout(m.linear(x))), "train mode"),
    "hook": (with_hook, "has hooks"),
    "own forward": (with_own_forward, "attribute of the instance"),
    "parametrized": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "Parametrized"),
    "softmax over the batch": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(0)), "dimension 0"),
    "circular padding": (lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), "circular"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, why = REFUSED[name]
    model = make() if name == "train mode" else make().eval()
    lowered = sp.lower(model)
    assert not lowered.is_lowered
    assert any(re.search(why, reason) for reason in lowered.reasons), lowered.reasons


@pytest.mark.parametrize("name", ["branch", "hook", "own forward", "parametrized", "unused result", "constant first"])
def test_refused_models_are_differentiated_by_autograd(name: str) -> None:
    model = REFUSED[name][0]().double().eval()
    x = torch.rand(3, 4, generator=seeded(1), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), torch.arange(3), reduction="sum").backward()
    torch.testing.assert_close(sp.input_grad(model, x, torch.arange(3)).grad, leaf.grad, rtol=1e-12, atol=1e-12)


def test_refused_only_when_the_input_is_seen() -> None:
    model = Forward(lambda m, x: m.linear(x) * m.linear.bias[:, None]).eval()
    lowered = sp.lower(model)
    assert lowered.is_lowered
    x = torch.rand(4, 4)
    result = sp.input_grad(lowered, x, torch.arange(4))
    assert "constant of shape (4, 1)" in lowered.reasons[0]
    assert torch.equal(result.logits, model(x))


def test_a_function_is_left_to_autograd() -> None:
    assert sp.lower(torch.sin).reasons == ["builtin_function_or_method is not a torch.nn.Module"]


def test_lowering_is_kept_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    made = lowering._made
    monkeypatch.setattr(lowering, "_made", lambda model, *others: (traces.append(model), made(model, *others))[1])
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU()).eval()
    assert [sp.lower(model).is_lowered for _ in range(3)] == [True] * 3
    assert len(traces) == 1
    model.train()
    assert not sp.lower(model).is_lowered
    model.eval()
    model[2] = nn.Tanh()
    assert sp.lower(model).steps[0].activation.name == "tanh"
    assert len(traces) == 3
    handle = model[0].register_forward_pre_hook(lambda module, args: None)
    assert not sp.lower(model).is_lowered
    handle.remove()
    assert sp.lower(model).is_lowered
    x = torch.rand(2, 4)
    torch.testing.assert_close(sp.input_grad(model, x, torch.arange(2)).logits, model(x))


def test_weights_are_read_live() -> None:
    model = networks.build("mlp", (1, 4, 4), 3).eval()
    x = torch.rand(5, 1, 4, 4, generator=seeded(2))
    lowered = sp.lower(model)
    labels = torch.arange(5) % 3
    before = sp.input_grad(lowered, x, labels)
    with torch.no_grad():
        model.linear1.weight.mul_(2)
        model.linear2.bias.data.add_(1)
    model.linear3.weight = nn.Parameter(-model.linear3.weight.detach())
    after = sp.input_grad(lowered, x, labels)
    assert not torch.equal(before.logits, after.logits)
    torch.testing.assert_close(after.logits, model(x).detach())


def test_the_cache_does_not_keep_models_alive() -> None:
    for make in (lambda: nn.Linear(3, 3), lambda: networks.build("mlp", (1, 2, 2), 2), Functional):
        model = make().eval()
        assert sp.lower(model).is_lowered
        ref = weakref.ref(model)
        del model
        gc.collect()
        assert ref() is None


def test_tracing_leaves_no_trace() -> None:
    for function in (sets_attribute, lambda m, x: m.linear(x) + torch.randn(4)):
        model = Forward(function).eval()
        state: dict[str, Any] = dict(vars(model))
        rng = torch.get_rng_state()
        sp.lower(model)
        assert vars(model) == state
        assert torch.equal(rng, torch.get_rng_state())


def test_autocast_is_left_to_autograd() -> None:
    model = nn.Sequential(nn.Linear(8, 3)).eval()
    x, labels = torch.rand(4, 8), torch.arange(4) % 3
    with torch.autocast("cpu", torch.bfloat16):
        assert sp.input_grad(model, x, labels).logits.dtype is torch.bfloat16


def test_dtypes_that_do_not_fit_fail_as_in_the_model() -> None:
    with pytest.raises(TypeError, match=r"x is torch\.float64, but the model is torch\.float32"):
        sp.input_grad(nn.Sequential(nn.Linear(3, 3)), torch.rand(2, 3, dtype=torch.float64), torch.arange(2))


def test_memory_format_and_strides_do_not_matter() -> None:
    model = redraw(networks.build("lenet5", (3, 8, 8), 4))
    x = torch.rand(3, 3, 8, 8, generator=seeded(3), dtype=torch.float64)
    assert_agrees(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    assert_agrees(model, x.transpose(2, 3))
