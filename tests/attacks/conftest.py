"""Small networks trained on the digits, the same each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparring import data, networks


@pytest.fixture(scope="session")
def digits_network() -> Callable[[str], nn.Module]:
    """A network of `sparring.networks` in float32, trained for 15 epochs in eval mode; not to be changed."""
    trained: dict[str, nn.Module] = {}

    def get(name: str) -> nn.Module:
        if name not in trained:
            trained[name] = train(name)
        return trained[name]

    return get


def train(name: str) -> nn.Module:
    digits = data.load("digits")
    generator = torch.Generator().manual_seed(0)
    network = networks.build(name, digits.input_shape, digits.classes, generator=generator).eval()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(15):
        for batch in torch.randperm(len(digits), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(digits.images[batch]), digits.labels[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()
    test = data.load("digits", split="test")
    with torch.no_grad():
        assert (network(test.images).argmax(1) == test.labels).float().mean() > 0.95
    return network
