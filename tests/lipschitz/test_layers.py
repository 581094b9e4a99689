"""The constant of each operation, against Jacobians, closed forms and the other ways to write the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.attacks._model import Normalize
from sparring.lipschitz.gains import activations
from sparring.lipschitz.gains.pooling import adaptive_windows, windows
from sparring.lipschitz.gains.weighted import FOLDING_ERROR, folding_error
from sparring.lipschitz.network import layer_bounds
from sparring.networks import MaxNorm


class Calls(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Any], Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def bound(model: nn.Module, shape: tuple[int, ...]) -> float:
    report = layer_bounds(model, shape, tol=1e-9)
    assert report.refused == (), report.refused
    return report.upper


def steepest(model: nn.Module, shape: tuple[int, ...], points: int = 8, scale: float = 1.0) -> float:
    """The largest norm of a Jacobian at random points, in float64."""
    draws = torch.Generator().manual_seed(0)
    model = model.double()
    norms = []
    for _ in range(points):
        x = scale * torch.randn(1, *shape, generator=draws, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x + 0), x)  # some work in place
        norms.append(float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2)))
    return max(norms)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        return make()


def is_tight(found: float, truth: float, to: float = 1e-6) -> None:
    assert truth * (1 - 1e-12) <= found <= truth * (1 + to)


LINEAR: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(12, 7), (12,)),
    "Linear of several vectors": (lambda: nn.Linear(6, 7), (3, 6)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 9)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 7, 6)),
    "Conv2d, same": (lambda: nn.Conv2d(2, 2, (3, 2), padding="same"), (2, 6, 5)),
    "Conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "Conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
    "Conv2d, reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 5)),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), (2, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=2), (4, 4, 4)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(1, 2, 2, stride=2), (1, 3, 3, 3)),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, 2, 1), (2, 9)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False), (1, 8, 7)),
    "AvgPool2d, padding counted": (lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), (1, 8, 7)),
    "AvgPool2d, divisor": (lambda: nn.AvgPool2d((2, 3), (2, 1), divisor_override=5), (1, 6, 6)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), (1, 4, 4, 4)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((3, 2)), (2, 7, 5)),
    "Upsample": (lambda: nn.Upsample(scale_factor=3), (1, 3, 4)),
    "Upsample to a size": (lambda: nn.Upsample((5, 7)), (1, 3, 4)),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((0, 1, 2, 0)), (1, 3, 3)),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(2), (1, 4, 5)),
    "ReplicationPad1d": (lambda: nn.ReplicationPad1d((3, 1)), (2, 4)),
    "CircularPad2d": (lambda: nn.CircularPad2d(1), (1, 3, 3)),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), (4, 2, 3)),
    "Flatten": (nn.Flatten, (2, 3)),
    "Identity": (nn.Identity, (3,)),
    "Dropout": (lambda: nn.Dropout(0.4).eval(), (5,)),
    "Normalize": (lambda: Normalize(torch.tensor([[[0.3]], [[0.1]]]), torch.tensor([[[0.5]], [[0.2]]])), (2, 3, 3)),
    "mean": (lambda: Calls(lambda x: x.mean((2, 3))), (2, 3, 5)),
    "sum": (lambda: Calls(lambda x: torch.sum(x, dim=-1, keepdim=True)), (2, 7)),
    "slice": (lambda: Calls(lambda x: x[:, 1:, ::2]), (3, 5)),
    "index twice": (lambda: Calls(lambda x: x[:, [0, 1, 1, 1]]), (3,)),
    "expand": (lambda: Calls(lambda x: x[:, None].expand(-1, 5, -1)), (3,)),
    "repeat": (lambda: Calls(lambda x: x.repeat(1, 2, 3)), (2, 3)),
    "flip and permute": (lambda: Calls(lambda x: x.flip(1).permute(0, 2, 1).contiguous()), (2, 3)),
    "chunk": (lambda: Calls(lambda x: torch.chunk(x, 3, dim=1)[1]), (6,)),
    "F.pad": (lambda: Calls(lambda x: F.pad(x, (2, 1), mode="replicate")), (2, 4)),
    "F.interpolate": (lambda: Calls(lambda x: F.interpolate(x, scale_factor=2)), (1, 3)),
    "scaled": (lambda: Calls(lambda x: -3 * x / 2 + 1), (4,)),
    "scaled by channel": (lambda: Calls(lambda x: x * torch.tensor([1.0, -4.0, 2.0])[:, None]), (3, 2)),
    "constant less broadcast": (lambda: Calls(lambda x: torch.ones(4, 3) - x), (1, 3)),
    "added to itself": (lambda: Calls(lambda x: x + x), (3,)),
    "added with alpha": (lambda: Calls(lambda x: torch.add(x, x, alpha=2.5)), (3,)),
    "subtracted from": (lambda: Calls(lambda x: torch.rsub(x, torch.ones(3), alpha=2.5)), (3,)),
    "concatenated": (lambda: Calls(lambda x: torch.cat([x, 2 * x], 1)), (3,)),
    "stacked": (lambda: Calls(lambda x: torch.stack([x, x, x], 1)), (3,)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations_get_their_norm(name: str) -> None:
    """float32 weights are taken exactly, and the Jacobian of a linear map in float64 is the map."""
    make, shape = LINEAR[name]
    model = seeded(make)
    is_tight(bound(model, shape), steepest(model, shape, points=1))


def test_convolution_with_reflection_is_enclosed() -> None:
    """Where the method is not tight, the bound still is one."""
    model = seeded(lambda: nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate"))
    assert bound(model, (1, 4)) >= steepest(model, (1, 4), points=1)


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float, list[Callable[[Any], Any]]]] = {
    "ReLU": (nn.ReLU, 1, [F.relu, torch.relu, lambda x: x.relu()]),
    "ReLU in place": (lambda: nn.ReLU(inplace=True), 1, [F.relu_, lambda x: (x + 0).relu_()]),
    "ReLU6": (nn.ReLU6, 1, [F.relu6]),
    "Hardtanh": (nn.Hardtanh, 1, [F.hardtanh, lambda x: x.clamp(-1, 1), lambda x: torch.clamp(x, min=0)]),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.1), 1, [F.leaky_relu]),
    "LeakyReLU, steep": (lambda: nn.LeakyReLU(-1.5), 1.5, [lambda x: F.leaky_relu(x, -1.5)]),
    "PReLU": (lambda: nn.PReLU(3, init=1.25), 1.25, [lambda x: F.prelu(x, torch.tensor([0.1, -1.25, 0.3]))]),
    "RReLU": (lambda: nn.RReLU(0.2, 2.0).eval(), 1.1, [lambda x: F.rrelu(x, 0.2, 2.0)]),
    "ELU": (lambda: nn.ELU(1.75), 1.75, [lambda x: F.elu(x, 1.75)]),
    "CELU": (lambda: nn.CELU(3.0), 1, [lambda x: F.celu(x, alpha=2.0)]),
    "SELU": (nn.SELU, 1.7580993408473766, [F.selu, torch.selu]),
    "GELU": (nn.GELU, 1.1289041451851547, [F.gelu]),
    "GELU, tanh": (lambda: nn.GELU("tanh"), 1.1289930686587718, [lambda x: F.gelu(x, approximate="tanh")]),
    "SiLU": (nn.SiLU, 1.0998393201288669, [F.silu]),
    "Mish": (nn.Mish, 1.0884981612517278, [F.mish]),
    "Sigmoid": (nn.Sigmoid, 0.25, [torch.sigmoid, F.sigmoid, lambda x: x.sigmoid()]),
    "LogSigmoid": (nn.LogSigmoid, 1, [F.logsigmoid]),
    "Tanh": (nn.Tanh, 1, [torch.tanh, F.tanh, lambda x: x.tanh()]),
    "Tanhshrink": (nn.Tanhshrink, 1, [F.tanhshrink]),
    "Softshrink": (nn.Softshrink, 1, [F.softshrink]),
    "Softplus": (lambda: nn.Softplus(2.0), 1, [F.softplus]),
    "Softsign": (nn.Softsign, 1, [F.softsign]),
    "Hardsigmoid": (nn.Hardsigmoid, 1 / 6, [F.hardsigmoid]),
    "Hardswish": (nn.Hardswish, 1.5, [F.hardswish]),
    "Threshold": (lambda: nn.Threshold(0.5, 0.5), 1, [lambda x: F.threshold(x, 0.0, 0.0)]),
    "abs": (lambda: Calls(torch.abs), 1, [abs, lambda x: x.abs()]),
    "sin": (lambda: Calls(torch.sin), 1, [torch.cos, torch.atan]),
    "erf": (lambda: Calls(torch.erf), 2 / math.sqrt(math.pi), [lambda x: x.erf()]),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_functions(name: str) -> None:
    make, constant, functions = ACTIVATIONS[name]
    model = make()
    assert constant <= bound(model, (3,)) <= constant * (1 + 1e-14)
    if name != "Hardsigmoid":  # whose derivative torch computes with 1 / 6 rounded to float32
        assert bound(model, (3,)) >= steepest(model, (3,), points=50)
    for function in functions:
        is_tight(bound(Calls(function), (3,)), constant, 1e-14)


OPTIONS: dict[str, tuple[Any, ...]] = {
    "prelu": (torch.tensor(0.3).double(),),
    "threshold": (0.0, 0.0),
    "clamp": (-1.0, 1.0),
    "clip": (-1.0, 1.0),
    "clamp_min": (0.0,),
    "clamp_max": (0.0,),
}


@pytest.mark.parametrize("name", sorted(activations.SLOPES))
def test_slopes_hold_along_a_line(name: str) -> None:
    """Difference quotients on a fine grid, in float64, lie between the slopes, and reach the larger of them."""
    options = OPTIONS.get(name, ())
    function = getattr(F, name, None) or getattr(torch, name)
    x = torch.linspace(-12, 12, 480_001, dtype=torch.float64)
    values = function(x, *options)
    quotients = values.diff() / x.diff()
    found = activations.SLOPES[name](*options)
    assert float(quotients.min()) >= found.low - 1e-9
    assert float(quotients.max()) <= found.high + 1e-9
    assert max(-float(quotients.min()), float(quotients.max())) == pytest.approx(found.constant, rel=1e-4)


def test_softmax_and_its_logarithm() -> None:
    for model in (nn.Softmax(1), Calls(lambda x: F.softmax(x, dim=1)), Calls(lambda x: x.softmax(-1)), nn.Softmin(1)):
        assert bound(model, (2,)) == 0.5
        assert steepest(model, (2,), scale=1e-6) == pytest.approx(0.5, abs=1e-6)  # attained by two equal logits
    for model in (nn.LogSoftmax(1), Calls(lambda x: torch.log_softmax(x, 1))):
        is_tight(bound(model, (7,)), math.sqrt(7), 1e-14)
        assert steepest(model, (7,), scale=50.0) == pytest.approx(math.sqrt(7), rel=1e-6)  # where one logit leads
    assert bound(Calls(lambda x: x.logsumexp(1)), (7,)) == 1


@pytest.mark.parametrize(("train", "shape"), [(False, (3,)), (True, (3,)), (False, (3, 4, 4))])
def test_dropout_in_either_mode(train: bool, shape: tuple[int, ...]) -> None:
    for model in (nn.Dropout(0.75).train(train), Calls(lambda x: F.dropout(x, 0.75, train))):
        is_tight(bound(model, shape), 4.0 if train else 1.0, 1e-14)


@given(
    n=st.integers(1, 12),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 5),
    dilation=st.integers(1, 3),
    ceil=st.booleans(),
)
def test_max_pooling_counts_windows(n: int, kernel: int, stride: int, dilation: int, ceil: bool) -> None:
    """Each entry in turn is raised above all others: so many outputs follow it."""
    if dilation * (kernel - 1) + 1 > n:
        return
    pool = nn.MaxPool1d(kernel, stride, kernel // 2, dilation, ceil_mode=ceil)
    follow = max(int(pool(torch.eye(n)[i][None, None]).sum()) for i in range(n))
    is_tight(bound(pool, (1, n)), math.sqrt(follow), 1e-14)


def test_max_pooling_in_two_dimensions_and_as_functions() -> None:
    overlapping = [
        nn.MaxPool2d(3, 2),
        Calls(lambda x: F.max_pool2d(x, 3, 2)),
        Calls(lambda x: torch.max_pool2d(x, 3, 2)),
    ]
    for model in overlapping:
        assert bound(model, (2, 7, 7)) == 2  # up to two windows along each dimension
    assert bound(nn.MaxPool2d(2), (2, 8, 8)) == 1
    assert bound(nn.MaxPool3d(2), (1, 4, 4, 4)) == 1
    assert bound(nn.AdaptiveMaxPool2d((2, 2)), (1, 6, 6)) == 1
    is_tight(bound(nn.AdaptiveMaxPool1d(2), (1, 5)), math.sqrt(2), 1e-14)
    assert bound(Calls(lambda x: x.amax(1)), (6,)) == 1


def test_windows_are_those_of_torch() -> None:
    x = torch.arange(11.0).view(1, 1, -1)
    for count in (1, 3, 4, 11):
        means = (adaptive_windows(11, count) * x[0]).sum(1) / adaptive_windows(11, count).sum(1)
        torch.testing.assert_close(means, F.adaptive_avg_pool1d(x, count)[0, 0])
    taken = windows(11, 4, kernel=2, stride=3, padding=1, dilation=2)
    torch.testing.assert_close(x[0].expand(4, -1).where(taken, -1.0).amax(1), F.max_pool1d(x, 2, 3, 1, 2)[0, 0, :4])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.LayerNorm((3, 4)), (3, 4)),
        (lambda: nn.LayerNorm(5, elementwise_affine=False), (2, 5)),
        (lambda: nn.RMSNorm(6, eps=1e-3), (6,)),
        (lambda: nn.GroupNorm(2, 4), (4, 3)),
        (lambda: nn.InstanceNorm1d(3, affine=True), (3, 6)),
        (lambda: Calls(lambda x: F.layer_norm(x, (5,), eps=1e-3)), (2, 5)),
    ],
)
def test_normalisation_over_the_example(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Nearly constant entries come close to the bound, and nothing goes above it."""
    model = seeded(make)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-2, 2, generator=torch.Generator().manual_seed(1))
    found = bound(model, shape)
    assert found >= steepest(model, shape)
    assert found / 2 <= steepest(model, shape, scale=1e-6) <= found


