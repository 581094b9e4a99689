"""Variants of retraining side by side: each with several seeds, in a table of means and spreads."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from sparring.data import Dataset
from sparring.training.building import NetworkSource
from sparring.training.config import RetrainConfig
from sparring.training.loop import RetrainResult, retrain

Changes = Mapping[str, Any]

# Both labellings, on the same network and on a fresh one in every generation; and a pool that moves with the network.
VARIANTS: Mapping[str, Changes] = {
    "fake classes, same network": {"labelling": "fake", "network": "continue"},
    "fake classes, fresh networks": {"labelling": "fake", "network": "fresh"},
    "maximal entropy, same network": {"labelling": "uniform", "network": "continue"},
    "maximal entropy, fresh networks": {"labelling": "uniform", "network": "fresh"},
    "continuous": {"labelling": "fake", "network": "continue", "mode": "continuous"},
}

# Title of each column of the table, the number it shows, and whether that is a share.
COLUMNS: Mapping[str, tuple[str, bool]] = {
    "generations": ("generations", False),
    "robust": ("robust", True),
    "first yield (0)": ("yield_first", True),
    "last yield (0)": ("yield_last", True),
    "yield of the final attack (8)": ("yield_final", True),
    "fresh caught (4)": ("4/caught", True),
    "past fresh caught (5)": ("5/caught", True),
    "independent caught (6)": ("6/caught", True),
    "evolution caught (7)": ("7-de/caught", True),
    "test accuracy before": ("accuracy_before", True),
    "after (10)": ("10/accuracy", True),
    "test images rejected (10)": ("10/false_alarm", True),
    "best H": ("best_h", True),
}


@dataclass(frozen=True)
class Outcome:
    """One experiment of a comparison: its variant and seed, and the numbers that `COLUMNS` shows, where it has them."""

    variant: str
    seed: int
    numbers: dict[str, float]


def compare(
    train: Dataset,
    test: Dataset,
    network: NetworkSource,
    config: RetrainConfig,
    *,
    variants: Mapping[str, Changes] = VARIANTS,
    seeds: Sequence[int] = (0, 1, 2),
    processes: int = 1,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run every variant of `config` with every seed, and return the outcomes in that order.

    Parameters
    ----------
    train, test, network
        As for :func:`sparring.training.retrain`.
    variants
        What each changes in `config`, by its name.
    processes
        How many experiments run at a time, each on one thread; with more than 1 in processes of their own, so that
        `network` has to be a name or a function of a module, and a script needs ``if __name__ == "__main__":``.
    on_outcome
        Called with each outcome, in order.
    """
    jobs = [(name, seed, config.replace(**changes, seed=seed)) for name, changes in variants.items() for seed in seeds]
    outcomes = []
    with contextlib.ExitStack() as stack:
        work = partial(_experiment, train, test, network)
        found: Iterable[Outcome] = map(work, jobs)
        if processes > 1:
            pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=get_context("spawn")))
            found = pool.map(work, jobs)
        for outcome in found:
            outcomes.append(outcome)
            if on_outcome is not None:
                on_outcome(outcome)
    return outcomes


def as_csv(outcomes: Sequence[Outcome]) -> str:
    """A line for each experiment; empty where it has no such number."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    names = [name for name, _ in COLUMNS.values()]
    writer.writerow(["variant", "seed", *names])
    for outcome in outcomes:
        writer.writerow([outcome.variant, outcome.seed, *(outcome.numbers.get(name, "") for name in names)])
    return lines.getvalue()


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """A row for each variant: mean ± standard deviation over its seeds, shares in per cent."""
    rows = [["variant", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for variant in dict.fromkeys(outcome.variant for outcome in outcomes):
        of = [outcome.numbers for outcome in outcomes if outcome.variant == variant]
        cells = [
            _mean_and_spread([numbers[name] for numbers in of if name in numbers], 100 if share else 1)
            for name, share in COLUMNS.values()
        ]
        rows.append([variant, *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _experiment(train: Dataset, test: Dataset, network: NetworkSource, job: tuple[str, int, RetrainConfig]) -> Outcome:
    variant, seed, config = job
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Outcome(variant, seed, _numbers(retrain(train, test, network, config)))
    finally:
        torch.set_num_threads(threads)


def _numbers(result: RetrainResult) -> dict[str, float]:
    attacks = [record for record in result.history if record["kind"] == "attack"]
    epochs = [record for record in result.history if record["kind"] == "epoch"]
    before = [record for record in epochs if record["generation"] == 0]
    shown = {name for name, _ in COLUMNS.values()}
    return {
        "generations": result.verdict.generations,
        "robust": float(result.verdict.robust and result.verdict.generations > 0),
        "yield_first": attacks[0]["0/yield"],
        "yield_last": attacks[-1]["0/yield"],
        "yield_final": result.verdict.fooled,
        "accuracy_before": before[-1]["10/accuracy"],
        "best_h": result.best_h,
        **{name: value for name, value in epochs[-1].items() if name in shown and name != "generations"},
    }


def _mean_and_spread(values: Sequence[float], scale: float) -> str:
    if not values:
        return ""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
    return f"{scale * mean:.1f} ± {scale * spread:.1f}"
