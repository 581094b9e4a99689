"""Shared set-up: helper modules importable, CUDA tests only where a device is, one Hypothesis profile."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for `import simt`

# Compiled code is quick but its first call may build something: no deadline. Derandomised: a failure repeats.
settings.register_profile(
    "sparring", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("brief", settings.get_profile("sparring"), max_examples=10)  # for slow builds, e.g. sanitized
settings.load_profile("sparring")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a device the tests marked `cuda` are deselected, and so not reported as skipped."""
    if not torch.cuda.is_available():
        absent = [item for item in items if item.get_closest_marker("cuda")]
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]
        config.hook.pytest_deselected(items=absent)
