"""Enclosures of layers' norms against dense SVD of the operator, made by torch's own layer."""

from __future__ import annotations

import math
import os
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from made_layers import Layer, layers
from sparring.lipschitz import Enclosure, spectral_norm

CASES = int(os.environ.get("SPARRING_CASES", "1400"))
_PARTS = 7


def _enclose(layer: Layer, **options: Any) -> Enclosure:
    return spectral_norm(layer.weight, layer.kind, layer.input_shape, **layer.options, **options)


def _largest(operator: Tensor) -> float:
    return float(torch.linalg.svdvals(operator.double())[0])


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("part", range(_PARTS))
def test_encloses_the_largest_singular_value(part: int) -> None:
    """Every kind, stride, padding, dilation and group; zero, rank one, denormal, 1e-30, 1e30; float32, 64, bfloat16.

    ``SPARRING_CASES=10000`` for more of them.
    """
    gaps: dict[str, list[float]] = {}
    for layer in layers(-(-CASES // _PARTS), seed=part):
        sigma, found = _largest(layer.operator()), _enclose(layer)
        assert found.lower <= sigma <= found.upper, f"{layer}: {sigma} is not in {found}"
        assert found.certified
        if sigma == 0:
            assert found.upper == 0, str(layer)
        gaps.setdefault(layer.options.get("padding_mode", layer.kind), []).append(found.gap)
    assert all(statistics.median(of_kind) < 1e-6 for of_kind in gaps.values())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("method", ["frequencies", "banded"])
def test_encloses_by_the_methods_for_large_layers(method: str) -> None:
    """The same on small layers, which by themselves would be made into matrices."""
    tried, circular = 0, []
    for layer in layers(CASES // 4, seed=100):
        mode = layer.options.get("padding_mode", "zeros")
        if layer.kind == "dense" or (method == "banded" and mode != "zeros"):
            continue
        tried += 1
        sigma, found = _largest(layer.operator()), _enclose(layer, method=method)
        assert found.lower <= sigma <= found.upper, f"{layer}: {sigma} is not in {found}"
        if found.method == "frequencies":
            circular.append(found.gap)
        if method == "banded" and sigma > 0:
            assert found.gap < 2e-5, str(layer)
    assert tried > 20
    assert method == "banded" or statistics.median(circular) < 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (30, 50), (120, 120), (500, 450), (700, 410)])
@pytest.mark.parametrize("rank", [1, 1000])
def test_dense(shape: tuple[int, int], rank: int) -> None:
    rank = min(rank, *shape)
    weight = (_normal(shape[0], rank) @ _normal(rank, shape[1], seed=1)) / shape[0]
    sigma, found = _largest(weight), spectral_norm(weight)
    assert found.lower <= sigma <= found.upper
    assert found.gap <= 1e-6
    assert spectral_norm(weight, certified=False).lower <= sigma
    assert not spectral_norm(weight, certified=False).certified


def test_dense_with_equal_singular_values() -> None:
    orthogonal = torch.linalg.qr(_normal(450, 450).double()).Q
    found = spectral_norm(orthogonal)
    assert found.lower <= 1 + 1e-14
    assert found.upper >= 1 - 1e-14
    assert found.gap <= 1e-6


@pytest.mark.parametrize("scale", [1e-320, 1e-310, 1e-200, 1e150, 1e307])
def test_dense_at_the_ends_of_float64(scale: float) -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64) * scale
    found = spectral_norm(weight)
    assert found.lower <= float(weight[1, 1]) <= found.upper
    assert found.gap < (1e-12 if scale > 1e-300 else 0.01)


def test_entries_of_very_different_size() -> None:
    weight = torch.diag(torch.tensor([1e300, 1e-300, 0.0], dtype=torch.float64))
    found = spectral_norm(weight)
    assert found.lower <= 1e300 <= found.upper
    assert found.gap < 1e-12


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride"), [((8, 12), 16, 3, 1), ((12, 6), 12, 5, 2), ((3, 40), 24, 3, 3)]
)
def test_circular_convolution_is_exact(channels: tuple[int, int], size: int, kernel: int, stride: int) -> None:
    """Against the FFT of the kernel, written for stride 1 and made the general case by aliasing."""
    weight = _normal(channels[1], channels[0], kernel, kernel)
    pad = kernel // 2
    layer = Layer(
        "conv2d", weight, {"stride": stride, "padding": pad, "padding_mode": "circular"}, (size, size), "normal"
    )
    found = _enclose(layer, method="frequencies")
    sigma = _largest(layer.operator())
    assert found.lower <= sigma <= found.upper
    assert found.method == "frequencies"
    assert found.gap < 1e-6


def test_zero_padding_is_tightened_where_affordable() -> None:
    layer = Layer("conv2d", _normal(24, 20, 3, 3), {"padding": 1}, (8, 8), "normal")
    sigma = _largest(layer.operator())
    embedded, auto = _enclose(layer, method="frequencies"), _enclose(layer)
    assert embedded.lower <= sigma <= embedded.upper
    assert auto.lower <= sigma <= auto.upper
    assert auto.method == "banded Cholesky"
    assert auto.gap < 1e-5 < embedded.gap < 0.1


