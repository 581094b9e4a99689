"""Differential evolution: the engine against scipy's, the attack against exhaustive search."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor, nn

from sparring import data
from sparring.attacks import AttackResult, differential_evolution, evolve, evolve_images
from sparring.attacks.evolution import Dots

GOAL = 1e-6


def sphere(x: Tensor) -> Tensor:
    return (x**2).sum(-1)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def towards(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda problems, x: (function(x), function(x) < GOAL)


def box(batch: int, size: int) -> tuple[Tensor, Tensor]:
    low = torch.full((batch, size), -5.0, dtype=torch.float64)
    return low, -low


def scipy_generations(
    function: Callable[[Tensor], Tensor], size: int, population: int, strategy: str, seed: int
) -> int:
    name = "rng" if "rng" in inspect.signature(optimize.differential_evolution).parameters else "seed"
    result = optimize.differential_evolution(
        lambda x: function(torch.from_numpy(x.T)).numpy(), [(-5, 5)] * size, popsize=population // size, tol=0, atol=0,
        strategy=strategy, updating="deferred", vectorized=True, polish=False, maxiter=1000,
        callback=lambda intermediate_result: bool(intermediate_result.fun < GOAL), **{name: seed},
    )  # fmt: skip
    assert result.fun < GOAL
    return int(result.nit)


@pytest.mark.parametrize("strategy", ["rand1bin", "best1bin", "currenttobest1bin"])
@pytest.mark.parametrize(("function", "size"), [(sphere, 4), (rosenbrock, 3)])
def test_as_many_generations_as_scipy(function: Callable[[Tensor], Tensor], size: int, strategy: Any) -> None:
    found = evolve(towards(function), *box(15, size), population=60, generations=1000, strategy=strategy)
    assert found.reached.all()
    assert (found.cost < GOAL).all()
    torch.testing.assert_close(found.cost, function(found.best))
    scipys = [scipy_generations(function, size, 60, strategy, seed) for seed in range(5)]
    ours = float(found.generations.double().median())
    assert 0.75 < ours / statistics.median(scipys) < 1.33


def test_a_problem_is_solved_alike_alone_and_among_others() -> None:
    centres = torch.linspace(-3, 3, 6, dtype=torch.float64)[:, None, None]

    def objective(problems: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return sphere(x - centres[problems]), sphere(x - centres[problems]) < GOAL

    low, high = box(6, 3)
    seeds = [11, 12, 13, 14, 15, 16]
    together = evolve(objective, low, high, generations=60, seeds=seeds)
    for i in range(6):
        alone = evolve(lambda p, x, i=i: objective(p + i, x), low[:1], high[:1], generations=60, seeds=seeds[i : i + 1])
        assert torch.equal(alone.best[0], together.best[i])
        assert alone.generations[0] == together.generations[i]
    other = evolve(objective, low, high, generations=60, seeds=seeds[::-1])
    assert not torch.equal(other.best, together.best)


def test_candidates_stay_in_the_box_and_budget() -> None:
    seen: list[Tensor] = []

    def objective(problems: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return -x.sum(-1), torch.zeros_like(x[..., 0], dtype=torch.bool)  # the optimum is a corner

    low, high = torch.tensor([[0.0, -1.0, 2.0]]), torch.tensor([[1.0, 3.0, 2.0]])
    found = evolve(objective, low, high, population=10, generations=25, mutation=2.0, strategy="rand1bin")
    assert len(seen) == 26
    assert all(((x >= low) & (x <= high)).all() for x in seen)
    assert found.generations.tolist() == [25]
    assert not found.reached.any()


def test_the_goal_comes_before_the_cost_and_nan_is_worst() -> None:
    def objective(problems: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        cost = torch.where(x[..., 0] < 0.2, torch.nan, x[..., 0])
        return cost, x[..., 0] > 0.8  # the goal lies where the cost is high

    low = torch.zeros(4, 1)
    found = evolve(objective, low, low + 1, population=8, generations=30, early_stop=False)
    assert found.reached.all()
    torch.testing.assert_close(found.best, torch.full_like(low, 0.8), atol=0.02, rtol=0)
    assert (found.generations < 30).all()  # when it was first reached, though the search went on


def test_the_first_candidates_are_a_latin_hypercube() -> None:
    first: list[Tensor] = []

    def objective(problems: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        first.append(x)
        return sphere(x), sphere(x) < 0

    low = torch.zeros(3, 5)
    evolve(objective, low, low + 1, population=20, generations=0)
    strata = (first[0] * 20).long().sort(1).values
    assert torch.equal(strata, torch.arange(20)[None, :, None].expand(3, 20, 5))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"population": 3}, "population must be at least 4"),
        ({"generations": -1}, "generations"),
        ({"strategy": "best2bin"}, "strategy must be one of rand1bin"),
        ({"mutation": 2.5}, "mutation"),
        ({"mutation": (1.0, 0.5)}, "mutation"),
        ({"recombination": 1.5}, "recombination"),
        ({"seeds": [1]}, "seeds must be 2"),
        ({"high": torch.full((2, 2), -9.0)}, "low <= high"),
        ({"high": torch.full((2, 2), torch.inf)}, "finite"),
        ({"high": torch.ones(2, 3)}, "one shape"),
    ],
)
def test_bad_settings(change: dict[str, Any], match: str) -> None:
    settings = {"low": torch.zeros(2, 2), "high": torch.ones(2, 2)} | change
    with pytest.raises(ValueError, match=match):
        evolve(towards(sphere), **settings)


# --- The attack -----------------------------------------------------------------------------------------------------


def attack(*args: Any, **options: Any) -> AttackResult:
    result = differential_evolution(*args, return_result=True, **options)
    assert isinstance(result, AttackResult)
    return result


class Linear(nn.Module):
    """Two classes; logits (0, w . x)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        z = (x * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


def test_one_pixel_of_a_linear_model_is_the_best_one() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    inputs = torch.rand(6, 2, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.zeros(6, dtype=torch.int64)  # the attack raises w . x, by one position in both channels
    gain = torch.where(weight > 0, (1 - inputs) * weight, -inputs * weight).sum(1).flatten(1).amax(1)
    result = attack(
        Linear(weight), inputs, labels, loss="margin", early_stop=False, steps=150, recombination=0.9, population=80
    )
    clean = (inputs * weight).flatten(1).sum(1)
    torch.testing.assert_close(result.loss, clean + gain, atol=0.02, rtol=0)
    assert (result.distance == 1).all()


@pytest.mark.parametrize("pixels", [1, 3, 6])
def test_few_pixels_change_and_success_is_true(digits_network: Callable[[str], nn.Module], pixels: int) -> None:
    network, digits = digits_network("mlp"), data.load("digits", split="test")[:25]
    result = attack(
        network, digits.images, digits.labels, pixels=pixels, population=50, steps=30, strategy="best1bin",
        recombination=0.5,
    )  # fmt: skip
    changed = (result.adv != digits.images).flatten(1).sum(1)
    assert (changed <= pixels).all()
    assert torch.equal(result.distance, changed.double())
    assert ((result.adv >= 0) & (result.adv <= 1)).all()
    with torch.no_grad():
        assert torch.equal(result.success, network(result.adv).argmax(1) != digits.labels)
        mistaken = network(digits.images).argmax(1) != digits.labels
    assert (result.steps_used[~result.success] == 30).all()
    assert torch.equal(result.adv[mistaken], digits.images[mistaken])
    assert (result.success & ~mistaken).sum() >= {1: 1, 3: 10, 6: 18}[pixels]
    assert not result.bad_grad.any()


def test_targets(digits_network: Callable[[str], nn.Module]) -> None:
    network, digits = digits_network("mlp"), data.load("digits", split="test")[:10]
    targets = (digits.labels + 1) % 10
    result = attack(
        network, digits.images, digits.labels, pixels=8, targets=targets, population=50, steps=40, loss="ce",
        strategy="best1bin", recombination=0.5,
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(result.success, network(result.adv).argmax(1) == targets)
    assert result.success.sum() >= 6


def test_neither_neighbours_nor_the_batch_matter(digits_network: Callable[[str], nn.Module]) -> None:
    network, digits = digits_network("cnn"), data.load("digits", split="test")[:12]
    options: dict[str, Any] = {"pixels": 2, "population": 30, "steps": 12}
    whole = attack(network, digits.images, digits.labels, **options)
    for count in (1, 5):
        part = attack(network, digits.images[:count], digits.labels[:count], **options)
        assert torch.equal(part.adv, whole.adv[:count])
        assert torch.equal(part.steps_used, whole.steps_used[:count])
    later = [
        differential_evolution(network, digits.images[at], digits.labels[at], **options)
        for at in (slice(0, 7), slice(7, 12))
    ]
    assert torch.equal(torch.cat(later), whole.adv)


def test_works_without_gradients_and_leaves_no_trace() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.head = nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.round(self.norm(x) * 4).flatten(1)).round()
            return logits

    torch.manual_seed(3)
    model = Steps().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, labels = torch.rand(5, 1, 3, 3), torch.zeros(5, dtype=torch.int64)
    state = torch.get_rng_state()
    attack(model, inputs, labels, population=10, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_to_attack() -> None:
    model = Linear(torch.ones(1, 3, 3))
    result = attack(model, torch.empty(0, 1, 3, 3), torch.empty(0, dtype=torch.int64))
    assert result.adv.shape == (0, 1, 3, 3)
    assert len(result.distance) == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pixels": 0}, "pixels must be an integer, at least 1"),
        ({"pixels": 1.5}, "pixels"),
        *(({"mutation": value}, "mutation must be") for value in (True, "half", None, (0.5, True), (0.5, "1"), 3.0)),
        *(({"recombination": value}, "recombination must be") for value in (True, "half", None, -0.1, 1.1)),
        ({"batch_size": 0}, "batch_size"),
        ({"population": 2}, "population"),
        ({"loss": "hinge"}, "loss"),
        ({"inputs": torch.rand(2)}, "inputs"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"inputs": torch.full((2, 1, 3, 3), 2.0)}, "2"),
    ],
)
def test_bad_arguments(change: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {"inputs": torch.rand(2, 1, 3, 3), "labels": torch.zeros(2, dtype=torch.int64)} | change
    with pytest.raises((TypeError, ValueError), match=match):
        differential_evolution(Linear(torch.ones(1, 3, 3)), **arguments)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 6), (5,)], ids=str)
