from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
import torch

from sparring.data import Dataset
from sparring.training import RetrainConfig, retrain
from sparring.training.compare import COLUMNS, VARIANTS, Outcome, as_csv, as_markdown, compare


def test_every_variant_is_run(train: Dataset, test: Dataset, network: Any, config: RetrainConfig) -> None:
    settings = replace(config, generations=1, steps=20, s_max=8)
    threads = torch.get_num_threads()
    seen: list[Outcome] = []
    outcomes = compare(train, test, network, settings, seeds=(4,), on_outcome=seen.append)
    assert [(outcome.variant, outcome.seed) for outcome in outcomes] == [(name, 4) for name in VARIANTS]
    assert seen == outcomes
    assert torch.get_num_threads() == threads
    result = retrain(train, test, network, replace(settings, labelling="uniform", network="fresh", seed=4))
    found = outcomes[3].numbers
    assert found["yield_final"] == result.verdict.fooled
    assert found["10/accuracy"] == [r for r in result.history if r["kind"] == "epoch"][-1]["10/accuracy"]
    assert found["accuracy_before"] == result.history[config.pretrain_epochs - 1]["10/accuracy"]


def test_processes_give_what_one_gives(train: Dataset, test: Dataset, config: RetrainConfig) -> None:
    settings = replace(config, generations=1, steps=20, s_max=8)
    variants = {"same": VARIANTS["fake classes, same network"]}
    one, two = (
        compare(train, test, "mlp", settings, variants=variants, seeds=(1,), processes=processes)
        for processes in (1, 2)
    )
    assert one == two


def test_tables_hold_mean_and_spread() -> None:
    outcomes = [
        Outcome("a", 0, {"generations": 2, "robust": 1.0, "yield_final": 0.5}),
        Outcome("a", 1, {"generations": 4, "robust": 1.0, "yield_final": 0.25}),
        Outcome("b", 0, {"generations": 3, "robust": 0.0}),
    ]
    lines = as_markdown(outcomes).splitlines()
    head, _, first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert head == ["variant", *COLUMNS]
    shown = dict(zip(head, first, strict=True))
    assert shown["generations"] == "3.0 ± 1.4"
    assert shown["robust"] == "100.0 ± 0.0"
    assert shown["yield of the final attack (8)"] == "37.5 ± 17.7"
    assert dict(zip(head, second, strict=True))["yield of the final attack (8)"] == ""
    rows = list(csv.DictReader(io.StringIO(as_csv(outcomes))))
    assert [row["variant"] for row in rows] == ["a", "a", "b"]
    assert float(rows[1]["yield_final"]) == pytest.approx(0.25)
    assert rows[2]["yield_final"] == ""