def test_batch_normalisation_uses_its_statistics() -> None:
    norm = nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -4.0, 2.0]))
        norm.running_var.copy_(torch.tensor([0.01, 1.0, 4.0]))
    functional = Calls(lambda x: F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight.detach()))
    instance = nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval()
    instance.load_state_dict(norm.state_dict())
    for model in (norm, functional, instance):
        is_tight(bound(model, (3, 2, 2)), 1 / math.sqrt(float(norm.running_var[0]) + 1e-5), 1e-12)


def test_max_norm_units() -> None:
    model = seeded(lambda: MaxNorm(3, 5))
    with torch.no_grad():
        model.s.copy_(torch.tensor([[0.5, 1, 1], [1, 2, 4], [-0.5, 1, 1], [1, 1, 1], [3, 1, 1]]))
    found = bound(model, (3,))
    is_tight(found, math.sqrt(4 + 1 + 4 + 1 + 1 / 9), 1e-12)
    assert found >= steepest(model, (3,), points=40)


JUMPS_AND_PRODUCTS: dict[str, tuple[nn.Module, str]] = {
    "attention": (Calls(lambda x: F.scaled_dot_product_attention(x, x, x)), "attention"),
    "product": (Calls(lambda x: x * torch.sigmoid(x)), "product of two activations"),
    "matrix product": (Calls(lambda x: x @ x.transpose(1, 2)), "depends on the input"),
    "square": (Calls(lambda x: x**2), "slope"),
    "quotient": (Calls(lambda x: 1 / x), "divides by an activation"),
    "zero divisor": (Calls(lambda x: x / 0.0), "NaN or inf"),
    "rounding": (Calls(lambda x: x.round()), "jumps"),
    "integers": (Calls(lambda x: x.to(torch.int64)), "whole numbers"),
    "argmax": (Calls(lambda x: x.argmax(1)), "jumps"),
    "threshold": (nn.Threshold(0.1, 0.0), "jumps"),
    "hardshrink": (nn.Hardshrink(), "jumps"),
    "softplus with a jump": (nn.Softplus(threshold=3), "jumps"),
    "gated": (nn.GLU(2), "product of two activations"),
    "bilinear upsampling": (
        Calls(lambda x: F.interpolate(x, scale_factor=2.0, mode="linear")),
        "interpolates by 'linear'",
    ),
    "indices": (nn.MaxPool1d(2, return_indices=True), "whole numbers"),
    "unknown option": (Calls(lambda x: torch.div(x, 2.0, rounding_mode="floor")), "rounds to whole numbers"),
    "nothing to multiply by": (Calls(lambda x: x[:, :0] * torch.ones(4, 0, 4)), "max"),
    "unknown function": (Calls(lambda x: torch.fft.rfft(x).abs()), "no bound is known of fft_rfft"),
    "unknown method": (Calls(lambda x: x.cumsum(1)), "no bound is known of cumsum"),
    "unknown module": (nn.GRU(4, 4, batch_first=True), "no bound is known of GRU"),
    "no deviation": (nn.LayerNorm(4, eps=0.0), "may be 0"),
    "not finite": (nn.PReLU(init=math.inf), "not finite"),
    "a batch's statistics": (nn.BatchNorm1d(4).train(), "statistics of the batch"),
    "no statistics": (nn.BatchNorm1d(4, track_running_stats=False).eval(), "statistics of the batch"),
}


