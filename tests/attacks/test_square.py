"""Square: feasible, independent, budgeted, as strong as what is known of it; and where its windows lie."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import attacks, data, evaluate, networks
from sparring.attacks import AttackResult
from sparring.attacks._norms import BALLS
from sparring.attacks._random import uniform
from sparring.attacks._squares import PROPOSALS, Grid, _pair

NORMS = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}
SHAPES = [(1, 8, 8), (3, 7, 12), (3, 12, 4), (20,), (2, 9), (2, 3, 4, 5), (1, 1, 1), (3,), (1, 2, 2), (5, 1, 7)]


class RowByRow(nn.Module):
    """Without matrix products, whose rounding would depend on the batch size; counts what it is asked."""

    def __init__(self, entries: int, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(16, entries, generator=generator, dtype=torch.float64) / entries**0.5)
        self.second = nn.Parameter(torch.randn(classes, 16, generator=generator, dtype=torch.float64))
        self.asked: Counter[int] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.update(x[:, :1].flatten(1)[:, 0].tolist() if x.ndim == 2 else [])
        hidden = (x.flatten(1)[:, None] * self.first.to(x)).sum(2).mul(4).tanh()
        return (hidden[:, None] * self.second.to(x)).sum(2)


def made(
    shape: tuple[int, ...], count: int = 12, dtype: torch.dtype = torch.float64
) -> tuple[RowByRow, Tensor, Tensor]:
    model = RowByRow(math.prod(shape))
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def eps_of(norm: str, shape: tuple[int, ...]) -> float:
    entries = math.prod(shape)
    return {"Linf": 0.15, "L2": 0.15 * math.sqrt(entries), "L1": 0.08 * entries}[norm]


def attack(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> AttackResult:
    result = attacks.square(model, x, y, return_result=True, **{"queries": 40} | options)
    assert isinstance(result, AttackResult)
    return result


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feasible_in_float64_and_what_it_says(norm: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model, x, y = made(shape, dtype=dtype)
    eps = torch.linspace(0, 2 * eps_of(norm, shape), len(x), dtype=torch.float64)
    found = attack(model, x, y, eps=eps, norm=norm)
    moved = torch.linalg.vector_norm((found.adv.double() - x.double()).flatten(1), NORMS[norm], dim=1)
    assert bool((moved <= eps).all())
    assert torch.equal(found.distance, moved)
    assert 0 <= float(found.adv.min()) <= float(found.adv.max()) <= 1
    assert torch.equal(found.success, model(found.adv).argmax(1) != y)
    assert found.adv.dtype is dtype
    assert not bool(found.bad_grad.any())


@pytest.mark.parametrize("norm", NORMS)
def test_no_example_depends_on_another(norm: str) -> None:
    model, x, y = made((1, 6, 6), 16)
    eps = eps_of(norm, (36,)) / (1 if norm == "Linf" else 2)
    whole = attack(model, x, y, eps=eps, norm=norm, restarts=2)
    assert 0 < int(whole.success.sum()) < 16
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))[:11]
    for batch_size, keep_finished in ((None, False), (4, False), (3, True)):
        some = attack(
            model, x[order], y[order], eps=eps, norm=norm, restarts=2, batch_size=batch_size,
            keep_finished=keep_finished,
        )  # fmt: skip
        assert torch.equal(some.adv, whole.adv[order])
        assert torch.equal(some.steps_used, whole.steps_used[order])


def test_the_same_numbers_again_and_others_with_another_generator() -> None:
    model, x, y = made((1, 6, 6))
    before = torch.get_rng_state()
    first, second = (attack(model, x, y, eps=0.05, norm=math.inf).adv for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    other = attack(model, x, y, eps=0.05, norm=math.inf, generator=torch.Generator().manual_seed(1)).adv
    assert bool((other != first).flatten(1).any(1).all())


class Counts(nn.Module):
    """Class 0 for ever; its certainty falls with the sum of the entries, but for some inputs."""

    def __init__(self, fooled_at: float = math.inf) -> None:
        super().__init__()
        self.fooled_at, self.asked = fooled_at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        total = x.flatten(1).sum(1)
        return torch.stack([torch.zeros_like(total), torch.where(total > self.fooled_at, 1.0, total / 1e6 - 1)], 1)


@pytest.mark.parametrize(("queries", "restarts"), [(1, 1), (2, 1), (33, 1), (7, 3)])
def test_queries_are_counted(queries: int, restarts: int) -> None:
    """One for the input itself, then so many for each restart, and one in the end for what is returned."""
    model, x = Counts(), torch.rand(3, 1, 5, 5)
    found = attack(model, x, torch.zeros(3).long(), eps=0.1, queries=queries, restarts=restarts)
    assert model.asked <= 3 * (queries * restarts + 2) + 8 * 3  # and what lowering and its check ask
    assert found.steps_used.tolist() == [queries * restarts] * 3
    before = model.asked
    attack(model, x, torch.zeros(3).long(), eps=0.1, queries=queries, restarts=restarts)
    more = model.asked
    attack(model, x, torch.zeros(3).long(), eps=0.1, queries=queries + 4, restarts=restarts)
    assert model.asked - more == more - before + 3 * 4 * restarts


def test_fooled_inputs_are_left_and_first_ones_are_not_changed() -> None:
    model, x = Counts(fooled_at=13.0), torch.full((2, 1, 5, 5), 0.5)
    x[1] = 0.6
    found = attack(model, x, torch.zeros(2).long(), eps=0.2, queries=500)
    assert found.success.tolist() == [True, True]
    assert torch.equal(found.adv[1], x[1])
    assert found.steps_used[1] == 0
    assert 0 < found.steps_used[0] < 500
    on = attack(model, x, torch.zeros(2).long(), eps=0.2, queries=60, early_stop=False)
    assert bool((on.loss >= found.loss).all())
    assert torch.equal(on.adv, attack(model, x, torch.zeros(2).long(), eps=0.2, queries=60, early_stop=False).adv)


@pytest.mark.parametrize("norm", NORMS)
def test_more_queries_never_leave_more_and_raise_the_loss(norm: str) -> None:
    """In L2 and L1; in Linf windows shrink with the share of the queries that are gone."""
    model, x, y = made((1, 6, 6), 16)
    losses, left = [], []
    for queries in (1, 20, 200):
        found = attack(model, x, y, eps=eps_of(norm, (36,)), norm=norm, queries=queries)
        left.append(int((~found.success).sum()))
        losses.append(float(found.loss.mean()))
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1]


def test_targets_are_reached() -> None:
    model, x, y = made((1, 6, 6), 16)
    targets = (y + 1) % 4
    found = attack(model, x, y, eps=0.4, targets=targets, queries=300)
    assert torch.equal(found.success, model(found.adv).argmax(1) == targets)
    assert float(found.success.double().mean()) > 0.5


def test_nothing_but_answers_is_needed() -> None:
    """A model outside of autograd, of whole numbers."""

    class Outside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = torch.from_numpy(x.detach().numpy().sum((1, 2, 3)))
            return torch.stack([12 - total, total - 12], 1).round()

    x = torch.full((4, 1, 5, 5), 0.45)
    assert bool(attack(Outside(), x, torch.zeros(4).long(), eps=0.1, queries=300).success.all())


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"queries": 0}, ValueError, "queries must be an integer of at least 1"),
    ({"queries": True}, ValueError, "queries must be an integer"),
    ({"queries": 2.0}, ValueError, "queries must be an integer"),
    ({"p_init": 0}, ValueError, r"p_init must be a share of the image, in \(0, 1\]"),
    ({"p_init": 1.5}, ValueError, "p_init must be"),
    ({"p_init": "all"}, ValueError, "p_init must be"),
    ({"p_init": math.nan}, ValueError, "p_init must be"),
    ({"norm": 3}, ValueError, "norm is 3"),
    ({"loss": "cross"}, ValueError, "loss must be"),
    ({"restarts": 0}, ValueError, "restarts must be"),
    ({"generator": 3}, TypeError, "generator must be"),
])  # fmt: skip
def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, x, y = made((1, 4, 4))
    with pytest.raises(error, match=message):
        attacks.square(model, x, y, **{"eps": 0.1} | options)


def test_no_inputs() -> None:
    model, x, y = made((1, 4, 4))
    assert attack(model, x[:0], y[:0], eps=0.1).adv.shape == (0, 1, 4, 4)


def test_random_numbers_depend_on_their_place_alone() -> None:
    seeds = torch.tensor([0, 1, 2**62 - 1, 77])
    whole = uniform(seeds, 0, 40, 3)
    assert whole.shape == (4, 40, 3)
    assert torch.equal(uniform(seeds[[3, 0]], 7, 5, 3), whole[[3, 0], 7:12])
    many = uniform(torch.arange(200), 0, 100, 10).flatten()
    assert len(many.unique()) == len(many)
    assert 0 <= float(many.min()) < 1e-4
    assert 1 - 1e-4 < float(many.max()) < 1
    assert float(many.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(many.var()) == pytest.approx(1 / 12, abs=0.001)
    neighbours = torch.stack([many[:-1], many[1:]])
    assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 0.01


def splitmix(state: int) -> int:
    """The first number of the published generator for this state."""
    wrap = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & wrap
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & wrap
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & wrap
    return z ^ z >> 31


def test_random_numbers_are_those_of_splitmix64() -> None:
    """0xE220A8397B1DCDAF is the first of its published test vector, for the seed 0."""
    assert splitmix(0) == 0xE220A8397B1DCDAF
    row = uniform(torch.tensor([0]), 0, 1, 3)[0, 0].tolist()
    assert row == [(splitmix(i * 0x9E3779B97F4A7C15 % 2**64) >> 11) * 2.0**-53 for i in range(3)]


@pytest.mark.parametrize(("shape", "share", "size"), [
    ((3, 28, 28), 0.8, (25, 25)),
    ((3, 28, 28), 1e-9, (1, 1)),
    ((3, 28, 28), 1.0, (28, 28)),
    ((1, 4, 16), 0.5, (4, 8)),
    ((1, 16, 4), 0.5, (8, 4)),
    ((30,), 0.8, (1, 24)),
    ((2, 30), 0.1, (1, 3)),
    ((2, 3, 5, 4), 0.05, (2, 2)),
])  # fmt: skip
def test_windows_have_their_share_of_the_positions(shape: tuple[int, ...], share: float, size: tuple[int, int]) -> None:
    grid = Grid(torch.zeros(1, *shape))
    assert grid.window(share) == size
    places = grid.places(torch.tensor([[0.0, 0.0], [0.999, 0.999]]), size)
    assert places.shape == (2, grid.channels, size[0] * size[1])
    assert int(places[0].min()) == 0
    assert int(places[1].max()) == grid.rows * grid.columns - 1, "the last window ends at the last position"
    assert all(len({*row.tolist()}) == size[0] * size[1] for row in places[:, 0])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("size", [(5, 5), (4, 6), (1, 7), (7, 1), (2, 1), (1, 1)])
def test_a_bump_and_its_negative_have_norm_1(size: tuple[int, int], order: int) -> None:
    for along in (0, 1):
        pair = _pair(size, along, 4, order)
        assert pair.shape == (size[0] * size[1],)
        assert float(pair.norm(order)) == pytest.approx(1)
        assert bool((pair != 0).all())
        assert (float(pair.max()) > 0) is (pair.numel() > 1)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_a_proposal_changes_two_windows_and_fills_the_ball(norm: str) -> None:
    """Far from the sides of the box: all of eps is used, before and after."""
    x = torch.full((50, 2, 9, 9), 0.5, dtype=torch.float64)
    eps = torch.full((50,), {"L2": 0.4, "L1": 1.5}[norm], dtype=torch.float64)
    ball = BALLS[norm](x, eps, (0.0, 1.0))
    squares = PROPOSALS[norm](ball, Grid(x))
    seeds = torch.arange(50)
    delta = squares.start(uniform(seeds, 0, 1, squares.draws[0])[:, 0])
    trial = squares.propose(delta, (3, 3), uniform(seeds, 1, 1, squares.draws[1])[:, 0])
    for some in (delta, trial):
        assert torch.allclose(torch.linalg.vector_norm(some.flatten(1), NORMS[norm], dim=1), eps, atol=1e-9)
    if norm == "L2":  # in L1 the projection lowers all entries
        assert int(((trial - delta).abs() > 1e-9).any(1).sum(1).max()) <= 18


def test_a_proposal_in_linf_is_a_corner_and_never_nothing() -> None:
    x = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    ball = BALLS["Linf"](x, torch.full((64,), 0.1).double(), (0.0, 1.0))
    squares = PROPOSALS["Linf"](ball, Grid(x))
    delta = squares.start(uniform(torch.arange(64), 0, 1, squares.draws[0])[:, 0])
    assert bool(((delta == squares.low) | (delta == squares.high)).all())
    trial = squares.propose(delta, (1, 1), uniform(torch.arange(64), 1, 1, squares.draws[1])[:, 0])
    assert ((trial != delta).sum((1, 2)) == 1).all()


def test_by_name_in_an_evaluation() -> None:
    model, x, y = made((1, 6, 6), 16)
    found = evaluate(model, x, y, [("square", {"queries": 50}), "noise"], eps={"Linf": 0.15, "L1": 3.0})
    assert [(row.name, row.kind) for row in found.rows] == [("square", "black-box"), ("noise", "noise")] * 2
    assert found.rows[0].accuracy < found.rows[1].accuracy


# What AutoAttack's own Square of 500 queries leaves of the first 150 images that are classified right: mean of three
# seeds.
AUTOATTACK: dict[str, float] = {}


@pytest.mark.shared
@pytest.mark.parametrize("norm", NORMS)
def test_as_strong_as_the_published_one(shared: Path, norm: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    networks.load_weights(model, shared / "models" / "mnist_robust_cnn.safetensors").eval()
    images = data.load("mnist", split="test", data_dir=shared / "data" / "mnist")
    x, y = images.images[:60], images.labels[:60]
    right = model(x).argmax(1) == y
    eps, published = {"Linf": (0.3, 0.85), "L2": (2.0, 0.70), "L1": (10.0, 0.5)}[norm]
    found = attack(model, x[right], y[right], eps=eps, norm=norm, queries=300)
    assert float((~found.success).double().mean()) <= published
