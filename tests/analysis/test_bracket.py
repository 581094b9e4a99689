"""Both sides of the smallest perturbation: closed forms of linear models, and that the sides never cross."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from sparring import lipschitz
from sparring.analysis import Bracket, BracketWarning, bracket
from sparring.analysis import bracket as function

NORMS = (2, 1, math.inf)
DUAL = {2: 2.0, 1: math.inf, math.inf: 1.0}
FEW = {2: 40, 1: 60, math.inf: 40}  # steps, where how near the upper side comes does not matter


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(model: nn.Module, seed: int, scale: float = 1.0) -> nn.Module:
    """With normal weights over the root of how many there are to a unit."""
    source = draws(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = scale / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=source) * spread)
    return model.eval()


def linear(classes: int, seed: int = 0) -> nn.Module:
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, classes)), seed)


def near_the_middle(model: nn.Module, count: int = 12) -> tuple[Tensor, Tensor]:
    """Images with a margin, so near a boundary that the box is farther, and the model's classes."""
    x = 0.5 + 0.1 * torch.randn(4 * count, 1, 4, 4, generator=draws(5))
    with torch.no_grad():
        cast(Any, model)[1].bias -= model(torch.full((1, 1, 4, 4), 0.5))[0]
        best = model(x).topk(2, 1)
    apart = best.values[:, 0] - best.values[:, 1]
    chosen = (apart > 0.04).nonzero()[:count, 0]
    return x[chosen], best.indices[chosen, 0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models_in_closed_form(norm: float, classes: int) -> None:
    model = linear(classes)
    x, y = near_the_middle(model)
    rows = cast(Any, model)[1].weight.detach().double()
    logits = model(x).detach().double()
    apart = torch.linalg.vector_norm(rows[y][:, None] - rows, DUAL[norm], dim=2)
    exact = (logits.gather(1, y[:, None]) - logits) / apart
    exact = exact.scatter(1, y[:, None], math.inf).amin(1)
    found = bracket(model, x, y, norm=norm)
    inside = (found.adv > 1e-3) & (found.adv < 1 - 1e-3)
    free = inside.flatten(1).all(1)  # where the box took no part, the nearest point is the nearest of all
    assert int(free.sum()) >= 4
    assert bool(found.success.all())
    assert bool((found.lower <= exact * (1 + 1e-5)).all())
    assert bool((found.upper >= exact * (1 - 1e-5)).all())
    torch.testing.assert_close(found.lower, exact, rtol=1e-3, atol=1e-5)
    above = (found.upper / exact)[free]
    # Of several classes that whose boundary is nearest need not be the likeliest, at which the attack aims first.
    assert float(above.max() if classes == 2 else above.median()) < 1.005
    assert not bool(found.contradicted.any())


SMALL: dict[str, Any] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
    "binary": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
    "deep": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(),
                                  nn.Linear(8, 4)),
    "smooth": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3), nn.Tanh()),
    "conv": lambda: nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                  nn.Linear(4, 3)),
    "pooled": lambda: nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [*SMALL])
def test_the_sides_never_cross(name: str, norm: float) -> None:
    for seed, (scale, dtype) in enumerate([(1.0, torch.float32), (8.0, torch.float64), (1e-3, torch.float32)]):
        model: Any = seeded(SMALL[name](), seed, scale).to(dtype)
        x = torch.rand(12, 1, 4, 4, generator=draws(seed), dtype=dtype)
        y = model(x).argmax(1)
        y[::4] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error", BracketWarning)
            found = bracket(model, x, y, norm=norm, steps=FEW[norm], preprocessing={"mean": 0.4, "std": 0.3})
        assert found.reason == ""
        both = found.correct & found.success
        assert bool((found.lower[both] < found.upper[both]).all())
        assert bool((found.lower[found.correct] > 0).any())
        order = {"L2": 2.0, "L1": 1.0, "Linf": math.inf}[found.norm]
        away = torch.linalg.vector_norm((found.adv.double() - x.double()).flatten(1), order, dim=1)
        assert torch.equal(found.upper[both], away[both])
        assert float(found.adv.min()) >= 0
        assert float(found.adv.max()) <= 1


