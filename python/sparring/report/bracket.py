"""The section of an audit's report on how far each image can be moved: what is proven, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparring import figures
from sparring._text import percent, plural
from sparring.report.page import Picture, Section, Table

if TYPE_CHECKING:
    from torch import Tensor

    from sparring.analysis import Bracket
    from sparring.evaluation import Evaluation

POINTS = 200  # of a curve
TEXT = (
    "Of each image two numbers: the certified radius, proven by bounds of the network (no smaller change alters its "
    "answer), and the smallest perturbation that was found, by attacks for the nearest point and by all those above. "
    "The truth lies between them, and so does the true robust accuracy at every eps."
)


def completed(brackets: Mapping[str, Bracket], evaluation: Evaluation) -> dict[str, Bracket]:
    """With what the attacks of an audit found, where that is nearer; an attack in one norm may be so in another."""
    found = dict(brackets)
    for name in found:
        for row in evaluation.rows:
            distance = row.distances[name].where(row.fooled, torch.inf)
            found[name] = found[name].nearer(distance)
    return found


def tensors(brackets: Mapping[str, Bracket]) -> dict[str, Tensor]:
    """Both sides, example by example, for a file."""
    return {
        f"bracket/{name}/{side}": getattr(bracket, side)
        for name, bracket in brackets.items()
        for side in ("lower", "upper")
    }


def added(results: dict[str, Any], brackets: Mapping[str, Bracket]) -> dict[str, Any]:
    """What results.json holds, with brackets if there are any; a warning where their sides cross."""
    if not brackets:
        return results
    wrong = [contradiction(bracket) for bracket in brackets.values() if bool(bracket.contradicted.any())]
    return results | {
        "brackets": [bracket.to_dict() for bracket in brackets.values()],
        "warnings": [*results["warnings"], *(line.rstrip(".") for line in wrong)],
    }


def section(found: Mapping[str, Any], kept: Mapping[str, Tensor]) -> Section:
    """From results.json and the tensors of an audit; empty if it was made without brackets."""
    from sparring.analysis import Bracket

    if not found.get("brackets"):
        return Section("", "", "", [])
    correct = kept["predictions"] == kept["labels"]
    brackets = [
        Bracket(
            norm=one["norm"], lower=kept[f"bracket/{one['norm']}/lower"], upper=kept[f"bracket/{one['norm']}/upper"],
            correct=correct, adv=correct.new_zeros(len(correct), 0), method=one["method"], reason=one["reason"],
        )
        for one in found["brackets"]
    ]  # fmt: skip
    pictures = [*(_curve(bracket, found) for bracket in brackets), *map(_each, brackets)]
    return Section("", "From both sides", " ".join([TEXT, *_remarks(brackets)]), pictures, _table(brackets))


def _remarks(brackets: Sequence[Bracket]) -> list[str]:
    """What is to be said of the sides; once if it is the same in every norm."""
    remarks: list[str] = []
    for bracket in brackets:
        if bracket.reason:
            remarks.append(f"There is no lower side: {bracket.reason.rstrip('.')}.")
        elif bracket.method:
            remarks.append(f"The lower side rests on this bound: {bracket.method}.")
        missed = int((bracket.correct & ~bracket.success).sum())
        if missed:
            remarks.append(f"In {bracket.norm} nothing was found for {missed} {plural('image', missed)}.")
        if bool(bracket.contradicted.any()):
            remarks.append(contradiction(bracket))
    return [*dict.fromkeys(remarks)]


def contradiction(bracket: Bracket) -> str:
    """Of sides that cross."""
    wrong = int(bracket.contradicted.sum())
    return (
        f"In {bracket.norm} a perturbation was found within the certified radius of {wrong} {plural('image', wrong)}: "
        "that is a bug, and the lower side is not to be trusted."
    )


def _table(brackets: Sequence[Bracket]) -> Table | None:
    """Quantiles over the images that are classified correctly."""
    from sparring.analysis.bracket import HEADS

    lines = [[bracket.norm, *line] for bracket in brackets for line in bracket.cells()[1]]
    return Table(["norm", "of the images classified correctly", *HEADS], lines, words=[1]) if lines else None


def _curve(bracket: Bracket, found: Mapping[str, Any]) -> Picture:
    cases = [case for case in found["worst_case"] if case["norm"] == bracket.norm and isinstance(case["eps"], float)]
    tried = torch.tensor([case["eps"] for case in cases], dtype=torch.float64)
    known = torch.cat([bracket.lower, bracket.upper, tried])
    known = known[known.isfinite() & (known > 0)]
    first, last = (float(known.min()) / 1.5, float(known.max()) * 1.1) if len(known) else (0.1, 1.0)
    curve = bracket.curve(np.geomspace(first, last, POINTS).tolist())
    clean = float(bracket.correct.double().mean())
    dots = tried.tolist(), [case["accuracy"] for case in cases]
    middle = float(bracket.upper[bracket.correct].quantile(0.5, interpolation="lower")) if clean else 0.0
    at = bracket.curve(middle if np.isfinite(middle) else last)
    words = (
        f"at eps {float(at.eps):.3g} between {percent(float(at.certified))} (certified) and "
        f"{percent(float(at.robust))} (nothing found)"
    )
    return Picture(
        f"bracket_{bracket.norm}",
        f"Certified and robust accuracy by eps, {bracket.norm}",
        words,
        f"Curves of the certified and of the robust accuracy by eps in {bracket.norm}, and between them: {words}.",
        partial(
            figures.band,
            xs=curve.eps.tolist(),
            below=("certified: no bound" if bracket.reason else "certified", curve.certified.tolist()),
            above=("nothing found", curve.robust.tolist()),
            x=f"eps, {bracket.norm}",
            level=("without attack", clean),
            dots=("worst case of the attacks", dots) if cases else None,
        ),
    )


def _each(bracket: Bracket) -> Picture:
    low, high = (side[bracket.correct].numpy() for side in (bracket.lower, bracket.upper))
    count = f"{len(low)} {plural('image', len(low))}"
    return Picture(
        f"bracket_images_{bracket.norm}",
        f"Image by image, {bracket.norm}",
        f"{count} classified correctly, in order of what was found",
        f"Lines from the certified radius to the smallest perturbation found in {bracket.norm}, for {count}.",
        partial(
            figures.spans, low=low, high=high, names=("certified", "found"), x="images, the weakest first",
            y=f"size in {bracket.norm}",
        ),
    )  # fmt: skip
