"""L1 attacks on two reference networks: what each leaves standing, and how long it takes. Needs SPARRING_SHARED."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attack_peers import PEERS, STEPS, Peer
from harness import load_average
from sparring import attacks, data, networks

pytestmark = [pytest.mark.shared, pytest.mark.timeout(3600)]

NETWORKS = {"mnist_mlp": "mlp-300-100", "mnist_lenet5": "lenet5"}
SEEDS = (0, 1, 2)
EVERY_ROUND = ("ours: apgd", "AutoAttack APGD", "adv-lib APGD")  # the others run with the first seed alone
TOLERANCE = 1e-3  # of the budget, to peers whose rounding overruns it

# What AutoAttack's APGD leaves at eps 5 and 10, mean of three seeds.
APGD = {"mnist_mlp": (0.662, 0.164), "mnist_lenet5": (0.620, 0.112)}


def ours(attack: Callable[..., Any], **settings: Any) -> Peer:
    def run(model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        adv: Tensor = attack(model, images, labels, eps=eps, steps=STEPS, generator=generator, **settings)
        return adv

    return Peer(run)


CONTESTANTS = {
    "ours: apgd": ours(attacks.apgd, norm=1),
    "ours: apgd, early stop": ours(attacks.apgd, norm=1, early_stop=True),
    "ours: slide": ours(attacks.slide),
    "ours: pgd, L1": ours(attacks.pgd, norm=1),
    **PEERS,
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def network(name: str, shared: Path) -> nn.Module:
    model = networks.build(NETWORKS[name], (1, 28, 28), 10)
    return networks.load_weights(model, shared / "models" / f"{name}.safetensors").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digits(shared: Path) -> data.Dataset:
    return data.load("mnist", shared / "data" / "mnist", "test")


def test_l1_attacks(network: nn.Module, name: str, digits: data.Dataset, keep_record: Callable[..., None]) -> None:
    first = digits[:500]
    at_hand, absent = [], {}
    for contestant, peer in CONTESTANTS.items():
        try:  # also does what happens once, as imports do
            timed(peer, network, digits[:4], 10.0, 0)
            at_hand.append(contestant)
        except ImportError as error:
            absent[contestant] = str(error)
    smallest: dict[str, tuple[Tensor, dict[str, float]]] = {}  # what does not depend on the budget
    for eps, limit in zip((5.0, 10.0), APGD[name], strict=True):
        load = load_average()
        runs: dict[str, list[dict[str, float]]] = {contestant: [] for contestant in at_hand}
        for number, seed in enumerate(SEEDS):
            order = [c for c in at_hand if number == 0 or c in EVERY_ROUND][:: 1 if number % 2 == 0 else -1]
            for contestant in order:
                peer = CONTESTANTS[contestant]
                adv, times = smallest.get(contestant) or timed(peer, network, first, eps, seed)
                if peer.minimal:
                    smallest[contestant] = adv, times
                runs[contestant].append(times | judge(peer, network, first, adv, eps))
        keep_record(
            {
                "op": f"L1 attacks on {name}, eps {eps:g}",
                "network": name,
                "eps": eps,
                "shape": [len(first), 784],
                "device": "cpu",
                "threads": torch.get_num_threads(),
                "steps": STEPS,
                "load": [load, load_average()],
                "attacks": [summary(contestant, found, runs["ours: apgd"]) for contestant, found in runs.items()],
                "absent": absent,
                "required": {"AutoAttack APGD": 3.0} if name == "mnist_mlp" else {},
                "limit_robust": limit,
            }
        )
        for contestant in (c for c in CONTESTANTS if c.startswith("ours")):
            assert all(run["over_budget"] <= 0 and run["out_of_box"] <= 0 for run in runs[contestant]), contestant
        assert statistics.mean(run["robust"] for run in runs["ours: apgd"]) <= limit


def timed(
    peer: Peer, network: nn.Module, images: data.Dataset, eps: float, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """What the attack returns, its time, and the processor's time, which says more on a busy machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peers warn about is theirs
        begin, begin_cpu = time.perf_counter(), time.process_time()
        adv = peer.run(network, images.images, images.labels, eps, seed)
        return adv, {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}


def judge(peer: Peer, network: nn.Module, images: data.Dataset, adv: Tensor, eps: float) -> dict[str, float]:
    """Accuracy when only points within the budget count, and how far points leave ball and box."""
    length = (adv.double() - images.images.double()).abs().flatten(1).sum(1)
    with torch.no_grad():
        right = network(adv).argmax(1) == images.labels
        clean = network(images.images).argmax(1) == images.labels
    return {
        "robust": float(torch.where(length <= eps + TOLERANCE, right, clean).double().mean()),
        "over_budget": 0.0 if peer.minimal else max(0.0, float((length - eps).max())),
        "out_of_box": max(0.0, float((adv - 1).max()), float(-adv.min())),
    }


def summary(contestant: str, runs: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, Any]:
    def ratio(field: str) -> float:
        ratios = [run[field] / ours[field] for run, ours in zip(runs, reference, strict=False)]
        return float(f"{statistics.median(ratios):.3g}")

    return {
        "name": contestant,
        "robust": [round(run["robust"], 4) for run in runs],
        "seconds": [float(f"{run['seconds']:.3g}") for run in runs],
        "cpu_seconds": [float(f"{run['cpu_seconds']:.3g}") for run in runs],
        "ratio": ratio("seconds"),
        "cpu_ratio": ratio("cpu_seconds"),
        "gradients": CONTESTANTS[contestant].gradients,
        **{field: float(f"{max(run[field] for run in runs):.2g}") for field in ("over_budget", "out_of_box")},
    }
