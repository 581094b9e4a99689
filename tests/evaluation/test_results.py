"""What tables, verdicts and worst cases say of constructed results, word by word; and what is a share of something."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import evaluate
from sparring.evaluation import AttackRow, Evaluation
from sparring.evaluation.masking import CONCLUSION, Outputs, evidence
from sparring.evaluation.plan import make_plans
from sparring.evaluation.result import Examples

COUNT = 8
WRONG = 7  # the last example is classified wrongly as it is
NOTHING = Examples(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))


def mask(*where: int, count: int = COUNT) -> Tensor:
    found = torch.zeros(count, dtype=torch.bool)
    found[list(where)] = True
    return found


def row(name: str, *fooled: int, count: int = COUNT, **changes: Any) -> AttackRow:
    """A row of an attack that fooled these examples, each at a distance of its number in Linf, ten times that in L1."""
    correct = ~mask(count - 1, count=count)
    numbers = torch.arange(count, dtype=torch.float64).where(correct, math.nan)
    row = {
        "name": name, "kind": "iterative", "norm": "Linf", "eps": 0.3, "attacked": correct,
        "robust": correct & ~mask(*fooled, count=count), "fooled": mask(*fooled, count=count),
        "infeasible": mask(count=count), "overrun": 0.0, "unconfirmed": 0,
        "distances": {"Linf": numbers, "L2": numbers + 100, "L1": 10 * numbers},
        "steps": numbers + 1, "bad_grad": mask(count=count), "seconds": 1.26, "examples": NOTHING,
    }  # fmt: skip
    return AttackRow(**(row | changes))


def evaluation(*rows: AttackRow, **changes: Any) -> Evaluation:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 3, 3])
    predictions = labels.clone()
    predictions[WRONG] = 0
    whole = {
        "labels": labels, "predictions": predictions, "rows": list(rows), "warnings": [], "seed": 5,
        "bounds": (0.0, 1.0), "worst_case_only": False,
    }  # fmt: skip
    return Evaluation(**(whole | changes))


def test_table_and_verdict_of_one_threat_model() -> None:
    found = evaluation(
        row("weak", 1, infeasible=mask(0, 2), steps=None),
        row("strong", 1, 2, 4, seconds=1234.56),
        row("other", 0, 4),
        row("none of it", attacked=mask(0, 1), steps=torch.full((COUNT,), 2.0).double()),
        warnings=["so", "and so"],
    )
    assert str(found).splitlines() == [
        "attack               norm  eps  robust accuracy  distance  steps  seconds",
        "-------------------  ----  ---  ---------------  --------  -----  -------",
        "none                                     87.5 %",
        "weak (2 infeasible)  Linf  0.3           75.0 %         1             1.3",
        "strong               Linf  0.3           50.0 %         2      4   1234.6",
        "other                Linf  0.3           62.5 %         2      4      1.3",
        "none of it           Linf  0.3           87.5 %                2      1.3",
        "worst case           Linf  0.3           37.5 %",
        "",
        "robust accuracy 37.5 % (Linf, eps 0.3, 8 images, 4 attacks)",
        "warning: so",
        "warning: and so",
    ]
    assert found.robust.tolist() == mask(3, 5, 6).tolist()
    assert found.clean_accuracy == 7 / 8
    assert [r.accuracy for r in found.rows] == [6 / 8, 4 / 8, 5 / 8, 7 / 8]
    assert [r.distance() for r in found.rows[:3]] == [(1, 1), (7 / 3, 2), (2, 2)]
    assert found.rows[1].distance("L1") == (70 / 3, 20)
    assert all(map(math.isnan, found.rows[3].distance()))


def test_several_threat_models_come_in_the_order_of_their_first_attack() -> None:
    found = evaluation(
        row("a", 0, norm="L2", eps=1.5),
        row("b", 1, 2),
        row("c", 0, 3, norm="L2", eps=1.5, error="no such thing", robust=~mask(WRONG)),
        row("d", norm="L1", eps=7.0, error="no gradient"),
        row("e", norm="Linf", eps=0.6),
    )
    assert [(case.threat, case.attacks, case.accuracy) for case in found.worst_cases] == [
        ("L2, eps 1.5", 1, 5 / 8), ("Linf, eps 0.3", 1, 5 / 8), ("Linf, eps 0.6", 1, 7 / 8),
    ]  # fmt: skip
    assert found.verdict == (
        "robust accuracy 62.5 % (L2, eps 1.5), 62.5 % (Linf, eps 0.3), 87.5 % (Linf, eps 0.6); "
        "8 images, 3 attacks (2 could not run)"
    )
    assert found.robust.tolist() == mask(4, 5, 6).tolist()
    assert found.table().splitlines()[2:] == [
        "none                            87.5 %",
        "a           L2    1.5           75.0 %       100      4      1.3",
        "b           Linf  0.3           62.5 %       1.5      4      1.3",
        "c           L2    1.5    could not run       102      4      1.3",
        "d           L1      7    could not run                4      1.3",
        "e           Linf  0.6           87.5 %                4      1.3",
        "worst case  L2    1.5           62.5 %",
        "worst case  Linf  0.3           62.5 %",
        "worst case  Linf  0.6           87.5 %",
    ]


def test_numbers_of_one_are_singular_and_ends_are_exact() -> None:
    one = row("all", 0, count=1, attacked=mask(0, count=1), robust=mask(count=1))
    found = evaluation(one, labels=torch.tensor([2]), predictions=torch.tensor([2]))
    assert found.verdict == "robust accuracy 0 % (Linf, eps 0.3, 1 image, 1 attack)"
    assert found.clean_accuracy == 1
    assert found.cells()[1][0][3] == "100 %"
    shares = found.per_class(found.correct)
    assert all(map(math.isnan, shares[:2]))
    assert shares[2:] == [1.0]


def test_classes_and_json() -> None:
    """Every number of the JSON, of constructed results."""
    found = evaluation(
        row("a", 1, 2, 4, infeasible=mask(0), overrun=0.25, unconfirmed=2, bad_grad=mask(3, 5, WRONG)),
        row("b", eps=torch.linspace(0, 0.7, COUNT), bad_grad=None, steps=None, error="why"),
        warnings=["w"],
    )
    assert found.per_class(found.correct)[0] == 1
    assert found.per_class(found.rows[0].robust)[:2] == [1 / 3, 2 / 3]
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read == {
        "verdict": "robust accuracy 50.0 % (Linf, eps 0.3, 8 images, 1 attack (1 could not run))",
        "images": 8, "seed": 5, "bounds": [0.0, 1.0], "worst_case_only": False,
        "clean": {"accuracy": 7 / 8, "per_class": [1.0, 1.0, None, 0.5]},
        "worst_case": [{
            "norm": "Linf", "eps": 0.3, "attacks": 1, "accuracy": 0.5, "per_class": [1 / 3, 2 / 3, None, 0.5],
            "robust": [0, 3, 5, 6],
        }],
        "attacks": [
            {
                "name": "a", "kind": "iterative", "norm": "Linf", "eps": 0.3, "accuracy": 0.5,
                "per_class": [1 / 3, 2 / 3, None, 0.5], "attacked": 7, "fooled": 3, "infeasible": 1, "overrun": 0.25,
                "unconfirmed": 2, "error": None, "added": False, "bad_grad": 2, "steps": 4.0, "seconds": 1.26,
                "fooled_examples": [1, 2, 4], "distances": {
                    "Linf": {"mean": 7 / 3, "median": 2.0}, "L2": {"mean": 100 + 7 / 3, "median": 102.0},
                    "L1": {"mean": 70 / 3, "median": 20.0},
                },
            },
            {
                "name": "b", "kind": "iterative", "norm": "Linf",
                "eps": torch.linspace(0, 0.7, COUNT).double().tolist(), "accuracy": 7 / 8,
                "per_class": [1.0, 1.0, None, 0.5], "attacked": 7, "fooled": 0, "infeasible": 0, "overrun": 0.0,
                "unconfirmed": 0, "error": "why", "added": False, "bad_grad": None, "steps": None, "seconds": 1.26,
                "fooled_examples": [],
                "distances": {norm: {"mean": None, "median": None} for norm in ("Linf", "L2", "L1")},
            },
        ],
        "warnings": ["w"],
    }  # fmt: skip


def test_threat_models_that_would_look_alike_do_not() -> None:
    """Told apart by their numbers, and shown with as many digits as that takes, or numbered where none do."""
    ulp = math.nextafter(0.1, 1)
    assert [plan.threat for plan in make_plans(["fgsm"], None, [0.1, ulp], 10, 4)] == [
        "Linf, eps 0.10000000000000001", "Linf, eps 0.10000000000000002",
    ]  # fmt: skip
    close = [plan.threat for plan in make_plans(["fgsm"], None, [0.3, 0.3 + 1e-7, 0.1], 10, 4)]
    assert close == ["Linf, eps 0.3", "Linf, eps 0.3000001", "Linf, eps 0.1"]
    assert [plan.threat for plan in make_plans(["fgsm"], None, {"Linf": [0.3, 0.25], 2: 0.3}, 10, 4)] == [
        "Linf, eps 0.3", "Linf, eps 0.25", "L2, eps 0.3",
    ]  # fmt: skip
    each = torch.tensor([0.1, 0.2, 0.2, 0.3], dtype=torch.float64)
    entries = [
        ("fgsm", {"eps": each}),
        ("fgsm", {"eps": each.flip(0)}),
        ("fgsm", {"eps": 0.30001}),
        ("pgd", {"eps": each}),
    ]
    plans = make_plans(entries, None, None, 10, 4)
    assert [plan.name for plan in plans] == ["fgsm", "pgd", "fgsm", "fgsm"]
    assert [plan.threat for plan in plans] == [
        "Linf, eps 0.1-0.3", "Linf, eps 0.1-0.3", "Linf, eps 0.1-0.3 (2)", "Linf, eps 0.3",
    ]  # fmt: skip
    assert len({plan.key for plan in plans}) == 3


def test_rows_and_worst_cases_show_what_tells_them_apart() -> None:
    found = evaluation(row("a", 0, eps=0.3, shown="0.3"), row("a", eps=0.3 + 1e-9, shown="0.300000001"))
    assert [case.threat for case in found.worst_cases] == ["Linf, eps 0.3", "Linf, eps 0.300000001"]
    assert [line[2] for line in found.cells()[1]] == ["", "0.3", "0.300000001", "0.3", "0.300000001"]
    assert [case.accuracy for case in found.worst_cases] == [6 / 8, 7 / 8]


# -- signs of masked gradients: where each begins


def signs(*rows: AttackRow, logits: Tensor | None = None, again: Tensor | None = None) -> list[str]:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64) if logits is None else logits
    return evidence(rows, Outputs(logits, logits if again is None else again))


def of(kind: str, fooled: int, **changes: Any) -> AttackRow:
    """Of 101 examples, 100 attacked, the first so many fooled."""
    return row(changes.pop("name", kind), *range(fooled), count=101, kind=kind, **changes)


@pytest.mark.parametrize(("bad", "sign"), [(10, False), (11, True)])
def test_more_than_a_tenth_of_bad_gradients_is_a_sign(bad: int, sign: bool) -> None:
    given = of("iterative", 20, bad_grad=mask(*range(20 + bad), count=101))  # those of fooled ones do not count
    found = signs(given)
    assert found == ([
        CONCLUSION + "iterative (Linf, eps 0.3) met a zero, NaN or infinite gradient on 11 of the 80 examples that it "
        "did not fool"
    ] if sign else [])  # fmt: skip


@pytest.mark.parametrize(("noise", "strong", "sign"), [(2, 2, True), (2, 3, False), (1, 0, False), (9, 5, True)])
@pytest.mark.parametrize("kind", ["iterative", "one-step"])
def test_noise_no_weaker_than_gradients_is_a_sign(noise: int, strong: int, sign: bool, kind: str) -> None:
    found = signs(of("noise", noise), of(kind, strong))
    wanted = f"random noise (noise, Linf, eps 0.3) fooled {noise} examples, {kind} no more: {strong}"
    assert found == ([CONCLUSION + wanted] if sign else [])
    assert signs(of("noise", noise), of(kind, strong, eps=0.2)) == []
    assert signs(of("noise", noise), of(kind, strong, norm="L2")) == []
    assert signs(of("noise", noise), of("other", strong)) == []


@pytest.mark.parametrize(("simple", "strong", "sign"), [(5, 0, True), (4, 0, False), (20, 15, True), (20, 16, False)])
def test_a_step_that_beats_many_is_a_sign_beyond_chance(simple: int, strong: int, sign: bool) -> None:
    """By more than two standard deviations of the number of examples that only one of them fooled."""
    found = signs(of("one-step", simple), of("iterative", strong))
    wanted = (
        f"the single step of one-step (Linf, eps 0.3) fooled {simple} examples, iterative with its many steps {strong}"
    )
    assert found == ([CONCLUSION + wanted] if sign else [])
    assert signs(of("one-step", simple), of("one-step", strong, name="other")) == []
    only_others = row("many", *range(50, 50 + simple), count=101)
    assert signs(of("one-step", simple), only_others) == []


def test_attacks_are_compared_where_both_were_run() -> None:
    half = mask(*range(50), count=101)
    rest = row("many", *range(40, 50), count=101, attacked=half)
    assert signs(row("fast", *range(40, 90), count=101, kind="one-step"), rest) == []
    assert len(signs(row("fast", *range(30), count=101, kind="one-step"), rest)) == 1


@pytest.mark.parametrize(("small", "large", "sign"), [(5, 0, True), (4, 0, False), (0, 5, False)])
def test_a_larger_eps_that_fools_fewer_is_a_sign(small: int, large: int, sign: bool) -> None:
    rows = of("iterative", small, name="a", eps=0.1), of("iterative", large, name="a (2)", eps=0.2)
    for order in (rows, rows[::-1]):
        found = signs(*order)
        wanted = "a with Linf, eps 0.2 leaves 99.0 % standing, with the smaller eps 0.1 only 94.1 %"
        assert found == ([CONCLUSION + wanted.replace("a with", "a with")] if sign else [])
    assert signs(rows[0], of("iterative", large, name="b", eps=0.2)) == []
    assert signs(rows[0], of("iterative", large, name="a", eps=0.2, norm="L2")) == []
    many = torch.full((101,), 0.2)  # an eps for each example is neither larger nor smaller
    assert signs(rows[0], of("iterative", large, name="a", eps=many)) == []
    assert signs(of("iterative", small, name="a", eps=many), rows[1]) == []


def test_several_signs_are_one_warning() -> None:
    found = signs(of("noise", 9), of("one-step", 9), of("iterative", 0))
    assert len(found) == 1
    assert found[0].startswith(CONCLUSION)
    assert found[0].count("; ") == 2


# -- what is relative to something


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_predictions_may_differ_by_rounding_of_the_logits_size(scale: float) -> None:
    logits = scale * torch.tensor([[1.0, -2.0], [0.5, 0.25]], dtype=torch.float64)
    assert signs(logits=logits, again=logits + scale * 0.0019) == []
    assert len(signs(logits=logits, again=logits + scale * 0.0021)) == 1
    (found,) = signs(logits=logits, again=logits - scale * 0.0021)
    assert found.startswith("two predictions of the same images differ (logits by up to 0.0021"[:50])
    assert len(signs(logits=logits, again=logits * math.nan)) == 1


def test_probabilities_are_told_from_logits() -> None:
    shares = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    (found,) = signs(logits=shares)
    assert found.startswith("the model returns probabilities, not logits")
    assert len(signs(logits=shares + 4e-5)) == 1
    (scaled,) = signs(logits=100 * shares)
    assert scaled.startswith("the model returns probabilities times 100, not logits")
    assert signs(logits=torch.cat([shares, shares + 1e-4])) == []
    assert signs(logits=100 * shares[:1]) == [], "a single row always has one sum"
    assert signs(logits=100 * shares - 1) == []
    assert signs(logits=torch.tensor([[1.5, -0.5]])) == []
    assert signs(logits=torch.tensor([[0.5, 0.5], [0.5, 0.6]])) == []


class Sum(nn.Module):
    """Two classes, told apart by the sign of the sum of the entries."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        return torch.stack([-total, total], 1)


