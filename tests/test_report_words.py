"""What reports say of constructed results in tables, tiles and verdicts: before, first and last, strongest, weakest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import made_mixtures
import made_runs
from sparring import _files
from sparring.intriguing import paper
from sparring.report import audit, mixture, retrain
from sparring.report.intriguing.story import Story
from sparring.report.intriguing.words import claims, said, transfer
from sparring.report.mixture import curves
from sparring.report.mixture.experiment import Experiment as Mixed
from sparring.report.page import Section, Table
from sparring.report.retrain.experiment import Experiment
from sparring.runs import Run


def rewritten(path: Path, records: list[dict[str, Any]]) -> Run:
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Run.open(path)


def table(section: Section) -> Table:
    assert section.table is not None
    return section.table


# -- retraining --------------------------------------------------------------------------------------------------------


def epoch(generation: int, number: int, accuracy: float, alarm: float, **more: float) -> dict[str, Any]:
    return {
        "kind": "epoch", "generation": generation, "epoch": number, "10/accuracy": accuracy, "10/false_alarm": alarm,
        **{key.replace("_", "/", 1): value for key, value in more.items()},
    }  # fmt: skip


def attack(generation: int, number: int, fooled: float, lit: float) -> dict[str, Any]:
    return {
        "kind": "attack", "generation": generation, "epoch": number, "0/yield": fooled, "0/sparsity": lit,
        "0/prob": fooled / 2, "0/images": 24, "0/stop_step": 7,
    }  # fmt: skip


RECORDS = [
    epoch(0, 1, 0.81, 0.01),
    epoch(0, 2, 0.82, 0.02),
    attack(0, 2, 0.9, 10),
    {**epoch(1, 3, 0.83, 0.03, selection_h=0.5), "4/caught": 0.4},
    attack(1, 3, 0.6, 20),
    {**epoch(2, 4, 0.84, 0.04, selection_h=0.7), "4/caught": 0.3},
    {**epoch(2, 5, 0.85, 0.05, selection_h=0.7), "4/caught": 0.65},
    attack(2, 5, 0.3, 30),
    {
        "kind": "verdict", "generation": 2, "epoch": 5, "robust": False, "fooled": 0.25, "attempts": 48, "steps": 1000,
        "p_min": 0.05, "s_max": 32, "generations": 2, "8/yield": 0.25, "8/prob": 0.12, "8/sparsity": 33.3,
        "8/images": 48, "8/yield/class_0": 0.5, "8/yield/class_2": 0.0,
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_runs.make(tmp_path_factory.mktemp("runs"))[0].path


def test_tiles_of_retraining_give_the_last_value_and_the_one_before(retrained: Path, tmp_path: Path) -> None:
    """Before retraining is the last epoch on real images alone; the yield is that of the last attack of the budget."""
    summary, _ = retrain.story(rewritten(Path(shutil.copytree(retrained, tmp_path / "run")), RECORDS))
    assert [(tile.label, tile.value, tile.small) for tile in summary.tiles] == [
        ("images that fool it", "30.0 %", "before: 90.0 %"),
        ("accuracy on real test images", "85.0 %", "before: 82.0 %"),
        ("fresh fooling images caught", "65.0 %", ""),
        ("real test images rejected", "5.0 %", ""),
        ("pixels lit in an attempt, mean", "30.0", "before: 10.0"),
    ]
    assert (summary.headline, summary.good) == ("Still fooled", False)
    assert summary.lead == (
        "After 2 generations of retraining, 30.0 % of 24 attempts of 500 steps each still reach p of at least 0.05 "
        "with at most 32 entries lit. A stronger attack than it was trained with succeeds in 25.0 % of 48 attempts of "
        "1000 steps each."
    )


def test_the_table_of_retraining_has_first_and_last_values(retrained: Path, tmp_path: Path) -> None:
    _, sections = retrain.story(rewritten(Path(shutil.copytree(retrained, tmp_path / "run")), RECORDS))
    lines = [line[:4] for line in table(sections[0]).lines]
    assert lines == [
        ["0", "fool it", "90.0 %", "30.0 %"],
        ["0", "mean p(target)", "0.45", "0.15"],
        ["0", "mean pixels lit", "10", "30"],
        ["4", "caught", "40.0 %", "65.0 %"],
        ["8", "fool it", "25.0 %", "25.0 %"],
        ["8", "mean p(target)", "0.12", "0.12"],
        ["8", "mean pixels lit", "33.3", "33.3"],
        ["10", "correct", "81.0 %", "85.0 %"],
        ["10", "rejected", "1.0 %", "5.0 %"],
    ]
    (final,) = [section for section in sections if section.number == "8"]
    assert table(final).lines == [
        ["as in training", "24", "500", "30.0 %", "0.15", "30"],
        ["stronger", "48", "1000", "25.0 %", "0.12", "33.3"],
    ]
    bars = final.pictures[0].draw.keywords  # type: ignore[attr-defined]
    assert bars["values"] == {"class 0": 0.5, "class 2": 0.0}
    assert bars["level"] == ("all classes", 0.25)


def test_the_best_epoch_is_the_first_of_the_largest(retrained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(retrained, tmp_path / "run"))

    def best(records: list[dict[str, Any]]) -> tuple[str, Any]:
        _, sections = retrain.story(rewritten(path, records))
        (section,) = [section for section in sections if section.title == "Which epoch is the best?"]
        return section.pictures[0].text, section.pictures[0].draw.keywords["at"]  # type: ignore[attr-defined]

    assert best(RECORDS) == ("best after epoch 4: 70.0 %", ("best", 4.0))
    none = [record | ({"selection/h": 0.0} if "selection/h" in record else {}) for record in RECORDS]
    assert best(none) == ("no epoch has one above 0", None)


def test_series_run_from_the_first_record_to_the_last(retrained: Path, tmp_path: Path) -> None:
    found = Experiment(rewritten(Path(shutil.copytree(retrained, tmp_path / "run")), RECORDS))
    assert found.over_generations({"y": "0/yield"}) == {"y": ([0.0, 1.0, 2.0], [0.9, 0.6, 0.3])}
    assert found.over_epochs({"c": "4/caught", "none": "5/caught"}) == {"c": ([3.0, 4.0, 5.0], [0.4, 0.3, 0.65])}
    assert found.marks == [2.0, 3.0, 5.0]


def test_images_before_amid_and_after(retrained: Path) -> None:
    """Of three generations: the first attack's, the second's, and those of the attack that ended it."""
    found = Experiment(Run.open(retrained))
    before, during, after = found.stages()
    for stage, of, text in (
        (before, found.fresh[0], "attack on the network that saw real images only"),
        (during, found.fresh[1], "after 1 generation"),
        (after, found.final[0], "the last attack, after 3 generations"),
    ):
        assert torch.equal(stage.attempts.images, of.images)
        assert stage.text == text


@pytest.mark.parametrize(
    ("changes", "headline", "good", "ending"),
    [
        ({"robust": True, "8/yield": 0.0, "fooled": 0.0}, "Robust to this process", True, "Nor did a stronger attack"),
        ({}, "Robust only to the budget it was trained with", False, "succeeds in 25.0 % of 48 attempts"),
        ({"generations": 0, "robust": True}, "The attack never succeeded", False, "Nor did a stronger attack find any"),
    ],
)
def test_verdicts_of_retraining(
    retrained: Path, tmp_path: Path, changes: dict[str, Any], headline: str, good: bool, ending: str
) -> None:
    *records, last, verdict = RECORDS
    changed = [*records, {**last, "0/yield": 0.0}, {**verdict, **changes}]
    summary, _ = retrain.story(rewritten(Path(shutil.copytree(retrained, tmp_path / "run")), changed))
    assert (summary.headline, summary.good) == (headline, good)
    assert ending in summary.lead
    unfinished, _ = retrain.story(rewritten(tmp_path / "run", records))
    assert (unfinished.headline, unfinished.lead) == ("Unfinished", "5 epochs and 2 attacks done. Go on with --resume.")


# -- audits ------------------------------------------------------------------------------------------------------------

NAMES = ("noise", "fgsm", "pgd", "apgd")


def of_attack(name: str, eps: float, accuracy: float, fooled: int, per_class: list[float | None]) -> dict[str, Any]:
    distances = {norm: {"mean": 0.2, "median": 0.1 * (i + 1)} for i, norm in enumerate(("Linf", "L2", "L1"))}
    return {
        "name": name, "kind": "noise" if name == "noise" else "iterative", "norm": "Linf", "eps": eps,
        "accuracy": accuracy, "per_class": per_class, "attacked": 9, "fooled": fooled, "infeasible": 0,
        "distances": distances, "steps": 12.5, "seconds": 1.25,
    }  # fmt: skip


def audited(folder: Path, *, warnings: tuple[str, ...] = (), worst: float = 0.4) -> Run:
    """Ten images, nine of them right, three classes of which none is the fourth; under a larger eps less withstands."""
    attacks = [
        of_attack("noise", 0.1, 0.9, 0, [1.0, 0.75, 1.0, None]),
        of_attack("fgsm", 0.1, 0.6, 3, [0.5, 0.5, 0.75, None]),
        of_attack("pgd", 0.1, 0.5, 4, [0.5, 0.25, 0.5, None]),
        of_attack("apgd", 0.1, 0.5, 4, [0.25, 0.5, 0.5, None]),
        of_attack("pgd", 0.2, 0.1, 8, [0.0, 0.0, 0.25, None]),
    ]
    cases = [
        {"norm": "Linf", "eps": 0.1, "attacks": 4, "accuracy": worst, "per_class": [0.25, 0.25, 0.5, None]},
        {"norm": "Linf", "eps": 0.2, "attacks": 1, "accuracy": 0.1, "per_class": [0.0, 0.0, 0.25, None]},
    ]
    results = {
        "images": 10, "clean": {"accuracy": 0.9, "per_class": [1.0, 0.75, 1.0, None]}, "worst_case": cases,
        "attacks": attacks, "warnings": [*warnings], "worst_case_only": False,
    }  # fmt: skip
    config = {
        "data": {"name": "digits"}, "weights": {"file": "w"}, "network": {"name": "mlp"}, "device": "cpu", "threads": 1,
        "audit": {"attacks": None, "eps": {}, "seed": 0, "preprocessing": None},
    }  # fmt: skip
    run = Run.create(folder, "audit", config)
    right = torch.ones(10, dtype=torch.bool)
    right[9] = False
    fooled = torch.tensor([True] * 4 + [False] * 6)
    steps = torch.tensor([1, 13, 14, 40, 40, 40, 40, 40, 40, 99])  # the last was not attacked
    tensors: dict[str, torch.Tensor] = {"labels": torch.arange(10) % 3, "originals/images": torch.zeros(0, 1, 2, 2)}
    for i in range(len(attacks)):
        tensors |= {f"{i}/examples/index": torch.zeros(0, dtype=torch.int64)}
        if i:
            tensors |= {f"{i}/attacked": right, f"{i}/fooled": fooled, f"{i}/steps": steps}
    _files.write(run.path / "examples.safetensors", _files.packed(tensors))
    (run.path / "results.json").write_text(json.dumps(results))
    return run


def test_tiles_and_headline_of_an_audit(tmp_path: Path) -> None:
    """The strongest attack is the one that leaves the least; of equals the first that ran."""
    summary, _ = audit.story(audited(tmp_path))
    assert [(tile.label, tile.value, tile.small) for tile in summary.tiles] == [
        ("accuracy on the images as they are", "90.0 %", "10 images"),
        ("robust accuracy, Linf, eps 0.1", "40.0 %", "strongest attack: pgd"),
        ("robust accuracy, Linf, eps 0.2", "10.0 %", "strongest attack: pgd"),
        ("time of the attacks", "6 s", "5 attacks"),
    ]
    assert summary.headline == "Robust accuracy 40.0 % (Linf, eps 0.1), 10.0 % (Linf, eps 0.2)"
    assert not summary.good
    assert not audit.story(audited(tmp_path / "one", worst=0.9))[0].good  # under one threat is not enough
    assert summary.lead == (
        "Of 10 digits test images the model classifies 90.0 % correctly as they are. With every entry moved by at most "
        "0.1 or 0.2 (Linf), 40.0 % and 10.0 % withstand all, in this order."
    )
    assert "16.8 % to 68.7 %" in summary.caveat  # Wilson's, of 4 in 10


def test_the_table_of_an_audit(tmp_path: Path) -> None:
    _, sections = audit.story(audited(tmp_path))
    found = table(sections[0])
    assert [(line[0], line[2], *line[3:6]) for line in found.lines] == [
        ("none", "", "90.0 %", "", ""),
        ("noise", "0.1", "90.0 %", "0 of 9", "12.5"),
        ("fgsm", "0.1", "60.0 %", "3 of 9", "12.5"),
        ("pgd", "0.1", "50.0 %", "4 of 9", "12.5"),
        ("apgd", "0.1", "50.0 %", "4 of 9", "12.5"),
        ("worst case", "0.1", "40.0 %", "", ""),
        ("pgd", "0.2", "10.0 %", "8 of 9", "12.5"),
        ("worst case", "0.2", "10.0 %", "", ""),
    ]
    assert found.strong == [5, 7]
    assert found.lines[1][6:] == ["1.2", "0.1", "0.2", "0.3"]  # seconds, then medians
    assert len({len(line) for line in [found.head, *found.lines]}) == 1


def test_the_weakest_class_of_an_audit(tmp_path: Path) -> None:
    """Of equals the first; a class without images is none."""
    _, sections = audit.story(audited(tmp_path))
    (classes,) = [section for section in sections if section.title == "Class by class"]
    assert classes.pictures[0].text == "class 0 is the weakest, with 25.0 % in the worst case"
    assert classes.pictures[1].text == "class 0 is the weakest, with 0 % in the worst case"
    (nothing, _) = audit.story(audited(tmp_path / "none", worst=0.0))[1][2].pictures
    assert nothing.text == "no image of any class withstands all"


def test_curves_of_an_audit(tmp_path: Path) -> None:
    """By eps, from the accuracy without attack on. By steps, to where the last image falls and what withstands."""
    _, sections = audit.story(audited(tmp_path))
    by_title = {section.title: section for section in sections}
    series = by_title["How it falls with eps"].pictures[0].draw.keywords["series"]  # type: ignore[attr-defined]
    assert series == {"worst case": ([0.0, 0.1, 0.2], [0.9, 0.4, 0.1])}
    steps = by_title["Would more steps find more?"].pictures[0]
    curves = steps.draw.keywords["series"]  # type: ignore[attr-defined]
    assert [*curves] == ["fgsm", "pgd", "apgd"]
    xs, ys = curves["pgd"]
    assert (xs[0], xs[-1], len(xs)) == (0.0, 100.0, 16)
    falls = {1: 2.5, 13: 32.5, 14: 35.0, 40: 100.0}  # steps, in hundredths of the 40 of the budget
    assert ys == [(9 - sum(x >= at for at in falls.values())) / 10 for x in xs]
    assert (ys[0], ys[-2], ys[-1]) == (0.9, 0.6, 0.5)
    assert steps.text == "still falling at the end: fgsm, pgd, apgd"


@pytest.mark.parametrize(
    ("worst", "warnings", "good"), [(0.45, (), True), (0.44, (), False), (0.9, ("gradients are masked",), False)]
)
def test_what_is_good_in_an_audit(tmp_path: Path, worst: float, warnings: tuple[str, ...], good: bool) -> None:
    """Half of the accuracy without attack under every threat, and no doubt of the gradients."""
    run = audited(tmp_path, worst=worst, warnings=warnings)
    results = json.loads((run.path / "results.json").read_text())
    results["worst_case"].pop()
    (run.path / "results.json").write_text(json.dumps(results))
    summary, _ = audit.story(run)
    assert summary.good == good
    assert summary.warnings == [f"{warning[0].upper()}{warning[1:]}." for warning in warnings]


# -- mixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_mixtures.make(tmp_path_factory.mktemp("runs"))[0].path


def mixed_records(under: float) -> list[dict[str, Any]]:
    """Every number another one, so that each can be told by its value."""
    records = []
    for number in range(4):
        record: dict[str, Any] = {"kind": "epoch" if number else "start", "epoch": number}
        for i, group in enumerate(("test", "fgs/0", "fgs/0.1", "fgs/0.2")):
            for j, whose in enumerate(("accuracy", "members", "vote")):
                record[f"{group}/{whose}"] = (10 * number + 2 * i + 0.1 * j + 50) / 100
        record |= {"weights/min": 0.1 * number, "weights/max": 0.2 * number, "weights/effective": 3 - 0.5 * number}
        records.append(record)
    records[-1]["fgs/0.1/accuracy"] = under
    return records


def test_tiles_and_table_of_a_mixture_are_of_the_first_and_the_last_epoch(mixed: Path, tmp_path: Path) -> None:
    run = rewritten(Path(shutil.copytree(mixed, tmp_path / "run")), mixed_records(0.84))
    summary, sections = mixture.story(run)
    assert summary.headline == "80.0 % clean, 84.0 % under FGS at eps\u00a00.1"
    assert [(tile.label, tile.value, tile.small) for tile in summary.tiles] == [
        ("mixture: test images as they are", "80.0 %", "at first: 50.0 %"),
        ("a member, mean: test images as they are", "80.1 %", "at first: 50.1 %"),
        ("majority: test images as they are", "80.2 %", "at first: 50.2 %"),
        ("mixture: FGS, eps 0.1", "84.0 %", "at first: 54.0 %"),
        ("a member, mean: FGS, eps 0.1", "84.1 %", "at first: 54.1 %"),
        ("majority: FGS, eps 0.1", "84.2 %", "at first: 54.2 %"),
        ("members that count, by weight", "1.5 of 3", "weights from 0.3 to 0.6"),
    ]
    assert table(sections[0]).lines == [
        ["none, all test images", "50.0 %", "80.0 %", "80.1 %", "80.2 %"],
        ["none, the sample", "52.0 %", "82.0 %", "82.1 %", "82.2 %"],
        ["FGS 0.1", "54.0 %", "84.0 %", "84.1 %", "84.2 %"],
        ["FGS 0.2", "56.0 %", "86.0 %", "86.1 %", "86.2 %"],
    ]
    assert table(sections[0]).strong == [2]
    assert "a member by itself 84.1 % (mean), the majority 84.2 %" in summary.lead


@pytest.mark.parametrize(("under", "good"), [(0.4, True), (0.399, False)])
def test_what_is_good_in_a_mixture(mixed: Path, tmp_path: Path, under: float, good: bool) -> None:
    run = rewritten(Path(shutil.copytree(mixed, tmp_path / "run")), mixed_records(under))
    assert mixture.story(run)[0].good == good
    unfinished = rewritten(tmp_path / "run", mixed_records(under)[:-1])
    summary = mixture.story(unfinished)[0]
    assert not summary.good
    assert summary.headline.startswith("70.0 % clean")
    assert summary.warnings[0] == "Unfinished: 2 of 3 epochs are done. Go on with --resume."


def test_series_of_a_mixture_run_from_the_first_epoch_to_the_last(mixed: Path, tmp_path: Path) -> None:
    found = Mixed(rewritten(Path(shutil.copytree(mixed, tmp_path / "run")), mixed_records(0.8)))
    assert found.over_epochs({"test": "test/accuracy"}) == {"test": ([0.0, 1.0, 2.0, 3.0], [0.5, 0.6, 0.7, 0.8])}
    assert (found.start["epoch"], found.end["epoch"]) == (0, 3)
    (by_eps,) = [picture for picture in curves.accuracy(found).pictures if picture.file == "accuracy_by_eps"]
    series = by_eps.draw.keywords["series"]  # type: ignore[attr-defined]
    assert {name: [round(y, 6) for y in ys] for name, (_, ys) in series.items()} == {
        "at first": [0.52, 0.54, 0.56], "mixture": [0.82, 0.8, 0.86], "a member, mean": [0.821, 0.841, 0.861],
        "majority": [0.822, 0.842, 0.862],
    }  # fmt: skip
    assert all(xs == [0.0, 0.1, 0.2] for xs, _ in series.values())


# -- intriguing properties ---------------------------------------------------------------------------------------------


def errors(own: float = 1.0, **others: float) -> dict[str, list[float]]:
    """Of each network on what was made for each: .2 on what was made for others, but for some pairs, such as 0_3."""
    rows = [[own if i == j else others.get(f"from_{i}_{j}", 0.2) for j in range(6)] for i in range(6)]
    return dict(zip(paper.MODELS, rows, strict=True))


CROSS: dict[str, Any] = {
    "models": [*paper.MODELS], "clean": [0.08, 0.02, 0.05, 0.05, 0.05, 0.05], "images": 50,
    "errors": errors(from_0_3=0.3, from_3_0=0.1),
    "distortion": {name: 0.0612 if name == paper.MODELS[0] else 0.1 for name in paper.MODELS},
    "success": {}, "amplified": {}, "noise": {"0.1": [0.09, 0.03, 0.06, 0.06, 0.06, 0.06], "0.3": [0.5] * 6},
}  # fmt: skip
NUMBERS: dict[str, Any] = {
    "train FC10(1e-4)": {"train_error": 0.05, "test_error": 0.08, "epochs": 6},
    "train RBF": {"train_error": 0.1, "test_error": 0.15, "epochs": 5},
    "train FC100-100-10": {"train_error": 0.0, "test_error": 0.0164, "epochs": 7},
    "cross-model": CROSS,
    "smoothness": {
        "radii": [1.0, 2.0, 3.0], "random": [0.0, 0.01, 0.5], "random_worst": [0.0, 0.1, 0.6],
        "optimised": [0.2, 0.91, 1.0], "draws": 5, "images": 50, "median": 1.234,
    },
    "FGS training": {
        name: {"clean": {"error": clean}, "fgs": {"error": error, "confidence_wrong": sure}}
        for name, clean, error, sure in (
            ("plain", 0.02, 0.9, 0.8), ("weight decay", 0.021, 0.91, 0.81), ("dropout", 0.022, 0.92, 0.82),
            ("FGS", 0.023, 0.2, 0.5), ("FGS, dropout", 0.024, 0.21, 0.51),
        )
    },
    "RBF": {
        name: {
            kind: {"error": error + i / 100, "confidence_wrong": sure + i / 100, "confidence": sure + 0.3}
            for i, kind in enumerate(("clean", "fgs", "fgs clipped"))
        }
        for name, error, sure in (("FC10(1e-4)", 0.7, 0.6), ("RBF", 0.4, 0.1))
    },
}  # fmt: skip
CONFIG = {
    "data": {"name": "digits", "note": ""}, "intriguing": {"images": 50, "train_images": 0, "epochs": 6, "seed": 0},
}  # fmt: skip


def shown(numbers: dict[str, Any], **left_out: str) -> Story:
    tensors = {"originals": torch.zeros(1, 1, 2, 2), "labels": torch.zeros(1)}
    tensors |= {f"cross-model/{name}": tensors["originals"] for name in paper.MODELS}
    return Story(CONFIG, numbers, tensors, left_out)


def test_tiles_and_tables_of_intriguing_properties() -> None:
    story = shown(NUMBERS)
    assert [(tile.label, tile.value, tile.small) for tile in story.summary().tiles] == [
        ("mean distortion, FC100-100-10", "0.1", "paper 0.058"),
        ("fool another network", "20.0 %", "mean over all pairs"),
        ("RBF, FGS .25: error", "41.0 %", "paper 55.4 %"),
        ("its confidence then", "11.0 %", "paper 1.2 %"),
    ]
    by_number = {section.number: section for section in story.sections()}
    assert table(by_number["C3"]).lines == [
        ["FC10(1e-4)", "5.0 %", "8.0 %", "7.4 %", "6"],
        ["RBF", "10.0 %", "15.0 %", "", "5"],
        ["FC100-100-10", "0 %", "1.6 %", "1.64 %", "7"],
    ]
    assert "Test errors are within 0.6 points of the paper's." in by_number["C3"].text
    cross = table(by_number["C4"])
    assert cross.lines[:3] == [
        ["none", "8.0 %", "2.0 %", "5.0 %", "5.0 %", "5.0 %", "5.0 %", ""],
        ["for FC10(1e-4)", "100 %", "20.0 %", "20.0 %", "30.0 %", "20.0 %", "20.0 %", "0.061"],
        ["paper", "100 %", "11.7 %", "22.7 %", "2 %", "3.9 %", "2.7 %", "0.062"],
    ]
    assert cross.lines[13] == ["noise 0.1", "9.0 %", "3.0 %", "6.0 %", "6.0 %", "6.0 %", "6.0 %", "0.1"]
    assert cross.strong == [1, 3, 5, 7, 9, 11]
    assert by_number["C6"].pictures[0].text == (
        "at a distance of 2 a random direction misleads 1.0 % of the images, the best one 91.0 %; half are misled "
        "within 1.23"
    )
    assert table(by_number["C9"]).lines[0] == ["plain", "2.0 %", "90.0 %", "80.0 %"]
    assert "Under FGS the first errs on 90.0 %, with weight decay on 91.0 %, with dropout on 92.0 %" in (
        by_number["C9"].text
    )
    assert table(by_number["C10"]).lines == [
        ["FC10(1e-4)", "70.0 %", "90.0 %", "71.0 %", "61.0 %", "72.0 %", "62.0 %"],
        ["paper", "", "", "99.9 %", "79.3 %", "", ""],
        ["RBF", "40.0 %", "40.0 %", "41.0 %", "11.0 %", "42.0 %", "12.0 %"],
        ["paper", "", "60.6 %", "55.4 %", "1.2 %", "", ""],
    ]


def test_the_most_and_the_least_that_is_misled() -> None:
    """Of equals the first pair; a network's own images are no transfer."""
    published = {name: paper.CROSS_MODEL[name] for name in CROSS["models"]}
    words = said(CROSS, published)
    assert "another one in 20.0 % on average" in words
    assert "most often FC100-100-10 by those for FC10(1e-4) (30.0 %)" in words
    assert "least often FC10(1e-4) by those for FC100-100-10 (10.0 %)" in words
    assert "Noise of 0.1 does so in 6.0 %, and 5.0 % are wrong without any change" in words
    exact = {**CROSS, "distortion": dict.fromkeys(paper.MODELS, 0.25), "noise": {"0.3": [0.5] * 6, "0.25": [0.25] * 6}}
    assert "Noise of 0.25 does so in 25.0 %" in said(exact, published)  # which is no smaller
    equal = {**CROSS, "errors": errors(own=0.9)}
    assert transfer(equal) == pytest.approx(0.2)
    words = said(equal, published)
    assert "in at least 90.0 % of cases" in words
    assert "most often FC10(1e-2) by those for FC10(1e-4) (20.0 %)" in words
    assert "least often FC10(1e-2) by those for FC10(1e-4) (20.0 %)" in words


