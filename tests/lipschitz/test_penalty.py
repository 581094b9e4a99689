"""Penalties on the norms of layers: against the singular values of the operators as matrices, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparring as sp
from made_layers import drawn, matrix
from sparring.lipschitz import penalty
from sparring.lipschitz.operators import GRID, LayerMap, layer_maps
from sparring.lipschitz.penalties import Kind


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
    "grouped, dilated": (lambda: nn.Conv2d(4, 6, (2, 3), padding=(1, 2), dilation=(1, 2), groups=2), (4, 4, 5)),
    "same": (lambda: nn.Conv2d(1, 2, (4, 3), padding="same"), (1, 5, 4)),
    "valid": (lambda: nn.Conv1d(2, 3, 3, padding="valid", stride=2), (2, 8)),
    "circular": (lambda: nn.Conv2d(2, 2, 3, stride=2, padding=(1, 2), padding_mode="circular"), (2, 5, 4)),
    "reflect": (lambda: nn.Conv1d(2, 2, 5, padding=2, padding_mode="reflect"), (2, 6)),
    "replicate, same": (lambda: nn.Conv2d(1, 2, (2, 3), padding="same", padding_mode="replicate"), (1, 3, 4)),
    "three dimensions": (lambda: nn.Conv3d(1, 2, 2, stride=(1, 2, 1), padding=1), (1, 3, 3, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 3, 3)),
    "transposed, dilated": (lambda: nn.ConvTranspose1d(2, 3, 2, dilation=3, output_padding=2), (2, 4)),
    "transposed, three": (lambda: nn.ConvTranspose3d(1, 2, 2, stride=2), (1, 2, 3, 2)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
def test_norm_and_derivative_are_those_of_the_operator(name: str) -> None:
    make, shape = LAYERS[name]
    layer = drawn(make())
    term = penalty(layer, shape, kind="product", iterations=200)
    weight, operator = layer.get_parameter("weight"), matrix(layer, shape)
    right = torch.linalg.matrix_norm(operator, 2)
    torch.testing.assert_close(term(), right, rtol=1e-3, atol=0)
    (vector,) = penalty(layer, shape).state_dict().values()
    image = operator @ vector.flatten()
    value = penalty(layer, shape, kind="product")()
    torch.testing.assert_close(value, image.norm())
    assert value <= right * (1 + 1e-12)
    (ours,) = torch.autograd.grad(value, weight)
    (theirs,) = torch.autograd.grad((image.detach() / image.detach().norm()) @ image, weight)  # of u^T W v
    torch.testing.assert_close(ours, theirs)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution that its image is not too small for."""
    dims = draw(st.integers(1, 2))
    sides = st.lists(st.integers(1, 3), min_size=dims, max_size=dims).map(tuple)
    kernel, stride, dilation = draw(sides), draw(sides), draw(sides)
    groups = draw(st.integers(1, 2))
    transposed = draw(st.booleans())
    mode = "zeros" if transposed else draw(st.sampled_from(["zeros", "circular", "replicate", "reflect"]))
    size = tuple(draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 4)) for k, d in zip(kernel, dilation, strict=True))
    most = [min((n - 1), d * (k - 1) // 2) for n, k, d in zip(size, kernel, dilation, strict=True)]
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups}
    options["padding"] = tuple(draw(st.integers(0, limit)) for limit in most)
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]
    if transposed:
        pairs = zip(stride, dilation, strict=True)
        options["output_padding"] = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in pairs)
        kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
    else:
        options["padding_mode"] = mode
        kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
    return kind(*channels, kernel, **options), (channels[0], *size)