@pytest.mark.parametrize("name", JUMPS_AND_PRODUCTS)
def test_refused_by_name(name: str) -> None:
    model, reason = JUMPS_AND_PRODUCTS[name]
    report = layer_bounds(model, (4, 4))
    assert any(reason in why for _, why in report.refused), report.refused
    assert report.upper == report.product == math.inf
    assert all(text in report.table() for pair in report.refused for text in pair)


def test_weights_that_are_not_numbers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    report = layer_bounds(model, (2,))
    assert [name for name, _ in report.refused] == ["1"]
    assert "NaN" in report.refused[0][1]
    assert [layer.name for layer in report.layers] == ["0"]


@pytest.mark.parametrize("mode", ["circular", "replicate"])
def test_folding_allows_for_entries_that_padding_repeats(mode: str) -> None:
    """An error in the one tap of this kernel is read three times or more: of four entries, padded by four each side."""
    layer = nn.Conv1d(1, 1, 1, padding=4, padding_mode=mode, bias=False, dtype=torch.float64)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        operator = layer(torch.eye(4, dtype=torch.float64)[:, None]).flatten(1).T
    reads = float(torch.linalg.matrix_norm(operator, 2))
    assert reads > 1.7
    assert folding_error(layer.weight.detach(), mode, (4,)) >= FOLDING_ERROR * reads


