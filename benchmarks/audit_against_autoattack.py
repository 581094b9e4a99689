"""The standard audit beside AutoAttack's standard version, the same images, one thread, CPU time.

AutoAttack is not on PyPI: put a copy of https://github.com/fra31/auto-attack on the path, and name the networks.

    PYTHONPATH=auto-attack python benchmarks/audit_against_autoattack.py --shared shared --images 60

Prints, for each network and threat model, the share that each leaves standing, the images that only one of the two
fools, and the ratio of CPU times. ``--minimal`` compares the nearest points instead, with adversarial-library's ALMA,
DDN (100 steps) and PDPGD (500), its copy on the path as well.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sparring as sp

# What leaves between a tenth and nine tenths standing.
THREATS = {
    "mnist_robust_cnn": {"L1": 10.0, "L2": 1.5, "Linf": 0.2},
    "cifar_robust_cnn": {"L1": 2.0, "L2": 0.4, "Linf": 3 / 255},
    "mnist_mlp": {"L1": 8.0, "L2": 1.0, "Linf": 0.07},
    "mnist_lenet5": {"L1": 8.0, "L2": 1.2, "Linf": 0.1},
}


def small_cnn(channels: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


class Normalised(nn.Sequential):
    """CIFAR-10's usual mean and deviation in front of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return super().forward((x - self.mean) / self.std)


def load(shared: Path, name: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    kind, folder = ("cifar10", "cifar10") if name.startswith("cifar") else ("mnist", "mnist")
    test = sp.data.load(kind, split="test", data_dir=shared / "data" / folder)
    file = shared / "models" / f"{name}.safetensors"
    model: nn.Module
    if name.endswith("robust_cnn"):
        model = small_cnn(*((1, 1568) if kind == "mnist" else (3, 2048)))
        model.load_state_dict(load_file(file))
        model = model if kind == "mnist" else Normalised(model)
    else:
        model = sp.networks.load_weights(
            sp.networks.build({"mnist_mlp": "mlp-300-100", "mnist_lenet5": "lenet5"}[name], (1, 28, 28), 10), file
        )
    return model.eval(), test.images[:images], test.labels[:images]


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.process_time()
    return run(), time.process_time() - begun


def audits(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> str:
    from autoattack import AutoAttack

    right = model(x).argmax(1) == y
    adversary = AutoAttack(model, norm=norm, eps=eps, version="standard", verbose=False, device="cpu", seed=0)
    adv, theirs_s = timed(lambda: adversary.run_standard_evaluation(x, y, bs=250))
    theirs = right & (model(adv).argmax(1) == y)
    found, ours_s = timed(lambda: sp.evaluate(model, x, y, norm=norm, eps=eps))
    ours = found.robust
    return (
        f"AutoAttack {theirs.double().mean():.3f}  audit {ours.double().mean():.3f}  only AutoAttack fools "
        f"{int((ours & ~theirs).sum())}, only the audit {int((theirs & ~ours).sum())}  time {ours_s / theirs_s:.2f}"
    )


def nearest(model: nn.Module, x: Tensor, y: Tensor) -> str:
    from adv_lib.attacks import alma, ddn, pdpgd

    right = model(x).argmax(1) == y
    x, y = x[right], y[right]

    def median(adv: Tensor, norm: float) -> float:
        away = torch.linalg.vector_norm((adv - x).flatten(1), norm, dim=1)
        return float(away.masked_fill(model(adv).argmax(1) == y, torch.inf).median())

    peers: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "ALMA-100": (2, lambda: alma(model, x, y, num_steps=100, α=0.5, init_lr_distance=1.0)),
        "DDN-100": (2, lambda: ddn(model, x, y, steps=100)),
        "minimal-100": (2, lambda: sp.attacks.minimal(model, x, y, norm=2, steps=100)),
        "minimal": (2, lambda: sp.attacks.minimal(model, x, y, norm=2)),
        "PDPGD-500": (1, lambda: pdpgd(model, x, y, norm=1, num_steps=500)),
        "minimal L1": (1, lambda: sp.attacks.minimal(model, x, y, norm=1)),
    }  # fmt: skip
    parts = []
    for name, (norm, run) in peers.items():
        adv, seconds = timed(run)
        parts.append(f"{name} {median(adv, norm):.3f} ({seconds:.1f} s)")
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/ and models/")
    parser.add_argument("--networks", nargs="+", default=[*THREATS], choices=[*THREATS])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--minimal", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in options.networks:
        model, x, y = load(options.shared, name, options.images)
        if options.minimal:
            print(f"{name}: {nearest(model, x, y)}", flush=True)
            continue
        for norm, eps in THREATS[name].items():
            print(f"{name} {norm} {eps:.4g}: {audits(model, x, y, norm, eps)}", flush=True)


if __name__ == "__main__":
    main()
