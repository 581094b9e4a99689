"""A run of `sparring retrain` as its report needs it: records, sets of images, and series of numbers from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sparring import _files
from sparring._text import plural
from sparring.data import Dataset
from sparring.figures import Series
from sparring.report.page import load
from sparring.runs import Record, Run, RunError
from sparring.training.config import RetrainConfig
from sparring.training.fooling import FoolingSet
from sparring.training.state import read_sets

# Metric 7 has a group of numbers, and here a section, for each process.
PROCESSES = {"7-de": "differential evolution", "7-prox": "soft threshold", "7-l1": "projected L1"}
NUMBERED = ("0", "1", "2", "3", "4", "5", "6", *PROCESSES, "8", "9", "10")


@dataclass(frozen=True)
class Stage:
    """The attempts of one attack on the network under training: a file's name, a title, and when it was."""

    file: str
    title: str
    text: str
    attempts: FoolingSet


def keep_reference(run: Run, real: Dataset) -> None:
    """Store in the run what its report shows of the real images: one of each class, and how sparse they are.

    Nothing is done if the run has it already.
    """
    path = run.path / "real.safetensors"
    if path.exists():
        return
    first = torch.stack([(real.labels == c).nonzero()[0, 0] for c in range(real.classes)])
    sparsity = (real.images > 0).flatten(1).sum(1)
    _files.write(path, _files.packed({"images": real.images[first], "sparsity": sparsity}))


class Experiment:
    """What a run holds, finished or not; `RunError` before its first epoch."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config
        self.settings: dict[str, Any] = asdict(RetrainConfig.from_json(run.config["retrain"]))
        self.records = run.records()
        self.epochs = [record for record in self.records if record["kind"] == "epoch"]
        self.attacks = [record for record in self.records if record["kind"] == "attack"]
        self.verdict = next((record for record in self.records if record["kind"] == "verdict"), None)
        found = run.checkpoint()
        if found is None or not self.epochs:
            raise RunError(f"{run.path} has no finished epoch yet: there is nothing to report")
        self.fresh = read_sets(found[0], "fresh")
        self.final = read_sets(found[0], "final")
        self.others = {metric: read_sets(found[0], metric) for metric in ("6", *PROCESSES)}
        self.classes = int(self.config["data"]["classes"])
        self.marks = [float(record["epoch"]) for record in self.attacks]
        self.real = load(run.path / "real.safetensors")

    def stages(self) -> list[Stage]:
        """The attacks before, amid and after retraining, as far as they have been."""
        stages = []
        if self.fresh:
            stages.append(Stage("before", "Before", "attack on the network that saw real images only", self.fresh[0]))
        if len(self.fresh) > 2 or (len(self.fresh) == 2 and not self.final):
            middle = len(self.fresh) // 2
            text = f"after {middle} {plural('generation', middle)}"
            stages.append(Stage("during", "During", text, self.fresh[middle]))
        for final in self.final:
            count = len(self.fresh)
            text = f"the last attack, after {count} {plural('generation', count)}"
            stages.append(Stage("after", "After", text, final))
        return stages

    def limit(self, entries: int) -> int:
        """The most entries above black that an image of so many may have to qualify."""
        return RetrainConfig(s_max=self.settings["s_max"]).sparsity_limit(entries)

    def over_epochs(self, metrics: Mapping[str, str]) -> dict[str, Series]:
        """Metrics over the epochs that have them, by the name in a figure; without those that no epoch has."""
        return _series(self.epochs, metrics, "epoch")

    def over_generations(self, metrics: Mapping[str, str]) -> dict[str, Series]:
        """The same of attacks, over the generations of retraining before them."""
        return _series(self.attacks, metrics, "generation")

    def by_class(self, name: str, records: Sequence[Record]) -> np.ndarray:
        """A metric (classes, records), NaN where a class has none."""
        return np.array(
            [[record.get(f"{name}/class_{c}", np.nan) for record in records] for c in range(self.classes)], dtype=float
        )


def _series(records: Sequence[Record], metrics: Mapping[str, str], x: str) -> dict[str, Series]:
    found: dict[str, Series] = {}
    for name, metric in metrics.items():
        having = [record for record in records if metric in record]
        if having:
            found[name] = [float(record[x]) for record in having], [float(record[metric]) for record in having]
    return found


def in_words(series: Mapping[str, Series]) -> str:
    """Such as "caught from 0.1 to 0.9; p(fake class) from 0 to 0.8": first and last values."""
    return "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, (_, values) in series.items())
