"""Mixtures of 1, 10 and 100 networks, trained against attacks on the mixture: accuracy on test images and under attack.

    python examples/mixture_table.py path/to/mnist out

trains every size of mixture with every budget and seed, and writes out/table.md and out/table.csv. What is finished is
kept in out/cells, so that the command goes on where it was stopped. This size takes about an hour on two cores. The
original's (100 epochs of all images, convolutional networks with 710 218 parameters), on a GPU:

    python examples/mixture_table.py path/to/mnist out --model model1 --epochs 100 --images 0 --optimizer adadelta \\
        --lr 0.1 --device cuda
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

import sparring as sp
from sparring.training import FitConfig, fit_mixture
from sparring.training.streams import stream


def main() -> None:
    options = parsed()
    train, test = (sp.data.load("mnist", options.data, split).to(options.device) for split in ("train", "test"))
    cells = [
        cell(options, train, test, members, eps, seed)
        for seed in range(options.seeds)
        for members in options.members
        for eps in options.eps
    ]
    with (options.out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*cells[0]])
        writer.writeheader()
        writer.writerows(cells)
    (options.out / "table.md").write_text(table(cells))
    print(table(cells))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MNIST's four files")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--eps", type=float, nargs="+", default=[0.3, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="mlp", help="a network of sparring.networks")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=10_000, help="training images; 0: all")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def cell(options: argparse.Namespace, train: Any, test: Any, members: int, eps: float, seed: int) -> dict[str, float]:
    """The accuracies of one trained mixture; read from its file if it is there."""
    file = options.out / "cells" / f"{options.model}-{members}-eps{eps:g}-seed{seed}.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    networks = [
        sp.networks.build(options.model, train.input_shape, train.classes, generator=stream(seed, "member", i))
        for i in range(members)
    ]
    mixture = sp.StackedEnsemble(networks).to(options.device)
    config = FitConfig(
        epochs=options.epochs,
        eps=eps,
        optimizer=options.optimizer,
        lr=options.lr,
        real_images=options.images,
        seed=seed,
    )
    begin = time.perf_counter()
    last = fit_mixture(mixture, train, test, config).history[-1]
    wanted = ("test/", "fgs/0.", "fgs/1/", "weights/")
    numbers = {name: value for name, value in last.items() if name.startswith(wanted)}
    result = {"members": members, "eps": eps, "seed": seed, **numbers, "seconds": time.perf_counter() - begin}
    print(f"{members} members, eps {eps:g}, seed {seed}: {result['test/accuracy']:.3f}, {result['seconds']:.0f} s")
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(result))
    draft.replace(file)
    return result


def table(cells: list[dict[str, float]]) -> str:
    """Mean ± standard deviation over the seeds, in per cent."""
    tests = [name for name in cells[0] if name.endswith("/accuracy") and name != "fgs/0/accuracy"]
    heads = [name.removesuffix("/accuracy").replace("test", "clean").replace("fgs/", "FGS ") for name in tests]
    lines = [f"| members | trained with eps | {' | '.join(heads)} |", f"|{'---:|' * (len(heads) + 2)}"]
    for members, eps in sorted({(one["members"], one["eps"]) for one in cells}):
        of = [one for one in cells if (one["members"], one["eps"]) == (members, eps)]
        shown = [spread([100 * one[name] for one in of]) for name in tests]
        lines.append(f"| {members} | {eps:g} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
