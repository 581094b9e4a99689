"""Small networks trained on the digits, the same each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring import data, networks


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, generator: torch.Generator) -> None:
    """Train with Adam in whatever mode the model is in, and leave no gradients behind."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="session")
def fit() -> Callable[..., None]:
    return train


@pytest.fixture(scope="session")
def digits_network() -> Callable[[str], nn.Module]:
    """A network of `sparring.networks` in float32, trained in eval mode (without dropout); not to be changed."""
    trained: dict[str, nn.Module] = {}

    def get(name: str) -> nn.Module:
        if name not in trained:
            digits, test = data.load("digits"), data.load("digits", split="test")
            generator = torch.Generator().manual_seed(0)
            network = networks.build(name, digits.input_shape, digits.classes, generator=generator).eval()
            train(network, digits.images, digits.labels, epochs=15, generator=generator)
            with torch.no_grad():
                assert (network(test.images).argmax(1) == test.labels).float().mean() > 0.95
            trained[name] = network
        return trained[name]

    return get
