"""Certified radii in L1 and Linf: the constants they rest on, in closed form and against what networks do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import lipschitz
from sparring.attacks._model import preprocessed
from sparring.lipschitz.gains.weighted import longest_column


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """With normal weights, and statistics for batch normalisations."""
    source = draws(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.4)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=source) + 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.Linear(6, 4), {}),
        (nn.Conv1d(2, 3, 3, padding=1), {}),
        (nn.Conv2d(2, 3, 4, stride=2, padding=1), {"stride": 2, "padding": 1}),
        (nn.Conv2d(4, 6, 3, stride=(1, 2), groups=2), {"stride": (1, 2)}),
        (nn.Conv2d(2, 3, 3, stride=2, dilation=2, padding=2), {"stride": 2, "dilation": 2}),
        (nn.Conv2d(2, 3, (3, 5), stride=3, dilation=(2, 1), padding=2), {"stride": 3, "dilation": (2, 1)}),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), {"stride": 2}),
    ],
)
def test_the_longest_column_is_that_of_the_matrix(layer: Any, options: dict[str, Any]) -> None:
    seeded(layer)
    dims = layer.weight.ndim - 2
    shape = (layer.weight.shape[1],) if not dims else (layer.in_channels, *(9,) * dims)
    layer.double()
    layer.bias = None
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    columns = layer(basis).flatten(1).norm(dim=1)
    kind = type(layer).__name__.replace("Linear", "dense").replace("Conv", "conv").replace("Transpose", "_transpose")
    bound = longest_column(layer.weight, kind.lower(), getattr(layer, "groups", 1), options)
    longest = float(columns.detach().max())
    assert longest <= bound
    assert longest == pytest.approx(bound, rel=1e-12)


def test_a_layer_of_zeros_has_no_column() -> None:
    assert longest_column(torch.zeros(3, 2), "dense", 1, {}) == 0


class Residual(nn.Module):
    """Two branches that are both given the input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(12, 8), nn.Linear(12, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.flatten(1) - 0.5) / 0.25
        return self.last(torch.relu(self.one(x)) + self.other(x))  # type: ignore[no-any-return]


NETWORKS = [
    nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
    nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)),
    nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3), nn.Tanh()),
    nn.Sequential(nn.Conv2d(3, 4, 2, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                  nn.Linear(16, 3)),
    nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)),
    Residual(),
]  # fmt: skip


@pytest.mark.parametrize("norm", [1, math.inf])
@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("scaled", [False, True])
def test_nothing_moves_farther_than_a_bound_says(model: nn.Module, norm: float, scaled: bool) -> None:
    seeded(model)
    x = torch.rand(60, 3, 2, 2, generator=draws(1))
    prepared = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.2, 2.0)} if scaled else None
    judge = preprocessed(model, prepared, x).eval()
    report = lipschitz.layer_bounds(judge, (3, 2, 2))
    bounds = report.entrance({1: "L1", math.inf: "Linf"}[norm])
    judge = judge.double()
    away = torch.randn(60, 12, generator=draws(2), dtype=torch.float64) * 1e-3
    if norm == 1:  # an entry alone is an end of the ball, all of one size are one of Linf's
        away[:48] = torch.eye(12, dtype=torch.float64).repeat(4, 1) * 1e-3
    else:
        away[:48] = away[:48].sign() * 1e-3
    moved = judge(x.double() + away.reshape(60, 3, 2, 2)) - judge(x.double())
    size = torch.linalg.vector_norm(away, norm, dim=1)
    assert bool((moved.norm(dim=1) <= bounds.upper * size * (1 + 1e-9)).all())
    if norm == 1:
        assert bounds.upper <= report.upper  # never less than what follows from L2
    radius = lipschitz.certified_radius(judge.float(), x, norm=norm, report=report)
    plain = lipschitz.certified_radius(judge, x, report=report)
    assert bool((radius >= plain / (1 if norm == 1 else math.sqrt(12)) * (1 - 1e-9)).all())


@pytest.mark.parametrize(("norm", "dual"), [(1, math.inf), (2, 2), (math.inf, 1), ("L1", math.inf), ("Linf", 1)])
@pytest.mark.parametrize("std", [1.0, 0.25])
def test_a_linear_classifier_in_closed_form(norm: float | str, dual: float, std: float) -> None:
    linear = nn.Linear(8, 4)
    model = nn.Sequential(nn.Flatten(), seeded(linear))
    x = torch.rand(30, 2, 2, 2, generator=draws(3))
    judge = preprocessed(model, {"mean": 0.5, "std": std}, x).eval()
    logits = judge(x).detach().double()
    y = logits.argmax(1)
    rows = linear.weight.detach().double() / std
    apart = torch.linalg.vector_norm(rows[y][:, None] - rows, dual, dim=2)
    distance = ((logits.gather(1, y[:, None]) - logits) / apart).nan_to_num(math.inf).scatter(1, y[:, None], math.inf)
    radius = lipschitz.certified_radius(judge, x, norm=norm)
    assert bool((radius <= distance.amin(1)).all())
    torch.testing.assert_close(radius, distance.amin(1), rtol=1e-3, atol=1e-4)


def test_the_longest_column_counts_where_it_is_shorter_than_the_norm() -> None:
    model = seeded(nn.Sequential(nn.Linear(100, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)))
    report = lipschitz.layer_bounds(model, (100,))
    assert report.features is not None
    in_l1, in_linf = report.entrance("L1"), report.entrance("Linf")
    assert in_l1.features is not None
    assert in_l1.features < 0.8 * report.features
    assert in_linf.features == pytest.approx(report.features * 10)


def test_bad_arguments() -> None:
    model, x = nn.Linear(3, 2).eval(), torch.rand(2, 3)
    with pytest.raises(ValueError, match="local bounds are of balls in L2"):
        lipschitz.certified_radius(model, x, norm=1, local=True)
    with pytest.raises(ValueError, match="norm is 3"):
        lipschitz.certified_radius(model, x, norm=3)
