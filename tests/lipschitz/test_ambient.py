"""Whatever is switched on around a call, its result is the same, and what was given is as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparring import lipschitz, networks


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        return make().eval()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "no device by default": lambda: torch.device("meta"),
}


def results(dense: nn.Module, image: nn.Module, x: Tensor, images: Tensor) -> dict[str, Any]:
    weight = image[0].weight
    conv = {"input_shape": (12, 12), "padding": 1}
    penalty = lipschitz.penalty(image, (2, 6, 6))
    report = lipschitz.layer_bounds(image, (2, 6, 6), data=images)
    return {
        "layer_bounds": (report.upper, report.lower, report.refused, [layer.upper for layer in report.layers]),
        "certified_radius": lipschitz.certified_radius(dense, x).tolist(),
        "locally": lipschitz.certified_radius(dense, x, local=True).tolist(),
        "of images": lipschitz.certified_radius(image, images).tolist(),
        "local_bound": lipschitz.local_bound(dense, x, 0.1).tolist(),
        "frequencies": lipschitz.spectral_norm(weight, "conv2d", **conv, method="frequencies"),
        "banded": lipschitz.spectral_norm(weight, "conv2d", **conv, method="banded"),
        "any size": lipschitz.spectral_norm(weight, "conv2d"),
        "large": lipschitz.spectral_norm(torch.ones(400, 500, device="cpu", dtype=torch.float32)),
        "chain_bound": lipschitz.chain_bound([layer.weight for layer in dense if isinstance(layer, nn.Linear)]),
        "penalty": float(penalty().detach()),
        "path_norm": float(lipschitz.path_norm(dense).detach()),
        "project_": lipschitz.project_(copy.deepcopy(image), 0.3, (2, 6, 6)),
        "of weights": lipschitz.layer_bounds(dense.state_dict()).upper,
    }


@pytest.fixture(scope="module")
def given() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    dense = seeded(lambda: networks.mlp((6, 8, 8, 3)))
    image = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2, 1),
            nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(64, 3),
        )
    )  # fmt: skip
    return dense, image, torch.randn(4, 6, generator=draws), torch.randn(3, 2, 6, 6, generator=draws)


@pytest.fixture(scope="module")
def plain(given: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> dict[str, Any]:
    return results(*given)


@pytest.mark.parametrize("name", AMBIENT)
def test_results_are_those_of_a_plain_call(
    name: str, given: tuple[nn.Module, nn.Module, Tensor, Tensor], plain: dict[str, Any]
) -> None:
    with AMBIENT[name]():
        found = results(*given)
    for key, value in plain.items():
        assert found[key] == value, key


def test_networks_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = networks.mlp((4, 5, 3)).eval()
        x = torch.ones(2, 4)
    assert bool((lipschitz.certified_radius(model, x, local=True) >= 0).all())
    assert lipschitz.layer_bounds(model, 4, data=x).refused == ()


def test_a_network_without_numbers_is_refused() -> None:
    report = lipschitz.layer_bounds(nn.Linear(3, 2, device="meta"), 3)
    assert "meta device" in report.refused[0][1]


class Careless(nn.Module):
    """Draws, writes to its input, and remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.seen: list[Any] = []
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        np.random.rand()  # noqa: NPY002
        self.seen.append(x)
        self.last = x
        x *= 2
        return self.fc(x)


def test_a_forward_that_draws_from_torch_is_refused_before_it_does() -> None:
    class Draws(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(1)
            return super().forward(x)

    model = Draws(4, 3)
    state = torch.get_rng_state()
    report = lipschitz.layer_bounds(model, 4)
    assert "draws random numbers" in report.refused[0][1]
    assert report.upper == float("inf")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_touched(dtype: torch.dtype) -> None:
    model = seeded(lambda: nn.Sequential(Careless(), nn.Dropout(0.5), nn.BatchNorm1d(3))).to(dtype)
    model[0].fc.weight.requires_grad_(False)
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, given = copy.deepcopy(model.state_dict()), x.clone()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    report = lipschitz.layer_bounds(model, 4, data=x)
    assert 0 < lipschitz.empirical_lower_bound(model, x) <= report.upper
    with pytest.raises(ValueError, match="draws random numbers"):
        lipschitz.certified_radius(model, x)
    lipschitz.penalty(model, (4,))()
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002
    assert model[0].seen == []
    assert model[0].last is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
