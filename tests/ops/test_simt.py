"""The emulation itself: that it would notice a missing barrier."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys
import torch
import simt
from sparring import reference

ops = simt.SimtOps(simt.load(tuple(sys.argv[2:])), seed=int(sys.argv[1]))
generator = torch.Generator().manual_seed(0)
x, delta = torch.rand(4, 700, generator=generator), torch.randn(4, 700, generator=generator)
print(float((ops.project_l1_box(delta, x, 5.0) - reference.project_l1_box(delta, x, 5.0)).abs().max()))
"""


@pytest.mark.simt
@pytest.mark.parametrize("lane_order", [0, 1, 2])
def test_a_removed_barrier_is_noticed(lane_order: int) -> None:
    """The same kernel with one barrier less gives wrong numbers or never ends, which the emulation reports."""

    def measure(*defines: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", MEASURE, str(lane_order), *defines]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)

    whole, broken = measure(), measure("SPARRING_SIMT_DROP_BARRIER")
    assert float(whole.stdout) < 1e-6, whole.stderr
    assert "wait at different barriers" in broken.stderr or float(broken.stdout) > 1e-3, broken.stdout + broken.stderr