def test_what_the_model_gets_wrong_has_no_room() -> None:
    model = linear(3)
    x, y = near_the_middle(model)
    wrong = (y + 1) % 3
    found = bracket(model, x, torch.where(torch.arange(12) < 6, wrong, y))
    assert found.correct.tolist() == [False] * 6 + [True] * 6
    assert found.lower[:6].tolist() == found.upper[:6].tolist() == [0.0] * 6
    assert torch.equal(found.adv[:6], x[:6])
    assert bool((found.lower[6:] > 0).all())
    nothing = bracket(model, x, wrong)
    assert not bool(nothing.correct.any())
    assert nothing.curve([0.0, 1.0]).robust.tolist() == [0.0, 0.0]
    assert "0 % classified correctly" in str(nothing)


def test_where_nothing_changes_the_answer_nothing_is_left_open() -> None:
    layer = nn.Linear(16, 2)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0, 0.0]))
    with pytest.warns(UserWarning, match="gradients are likely masked"):
        found = bracket(model, torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64))
    assert found.lower.tolist() == found.upper.tolist() == [math.inf] * 3
    assert found.gap.tolist() == [0.0] * 3
    assert not bool(found.success.any())
    assert "for 3 of these no perturbation was found" in str(found)
    assert found.to_dict()["quantiles"]["upper"] == [None] * 5
    assert found.curve().robust[-1] == 1


