"""What the report of an audit says of both sides, of constructed ones; and their pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from sparring import figures
from sparring.analysis import Bracket
from sparring.evaluation import Evaluation
from sparring.report import bracket

LABELS = torch.tensor([0, 1, 2, 0])
FOUND: dict[str, Any] = {
    "images": 4, "warnings": ["one more"],
    "worst_case": [{"norm": "L2", "eps": 3.0, "accuracy": 0.25}, {"norm": "L2", "eps": [1.0, 2.0, 1.0, 2.0]},
                   {"norm": "Linf", "eps": 0.1, "accuracy": 0.5}],
}  # fmt: skip


def sides(norm: str = "L2", *, lower: list[float] | None = None, reason: str = "") -> Bracket:
    """Of four images one that the model gets wrong, and one for which nothing was found."""
    low = torch.tensor(lower or [0.0, 0.5, 1.0, 0.25], dtype=torch.float64)
    high = torch.tensor([0.0, 1.0, 2.0, math.inf], dtype=torch.float64)
    return Bracket(norm, low, high, high > 0, torch.zeros(4, 0), "" if reason else "the product", reason)


def kept(*brackets: Bracket) -> dict[str, Tensor]:
    predictions = LABELS.clone()
    predictions[0] = 1
    return {"labels": LABELS, "predictions": predictions} | bracket.tensors({one.norm: one for one in brackets})


def of(*brackets: Bracket) -> dict[str, Any]:
    return bracket.added(FOUND, {one.norm: one for one in brackets})


def test_without_brackets_there_is_no_section() -> None:
    assert bracket.added(FOUND, {}) is FOUND
    section = bracket.section(FOUND, {})
    assert not section.pictures
    assert section.table is None


def test_a_section_of_both_sides() -> None:
    both = sides(), sides("Linf")
    section = bracket.section(of(*both), kept(*both))
    assert section.text.count("The lower side rests on this bound: the product.") == 1
    assert "In L2 nothing was found for 1 image. In Linf nothing was found for 1 image." in section.text
    assert section.table is not None
    assert [line[:2] for line in section.table.lines][:3] == [
        ["L2", "certified radius"], ["L2", "smallest perturbation found"], ["L2", "gap"],
    ]  # fmt: skip
    assert section.table.lines[1][2:] == ["1", "1", "2", "2", "2"]
    assert len({len(line) for line in [section.table.head, *section.table.lines]}) == 1
    files = [picture.file for picture in section.pictures]
    assert files == ["bracket_L2", "bracket_Linf", "bracket_images_L2", "bracket_images_Linf"]
    assert section.pictures[0].text == "at eps 2 between 0 % (certified) and 25.0 % (nothing found)"
    assert of(*both)["warnings"] == ["one more"]


def test_without_a_bound_the_section_says_why() -> None:
    one = sides(lower=[0.0] * 4, reason="the network has no Lipschitz bound: it jumps")
    section = bracket.section(of(one), kept(one))
    assert "There is no lower side: the network has no Lipschitz bound: it jumps." in section.text
    axes = section.pictures[0].draw(figures.LIGHT).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [  # type: ignore[union-attr]
        "certified: no bound", "nothing found", "without attack", "worst case of the attacks",
    ]  # fmt: skip
    each = section.pictures[1].draw(figures.DARK).axes[0]
    assert [text.get_text() for text in each.get_legend().get_texts()] == ["found"]  # type: ignore[union-attr]


def test_sides_that_cross_are_a_warning_at_the_top() -> None:
    one = sides(lower=[0.0, 0.5, 2.5, 0.25])
    found = of(one)
    assert found["warnings"][0] == "one more"
    assert "within the certified radius of 1 image: that is a bug" in found["warnings"][1]
    assert "not to be trusted." in bracket.section(found, kept(one)).text


def test_curves_and_spans_are_of_the_sides() -> None:
    one = sides()
    section = bracket.section(of(one), kept(one))
    axes = section.pictures[0].draw(figures.LIGHT).axes[0]
    certified, robust, clean, dots = (np.array(line.get_ydata(), dtype=float) for line in axes.get_lines())
    assert (certified <= robust).all()
    assert set(robust) == {0.75, 0.5, 0.25}
    assert clean[0] == 0.75
    assert dots.tolist() == [0.25]
    assert axes.get_xlim()[1] > 3  # what was audited is in the picture
    each = section.pictures[1].draw(figures.LIGHT).axes[0]
    lower, upper = (np.array(line.get_ydata(), dtype=float).tolist() for line in each.get_lines())
    assert lower == [0.5, 1.0, 0.25]
    assert upper == [1.0, 2.0]  # in ascending order, without that of which nothing was found
    assert each.get_ylim()[1] >= 4


@pytest.mark.parametrize("right", [True, False])
def test_pictures_of_nothing(right: bool) -> None:
    """No image is right, or none has a side."""
    none = torch.zeros(4, dtype=torch.float64)
    one = replace(sides(), lower=none, upper=torch.full_like(none, math.inf) if right else none)
    files = kept(one)
    if not right:
        files["predictions"] = (LABELS + 1) % 3
    section = bracket.section(of(one), files)
    for picture in section.pictures:
        picture.draw(figures.LIGHT).canvas.draw()


def test_what_an_audit_found_is_the_upper_side_too() -> None:
    distances = {"L2": torch.tensor([0.1, 0.75, 3.0, 0.2], dtype=torch.float64)}
    row = SimpleNamespace(fooled=torch.tensor([False, True, True, False]), distances=distances)
    completed = bracket.completed({"L2": sides()}, cast(Evaluation, SimpleNamespace(rows=[row])))["L2"]
    assert completed.upper.tolist() == [0.0, 0.75, 2.0, math.inf]


def test_files_are_named_by_norm() -> None:
    assert {*bracket.tensors({"L2": sides()})} == {"bracket/L2/lower", "bracket/L2/upper"}
