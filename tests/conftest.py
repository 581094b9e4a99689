"""Shared set-up: helper modules importable, one Hypothesis profile, tests skipped where what they need is missing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))  # for `import simt` and others
from prerequisites import SHARED, counted, missing, skip_without
from sparring import data, networks

# Compiled code is quick but its first call may build something: no deadline. Derandomised: a failure repeats.
settings.register_profile(
    "sparring", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("brief", settings.get_profile("sparring"), max_examples=10)  # for slow builds, e.g. sanitized
settings.load_profile("sparring")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Chromium (or Chrome) on the PATH")
    config.addinivalue_line("markers", "shared: needs the folder of reference networks and data (SPARRING_SHARED)")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a shell that started this in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "SPARRING_SHARED" in os.environ and not SHARED.is_dir():
        raise pytest.UsageError(f"SPARRING_SHARED: {SHARED} is not a folder")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without(items, missing())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    yield  # last, below pytest's own summary
    if line := counted(terminalreporter.stats.get("skipped", [])):
        terminalreporter.line(line)


@pytest.fixture(
    scope="module",
    params=["cpu", pytest.param("simt", marks=pytest.mark.simt), pytest.param("cuda", marks=pytest.mark.cuda)],
)
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``run(kernel, *args)`` on every backend, for tensors on the CPU, results there too."""
    if request.param == "simt":
        import simt

        orders = cycle([simt.SimtOps(simt.load(), seed=seed) for seed in range(3)])
        return lambda kernel, *args, **kwargs: next(orders).call(kernel, *args, **kwargs)
    if request.param == "cuda":
        return lambda kernel, *args, **kwargs: _move(kernel(*_move(args, "cuda"), **kwargs), "cpu")
    return lambda kernel, *args, **kwargs: kernel(*args, **kwargs)


def _move(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        moved = (_move(v, device) for v in value)
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value.to(device) if isinstance(value, Tensor) else value


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of reports without their figures, where a test is about what they say."""
    monkeypatch.setattr(
        "sparring.report.page._drawn", lambda picture, folder, small: {"light": "data:,", "dark": "data:,"}
    )


@pytest.fixture(scope="session")
def page_of_a_mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with everything in it, for one that is read and one that is looked at."""
    from made_mixtures import make
    from sparring import report

    return report.write(make(tmp_path_factory.mktemp("runs"))[0], small=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference networks and data; for tests marked `shared`."""
    return SHARED


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, generator: torch.Generator) -> None:
    """Train with Adam in whatever mode the model is in, and leave no gradients behind."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="session")
def fit() -> Callable[..., None]:
    return train


@pytest.fixture(scope="session")
def digits_network() -> Callable[[str], nn.Module]:
    """A network of `sparring.networks` in float32, trained in eval mode (without dropout); not to be changed."""
    trained: dict[str, nn.Module] = {}

    def get(name: str) -> nn.Module:
        if name not in trained:
            digits, test = data.load("digits"), data.load("digits", split="test")
            generator = torch.Generator().manual_seed(0)
            network = networks.build(name, digits.input_shape, digits.classes, generator=generator).eval()
            train(network, digits.images, digits.labels, epochs=15, generator=generator)
            with torch.no_grad():
                assert (network(test.images).argmax(1) == test.labels).float().mean() > 0.95
            trained[name] = network
        return trained[name]

    return get
