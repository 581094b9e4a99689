"""The command `sparring intriguing`: its run folder, its report, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparring.intriguing import STAGES, paper
from sparring.report.intriguing import story
from sparring.report.intriguing.words import claims, compared, said
from sparring.runs import Run
from test_cli import message, sparring

TINY = ("--data", "digits", "--threads", "1", "--images", "10", "--train-images", "200", "--epochs", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends well."""
    folder = tmp_path_factory.mktemp("runs")
    result = sparring("intriguing", *TINY, "--quick", "--runs-dir", str(folder))
    assert result.exit_code == 0, result.output
    assert "findings hold" in result.output
    assert "train FC100-100-10  test error" in result.output
    return folder / "digits-intriguing-1"


def test_the_folder(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["intriguing"] == {
        "images": 10, "train_images": 200, "epochs": 1, "units": 100, "draws": 5, "seed": 0,
    }  # fmt: skip
    assert (
        config["command"]
        == "sparring intriguing --threads 1 --data digits --quick --images 10 --train-images 200 --epochs 1"
    )
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == [*STAGES]
    assert len([*(run / "figures").glob("*.png")]) == 8


def test_the_page(run: Path) -> None:
    page = (run / "report.html").read_text()
    for part in ("The networks", "Networks of other kinds", "Networks trained on other images", "Units and directions"):
        assert part in page
    for row in paper.CROSS_MODEL.values():
        assert all(f"{value} %" in page for value in row)
    assert page.count("<img") == 8
    assert 'alt=""' not in page
    summary, sections = story(Run.open(run))
    assert [section.number for section in sections] == ["C3", "C1", "C4", "C5", "C5", "C6", "C9", "C10", "C11"]
    held = claims(_found(run)[0])
    assert len(held) == 7
    assert summary.headline == f"{sum(held.values())} of 7 findings hold"


def _found(run: Path) -> tuple[dict[str, object], dict[str, object]]:
    checkpoint = Run.open(run).checkpoint()
    assert checkpoint is not None
    tensors, state = checkpoint
    return state["numbers"], tensors


def test_claims_are_those_of_the_numbers() -> None:
    """Each one fails where the numbers say so."""
    cross = {
        "models": ["a", "b"],
        "errors": {"a": [1.0, 0.4], "b": [0.3, 1.0]},
        "distortion": {"a": 0.05, "b": 0.07},
        "noise": {"0.05": [0.0, 0.0], "0.1": [0.1, 0.1], "0.3": [0.5, 0.5]},
    }
    smooth = {"radii": [1.0, 2.0], "random": [0.0, 0.01], "optimised": [0.2, 0.9]}
    arms = {
        name: {"fgs": {"error": error}}
        for name, error in (("plain", 0.9), ("dropout", 0.9), ("weight decay", 0.8), ("FGS", 0.2))
    }
    sure = {name: {"fgs": {"confidence_wrong": value}} for name, value in (("RBF", 0.1), ("FC10(1e-4)", 0.8))}
    numbers = {"cross-model": cross, "smoothness": smooth, "FGS training": arms, "RBF": sure}
    assert len(claims(numbers)) == 5
    assert all(claims(numbers).values())
    worse = {
        "cross-model": {**cross, "errors": {"a": [0.9, 0.1], "b": [0.1, 1.0]}},
        "smoothness": {**smooth, "random": [0.1, 0.5]},
        "FGS training": {**arms, "FGS": {"fgs": {"error": 0.7}}},
        "RBF": {**sure, "RBF": {"fgs": {"confidence_wrong": 0.7}}},
    }
    assert not any(claims(worse).values())
    assert claims({}) == {}


@pytest.mark.parametrize(
    ("units", "random", "words"),
    [
        ((0.6, (0.5, 0.7)), (0.7, (0.65, 0.75)), "In a the two cannot be told apart."),
        ((0.6, (0.5, 0.65)), (0.7, (0.66, 0.75)), "In a directions are purer than units."),
        ((0.9, (0.8, 1.0)), (0.7, (0.66, 0.75)), "In a units are purer than directions."),
    ],
)
def test_units_and_directions_are_compared_by_their_intervals(units: Any, random: Any, words: str) -> None:
    of = {kind: {"purity": p, "interval": [*i]} for kind, (p, i) in (("units", units), ("random", random))}
    assert compared("a", of) == words


def test_a_table_of_transfer_in_words() -> None:
    """The weakest noise that is no smaller than the mean distortion is named, and the halves are told apart."""
    found = {
        "models": [*paper.HALVES],
        "clean": [0.02, 0.03, 0.04],
        "errors": dict(zip(paper.HALVES, ([1.0, 0.3, 0.1], [0.2, 1.0, 0.1], [0.1, 0.1, 1.0]), strict=True)),
        "distortion": dict.fromkeys(paper.HALVES, 0.05),
        "noise": {"0.04": [0.0] * 3, "0.06": [0.06] * 3, "0.3": [0.5] * 3},
    }
    words = said(found, {name: (*paper.CROSS_SET[name],) for name in paper.HALVES})
    assert "another one in 15.0 % on average (the paper: 10.0 %)" in words
    assert "Noise of 0.06 does so in 6.0 %, and 3.0 % are wrong without any change" in words
    assert "same images 25.0 % get through, to and from the third 10.0 %; in the paper 16.2 and 6.8 %" in words


def test_it_goes_on_and_writes_the_page_again(run: Path) -> None:
    result = sparring("intriguing", "--resume", "--runs-dir", str(run.parent))
    assert result.exit_code == 0, result.output
    assert "train" not in result.output
    assert sparring("report", str(run)).exit_code == 0


def test_mistakes_are_said_in_a_line(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        return message(sparring("intriguing", *arguments, "--runs-dir", str(tmp_path)))

    assert "--images 5000: digits has" in said("--data", "digits", "--images", "5000")
    assert "letters" in said("--data", "letters")
    assert "leave out --quick" in said("--resume", "--quick")
    assert not [*tmp_path.iterdir()]
