"""Random starts are those of the image: neither batch, order, neighbours nor the number of restarts matter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.attacks._seeds import example_seeds, seeds_by_place

X = torch.rand(23, 1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(23) % 5

ATTACKS: dict[str, Callable[..., Any]] = {
    "pgd": partial(sp.attacks.pgd, eps=0.2, steps=2, restarts=3),
    "pgd L2": partial(sp.attacks.pgd, eps=0.5, norm=2, steps=2, restarts=2),
    "pgd early": partial(sp.attacks.pgd, eps=0.2, steps=3, restarts=3, early_stop=True),
    "slide": partial(sp.attacks.slide, eps=2.0, steps=2, restarts=2, random_start=True),
    "apgd": partial(sp.attacks.apgd, eps=0.2, steps=4, restarts=2),
    "apgd L1": partial(sp.attacks.apgd, eps=2.0, norm=1, steps=4, restarts=2),
    "uniform noise": partial(sp.attacks.uniform_noise, eps=0.2, repeats=3),
    "gaussian noise": partial(sp.attacks.gaussian_noise, eps=0.5, repeats=3),
    "evolution": partial(sp.attacks.differential_evolution, population=12, steps=3),
    "lbfgs": partial(sp.attacks.lbfgs, targets="random", steps=30),
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5)).double().eval()


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_but_the_image_decides(name: str, network: nn.Module) -> None:
    attack = ATTACKS[name]
    whole = attack(network, X, LABELS)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(2))
    alike = partial(torch.testing.assert_close, rtol=0, atol=1e-9)
    alike(attack(network, X[:7], LABELS[:7]), whole[:7])
    alike(attack(network, X[order], LABELS[order]), whole[order])
    alike(attack(network, X[9:10], LABELS[9:10]), whole[9:10])
    alike(attack(network, X, LABELS, batch_size=4), whole)
    twice = torch.cat([X[:3], X[:3]])
    alike(attack(network, twice, LABELS[:3].repeat(2)), whole[:3].repeat(2, 1, 1, 1))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_generator_decides_once_for_all_images(name: str, network: nn.Module) -> None:
    attack = ATTACKS[name]
    first, again, other = (
        attack(network, X, LABELS, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other) or name == "evolution"
    generator = torch.Generator().manual_seed(3)
    attack(network, X[:1], LABELS[:1], generator=generator)
    after_one = attack(network, X, LABELS, generator=generator)
    generator.manual_seed(3)
    attack(network, X, LABELS, generator=generator)
    assert torch.equal(attack(network, X, LABELS, generator=generator), after_one)


def test_more_restarts_begin_with_those_of_fewer() -> None:
    few, many = example_seeds(X, 2, None), example_seeds(X, 5, None)
    assert torch.equal(few, many[:, :2])
    assert len(set(many.flatten().tolist())) == many.numel()
    assert many.dtype is torch.int64
    assert (many >= 0).all()
    assert example_seeds(X[:0], 2, None).shape == (0, 2)
    assert example_seeds(X[:, :0], 2, None).shape == (23, 2)


def test_restarts_that_are_added_only_help(network: nn.Module) -> None:
    fooled = [
        sp.attacks.pgd(network, X, LABELS, eps=0.05, steps=2, restarts=restarts, return_result=True).success
        for restarts in (1, 2, 5)
    ]
    assert bool((fooled[0] <= fooled[1]).all() and (fooled[1] <= fooled[2]).all())


def test_seeds_by_place() -> None:
    assert seeds_by_place(5, None)[:3] == seeds_by_place(3, None)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, not int"):
        seeds_by_place(3, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("restarts", [1, 3])
def test_an_evaluation_does_not_depend_on_its_batches(network: nn.Module, restarts: int) -> None:
    entries: list[Any] = ["noise", ("pgd", {"steps": 2, "restarts": restarts}), ("apgd-ce", {"steps": 4})]
    found = [sp.evaluate(network, X, LABELS, entries, eps=0.05, batch_size=size, keep=9) for size in (1, 4, 23, 100)]

    def points(evaluation: sp.Evaluation) -> list[Tensor]:
        return [torch.cat([e.index[:, None].double(), e.images.flatten(1)], 1).sort(0).values
                for e in (row.examples for row in evaluation.rows)]  # fmt: skip

    for one in found[1:]:
        for a, b in zip(points(found[0]), points(one), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