def test_where_pixels_coincide_the_larger_value_counts(shape: tuple[int, ...]) -> None:
    background = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    dots = Dots(background, 4, (0.0, 1.0))
    low, high = dots.box()
    genes = low[:, None] + (high - low)[:, None] * torch.rand(
        2, 7, low.shape[1], generator=torch.Generator().manual_seed(1)
    )
    genes[0, 0] = high[0]  # the far end of every axis is its last place
    painted = dots.paint(genes)
    channels, grid = (shape[0], shape[1:]) if len(shape) > 1 else (1, shape)
    for i in range(2):
        for j in range(7):
            image = background[i].reshape(channels, *grid).clone()
            places: dict[tuple[int, ...], Tensor] = {}
            for dot in genes[i, j].reshape(4, -1):
                at = tuple(min(int(g), n - 1) for g, n in zip(dot, grid, strict=False))
                places[at] = dot[len(grid) :] if at not in places else places[at].maximum(dot[len(grid) :])
            for at, value in places.items():
                image[(slice(None), *at)] = value
            assert torch.equal(painted[i, j], image.reshape(shape))


# --- Images from nothing ----------------------------------------------------------------------------------------------


def test_fooling_images(digits_network: Callable[[str], nn.Module]) -> None:
    network = digits_network("cnn")
    found = evolve_images(network, range(10), (1, 8, 8), pixels=20, p_min=0.8, steps=150)
    assert found.success.sum() >= 8
    assert (found.sparsity <= 20).all()
    assert torch.equal(found.sparsity, (found.images != 0).flatten(1).sum(1))
    with torch.no_grad():
        prob = network(found.images).softmax(1)[torch.arange(10), torch.arange(10)]
    torch.testing.assert_close(found.prob, prob)
    assert torch.equal(found.success, found.prob >= 0.8)
    assert (found.stop_step[~found.success] == 150).all()
    first = evolve_images(network, range(3), (1, 8, 8), pixels=20, p_min=0.8, steps=150)
    assert torch.equal(first.images, found.images[:3])


