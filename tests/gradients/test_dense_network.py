"""The whole network in one kernel against float64 autograd, compiled for the CPU, emulated, and on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import losses
from sparring.gradients import kernels
from sparring.gradients.kernels import DenseLayer

Run = Callable[..., Any]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


@pytest.fixture(
    scope="module",
    params=["cpu", pytest.param("simt", marks=pytest.mark.simt), pytest.param("cuda", marks=pytest.mark.cuda)],
)
def run(request: pytest.FixtureRequest) -> Run:
    """``run(x, layers, labels, ...)``: `kernels.dense_network` for tensors on the CPU, results there too."""
    if request.param == "simt":
        import simt

        def emulated(*args: Any, **kwargs: Any) -> Any:
            results = [simt.SimtOps(simt.load(), seed).call(kernels.dense_network, *args, **kwargs) for seed in (0, 1)]
            for a, b in zip(*results, strict=True):  # whatever the order of the lanes
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
            return results[0]

        return emulated
    if request.param == "cuda":
        return lambda *args, **kwargs: _move(
            kernels.dense_network(*_move(args, "cuda"), **{name: _move(v, "cuda") for name, v in kwargs.items()}), "cpu"
        )
    return kernels.dense_network


def _move(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (kernels.LossGrad, DenseLayer)):
        return type(value)(*(_move(v, device) for v in value))
    return type(value)(_move(v, device) for v in value) if isinstance(value, (tuple, list)) else value


def network(
    widths: Sequence[int], members: int | None = None, dtype: torch.dtype = torch.float32, activation: str = "relu"
) -> list[DenseLayer]:
    """Random layers, every second one with a bias; `members` None: not stacked."""
    generator = torch.Generator().manual_seed(len(widths))
    layers = []
    for i, (width_in, width) in enumerate(pairwise(widths)):
        shape = (width, width_in) if members is None else (members, width, width_in)
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) / width_in**0.5
        bias = torch.randn(shape[:-1], generator=generator, dtype=torch.float64).to(dtype) if i % 2 == 0 else None
        last = i == len(widths) - 2
        layers.append(DenseLayer(weight.to(dtype), bias, "identity" if last else activation, 0.2))
    return layers


def batch(size: int, inputs: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x = torch.rand(size, inputs, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(classes, (size,), generator=generator)
    return x, labels, (labels + 1) % classes


def oracle(
    x: Tensor, layers: list[DenseLayer], labels: Tensor, targets: Tensor | None, loss: str, combine: str, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and gradient by autograd in float64; `share`: the members' weights."""
    leaf = x.double().requires_grad_()
    values: list[Tensor] = []
    logits = []
    for m in range(len(share)):
        a = leaf
        for layer in layers:
            weight, bias = (v if v is None or layer.weight.ndim == 2 else v[m] for v in (layer.weight, layer.bias))
            assert weight is not None
            a = ACTIVATIONS[layer.activation](F.linear(a, weight.double(), None if bias is None else bias.double()))
        logits.append(a)
    w = share.double()[:, None, None]
    if combine == "loss":
        values = [s * losses.evaluate(loss, z, labels, targets) for s, z in zip(share.double(), logits, strict=True)]
        value = torch.stack(values).sum(0)
    else:
        z = torch.stack(logits)
        mixed = (w * z.softmax(-1)).sum(0).log() if combine == "probs" else (w * z).sum(0)
        value = losses.evaluate(loss, mixed, labels, targets)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), grad


def check(run: Run, layers: list[DenseLayer], data: tuple[Tensor, Tensor, Tensor | None], **kwargs: Any) -> Any:
    x, labels, targets = data
    options = {"loss": "ce", "combine": "probs", "weights": None, "tile": None} | kwargs
    members = 1 if layers[0].weight.ndim == 2 else len(layers[0].weight)
    share = options["weights"]
    share = torch.full((members,), 1 / members) if share is None else share
    value, grad = oracle(x, layers, labels, targets, options["loss"], options["combine"], share)
    result = run(x, layers, labels, targets, **options)
    tolerance = TOLERANCE[x.dtype] * (1 + grad.abs().max().item() if grad.numel() else 1)
    torch.testing.assert_close(result.loss.double(), value, rtol=10 * tolerance, atol=tolerance)
    torch.testing.assert_close(result.grad.double(), grad, rtol=0, atol=tolerance)
    return result


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tile", [1, 4, 8])
@pytest.mark.parametrize("size", [1, 5])
def test_one_network(run: Run, size: int, tile: int, dtype: torch.dtype) -> None:
    check(run, network((37, 33, 20, 7), dtype=dtype), batch(size, 37, 7, dtype), tile=tile)


