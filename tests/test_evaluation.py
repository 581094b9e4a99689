from __future__ import annotations

import functools
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import attacks, evaluate, lower
from sparring.attacks import GradientMaskingWarning
from sparring.evaluation import NAMES, Evaluation

COUNT, ENTRIES = 60, 12


class Linear(nn.Module):
    """Two classes, logits (-m, m) with m = w x + b: what moves an example over the border is known in closed form."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1.0, 2.0, ENTRIES, dtype=torch.float64))
        self.scale = scale

    def margin(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.w

    def forward(self, x: Tensor) -> Tensor:
        margin = self.margin(x)
        return self.scale * torch.stack([-margin, margin], dim=1)


@pytest.fixture
def model() -> Linear:
    return Linear()


@pytest.fixture
def x() -> Tensor:
    """Near the middle of the box, so that its sides play no part for eps up to 0.3."""
    generator = torch.Generator().manual_seed(0)
    return 0.5 + 0.19 * (2 * torch.rand(COUNT, 1, 3, 4, generator=generator, dtype=torch.float64) - 1)


@pytest.fixture
def y(model: Linear, x: Tensor) -> Tensor:
    """The model's own classes, but for five examples."""
    labels = (model.margin(x) > 0).long()
    labels[:5] = 1 - labels[:5]
    return labels


def standing(model: Linear, x: Tensor, y: Tensor, eps: float | Tensor, dual: float) -> Tensor:
    """Which examples no perturbation within eps can move over the border; `dual` is the order of the dual norm."""
    reach = eps * torch.linalg.vector_norm(model.w.detach(), dual)
    return ((model.margin(x) > 0).long() == y) & (model.margin(x).detach().abs() > reach)


@dataclass(frozen=True)
class Found:
    adv: Tensor
    success: Tensor | None = None
    bad_grad: Tensor | None = None
    steps_used: Tensor | None = None


def towards(model: Linear, x: Tensor, y: Tensor, eps: float | Tensor) -> Tensor:
    """The strongest Linf perturbation; an attack of the library's, as some tests pretend, is given a lowered model."""
    model = getattr(model, "model", model)
    direction = model.w.detach().sign().reshape(x.shape[1:]) * (1 - 2 * y).reshape(-1, 1, 1, 1)
    return x + torch.as_tensor(eps, dtype=x.dtype).reshape(-1, 1, 1, 1) * direction


def nothing(model: Linear, x: Tensor, y: Tensor) -> Tensor:
    return x


def quiet(*arguments: Any, **options: Any) -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientMaskingWarning)
        return evaluate(*arguments, **options)


@pytest.mark.parametrize(("name", "norm", "dual", "eps"), [
    ("fgsm", "Linf", 1, 0.03), ("pgd", "Linf", 1, 0.03), ("apgd", "Linf", 1, 0.03), ("fgm", "L2", 2, 0.1),
    ("apgd-margin", "L2", 2, 0.1),
])  # fmt: skip
def test_robust_accuracy_of_a_linear_model_is_exact(
    model: Linear, x: Tensor, y: Tensor, name: str, norm: str, dual: float, eps: float
) -> None:
    found = quiet(model, x, y, [name], norm=norm, eps=eps)
    wanted = standing(model, x, y, eps, dual)
    assert 0.1 < wanted.double().mean() < 0.8
    assert found.robust.tolist() == wanted.tolist()
    assert found.rows[0].accuracy == found.worst_cases[0].accuracy == int(wanted.sum()) / COUNT
    assert found.clean_accuracy == (COUNT - 5) / COUNT
    assert not found.rows[0].infeasible.any()


def test_default_battery_in_three_norms(model: Linear, x: Tensor, y: Tensor) -> None:
    found = quiet(model, x, y, eps={"Linf": 0.02, 2: 0.08, "l1": 0.3})
    assert [case.threat for case in found.worst_cases] == ["Linf, eps 0.02", "L2, eps 0.08", "L1, eps 0.3"]
    for case, (eps, dual) in zip(found.worst_cases, [(0.02, 1.0), (0.08, 2.0), (0.3, math.inf)], strict=True):
        assert case.robust.tolist() == standing(model, x, y, eps, dual).tolist()
    assert [row.name for row in found.rows if row.norm == "Linf"] == [
        "noise", "fgsm", "apgd-ce", "minimal", "apgd-margin", "apgd-margin (2)", "square",
    ]  # fmt: skip
    assert (found.rows[3].attacked == found.rows[2].robust).all()  # what is left
    everything = quiet(model, x, y, eps=0.02, full=True)
    assert all((row.attacked == everything.correct).all() for row in everything.rows)
    assert everything.robust.tolist() == standing(model, x, y, 0.02, 1.0).tolist()
    assert not found.warnings
    assert found.verdict.startswith("robust accuracy ")
    assert found.verdict.endswith("; 60 images, 21 attacks")


