"""Random against optimised perturbations: on a linear model in closed form, and on digits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparring import data
from sparring.analysis import smoothness


class Halfspace(nn.Module):
    """Class 1 where the mean of the entries is above .5; the nearest point of the boundary is straight ahead."""

    def forward(self, x: Tensor) -> Tensor:
        value = 40 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([torch.zeros_like(value), value], 1)


def test_a_halfspace_in_closed_form() -> None:
    n = 400
    depth = torch.tensor([0.01, 0.02, 0.03, 0.04])
    inputs = (0.5 - depth)[:, None].expand(4, n).reshape(4, 1, 20, 20).contiguous()
    exact = depth * math.sqrt(n)  # from every point straight ahead
    labels = torch.zeros(4, dtype=torch.int64)
    found = smoothness(Halfspace(), inputs, labels, [0.15, 0.5, 0.7, 1.0], draws=50)
    assert torch.allclose(found.distance, exact.double(), rtol=3e-3)
    assert found.optimised.tolist() == [0.0, 0.5, 0.75, 1.0]
    # A random direction of length 1 leads ahead by a normal variable of deviation 1 / sqrt(n).
    share = torch.special.ndtr(-exact * math.sqrt(n)).mean()
    assert float(found.random[3]) == pytest.approx(float(share), abs=0.02)
    assert found.count == 4
    assert found.draws == 50
    assert found.table().splitlines()[2].startswith("| 0.15 | 0.0 | 0.0 | 0.0 |")


def test_on_digits_optimised_ones_mislead_where_random_ones_do_not(digits_network: Callable[[str], nn.Module]) -> None:
    model, test = digits_network("mlp"), data.load("digits", split="test")
    found = smoothness(model, test.images[:60], test.labels[:60], [0.2, 0.5, 1.0], draws=10)
    assert (found.optimised >= found.random_worst - 0.02).all()
    assert (found.random_worst >= found.random).all()
    assert found.optimised[2] > found.random[2] + 0.3
    assert (found.optimised.diff() >= 0).all()
    again = smoothness(model, test.images[:60], test.labels[:60], [0.2, 0.5, 1.0], draws=10)
    assert torch.equal(again.random, found.random)


@pytest.mark.parametrize("radii", [[], [0.0], [-1.0], [math.inf]])
def test_bad_radii(radii: list[float]) -> None:
    x = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="radii must be positive"):
        smoothness(Halfspace(), x, torch.zeros(2, dtype=torch.int64), radii)


def test_other_bad_arguments() -> None:
    x = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        smoothness(Halfspace(), x, torch.zeros(2, dtype=torch.int64), [1.0], draws=0)
    with pytest.raises(ValueError, match="none of the inputs correctly"):
        smoothness(Halfspace(), x, torch.ones(2, dtype=torch.int64), [1.0])
