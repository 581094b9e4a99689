"""The path norm: against the sum over paths by its definition."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from made_layers import drawn, matrix
from sparring.lipschitz import path_norm


def over_paths(matrices: list[Tensor]) -> float:
    """By definition: one unit of each layer in every combination."""
    sizes = [matrices[0].shape[1], *(len(one) for one in matrices)]
    total = 0.0
    for path in itertools.product(*map(range, sizes)):
        product = 1.0
        for one, (source, target) in zip(matrices, itertools.pairwise(path), strict=True):
            product *= one[target, source].item() ** 2
        total += product
    return total**0.5


def test_dense() -> None:
    model = drawn(sp.networks.mlp((4, 3, 5, 2)))
    right = over_paths([model.get_parameter(f"linear{i}.weight") for i in (1, 2, 3)])
    assert path_norm(model).item() == pytest.approx(right, rel=1e-12)
    assert path_norm(model, (1, 2, 2)).item() == pytest.approx(right, rel=1e-12)


def test_convolutions() -> None:
    model = drawn(
        nn.Sequential(
            nn.Dropout(),
            nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.ReLU()),
            nn.ConvTranspose2d(2, 1, 2, stride=2),
            nn.Flatten(),
            nn.Linear(16, 2),
        )
    )
    matrices = [matrix(model[1][0], (2, 2, 2)), matrix(model[2], (2, 2, 2)), model[4].weight]
    assert path_norm(model, (2, 2, 2)).item() == pytest.approx(over_paths(matrices), rel=1e-12)
    with pytest.raises(ValueError, match=r"input_shape must be given, for 1\.0 is a convolution"):
        path_norm(model)


def test_with_pooling_it_is_the_largest_over_what_windows_pass_on() -> None:
    model = drawn(nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 2)))
    first, last = matrix(model[0], (1, 4)), model[3].weight
    choices = []
    for passed in itertools.product((0, 1), repeat=4):  # of the windows {0, 1}, {2, 3} of two channels
        rows = [2 * window + offset for window, offset in enumerate(passed)]
        choices.append(over_paths([first[rows], last]))
    assert path_norm(model, (1, 4)).item() == pytest.approx(max(choices), rel=1e-12)
    before = nn.Sequential(nn.MaxPool1d(2), nn.Conv1d(1, 1, 2), nn.Flatten())
    assert path_norm(before, (1, 4)).item() == pytest.approx(before[1].weight.norm().item(), rel=1e-5)


def test_it_does_not_change_when_units_are_rescaled() -> None:
    model = drawn(sp.networks.mlp((4, 3, 2)))
    norm = path_norm(model)
    with torch.no_grad():
        model.get_parameter("linear1.weight")[1] *= 7
        model.get_parameter("linear2.weight")[:, 1] /= 7
    torch.testing.assert_close(path_norm(model), norm)


def test_derivatives() -> None:
    """Of two layers of one unit: |v| |w|, so the sign of v times |w|; and 0 where all is 0."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    nn.init.constant_(model[0].weight, -3)
    nn.init.constant_(model[2].weight, 2)
    first, last = torch.autograd.grad(path_norm(model), [model[0].weight, model[2].weight])
    assert (first.item(), last.item()) == (pytest.approx(-2), pytest.approx(3))
    nn.init.zeros_(model[0].weight)
    first, last = torch.autograd.grad(path_norm(model), [model[0].weight, model[2].weight])
    assert first.item() == last.item() == 0


@pytest.mark.parametrize("convolutional", [False, True])
def test_of_an_ensemble_it_is_the_sum(convolutional: bool) -> None:
    def make() -> nn.Module:
        if not convolutional:
            return sp.networks.mlp((6, 4, 2))
        return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Linear(2, 2))

    models = [drawn(make(), seed) for seed in range(3)]
    shape = (1, 2, 3) if convolutional else None
    right = torch.stack([path_norm(model, shape) for model in models]).sum()
    torch.testing.assert_close(path_norm(sp.StackedEnsemble(models), shape), right)
    torch.testing.assert_close(path_norm(sp.Ensemble(copy.deepcopy(models)), shape), right)


def test_what_it_knows_nothing_of_is_named() -> None:
    with pytest.raises(ValueError, match=r"model has 1 \(Sigmoid\), of which the path norm knows nothing; accepted: "):
        path_norm(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()))
    with pytest.raises(ValueError, match=r"model has a module \(ResNet18\)"):
        path_norm(sp.networks.ResNet18((1, 4, 4), 2, 4), (1, 4, 4))
    with pytest.raises(ValueError, match="no chain: its linear layer 1 is given 3 dimensions, not 1"):
        path_norm(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(2, 2)), (1, 2, 2))


@pytest.mark.parametrize("scales", [(1e-12, 1e12, 1.0), (1e-12, 1e-12, 1e20), (1e20, 1e-30, 1e8), (1e-25, 1e25, 1.0)])
def test_weights_of_any_size_in_float32(scales: tuple[float, ...]) -> None:
    """As in float64, derivatives too."""
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, scale in zip(layers, scales, strict=True):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws) * scale)
    found = path_norm(model)
    squares = torch.ones(4, dtype=torch.float64)
    wide = [layer.weight.detach().double().requires_grad_() for layer in layers]
    for weight in wide:
        squares = weight.square() @ squares
    exact = squares.sum().sqrt()
    assert math.isclose(float(found.detach()), float(exact.detach()), rel_tol=1e-5)
    of_weights = torch.autograd.grad(found, [layer.weight for layer in layers])
    for grad, expected in zip(of_weights, torch.autograd.grad(exact, wide), strict=True):
        if float(expected.abs().max()) < 1e38:
            torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=float(expected.abs().max()) * 1e-5)
