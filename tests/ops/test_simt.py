"""The emulation itself: that it would notice a missing barrier."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LANE_ORDERS = (0, 1, 2)

# Prints an error for every lane order, inf where the lanes wait for each other for ever.
MEASURE = f"""
import math
import sys
import torch
import simt
from sparring import reference

module = simt.load(tuple(sys.argv[1:]))
generator = torch.Generator().manual_seed(0)
x, delta = torch.rand(4, 700, generator=generator), torch.randn(4, 700, generator=generator)
for lane_order in {LANE_ORDERS}:
    try:
        v = simt.SimtOps(module, lane_order).project_l1_box(delta, x, 5.0)
        print(float((v - reference.project_l1_box(delta, x, 5.0)).abs().max()))
    except RuntimeError as error:
        assert "wait at different barriers" in str(error)
        print(math.inf)
"""


def errors(*defines: str) -> list[float]:
    """In a process of its own, since two builds of one module do not live together in one."""
    command = [sys.executable, "-c", MEASURE, *defines]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@pytest.mark.simt
def test_a_removed_barrier_is_noticed() -> None:
    """A kernel with one barrier less gives wrong numbers, or never ends, in every order of the lanes."""
    whole, broken = errors(), errors("SPARRING_SIMT_DROP_BARRIER")
    assert len(whole) == len(broken) == len(LANE_ORDERS)
    assert max(whole) < 1e-6
    assert min(broken) > 1e-3
