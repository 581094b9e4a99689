"""What it costs to compare a plan with its model, once: beside an attack of ten steps."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring import networks
from sparring.gradients.comparison import disagreement

SHARE = 0.1  # of the attack's time; aimed at are .03


def network(name: str) -> nn.Module:
    return (networks.mlp((784, 300, 100, 10)) if name == "mlp" else networks.lenet5((1, 28, 28), 10)).eval()


def seconds(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_comparison_beside_an_attack(name: str, record_property: Any) -> None:
    """The median over rounds of the comparison's time divided by the attack's, one after the other in each round."""
    model = network(name)
    x = torch.rand(128, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(128) % 10

    def attack() -> Tensor:
        found = sp.attacks.pgd(model, x, labels, eps=0.1, steps=10)
        assert isinstance(found, Tensor)
        return found

    attack()
    lowered = sp.lower(model)
    assert lowered.is_lowered
    shares = [seconds(lambda: disagreement(lowered, x)) / seconds(attack) for _ in range(31)]
    record_property("share", median(shares))
    print(f"{name}: comparing takes {100 * median(shares):.2f} % of ten steps of PGD on 128 images")
    assert name != "mlp" or median(shares) < SHARE