@given(convolutions(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_maps_and_their_adjoints(drawn_layer: tuple[nn.Module, tuple[int, ...]], members: int) -> None:
    """``<A x, y> = <x, A^T y>`` and A x what the layer gives, for one layer and for several stacked."""
    one, shape = drawn_layer
    layers = [drawn(copy.deepcopy(one), i) for i in range(members)]
    weights = torch.stack([layer.get_parameter("weight") for layer in layers]).detach()
    layer = LayerMap("layer", one, members > 1, shape)
    x = torch.randn(members, *shape, generator=seeded(1), dtype=torch.float64)
    y = layer.apply(weights, x)
    for own, at, image in zip(layers, x, y, strict=True):
        torch.testing.assert_close(image, own(at[None])[0] - own(torch.zeros_like(at)[None])[0])
    other = torch.randn(y.shape, generator=seeded(2), dtype=torch.float64)
    back = layer.adjoint(weights, other)
    assert back.shape == x.shape
    torch.testing.assert_close((y * other).flatten(1).sum(1), (x * back).flatten(1).sum(1))


def diagonal(*norms: float) -> nn.Sequential:
    """Linear layers of 3 x 3 with these norms; the other singular values are a half and a fifth of it."""
    layers = [nn.Linear(3, 3).double() for _ in norms]
    with torch.no_grad():
        for layer, norm in zip(layers, norms, strict=True):
            layer.weight.copy_(torch.diag(torch.tensor([norm / 2, norm, norm / 5])))
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("log", math.log(3 * 0.5 * 2)),
        ("square", 9 + 0.25 + 4),
        ("product", 3 * 0.5 * 2),
        ("hinge", (3 - 1.5) ** 2 + (2 - 1.5) ** 2),
    ],
)
def test_kinds(kind: Kind, value: float) -> None:
    model = diagonal(3, 0.5, 2)
    term = penalty(model, kind=kind, weight=0.1, target=1.5, iterations=50)
    assert term().item() == pytest.approx(0.1 * value)
    grads = torch.autograd.grad(term(), [model[i].weight for i in range(3)])
    slopes = {"log": (1 / 3, 2, 0.5), "square": (6, 1, 4), "product": (1, 6, 1.5), "hinge": (3, 0, 1)}[kind]
    for grad, slope in zip(grads, slopes, strict=True):
        wanted = torch.zeros(3, 3, dtype=torch.float64)
        wanted[1, 1] = 0.1 * slope
        torch.testing.assert_close(grad, wanted, atol=1e-9, rtol=1e-9)


def test_an_estimate_is_never_above_the_truth_and_follows_it() -> None:
    """While weights change, one step a call keeps within a per cent."""
    model = drawn(nn.Linear(30, 20))
    term = penalty(model)
    change = torch.randn(20, 30, generator=seeded(3), dtype=torch.float64)
    for _ in range(50):
        with torch.no_grad():
            model.get_parameter("weight").add_(change, alpha=0.02)
        term()
        (estimate,) = term.estimates().values()
        right = torch.linalg.matrix_norm(model.get_parameter("weight"), 2)
        assert estimate <= right * (1 + 1e-12)
    assert estimate > 0.99 * right


