"""Many threads at once: new models, one shared model, one shared ensemble, stacked ensembles, training steps between.

    python tests/campaigns/stress.py --seconds 60 --threads 8 --seed 0

Every gradient is compared with plain autograd's on a copy, and all flags with what they were. CI runs a few seconds.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp

SHAPE, CLASSES, BATCH = (1, 8, 8), 5, 6


class Functional(nn.Module):
    """A forward that has to be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.max_pool2d(F.relu(self.norm(self.conv(x - 0.5))), 2).flatten(1))


class Straight(nn.Module):
    """Left to autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.f = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x + ((4 * x).round() / 4 - x).detach())


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, CLASSES))


def network(name: str) -> Callable[[], nn.Module]:
    return lambda: sp.networks.build(name, SHAPE, CLASSES)


MAKE: list[Callable[[], nn.Module]] = [
    perceptron, Functional, Straight, network("mlp"), network("lenet5"),
    lambda: sp.Ensemble([perceptron(), perceptron()]),
    lambda: sp.Ensemble([perceptron(), Straight(), Functional()]),
    lambda: sp.StackedEnsemble([perceptron(), perceptron()]),
    lambda: sp.StackedEnsemble([network("lenet5")() for _ in range(2)]),
]  # fmt: skip


def flags(model: nn.Module) -> list[Any]:
    return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]


def truth(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf.clone()), labels, reduction="sum"), leaf)
    return grad


def same(found: Tensor, right: Tensor, what: str) -> None:
    off = float((found - right).abs().max())
    if not off <= 1e-9 * max(1.0, float(right.abs().max())):
        raise AssertionError(f"{what}: off by {off:.3g} of {float(right.abs().max()):.3g}")


class Shared:
    """A model that all threads use, with what is right for it until the next training step."""

    def __init__(self, model: nn.Module, draw: random.Random) -> None:
        self.model = model.double().train()
        for parameter in [*model.parameters()][::3]:
            parameter.requires_grad_(draw.random() < 0.7)
        self.before = flags(model)
        self.x, self.labels = _images(draw)
        self.settle()

    def settle(self) -> None:
        still = copy.deepcopy(self.model).eval()
        self.grad = truth(still, self.x, self.labels)
        self.adv = sp.attacks.pgd(still, self.x, self.labels, eps=0.1, steps=2)
        with torch.no_grad():
            self.logits = still(self.x)

    def train(self) -> None:
        wanted = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(wanted, 1e-2, fused=True)
        F.cross_entropy(self.model(self.x), self.labels).backward()
        optimizer.step()
        self.settle()


def _images(draw: random.Random) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    x = torch.rand(BATCH, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def on_a_new_model(draw: random.Random, shared: list[Shared]) -> None:
    model = draw.choice(MAKE)().double().eval()
    x, labels = _images(draw)
    same(sp.input_grad(model, x, labels).grad, truth(model, x, labels), f"new {type(model).__name__}")
    if draw.random() < 0.5:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        F.cross_entropy(model.train()(x), labels).backward()
        optimizer.step()
        model.eval()
        same(sp.input_grad(model, x, labels).grad, truth(model, x, labels), f"trained {type(model).__name__}")


def gradient_of_a_shared_model(draw: random.Random, shared: list[Shared]) -> None:
    one = draw.choice(shared)
    plan = sp.lower(one.model) if draw.random() < 0.3 else one.model
    found = sp.attacks.pgd(plan, one.x, one.labels, eps=0.1, steps=2)
    same(found, one.adv, f"attack on a shared {type(one.model).__name__}")


def inference_of_a_shared_copy(draw: random.Random, shared: list[Shared]) -> None:
    """Plain inference, and gradients, of a module in eval mode that several threads use at once."""
    one = draw.choice(shared)
    still = one.still  # type: ignore[attr-defined]
    with torch.no_grad():
        same(still(one.x), one.logits, f"inference of {type(still).__name__}")
    same(sp.input_grad(still, one.x, one.labels).grad, one.grad, f"gradient of a shared {type(still).__name__}")


TASKS = (on_a_new_model, gradient_of_a_shared_model, gradient_of_a_shared_model, inference_of_a_shared_copy)


def stress(seconds: float, threads: int, seed: int) -> tuple[int, list[str]]:
    """How many tasks were done in so many seconds, and what went wrong."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    shared = [Shared(make(), draw) for make in MAKE]
    errors: list[str] = []
    counts = [0] * threads
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and not errors:
            for one in shared:
                one.still = copy.deepcopy(one.model).eval()  # type: ignore[attr-defined]
            round_end = min(end, time.monotonic() + 2)

            def work(index: int, seed: int, round_end: float = round_end) -> None:
                mine = random.Random(seed)
                while time.monotonic() < round_end and not errors:
                    try:
                        mine.choice(TASKS)(mine, shared)
                    except Exception:
                        errors.append(traceback.format_exc())
                    counts[index] += 1

            workers = [threading.Thread(target=work, args=(i, draw.getrandbits(32))) for i in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            for one in shared:
                if flags(one.model) != one.before:
                    errors.append(f"flags of the shared {type(one.model).__name__} are not as they were")
                one.train()
    finally:
        torch.set_num_threads(before)
    return sum(counts), errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count, errors = stress(options.seconds, options.threads, options.seed)
    for error in errors:
        print(error)
    print(f"{count} tasks on {options.threads} threads in {options.seconds:g} s, {len(errors)} went wrong")
    return min(len(errors), 99)


if __name__ == "__main__":
    sys.exit(main())
