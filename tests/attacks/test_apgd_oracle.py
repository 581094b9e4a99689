"""APGD step by step: every point that it visits is the one of the published algorithm, written out for one example.

The oracle knows nothing of batches: momentum, checkpoints, halvings and the way back to the best point with the
gradient found there follow Croce & Hein 2020 (algorithm 1) and 2021 (algorithm 1 of the appendix) and the authors'
code, number by number in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import attacks, reference
from sparring.attacks import _problem

ENTRIES, CLASSES, COUNT = 30, 4, 9
EPS = {"Linf": 0.1, "L2": 0.3, "L1": 1.2}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Smooth and far from linear, so that no two points share their gradient, and steps overshoot."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(ENTRIES, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net


@pytest.fixture(scope="module")
def x() -> Tensor:
    """In L2 the sides of the box [-1, 2] are far enough not to matter, in Linf and L1 those of [0, 1] do."""
    return torch.rand(COUNT, ENTRIES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture(scope="module")
def y(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x).argmax(1)


def bounds_for(norm: str) -> tuple[float, float]:
    return (-1.0, 2.0) if norm == "L2" else (0.0, 1.0)


@dataclass
class Path:
    """What one run of one example went through: points, losses, and how often it went back."""

    visited: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    halvings: int = 0
    returns: int = 0

    def best(self, first: int = 0) -> Tensor:
        losses = self.losses[first:]
        return self.visited[first:][losses.index(max(losses))]


Answer = Callable[[Tensor], tuple[Tensor, float, Tensor]]
"""Checks a perturbation against the one that the attack made there, and returns the latter with its loss and gradient.

So rounding settles no tie twice: the oracle goes on from what the attack had.
"""


def projection(norm: str, x: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """Onto the ball around x, and into the box, point by point (not perturbation by perturbation)."""
    if norm == "Linf":
        return lambda point: point.clamp(x - eps, x + eps).clamp(0, 1)
    return lambda point: x + (point - x) * min(1.0, eps / max(float((point - x).norm()), 1e-300))


def with_momentum(answer: Answer, norm: str, x: Tensor, start: Tensor, eps: float, steps: int, rho: float) -> Path:
    """APGD in Linf and L2."""
    project = projection(norm, x, eps)
    path = Path()

    def query(point: Tensor) -> tuple[Tensor, float, Tensor]:
        delta, loss, grad = answer(point - x)
        path.visited.append(x + delta)
        path.losses.append(loss)
        return x + delta, loss, grad

    point, loss, grad = query(start)
    previous = point
    best, best_loss, best_grad = point, loss, grad
    size = 2 * eps
    window, shorter, shortest = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    losses, best_at_checkpoint, halved_at_checkpoint = [loss], loss, True
    for step in range(steps):
        direction = grad.sign() if norm == "Linf" else grad / grad.norm()
        straight = project(point + size * direction)
        if step > 0:
            straight = project(point + 0.75 * (straight - point) + 0.25 * (point - previous))
        previous = point
        point, loss, grad = query(straight)
        if loss > best_loss:
            best, best_loss, best_grad = point, loss, grad
        losses.append(loss)
        if len(losses) == window + 1:  # a checkpoint
            rises = sum(later > earlier for earlier, later in pairwise(losses))
            stuck = not halved_at_checkpoint and best_loss <= best_at_checkpoint
            halved_at_checkpoint = rises <= rho * window or stuck
            if halved_at_checkpoint:
                size /= 2
                path.halvings += 1
                path.returns += point is not best
                point, grad = best, best_grad
            best_at_checkpoint, losses = best_loss, [losses[-1]]
            window = max(window - shorter, shortest)
    return path


def sparse(
    answer: Answer, x: Tensor, start: Tensor, stages: list[tuple[float, int]], bounds: tuple[float, float], share: float
) -> Path:
    """APGD in L1, through balls of several sizes (the last is the one asked for)."""
    path, begin = Path(), 0
    for number, (eps, steps) in enumerate(stages):
        delta = start - x
        if number > 0:
            delta = reference.project_l1_box((path.best(begin) - x)[None], x[None], eps, bounds)[0]
        begin = len(path.visited)
        nonzero = int((delta != 0).sum())
        count, sparsity = (share * ENTRIES, ENTRIES) if number == 0 else (nonzero / 1.5, nonzero)
        size, interval = eps, max(int(0.04 * steps), 1)
        gradients, deltas = [], []
        last = number == len(stages) - 1
        for step in range(steps + last):
            delta, loss, grad = answer(delta)
            path.visited.append(x + delta)
            path.losses.append(loss)
            gradients.append(grad)
            deltas.append(delta)
            if step == steps:
                break
            if step > 0 and step % interval == 0:
                so_far = path.losses[begin:]
                best = so_far.index(max(so_far))
                entries = int((deltas[best] != 0).sum())
                if entries < 0.95 * sparsity:
                    path.returns += best != step
                    size, delta, grad = eps, deltas[best], gradients[best]
                else:
                    path.halvings += 1
                    size = max(size / 1.5, eps / 10)
                count, sparsity = entries / 1.5, entries
            k = max(1, int(count))
            delta = reference.l1_step(delta[None], grad[None], x[None], eps, size, k, bounds)[0]
    return path


class Record:
    """Every query's perturbations (B, ...) and what was answered, in their order."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.deltas: list[Tensor] = []
        self.queries: list[_problem.Query] = []

    def part(self, first: int, last: int) -> Record:
        part = Record(self.x)
        part.deltas, part.queries = self.deltas[first:last], self.queries[first:last]
        return part

    def of(self, row: int) -> Answer:
        queries = zip(self.deltas, self.queries, strict=True)

        def answer(delta: Tensor) -> tuple[Tensor, float, Tensor]:
            given, query = next(queries)
            torch.testing.assert_close(given[row], delta, rtol=0, atol=1e-9)
            return given[row], float(query.loss[row]), query.grad[row]

        return answer

    def check(self, network: nn.Module, classes: Tensor, sign: float = 1.0) -> None:
        """The answers are those of autograd."""
        for delta, query in zip(self.deltas, self.queries, strict=True):
            leaf = (self.x + delta).requires_grad_()
            loss = sign * nn.functional.cross_entropy(network(leaf), classes, reduction="none")
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            torch.testing.assert_close(query.loss, loss.detach())
            torch.testing.assert_close(query.grad, grad)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> Record:
    record = Record(x)
    query = _problem.Problem.query

    def noted(self: _problem.Problem, delta: Tensor) -> _problem.Query:
        record.deltas.append(delta.clone())
        record.queries.append(query(self, delta))
        return record.queries[-1]

    monkeypatch.setattr(_problem.Problem, "query", noted)
    return record


