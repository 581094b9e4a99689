"""Minimal perturbations of 1000 MNIST digits on FC100-100-10, ours against scipy's L-BFGS-B image by image.

Ours takes all 1000 at once, scipy the first 100 of them, some in each round, one process, the same threads; ratios are
of the time for one image. Needs SPARRING_SHARED.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lbfgs_peers
from harness import load_average
from sparring import attacks
from sparring.attacks import AttackResult
from sparring.data import load
from sparring.intriguing import RECIPES, train

pytestmark = [pytest.mark.shared, pytest.mark.timeout(3600)]

COUNT, COMPARED, ROUNDS, EPOCHS = 1000, 100, 5, 10
SAME = "scipy L-BFGS-B, the same search of the weight"
PEERS = {
    SAME: lbfgs_peers.same_search,
    "scipy L-BFGS-B, nine bisections from .01": lbfgs_peers.nine_bisections,
}


def test_lbfgs(shared: Path, keep_record: Callable[..., None]) -> None:
    digits, test = (load("mnist", shared / "data" / "mnist", split) for split in ("train", "test"))
    model = train("FC100-100-10", RECIPES["FC100-100-10"], digits, test, epochs=EPOCHS).requires_grad_(False)
    images, labels = test.images[:COUNT], test.labels[:COUNT]
    draws = torch.Generator().manual_seed(0)
    targets = (labels + torch.randint(1, 10, (COUNT,), generator=draws)) % 10

    def ours() -> AttackResult:
        found = attacks.lbfgs(model, images, labels, targets=targets, return_result=True)
        assert isinstance(found, AttackResult)
        return found

    load_before, found = load_average(), ours()  # which also does what happens once
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in PEERS}}
    distances: dict[str, list[float]] = {name: [] for name in PEERS}
    for number in range(ROUNDS):
        rows = range(number, COMPARED, ROUNDS)
        for name in ["ours", *PEERS][:: 1 if number % 2 == 0 else -1]:
            begin = time.perf_counter()
            if name == "ours":
                found = ours()
            else:
                for row in rows:
                    case = (model, images[row], int(targets[row]), PEERS[name])
                    distances[name].append(lbfgs_peers.nearest(*case))
            seconds[name].append((time.perf_counter() - begin) / (COUNT if name == "ours" else len(rows)))
    record = {
        "op": "minimal perturbations of MNIST, FC100-100-10",
        "shape": [COUNT, 784],
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "load": [load_before, load_average()],
        "nearest": [
            {"name": "ours", "success": float(found.success.double().mean()),
             "distance": round(float(found.distance[:COMPARED].mean()), 5), "ratio": 1.0},
            *(peer(name, distances[name], seconds["ours"], seconds[name]) for name in PEERS),
        ],
        "required": 50.0,
    }  # fmt: skip
    keep_record(record)
    assert found.success.all()
    assert found.distance[:COMPARED].mean() <= statistics.mean(distances[SAME])


def peer(name: str, distances: list[float], ours: list[float], theirs: list[float]) -> dict[str, Any]:
    found = [distance for distance in distances if distance < math.inf]
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    return {
        "name": name,
        "success": len(found) / len(distances),
        "distance": round(statistics.mean(found), 5),
        "ratio": float(f"{statistics.median(ratios):.3g}"),
        "ratios": [float(f"{min(ratios):.3g}"), float(f"{max(ratios):.3g}")],
    }