class Squares(nn.Module):
    """Of which no Lipschitz bound is known."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * x)  # type: ignore[no-any-return]


def test_without_a_bound_there_is_an_upper_side() -> None:
    model = Squares().eval()
    x = torch.rand(6, 1, 4, 4, generator=draws(1))
    found = bracket(model, x, model(x).argmax(1), norm=1, steps=60)
    assert "no Lipschitz bound" in found.reason
    assert found.lower.tolist() == [0.0] * 6
    assert bool(found.success.any())
    assert found.reason in str(found)
    assert found.to_dict()["reason"] == found.reason
    x16 = x.to(torch.float64)
    assert bracket(model.double(), x16, model(x16).argmax(1), steps=40).reason


def test_neither_the_batch_nor_what_is_beside_an_example_matters() -> None:
    model = seeded(SMALL["deep"](), 3)
    x = torch.rand(10, 1, 4, 4, generator=draws(4))
    y = model(x).argmax(1)
    whole = bracket(model, x, y, steps=60)
    parts = bracket(model, x, y, steps=60, batch_size=3)
    some = bracket(model, x[4:7], y[4:7], steps=60)
    for side in ("lower", "upper"):
        one = getattr(whole, side)
        torch.testing.assert_close(getattr(parts, side), one, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(getattr(some, side), one[4:7], rtol=1e-5, atol=1e-7)


def test_the_model_is_left_as_it_was() -> None:
    model = seeded(SMALL["pooled"](), 0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(4, 1, 4, 4, generator=draws(0))
    state = torch.get_rng_state()
    bracket(model, x, torch.zeros(4, dtype=torch.int64), steps=20)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_bounds_around_each_example_are_larger() -> None:
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)), 1)
    x = torch.rand(4, 1, 4, 4, generator=draws(2))
    y = model(x).argmax(1)
    report = lipschitz.layer_bounds(model, (1, 4, 4))
    for norm in NORMS:
        plain = bracket(model, x, y, norm=norm, steps=20, report=report)
        local = bracket(model, x, y, norm=norm, steps=20, report=report, local=True)
        assert bool((local.lower >= plain.lower).all())
        assert bool((local.lower < local.upper).all())
        assert "in balls" in local.method
    assert torch.equal(plain.lower, bracket(model, x, y, norm=norm, steps=20).lower)
    conv = seeded(SMALL["conv"](), 0)
    found = bracket(conv, x, conv(x).argmax(1), steps=20, local=True)
    assert "in balls" not in found.method
    assert bool((found.lower > 0).all())


def made() -> Bracket:
    lower = torch.tensor([0.0, 0.5, 1.0, 0.25], dtype=torch.float64)
    upper = torch.tensor([0.0, 1.0, 2.0, math.inf], dtype=torch.float64)
    return Bracket("L2", lower, upper, upper > 0, torch.zeros(4, 1), "made")


def test_curves() -> None:
    found = made()
    curve = found.curve([0.0, 0.25, 0.5, 1.0, 2.0])
    assert curve.certified.tolist() == [0.75, 0.5, 0.25, 0.0, 0.0]
    assert curve.robust.tolist() == [0.75, 0.75, 0.75, 0.5, 0.25]
    assert found.curve(0.3).certified.shape == ()
    whole = found.curve()
    assert bool((whole.certified <= whole.robust).all())
    assert bool((whole.certified.diff() <= 0).all())
    assert bool((whole.robust.diff() <= 0).all())
    assert float(whole.eps[0]) == 0
    assert float(whole.eps[-1]) > 2
    for eps in (-0.1, [0.1, math.nan]):
        with pytest.raises(ValueError, match="eps must be numbers of at least 0"):
            found.curve(eps)


def test_what_was_found_otherwise_comes_in() -> None:
    found = made().nearer(torch.tensor([0.1, 0.75, 3.0, math.nan], dtype=torch.float64))
    assert found.upper.tolist() == [0.0, 0.75, 2.0, math.inf]
    with pytest.warns(
        BracketWarning, match=r"certified radius of 1 example \(example 2: certified 1, found 0.5, in L2"
    ):
        wrong = made().nearer(torch.tensor([math.inf, math.inf, 0.5, math.inf], dtype=torch.float64))
    assert wrong.contradicted.tolist() == [False, False, True, False]
    assert "contradict each other" in str(wrong)
    assert wrong.to_dict()["contradicted"] == 1


def test_a_proof_that_is_wrong_is_said_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear(3)
    x, y = near_the_middle(model)

    def too_large(*given: Any, **options: Any) -> Tensor:
        return 2 * lipschitz.certified_radius(*given, **options)

    monkeypatch.setitem(function.__globals__, "certified_radius", too_large)
    with pytest.warns(BracketWarning, match="one of the two is wrong"):
        found = bracket(model, x, y)
    assert bool(found.contradicted.any())


def test_as_text_and_as_files(tmp_path: Path) -> None:
    found = made()
    lines = str(found).splitlines()
    assert lines[0].split() == ["L2", "5", "%", "25", "%", "median", "75", "%", "95", "%"]
    assert lines[2].split() == ["certified", "radius", "0.25", "0.25", "0.5", "0.5", "0.5"]
    assert lines[3].split()[-2:] == ["2", "2"]
    assert lines[6] == "L2: median between 0.5 (proven) and 2 (found); 4 images, 75.0 % classified correctly"
    saved = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert saved["not_found"] == 1
    assert saved["curve"]["robust"][0] == 0.75
    with found.to_csv(tmp_path / "bracket.csv").open(encoding="ascii") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"example": "1", "correct": "True", "lower": "0.5", "upper": "1.0"}
    assert rows[3]["upper"] == "inf"
    with pytest.raises(FileExistsError):
        found.to_csv(tmp_path / "bracket.csv")


def test_bad_arguments() -> None:
    model, x, y = linear(3), torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    report = lipschitz.layer_bounds(model, (1, 4, 4))
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"norm": 3}, ValueError, "norm is 3"),
        ({"norm": "L5"}, ValueError, "norm is 'L5'"),
        ({"steps": 0}, ValueError, "steps must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1; got 0"),
        ({"batch_size": True}, ValueError, "batch_size must be"),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
        ({"bounds": (0.0, 0.2)}, ValueError, "x ranges over"),
        ({"preprocessing": 3}, ValueError, "preprocessing must be"),
        ({"report": 3}, TypeError, "report must be what layer_bounds returns"),
        ({"report": lipschitz.layer_bounds(model, (2, 2, 4)), "x": x}, ValueError, "report is for inputs of shape"),
        ({"model": 3}, TypeError, "model must be a torch.nn.Module"),
        ({"x": x.half()}, TypeError, "x must be a float32 or float64 tensor"),
        ({"x": x[:0], "y": y[:0]}, ValueError, "x holds no examples"),
        ({"y": y[:2]}, TypeError, "y must be class indices"),
        ({"y": y + 3}, ValueError, "y holds the class 3"),
        ({"y": y - 1}, ValueError, "y holds the class -1"),
        ({"x": x.double()}, TypeError, "must have the same dtype"),
    ]
    for options, kind, text in wrong:
        with pytest.raises(kind, match=text):
            bracket(**{"model": model, "x": x, "y": y, "report": report, **options})
