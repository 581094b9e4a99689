"""What the shared loop remembers of each example, against a ledger kept by hand: best point, steps, bad gradients.

The attack is scripted: what the model answers at each of the visited points is drawn at random, so that every order of
fooled and standing, rising and falling, good and bad comes up.
"""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.attacks import AttackResult, GradientMaskingWarning, _search, pgd
from sparring.attacks._norms import Ball, LinfBall
from sparring.attacks._problem import Options, Query
from sparring.attacks._search import Moves, Stage, search
from sparring.attacks._seeds import example_seeds

APART = 100  # between the points of two examples
SLOPES = (1.0, -2.0, 0.0, math.nan, math.inf)
LOSSES = (-3.0, -2.0, -1.0, -0.5, math.nan)


@dataclass
class Visit:
    loss: float
    fooled: bool
    slope: float

    @property
    def bad(self) -> bool:
        """A gradient that is no gradient, where it would have been needed."""
        return not self.reached and not (math.isfinite(self.slope) and self.slope != 0 and not math.isnan(self.loss))

    @property
    def reached(self) -> bool:
        return self.fooled and not math.isnan(self.loss)


class Table(nn.Module):
    """Answers by the number that the input is: logits 0 and ±1 of two classes, and a third that holds the loss."""

    def __init__(self, visits: dict[int, Visit]) -> None:
        super().__init__()
        size = max(visits) + 1
        self.loss, self.slope = torch.full((size,), -1.0).double(), torch.ones(size).double()
        self.other = -torch.ones(size).double()
        for at, visit in visits.items():
            self.loss[at], self.slope[at], self.other[at] = visit.loss, visit.slope, 1.0 if visit.fooled else -1.0

    def forward(self, x: Tensor) -> Tensor:
        at = x[:, 0].detach().round().long()
        loss = self.loss[at] + Slope.apply(x[:, 0], self.slope[at])
        return torch.stack([torch.zeros_like(loss), self.other[at], loss], 1)


