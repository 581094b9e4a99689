"""What `lbfgs` does at the edges: on the boundary itself, without a gradient, and with numbers of other layouts."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.attacks import AttackResult, GradientMaskingWarning
from sparring.attacks._box_lbfgs import PENALTIES, REJECTED, BoxLbfgs
from sparring.attacks.lbfgs import Answer, WeightSearch, _first_weight


class Plane(nn.Module):
    """Two classes with the boundary ``w.x = 1 / 2``; all logits are 0 on it."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(scale * torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        value = (x - 0.5) @ self.w
        return torch.stack([-value, value], 1)


def attack(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> AttackResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientMaskingWarning)
        found = attacks.lbfgs(model, x, y, return_result=True, **options)
    assert isinstance(found, AttackResult)
    return found


@pytest.mark.parametrize("penalty", PENALTIES)
def test_on_the_boundary_a_step_beyond_it_is_found(penalty: str) -> None:
    """The likeliest class is 0 there, by position: class 1 has to be reached, class 0 has been."""
    x = torch.full((2, 3), 0.5, dtype=torch.float64)
    found = attack(Plane(), x, torch.tensor([0, 1]), penalty=penalty)
    assert found.success.tolist() == [True, True]
    assert not found.bad_grad.any()
    assert 0 < float(found.distance[0]) < 1e-2
    assert torch.equal(found.adv[1], x[1]) or float(found.distance[1]) < 1e-2


def test_without_a_gradient_the_input_is_returned_and_said_to_be_masked() -> None:
    x = torch.full((2, 3), 0.25, dtype=torch.float64)
    found = attack(Plane(0.0), x, torch.tensor([0, 0]))
    assert not found.success.any()
    assert found.bad_grad.all()
    assert torch.equal(found.adv, x)
    assert found.distance.tolist() == [0, 0]


def test_inputs_that_are_mistaken_already_are_not_moved() -> None:
    x = torch.tensor([[0.9, 0.9, 0.5], [0.9, 0.9, 0.5]], dtype=torch.float64)
    found = attack(Plane(), x, torch.tensor([0, 1]))
    assert torch.equal(found.adv[0], x[0])
    assert found.success.all()
    assert float(found.distance[1]) == pytest.approx(0.4 / (0.36 + 0.16) ** 0.5, rel=1e-3)
    assert int(found.steps_used[0]) == 0
    assert int(found.steps_used[1]) > 0


