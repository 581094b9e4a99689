"""A run of `sparring mixture` as its report needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from sparring.figures import Series
from sparring.report.mixture.snapshots import shown_eps
from sparring.report.page import load
from sparring.runs import Record, Run, RunError
from sparring.training import FitConfig


class Experiment:
    """What a run holds, finished or not; `RunError` before its first record."""

    def __init__(self, run: Run) -> None:
        self.run = run
        usual = {"combine": "probs", "pretrain_epochs": 0, "pretrained": None}
        self.config = {"device": "", "threads": "", **run.config, "mixture": usual | run.config["mixture"]}
        self.fit = FitConfig.from_json(run.config["fit"])
        self.settings: dict[str, Any] = asdict(self.fit)
        self.members: int = run.config["mixture"]["members"]
        self.epochs: list[Record] = [record for record in run.records() if record["kind"] in ("start", "epoch")]
        found = run.checkpoint()
        if found is None or not self.epochs:
            raise RunError(f"{run.path}: training has not begun, there is nothing to report")
        tensors, state = found
        self.stopped: str = state["stopped"]
        self.weights: torch.Tensor = tensors["weights/history"]  # float32 (steps + 1, M)
        self.first, self.last = (load(run.path / f"{name}.safetensors") for name in ("first", "last"))
        self.eps = shown_eps(self.fit)

    @property
    def start(self) -> Record:
        """What was measured before the first step."""
        return self.epochs[0]

    @property
    def end(self) -> Record:
        """What was measured last."""
        return self.epochs[-1]

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or training has stopped by itself."""
        return bool(self.stopped) or self.end["epoch"] >= self.fit.epochs

    def over_epochs(self, metrics: Mapping[str, str]) -> dict[str, Series]:
        """Metrics over the epochs that have them, by the name in a figure; without those that no epoch has."""
        series: dict[str, Series] = {}
        for name, metric in metrics.items():
            having = [record for record in self.epochs if metric in record]
            if having:
                series[name] = [float(one["epoch"]) for one in having], [float(one[metric]) for one in having]
        return series