def judged(eps: float | Tensor, factor: float, norm: str, tolerance: float | None = None) -> AttackRow:
    """The row of an attack that goes `factor` times as far as it may."""
    each = torch.as_tensor(eps, dtype=torch.float64).expand(4)
    x = 0.25 * each[:, None].expand(4, 2)

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float | Tensor) -> Tensor:
        direction = torch.tensor({"Linf": [-1.0, -1.0], "L2": [-1.0, 0.0], "L1": [-0.5, -0.5]}[norm]).double()
        return x + factor * torch.as_tensor(eps, dtype=torch.float64).reshape(-1, 1) * direction

    options = {} if tolerance is None else {"tolerance": tolerance}
    y = torch.ones(4, dtype=torch.int64)
    return evaluate(Sum(), x, y, [attack], norm=norm, eps=eps, bounds=(-100.0, 100.0), **options).rows[0]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("eps", [1e-3, 0.3, 12.0, torch.tensor([1e-3, 0.1, 1.0, 12.0])])
def test_tolerance_is_a_share_of_eps(eps: float | Tensor, norm: str) -> None:
    for tolerance in (None, 1e-3):
        share = 1e-5 if tolerance is None else tolerance
        within, beyond = (judged(eps, 1 + factor * share, norm, tolerance) for factor in (0.9, 1.1))
        assert within.fooled.all()
        assert not within.infeasible.any()
        assert beyond.infeasible.all()
        assert not beyond.fooled.any()
        largest = float(torch.as_tensor(eps, dtype=torch.float64).max())
        assert within.overrun == pytest.approx(0.9 * share * largest, rel=1e-3)
        assert beyond.overrun == pytest.approx(1.1 * share * largest, rel=1e-3)
    assert judged(eps, 0.99, norm, 0.0).overrun == 0
    assert judged(0.0, 1.0, norm).infeasible.sum() == 0