@pytest.mark.parametrize("widths", [(5, 3), (1, 1, 2), (70, 40, 10), (8, 9, 10, 11, 12, 11, 10, 9, 5)], ids=str)
def test_depths_and_widths(run: Run, widths: tuple[int, ...]) -> None:
    check(run, network(widths), batch(3, widths[0], widths[-1]))


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_activations(run: Run, activation: str) -> None:
    check(run, network((11, 9, 8, 5), activation=activation), batch(3, 11, 5))


@pytest.mark.parametrize("loss", kernels.LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
def test_losses(run: Run, loss: str, targeted: bool) -> None:
    x, labels, targets = batch(3, 11, 6)
    check(run, network((11, 9, 6)), (x, labels, targets if targeted else None), loss=loss)


@pytest.mark.parametrize("combine", kernels.COMBINES)
@pytest.mark.parametrize("members", [1, 3, 11])  # one; a group each; several to a group
def test_ensembles(run: Run, members: int, combine: str) -> None:
    share = torch.arange(1.0, members + 1)
    layers, data = network((12, 9, 5), members), batch(5, 12, 5)
    check(run, layers, data, combine=combine, weights=share / share.sum(), tile=4)
    check(run, layers, data, combine=combine)


def test_an_example_does_not_depend_on_its_batch(run: Run) -> None:
    """Nor on the tile: to the bit."""
    layers, (x, labels, _) = network((40, 24, 5), 3), batch(9, 40, 5)
    whole = run(x, layers, labels, tile=8)
    for tile, rows in ((1, slice(0, 2)), (4, slice(3, 9)), (8, slice(8, 9))):
        part = run(x[rows], layers, labels[rows], tile=tile)
        assert torch.equal(part.grad, whole.grad[rows])
        assert torch.equal(part.loss, whole.loss[rows])


def test_nothing_but_nan_without_a_label(run: Run) -> None:
    x, labels, _ = batch(5, 6, 4)
    labels[2] = 4
    result = run(x, network((6, 5, 4)), labels)
    bad = torch.arange(5) == 2
    assert torch.equal(result.loss.isnan(), bad)
    assert torch.equal(result.grad.isnan().any(1), bad)


def test_empty_batch(run: Run) -> None:
    result = run(torch.zeros(0, 6), network((6, 5, 4)), torch.zeros(0, dtype=torch.int64))
    assert result.grad.shape == (0, 6)
    assert result.loss.shape == (0,)


def test_strided_input_and_weights(run: Run) -> None:
    x, labels, _ = batch(3, 12, 4)
    layers = network((12, 5, 4))
    turned = [layer._replace(weight=layer.weight.t().contiguous().t()) for layer in layers]
    wanted = run(x, layers, labels)
    got = run(x.t().contiguous().t(), turned, labels)
    assert all(torch.equal(a, b) for a, b in zip(got[:3], wanted[:3], strict=True))


def test_what_fits() -> None:
    assert kernels.dense_network_fits((784, 100, 100, 10), torch.float64)
    assert kernels.dense_network_fits((3072, 512, 512, 10), torch.float32)
    assert kernels.dense_network_fits((12268, 10), torch.float32)
    assert not kernels.dense_network_fits((12269, 10), torch.float32)
    assert not kernels.dense_network_fits((6135, 10), torch.float64)
    assert not kernels.dense_network_fits((5,) * 10, torch.float32)
    assert not kernels.dense_network_fits((5,), torch.float32)


def test_bad_arguments() -> None:
    x, labels, _ = batch(2, 6, 4)
    layers = network((6, 5, 4))
    with pytest.raises(ValueError, match="does not fit"):
        kernels.dense_network(torch.zeros(2, 20000), network((20000, 4)), labels)
    with pytest.raises(ValueError, match="last layer's activation must be 'identity', not 'relu'"):
        kernels.dense_network(x, [*layers[:-1], layers[-1]._replace(activation="relu")], labels)
    with pytest.raises(ValueError, match=r"layers\[1\]\.weight does not fit x"):
        kernels.dense_network(x, [layers[0], layers[0]._replace(activation="identity")], labels)
    with pytest.raises(ValueError, match="labels does not fit the batch"):
        kernels.dense_network(x, layers, labels[:1])
    with pytest.raises(ValueError, match=r"targets are torch\.int32"):
        kernels.dense_network(x, layers, labels, labels.int())
    with pytest.raises(ValueError, match="tile is 3; for this network accepted: 8, 4, 1"):
        kernels.dense_network(x, layers, labels, tile=3)
    with pytest.raises(ValueError, match="tile is 8; for this network accepted: 4, 1"):
        kernels.dense_network(torch.zeros(2, 2000), network((2000, 4)), labels, tile=8)
