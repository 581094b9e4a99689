"""The sections of curves: accuracy, weights and losses over time, accuracy by how many images are answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from sparring import figures
from sparring._text import percent
from sparring.analysis.votes import accuracy_coverage, votes
from sparring.figures import Series
from sparring.gradients.mixture import mix
from sparring.report.mixture.experiment import Experiment
from sparring.report.page import Picture, Section

LINES = 6  # in a figure that can still be read
POINTS = 400  # of the curve of a weight
WHOSE = {"mixture": "accuracy", "a member, mean": "members", "majority": "vote"}


def accuracy(found: Experiment) -> Section:
    """Accuracy over the epochs, at each budget of the attack, and of the members beside the mixture's."""
    return Section("", "Accuracy over time", "The share of test images classified correctly.", [*_accuracies(found)])


def weights(found: Experiment) -> Section:
    """The weights of the members over time."""
    if found.members == 1:
        return Section("", "", "", [])
    history = found.weights.double().numpy()
    epochs = np.linspace(0, found.end["epoch"], len(history))
    thin = np.unique(np.linspace(0, len(history) - 1, min(POINTS, len(history))).round().astype(int))
    effective = found.over_epochs({"members that count": "weights/effective"})
    least, most = history[-1].min(), history[-1].max()
    text = "Each member's probabilities enter the mixture with a weight; all weights sum to 1."
    text += (
        " They were not trained." if found.fit.weights_lr == 0 else f" Pressure towards equal ones: {found.fit.reg:g}."
    )
    pictures = [
        Picture(
            "weights",
            "Weights",
            f"from {least:.3g} to {most:.3g} at the end",
            f"Curves of the weights of {found.members} members by epoch, at the end from {least:.3g} to {most:.3g}.",
            partial(
                figures.bundle,
                xs=epochs[thin], ys=history[thin], x="epoch", y="weight", level=("equal", 1 / found.members),
            ),
        ),
        Picture(
            "weights_effective",
            "Members that count",
            "exp of the entropy of the weights: all, if they are equal",
            f"Curve of the number of members that count, by epoch: {_in_words(effective)}.",
            partial(figures.curves, series=effective, x="epoch", y="", level=("all", float(found.members))),
        ),
    ]  # fmt: skip
    return Section("", "Weights over time", text, pictures)


def coverage(found: Experiment) -> Section:
    """How accurate answers are where the mixture may abstain."""
    if not found.last or found.members == 1:
        return Section("", "", "", [])
    pictures = []
    right = found.last["labels"]
    shown_eps = found.eps or found.fit.eps
    for name, what in (("real", "test images as they are"), ("attacked", f"moved by FGS at eps {shown_eps:g}")):
        logits = found.last[f"logits/{name}"]
        last = found.weights[-1]
        mixed = mix(logits, last.double(), found.config["mixture"]["combine"]).softmax(1)
        majority = votes(logits, "majority", last)
        sure, label = mixed.double().max(1)
        ways = {
            "probability": accuracy_coverage(sure, label == right),
            "agreement": accuracy_coverage(-majority.divergence, majority.label == right),
            "votes": accuracy_coverage(majority.confidence, majority.label == right),
        }
        series: dict[str, Series] = {way: _thinned(c.coverage, c.accuracy) for way, c in ways.items()}
        words = "; ".join(f"by {way} {percent(c.at(0.5))} of at least half" for way, c in ways.items())
        pictures.append(
            Picture(
                f"coverage_{name}",
                what[0].upper() + what[1:],
                "accuracy on the images that are answered",
                f"Curves of the accuracy by the share of images that are answered, {what}: {words}.",
                partial(figures.curves, series=series, x="share answered", y="", shares=True, whole=False),
            )
        )
    text = (
        "The least sure images are left out first. Sure is an image by the probability of the mixture's answer, by how "
        "little the members' probabilities differ from their mean (agreement, by Jensen-Shannon divergence), or by the "
        "weight of the votes for the majority. At 1 all are answered."
    )
    return Section("", "If it may abstain", text, pictures)


def losses(found: Experiment) -> Section:
    """The loss of training."""
    series = found.over_epochs({"real images": "train/loss", "attacked images": "train/loss_attacked"})
    if not series:
        return Section("", "", "", [])
    picture = Picture(
        "losses",
        "Loss of training",
        "cross-entropy: mean over the epoch, in nats",
        f"Curves of the mean cross-entropy in training, by epoch: {_in_words(series)}.",
        partial(figures.curves, series=series, x="epoch", y="nats"),
    )
    return Section("", "Losses", "Of the mixture, with its labels smoothed as the settings say.", [picture])


def _accuracies(found: Experiment) -> Iterator[Picture]:
    budgets = sorted(found.fit.test_eps)
    tests = {"clean": "test/accuracy"} | {f"FGS {eps:g}": f"fgs/{eps:g}/accuracy" for eps in budgets}
    for i, names in enumerate(_batches([*tests], LINES + 1)):
        series = found.over_epochs({name: tests[name] for name in names})
        yield Picture(
            f"accuracy_{i}",
            "The mixture",
            "by eps of the attack on it",
            f"Curves of the mixture's accuracy by epoch: {_in_words(series)}.",
            partial(figures.curves, series=series, x="epoch", y="", shares=True),
        )
    if found.members > 1:
        groups = {"clean": ("test", "test images as they are")}
        if found.eps is not None:
            groups["fgs"] = (f"fgs/{found.eps:g}", f"FGS at eps {found.eps:g}")
        for file, (group, what) in groups.items():
            series = found.over_epochs({who: f"{group}/{key}" for who, key in WHOSE.items()})
            yield Picture(
                f"members_{file}",
                "The mixture and its members",
                what,
                f"Curves of accuracy by epoch, {what}: {_in_words(series)}.",
                partial(figures.curves, series=series, x="epoch", y="", shares=True),
            )
    if budgets:
        by_eps = {
            name: ([0.0, *budgets], [record[f"fgs/{eps:g}/{key}"] for eps in (0, *budgets)])
            for name, record, key in _by_eps(found)
        }
        yield Picture(
            "accuracy_by_eps",
            "By eps",
            "at first and at the end",
            f"Curves of accuracy by eps of the attack, from 0 to {budgets[-1]:g}: {_in_words(by_eps)}.",
            partial(figures.curves, series=by_eps, x="eps of FGS on the mixture", y="", shares=True, whole=False),
        )


def _by_eps(found: Experiment) -> Iterator[tuple[str, dict[str, float], str]]:
    yield "at first", found.start, "accuracy"
    yield "mixture", found.end, "accuracy"
    if found.members > 1:
        yield "a member, mean", found.end, "members"
        yield "majority", found.end, "vote"


def _in_words(series: Mapping[str, Series]) -> str:
    return "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, (_, values) in series.items())


def _batches(names: list[str], size: int) -> Iterator[list[str]]:
    for begin in range(0, len(names), size):
        yield names[begin : begin + size]


def _thinned(xs: torch.Tensor, ys: torch.Tensor) -> tuple[Sequence[float], Sequence[float]]:
    """About 25 of the points of a curve, the last one among them."""
    chosen = np.unique(np.linspace(0, len(xs) - 1, min(25, len(xs))).round().astype(int))
    return xs[chosen].tolist(), ys[chosen].tolist()
