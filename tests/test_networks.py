"""Networks: their layers, reproducible initialisation, and weights from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparring import data
from sparring.networks import NETWORKS, build, cnn, lenet5, load_weights, mlp


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 7, 11)])
@pytest.mark.parametrize("outputs", [10, 20])
def test_any_input_shape_and_number_of_outputs(name: str, input_shape: tuple[int, ...], outputs: int) -> None:
    network = build(name, input_shape, outputs)
    assert network(torch.rand(3, *input_shape)).shape == (3, outputs)


def test_layers_are_those_of_the_sources() -> None:
    sizes = lambda network: [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]  # noqa: E731
    assert sizes(build("mlp", (1, 28, 28), 10)) == [(128, 784), (128, 128), (10, 128)]
    assert sizes(build("mlp-256-128-128", (1, 28, 28), 20)) == [(256, 784), (128, 256), (128, 128), (20, 128)]
    assert sizes(cnn((1, 28, 28), 10)) == [(32, 1, 3, 3), (64, 32, 3, 3), (128, 9216), (10, 128)]
    assert [layer.p for layer in cnn((1, 28, 28), 10) if isinstance(layer, nn.Dropout)] == [0.25, 0.5]
    assert parameters(cnn((1, 28, 28), 10)) == 1_199_882  # the figure Keras prints for this network
    assert sizes(lenet5((1, 28, 28), 10)) == [(32, 1, 3, 3), (64, 32, 3, 3), (200, 3136), (10, 200)]


def test_an_mlp_has_no_relu_after_its_last_layer() -> None:
    assert [type(layer) for layer in mlp((6, 5, 4))] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in mlp((6, 4))] == [nn.Flatten, nn.Linear]


def test_initialisation_depends_on_the_generator_alone() -> None:
    before = torch.get_rng_state()
    weight = lambda seed: build("mlp", (1, 8, 8), 10, generator=torch.Generator().manual_seed(seed)).linear1.weight  # noqa: E731
    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))
    assert torch.equal(build("cnn", (1, 8, 8), 10).conv1.weight, build("cnn", (1, 8, 8), 10).conv1.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_generator_gives_different_networks_in_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (build("mlp", (1, 8, 8), 10, generator=generator) for _ in range(2))
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("resnet", (1, 8, 8), 10), "name must be one of mlp, .*; got 'resnet'"),
        (lambda: build("mlp", (1, 8, 8), 0), "outputs must be positive, got 0"),
        (lambda: build("cnn", (1, 5, 8), 10), r"input_shape must be \(C, H, W\) with H and W at least 6"),
        (lambda: build("lenet5", (8, 8), 10), r"input_shape must be \(C, H, W\)"),
        (lambda: mlp((5,)), "sizes must be at least two positive numbers"),
        (lambda: mlp((5, 0, 2)), "sizes must be at least two positive numbers"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_weights_from_a_file(tmp_path: Path) -> None:
    saved = build("mlp", (1, 8, 8), 10, generator=torch.Generator().manual_seed(3))
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_weights(build("mlp", (1, 8, 8), 10), tmp_path / "weights.safetensors")
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded(images), saved(images))
    with pytest.raises(ValueError, match=r"weights\.safetensors: not the weights of this network"):
        load_weights(build("mlp", (1, 8, 8), 20), tmp_path / "weights.safetensors")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "file", "accuracy"), [("mlp-300-100", "mnist_mlp", 0.9817), ("lenet5", "mnist_lenet5", 0.9889)]
)
def test_reference_networks_reach_their_accuracy(shared: Path, name: str, file: str, accuracy: float) -> None:
    test = data.load("mnist", shared / "data" / "mnist", "test")
    network = load_weights(build(name, test.input_shape, 10), shared / "models" / f"{file}.safetensors").eval()
    with torch.no_grad():
        correct = torch.cat([network(images).argmax(1) for images in test.images.split(1000)]) == test.labels
    assert float(correct.float().mean()) == pytest.approx(accuracy, abs=1e-4)
