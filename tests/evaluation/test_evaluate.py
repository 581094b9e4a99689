"""What `evaluate` does with what attacks return, batch by batch: attacks are made up, the model is a sign."""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import evaluate
from sparring.attacks import AttackResult, GradientMaskingWarning
from sparring.evaluation import Evaluation
from sparring.gradients import Lowered

COUNT = 10
EPS = 0.5


class Sign(nn.Module):
    """Class 1 where the first entry is positive, on which the logits depend alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        value = self.scale * x[:, 0]
        return torch.stack([-value, value], 1)


def examples() -> tuple[Tensor, Tensor]:
    """The first entry is ±0.2, the second the example's number; the last two labels are wrong."""
    sign = torch.tensor([1.0, -1.0]).repeat(COUNT // 2).double()
    x = torch.stack([0.2 * sign, torch.arange(COUNT).double() / 100], 1)
    y = (sign > 0).long()
    y[-2:] = 1 - y[-2:]
    return x, y


def turned(x: Tensor, which: Tensor) -> Tensor:
    """The first entry of the examples `which` on the other side."""
    return torch.where(which[:, None] & torch.tensor([True, False]), x - 2 * x, x)


def fooling(*numbers: int) -> Callable[..., Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return turned(x, torch.isin((x[:, 1] * 100).round().long(), torch.tensor(numbers)))

    return attack


def run(attacks: list[Any], **options: Any) -> Evaluation:
    x, y = examples()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientMaskingWarning)
        return evaluate(Sign(), x, y, attacks, **{"eps": EPS, "bounds": (-1.0, 1.0), "batch_size": 3} | options)


def numbers(mask: Tensor) -> list[int]:
    found: list[int] = mask.nonzero()[:, 0].tolist()
    return found


def test_attacked_are_the_correct_ones_and_in_the_worst_case_those_left() -> None:
    entries = [fooling(0, 1, 4), fooling(1, 2), fooling(9)]
    found, hurried = run(entries), run(entries, worst_case=True)
    assert numbers(found.correct) == [*range(8)]
    assert [numbers(row.attacked) for row in found.rows] == [[*range(8)]] * 3
    assert [numbers(row.fooled) for row in found.rows] == [[0, 1, 4], [1, 2], []]
    assert [numbers(row.robust) for row in found.rows] == [[2, 3, 5, 6, 7], [0, 3, 4, 5, 6, 7], [*range(8)]]
    assert [numbers(row.attacked) for row in hurried.rows] == [[*range(8)], [2, 3, 5, 6, 7], [3, 5, 6, 7]]
    assert [numbers(row.robust) for row in hurried.rows] == [[2, 3, 5, 6, 7], [3, 5, 6, 7], [3, 5, 6, 7]]
    for evaluation in (found, hurried):
        assert numbers(evaluation.robust) == numbers(evaluation.worst_cases[0].robust) == [3, 5, 6, 7]
    assert hurried.worst_case_only
    assert not found.worst_case_only
    two = run([(fooling(0), {"eps": 0.5}), (fooling(1), {"eps": 0.6, "norm": 2})], eps=None, worst_case=True)
    assert [numbers(row.attacked) for row in two.rows] == [[*range(8)]] * 2, "another threat model begins anew"


def test_an_attack_that_fails_says_why_and_others_go_on() -> None:
    """What it fooled before counts, and nothing else."""
    calls = itertools.count()

    def fails(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if next(calls) == 1:
            raise RuntimeError("no more\nof this")
        return turned(x, torch.ones(len(x), dtype=torch.bool))

    def bare(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise KeyError

    found = run([fails, fooling(5), bare])
    first, second, third = found.rows
    assert (first.error, second.error, third.error) == ("no more", None, "KeyError")
    assert numbers(first.fooled) == [0, 1, 2]
    assert numbers(first.robust) == [*range(3, 8)]
    assert numbers(found.worst_cases[0].robust) == [3, 4, 6, 7]
    assert found.worst_cases[0].attacks == 1
    assert found.warnings == [
        "fails (Linf, eps 0.5) could not run: no more", "bare (Linf, eps 0.5) could not run: KeyError",
    ]  # fmt: skip
    with pytest.raises(KeyError):
        run([bare])

    def other(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise ValueError("too bad")

    with pytest.raises(KeyError):
        run([bare, other])
    with pytest.raises(ValueError, match="attack 'other': too bad"):
        run([other, bare])


def test_distances_and_overruns_are_measured_over_all_batches() -> None:
    def goes_too_far(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """By a hundredth of the example's number, in the second entry."""
        far = EPS + x[:, 1] - 0.04
        return turned(x, x[:, 0] > 0) + far[:, None] * torch.tensor([0.0, 1.0])

    row = run([goes_too_far]).rows[0]
    assert numbers(row.infeasible) == [5, 6, 7]
    assert numbers(row.fooled) == [0, 2, 4]
    assert row.overrun == pytest.approx(0.03)
    wanted = EPS + torch.arange(8).double() / 100 - 0.04
    torch.testing.assert_close(row.distances["Linf"][:8], wanted)
    torch.testing.assert_close(row.distances["L1"][:8], wanted + torch.tensor([0.4, 0.0] * 4).double())
    torch.testing.assert_close(row.distances["L2"][:8], (wanted**2 + torch.tensor([0.16, 0.0] * 4).double()).sqrt())
    assert all(bool(distances[8:].isnan().all()) for distances in row.distances.values())
    assert run([lambda model, x, y: x * math.nan]).rows[0].overrun == 0
    assert run([lambda model, x, y: x]).rows[0].overrun == 0


def test_what_an_attack_says_of_itself_is_noted_where_it_ran() -> None:
    calls = itertools.count()

    def says(model: nn.Module, x: Tensor, y: Tensor) -> AttackResult:
        number = next(calls)
        some = torch.arange(len(x)) == 0
        return AttackResult(turned(x, ~some), some, x[:, 0], x[:, 0], torch.full((len(x),), number), some)

    row = run([says]).rows[0]
    assert row.steps is not None
    assert row.bad_grad is not None
    assert row.steps[:8].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert bool(row.steps[8:].isnan().all())
    assert numbers(row.bad_grad) == [0, 3, 6]
    assert row.unconfirmed == 3, "successes that are none"
    assert row.mean_steps == 7 / 8
    silent = run([fooling(1)]).rows[0]
    assert silent.steps is None
    assert silent.bad_grad is None
    assert silent.unconfirmed == 0
    assert math.isnan(silent.mean_steps)


@pytest.mark.parametrize(("keep", "wanted"), [(0, []), (1, [1, 0]), (2, [1, 0, 3, 4]), (9, [1, 0, 3, 4, 5, 6])])
def test_the_first_of_each_class_are_kept(keep: int, wanted: list[int]) -> None:
    """Batches one after the other, in each the classes in order."""
    kept = run([fooling(0, 1, 3, 4, 5, 6)], keep=keep, batch_size=2).rows[0].examples
    assert sorted(kept.index.tolist()) == sorted(wanted)
    x, y = examples()
    assert torch.equal(kept.images, turned(x[kept.index], kept.index >= 0))
    assert torch.equal(kept.predictions, 1 - y[kept.index])


def test_progress_goes_from_attack_to_attack() -> None:
    seen = []
    run([fooling(), fooling(1)], on_progress=seen.append)
    assert [(step.done, step.total) for step in seen] == [
        (0, 2), (0 + 3 / 8, 2), (0 + 6 / 8, 2), (1, 2), (1, 2), (1 + 3 / 8, 2), (1 + 6 / 8, 2), (2, 2), (2, 2),
    ]  # fmt: skip
    assert [step.doing for step in seen] == ["attack, Linf, eps 0.5"] * 4 + ["attack (2), Linf, eps 0.5"] * 4 + ["done"]


def test_seconds_are_those_of_the_attack_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves when the attack moves it, or a lot when the model is asked."""
    now = [100.0]
    module = importlib.import_module("sparring.evaluation.evaluate")  # not the function of that name
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(Sign):
        def forward(self, x: Tensor) -> Tensor:
            now[0] += 1000
            return super().forward(x)

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        now[0] += len(x) / 4
        return x

    x, y = examples()
    found = evaluate(Slow(), x, y, [attack, attack], eps=EPS, bounds=(-1.0, 1.0), batch_size=3)
    assert [row.seconds for row in found.rows] == [2.0, 2.0]


def test_attacks_cannot_change_what_they_are_given() -> None:
    def scribbles(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x.mul_(-1)
        y.fill_(0)
        return x

    x, y = examples()
    before = x.clone(), y.clone()
    found = run([scribbles, fooling(3)])
    assert numbers(found.rows[0].fooled) == [*range(8)]
    moved = 2 * x[:8].abs().amax(1)
    torch.testing.assert_close(found.rows[0].distances["Linf"][:8], moved)
    assert numbers(found.rows[1].fooled) == [3]
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert found.labels.tolist() == y.tolist()


def test_which_model_and_random_numbers_an_attack_is_given() -> None:
    given: list[Any] = []

    def looks(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, early_stop: bool) -> Tensor:
        given.append((type(model), torch.rand(3, generator=generator).tolist(), early_stop, model.training))
        return x

    run([looks, (looks, {"name": "again"})])
    kinds, draws, early, training = zip(*given, strict=True)
    assert set(kinds) == {Sign}
    assert all(early)
    assert not any(training)
    assert draws[0] == draws[1] == draws[2], "every batch has the same stream"
    assert draws[3] == draws[5] != draws[0], "and every name its own"
    given.clear()
    run([looks], seed=1)
    assert given[0][1] != draws[0]


def test_attacks_of_the_library_are_given_the_lowered_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring import attacks

    given: list[type] = []

    def spy(model: Any, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
        given.append(type(model))
        return x

    monkeypatch.setattr(attacks, "pgd", spy)
    run(["pgd", fooling(1)])
    assert {*given} == {Lowered}


def test_inputs_a_rounding_outside_are_brought_inside_first() -> None:
    x, y = examples()
    x[:, 1] = 1 + 5e-7
    seen: list[float] = []

    def looks(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(float(x.max()))
        return x

    found = evaluate(Sign(), x, y, [looks], eps=0.0, bounds=(-1.0, 1.0))
    assert seen == [1.0]
    assert found.rows[0].distances["Linf"][:8].tolist() == [0.0] * 8
    assert not found.rows[0].infeasible.any(), "eps 0 allows the input"


def test_points_of_another_type_are_rounded_before_they_are_judged() -> None:
    """What counts is the point that the model could be given."""
    row = run([lambda model, x, y: turned(x, x[:, 0] > 0).float()]).rows[0]
    assert numbers(row.fooled) == [0, 2, 4, 6]
    assert 0 < float(row.distances["Linf"][1]) < 1e-8


@pytest.mark.parametrize("wrong", [
    lambda x: x[1:], lambda x: x[:, :1], lambda x: x.numpy(), lambda x: [x], lambda x: None, lambda x: x[None],
])  # fmt: skip
def test_what_is_no_points_is_refused(wrong: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ValueError, match=r"attack 'odd' returned .* for x of shape \(3, 2\) on cpu; wanted are points"):
        run([{"attack": lambda model, x, y: wrong(x), "name": "odd"}])


def test_unknown_predictions_are_refused() -> None:
    x, y = examples()
    for value in (math.nan, math.inf):
        model = Sign()
        x_ = x.clone()
        x_[4, 0] = 0.2

        class Breaks(Sign):
            def forward(self, x: Tensor, value: float = value) -> Tensor:
                return torch.where((x[:, 1:] * 100).round() == 4, value, super().forward(x))

        with pytest.raises(ValueError, match="output for the unchanged example 4 is not finite"):
            evaluate(Breaks(), x_, y, [fooling(1)], eps=EPS, bounds=(-1.0, 1.0), batch_size=3)
        assert model.training


def test_the_largest_class_may_be_one_that_the_model_does_not_have() -> None:
    x, y = examples()
    y[3] = 2
    with pytest.raises(ValueError, match="y holds the class 2, but the model has 2 outputs"):
        evaluate(Sign(), x, y, [fooling(1)], eps=EPS, bounds=(-1.0, 1.0))


def test_images_in_a_graph_leave_it() -> None:
    x, y = examples()
    found = evaluate(Sign(), x.requires_grad_(), y, [fooling(1), "fgsm"], eps=EPS, bounds=(-1.0, 1.0), keep=3)
    for row in found.rows:
        assert not row.examples.images.requires_grad
        assert not any(distances.requires_grad for distances in row.distances.values())


def test_a_mean_alone_is_a_preprocessing() -> None:
    """And a deviation alone: what is left out does nothing."""
    x, y = examples()
    for preprocessing, factor, shift in (({"mean": 0.1}, 1.0, 0.1), ({"std": 0.5}, 2.0, 0.0), ({}, 1.0, 0.0)):
        seen: list[Tensor] = []

        class Seen(Sign):
            def forward(self, x: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(x)
                return super().forward(x)

        evaluate(Seen(), x, y, [fooling()], eps=EPS, bounds=(-1.0, 1.0), preprocessing=preprocessing, batch_size=COUNT)
        torch.testing.assert_close(seen[0], (x - shift) * factor)


def test_the_battery_goes_by_the_outputs_of_the_model() -> None:
    """Two of them here, for ten examples: too few for the targeted loss."""
    found = run(None, batch_size=COUNT)  # type: ignore[arg-type]
    assert [row.name for row in found.rows if not row.added] == [
        "noise", "fgsm", "apgd-ce", "minimal", "apgd-margin", "apgd-margin (2)", "square",
    ]  # fmt: skip
