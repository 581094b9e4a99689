"""What the numbers of `sparring intriguing` say, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from sparring._text import percent
from sparring.intriguing import paper


def claims(numbers: Mapping[str, Any]) -> dict[str, bool]:
    """What the papers conclude, and whether these numbers say so too."""
    holds: dict[str, bool] = {}
    for title in ("cross-model", "cross-training-set"):
        found = numbers.get(title)
        if found is None:
            continue
        own = [found["errors"][name][i] for i, name in enumerate(found["models"])]
        holds[f"{title}: every network errs on all images made for it"] = min(own) > 0.99
        title = f"{title}: images made for others fool far more often than noise of at least their size"
        holds[title] = transfer(found) > 2 * _noise(found)[1]
    if "smoothness" in numbers:
        smooth = numbers["smoothness"]
        at = max(range(len(smooth["radii"])), key=lambda i: smooth["optimised"][i] - smooth["random"][i])
        safe = smooth["random"][at] < 0.1 * smooth["optimised"][at]
        holds["random perturbations are safe where optimised ones are not"] = safe
    if "FGS training" in numbers:
        error = {name: arm["fgs"]["error"] for name, arm in numbers["FGS training"].items()}
        lower = error["FGS"] < 0.5 * min(error[name] for name in ("plain", "dropout", "weight decay"))
        holds["training on FGS lowers the error under FGS, dropout and weight decay do not"] = lower
    if "RBF" in numbers:
        rbf, softmax = (numbers["RBF"][name]["fgs"]["confidence_wrong"] for name in ("RBF", "FC10(1e-4)"))
        if not np.isnan([rbf, softmax]).any():  # both err somewhere
            holds["a radial basis function network is unsure where it errs"] = rbf < 0.25 * softmax
    return holds


def said(found: dict[str, Any], published: Mapping[str, Sequence[float]]) -> str:
    """What a table of transfer says."""
    models = found["models"]
    pairs = _pairs(models)
    ours = np.array([100 * found["errors"][models[a]][b] for a, b in pairs])
    theirs = np.array([published[models[a]][b] for a, b in pairs])
    most, least = pairs[int(ours.argmax())], pairs[int(ours.argmin())]
    own = min(found["errors"][name][i] for i, name in enumerate(models))
    deviation, noise = _noise(found)
    words = (
        f"Made for a network, images fool it in at least {percent(own)} of cases; another one in "
        f"{percent(transfer(found))} on average (the paper: {theirs.mean():.1f} %), most often {models[most[1]]} by "
        f"those for {models[most[0]]} ({ours.max():.1f} %), least often {models[least[1]]} by those for "
        f"{models[least[0]]} ({ours.min():.1f} %). Noise of {deviation} does so in {percent(noise)}, and "
        f"{percent(float(np.mean(found['clean'])))} are wrong without any change."
    )
    if models == [*paper.HALVES]:
        same = [sorted(pair) == [0, 1] for pair in pairs]
        other = [2 in pair for pair in pairs]
        return (
            f"{words} Between the two networks trained on the same images {ours[same].mean():.1f} % get through, to "
            f"and from the third {ours[other].mean():.1f} %; in the paper {theirs[same].mean():.1f} and "
            f"{theirs[other].mean():.1f} %."
        )
    order = float(np.corrcoef(_ranks(ours), _ranks(theirs))[0, 1])
    easier = sum(error < paper.TEST_ERROR[name] for name, error in zip(models, paper.NOISE[0.1], strict=True))
    return (
        f"{words} The paper's pairs come in the same order with a rank correlation of {order:.2f}. Under noise of 0.1 "
        f"{easier} of its {len(models)} networks err less than on its test images: its tables must be of easier "
        "images, or of those that a network has right."
    )


def compared(layer: str, of: dict[str, Any]) -> str:
    """Whether a layer's units are purer than its random directions, or the reverse."""
    units, random = of["units"], of["random"]
    if units["interval"][0] <= random["interval"][1] and random["interval"][0] <= units["interval"][1]:
        return f"In {layer} the two cannot be told apart."
    purer, other = ("units", "directions") if units["purity"] > random["purity"] else ("directions", "units")
    return f"In {layer} {purer} are purer than {other}."


def transfer(found: dict[str, Any], of: str = "errors") -> float:
    """Mean error of networks on images made for others."""
    models = found["models"]
    return float(np.mean([found[of][models[a]][b] for a, b in _pairs(models)]))


def _pairs(models: Sequence[str]) -> list[tuple[int, int]]:
    """All pairs of two different networks, by number."""
    return [*permutations(range(len(models)), 2)]


def _noise(found: dict[str, Any]) -> tuple[str, float]:
    """Of the table's noise the weakest that is no smaller than the mean distortion, and the mean error under it."""
    size = np.mean([*found["distortion"].values()])
    deviations = sorted(found["noise"], key=float)
    deviation = next((d for d in deviations if float(d) >= size), deviations[-1])
    return deviation, float(np.mean(found["noise"][deviation]))


def _ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort().astype(float)