@pytest.mark.parametrize("high", [1e-4, 1.0, 255.0])
def test_slack_at_the_bounds_is_a_share_of_them(high: float) -> None:
    """A millionth of the larger bound, for the rounding of what came before; attacks bring it inside."""
    from sparring import attacks

    x = torch.tensor([[0.25, 0.5]], dtype=torch.float64) * high
    y = torch.ones(1, dtype=torch.int64)

    def out(by: float) -> Tensor:
        return torch.tensor([[-by, 1 + by]], dtype=torch.float64) * high

    for by in (0.0, 0.9e-6, 1e-6) if high == 1 else (0.0, 0.9e-6):
        found = evaluate(Sum(), x, y, [lambda model, x, y, by=by: out(by)], eps=10 * high, bounds=(0.0, high))
        assert not found.rows[0].infeasible.any()
        moved = attacks.fgsm(Sum(), out(by), y, eps=0.0, bounds=(0.0, high))
        assert torch.equal(moved, out(0.0))
        assert len(evaluate(Sum(), out(by), y, ["fgsm"], eps=0.0, bounds=(0.0, high)).rows) == 1
    found = evaluate(Sum(), x, y, [lambda model, x, y: out(1.1e-6)], eps=10 * high, bounds=(0.0, high))
    assert found.rows[0].infeasible.all()
    with pytest.raises(ValueError, match="inputs range over"):
        attacks.fgsm(Sum(), out(1.1e-6), y, eps=0.1, bounds=(0.0, high))
    with pytest.raises(ValueError, match="x ranges over"):
        evaluate(Sum(), out(1.1e-6), y, ["fgsm"], eps=0.1, bounds=(0.0, high))


