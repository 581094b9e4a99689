"""Fooling images laid over clean ones: linear networks, of which the smallest factor is known in closed form."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparring.analysis import ALPHAS, Group, Perturbations, perturb


def linear(weight: list[list[float]], bias: list[float]) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(bias), dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return nn.Sequential(nn.Flatten(), layer)


def images(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)[:, None, None, :]


def smallest(needed: float) -> float:
    """The first factor tried that is above `needed`."""
    return next((float(alpha) for alpha in ALPHAS if alpha > needed), math.nan)


# Class 0 has the logit 0; class 1 grows with the first entry by 100, and is at 0 where that is .305. Its probability is
# above .9 from .305 + log(9) / 100 = .32697 on. R adds alpha * r to the first entry, of which clip leaves at most 1.
STEP = linear([[0.0, 0.0], [100.0, 0.0]], [0.0, -30.5])
NEEDED = 0.305 + math.log(9) / 100


def test_the_factors_are_those_of_the_source() -> None:
    assert [float(alpha) for alpha in ALPHAS] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, *range(1, 10), *range(10, 100, 10), 100, 200, 300]
    )


def test_a_linear_network_needs_the_factor_of_the_formula() -> None:
    starts = [0.0, 0.1, 0.2, 0.29, 0.325, 0.33, 1.0]
    slopes = [1.0, 0.8, 0.5, 0.33]
    clean = images([[start, 0.5] for start in starts])
    found = perturb(STEP, clean, torch.zeros(len(starts), dtype=torch.int64), images([[r, 1.0] for r in slopes]))
    wanted = [0.0 if q > NEEDED else smallest((NEEDED - q) / r) for q in starts for r in slopes]
    assert found.alpha.tolist() == pytest.approx(wanted)
    assert len(set(wanted)) > 6
    assert found.attack_class.tolist() == [1] * len(wanted)
    assert found.pairs.tolist() == [[i, j] for i in range(len(starts)) for j in range(len(slopes))]
    q, r = (
        torch.tensor(values, dtype=torch.float64)[i]
        for values, i in ((starts, found.pairs[:, 0]), (slopes, found.pairs[:, 1]))
    )
    logit = 100 * (q + found.alpha * r).clamp(max=1) - 30.5
    assert torch.allclose(found.prob, logit.sigmoid())


def test_large_factors_and_none() -> None:
    # Each image is the other's opposite: the second entry holds class 1 back, until clip stops it at 1.
    model = linear([[0.0, 0.0], [40.0, -20.0]], [0.0, -4.0])
    clean = images([[0.0, 0.0], [0.0, 1.0]])
    fooling = images([[0.2, 0.0], [0.17, 0.01]])
    found = perturb(model, clean, torch.tensor([0, 0]), fooling)
    logits = lambda a, q, r: 40 * min(a * r[0], 1) - 20 * min(q[1] + a * r[1], 1) - 4  # noqa: E731
    pairs = [(q, r) for q in ([0.0, 0.0], [0.0, 1.0]) for r in ([0.2, 0.0], [0.17, 0.01])]
    wanted = [next((a for a in ALPHAS if logits(a, q, r) > math.log(9)), math.nan) for q, r in pairs]
    assert wanted == [0.8, 1, 4, 4]
    assert found.alpha.tolist() == wanted

    weak = linear([[0.0, 0.0], [2.0, 0.0]], [0.0, 0.0])  # never above 1 / (1 + exp(-2)) = .88
    found = perturb(weak, clean, torch.tensor([0, 0]), fooling)
    assert found.alpha.isnan().all()
    assert found.prob.isnan().all()
    assert not found.success.any()
    assert perturb(weak, clean, torch.tensor([0, 0]), fooling, p_min=0.87).success.all()
    dim = linear([[0.0, 0.0], [8000.0, 0.0]], [0.0, -4.0])
    far = perturb(dim, clean[:1], torch.tensor([0]), images([[0.7e-3, 0.0]]))  # 4 / 8000 < .7e-3, so it is of class 1
    assert far.alpha.tolist() == [smallest((4 + math.log(9)) / 8000 / 0.7e-3)] == [2.0]
    far = perturb(dim, clean[:1], torch.tensor([0]), images([[0.51e-3, 0.0]]), alphas=[0, 1, 1.5, 1.6])
    assert far.alpha.tolist() == [1.6]


def test_the_probability_must_be_above_and_the_class_likeliest() -> None:
    even = linear([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], [0.0, 0.0, 0.0])
    clean, fooling = images([[0.0, 0.0]]), images([[1.0, 0.0]])
    at_zero = perturb(even, clean, torch.tensor([0]), fooling, p_min=0.3, alphas=[0, 1])
    assert at_zero.alpha.tolist() == [1]  # at 0 all have 1/3 > .3, but the first is the likeliest
    assert perturb(even, clean, torch.tensor([0]), fooling, p_min=0.6, alphas=[0, 1]).alpha.isnan().all()


def test_fake_classes_count_like_others_unless_left_out() -> None:
    # Class 1 and its fake one, 3, grow with the first entry: the fake one wins above .5.
    model = linear([[0.0, 0.0], [40.0, 0.0], [0.0, 0.0], [80.0, 0.0]], [0.0, -4.0, -90.0, -24.0])
    clean, fooling = images([[0.0, 0.0]]), images([[1.0, 0.0]])
    every = perturb(model, clean, torch.tensor([0]), fooling)
    assert every.attack_class.tolist() == [3]
    assert every.alpha.tolist() == [smallest(0.5 + math.log(9) / 40)] == [0.6]
    real = perturb(model, clean, torch.tensor([0]), fooling, classes=2)
    assert real.attack_class.tolist() == [1]
    assert real.alpha.tolist() == [smallest((4 + math.log(9)) / 40)] == [0.2]
    assert perturb(model, clean, torch.tensor([0]), fooling, classes=2, alphas=[0.7, 1]).alpha.isnan().all()


@pytest.mark.parametrize("chunk_size", [1, 3, 1024])
def test_chunks_and_pairs_change_nothing(chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, fooling = (torch.rand(n, 1, 3, 3, generator=generator, dtype=torch.float64) for n in (7, 5))
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4, dtype=torch.float64))
    nn.init.normal_(model[1].weight, 0, 8, generator=generator)
    labels = torch.arange(7) % 4
    whole = perturb(model, clean, labels, fooling)
    assert 0 < whole.success.sum() < len(whole) == 35
    chunked = perturb(model, clean, labels, fooling, chunk_size=chunk_size)
    assert torch.equal(chunked.alpha.nan_to_num(-1), whole.alpha.nan_to_num(-1))
    some = torch.tensor([[6, 1], [0, 4], [0, 0], [6, 1]])
    part = perturb(model, clean, labels, fooling, pairs=some, chunk_size=chunk_size)
    assert torch.equal(part.alpha.nan_to_num(-1), whole.alpha.nan_to_num(-1)[some[:, 0] * 5 + some[:, 1]])
    assert part.true_class.tolist() == [labels[6], 0, 0, labels[6]]


def test_pairs_that_are_done_are_not_asked_again() -> None:
    asked = []
    counted = nn.Sequential(STEP)
    counted.register_forward_hook(lambda _module, inputs, _output: asked.append(len(inputs[0])))
    perturb(counted, images([[0.0, 0.0], [0.2, 0.0], [0.5, 0.0]]), torch.tensor([0, 0, 1]), images([[1.0, 0.0]]))
    assert asked == [1, 3, 2, 2, 1, 1]  # R; then at 0 one is done, at .2 another, at .4 the last
    asked.clear()
    perturb(counted, images([[0.0, 0.0]] * 5), torch.zeros(5).long(), images([[1.0, 0.0]] * 3), chunk_size=4)
    assert max(asked) == 4


def test_images_that_no_longer_change_are_not_asked_about_again() -> None:
    asked = []
    weak = linear([[0.0, 0.0], [2.0, 0.0]], [0.0, 0.0])  # never above .88
    weak.register_forward_hook(lambda _module, inputs, _output: asked.append(len(inputs[0])))
    found = perturb(weak, images([[0.0, 0.0]]), torch.tensor([0]), images([[0.5, 0.0]]))
    assert found.alpha.isnan().all()
    assert asked == [1] * 13  # R, and the 12 factors up to 2, where the entry reaches 1


def test_the_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1, dtype=torch.float64), STEP).train()
    before, state = torch.get_rng_state(), model[1].running_mean.clone()
    perturb(model, images([[0.0, 0.0]]), torch.tensor([0]), images([[1.0, 0.0]]))
    assert model.training
    assert model[0].training
    assert torch.equal(model[1].running_mean, state)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def made() -> Perturbations:
    """Two clean images, three fooling ones: two of class 1, of which one never succeeds, and one of class 0."""
    return Perturbations(
        images([[0.0, 0.0], [0.0, 0.5]]),
        images([[1.0, 0.0], [0.5, 0.0], [0.0, 0.5]]),
        torch.cartesian_prod(torch.arange(2), torch.arange(3)),
        torch.tensor([1, 1, 0, 1, 1, 0]),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([0.4, math.nan, 0.0, 3.0, 1.0, math.nan], dtype=torch.float64),
        torch.tensor([0.95, math.nan, 1.0, 0.99, 0.91, math.nan], dtype=torch.float64),
    )


def test_groups_and_tables(tmp_path: Path) -> None:
    found = made()
    groups = found.groups()
    assert groups[0] == Group(0, 0, 1, 1.0, 0.0, 0.0)
    assert (groups[1].attack_class, groups[1].true_class, groups[1].share) == (0, 1, 0.0)
    assert math.isnan(groups[1].mean)
    assert math.isnan(groups[1].median)
    assert groups[2:] == [Group(1, 0, 2, 0.5, 0.4, 0.4), Group(1, 1, 2, 1.0, 2.0, 2.0)]
    assert found.group() == Group(None, None, 6, 4 / 6, 1.1, 0.7)
    assert found.group(true_class=1) == Group(None, 1, 3, 2 / 3, 2.0, 2.0)
    assert found.group(attack_class=7).pairs == 0
    assert math.isnan(found.group(attack_class=7).share)
    assert (
        str(found)
        == found.table()
        == (
            "attack class  true class  pairs  success  mean alpha  median alpha\n"
            "------------  ----------  -----  -------  ----------  ------------\n"
            "           0           0      1    100 %           0             0\n"
            "           0           1      1      0 %\n"
            "           1           0      2   50.0 %         0.4           0.4\n"
            "           1           1      2    100 %           2             2\n"
            "         all         all      6   66.7 %         1.1           0.7"
        )
    )
    with found.to_csv(tmp_path / "alpha.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["median_alpha"] for line in lines] == ["0.0", "", "0.4", "2.0"]
    assert [(line["attack_class"], line["pairs"], float(line["success"])) for line in lines] == [
        ("0", "1", 1.0), ("0", "1", 0.0), ("1", "2", 0.5), ("1", "2", 1.0),
    ]  # fmt: skip
    with pytest.raises(FileExistsError):
        found.to_csv(tmp_path / "alpha.csv")


def test_strips_show_what_was_laid_over_what() -> None:
    found = made()
    strip = found.strip()
    assert strip.shape == (2, 3, 1, 1, 2)
    assert strip[:, :, 0, 0].tolist() == [
        [[0.0, 0.0], [0.0, 0.5], [0.0, 0.0]],  # class 0: alpha 0 of pair 2
        [[0.0, 0.0], [1.0, 0.0], [0.4, 0.0]],  # class 1: alpha .4 of pair 0
    ]
    assert found.strip(torch.tensor([3]))[0, :, 0, 0].tolist() == [[0.0, 0.5], [1.0, 0.0], [1.0, 0.5]]
    with pytest.raises(ValueError, match="index: no alpha was found for pair 5"):
        found.strip(torch.tensor([3, 5]))


def test_nothing_to_do() -> None:
    found = perturb(STEP, images([[0.0, 0.0]]), torch.tensor([0]), images([[1.0, 0.0]])[:0])
    assert len(found) == 0
    assert found.groups() == []
    assert found.strip().shape == (0, 3, 1, 1, 2)
    assert found.table().endswith("all         all      0")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clean": torch.full((1, 1, 1, 2), 1.5)}, "clean must be in .0, 1.; got 1.5 to 1.5"),
        ({"fooling": torch.full((1, 1, 1, 2), math.nan)}, "fooling must be in .0, 1."),
        ({"fooling": torch.zeros(1, 1, 2, 1)}, r"fooling has shape \(1, 1, 2, 1\)"),
        ({"fooling": torch.zeros(1, 1, 1, 2, dtype=torch.uint8)}, "fooling has .*uint8"),
        ({"labels": torch.tensor([0, 1])}, "labels must be 1 integers"),
        ({"alphas": []}, "alphas must be ascending numbers from 0 on"),
        ({"alphas": [0.1, 0.1]}, "alphas must be ascending"),
        ({"alphas": [-1, 0]}, "alphas must be ascending"),
        ({"p_min": 1.0}, r"p_min must be in \[0, 1\), got 1.0"),
        ({"classes": 0}, "classes must be positive, got 0"),
        ({"chunk_size": 0}, "chunk_size must be positive, got 0"),
        ({"pairs": torch.tensor([0, 0])}, r"pairs must be integers \(N, 2\)"),
        ({"pairs": torch.tensor([[0, 1]])}, r"pairs must be below 1 \(clean\) and 1 \(fooling\)"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, object], message: str) -> None:
    good = {"clean": torch.zeros(1, 1, 1, 2), "labels": torch.tensor([0]), "fooling": torch.ones(1, 1, 1, 2)}
    with pytest.raises(ValueError, match=message):
        perturb(STEP, **{**good, **changed})
