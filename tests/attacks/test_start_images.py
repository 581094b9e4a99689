"""Starts and masks of `recover`: what each draws, from the image's own seed alone, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks import recover
from sparring.attacks._descent import Canvas, L1Ball
from sparring.attacks._objective import Objective, weights
from sparring.attacks._start import Starts, check_images

SHAPE = (2, 5, 10)
SEEDS = [5, 6, 2**61, 5]


def starts(start: Any = "noise", **changes: Any) -> Starts:
    settings = {
        "shape": SHAPE, "start": start, "mask": None, "mask_fraction": 0.0, "black": 0.25, "bounds": (-1.0, 3.0),
        "entries": 12, "seeds": SEEDS,
    }  # fmt: skip
    return Starts(**(settings | changes))


def image(start: Any, row: int = 0, **changes: Any) -> Tensor:
    found: Tensor = starts(start, **changes).first(row)[0]
    assert found.shape == SHAPE
    return found


@pytest.mark.parametrize("start", ["noise", "sparse"])
def test_the_seed_decides(start: str) -> None:
    assert torch.equal(image(start, 0), image(start, 3))
    assert not torch.equal(image(start, 0), image(start, 1))
    assert image(start, 2).dtype is torch.float64


def test_black_and_given_starts() -> None:
    assert torch.equal(image("black"), torch.full(SHAPE, 0.25).double())
    given = torch.rand(4, *SHAPE, requires_grad=True)
    assert torch.equal(image(given, 2), given[2])
    assert not image(given, 2).requires_grad


def test_noise_is_normal() -> None:
    drawn = torch.stack([image("noise", i, seeds=[*range(100)]) for i in range(100)])
    assert abs(float(drawn.mean())) < 0.03
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("entries", [0, 1, 12, 100, 1000])
def test_sparse_noise_has_so_many_entries_anywhere_in_the_bounds(entries: int) -> None:
    drawn = torch.stack([image("sparse", i, seeds=[*range(200)], entries=entries) for i in range(200)])
    count = min(entries, 100)
    assert ((drawn != 0.25).flatten(1).sum(1) == count).all()
    values = drawn[drawn != 0.25]
    if entries > 1:
        assert -1 <= float(values.min()) < -0.9
        assert 2.9 < float(values.max()) <= 3
        assert float(values.mean()) == pytest.approx(1, abs=0.2)
        assert float((drawn != 0.25).double().mean(0).std()) < 0.1, "no place is preferred"


@pytest.mark.parametrize(("fraction", "black"), [(0.0, None), (0.3, 30), (0.004, 0), (0.994, 99), (1.0, 100)])
def test_so_many_entries_are_masked(fraction: float, black: int | None) -> None:
    start, held = starts("noise", mask_fraction=fraction).first(1)
    if black is None:
        assert held is None
        return
    assert held is not None
    assert held.shape == SHAPE
    assert int((~held).sum()) == black
    other = starts("noise", mask_fraction=fraction).first(0)[1]
    assert other is not None
    assert black in (0, 100) or not torch.equal(held, other)
    assert torch.isfinite(start).all()


def test_masks_are_for_all_images_or_each() -> None:
    one, each = torch.rand(SHAPE) > 0.5, torch.rand(4, *SHAPE) > 0.5
    for row in range(4):
        for mask, wanted in ((one, one), (each, each[row])):
            held = starts("black", mask=mask).first(row)[1]
            assert held is not None
            assert torch.equal(held, wanted)


@pytest.mark.parametrize("again", [False, True])
def test_sparse_noise_avoids_masked_entries_while_there_are_others(again: bool) -> None:
    held = torch.zeros(SHAPE, dtype=torch.bool)
    held.flatten()[::10] = True  # ten of a hundred
    for entries, outside in ((4, 0), (10, 0), (12, 2)):
        made = starts("sparse", mask=held, entries=entries)
        found = made.again(0, 1, held) if again else made.first(0)[0]
        assert int((found != 0.25).sum()) == entries
        assert int((found[~held] != 0.25).sum()) == outside


def test_beginning_again_is_other_noise_with_twice_the_entries() -> None:
    made = starts("black", entries=6)
    found = [made.again(1, attempt, None) for attempt in (1, 2, 3, 4, 5, 6)]
    assert [int((image != 0.25).sum()) for image in found] == [6, 12, 24, 48, 96, 100]
    assert torch.equal(found[0], made.again(1, 1, None))
    assert not torch.equal(found[0], made.again(0, 2, None))
    assert torch.equal(found[0], starts("black", entries=6).again(1, 1, None)), "whatever was drawn before"


FINE: dict[str, Any] = {"start": "noise", "mask": None, "mask_fraction": 0.0}


@pytest.mark.parametrize("changes", [
    {}, {"start": "black"}, {"start": "sparse"}, {"start": torch.zeros(3, *SHAPE)}, {"mask_fraction": 1.0},
    {"mask_fraction": 0.5}, {"mask": torch.ones(SHAPE) > 0}, {"mask": torch.ones(3, *SHAPE) > 0},
    {"start": torch.zeros(3, *SHAPE).double()},
])  # fmt: skip
def test_what_suits(changes: dict[str, Any]) -> None:
    check_images(3, SHAPE, torch.device("cpu"), **(FINE | changes))


@pytest.mark.parametrize(("changes", "match"), [
    ({"start": "grey"}, "start must be 'noise', 'black', 'sparse' or a tensor"),
    ({"start": torch.zeros(SHAPE)}, "start must be floating point of shape"),
    ({"start": torch.zeros(2, *SHAPE)}, "start must be floating point of shape"),
    ({"start": torch.zeros(3, *SHAPE).long()}, "start must be floating point"),
    ({"start": torch.zeros(3, *SHAPE, device="meta")}, "start must be floating point of shape .* on cpu"),
    ({"start": torch.full((3, *SHAPE), torch.nan)}, "start must be finite"),
    ({"start": torch.zeros(3, *SHAPE).index_fill(0, torch.tensor([1]), torch.inf)}, "start must be finite"),
    ({"mask_fraction": -0.1}, r"mask_fraction must be in \[0, 1\], got -0.1"),
    ({"mask_fraction": 1.1}, r"mask_fraction must be in \[0, 1\]"),
    ({"mask_fraction": 0.5, "mask": torch.ones(SHAPE) > 0}, "mask and mask_fraction exclude each other"),
    ({"mask": torch.ones(SHAPE)}, "mask must be bool of shape"),
    ({"mask": torch.ones(2, *SHAPE) > 0}, "mask must be bool of shape"),
    ({"mask": torch.ones(SHAPE[1:]) > 0}, "mask must be bool of shape"),
    ({"mask": torch.ones(SHAPE, device="meta") > 0}, "mask must be bool of shape .* on cpu"),
])  # fmt: skip
def test_what_does_not_suit_is_named(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_images(3, SHAPE, torch.device("cpu"), **(FINE | changes))


@pytest.mark.parametrize(("shape", "s_max", "k"), [
    ((1, 28, 28), 300, 31), ((1, 8, 8), 300, 16), ((1, 8, 8), 30, 16), ((1, 8, 8), 10, 10), ((1, 28, 28), 30, 16),
    ((3, 32, 32), 300, 100), ((1, 8, 8), 0, 1), ((1, 1, 2), 1, 1),
])  # fmt: skip
def test_entries_that_a_step_moves_by_default(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], s_max: int, k: int
) -> None:
    """The smaller of D / 25 and s_max / 3 but at least 16, and not more than s_max."""
    seen: list[int] = []

    class Seen(L1Ball):
        def __init__(self, *args: Any, k: int, **options: Any) -> None:
            seen.append(k)
            super().__init__(*args, k=k, **options)

    monkeypatch.setattr("sparring.attacks.recovery.L1Ball", Seen)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
    recover(model, [1], shape, method="l1", steps=0, s_max=s_max)
    assert seen == [k]


@pytest.mark.parametrize("hidden", [{}, {"1": 2.0}])
def test_an_objective_is_in_no_graph_and_adds_its_penalties(hidden: dict[str, float]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Linear(4, 3)).double()
    x, targets = torch.rand(5, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    by_margin = torch.tensor([True, False, True, False, False])
    found = Objective(model, hidden, targets)(x, targets, by_margin, 0.5)
    assert not any(part.requires_grad for part in found)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    wanted = torch.where(by_margin, losses.evaluate("margin", logits, targets), losses.evaluate("ce", logits, targets))
    if hidden:
        wanted = wanted + 0.5 * 2.0 * model[1](leaf.flatten(1)).abs().sum(1) / 4
    (grad,) = torch.autograd.grad(wanted.sum(), leaf)
    torch.testing.assert_close(found.loss, wanted.detach())
    torch.testing.assert_close(found.grad, grad)
    torch.testing.assert_close(found.log_prob, logits.log_softmax(1).gather(1, targets[:, None])[:, 0].detach())


def test_entries_are_counted_exactly_beyond_what_float32_counts() -> None:
    image = torch.ones(1, 2**24 + 3)
    assert Canvas(0.0, (0.0, 1.0), 0.0).sparsity(image).tolist() == [2**24 + 3]
    assert Canvas(1.0, (0.0, 1.0), 0.0).sparsity(image).tolist() == [0]


@pytest.mark.parametrize("method", ["adam", "prox", "l1"])
def test_a_gradient_on_masked_entries_alone_is_none(method: Any) -> None:
    """The image is stuck at once, and begins again as often as it may."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            first = self.gain * x.flatten(1)[:, 0]
            return torch.stack([first, -first], 1)

    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = False
    options = {"method": method, "steps": 6, "p_min": 0.99, "start": "sparse", "s_max": 8}
    assert recover(First(), [0, 1], (1, 4, 4), mask=mask, restarts=2, **options).restarts.tolist() == [2, 2]
    assert recover(First(), [0, 1], (1, 4, 4), mask=mask, restarts=0, **options).restarts.tolist() == [0, 0]
    assert recover(First(), [0, 0], (1, 4, 4), restarts=2, **options).restarts.tolist() == [0, 0]


def test_penalties_of_weight_0_are_none() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    image = torch.zeros(2, 2, 3)
    assert weights({"1": 0.0, "2": 2, "input": 3}, model, image) == (3.0, {"2": 2.0})
    assert weights({"1": 0.0}, model, image) == (0.0, {})
    assert weights("none", model, image) == (0.0, {})
    assert weights("input", model, image) == (1.0, {})
    assert weights("hidden", model, image) == (0.0, {"2": 1.0})
    assert weights("all", model, image) == (1.0, {"2": 1.0})
