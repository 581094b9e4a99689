"""The sections of numbers over generations and epochs: metrics 0 and 2 to 10, the selection, the losses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from sparring import figures
from sparring._text import percent
from sparring.report.page import Draw, Picture, Section, Table
from sparring.report.retrain.experiment import PROCESSES, Experiment, in_words
from sparring.runs import Record
from sparring.training.fooling import BINS
from sparring.training.metrics import METRICS

GENERATIONS = "generations of retraining before the attack"

# What is shown of a metric on fooling images, by its name in the figure.
DETECTION = {
    "caught": "caught",
    "exact fake class": "caught_exact",
    "p(fake class)": "prob_fake",
    "largest p": "max_prob",
}


SELECTION = (
    "2 / H = 1 / A + mean(1 / C): A the accuracy on images to validate on, or else on test images, C the shares "
    "caught of each of the sets 2 to 7 that there are. H is high only where nothing is forgotten for anything else."
)


def title(metric: str) -> str:
    """A metric's title in the list of metrics, with the process that made the images where there are several."""
    found = METRICS[metric.split("-")[0]].title
    return f"{found}: {PROCESSES[metric]}" if metric in PROCESSES else found


def section(metric: str, pictures: Sequence[Picture], more: str = "", table: Table | None = None) -> Section:
    """The section of a metric, headed by the title and the line of meaning that the list of metrics has for it."""
    text = METRICS[metric.split("-")[0]].meaning
    return Section(metric, title(metric), f"{text} {more}" if more else text, pictures, table)


def attack(found: Experiment) -> Section:
    """Metric 0: what the attack reached on each network in turn."""
    records = found.attacks
    if not records:
        return section("0", [])
    shares = found.over_generations({"fool the network": "0/yield", "mean p(target)": "0/prob"})
    lit, steps = (found.over_generations({"attempts, mean": f"0/{what}"}) for what in ("sparsity", "stop_step"))
    real = ("real images, mean", float(found.real["sparsity"].double().mean())) if found.real else None
    pictures = [
        Picture(
            "0_yield",
            "Attempts that fool it",
            "and the mean probability of the wanted class",
            f"Curves of the share of attempts that fool the network, by generation: {in_words(shares)}.",
            partial(figures.curves, series=shares, x=GENERATIONS, y="", shares=True),
        ),
        Picture(
            "0_sparsity",
            "Pixels lit",
            "mean over all attempts",
            f"Curve of the mean number of lit pixels, by generation: {in_words(lit)}.",
            partial(figures.curves, series=lit, x=GENERATIONS, y="entries above black", level=real),
        ),
        Picture(
            "0_stop_step",
            "Steps of the attack",
            "until an attempt succeeds; the whole budget where it does not",
            f"Curve of the mean number of steps of the attack, by generation: {in_words(steps)}.",
            partial(figures.curves, series=steps, x=GENERATIONS, y="steps"),
        ),
        Picture(
            "0_classes",
            "Class by class",
            "share of attempts that fool it",
            "Map of the share of attempts that fool the network, by class and generation.",
            _map(records, "generation", found.by_class("0/yield", records), x=GENERATIONS),
        ),
    ]
    binned = [record for record in records if "0/bin_0" in record]
    if binned:
        values = np.array([[record[f"0/bin_{i}"] for record in binned] for i in range(len(BINS))])
        pictures.append(
            Picture(
                "0_bins",
                "By probability",
                "share of attempts with p(target) in each interval",
                "Map of the share of attempts by the interval that p(target) is in, and generation.",
                _map(binned, "generation", values, x=GENERATIONS, rows=BINS, y="p(target)"),
            )
        )
    return section("0", pictures, "Retraining helps where fewer attempts fool it, or they need more pixels or steps.")


def detection(found: Experiment, metric: str) -> list[Picture]:
    """One of the metrics 2 to 7: are these fooling images recognised?"""
    names = {name: f"{metric}/{key}" for name, key in DETECTION.items()}
    return _by_epoch(found, metric, names, "caught", "images caught")


def real(found: Experiment, metric: str) -> Section:
    """Metric 9 or 10: real training or test images."""
    names = {"classified correctly": f"{metric}/accuracy", "taken for fooling images": f"{metric}/false_alarm"}
    return section(metric, _by_epoch(found, metric, names, "accuracy", "images classified correctly"))


def selection(found: Experiment) -> Section:
    """The harmonic mean over the epochs, and where it is best."""
    series = found.over_epochs({"caught": "selection/h", "exact fake class": "selection/h_exact"})
    if not series:
        return Section("", "", "", [])
    epochs, values = series["caught"]
    best = int(np.argmax(values)) if any(values) else None
    said = (
        "no epoch has one above 0" if best is None else f"best after epoch {epochs[best]:.0f}: {percent(values[best])}"
    )
    pictures = [
        Picture(
            "selection",
            "Harmonic mean",
            said,
            f"Curves of the harmonic mean by epoch, {in_words(series)}; {said}.",
            partial(
                figures.curves,
                series=series,
                x="epoch",
                y="",
                shares=True,
                marks=found.marks,
                at=None if best is None else ("best", epochs[best]),
            ),
        )
    ]
    return Section("", "Which epoch is the best?", SELECTION, pictures)


def losses(found: Experiment) -> Section:
    """The loss of training, and of every metric that has one."""
    real = {"training, all images": "train/loss", "9 training": "9/loss", "10 test": "10/loss"}
    fooling = {metric: f"{metric}/loss" for metric in ("2", "3", "4", "5", "6", *PROCESSES)}
    groups = {"Real images": found.over_epochs(real), "Fooling images, by metric": found.over_epochs(fooling)}
    pictures = [
        Picture(
            f"losses_{i}",
            name,
            "cross-entropy to the labels wanted: mean, in nats",
            f"Curves of the mean cross-entropy by epoch, {name.lower()}: {in_words(series)}.",
            partial(figures.curves, series=series, x="epoch", y="nats", marks=found.marks),
        )
        for i, (name, series) in enumerate(groups.items())
        if series
    ]
    return Section("", "Losses", "The numbers are those of the metrics above.", pictures)


def _by_epoch(found: Experiment, metric: str, names: dict[str, str], key: str, what: str) -> list[Picture]:
    """Curves of shares over the epochs, and a map of one of them by class; nothing without records."""
    records = [record for record in found.epochs if f"{metric}/{key}" in record]
    if not records:
        return []
    series = found.over_epochs(names)
    return [
        Picture(
            f"{metric}_curves",
            "Epoch by epoch",
            "dotted lines: a new attack",
            f"Curves by epoch, metric {metric}: {in_words(series)}.",
            partial(figures.curves, series=series, x="epoch", y="", shares=True, marks=found.marks),
        ),
        Picture(
            f"{metric}_classes",
            "Class by class",
            f"share of {what}; empty: none of that class",
            f"Map of the share of {what}, by class and epoch, metric {metric}.",
            _map(records, "epoch", found.by_class(f"{metric}/{key}", records), x="epoch"),
        ),
    ]


def _map(records: Sequence[Record], along: str, values: np.ndarray, **options: Any) -> Draw:
    return partial(figures.share_map, xs=[float(record[along]) for record in records], values=values, **options)