@pytest.mark.parametrize("kind", ["log", "square", "product", "hinge"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_weights(kind: Kind, dtype: torch.dtype) -> None:
    """A finite value and derivatives of 0; and the vectors are not lost."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).to(dtype)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    term = penalty(model, (1, 4, 4), kind=kind)
    for _ in range(3):
        value = term()
        assert value.isfinite()
        for grad in torch.autograd.grad(value, [model[0].weight, model[2].weight]):
            assert torch.equal(grad, torch.zeros_like(grad))
    nn.init.ones_(model[2].weight)
    term()
    assert term.estimates()["2"].item() == pytest.approx(4, rel=1e-3)


def test_nothing_is_touched() -> None:
    """The global generator, modes, gradients, and what batch normalisation keeps."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(32, 3), nn.LayerNorm(3)
    )
    model[1].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    term = penalty(model, (1, 6, 6))
    first = term()
    term.estimates()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert term.left_out == ["1", "5"]
    again, other = penalty(model, (1, 6, 6)), penalty(model, (1, 6, 6), generator=seeded(1))
    assert torch.equal(again(), first)
    assert torch.equal(again.state_dict()["4"], term.state_dict()["4"])
    assert not torch.equal(other.state_dict()["4"], again.state_dict()["4"])


class Odd(nn.Module):
    """One convolution at two sizes, one in training alone, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.trained, self.never = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x)[:, :, ::2, ::2])
        return self.trained(x) if self.training else x


def test_sizes_are_those_that_layers_are_given() -> None:
    model = Odd()
    (group,), left_out = layer_maps(model, (1, 9, 6), purpose="this")
    assert [(layer.name, layer.shape) for layer in group] == [("twice", (1, 9, 6))]
    assert left_out == ["trained", "never"]
    (group,), left_out = layer_maps(nn.Sequential(Odd(), nn.Conv1d(3, 1, 5, dilation=9)), purpose="this")
    assert [layer.shape for layer in group] == [(1, GRID, GRID)] * 3 + [(3, 37)]
    assert left_out == []


def test_state_goes_on_with_the_same_bits() -> None:
    model = drawn(nn.Sequential(nn.Conv1d(1, 3, 3), nn.Flatten(), nn.Linear(18, 4)))
    first = penalty(model, (1, 8))
    for _ in range(3):
        first()
    other = penalty(model, (1, 8), generator=seeded(7))
    assert not torch.equal(other(), first())
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        assert torch.equal(other(), first())
    with pytest.raises(ValueError, match=r"state is not that of this penalty: it has vectors \{\}, wanted \{'0': \(1,"):
        other.load_state_dict({})


def members(name: str, count: int = 3) -> tuple[list[nn.Module], tuple[int, ...]]:
    makes: dict[str, Callable[[], nn.Module]] = {
        "dense": lambda: sp.networks.mlp((8, 5, 3)),
        "convolutional": lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ),
        "not stacked": lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 3, 2), nn.Softmax(1), nn.Flatten(), nn.Linear(48, 3)
        ),
    }
    shape = (1, 2, 4) if name == "dense" else (2, 4, 4) if name == "convolutional" else (2, 3, 3)
    return [drawn(makes[name](), i) for i in range(count)], shape


@pytest.mark.parametrize("name", ["dense", "convolutional", "not stacked"])
@pytest.mark.parametrize("kind", ["log", "product", "hinge"])
def test_of_an_ensemble_it_is_the_sum_over_its_members(name: str, kind: Kind) -> None:
    models, shape = members(name)
    stack, modules = sp.StackedEnsemble(models), sp.Ensemble(copy.deepcopy(models))
    keys = [key for key, _ in models[0].named_modules() if f"{key}.weight" in models[0].state_dict()]
    of_stack, of_modules = penalty(stack, shape, kind=kind), penalty(modules, shape, kind=kind)
    vectors = of_stack.state_dict()
    of_modules.load_state_dict(
        {f"models.{i}.{key}": vectors[f"net.{key}"][i : i + 1] for i in range(3) for key in keys}
    )
    together, apart = of_stack(stack), of_modules(modules)
    torch.testing.assert_close(apart, together)
    ours = torch.autograd.grad(together, [stack.get_parameter(f"net.{key}.weight") for key in keys])
    alone = []
    for i, model in enumerate(models):
        term = penalty(model, shape, kind=kind)
        term.load_state_dict({key: vectors[f"net.{key}"][i : i + 1] for key in keys})
        alone.append(term())
        theirs = torch.autograd.grad(alone[-1], [model.get_parameter(f"{key}.weight") for key in keys])
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine[i], other)
    torch.testing.assert_close(together, torch.stack(alone).sum())
    assert {key: value.shape for key, value in of_stack.estimates().items()} == {f"net.{key}": (3,) for key in keys}
    assert {value.shape for value in of_modules.estimates().values()} == {()}


def test_parametrised_weights() -> None:
    """The norm is that of the weight that the layer uses, and towards what it is made of there are derivatives."""

    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model = diagonal(3, 0.5)
    nn.utils.parametrize.register_parametrization(model[0], "weight", Double())
    term = penalty(model, kind="product", iterations=50)
    assert term().item() == pytest.approx(3)
    assert term.left_out == []
    (grad,) = torch.autograd.grad(term(), model[0].parametrizations.weight.original)
    assert grad[1, 1].item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cube"}, r"kind is 'cube'; accepted: 'log', 'square', 'product', 'hinge'"),
        ({"weight": -1.0}, r"weight is -1.0; accepted: 0 <= weight < inf"),
        ({"target": math.nan}, r"target is nan; accepted: 0 <= target < inf"),
        ({"iterations": 0}, r"iterations is 0: give a whole number, 1 at least"),
        ({"input_shape": (2, 2)}, r"input_shape is \(2, 2\), which the model does not take: mat1 and mat2"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        penalty(nn.Linear(3, 2), **options)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="model has no linear layer and no convolution that a penalty could act on"):
        penalty(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))
    models, _ = members("dense")
    with pytest.raises(ValueError, match="model has an ensemble within, 1: a penalty takes the ensemble itself"):
        penalty(nn.Sequential(nn.Identity(), sp.StackedEnsemble(models)))
    term = penalty(models[0])
    assert torch.equal(term(nn.Sequential(models[0])), penalty(models[0])())
    with pytest.raises(ValueError, match="model is not the one that this penalty was made for"):
        term(models[1])


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-18, 1e18, 1e25, 1e30])
@pytest.mark.parametrize("conv", [False, True])
def test_weights_of_any_size_in_float32(scale: float, conv: bool) -> None:
    """The norm of a scaled layer is that of the layer, scaled, and the derivative the same."""
    found = []
    for factor in (1.0, scale):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            layer = nn.Conv2d(2, 3, 3) if conv else nn.Linear(6, 5)
        with torch.no_grad():
            layer.weight *= factor
        term = penalty(layer, (2, 8, 8) if conv else (6,), kind="product", iterations=20)()
        (grad,) = torch.autograd.grad(term, layer.weight)
        found.append((float(term.detach()) / factor, grad))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-4)