@pytest.mark.parametrize(("layer", "shape", "method", "upper"), [
    (nn.MaxPool2d(2), (1, 8, 8), "disjoint windows", 1.0), (nn.MaxPool2d(3, 2), (1, 9, 9), "4 windows overlap", 2.0),
    (nn.MaxPool1d(3, 1), (1, 9), "3 windows overlap", 3**0.5), (nn.MaxPool1d(2, 3), (1, 9), "disjoint windows", 1.0),
    (nn.AvgPool2d(2), (1, 8, 8), "product over dimensions", 0.5), (nn.Softmax(1), (4,), "closed form", 0.5),
    (nn.LayerNorm(4), (4,), "largest scale / sqrt(eps)", 1e5**0.5), (nn.LeakyReLU(2.0), (4,), "largest slope", 2.0),
    (nn.Dropout().eval(), (4,), "copies", 1.0), (nn.ReflectionPad2d(1), (1, 4, 4), "4 copies", 2.0),
    (nn.Upsample(scale_factor=3), (1, 4), "3 copies", 3**0.5), (nn.PixelShuffle(2), (4, 2, 2), "copies", 1.0),
])  # fmt: skip
def test_what_is_said_of_a_layer(layer: nn.Module, shape: tuple[int, ...], method: str, upper: float) -> None:
    (found,) = layer_bounds(nn.Sequential(layer), shape).layers
    assert (found.method, found.kind) == (method, type(layer).__name__)
    assert found.upper == pytest.approx(upper, rel=1e-9)


def test_shapes_of_weights_alone() -> None:
    weights = {"a.weight": torch.ones(2, 1, 3, 3), "b.weight": torch.ones(4, 2, 5), "c.weight": torch.ones(3, 7)}
    found = layer_bounds(weights).layers
    assert [layer.shape for layer in found] == ["1×3×3×2", "2×5×4", "7×3"]