def paths(seen: Record, x: Tensor, norm: str, steps: int, rho: float, share: float) -> list[Path]:
    found = []
    for i, row in enumerate(x):
        start = row + seen.deltas[0][i]
        if norm == "L1":
            found.append(sparse(seen.of(i), row, start, [(EPS[norm], steps)], bounds_for(norm), share))
        else:
            found.append(with_momentum(seen.of(i), norm, row, start, EPS[norm], steps, rho))
    return found


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize(("steps", "rho"), [(0, 0.75), (1, 0.75), (7, 0.75), (40, 0.75), (100, 0.3)])
@pytest.mark.parametrize("norm", EPS)
def test_every_visited_point_is_the_algorithms(
    network: nn.Module, x: Tensor, y: Tensor, seen: Record, norm: str, steps: int, rho: float, random_start: bool
) -> None:
    result = attacks.apgd(
        network, x, y, eps=EPS[norm], norm=norm, steps=steps, rho=rho, random_start=random_start, schedule=None,
        bounds=bounds_for(norm), return_result=True,
    )  # fmt: skip
    assert isinstance(result, attacks.AttackResult)
    assert bool((seen.deltas[0] != 0).any()) == random_start
    assert len(seen.deltas) == steps + 1
    wanted = paths(seen, x, norm, steps, rho, 0.2 if random_start else 0.05)
    seen.check(network, y)
    if steps == 100:
        assert len({(path.halvings, path.returns) for path in wanted}) > 1, "the test wants examples that differ"
        assert sum(path.returns for path in wanted) >= 4, "the test wants ways back from elsewhere"
    check_best(network, y, wanted, result)


def fools(network: nn.Module, path: Path, label: Tensor) -> list[bool]:
    with torch.no_grad():
        fooled: list[bool] = (network(torch.stack(path.visited)).argmax(1) != label).tolist()
    return fooled


def check_best(network: nn.Module, y: Tensor, wanted: list[Path], result: attacks.AttackResult) -> None:
    """Of the visited points that fool the one of highest loss, of all where none does."""
    for i, path in enumerate(wanted):
        fooled = fools(network, path, y[i])
        among = [at for at, is_ in enumerate(fooled) if is_] or [*range(len(fooled))]
        best = max(among, key=lambda at, path=path: path.losses[at])
        torch.testing.assert_close(result.adv[i], path.visited[best], rtol=0, atol=1e-9)
        assert bool(result.success[i]) == any(fooled)
        assert int(result.steps_used[i]) == (fooled.index(True) if any(fooled) else len(fooled) - 1)


