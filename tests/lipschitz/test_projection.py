"""Projection onto a ball of norms: the proof holds for what is written, and the nearest matrix is taken."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import sparring as sp
from sparring.lipschitz import project_, spectral_norm


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Flatten(), nn.Linear(108, 7), nn.Linear(7, 2),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model[6].weight.data *= 0.1
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["clip", "scale"])
@pytest.mark.parametrize("bound", [0.9, 1e-3])
def test_bound_is_proven_for_what_is_written(dtype: torch.dtype, method: Any, bound: float) -> None:
    model = network(dtype)
    before = copy.deepcopy(model.state_dict())
    found = project_(model, bound, (2, 6, 6), method=method)
    assert [*found] == ["0", "3", "5", "6"]
    conv = {"stride": 2, "padding": 1, "groups": 2}
    norms = {
        "0": spectral_norm(model[0].weight, "conv2d", (6, 6), **conv),
        "3": spectral_norm(model[3].weight, "conv_transpose2d", (3, 3), stride=2),
        "5": spectral_norm(model[5].weight),
        "6": spectral_norm(model[6].weight),
    }
    for name, norm in norms.items():
        assert norm.certified
        assert norm.upper == found[name] <= bound
        assert norm.upper > bound * (1 - 4 * max(torch.finfo(dtype).eps, 1e-6)) or (bound, name) == (0.9, "6")
    for name, value in model.state_dict().items():
        changed = name in ("0.weight", "3.weight", "5.weight") or (name == "6.weight" and bound < 0.9)
        assert torch.equal(value, before[name]) != changed
    written = copy.deepcopy(model.state_dict())
    assert project_(model, bound, (2, 6, 6), method=method) == found
    assert all(torch.equal(value, written[name]) for name, value in model.state_dict().items())


def test_clip_is_the_nearest_and_scale_keeps_the_direction() -> None:
    model = network(torch.float64)
    clipped, scaled = copy.deepcopy(model), copy.deepcopy(model)
    project_(clipped, 5.0, (2, 6, 6), method="clip")
    project_(scaled, 5.0, (2, 6, 6), method="scale")
    left, values, right = torch.linalg.svd(model[5].weight, full_matrices=False)
    assert values[-1] > 5
    torch.testing.assert_close(clipped[5].weight, 5 * left @ right, rtol=1e-5, atol=1e-5)
    for layer in (0, 3, 5):
        ratio = scaled[layer].weight / model[layer].weight
        torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
    torch.testing.assert_close(scaled[5].weight, model[5].weight * 5 / values[0], rtol=1e-5, atol=1e-9)
    assert torch.equal(clipped[3].weight, scaled[3].weight)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5), (1, 1)])
def test_matrices_of_any_shape_and_scale(shape: tuple[int, int], scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    model = nn.Linear(shape[1], shape[0], dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(scale * torch.randn(shape, generator=generator, dtype=torch.float64))
    left, values, right = torch.linalg.svd(model.weight.detach() / scale, full_matrices=False)
    bound = 0.7 * values[0].item()
    (upper,) = project_(model, bound * scale).values()
    assert upper <= bound * scale
    torch.testing.assert_close(model.weight / scale, left * values.clamp(max=bound) @ right, rtol=0, atol=1e-5 * bound)
    nn.init.zeros_(model.weight)
    assert project_(model, 1.0) == {"": 0.0}


def test_members_of_an_ensemble() -> None:
    models = [copy.deepcopy(network()) for _ in range(3)]
    for i, model in enumerate(models):
        model[5].weight.data *= 0.02 * (i + 1)
    stack = sp.StackedEnsemble(models)
    assert stack.reasons  # a transposed convolution is not computed at once
    for ensemble in (stack, sp.Ensemble(copy.deepcopy(models))):
        project_(ensemble, 0.5, (2, 6, 6))
        for i, model in enumerate(models):
            alone = copy.deepcopy(model)
            project_(alone, 0.5, (2, 6, 6))
            for name, value in alone.state_dict().items():
                assert torch.equal(ensemble.member(i).state_dict()[name], value)


def test_an_optimiser_goes_on() -> None:
    """Its state and the graph before stay what they were; the change is seen as one in place."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state, weight, version = copy.deepcopy(optimizer.state_dict()), model.weight, model.weight._version
    project_(model, 0.1)
    assert model.weight is weight
    assert weight._version > version
    assert weight.requires_grad
    assert weight.grad is not None
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(value, state["state"][0][name])


def test_on_images_of_any_size() -> None:
    """Without a shape a convolution is bounded for all sizes, so at least as much as for one."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 3))
    nn.init.ones_(model[0].weight)
    found = project_(model, 2.0)
    assert spectral_norm(model[0].weight, "conv2d", (9, 9), padding=1).upper <= found["0"] <= 2
    circular = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match="input_shape must be given, for 0 has padding_mode 'circular'"):
        project_(circular, 1.0)
    project_(circular, 1.0, (1, 5, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 0.0}, "bound is 0.0; accepted: 0 < bound < inf"),
        ({"bound": math.nan}, "bound is nan"),
        ({"bound": 1.0, "method": "cut"}, "method is 'cut'; accepted: 'clip', 'scale'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        project_(nn.Linear(2, 2), **options)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="no linear layer and no convolution that project_ could act on"):
        project_(nn.ReLU(), 1.0)
    bad = nn.Linear(2, 2)
    nn.init.constant_(bad.weight, math.nan)
    with pytest.raises(ValueError, match="NaN"):
        project_(bad, 1.0)
    made = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="model computes the weight of 0 from others, so that it cannot be changed"):
        project_(made, 1.0)