def test_worst_case_counts_what_any_attack_fooled(model: Linear, x: Tensor, y: Tensor) -> None:
    def first_half(model: Linear, x: Tensor, y: Tensor, eps: float) -> Tensor:
        adv = towards(model, x, y, eps)
        return torch.where((x.flatten(1)[:, 0] < 0.5).reshape(-1, 1, 1, 1), adv, x)

    def second_half(model: Linear, x: Tensor, y: Tensor, eps: float) -> Tensor:
        adv = towards(model, x, y, eps)
        return torch.where((x.flatten(1)[:, 0] < 0.5).reshape(-1, 1, 1, 1), x, adv)

    found = evaluate(model, x, y, [first_half, second_half], eps=0.03)
    assert found.robust.tolist() == standing(model, x, y, 0.03, 1).tolist()
    assert found.rows[0].accuracy > found.worst_cases[0].accuracy < found.rows[1].accuracy
    assert (found.rows[0].attacked == found.correct).all()
    only = evaluate(model, x, y, [first_half, second_half], eps=0.03, worst_case=True)
    assert (only.rows[1].attacked == only.rows[0].robust).all()
    assert only.rows[1].accuracy == only.worst_cases[0].accuracy == found.worst_cases[0].accuracy


def test_claimed_success_is_not_believed(model: Linear, x: Tensor, y: Tensor) -> None:
    def boasting(model: Linear, x: Tensor, y: Tensor, eps: float) -> Found:
        return Found(x, success=torch.ones_like(y, dtype=torch.bool))

    row = evaluate(model, x, y, [boasting], eps=0.03).rows[0]
    assert row.accuracy == (COUNT - 5) / COUNT
    assert row.unconfirmed == COUNT - 5
    assert not row.fooled.any()


def test_success_that_is_not_claimed_counts(model: Linear, x: Tensor, y: Tensor) -> None:
    def modest(model: Linear, x: Tensor, y: Tensor, eps: float) -> Found:
        return Found(towards(model, x, y, eps), success=torch.zeros_like(y, dtype=torch.bool))

    found = evaluate(model, x, y, [modest], eps=0.03)
    assert found.robust.tolist() == standing(model, x, y, 0.03, 1).tolist()