@pytest.mark.parametrize("keep_finished", [False, True])
@pytest.mark.parametrize("norm", EPS)
def test_examples_that_leave_do_not_change_the_paths_of_others(
    network: nn.Module, x: Tensor, y: Tensor, seen: Record, norm: str, keep_finished: bool
) -> None:
    """With `early_stop` the first point that fools is returned, of the very same path."""
    steps = 30

    def attack(**options: bool) -> attacks.AttackResult:
        found = attacks.apgd(
            network, x, y, eps=EPS[norm], norm=norm, steps=steps, schedule=None, bounds=bounds_for(norm),
            return_result=True, **options,
        )  # fmt: skip
        assert isinstance(found, attacks.AttackResult)
        return found

    attack()
    wanted = paths(seen, x, norm, steps, 0.75, 0.2)
    result = attack(early_stop=True, keep_finished=keep_finished)
    assert len(set(result.steps_used.tolist())) >= 3, "the test wants examples that leave in turn"
    assert not bool(result.success.all())
    for i, path in enumerate(wanted):
        fooled = fools(network, path, y[i])
        assert bool(result.success[i]) == any(fooled)
        assert int(result.steps_used[i]) == (fooled.index(True) if any(fooled) else steps)
        if any(fooled):
            torch.testing.assert_close(result.adv[i], path.visited[fooled.index(True)], rtol=0, atol=1e-6)
        else:
            assert float(result.loss[i]) == pytest.approx(max(path.losses), abs=1e-6)


def test_stages_go_on_from_the_best_point_of_the_stage_before(
    network: nn.Module, x: Tensor, y: Tensor, seen: Record
) -> None:
    result = attacks.apgd(
        network, x, y, eps=EPS["L1"], norm=1, steps=130, schedule=attacks.LARGE_EPS, return_result=True
    )
    assert isinstance(result, attacks.AttackResult)
    stages = [(3 * EPS["L1"], 39), (2 * EPS["L1"], 39), (EPS["L1"], 52)]
    wanted = [
        sparse(seen.of(i), row, row + start, stages, (0.0, 1.0), 0.2)
        for i, (row, start) in enumerate(zip(x, seen.deltas[0], strict=True))
    ]
    assert len(seen.deltas) == 131
    assert float(seen.deltas[0].abs().sum(1).max()) == pytest.approx(3 * EPS["L1"])
    for i, path in enumerate(wanted):  # points of larger balls do not count
        fooled = fools(network, path, y[i])[78:]
        assert bool(result.success[i]) == any(fooled)
        assert int(result.steps_used[i]) == (78 + fooled.index(True) if any(fooled) else 130)


def test_target_classes_steer_to_one_likely_class_after_the_other(
    network: nn.Module, x: Tensor, y: Tensor, seen: Record
) -> None:
    """The same paths, of the loss of the class that is aimed at."""
    attacks.apgd(network, x, y, eps=EPS["Linf"], steps=6, target_classes=3, restarts=2, random_start=False)
    with torch.no_grad():
        order = network(x).argsort(1, descending=True)
    assert len(seen.deltas) == 42
    for way in range(6):
        part = seen.part(7 * way, 7 * way + 7)
        part.check(network, order[:, 1 + way % 3], -1.0)
        paths(part, x, "Linf", 6, 0.75, 0.0)


@pytest.mark.parametrize("schedule", [
    (), ((2.0, 1.0),), ((0.0, 0.5), (1.0, 0.5)), ((-1.0, 0.5), (1.0, 0.5)), ((2.0, 1.1), (1.0, 0.0)),
    ((2.0, -0.1), (1.0, 0.5)), ((1.0, 1.5),), ((1.0, -0.5),),
])  # fmt: skip
def test_schedules_that_are_none_are_named(network: nn.Module, x: Tensor, y: Tensor, schedule: Any) -> None:
    with pytest.raises(ValueError, match="schedule must be pairs"):
        attacks.apgd(network, x, y, eps=0.1, schedule=schedule)


def test_shares_of_a_schedule_may_fill_it_or_leave_stages_empty(
    network: nn.Module, x: Tensor, y: Tensor, seen: Record
) -> None:
    """The last stage has what the others leave; a stage without steps is passed over."""
    for schedule, wanted in (
        (((2.0, 0.5), (1.0, 0.5)), 11), (((3.0, 1.0), (1.0, 0.0)), 11), (((5.0, 0.05), (2.0, 0.0), (1.0, 1.0)), 11),
    ):  # fmt: skip
        seen.deltas.clear()
        attacks.apgd(network, x, y, eps=0.01, schedule=schedule, steps=10, random_start=False)
        assert len(seen.deltas) == wanted
        sizes = [round(float(delta.abs().max()) / 0.01, 6) for delta in seen.deltas[:-1]]
        assert max(sizes) <= {0.5: 2, 1.0: 3, 0.05: 1}[schedule[0][1]]
    with pytest.raises(ValueError, match="shares must add up"):
        attacks.apgd(network, x, y, eps=0.1, schedule=((3.0, 0.6), (2.0, 0.6), (1.0, 0.0)), steps=10)
