"""Training with a penalty on layers' norms, against weight decay and dropout: bounds, errors, and robustness.

    python examples/lipschitz_training.py path/to/mnist out

trains the network FC100-100-10 (sigmoid; Szegedy et al. 2014) in every way with every seed, and writes out/table.md,
out/table.csv and out/distortion.png. What is finished is kept in out/cells, so that the command goes on where it was
stopped. This size takes a quarter of an hour or more on two cores; `--quick` a minute.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sparring as sp
from sparring import attacks, figures, lipschitz
from sparring.data import Dataset
from sparring.lipschitz.penalties import Kind
from sparring.training import FitConfig, fit
from sparring.training.streams import global_stream, stream

FGS = 0.1
FARTHEST = 8.0  # L2 distance within which every image is expected to be fooled


class Arm(NamedTuple):
    """A way to train."""

    name: str
    dropout: float = 0.0
    weight_decay: float = 0.0
    penalty: tuple[Kind, float] | None = None  # and its weight
    bound: float = math.inf


ARMS = (
    Arm("plain"),
    Arm("weight decay 1e-4", weight_decay=1e-4),
    Arm("weight decay 3e-4", weight_decay=3e-4),
    Arm("dropout .2", dropout=0.2),
    Arm("penalty log .03", penalty=("log", 0.03)),
    Arm("penalty log .1", penalty=("log", 0.1)),
    Arm("penalty square .001", penalty=("square", 0.001)),
    Arm("penalty log .03, weight decay 1e-4", penalty=("log", 0.03), weight_decay=1e-4),
    Arm("projection 5", bound=5.0),
)

COLUMNS = {
    "error": ("clean error, %", 2),
    "product": ("product of bounds", 1),
    "upper": ("bound of the network", 1),
    "fgs": (f"accuracy under FGS {FGS:g}, %", 1),
    "distortion": ("minimal L2 distortion", 3),
    "radius": ("certified L2 radius", 3),
}


def main() -> None:
    options = parsed()
    train, test = (sp.data.load("mnist", options.data, split) for split in ("train", "test"))
    cells = [cell(options, train, test, arm, seed) for seed in range(options.seeds) for arm in ARMS]
    with (options.out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", "seed", *COLUMNS], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(cells)
    (options.out / "table.md").write_text(table(cells))
    figure(cells).savefig(options.out / "distortion.png", dpi=figures.DPI)
    print(table(cells))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MNIST's four files")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=0, help="training images; 0: all")
    parser.add_argument(
        "--attacked", type=int, default=500, help="test images whose minimal distortion is searched for"
    )
    parser.add_argument("--activation", choices=["sigmoid", "relu"], default="sigmoid")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs of 5000 images, 50 attacked")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs, options.images, options.attacked = 1, 2, 5000, 50
    return options


def cell(options: argparse.Namespace, train: Dataset, test: Dataset, arm: Arm, seed: int) -> dict[str, Any]:
    """The numbers of one trained network; read from its file if it is there."""
    file = (
        options.out / "cells" / f"{options.activation}-{arm.name.replace(', ', ' ').replace(' ', '-')}-seed{seed}.json"
    )
    if file.exists():
        return dict(json.loads(file.read_text()))
    model = network(options.activation, arm.dropout, seed)
    config = FitConfig(
        epochs=options.epochs, optimizer="adam", lr=3e-3, schedule="cosine", weight_decay=arm.weight_decay,
        label_smoothing=0.0, test_eps=(), real_images=options.images, seed=seed,
    )  # fmt: skip
    kind, weight = arm.penalty or ("log", 0.0)
    regularizer = lipschitz.penalty(model, kind=kind, weight=weight) if weight else None
    held = partial(lipschitz.project_, bound=arm.bound) if arm.bound < math.inf else None
    last = fit(model, train, test, config, regularizer=regularizer, after_step=held).history[-1]
    sample = test.subset(options.attacked, stream(0, "attacked"))
    report = lipschitz.layer_bounds(model, test.input_shape)
    moved = attacks.fgsm(model, test.images, test.labels, eps=FGS)
    assert isinstance(moved, Tensor)
    distortions = minimal_distortions(model, sample)
    result = {
        "arm": arm.name,
        "seed": seed,
        "error": 100 * (1 - last["test/accuracy"]),
        "product": report.product,
        "upper": report.upper,
        "fgs": 100 * float((logits(model, moved).argmax(1) == test.labels).double().mean()),
        "distortion": float(distortions.mean()),
        "radius": float(lipschitz.certified_radius(model, sample.images, sample.labels, report=report).mean()),
        "distortions": distortions.tolist(),
    }
    print(", ".join(f"{name} {result[name]:.4g}" if name in COLUMNS else str(result[name]) for name in [*result][:-1]))
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(result))
    draft.replace(file)
    return result


def network(activation: str, dropout: float, seed: int) -> nn.Sequential:
    """784-100-100-10."""
    make: Callable[[], nn.Module] = nn.Sigmoid if activation == "sigmoid" else nn.ReLU
    with global_stream(seed, "network"):
        linear = [nn.Linear(784, 100), nn.Linear(100, 100), nn.Linear(100, 10)]
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Flatten(), linear[0], make(), *drop, linear[1], make(), *drop, linear[2])


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    result: Tensor = model(images)
    return result


def minimal_distortions(model: nn.Module, sample: Dataset, halvings: int = 10) -> Tensor:
    """L2 norm of the smallest change found that fools the network, (N,): 0 where it is wrong without any.

    PGD on the margin in balls whose radius is bisected, for each image by itself.
    """
    images, labels = sample.images, sample.labels
    found = torch.full((len(images),), FARTHEST, dtype=torch.float64)
    found[logits(model, images).argmax(1) != labels] = 0
    below = torch.zeros_like(found)
    for _ in range(halvings):
        middle = (below + found) / 2
        eps = middle.clamp(min=1e-6)
        moved = attacks.pgd(model, images, labels, eps=eps, norm=2, steps=40, random_start=False, loss="margin")
        assert isinstance(moved, Tensor)
        fooled = logits(model, moved).argmax(1) != labels
        size = (moved - images).flatten(1).double().norm(dim=1)
        found = torch.where(fooled, torch.minimum(found, size), found)
        below = torch.where(fooled, below, middle).minimum(found)
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds."""
    lines = [f"| | {' | '.join(head for head, _ in COLUMNS.values())} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for arm in ARMS:
        of = [one for one in cells if one["arm"] == arm.name]
        shown = [spread([one[name] for one in of], digits) for name, (_, digits) in COLUMNS.items()]
        lines.append(f"| {arm.name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def figure(cells: list[dict[str, Any]]) -> Any:
    """For each way to train, the share of images that withstand changes of so much; over all seeds."""
    grid = [0.05 * i for i in range(61)]
    series = {}
    for arm in ARMS:
        found = torch.tensor([value for one in cells if one["arm"] == arm.name for value in one["distortions"]])
        series[arm.name] = (grid, [float((found > at).double().mean()) for at in grid])
    shown = {
        name: series[name] for name in ("plain", "weight decay 1e-4", "dropout .2", "penalty log .1", "projection 5")
    }
    return figures.curves(
        figures.LIGHT, shown, x="L2 distance from the image", y="not fooled", shares=True, whole=False
    )


if __name__ == "__main__":
    main()