def test_groups_take_the_largest_not_the_product() -> None:
    """Three grouped 1x1 kernels of norms .385, .3 and .13."""
    weight = torch.tensor([0.385, 0.3, 0.13]).view(3, 1, 1, 1)
    found = spectral_norm(weight, "conv2d", 5, groups=3)
    assert found.upper == pytest.approx(0.385, rel=1e-6)
    assert found.lower == pytest.approx(0.385, rel=1e-6)


@pytest.mark.parametrize("dims", [1, 2])
def test_any_size_bounds_every_size_and_stride(dims: int) -> None:
    weight = _normal(4, 3, *[3] * dims)
    found = spectral_norm(weight, f"conv{dims}d")
    largest = 0.0
    for size in (1, 2, 5, 9, 14):
        for stride in (1, 2):
            layer = Layer(f"conv{dims}d", weight, {"padding": 1, "stride": stride}, (size,) * dims, "normal")
            sigma = _largest(layer.operator())
            assert sigma <= found.upper
            largest = max(largest, sigma)
    assert found.lower <= found.upper <= 1.01 * found.lower
    assert largest <= found.lower * (1 + 1e-9)  # the supremum is not below what one size reaches
    assert found.lower <= 1.2 * largest


def test_any_size_of_a_dilated_kernel_is_that_of_the_plain_one() -> None:
    weight = _normal(2, 3, 3, 3)
    assert spectral_norm(weight, "conv2d", dilation=2) == spectral_norm(weight, "conv2d")
    assert spectral_norm(weight * 0, "conv2d").upper == 0


def test_depthwise_and_pointwise() -> None:
    depthwise = Layer("conv2d", _normal(6, 1, 3, 3), {"padding": 1, "groups": 6}, (6, 6), "normal")
    pointwise = Layer("conv2d", _normal(40, 30, 1, 1), {}, (32, 32), "normal")
    sigma, found = _largest(depthwise.operator()), _enclose(depthwise)
    assert found.lower <= sigma <= found.upper
    sigma, found = _largest(pointwise.weight[:, :, 0, 0]), _enclose(pointwise)
    assert found.lower <= sigma * (1 + 1e-12)
    assert sigma <= found.upper
    assert found.gap < 2e-6


def test_weights_are_read_alone() -> None:
    weight = _normal(20, 30).requires_grad_()
    before, state = weight.detach().clone(), torch.get_rng_state()
    spectral_norm(weight)
    spectral_norm(weight.view(20, 30, 1, 1), "conv2d", 4)
    assert torch.equal(weight.detach(), before)
    assert weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("weight", "kind", "options", "message"),
    [
        (torch.ones(2, 3, 3), "dense", {}, "2 dimensions"),
        (torch.ones(2, 3), "linear", {}, "kind must be one of dense, conv1d"),
        (torch.ones(2, 3, 3), "conv2d", {"input_shape": 4}, "4 dimensions"),
        (torch.ones(0, 3), "dense", {}, "empty"),
        (torch.tensor([[math.nan]]), "dense", {}, "NaN or inf"),
        (torch.ones(2, 3), "dense", {"method": "gram"}, "method must be one of"),
        (torch.ones(2, 3), "dense", {"method": "banded"}, "for convolutions"),
        (torch.ones(2, 3), "dense", {"tol": 0.0}, "tol must be a positive number"),
        (torch.ones(2, 3), "dense", {"input_shape": 3}, "input_shape is for convolutions"),
        (torch.ones(2, 3, 3), "conv1d", {"padding": 1}, "need an input_shape"),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": 2}, "no output"),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": (4, 4)}, "input_shape must be 1 integers"),
        (torch.ones(3, 3, 3), "conv1d", {"input_shape": 4, "groups": 2}, "groups must divide"),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": 4, "padding_mode": "mirror"}, "padding_mode must be one of"),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": 4, "padding": 4, "padding_mode": "reflect"}, "reflect padding"),
        (
            torch.ones(2, 3, 3),
            "conv1d",
            {"input_shape": 4, "padding": 5, "padding_mode": "circular"},
            "circular padding",
        ),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": 4, "stride": 0}, "stride must be"),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": 4, "dilation": 0}, "dilation must be"),
        *(  # on one side alone
            (torch.ones(2, 3, kernel), "conv1d", {"input_shape": 3, "padding": "same", "padding_mode": mode}, text)
            for kernel, mode, text in ((8, "circular", "circular padding"), (6, "reflect", "reflect padding"))
        ),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": 4, "padding": "full"}, "'same' or 'valid'"),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": 4, "padding": "same", "stride": 2}, "stride 1"),
        (torch.ones(2, 3, 3), "conv1d", {"input_shape": 4, "output_padding": 1}, "for transposed convolutions"),
        (
            torch.ones(2, 3, 3),
            "conv_transpose1d",
            {"input_shape": 4, "output_padding": 1},
            "less than stride or dilation",
        ),
        (
            torch.ones(2, 3, 3),
            "conv1d",
            {"input_shape": 4, "padding": 1, "padding_mode": "reflect", "method": "banded"},
            "for padding with zeros",
        ),
    ],
)
def test_bad_input(weight: Tensor, kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_norm(weight, kind, **options)


def test_integers_are_not_weights() -> None:
    with pytest.raises(TypeError, match="tensor of floats"):
        spectral_norm(torch.ones(2, 3, dtype=torch.int64))
