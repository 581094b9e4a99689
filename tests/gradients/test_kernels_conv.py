"""ReLU with pooling, and gradients at the input of convolutions: as torch has them, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import networks
from sparring.gradients import kernels

Run = Callable[..., Any]
FORMS = [torch.channels_last, torch.contiguous_format]
DTYPES = [torch.float32, torch.float64]


# (B, C, H, W), kernel, stride, padding, ceil_mode
POOLINGS = [
    ((2, 32, 8, 6), (2, 2), (2, 2), (0, 0), False),
    ((2, 5, 9, 7), (3, 3), (2, 2), (1, 1), False),
    ((1, 3, 9, 8), (3, 2), (2, 3), (1, 0), True),
    ((1, 17, 6, 6), (3, 3), (1, 1), (1, 1), False),
    ((2, 4, 8, 8), (2, 2), (3, 3), (0, 0), False),  # entries under no window
    ((1, 40, 10, 5), (5, 5), (5, 5), (0, 0), False),
    ((2, 1, 7, 7), (2, 2), (2, 2), (0, 0), True),
    ((0, 4, 6, 6), (2, 2), (2, 2), (0, 0), False),
]


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_pool_is_torchs_to_the_bit(run: Run, pooling: Any, form: torch.memory_format, dtype: torch.dtype) -> None:
    shape, kernel, stride, padding, ceil_mode = pooling
    generator = torch.Generator().manual_seed(0)
    # multiples of a half: most windows have ties
    z = torch.randn(shape, generator=generator, dtype=dtype).mul(2).round().div(2).contiguous(memory_format=form)
    any_bias = torch.randn(shape[1], generator=generator, dtype=dtype)
    for activation, bias in product(("relu", "identity"), (None, any_bias)):
        leaf = z.clone().requires_grad_()
        shifted = leaf if bias is None else leaf + bias[:, None, None]
        activated = F.relu(shifted) if activation == "relu" else shifted
        wanted = F.max_pool2d(activated, kernel, stride, padding, ceil_mode=ceil_mode)
        out, index = run(kernels.relu_pool, z, bias, kernel, stride, padding, activation, ceil_mode=ceil_mode)
        assert torch.equal(out, wanted)
        assert out.is_contiguous(memory_format=form)
        grad = torch.randn(out.shape, generator=generator, dtype=dtype)
        (wanted_grad,) = torch.autograd.grad(wanted, leaf, grad)
        grad_z = run(kernels.relu_pool_backward, grad, index, shape[2:], kernel, stride, padding)
        assert torch.equal(grad_z, wanted_grad)
        assert grad_z.is_contiguous(memory_format=form)


def test_relu_pool_of_what_is_not_finite(run: Run) -> None:
    """NaN comes through, -inf alone in a window is an entry like others; the gradient goes where torch sends it."""
    z = torch.full((1, 2, 4, 4), -torch.inf)
    z[0, 0, 0, 1] = z[0, 0, 1, 0] = torch.nan
    z[0, 1, 2:, 2:] = torch.inf
    for activation in ("relu", "identity"):
        leaf = z.clone().requires_grad_()
        wanted = F.max_pool2d(F.relu(leaf) if activation == "relu" else leaf, 3, 2, 1)
        out, index = run(kernels.relu_pool, z, None, (3, 3), (2, 2), (1, 1), activation)
        assert torch.equal(out.nan_to_num(7.0), wanted.nan_to_num(7.0))
        grad = torch.arange(1.0, 9.0).view(1, 2, 2, 2)
        (wanted_grad,) = torch.autograd.grad(wanted, leaf, grad)
        assert torch.equal(run(kernels.relu_pool_backward, grad, index, (4, 4), (3, 3), (2, 2), (1, 1)), wanted_grad)


def test_relu_pool_of_strided_views(run: Run) -> None:
    z = torch.randn(2, 3, 9, 10, generator=torch.Generator().manual_seed(0))[:, :, 1:, ::2]
    out, index = run(kernels.relu_pool, z, None, (2, 2), (2, 2))
    assert torch.equal(out, F.max_pool2d(F.relu(z), 2))
    grad = torch.ones(1).expand(out.shape)
    leaf = z.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(F.max_pool2d(F.relu(leaf), 2), leaf, grad)
    assert torch.equal(run(kernels.relu_pool_backward, grad, index, (8, 5), (2, 2), (2, 2)), wanted)


# (B, C_in, H, W), C_out, kernel, stride, padding, dilation
CONVOLUTIONS = [
    ((2, 1, 9, 9), 32, (3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 3, 11, 9), 8, (3, 5), (2, 3), (1, 2), (1, 1)),
    ((2, 4, 12, 13), 5, (3, 2), (3, 1), (2, 0), (2, 3)),
    ((2, 2, 9, 8), 1, (3, 3), (4, 4), (0, 0), (1, 1)),  # entries under no window
    ((1, 2, 3, 3), 4, (5, 5), (1, 1), (2, 2), (1, 1)),  # a kernel larger than the image
    ((0, 2, 8, 8), 3, (3, 3), (1, 1), (0, 0), (1, 1)),
    ((2, 6, 8, 8), 3, (3, 3), (1, 1), (0, 0), (1, 1)),  # torch's
]


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv_input_grad(run: Run, convolution: Any, form: torch.memory_format, dtype: torch.dtype) -> None:
    shape, out_channels, kernel, stride, padding, dilation = convolution
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn((out_channels, shape[1], *kernel), generator=generator, dtype=torch.float64)
    y = F.conv2d(x, weight, None, stride, padding, dilation)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(y, x, grad)
    given = grad.to(dtype).contiguous(memory_format=form)
    out = run(kernels.conv_input_grad, given, weight.to(dtype), shape, stride, padding, dilation)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2e-5 if dtype is torch.float32 else 1e-13)


def test_conv_input_grad_in_groups(run: Run) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.zeros(2, 4, 6, 6, requires_grad=True), torch.randn(6, 2, 3, 3, generator=generator)
    y = F.conv2d(x, weight, groups=2)
    (wanted,) = torch.autograd.grad(y, x, torch.ones_like(y))
    out = run(kernels.conv_input_grad, torch.ones_like(y), weight, x.shape, groups=2)
    torch.testing.assert_close(out, wanted)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 32, 28, 28, generator=generator).contiguous(memory_format=torch.channels_last)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out, index = kernels.relu_pool(z, None, (2, 2), (2, 2))
            results.append((out, index, kernels.relu_pool_backward(out, index, (28, 28), (2, 2), (2, 2))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bad_arguments() -> None:
    z, index = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="activation must be 'relu' or 'identity', not 'tanh'"):
        kernels.relu_pool(z, None, (2, 2), (2, 2), activation="tanh")
    with pytest.raises(ValueError, match="no kernel for windows"):
        kernels.relu_pool(z, None, (16, 16), (2, 2))
    with pytest.raises(ValueError, match="does not fit into 4"):
        kernels.relu_pool(z, None, (5, 2), (2, 2))
    with pytest.raises(ValueError, match="bias does not fit z"):
        kernels.relu_pool(z, torch.zeros(3), (2, 2), (2, 2))
    with pytest.raises(ValueError, match="grad does not fit index"):
        kernels.relu_pool_backward(torch.zeros(1, 2, 2, 3), index, (4, 4), (2, 2), (2, 2))
    with pytest.raises(ValueError, match="does not have"):
        kernels.relu_pool_backward(torch.zeros(1, 2, 2, 2), index, (9, 4), (2, 2), (2, 2))
    with pytest.raises(ValueError, match=r"index is torch\.int64"):
        kernels.relu_pool_backward(torch.zeros(1, 2, 2, 2), index.long(), (4, 4), (2, 2), (2, 2))
    with pytest.raises(ValueError, match="grad does not fit input_shape"):
        kernels.conv_input_grad(torch.zeros(1, 3, 4, 4), torch.zeros(3, 2, 3, 3), (1, 2, 4, 4))
    assert not kernels.relu_pool_fits((2, 2), dilation=(2, 1))
    assert not kernels.relu_pool_fits((2, 2), padding=(2, 0))


def lenet5_input_grad(network: nn.Module, x: Tensor, labels: Tensor, run: Run) -> Tensor:
    """The gradient of each example's cross-entropy, by hand, for `networks.lenet5`."""
    conv1, conv2, linear1, linear2 = (network.get_submodule(name) for name in ("conv1", "conv2", "linear1", "linear2"))
    pooling = ((2, 2), (2, 2))
    with torch.no_grad():
        z1 = F.conv2d(x.contiguous(memory_format=torch.channels_last), conv1.weight, conv1.bias, padding=1)
        a1, index1 = run(kernels.relu_pool, z1, None, *pooling)
        z2 = F.conv2d(a1, conv2.weight, conv2.bias, padding=1)
        a2, index2 = run(kernels.relu_pool, z2, None, *pooling)
        a3 = F.relu(linear1(a2.flatten(1)))
        grad = linear2(a3).softmax(1) - F.one_hot(labels, linear2.out_features)
        grad = (grad @ linear2.weight) * (a3 > 0) @ linear1.weight
        grad = run(kernels.relu_pool_backward, grad.view(a2.shape), index2, z2.shape[2:], *pooling)
        grad = run(kernels.conv_input_grad, grad, conv2.weight, a1.shape, padding=(1, 1))
        grad = run(kernels.relu_pool_backward, grad, index1, z1.shape[2:], *pooling)
        given: Tensor = run(kernels.conv_input_grad, grad, conv1.weight, x.shape, padding=(1, 1))
        return given


def test_gradient_of_a_whole_network(run: Run) -> None:
    _check_lenet5(networks.build("lenet5", (1, 8, 8), 10), torch.rand(2, 1, 8, 8), run)


@pytest.mark.shared
def test_gradient_of_the_reference_network(shared: Path) -> None:
    network = networks.load_weights(
        networks.build("lenet5", (1, 28, 28), 10), shared / "models/mnist_lenet5.safetensors"
    )
    _check_lenet5(
        network, torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(0)), lambda k, *a, **o: k(*a, **o)
    )


def _check_lenet5(network: nn.Module, x: Tensor, run: Run) -> None:
    labels = torch.arange(len(x)) % 10
    grad = lenet5_input_grad(network.to(memory_format=torch.channels_last), x, labels, run)
    leaf = x.double().requires_grad_()
    loss = F.cross_entropy(network.double()(leaf), labels, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, leaf)
    assert (grad - wanted).abs().max() < 2e-5 * wanted.abs().max()
