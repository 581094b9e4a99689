"""Random noise: where it lies, that it stays in the ball and the box, and that the worst draw is kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import data
from sparring.attacks import AttackResult, gaussian_noise, uniform_noise

NORMS = {"Linf": math.inf, "L2": 2, "L1": 1}
NOISES = [uniform_noise, gaussian_noise]


def attack(noise: Callable[..., Any], *args: Any, **options: Any) -> AttackResult:
    result = noise(*args, return_result=True, **options)
    assert isinstance(result, AttackResult)
    return result


def lengths(delta: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(delta.flatten(1).double(), NORMS[norm], dim=1)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


def examples(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 4, 4, generator=generator, dtype=dtype), torch.arange(count) % 5


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_within_eps_and_bounds(network: nn.Module, noise: Callable[..., Any], norm: str, dtype: torch.dtype) -> None:
    network = network.to(dtype)
    inputs, labels = examples(40, dtype)
    eps = torch.linspace(0, 2, 40)
    result = attack(noise, network, inputs, labels, eps=eps, norm=norm, repeats=3)
    assert (lengths(result.adv.double() - inputs.double(), norm) <= eps.double()).all()
    assert ((result.adv >= 0) & (result.adv <= 1)).all()
    assert torch.equal(result.adv[0], inputs[0])  # eps 0
    torch.testing.assert_close(result.distance, lengths(result.adv.double() - inputs.double(), norm))
    with torch.no_grad():
        assert torch.equal(result.success, network(result.adv).argmax(1) != labels)
    assert not result.bad_grad.any()


@pytest.mark.parametrize("norm", NORMS)
def test_how_noise_is_distributed(network: nn.Module, norm: str) -> None:
    count, size, eps = 4000, 48, 1e-3  # so small that no draw meets a face of the box
    # As the draws follow from the input, no two are the same.
    inputs = 0.5 + 1e-4 * torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.zeros(count, dtype=torch.int64)
    network = network.double()
    uniform, gaussian = (
        (attack(noise, network, inputs, labels, eps=eps, norm=norm).adv - inputs).flatten(1) / eps for noise in NOISES
    )
    # In a ball that is filled evenly, the length to the power of the dimension is uniform in [0, 1].
    filled = lengths(uniform, norm) ** size
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    assert ((filled[:, None] <= grid).double().mean(0) - grid).abs().max() < 0.03
    torch.testing.assert_close(lengths(gaussian, norm), torch.ones(count, dtype=torch.float64), rtol=1e-9, atol=0)
    for draws in (uniform, gaussian):
        spread = draws.std(0)
        assert draws.mean(0).abs().max() < 5 * spread.max() / math.sqrt(count)
        assert spread.max() / spread.min() < 1.2
    # The kurtosis of one entry, by the moments of a ball that is filled evenly.
    n = size
    expected = {"Linf": 9 / 5, "L2": 3 * (n + 2) / (n + 4), "L1": 6 * (n + 1) * (n + 2) / ((n + 3) * (n + 4))}[norm]
    assert float((uniform**4).mean() / (uniform**2).mean() ** 2) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("noise", NOISES)
def test_the_worst_of_more_draws_is_worse(
    digits_network: Callable[[str], nn.Module], noise: Callable[..., Any]
) -> None:
    network, digits = digits_network("mlp"), data.load("digits", split="test")[:120]
    results = [
        attack(noise, network, digits.images, digits.labels, eps=2.5, norm=2, repeats=repeats) for repeats in (1, 4, 25)
    ]
    for fewer, more in itertools.pairwise(results):
        assert (more.success >= fewer.success).all()
        alike = more.success == fewer.success
        assert (more.loss[alike] >= fewer.loss[alike] - 1e-5).all()
    assert results[2].success.sum() > results[0].success.sum()
    assert ((results[2].steps_used >= 1) & (results[2].steps_used <= 25)).all()


@pytest.mark.parametrize("noise", NOISES)
def test_early_stop_fools_as_many(digits_network: Callable[[str], nn.Module], noise: Callable[..., Any]) -> None:
    network, digits = digits_network("mlp"), data.load("digits", split="test")[:60]
    options = {"eps": 2.5, "norm": 2, "repeats": 10}
    patient = attack(noise, network, digits.images, digits.labels, **options)
    hasty = attack(noise, network, digits.images, digits.labels, early_stop=True, **options)
    assert torch.equal(hasty.success, patient.success)
    assert torch.equal(hasty.steps_used, patient.steps_used)
    assert torch.equal(hasty.adv[~hasty.success], patient.adv[~hasty.success])


@pytest.mark.parametrize("noise", NOISES)
def test_neither_neighbours_nor_the_batch_matter(network: nn.Module, noise: Callable[..., Any]) -> None:
    inputs, labels = examples(20)
    state = torch.get_rng_state()
    whole = noise(network, inputs, labels, eps=1.0, norm=2, repeats=3)
    assert torch.equal(noise(network, inputs, labels, eps=1.0, norm=2, repeats=3, batch_size=6), whole)
    assert torch.equal(noise(network, inputs[:7], labels[:7], eps=1.0, norm=2, repeats=3), whole[:7])
    assert torch.equal(torch.get_rng_state(), state)
    other = noise(network, inputs, labels, eps=1.0, norm=2, repeats=3, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(other, whole)


def test_targets(network: nn.Module) -> None:
    inputs, labels = examples(50)
    targets = (labels + 2) % 5
    result = attack(uniform_noise, network, inputs, labels, eps=1.0, targets=targets, repeats=20)
    with torch.no_grad():
        assert torch.equal(result.success, network(result.adv).argmax(1) == targets)
    assert result.success.any()


@pytest.mark.parametrize("repeats", [0, 1.5, True])
def test_bad_repeats(network: nn.Module, repeats: Any) -> None:
    with pytest.raises(ValueError, match="repeats must be an integer, at least 1"):
        uniform_noise(network, *examples(2), eps=1.0, repeats=repeats)


def test_nothing_to_attack(network: nn.Module) -> None:
    assert len(attack(gaussian_noise, network, *examples(0), eps=1.0)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("attack", [gaussian_noise, uniform_noise])
def test_noise_never_leaves_its_budget(attack: Any, norm: float, dtype: torch.dtype) -> None:
    """Measured in float64, where the box does not make it shorter."""
    x, model = torch.zeros(40, 784, dtype=dtype), nn.Linear(784, 3).to(dtype)
    for eps in (0.7, 12.0, 1e-3):
        found = attack(
            model, x, torch.zeros(40, dtype=torch.int64), eps=eps, norm=norm, bounds=(-1, 1), return_result=True
        )
        assert bool((found.distance <= eps).all())
        if attack is gaussian_noise and eps < 1:
            assert bool((found.distance >= eps * (1 - 1e-5)).all())
