"""Training over two processes gives what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import parallel_fit


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes of ``torchrun`` left what came out."""
    folder = tmp_path_factory.mktemp("parallel")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", parallel_fit.__file__, str(folder)]
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("how", ["joint", "independent", "members", "resumed"])
def test_two_processes_give_what_one_gives(outcomes: Path, how: str) -> None:
    """In float64 to 1e-9: losses, accuracies, weights of the mixture and of its last member, in both processes."""
    alone = parallel_fit.train("joint" if how in ("members", "resumed") else how, None)
    for rank in (0, 1):
        found = json.loads((outcomes / f"{how}-{rank}.json").read_text())
        assert found["weights"] == pytest.approx(alone["weights"], abs=1e-6)  # kept in float32
        assert [record["kind"] for record in found["history"]] == ["start", "epoch", "epoch"]
        if how != "resumed" or rank == 0:
            for record, right in zip(found["history"], alone["history"], strict=True):  # type: ignore[call-overload]
                assert _numbers(record) == pytest.approx(_numbers(right), abs=1e-9)
        if how != "members" or rank == 1:  # the last member is the second process's
            for row, right in zip(found["last"], alone["last"], strict=True):  # type: ignore[call-overload]
                assert row == pytest.approx(right, abs=1e-9)


def _numbers(record: dict[str, Any]) -> list[float]:
    return [value for value in record.values() if isinstance(value, (int, float))]
