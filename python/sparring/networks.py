"""Networks of the experiments: multilayer perceptrons and small convolutional networks, for images of any shape.

All return logits (B, outputs) for images (B, C, H, W). Layers with weights are named `conv1`, `conv2`, ..., `linear1`,
`linear2`, ..., which are the names in a file of weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return a multilayer perceptron with ReLU between its linear layers; the input is flattened.

    `sizes` are the numbers of inputs, of each hidden layer's units, and of outputs: (784, 128, 128, 10).
    """
    if len(sizes) < 2 or any(size < 1 for size in sizes):
        raise ValueError(f"sizes must be at least two positive numbers (inputs, ..., outputs), got {tuple(sizes)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers[f"linear{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(sizes) - 1:
            layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers)


def cnn(input_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Return Conv32 3x3, Conv64 3x3, max-pool 2, dropout .25, Dense128, dropout .5, Dense."""
    channels, height, width = _image_shape(input_shape, smallest=6)
    features = 64 * ((height - 4) // 2) * ((width - 4) // 2)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            dropout1=nn.Dropout(0.25),
            flatten=nn.Flatten(),
            linear1=nn.Linear(features, 128),
            relu3=nn.ReLU(),
            dropout2=nn.Dropout(0.5),
            linear2=nn.Linear(128, outputs),
        )
    )


def lenet5(input_shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Return Conv32 3x3, max-pool 2, Conv64 3x3, max-pool 2, Dense200, Dense; the convolutions are padded."""
    channels, height, width = _image_shape(input_shape, smallest=4)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 32, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear1=nn.Linear(64 * (height // 4) * (width // 4), 200),
            relu3=nn.ReLU(),
            linear2=nn.Linear(200, outputs),
        )
    )


def _perceptron(*hidden: int) -> Callable[[Sequence[int], int], nn.Module]:
    return lambda input_shape, outputs: mlp((math.prod(input_shape), *hidden, outputs))


NETWORKS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "mlp": _perceptron(128, 128),
    "mlp-256-128-128": _perceptron(256, 128, 128),
    "mlp-300-100": _perceptron(300, 100),
    "cnn": cnn,
    "lenet5": lenet5,
}


def build(
    name: str, input_shape: Sequence[int], outputs: int, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Return the network `name` (a key of `NETWORKS`), freshly initialised, on the CPU, in float32.

    Parameters
    ----------
    input_shape
        Shape of one image, (C, H, W).
    outputs
        Number of logits: the classes, or twice as many where each class has a fake one.
    generator
        CPU generator that one seed is drawn from; None means the seed 0. The global generator is left as it was.
    """
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}; got {name!r}")
    if outputs < 1:
        raise ValueError(f"outputs must be positive, got {outputs}")
    seed = 0 if generator is None else int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=()):  # torch initialises layers from its global CPU generator
        torch.default_generator.manual_seed(seed)
        return NETWORKS[name](input_shape, outputs)


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Copy the weights in a safetensors file into `network`, which must have exactly those, and return it."""
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of this network: {error}") from error
    return network


def _image_shape(input_shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape) < 1 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"input_shape must be (C, H, W) with H and W at least {smallest} for this network, got {tuple(input_shape)}"
        )
    channels, height, width = input_shape
    return channels, height, width