class Slope(torch.autograd.Function):
    """Zero, with any derivative."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


class Scripted(Moves):
    """Visits the next number with every step, whatever the gradient, which must be that of its own point."""

    def __init__(self, ball: Ball, delta: Tensor, table: Table) -> None:
        super().__init__(ball, delta)
        self.table = table

    def step(self, query: Query) -> None:
        at = (self.ball.inputs + self.delta)[:, 0].long()
        assert torch.equal(query.loss, self.table.loss[at].nan_to_num(-math.inf))
        fine = query.loss.isfinite() & self.table.slope[at].isfinite()
        assert torch.equal(query.grad[:, 0], self.table.slope[at].where(fine, 0.0))
        self.delta = self.delta + 1


def script(draw: random.Random) -> tuple[list[list[list[Visit]]], int]:
    """Visits of each example in each restart, and how many of them belong to a stage in a larger ball."""
    restarts, first, steps = draw.randint(1, 3), draw.choice((0, 0, 1, 2)), draw.randint(0, 3)
    hard = draw.random()

    def visit() -> Visit:
        return Visit(draw.choice(LOSSES), draw.random() > hard, draw.choice(SLOPES))

    one = [
        [[visit() for _ in range(first + steps + 1)] for _ in range(restarts)] for _ in range(draw.randint(1, 12))
    ]  # fmt: skip
    return one, first


@pytest.mark.parametrize("seed", range(60))
def test_ledger(seed: int) -> None:
    draw = random.Random(seed)
    examples, first = script(draw)
    early_stop, keep_finished = draw.random() < 0.6, draw.random() < 0.3
    batch_size = draw.choice((None, None, 1, 3))
    restarts, budget = len(examples[0]), len(examples[0][0]) - 1
    visits = {
        APART * (i + 1) + 1 + run * (budget + 1) + step: visit
        for i, runs in enumerate(examples)
        for run, row in enumerate(runs)
        for step, visit in enumerate(row)
    }
    base = {APART * (i + 1): Visit(-4.0, False, 1.0) for i in range(len(examples))}
    x = APART * torch.arange(1, len(examples) + 1, dtype=torch.float64)[:, None]

    def begin(ball: Ball, start: Tensor, steps: int, previous: Moves | None) -> Moves:
        return Scripted(ball, 1 + start * (budget + 1) if previous is None else previous.delta, table)

    table = Table(base | visits)
    seeds = 1000 * x.long() + torch.arange(restarts)

    def start_of(ball: Ball, seeds: list[int]) -> Tensor:
        assert torch.equal(torch.tensor(seeds)[:, None] // 1000, ball.inputs.long())
        return torch.tensor(seeds, dtype=torch.float64)[:, None] % 1000

    options = Options(
        90.0, "Linf", None, (0.0, 1e4), lambda logits, classes: logits[:, 2], None, restarts=restarts,
        random_start=True, early_stop=early_stop, keep_finished=keep_finished, batch_size=batch_size,
        return_result=True,
    )  # fmt: skip
    stages = [Stage(2.0, first), Stage(1.0, budget - first)] if first else [Stage(1.0, budget)]
    labels = torch.zeros(len(examples), dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientMaskingWarning)
        patch.setattr(_search, "example_seeds", lambda inputs, count, generator: seeds)
        patch.setattr(LinfBall, "random", start_of)
        result = search(table, x, labels, begin, stages, options)
    assert isinstance(result, AttackResult)
    for i, runs in enumerate(examples):
        moved, wanted = ledger(runs, first, early_stop)
        number = APART * (i + 1) + moved
        assert result.adv[i].item() == number
        assert result.distance[i].item() == moved
        assert result.success[i].item() == wanted.fooled
        assert result.steps_used[i].item() == wanted.steps
        assert result.bad_grad[i].item() == wanted.bad, i


class Kept(NamedTuple):
    fooled: bool
    steps: int
    bad: bool


def ledger(runs: list[list[Visit]], first: int, early_stop: bool) -> tuple[int, Kept]:
    """How far the best point is from the input, and what is to be said of the example."""
    budget = len(runs[0]) - 1
    best, best_loss, fooled, bad, steps = 0, -math.inf, False, False, len(runs) * budget
    for run, visits in enumerate(runs):
        for step, visit in enumerate(visits):
            if early_stop and fooled:
                break
            bad = bad or (visit.bad and not fooled)
            if step < first:  # in a larger ball than allowed
                continue
            if visit.reached and not fooled:
                steps = run * budget + step
            loss = -math.inf if math.isnan(visit.loss) else visit.loss
            if (visit.reached, loss) > (fooled, best_loss):
                best, best_loss = 1 + run * (budget + 1) + step, loss
            fooled = fooled or visit.reached
    return best, Kept(fooled, steps, bad)


@pytest.mark.parametrize(("change", "error", "match"), [
    ({"labels": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "labels must be class indices"),
    ({"targets": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "targets must be class indices"),
    ({"inputs": torch.zeros(2, 1, dtype=torch.float64, device="meta")}, TypeError, "not a meta tensor"),
    ({"labels": torch.zeros(2, dtype=torch.complex64)}, ValueError, "labels must be class indices"),
    ({"labels": torch.zeros(2, dtype=torch.bool)}, ValueError, "labels must be class indices"),
    ({"labels": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, "labels must be class indices"),
    ({"labels": "ab"}, TypeError, "labels must be class indices"),
    ({"targets": torch.tensor([0, -1])}, ValueError, "targets must not be negative; got -1"),
    ({"inputs": torch.zeros(2, 0, dtype=torch.float64)}, ValueError, "inputs must have entries"),
    ({"inputs": torch.zeros(2, 1, dtype=torch.float64).to_sparse()}, TypeError, "inputs must be a dense tensor"),
    ({"eps": "wide"}, TypeError, "eps must be a number"), ({"eps": 10**400}, TypeError, "eps must be a number"),
    ({"eps": torch.tensor(1j)}, TypeError, "eps must be a number"), ({"eps": 1j}, TypeError, "eps must be a number"),
    ({"eps": torch.ones(2, 1)}, ValueError, "eps must be a number"),
    ({"eps": torch.tensor([0.1, -0.1])}, ValueError, "eps must be at least 0"),
    ({"eps": torch.tensor([0.1, math.inf])}, ValueError, "eps must be at least 0 and finite"),
    ({"bounds": (0.0, math.inf)}, ValueError, "bounds must be"),
    ({"bounds": (-math.inf, 1.0)}, ValueError, "bounds must be"),
    ({"bounds": (0.0, 0.0)}, ValueError, "bounds must be"),
    ({"bounds": "01"}, TypeError, "bounds must be two numbers"),
    ({"bounds": ("low", 0, 1)}, TypeError, "bounds must be two numbers"),
    ({"bounds": (0, "1")}, TypeError, "bounds must be two numbers"),
    ({"bounds": (0, 1, 2)}, TypeError, "bounds must be two numbers"),
    ({"bounds": 3}, TypeError, "bounds must be two numbers"), ({"restarts": True}, ValueError, "restarts must be"),
    ({"batch_size": -1}, ValueError, "batch_size must be"), ({"steps": True}, ValueError, "steps must be"),
])  # fmt: skip
def test_mistakes_are_named(change: dict[str, Any], error: type[Exception], match: str) -> None:
    model = nn.Linear(1, 3).double()
    given: dict[str, Any] = {
        "inputs": torch.zeros(2, 1).double(), "labels": torch.tensor([0, 1]), "eps": 0.1, "steps": 2,
    } | change  # fmt: skip
    with pytest.raises(error, match=match):
        pgd(model, given.pop("inputs"), given.pop("labels"), **given)


@pytest.mark.parametrize("labels", [[0, 1], (0, 1), torch.tensor([0, 1], dtype=torch.uint8), np.array([0, 1])])
def test_labels_of_any_kind_of_integers(labels: Any) -> None:
    model = nn.Linear(1, 3).double()
    x = torch.tensor([[0.3], [0.6]]).double()
    wanted = pgd(model, x, torch.tensor([0, 1]), eps=0.1, steps=3)
    assert torch.equal(pgd(model, x, labels, eps=0.1, steps=3), wanted)
    assert torch.equal(pgd(model, x, labels, eps=torch.tensor(0.1, dtype=torch.float64), steps=3), wanted)


def test_nothing_to_attack_has_the_same_types() -> None:
    model = nn.Linear(1, 3).double()
    x, y = torch.rand(2, 1, dtype=torch.float64), torch.tensor([0, 1])
    some = pgd(model, x, y, eps=0.1, steps=2, return_result=True)
    none = pgd(model, x[:0], y[:0], eps=0.1, steps=2, return_result=True)
    assert isinstance(some, AttackResult)
    assert isinstance(none, AttackResult)
    for name, value in vars(some).items():
        other = getattr(none, name)
        assert other.shape == (0, *value.shape[1:])
        assert other.dtype is value.dtype or name == "loss"


def test_starts_are_those_of_the_entries_whatever_their_layout() -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = example_seeds(x, 2, None)
    for other in (x.t().contiguous().t(), torch.stack([x, x], 2)[..., 1], x.clone().requires_grad_()):
        assert torch.equal(example_seeds(other, 2, None), wanted)
    assert not torch.equal(example_seeds(x.float(), 2, None), wanted)


@pytest.mark.parametrize("bounds", [(0, 1), [0.0, 1.0], (np.float32(0), np.float64(1)), torch.tensor([0.0, 1.0])])
def test_bounds_of_any_kind_of_numbers(bounds: Any) -> None:
    model = nn.Linear(1, 3).double()
    x, y = torch.tensor([[0.05], [0.98]]).double(), torch.tensor([0, 1])
    assert torch.equal(pgd(model, x, y, eps=0.1, bounds=bounds), pgd(model, x, y, eps=0.1))


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("name", ["pgd", "apgd", "fgsm", "fgm", "slide", "gaussian_noise", "uniform_noise"])
def test_an_eps_beyond_the_box_is_the_box(name: str, norm: float) -> None:
    """Whatever can be reached is, and nothing is NaN, though a direction of the input is dead."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[:, 0] = 0
    x = torch.rand(8, 4)
    y = model(x).argmax(1)
    attack = getattr(attacks, name)
    options = {} if name in ("slide", "fgsm", "fgm") else {"norm": norm}
    rates = []
    for eps in (1e4, 2e19, 1e25, 1e39, 1e300):
        found = attack(model, x, y, eps=eps, return_result=True, **options)
        assert bool(found.adv.isfinite().all())
        assert bool(((found.adv >= 0) & (found.adv <= 1)).all())
        rates.append(float(found.success.double().mean()))
    assert min(rates) == max(rates)