@pytest.mark.parametrize(("options", "match"), [
    ({"tolerance": -1e-5}, "tolerance must be at least 0 and finite"),
    ({"tolerance": math.nan}, "tolerance must be at least 0 and finite"),
    ({"tolerance": "small"}, "tolerance must be at least 0 and finite"),
    ({"keep": -1}, "keep must be an integer of at least 0"),
    ({"keep": True}, "keep must be an integer of at least 0"),
    ({"batch_size": 2.0}, "batch_size must be an integer of at least 1"),
])  # fmt: skip
def test_mistakes_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        evaluate(Sum(), torch.ones(2, 3), torch.ones(2, dtype=torch.int64), ["fgsm"], eps=0.1, **options)


class OneLogit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True)


def test_a_model_with_one_output_is_refused_with_the_way_out() -> None:
    """Its likeliest class never changes: without a word it would be robust against everything."""
    x, y = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"two classes at least.*; it has 1; .*torch\.zeros_like\(z\), z"):
        evaluate(OneLogit(), x, y, [lambda model, x, y: x], eps=0.1)


def test_json_is_written_once(tmp_path: Path) -> None:
    found = evaluation(row("a", 1))
    path = found.to_json(tmp_path / "found.json")
    assert json.loads(path.read_text(encoding="utf-8")) == found.to_dict()
    assert path.read_text(encoding="utf-8").endswith("}\n")
    with pytest.raises(FileExistsError):
        found.to_json(path)