@pytest.mark.parametrize("spoil", [
    lambda x, adv: x + 1.001 * (adv - x), lambda x, adv: adv + 1, lambda x, adv: adv * math.nan,
])  # fmt: skip
def test_points_that_are_not_allowed_never_count(model: Linear, x: Tensor, y: Tensor, spoil: Any) -> None:
    def cheat(model: Linear, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return spoil(x, towards(model, x, y, eps))

    found = evaluate(model, x, y, [cheat], eps=0.03)
    row = found.rows[0]
    assert row.infeasible.tolist() == found.correct.tolist()
    assert not row.fooled.any()
    assert row.accuracy == found.clean_accuracy
    assert "(55 infeasible)" in found.table()
    if spoil(x, x).isfinite().all():
        assert row.overrun > 1e-5


def test_rounding_within_the_tolerance_is_no_offence(model: Linear, x: Tensor, y: Tensor) -> None:
    def rounded(model: Linear, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return x + (1 + 5e-6) * (towards(model, x, y, eps) - x)

    row = evaluate(model, x, y, [rounded], eps=0.03).rows[0]
    assert not row.infeasible.any()
    assert row.overrun == pytest.approx(1.5e-7, rel=1e-6)
    assert evaluate(model, x, y, [rounded], eps=0.03, tolerance=1e-7).rows[0].infeasible.sum() == COUNT - 5


def test_rounding_at_the_bounds_is_no_offence(model: Linear) -> None:
    x = torch.linspace(-3e-8, 1 + 3e-8, COUNT * ENTRIES, dtype=torch.float64).reshape(COUNT, 1, 3, 4)
    y = (model.margin(x) > 0).long()
    row = evaluate(model, x, y, ["fgsm"], eps=1e-4).rows[0]
    assert not row.infeasible.any()
    assert row.overrun <= 0


def test_neither_order_nor_batches_change_an_attack(model: Linear, x: Tensor, y: Tensor) -> None:
    pgd = ("pgd", {"steps": 3, "step_size": 0.3})
    alone = evaluate(model, x, y, [pgd], eps=0.03, keep=COUNT)
    last = evaluate(model, x, y, ["noise", "apgd", pgd], eps=0.03, batch_size=7, keep=COUNT)
    other = evaluate(model, x, y, [pgd], eps=0.03, seed=1, keep=COUNT)

    def points(found: Evaluation) -> dict[int, list[float]]:
        kept = found.rows[-1].examples
        return {int(i): image.flatten().tolist() for i, image in zip(kept.index, kept.images, strict=True)}

    assert points(alone) == points(last)
    assert len(points(alone)) == int(alone.rows[0].fooled.sum()) > 10
    assert points(alone) != points(other)


def test_every_way_to_write_an_attack(model: Linear, x: Tensor, y: Tensor) -> None:
    entries = [
        "fgsm",
        ("fgsm", {"eps": 0.02}),
        {"attack": "fgsm", "name": "mine", "eps": 0.02},
        attacks.fgsm,
        functools.partial(attacks.fgsm, eps=0.02),
        (attacks.fgsm, {"name": "pair"}),
        lambda model, x, y, **options: towards(model, x, y, options["eps"]),
        nothing,
        ("fgsm", {"norm": 2, "eps": 0.1}),
    ]
    found = quiet(model, x, y, entries, eps=0.03)
    assert [(row.name, row.norm, row.eps) for row in found.rows] == [
        ("fgsm", "Linf", 0.03), ("fgsm (2)", "Linf", 0.03), ("pair", "Linf", 0.03), ("<lambda>", "Linf", 0.03),
        ("nothing", "Linf", 0.03), ("fgsm", "Linf", 0.02), ("mine", "Linf", 0.02), ("fgsm (2)", "Linf", 0.02),
        ("fgsm", "L2", 0.1),
    ]  # fmt: skip
    by_threat = {case.threat: case.robust.tolist() for case in found.worst_cases}
    for threat, eps, dual in (("Linf, eps 0.03", 0.03, 1), ("Linf, eps 0.02", 0.02, 1), ("L2, eps 0.1", 0.1, 2)):
        assert by_threat[threat] == standing(model, x, y, eps, dual).tolist()
    assert [row.kind for row in found.rows] == ["one-step"] * 3 + ["other"] * 2 + ["one-step"] * 4


def test_eps_and_targets_of_each_example_go_with_it(model: Linear, x: Tensor, y: Tensor) -> None:
    eps = torch.linspace(0.0, 0.06, COUNT, dtype=torch.float64)
    found = quiet(model, x, y, ["fgsm"], eps=eps, batch_size=11)
    assert found.robust.tolist() == standing(model, x, y, eps, 1).tolist()
    assert found.rows[0].threat == "Linf, eps 0-0.06"
    targets = 1 - y
    targeted = quiet(model, x, y, [("fgsm", {"targets": targets})], eps=eps, batch_size=11)
    assert targeted.robust.tolist() == found.robust.tolist()


def test_several_eps_in_a_norm(model: Linear, x: Tensor, y: Tensor) -> None:
    found = quiet(
        model, x, y, ["fgsm", ("fgm", {"eps": 0.3}), ("fgsm", {"norm": 2})], eps={math.inf: [0.01, 0.03], 2: 0.1}
    )
    assert [(row.norm, row.eps) for row in found.rows] == [
        ("Linf", 0.01), ("Linf", 0.03), ("L2", 0.1), ("L2", 0.1), ("L2", 0.3),
    ]  # fmt: skip
    for case in found.worst_cases:
        assert isinstance(case.eps, float)
        assert case.robust.tolist() == standing(model, x, y, case.eps, 1 if case.norm == "Linf" else 2).tolist()
    assert len(quiet(model, x, y, eps=[0.01, 0.03]).worst_cases) == 2


def test_distances_steps_and_classes(model: Linear, x: Tensor, y: Tensor) -> None:
    def stepping(model: Linear, x: Tensor, y: Tensor, eps: float) -> Found:
        return Found(towards(model, x, y, eps), steps_used=torch.full_like(y, 7))

    found = evaluate(model, x, y, [stepping], eps=0.03)
    row = found.rows[0]
    assert row.distance() == pytest.approx((0.03, 0.03))
    assert row.distance("L1") == pytest.approx((0.03 * ENTRIES, 0.03 * ENTRIES))
    assert row.distance("L2") == pytest.approx((0.03 * ENTRIES**0.5, 0.03 * ENTRIES**0.5))
    assert row.mean_steps == 7
    assert row.distances["L2"].isnan().tolist() == (~found.correct).tolist()
    per_class = found.per_class(row.robust)
    counts = torch.bincount(y).tolist()
    assert sum(share * count for share, count in zip(per_class, counts, strict=True)) == int(row.robust.sum())


def test_examples_are_kept_class_by_class(model: Linear, x: Tensor, y: Tensor) -> None:
    kept = quiet(model, x, y, ["fgsm"], eps=0.03, keep=2, batch_size=7).rows[0].examples
    assert torch.bincount(y[kept.index]).tolist() == [2, 2]
    assert (kept.predictions == 1 - y[kept.index]).all()
    torch.testing.assert_close(kept.images, towards(model, x[kept.index], y[kept.index], 0.03))
    assert len(quiet(model, x, y, ["fgsm"], eps=0.03).rows[0].examples.index) == 0


def test_json_is_complete_and_never_overwritten(model: Linear, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    found = evaluate(model, x, y, [nothing, "fgsm"], eps=0.03)
    text = found.to_json(tmp_path / "results.json").read_text()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read == found.to_dict()
    assert read["verdict"] == found.verdict
    assert read["attacks"][0]["distances"]["L1"] == {"mean": None, "median": None}
    assert read["attacks"][0]["steps"] is None
    assert read["attacks"][1]["fooled_examples"] == found.rows[1].fooled.nonzero()[:, 0].tolist()
    assert read["worst_case"][0]["robust"] == found.robust.nonzero()[:, 0].tolist()
    with pytest.raises(FileExistsError):
        found.to_json(tmp_path / "results.json")


def test_text_has_the_table_and_the_verdict(model: Linear, x: Tensor, y: Tensor) -> None:
    found = evaluate(model, x, y, ["fgsm"], eps=0.03)
    lines = str(found).splitlines()
    assert lines[0].split() == ["attack", "norm", "eps", "robust", "accuracy", "distance", "steps", "seconds"]
    assert [line.split()[0] for line in lines[2:5]] == ["none", "fgsm", "worst"]
    share = f"{100 * found.worst_cases[0].accuracy:.1f} %"
    assert lines[-1] == f"robust accuracy {share} (Linf, eps 0.03, 60 images, 1 attack)"


def test_preprocessing_is_part_of_the_model(model: Linear, x: Tensor, y: Tensor) -> None:
    class Wants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, normalised: Tensor) -> Tensor:
            return self.model(normalised * 0.25 + 0.5)

    plain = quiet(model, x, y, ["fgsm", nothing], eps=0.03)
    found = quiet(Wants(), x, y, ["fgsm", nothing], eps=0.03, preprocessing={"mean": 0.5, "std": 0.25})
    assert found.robust.tolist() == plain.robust.tolist()


def test_lowered_model_and_functions_of_others(x: Tensor, y: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(ENTRIES, 2, dtype=torch.float64)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(-1, 1, 2 * ENTRIES).reshape(2, ENTRIES).sin())
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    y = net(x).argmax(1)
    seen = []

    def spy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(isinstance(model, nn.Module))
        return x

    plain = quiet(net, x, y, ["fgsm", "pgd", spy], eps=0.05)
    lowered = quiet(lower(net), x, y, ["fgsm", "pgd", spy], eps=0.05)
    assert lowered.robust.tolist() == plain.robust.tolist()
    assert 0 < plain.robust.sum() < COUNT
    assert seen == [True, True]
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        evaluate(net.forward, x, y, ["fgsm"], eps=0.05)


def test_model_and_random_state_are_left_alone(x: Tensor, y: Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(ENTRIES), nn.Linear(ENTRIES, 3), nn.Dropout(0.5)).double()
    net[2].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    before = x.clone()
    quiet(net, x, y, ["pgd", "noise"], eps=0.03)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(before, x)
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, True, False, True]


def test_progress_and_rows_are_reported(model: Linear, x: Tensor, y: Tensor) -> None:
    steps, rows = [], []
    evaluate(
        model, x, y, [nothing, "fgsm"], eps=0.03, batch_size=20, on_progress=steps.append, on_row=rows.append
    )  # fmt: skip
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert (done[0], done[-1], steps[0].total) == (0, 2, 2)
    assert {step.doing for step in steps} == {"nothing, Linf, eps 0.03", "fgsm, Linf, eps 0.03", "done"}
    assert [row.name for row in rows] == ["nothing", "fgsm"]


def test_nothing_to_attack(model: Linear, x: Tensor, y: Tensor) -> None:
    found = evaluate(model, x, 1 - (model.margin(x) > 0).long(), ["pgd"], eps=0.03)
    assert found.clean_accuracy == found.worst_cases[0].accuracy == 0
    assert "pgd" in str(found)


# -- signs of masked gradients


def fooling(count: int, **fields: Any) -> Any:
    """An attack that fools the first `count` of the examples that it is run on."""

    def attack(model: Linear, x: Tensor, y: Tensor, eps: float, repeats: int = 1) -> Found:
        adv = towards(model, x, y, eps)
        first = (torch.arange(len(y)) < count).reshape(-1, 1, 1, 1)
        return Found(torch.where(first, adv, x), **{name: value(y) for name, value in fields.items()})

    return attack


def warned(found: Evaluation) -> str:
    assert len(found.warnings) <= 1
    return "".join(found.warnings)


EPS = 0.3  # from which `towards` always fools


def test_no_sign_no_warning(model: Linear, x: Tensor, y: Tensor) -> None:
    assert evaluate(model, x, y, ["noise", "fgsm", "pgd"], eps=0.03).warnings == []


def test_gradients_that_vanish_are_named(x: Tensor, y: Tensor) -> None:
    saturated = Linear(scale=1e9)
    with pytest.warns(GradientMaskingWarning, match="likely masked") as caught:
        found = evaluate(saturated, x, y, ["pgd"], eps=0.03)
    assert len(caught) == 1
    left = int((found.rows[0].attacked & ~found.rows[0].fooled).sum())
    assert f"met a zero, NaN or infinite gradient on {left} of the {left}" in warned(found)


def test_noise_as_strong_as_gradients_is_named(
    model: Linear, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "uniform_noise", fooling(10))
    monkeypatch.setattr(attacks, "pgd", fooling(10))
    found = quiet(model, x, y, ["noise", "pgd"], eps=EPS)
    assert "random noise (noise, Linf, eps 0.3) fooled 10 examples, pgd no more: 10" in warned(found)


def test_single_step_stronger_than_many_is_named(
    model: Linear, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "fgsm", fooling(20))
    monkeypatch.setattr(attacks, "pgd", fooling(5))
    found = quiet(model, x, y, ["fgsm", "pgd"], eps=EPS)
    assert "the single step of fgsm (Linf, eps 0.3) fooled 20 examples, pgd with its many steps 5" in warned(found)
    monkeypatch.setattr(attacks, "pgd", fooling(18))  # within chance
    assert quiet(model, x, y, ["fgsm", "pgd"], eps=EPS).warnings == []


def test_larger_eps_that_is_weaker_is_named(model: Linear, x: Tensor, y: Tensor) -> None:
    entries = [{"attack": fooling(count), "eps": eps} for count, eps in ((30, 0.3), (10, 0.31))]
    found = quiet(model, x, y, entries)
    assert "attack with Linf, eps 0.31 leaves 75.0 % standing, with the smaller eps 0.3 only 41.7 %" in warned(found)


def test_random_model_is_named(x: Tensor, y: Tensor) -> None:
    class Noisy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(len(x), 2, dtype=x.dtype)

    assert "two predictions of the same images differ" in warned(quiet(Noisy(), x, y, [nothing], eps=0.03))


def test_probabilities_for_logits_are_named(model: Linear, x: Tensor, y: Tensor) -> None:
    net = nn.Sequential(model, nn.Softmax(dim=1))
    assert "returns probabilities, not logits" in warned(quiet(net, x, y, [nothing], eps=0.03))


# -- mistakes


@pytest.mark.parametrize(("options", "error", "match"), [
    ({"attacks": ["fgms"], "eps": 0.1}, ValueError, "there is no 'fgms'; there are noise"),
    ({"attacks": ["fgsm"]}, ValueError, "attack 'fgsm': eps is missing"),
    ({}, ValueError, "eps is missing"),
    ({"attacks": [], "eps": 0.1}, ValueError, "attacks is empty"),
    ({"attacks": "fgsm", "eps": 0.1}, ValueError, "a list of one"),
    ({"attacks": [3], "eps": 0.1}, ValueError, "not 3"),
    ({"attacks": [("pgd", {"stepz": 3})], "eps": 0.1}, ValueError, "'pgd' has no option 'stepz'; it has eps"),
    ({"attacks": [("pgd", {"steps": -3})], "eps": 0.1}, ValueError, "attack 'pgd': steps"),
    ({"attacks": ["slide"], "eps": 0.1}, ValueError, "'slide' works in L1: give eps"),
    ({"attacks": [("slide", {"norm": 2})], "eps": 0.1}, ValueError, "'slide' works in L1, not in L2"),
    ({"eps": -0.1}, ValueError, "eps is -0.1; accepted: finite"),
    ({"eps": "big"}, ValueError, "eps is 'big'"),
    ({"eps": torch.ones(3)}, ValueError, r"eps has shape \(3,\); accepted: a number, or \(60,\)"),
    ({"eps": 0.1, "norm": 3}, ValueError, "norm is 3"),
    ({"eps": {"L1": 1.0}, "norm": 1}, ValueError, "norm is left out"),
    ({"eps": 0.1, "bounds": (0.4, 0.6)}, ValueError, "x ranges over .* outside bounds"),
    ({"eps": 0.1, "bounds": (1, 0)}, ValueError, "bounds must be"),
    ({"eps": 0.1, "batch_size": 0}, ValueError, "batch_size"),
    ({"eps": 0.1, "preprocessing": {"average": 1}}, ValueError, "preprocessing"),
])  # fmt: skip
def test_mistakes_are_named(
    model: Linear, x: Tensor, y: Tensor, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        evaluate(model, x, y, **options)


@pytest.mark.parametrize(("change", "error", "match"), [
    (lambda x, y: (x.long(), y), TypeError, "x must be a float32 or float64 tensor"),
    (lambda x, y: (x[:0], y[:0]), ValueError, "x holds no examples"),
    (lambda x, y: (x, y[:-1]), TypeError, "y must be class indices"),
    (lambda x, y: (x, y.double()), TypeError, "y must be class indices"),
    (lambda x, y: (x, y + 7), ValueError, "y holds the class 8, but the model has 2 outputs"),
    (lambda x, y: (x, y - 1), ValueError, "y holds the class -1"),
])  # fmt: skip
def test_unusable_examples_are_named(
    model: Linear, x: Tensor, y: Tensor, change: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        evaluate(model, *change(x, y), ["fgsm"], eps=0.1)


@pytest.mark.parametrize("returned", [lambda x: x[:-1], lambda x: x.flatten(1), lambda x: None])
def test_attack_that_returns_something_else_is_named(model: Linear, x: Tensor, y: Tensor, returned: Any) -> None:
    with pytest.raises(ValueError, match="attack 'odd' returned"):
        evaluate(model, x, y, [(lambda model, x, y: returned(x), {"name": "odd"})], eps=0.1)


def test_model_without_finite_logits_is_named(x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match="output for the unchanged example 0 is not finite"):
        evaluate(Linear(scale=math.inf), x, y, ["fgsm"], eps=0.1)


def test_every_name_is_an_attack() -> None:
    for known in NAMES.values():
        assert callable(getattr(attacks, known.function))


@pytest.mark.shared
def test_reference_network(shared: Path) -> None:
    """FGS on the reference perceptron leaves what was measured elsewhere; iterations leave no more."""
    from sparring import data, networks

    net = networks.build("mlp-300-100", (1, 28, 28), 10)
    networks.load_weights(net, shared / "models" / "mnist_mlp.safetensors")
    test = data.load("mnist", shared / "data" / "mnist", "test")[:1000]
    found = evaluate(net, test.images, test.labels, ["fgsm"], eps=0.1)
    assert found.rows[0].accuracy == pytest.approx(0.229, abs=0.002)
    few = evaluate(net, test.images[:100], test.labels[:100], ["fgsm", ("pgd", {"steps": 10})], eps=0.1)
    assert few.rows[1].accuracy <= few.rows[0].accuracy
    assert few.warnings == []
