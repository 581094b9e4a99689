"""Certified radii and local bounds: no attack inside a radius, no Jacobian above a bound."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sparring import attacks, data, networks
from sparring.lipschitz.empirical import empirical_lower_bound
from sparring.lipschitz.local import local_bound
from sparring.lipschitz.network import layer_bounds
from sparring.lipschitz.radius import certified_radius

EVERYWHERE = (-10.0, 10.0)  # attacks may leave the images' range


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", split="test")


@pytest.fixture(scope="module")
def contracting() -> nn.Module:
    """A perceptron for the digits, trained with no layer's norm above 1."""
    train = data.load("digits", split="train")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = networks.mlp((64, 48, 48, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    draws = torch.Generator().manual_seed(0)
    for _ in range(150):
        some = torch.randint(len(train), (256,), generator=draws)
        loss = F.cross_entropy(20 * model(train.images[some]), train.labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for layer in model:
                if isinstance(layer, nn.Linear):
                    layer.weight /= torch.linalg.matrix_norm(layer.weight, 2).clamp(min=1)
    return model.eval()


def withstands(model: nn.Module, x: Tensor, y: Tensor, radius: Tensor) -> None:
    """Attacks in balls of these radii, each with room of its own for rounding in float32, find nothing."""
    certified = radius > 0
    x, y, eps = x[certified], y[certified], radius[certified].float()
    found = [
        attacks.fgsm(model, x, y, eps=eps, norm=2, bounds=EVERYWHERE, return_result=True),
        attacks.pgd(model, x, y, eps=eps, norm=2, steps=30, bounds=EVERYWHERE, return_result=True),
        attacks.apgd(model, x, y, eps=eps, norm=2, steps=40, bounds=EVERYWHERE, return_result=True),
        attacks.apgd(model, x, y, eps=eps, norm=2, steps=40, loss="dlr", bounds=EVERYWHERE, return_result=True),
    ]
    for result in found:
        assert isinstance(result, attacks.AttackResult)
        assert not bool(result.success.any())


def test_no_attack_within_a_radius(contracting: nn.Module, digits: data.Dataset) -> None:
    for local, count in ((False, len(digits)), (True, 120)):
        x, y = digits.images[:count], digits.labels[:count]
        radius = certified_radius(contracting, x, y, local=local)
        right = contracting(x).argmax(1) == y
        assert bool((radius[~right] == 0).all())
        assert float((radius > 0.1).double().mean()) > 0.7  # of images whose pixels lie in [0, 1]
        withstands(contracting, x, y, radius)
    larger = attacks.apgd(contracting, x, y, eps=1.0, norm=2, steps=40, return_result=True)
    assert isinstance(larger, attacks.AttackResult)
    assert float(larger.success.double().mean()) > 0.5  # attacks that find nothing inside do find what is outside


def test_local_radii_are_larger(contracting: nn.Module, digits: data.Dataset) -> None:
    x, report = digits.images[:60], layer_bounds(contracting, digits.input_shape)
    plain = certified_radius(contracting, x, report=report)
    local = certified_radius(contracting, x, report=report, local=True)
    assert bool((local >= plain).all())
    assert float((local > 1.01 * plain).double().mean()) > 0.3
    torch.testing.assert_close(certified_radius(contracting, x), plain)


def test_closed_form_of_a_linear_classifier() -> None:
    """The radius is then the distance to the nearest decision boundary, but for rounding."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).eval()
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    weight, bias = model[1].weight.detach().double(), model[1].bias.detach().double()
    logits = x.double() @ weight.T + bias
    y = logits.argmax(1)
    gaps = (logits.gather(1, y[:, None]) - logits) / (weight[y][:, None] - weight).norm(dim=2)
    distance = gaps.masked_fill(gaps.isnan(), math.inf).amin(1)
    radius = certified_radius(model, x)
    assert bool((radius <= distance).all())
    torch.testing.assert_close(radius, distance, rtol=1e-3, atol=1e-4)


def test_the_margin_over_root_two_where_no_dense_layer_is_last() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh()).eval()
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    report = layer_bounds(model, (6,))
    top = model.double()(x.double()).detach().topk(2, 1).values
    radius = certified_radius(model.float(), x, report=report)
    torch.testing.assert_close(radius, (top[:, 0] - top[:, 1]) / (math.sqrt(2) * report.upper), rtol=1e-3, atol=1e-5)


def test_where_nothing_depends_on_the_input() -> None:
    """A constant classifier withstands everything, one without a margin nothing."""
    model = nn.Linear(3, 2).eval()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 2.0]))
    x = torch.ones(1, 3)
    assert certified_radius(model, x).item() == math.inf
    assert certified_radius(model, x, torch.tensor([0])).item() == 0
    with torch.no_grad():
        model.bias.zero_()
    assert certified_radius(model, x).item() == 0


def test_classes_given_or_not(contracting: nn.Module, digits: data.Dataset) -> None:
    x = digits.images[:30]
    said = contracting(x).argmax(1)
    assert torch.equal(certified_radius(contracting, x, said), certified_radius(contracting, x))
    assert bool((certified_radius(contracting, x, (said + 1) % 10) == 0).all())
    assert certified_radius(contracting, x[:0]).shape == (0,)


@settings(max_examples=15)
@given(seed=st.integers(0, 500), radius=st.sampled_from([0.0, 0.05, 0.5, 5.0]))
def test_local_bounds_hold_in_the_ball(seed: int, radius: float) -> None:
    """Jacobians inside the ball, and differences between points of it, stay below the bound."""
    draws = torch.Generator().manual_seed(seed)
    model = networks.mlp((5, 7, 4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) - 0.3)
    x = torch.randn(4, 5, generator=draws)
    bound = local_bound(model, x, radius)
    wide = copy.deepcopy(model).double()
    for center, upper in zip(x.double(), bound, strict=True):
        points = torch.randn(20, 5, generator=draws, dtype=torch.float64)
        points = center + radius * points / points.norm(dim=1, keepdim=True) * torch.rand(20, 1, generator=draws)
        for point in points[:6]:
            jacobian = torch.autograd.functional.jacobian(wide, point[None])[0, :, 0]
            assert float(torch.linalg.matrix_norm(jacobian, 2)) <= float(upper)
        moved = torch.pdist(wide(points).detach())
        assert bool((moved <= float(upper) * torch.pdist(points) + 1e-12).all())


def test_local_bounds_below_the_product_and_the_whole(contracting: nn.Module, digits: data.Dataset) -> None:
    """At radius 0 no more than the product of norms without the units that are off; far away that of the network."""
    x = digits.images[:20]
    whole = layer_bounds(contracting, digits.input_shape).upper
    assert local_bound(contracting, x, 1e6).tolist() == pytest.approx([whole] * 20, rel=1e-3)
    here = local_bound(contracting, x, 0)
    wide = copy.deepcopy(contracting).double()
    weights = [layer.weight.detach() for layer in wide if isinstance(layer, nn.Linear)]
    first, second = (wide[:count](x.double()) > 0 for count in (3, 5))
    for i in range(len(x)):
        parts = (weights[0][first[i]], weights[1][second[i]][:, first[i]], weights[2][:, second[i]])
        jacobian = parts[2] @ parts[1] @ parts[0]
        assert float(torch.linalg.matrix_norm(jacobian, 2)) <= float(here[i])
        product = math.prod(float(torch.linalg.matrix_norm(part, 2)) for part in parts)
        assert float(here[i]) <= product * (1 + 1e-3)
    assert float(here.mean()) < 0.97 * whole
    radii = torch.linspace(0, 2, 20)
    several = local_bound(contracting, x, radii)
    assert several[7] == pytest.approx(float(local_bound(contracting, x[7:8], float(radii[7]))[0]), rel=1e-6)
    assert bool((several >= here * (1 - 1e-6)).all())


def test_one_layer_and_two() -> None:
    """One has its norm everywhere; of two the bound is, where every unit is on or off, above the linear map's."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    one = nn.Linear(4, 3)
    norm = float(torch.linalg.matrix_norm(one.weight.detach().double(), 2))
    assert local_bound(one, x, 0.3).tolist() == pytest.approx([norm] * 5, rel=2e-4)
    two = networks.mlp((4, 6, 3))
    with torch.no_grad():
        two.linear1.bias.copy_(torch.tensor([9.0, -9.0, 9.0, -9.0, -9.0, -9.0]))
    left = two.linear2.weight[:, [0, 2]].detach().double() @ two.linear1.weight[[0, 2]].detach().double()
    found = local_bound(two, x, 0.5)
    assert bool((found >= torch.linalg.matrix_norm(left, 2)).all())
    assert bool((found <= local_bound(two, x, 100.0)).all())


def test_layers_without_an_activation_between_them() -> None:
    """Units of a layer that no ReLU follows are never off; the classes meet at a distance of .0206."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.copy_(torch.tensor([0.0, -0.2]))
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
        model[1].bias.copy_(torch.tensor([-1.9, 0.0]))
    x = torch.tensor([[1.0, 0.0]])
    assert 0.019 <= float(certified_radius(model, x, local=True)) <= 0.1 / math.sqrt(26) + 1e-3
    assert float(local_bound(model, x, 0.0)) >= 5


@settings(max_examples=10)
@given(seed=st.integers(0, 500), gaps=st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_local_bounds_with_any_number_of_rectifiers(seed: int, gaps: list[int]) -> None:
    draws = torch.Generator().manual_seed(seed)
    sizes, parts = (5, 3, 6, 4, 3), list[nn.Module]()
    for i in range(4):
        parts.append(nn.Linear(sizes[i], sizes[i + 1], dtype=torch.float64))
        parts += [nn.ReLU() for _ in range([*gaps, 0][i])]
    model = nn.Sequential(*parts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    x = torch.randn(3, 5, generator=draws, dtype=torch.float64)
    for center, upper in zip(x, local_bound(model, x, 1e-9), strict=True):
        jacobian = torch.autograd.functional.jacobian(model, center[None])[0, :, 0]
        assert float(torch.linalg.matrix_norm(jacobian, 2)) <= float(upper) * (1 + 1e-9)


def test_reports_that_prove_nothing_are_refused() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).eval(), torch.ones(2, 4)
    with pytest.raises(ValueError, match="report holds estimates"):
        certified_radius(model, x, report=layer_bounds(model, 4, certified=False))
    with pytest.raises(ValueError, match="report is of weights alone"):
        certified_radius(model, x, report=layer_bounds(model.state_dict()))
    with pytest.raises(ValueError, match="report is of a model with 3 logits"):
        certified_radius(nn.Linear(4, 2).eval(), x, report=layer_bounds(model, 4))
    with pytest.raises(ValueError, match="beyond the numbers of float64"):
        certified_radius(nn.Linear(4, 3).eval(), x, report=replace(layer_bounds(model, 4), upper=math.inf))


def test_networks_that_are_others_in_float64() -> None:
    """Bounded as they are, which the report says; radii and bounds from below are refused, for they are of float64."""

    class Follows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(x, (4,))

    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    for part, reason in (
        (Follows(), r"add.Scalar with 1\.19\d*e-07 in place of 2\.2\d*e-16"),
        (Casts(), "must have the same dtype"),
    ):
        model, x = nn.Sequential(part, nn.Linear(4, 3)).eval(), torch.full((2, 4), 1e-5)
        report = layer_bounds(model, 4, data=x)
        assert report.lower is None
        assert report.upper < math.inf
        assert re.search(reason, report.note)
        assert report.note in report.table()
        for call in (lambda: empirical_lower_bound(model, x), lambda: certified_radius(model, x)):  # noqa: B023
            with pytest.raises(ValueError, match=f"model has no float64 copy.*{reason}"):
                call()


def test_the_eps_of_a_module_is_that_of_its_dtype() -> None:
    """`RMSNorm` takes it from the dtype; the copy in float64 keeps it."""
    model, x = nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 3)).eval(), torch.full((2, 4), 1e-6)
    report = layer_bounds(model, 4, data=x)
    assert report.note == ""
    assert report.lower is not None
    norm = float(torch.linalg.matrix_norm(model[1].weight.detach().double(), 2))
    assert report.lower <= report.upper == pytest.approx(norm / math.sqrt(torch.finfo(torch.float32).eps), rel=1e-5)
    assert report.lower > 0
    assert certified_radius(model, x).shape == (2,)


def test_derivatives_that_are_not_the_function_s_do_not_count() -> None:
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 70 * grad

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Steep.apply(x)

    report = layer_bounds(Net(), 3, data=torch.rand(4, 3))
    assert report.upper == 2
    assert report.lower == pytest.approx(2)
    assert report.lower <= 2


@pytest.mark.parametrize("exponent", [-600, 600])
def test_local_bounds_at_any_scale(exponent: int) -> None:
    model = networks.mlp((4, 5, 3)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        model.linear1.bias.zero_()
    before = local_bound(model, x, 0.1)
    with torch.no_grad():
        model.linear1.weight *= 2.0**exponent
    torch.testing.assert_close(local_bound(model, x, 0.1) * 2.0**-exponent, before, rtol=1e-3, atol=0)


def test_what_local_bounds_do_not_serve() -> None:
    x = torch.ones(2, 4)
    cases: list[tuple[nn.Module, str]] = [
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), "there is Tanh"),
        (nn.Sequential(nn.Linear(4, 4), nn.Hardshrink()), "jumps"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval(), "there is BatchNorm"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), "must be a chain"),
        (nn.Sequential(nn.Linear(4, 2), nn.ReLU()), "must be a chain"),
        (nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 1, 1), nn.Flatten()), "must be a chain"),
    ]
    for model, message in cases:
        with pytest.raises(ValueError, match=message):
            local_bound(model, x, 0.1)


def test_bad_arguments_are_named() -> None:
    model, x = nn.Linear(4, 3).eval(), torch.ones(2, 4)
    calls: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "x must be a floating-point tensor", lambda: certified_radius(model, x.long())),
        (ValueError, "x must be a batch", lambda: certified_radius(model, x[0])),
        (TypeError, "y must be a tensor of integers", lambda: certified_radius(model, x, x[:, 0])),
        (
            ValueError,
            r"y must have shape \(2,\)",
            lambda: certified_radius(model, x, torch.zeros(3, dtype=torch.int64)),
        ),
        (ValueError, "y must lie in 0 ... 2", lambda: certified_radius(model, x, torch.tensor([0, 3]))),
        (ValueError, "eval mode", lambda: certified_radius(nn.Linear(4, 3).train(), x)),
        (ValueError, "at least two classes", lambda: certified_radius(nn.Linear(4, 1).eval(), x)),
        (ValueError, "no Lipschitz bound: 0: Hardshrink: jumps", lambda: certified_radius(nn.Hardshrink().eval(), x)),
        (ValueError, "x must be finite", lambda: certified_radius(model, x * math.nan)),
        (ValueError, "x must have the dtype of the model's", lambda: certified_radius(model, x.double())),
        (ValueError, "radius must be a finite number", lambda: local_bound(model, x, -1.0)),
        (ValueError, r"radius must be a number or have shape \(2,\)", lambda: local_bound(model, x, torch.ones(3))),
    ]
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.shared
def test_no_attack_within_a_radius_on_mnist(shared: Path) -> None:
    """1000 test images and a network trained by others, without any thought of its norms."""
    images = data.load("mnist", split="test", data_dir=shared / "data" / "mnist")[:1000]
    model = networks.build("mlp-300-100", (1, 28, 28), 10)
    model = networks.load_weights(model, shared / "models" / "mnist_mlp.safetensors").eval()
    x, y = images.images, images.labels
    report = layer_bounds(model, (1, 28, 28))
    assert report.upper < 0.65 * report.product
    plain = certified_radius(model, x, y, report=report)
    assert float(plain.median()) > 0.3
    withstands(model, x, y, plain)
    x, y = x[:60], y[:60]
    local = certified_radius(model, x, y, report=report, local=True)
    assert float(local.mean()) > 1.08 * float(plain[:60].mean())
    withstands(model, x, y, local)


class Drawing(nn.Module):
    """A linear layer of what a function makes of the input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(self.function(x)))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.1),
    "dropout of nearly nothing": lambda x: F.dropout(x, 1e-6),
    "noise": lambda x: x + torch.randn(4).to(x),
    "noise of Python": lambda x: x + random.random(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_networks_that_draw_have_no_class(name: str) -> None:
    model, x = Drawing(DRAWS[name]).eval(), torch.rand(5, 4)
    before = torch.get_rng_state()
    for report in (None, layer_bounds(model, 4)):
        with pytest.raises(ValueError, match=r"draws random numbers|no Lipschitz bound"):
            certified_radius(model, x, report=report)
    assert torch.equal(before, torch.get_rng_state())
    assert len(certified_radius(Drawing(lambda x: F.dropout(x, 0.1, False)).eval(), x)) == 5


def test_networks_that_give_no_logits() -> None:
    with pytest.raises(TypeError, match=r"model must return logits \(B, K\), a tensor; got tuple"):
        certified_radius(Pair().eval(), torch.rand(5, 4))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def test_reports_of_another_size_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    report = layer_bounds(model, (1, 2, 2))
    assert report.input_shape == (1, 2, 2)
    with pytest.raises(ValueError, match=r"inputs of shape \(1, 2, 2\), but those of x have \(1, 16, 16\)"):
        certified_radius(model, torch.rand(2, 1, 16, 16), report=report)
    assert len(certified_radius(model, torch.rand(2, 1, 2, 2), report=report)) == 2
    not_one: Any = 5
    with pytest.raises(TypeError, match="report must be what layer_bounds returns"):
        certified_radius(model, torch.rand(2, 1, 2, 2), report=not_one)


@pytest.mark.parametrize("function", [lambda x: 3 * x, lambda x: torch.cat([x, x], 1), lambda x: x + x])
def test_the_jump_of_softplus_is_taken_off(function: Callable[[Tensor], Tensor]) -> None:
    """The class changes where softplus jumps to x itself, by e^-20 / beta."""
    beta, jump = 1e-6, math.log1p(math.exp(-20)) / 1e-6
    threshold = 20 / beta
    model = nn.Sequential(nn.Linear(1, 1), nn.Softplus(beta), Drawing(function), nn.Linear(3, 2)).double().eval()
    width = function(torch.ones(1, 1)).shape[1]
    model[2].layer = nn.Linear(width, 3).double()
    with torch.no_grad():
        for layer in (model[0], model[2].layer, model[3]):
            layer.weight.fill_(0)
            layer.bias.fill_(0)
        model[0].weight.fill_(1)
        model[0].bias.fill_(threshold)
        model[2].layer.weight[0] = 1
        model[3].weight[0, 0] = 1
        before = model[2](model[1](torch.full((1, 1), threshold, dtype=torch.float64)))[0, 0]
        after = model[2](torch.full((1, 1), threshold, dtype=torch.float64) * (1 + 2**-52))[0, 0]
        model[3].bias[1] = (before + after) / 2
    report = layer_bounds(model.eval(), 1)
    assert report.jumps >= jump
    x = torch.tensor([[-jump / 100]], dtype=torch.float64)
    moved = torch.tensor([[1e-8]], dtype=torch.float64)
    assert int(model(x).argmax()) != int(model(moved).argmax())
    assert float(certified_radius(model, x)) <= jump / 100
    assert layer_bounds(nn.Sequential(nn.Linear(1, 1), nn.Tanh()), 1).jumps == 0


class Alternating(nn.Module):
    """Adds what a counter of its own says, which is no generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return cast(Tensor, self.layer(x)) * (1 + self.calls[0] % 2)


def test_networks_that_change_from_call_to_call_have_no_class() -> None:
    model, report = Alternating().eval(), layer_bounds(nn.Linear(4, 3), 4)
    with pytest.raises(ValueError, match="changes from call to call"):
        certified_radius(model, torch.rand(5, 4), report=report)


def test_no_examples_at_all() -> None:
    assert certified_radius(nn.Linear(4, 3).eval(), torch.rand(0, 4)).shape == (0,)


def test_networks_that_look_at_how_many_there_are_are_refused_with_any_report() -> None:
    model = Drawing(lambda x: x * (1 + x.shape[0] // 8)).eval()
    with pytest.raises(ValueError, match="another result in a batch of 8 than by itself"):
        certified_radius(model, torch.rand(8, 4), report=layer_bounds(nn.Linear(4, 3), 4))
    with pytest.raises(ValueError, match="computes with the size of the batch"):
        certified_radius(model, torch.rand(2, 4))