def test_entries_of_colour_images_are_set_one_by_one() -> None:
    weight = torch.zeros(3, 4, 4)
    weight[1, 2, 3] = 20.0
    found = evolve_images(Linear(weight), [1, 1], (3, 4, 4), pixels=1, p_min=0.99, black=0.125, steps=60)
    assert found.success.all()
    assert (found.images[:, 1, 2, 3] != 0.125).all()
    assert found.sparsity.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "match"),
    [({"p_min": 2.0}, "p_min"), ({"black": 3.0}, "black"), ({"pixels": 0}, "pixels"), ({"targets": [9]}, "9")],
)
def test_bad_arguments_of_images(change: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {"targets": [1], "shape": (1, 3, 3)} | change
    with pytest.raises(ValueError, match=match):
        evolve_images(Linear(torch.ones(1, 3, 3)), **arguments)


def test_numpy_seeds() -> None:
    low, high = box(2, 2)
    a = evolve(towards(sphere), low, high, generations=5, seeds=np.array([3, 4]))
    b = evolve(towards(sphere), low, high, generations=5, seeds=[3, 4])
    assert torch.equal(a.best, b.best)


def test_inputs_that_are_mistaken_already_took_no_generation() -> None:
    """Also where the candidates, which are other points, take some to be mistaken as well."""

    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            wrong = ((flat == 0.5).all(1) | (flat > 0.97).any(1)).to(x.dtype)
            return torch.stack([1 - wrong, wrong + 1e-3 * flat.amax(1)], 1)

    x = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64)
    x[1, 0, 0, 0] = 0.4
    found = differential_evolution(
        Narrow(), x, torch.zeros(2, dtype=torch.int64), population=6, steps=30, early_stop=False, return_result=True
    )
    assert found.success.all()
    assert found.steps_used[0] == 0
    assert 0 < int(found.steps_used[1]) <= 30


