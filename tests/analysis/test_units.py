"""Units against random directions: on layers whose units are known, and on digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparring import data
from sparring.analysis import units
from sparring.analysis.units import Directions


class Picked(nn.Module):
    """A layer whose unit k is entry k of the input, and logits that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)).sum(1, keepdim=True)


def classes_by_entry(classes: int, each: int) -> tuple[Tensor, Tensor]:
    """Images of class c in which entry c is the largest, more so the later they come."""
    labels = torch.arange(classes).repeat(each)
    images = 0.1 * torch.ones(len(labels), 1, 1, classes)
    images[torch.arange(len(labels)), 0, 0, labels] = torch.linspace(0.5, 0.9, len(labels))
    return images, labels


def test_units_that_are_classes() -> None:
    images, labels = classes_by_entry(6, 10)
    seen = units(Picked(), "layer", images, labels, count=10, top=5)
    assert seen.features == 6
    assert sorted(seen.chosen.tolist()) == [*range(6)]
    assert (seen.units.purity == 1).all()
    assert torch.equal(labels[seen.units.top], seen.chosen[:, None].expand(6, 5))
    assert seen.units.interval() == (1.0, 1.0)
    assert torch.equal(seen.units.top[0], torch.arange(60)[labels == seen.chosen[0]].flip(0)[:5])
    # The best input has a 1 where the unit looks; the rest stays at the mean image.
    mean = images.mean(0)
    for unit, best in zip(seen.chosen.tolist(), seen.units.optimised, strict=True):
        expected = mean.clone()
        expected[0, 0, unit] = 1
        assert torch.allclose(best, expected, atol=1e-5)
    assert torch.allclose(seen.units.activation, torch.ones(6))


def test_random_directions_are_of_length_one_and_are_measured_alike() -> None:
    images, labels = classes_by_entry(6, 10)
    seen = units(Picked(), "layer", images, labels, count=40, top=4)
    assert seen.random.vectors.shape == (40, 6)
    assert torch.allclose(seen.random.vectors.norm(dim=1), torch.ones(40))
    activations = seen.random.vectors @ images.flatten(1).T
    for row in range(40):
        top = seen.random.top[row]
        assert torch.equal(activations[row, top], activations[row].sort(descending=True).values[:4])
        counts = torch.bincount(labels[top])
        assert float(seen.random.purity[row]) == float(counts.max()) / 4
        better = (seen.random.vectors[row] > 0).to(images.dtype)
        assert float(seen.random.activation[row]) == pytest.approx(
            float((seen.random.vectors[row] * better).sum()), rel=1e-3
        )


def test_purity_by_hand_and_its_interval() -> None:
    purity = torch.tensor([0.5, 1.0, 0.75, 0.75], dtype=torch.float64)
    none = torch.zeros(0)
    low, high = Directions(none, none, purity, none, none).interval(0.95)
    half = 1.959964 * float(purity.std()) / 2
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), rel=1e-5)


def test_on_digits(digits_network: Callable[[str], nn.Module]) -> None:
    model, test = digits_network("mlp"), data.load("digits", split="test")
    state = torch.random.get_rng_state()
    model.train()
    seen = units(model, "relu2", test.images, test.labels, count=20, steps=30)
    assert model.training
    model.eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert seen.features == 128
    top = test.images[seen.units.top[:, 0]]
    with torch.no_grad():
        activations = model[:5](top)
    best_real = (activations * seen.units.vectors).sum(1)
    assert (seen.units.activation >= best_real).double().mean() > 0.9  # dead units stay dead
    assert ((seen.units.optimised >= 0) & (seen.units.optimised <= 1)).all()
    assert 0.2 < seen.random.purity.mean() <= 1
    again = units(model, "relu2", test.images, test.labels, count=20, steps=30)
    assert torch.equal(again.random.top, seen.random.top)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "relu9"}, "layer must be one of layer; got 'relu9'"),
        ({"top": 0}, "top in 1 ... 60"),
        ({"top": 61}, "top in 1 ... 60"),
        ({"count": 0}, "count at least 1"),
        ({"steps": -1}, "steps at least 0"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels must be one for each of the 60 images; got 3"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    images, labels = classes_by_entry(6, 10)
    with pytest.raises(ValueError, match=message):
        units(Picked(), **{"layer": "layer", "images": images, "labels": labels, **options})  # type: ignore[arg-type]


def test_a_layer_that_is_called_twice_is_refused() -> None:
    class Twice(Picked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x)

    images, labels = classes_by_entry(6, 10)
    with pytest.raises(ValueError, match="must be called once"):
        units(Twice(), "layer", images, labels)
