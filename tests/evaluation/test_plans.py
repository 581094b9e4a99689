"""What is written about attacks and threat models, and the calls that it becomes."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.evaluation import BATTERIES, NAMES
from sparring.evaluation.plan import Plan, eps_name, make_plans, threat_key


def plans(entries: Any, norm: Any = None, eps: Any = 0.3, outputs: int = 10, count: int = 4) -> list[Plan]:
    return make_plans(entries, norm, eps, outputs, count)


@pytest.mark.parametrize("outputs", [2, 3, 4, 9, 10, 11])
@pytest.mark.parametrize("norm", BATTERIES)
def test_the_battery_fits_the_number_of_classes(norm: str, outputs: int) -> None:
    """The targeted loss needs four classes, and has as many to aim at as there are others, nine at most."""
    found = plans(None, norm=norm, eps=3, outputs=outputs)
    assert {plan.norm for plan in found} == {norm}
    entries = [entry if isinstance(entry, tuple) else (entry, {}) for entry in BATTERIES[norm]]
    assert len(found) == len(entries)
    for plan, (name, options) in zip(found, entries, strict=True):
        wanted = {**NAMES[name].options, **options}
        if name != "apgd-t":
            assert plan.call is getattr(attacks, NAMES[name].function)
            assert plan.options == {key: value for key, value in wanted.items() if key != "name"}
        elif outputs < 4:
            assert plan.name.startswith("apgd-margin")
            assert "target_classes" not in plan.options
        else:
            assert plan.options["target_classes"] == min(wanted["target_classes"], outputs - 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_for_a_function_and_its_settings(name: str) -> None:
    known = NAMES[name]
    norm = known.norms[0]
    (plan,) = plans([name], norm=norm)
    assert plan.call is getattr(attacks, known.function)
    assert (plan.name, plan.kind, plan.norm, plan.options) == (name, known.kind, norm, known.options)
    (plan,) = plans([(name, {"eps": 0.1, "batch_size": 3})], norm=norm)
    eps = {"eps": 0.1} if "eps" in plan.accepts else {}  # to what takes none, it is how far counts
    assert plan.options == {**known.options, **eps, "batch_size": 3}
    assert plan.eps == 0.1
    (plan,) = plans([{"attack": name, "name": "mine"}], norm=norm)
    assert (plan.name, plan.options) == ("mine", known.options)


def test_own_options_go_before_those_of_the_name() -> None:
    (plan,) = plans([("apgd-ce", {"loss": "margin", "steps": 3})])
    assert plan.options == {"loss": "margin", "steps": 3}
    (plan,) = plans([(functools.partial(attacks.pgd, steps=7, loss="prob"), {"steps": 3})])
    assert plan.options == {"steps": 3, "loss": "prob"}


@pytest.mark.parametrize(("entry", "kind"), [
    ("pgd", "iterative"), (("pgd", {"steps": 2}), "iterative"), (("pgd", {"steps": 1}), "one-step"),
    (functools.partial(attacks.pgd, steps=1), "one-step"), (("noise", {"repeats": 1}), "noise"), ("fgsm", "one-step"),
    (attacks.slide, "iterative"), (functools.partial(functools.partial(attacks.apgd, rho=0.5), steps=4), "iterative"),
    (lambda model, x, y, steps=1: x, "other"), ((lambda model, x, y, steps=1: x, {"steps": 1}), "other"),
])  # fmt: skip
def test_kinds(entry: Any, kind: str) -> None:
    assert {plan.kind for plan in plans([entry], norm=1 if entry is attacks.slide else None)} == {kind}


def test_functions_are_called_by_their_own_name() -> None:
    class Attack:
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return x

    assert [plan.name for plan in plans([attacks.pgd, functools.partial(attacks.fgsm), Attack(), Attack()])] == [
        "pgd", "fgsm", "Attack", "Attack (2)",
    ]  # fmt: skip


THREATS = {"L2": [1.0, 2.0], "Linf": 0.1}


def knows_nothing(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x


def knows_norms(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    return x


def takes_anything(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return x


@pytest.mark.parametrize(("entry", "wanted"), [
    ("pgd", [("L2", 1.0), ("L2", 2.0), ("Linf", 0.1)]),
    ("fgm", [("L2", 1.0), ("L2", 2.0)]),
    (("pgd", {"norm": 2}), [("L2", 1.0), ("L2", 2.0)]),
    (("pgd", {"norm": "linf", "eps": 0.7}), [("Linf", 0.7)]),
    (("pgd", {"eps": 0.7}), [("Linf", 0.7)]),  # the norm that evaluate has by default
    (("fgm", {"eps": 0.7}), [("L2", 0.7)]),
    (("slide", {"eps": 7.0}), [("L1", 7.0)]),
    (knows_nothing, [("L2", 1.0)]),  # held to the first
    ((knows_nothing, {"norm": "Linf"}), [("Linf", 0.1)]),
    ((knows_nothing, {"norm": 1, "eps": 5}), [("L1", 5.0)]),
    (knows_norms, [("L2", 1.0), ("L2", 2.0), ("Linf", 0.1)]),
    (takes_anything, [("L2", 1.0), ("L2", 2.0), ("Linf", 0.1)]),
])  # fmt: skip
def test_threat_models_of_an_attack(entry: Any, wanted: list[tuple[str, float]]) -> None:
    assert [(plan.norm, plan.eps) for plan in plans([entry], eps=THREATS)] == wanted


@pytest.mark.parametrize(("norm", "wanted"), [(None, "Linf"), (2, "L2"), ("l1", "L1")])
def test_the_norm_of_an_attack_with_an_eps_of_its_own_is_the_callers(norm: Any, wanted: str) -> None:
    assert [(plan.norm, plan.eps) for plan in plans([("pgd", {"eps": 0.7})], norm=norm)] == [(wanted, 0.7)]


def test_attacks_are_ordered_by_threat_model_and_numbered_by_name() -> None:
    found = plans(["pgd", ("pgd", {"steps": 3}), "fgsm", {"attack": "fgsm", "name": "pgd"}], eps=[0.1, 0.2])
    assert [(plan.eps, plan.name) for plan in found] == [
        (0.1, "pgd"), (0.1, "pgd (2)"), (0.1, "fgsm"), (0.1, "pgd (3)"),
        (0.2, "pgd"), (0.2, "pgd (2)"), (0.2, "fgsm"), (0.2, "pgd (3)"),
    ]  # fmt: skip


@pytest.mark.parametrize("eps", [
    -1e-9, math.inf, math.nan, torch.tensor([0.1, -0.1, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.1, math.inf]),
    torch.tensor(math.nan), True, "0.1", torch.ones(2, 2), torch.ones(5), None,
])  # fmt: skip
def test_an_eps_that_is_none_is_named(eps: Any) -> None:
    with pytest.raises(ValueError, match="eps"):
        plans(["pgd"], eps=eps)
    with pytest.raises(ValueError, match="eps"):
        plans([("pgd", {"eps": eps})], eps=None)


@pytest.mark.parametrize("eps", [0, 0.0, 3, torch.tensor(0.25), torch.zeros(4), torch.linspace(0, 1, 4)])
def test_an_eps_is_kept_as_the_number_that_it_is(eps: Any) -> None:
    for (plan,) in (plans(["pgd"], eps=eps), plans([("pgd", {"eps": eps})], eps=None)):
        if isinstance(eps, Tensor) and eps.dim():
            assert plan.eps is eps
        else:
            assert type(plan.eps) is float
            assert plan.eps == float(eps)
        assert plan.key == threat_key("Linf", eps)


@pytest.mark.parametrize(("entries", "options", "match"), [
    ([("fgm", {"norm": 1})], {}, r"attack 'fgm' works in L2, not in L1"),
    (["fgm"], {"norm": 1}, r"attack 'fgm' works in L2: give eps for that norm"),
    ([("pgd", {"norm": 1})], {"norm": 2}, r"attack 'pgd' works in L1: give eps for that norm"),
    ([("pgd", {"norm": 5})], {}, "norm is 5"),
    (["pgd"], {"eps": None}, "attack 'pgd': eps is missing"),
    (None, {"eps": None}, "eps is missing: how far"),
    ([("pgd", {"epsilon": 1})], {}, "attack 'pgd' has no option 'epsilon'; it has eps, norm, steps"),
    ([(knows_nothing, {"steps": 1})], {}, "attack 'knows_nothing' has no option 'steps'"),
    ({"attack": "pgd"}, {}, "a list of one"),
    (attacks.pgd, {}, "a list of one"),
    ([("pgd",)], {}, r"not \('pgd',\)"),
    ([("pgd", 3)], {}, "attacks holds names"),
    ([{"name": "pgd"}], {}, "attacks holds names"),
    ([], {}, "attacks is empty"),
    (None, {"eps": []}, "eps is missing"),
    (["pgd"], {"eps": {"L1": 1.0}, "norm": math.inf}, "norm is left out"),
])  # fmt: skip
def test_mistakes_are_named(entries: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plans(entries, **options)


def test_arguments_are_those_that_the_function_has() -> None:
    context = {"bounds": (0, 1), "early_stop": True, "return_result": True, "generator": "g"}
    rows = torch.tensor([2, 0])
    eps, targets = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([5, 6, 7, 8])

    def arguments(entry: Any, **options: Any) -> dict[str, Any]:
        (plan,) = plans([entry], **options)
        return plan.arguments(rows, 4, context)

    assert arguments(("pgd", {"steps": 3})) == {"eps": 0.3, "norm": "Linf", "steps": 3, **context}
    assert arguments("fgsm") == {"eps": 0.3, "norm": "Linf", "bounds": (0, 1), "return_result": True}
    assert arguments(knows_nothing) == {}
    assert arguments((knows_nothing, {"norm": 2, "eps": 1.0})) == {}
    assert arguments((knows_norms, {"norm": 2, "eps": 1.0})) == {"norm": 2, "eps": 1.0}
    assert arguments(takes_anything) == {"eps": 0.3, "norm": "Linf", "bounds": (0, 1), "generator": "g"}
    cut = arguments(("pgd", {"targets": targets}), eps=eps)
    torch.testing.assert_close(cut["eps"], torch.tensor([0.3, 0.1]))
    assert cut["targets"].tolist() == [7, 5]
    same = arguments((takes_anything, {"targets": torch.ones(3), "eps": torch.tensor(0.5)}))
    assert same["targets"].shape == (3,)
    assert float(same["eps"]) == 0.5


def test_words_for_eps() -> None:
    assert eps_name(0.123456) == "0.1235"
    assert eps_name(0.123456, 5) == "0.12346"
    assert eps_name(8 / 255) == "0.03137"
    assert eps_name(torch.tensor(0.5)) == "0.5"
    assert eps_name(torch.tensor([0.5, 0.5])) == "0.5"
    assert eps_name(torch.tensor([0.5, 0.125, 0.25])) == "0.125-0.5"
    assert threat_key("L2", torch.tensor([0.5, 0.25])) == ("L2", (0.5, 0.25))
    assert threat_key("L2", torch.tensor(0.5)) == ("L2", 0.5)