def test_blocks_of_inputs_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the genes of one input are more than a block holds."""
    from sparring.attacks import evolution

    x = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double()
    y = torch.arange(5) % 3

    def attack() -> Tensor:
        found = differential_evolution(model, x, y, population=8, steps=3)
        assert isinstance(found, Tensor)
        return found

    whole = attack()
    for genes in (1, 24, 50, 10**6):
        monkeypatch.setattr(evolution, "_GENES", genes)
        torch.testing.assert_close(attack(), whole, rtol=0, atol=0)


def test_inputs_of_one_entry() -> None:
    """There is no position to choose."""

    class Above(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([0.9 - x, x - 0.9], 1)

    x = torch.full((3, 1), 0.5, dtype=torch.float64)
    found = differential_evolution(Above(), x, torch.zeros(3, dtype=torch.int64), population=8, return_result=True)
    assert found.success.all()
    assert bool((found.adv > 0.9).all())
    assert found.distance.tolist() == [1, 1, 1]


@pytest.mark.parametrize("bounds", [(-1.0, 0.5), (-1.0, 1.0), (0.5, 3.0)])
def test_new_values_are_anywhere_in_the_bounds(bounds: tuple[float, float]) -> None:
    low, high = bounds
    x = torch.full((40, 1, 2, 2), (low + high) / 2, dtype=torch.float64) + 1e-4 * torch.arange(40).view(-1, 1, 1, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    found = differential_evolution(
        model, x, torch.arange(40) % 2, bounds=bounds, population=6, steps=2, early_stop=False, return_result=True
    )
    values = found.adv[found.adv != x]
    assert low <= float(values.min()) < low + 0.2 * (high - low)
    assert high - 0.2 * (high - low) < float(values.max()) <= high


def test_what_leaves_the_box_is_mirrored_at_the_side_that_it_passed() -> None:
    """And what would still be outside is put on that side."""
    from sparring.attacks._evolve import _reflect

    x = torch.tensor([[-3.0, 1.5, 4.5, 0.0, 2.0, 5.0, 7.5, -9.0, 30.0]], dtype=torch.float64)
    low, high = torch.full_like(x, -1.0), torch.full_like(x, 4.0)
    wanted = torch.tensor([[1.0, 1.5, 3.5, 0.0, 2.0, 3.0, 0.5, -1.0, -1.0]], dtype=torch.float64)
    found = _reflect(x, low, high)
    assert bool(((found >= low) & (found <= high)).all())
    torch.testing.assert_close(found[:, :7], wanted[:, :7])