@pytest.mark.parametrize(
    ("of", "change", "holds"),
    [
        ("every network errs on all images", {"errors": errors(own=0.991)}, True),
        ("every network errs on all images", {"errors": errors(own=0.99)}, False),
        ("fool far more often than noise", {"noise": {"0.1": [0.09] * 6}}, True),
        ("fool far more often than noise", {"noise": {"0.1": [0.101] * 6}}, False),
        ("fool far more often than noise", {"noise": {"0.05": [0.5] * 6, "0.1": [0.05] * 6}}, True),
    ],
)
def test_where_claims_turn(of: str, change: dict[str, Any], holds: bool) -> None:
    found = claims({"cross-model": {**CROSS, **change}})
    assert [value for claim, value in found.items() if of in claim] == [holds]


def test_findings_and_what_is_left_out_are_at_the_top() -> None:
    summary = shown(NUMBERS, units="there is no network FC100-100-10").summary()
    assert summary.headline == "5 of 5 findings hold"
    assert summary.good
    assert summary.warnings == ["Left out, as it cannot be computed: units: there is no network FC100-100-10."]
    worse = {**NUMBERS, "RBF": {**NUMBERS["RBF"], "RBF": NUMBERS["RBF"]["FC10(1e-4)"]}}
    summary = shown(worse).summary()
    assert (summary.headline, summary.good) == ("4 of 5 findings hold", False)
    assert summary.lead == "Not found again: a radial basis function network is unsure where it errs."
    assert shown({}).summary().headline == "Networks are still being trained"


def test_where_nothing_is_wrong_there_is_no_confidence_in_mistakes() -> None:
    """Nor can be said whether the network is unsure there."""
    rbf = {kind: {**found, "confidence_wrong": float("nan")} for kind, found in NUMBERS["RBF"]["RBF"].items()}
    numbers = {**NUMBERS, "RBF": {**NUMBERS["RBF"], "RBF": rbf}}
    assert "a radial basis function network is unsure where it errs" not in claims(numbers)
    story = shown(numbers)
    assert story.summary().tiles[-1].value == ""
    (section,) = [section for section in story.sections() if section.number == "C10"]
    assert "nan" not in section.text
    assert all("nan" not in cell for line in table(section).lines for cell in line)