def test_the_longest_history_and_single_steps_work() -> None:
    x = torch.tensor([[0.9, 0.9, 0.5]], dtype=torch.float64)
    for options in ({"history": 16}, {"history": 1}, {"weights": 1}, {"steps": 0}):
        assert len(attack(Plane(), x, torch.tensor([1]), **options)) == 1


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_first_weight_is_read_off_a_linear_model(penalty: str) -> None:
    """Where the penalty balances half of the gradient at the boundary, which lies ``margin / steepness`` away."""
    grad = torch.tensor([[3.0, -4.0], [0.0, 0.0], [torch.nan, 1.0], [1e-100, 0.0]], dtype=torch.float64)
    margin = torch.tensor([-2.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    weight, hopeless = _first_weight(penalty, Answer(grad, torch.zeros(4), margin))
    assert hopeless.tolist() == [False, True, True, False]
    steepness = 4.0 if penalty == "L1" else 5.0
    wanted = steepness / 2 if penalty != "squared L2" else steepness**2 / (4 * 2.0)
    assert float(weight[0]) == pytest.approx(wanted)
    assert bool((weight > 0).all())
    assert _first_weight(penalty, Answer(grad, torch.full((4,), torch.inf), margin))[1].all()


@pytest.mark.parametrize("change", [
    lambda t: t.double(), lambda t: t.repeat_interleave(2, -1)[..., ::2],
    lambda t: t.t().contiguous().t() if t.ndim == 2 else t,
])  # fmt: skip
def test_gradients_of_other_types_and_layouts_are_the_same_numbers(change: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 6, generator=generator)
    tops = torch.rand(4, 6, generator=generator)
    weight = torch.full((4,), 0.3, dtype=torch.float64)
    none = torch.zeros(4, dtype=torch.bool)

    def run(change: Any) -> tuple[Tensor, Tensor]:
        descent = BoxLbfgs(x, "squared L2", (0.0, 1.0), history=3, tolerance=1e-6)
        for _ in range(12):
            off = descent.trial - tops
            given = (change(part) for part in (-off, -off.square().sum(1) / 2, off[:, 0] - 0.1))
            verdict = descent.accept(weight, *given, none)
            descent.advance(weight, verdict != REJECTED)
        return descent.point, descent.best_distance

    for found, wanted in zip(run(change), run(lambda t: t), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("change", "error", "match"), [
    ({"inputs": [[0.5]]}, TypeError, "inputs must be a float32 or float64 tensor"),
    ({"inputs": torch.full((2, 3), 0.5).numpy()}, TypeError, "inputs must be a float32 or float64 tensor"),
    ({"bounds": None}, TypeError, "bounds must be two numbers"),
    ({"bounds": (0,)}, TypeError, "bounds must be two numbers"),
    ({"bounds": (1, 0)}, ValueError, "bounds must be"),
    ({"penalty": "L3"}, ValueError, "penalty must be one of"),
    ({"targets": "nearest"}, ValueError, "targets must be classes"),
    ({"history": 17}, ValueError, "history must be an integer in 1 ... 16"),
    ({"history": 0}, ValueError, "history must be"), ({"weights": 0}, ValueError, "weights must be"),
    ({"weights": True}, ValueError, "weights must be"), ({"tolerance": 0.0}, ValueError, "tolerance must be positive"),
    ({"weight_tolerance": -1.0}, ValueError, "weight_tolerance must be positive"),
    ({"sharpness": ()}, ValueError, "sharpness must be one factor at least"),
    ({"sharpness": (1.0, 0.0)}, ValueError, "sharpness must be positive"), ({"steps": -1}, ValueError, "steps must be"),
])  # fmt: skip
def test_mistakes_are_named(change: dict[str, Any], error: type[Exception], match: str) -> None:
    given = {"inputs": torch.full((2, 3), 0.5).double(), "labels": torch.tensor([0, 1])} | change
    with pytest.raises(error, match=match):
        attack(Plane(), given.pop("inputs"), given.pop("labels"), **given)


def test_so_many_weights_are_tried_at_most() -> None:
    """Each one more costs steps, and brings the point no farther away."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(i)
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = model(x).argmax(1)
    found = [attack(model, x, y, weights=weights, weight_tolerance=1e-12) for weights in (1, 3, 10, 30)]
    for fewer, more in pairwise(found):
        assert bool((more.steps_used > fewer.steps_used).all())
        both = fewer.success & more.success
        assert bool((more.distance[both] <= fewer.distance[both]).all())
        assert bool((more.success >= fewer.success).all())


@pytest.mark.parametrize("curve", [
    lambda log, zero: zero - log, lambda log, zero: math.tanh(zero - log), lambda log, zero: (zero - log) ** 3,
    lambda log, zero: -1.0,
])  # fmt: skip
def test_weights_are_searched_as_described(curve: Any) -> None:
    """Bracketed by factors, then by regula falsi, a tenth away from the ends, every third trial in the middle."""
    zeros, most = [0.0, 1.5, -4.0, 20.0, 0.3], 30
    search = WeightSearch(torch.ones(5).double(), torch.tensor([False] * 4 + [True]), 1e-3, most, 8.0)
    logs = [0.0] * 5
    low, high = [-math.inf] * 5, [math.inf] * 5
    at_low, at_high, trials, done = [0.0] * 5, [0.0] * 5, [0] * 5, [False] * 4 + [True]
    for step in range(60):
        ended = [not done[i] and (step + i) % 2 == 0 for i in range(5)]  # each at a pace of its own
        margins = [curve(logs[i], zeros[i]) for i in range(5)]
        search.update(torch.tensor(ended), torch.tensor(margins, dtype=torch.float64))
        for i in range(5):
            if not ended[i]:
                continue
            trials[i] += 1
            fooled = margins[i] > 0
            if fooled and logs[i] > low[i]:
                low[i], at_low[i] = logs[i], margins[i]
            if not fooled and logs[i] < high[i]:
                high[i], at_high[i] = logs[i], margins[i]
            wide = high[i] - low[i]
            done[i] = wide <= math.log1p(1e-3) or trials[i] >= most or (low[i] == -math.inf and trials[i] >= 24)
            if done[i]:
                continue
            if math.isinf(wide):
                logs[i] += math.log(8.0) if fooled else -math.log(8.0)
            else:
                share = min(0.9, max(0.1, at_low[i] / (at_low[i] - at_high[i])))
                logs[i] = low[i] + (0.5 if trials[i] % 3 == 0 else share) * wide
        assert search.done.tolist() == done
        torch.testing.assert_close(search.weight.log(), torch.tensor(logs, dtype=torch.float64), rtol=0, atol=1e-6)
    assert all(done)
