"""The section on metric 1: the images themselves, and how far they are from real ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparring import figures
from sparring.figures import Theme
from sparring.report.page import Picture, Section, as_picture
from sparring.report.retrain import curves
from sparring.report.retrain.curves import GENERATIONS, section
from sparring.report.retrain.experiment import Experiment, in_words
from sparring.training.fooling import BINS, FoolingSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # images of a class in a grid
SHOWN_OF_BIN = 2  # and of a class and an interval of p(target)
HOW_TO_READ = (
    "One row a class{real} what the attack made for that class. An orange frame: the network is fooled, with the "
    "probability asked for and few enough pixels lit. On the right, how many of the class's attempts fool it."
)


def images(found: Experiment) -> Section:
    """Grids by class and by probability, histograms, and the out-of-distribution score."""
    real = ": a real image on the left, then" if found.real else ":"
    pictures = [*_grids(found), *_histograms(found), *_outside(found)]
    return section("1", pictures, HOW_TO_READ.format(real=real))


def detection(found: Experiment, metric: str) -> Section:
    """One of the metrics 2 to 7; with a grid of images where they are made against another network or another way."""
    sets = found.others.get(metric)
    grid = [
        Picture(
            f"{metric}_images",
            "The images",
            "those made last, as in the grids above",
            f"Grid of the images of metric {metric}, one row for each class.",
            partial(_by_success, found, sets[-1]),
        )
    ] if sets else []  # fmt: skip
    return section(metric, [*curves.detection(found, metric), *grid])


def _grids(found: Experiment) -> Iterator[Picture]:
    for stage in found.stages():
        yield Picture(
            f"images_{stage.file}",
            stage.title,
            stage.text,
            f"Grid of images made to fool the network, one row for each class: {stage.text}.",
            partial(_by_success, found, stage.attempts),
        )
    for stage in found.stages():
        yield Picture(
            f"bins_{stage.file}",
            f"{stage.title}, by probability",
            "p(target) above the columns; on the right, the attempts in each interval",
            f"Grid of images made to fool the network, one row for each class, sorted by p(target): {stage.text}.",
            partial(_by_bin, found, stage.attempts),
        )


def _by_success(found: Experiment, shown: FoolingSet, theme: Theme) -> Figure:
    rows = []
    for c in range(found.classes):
        of_class = shown[shown.targets == c]
        order = torch.argsort(of_class.success.int(), descending=True, stable=True)[:SHOWN]
        pictures: list[np.ndarray | None] = [None] * SHOWN
        framed = [False] * SHOWN
        pictures[: len(order)] = map(as_picture, of_class.images[order])
        framed[: len(order)] = of_class.success[order].tolist()
        rows.append((str(c), pictures, framed, f"{int(of_class.success.sum())} of {len(of_class)}"))
    return figures.image_grid(theme, rows, _reals(found))


def _by_bin(found: Experiment, shown: FoolingSet, theme: Theme) -> Figure:
    rows = []
    for c in range(found.classes):
        of_class = shown[shown.targets == c]
        bins = of_class.bins()
        pictures: list[np.ndarray | None] = []
        framed: list[bool] = []
        for i in range(len(BINS)):
            of_bin = of_class[bins.index == i][:SHOWN_OF_BIN]
            empty = SHOWN_OF_BIN - len(of_bin)
            pictures += [*map(as_picture, of_bin.images), *[None] * empty]
            framed += [*of_bin.success.tolist(), *[False] * empty]
        rows.append((str(c), pictures, framed, " ".join(map(str, bins.counts.tolist()))))
    return figures.image_grid(theme, rows, _reals(found), BINS)


def _reals(found: Experiment) -> list[np.ndarray]:
    return [as_picture(image) for image in found.real["images"]] if found.real else []


def _histograms(found: Experiment) -> list[Picture]:
    stages = found.stages()
    if not stages:
        return []
    limit, p_min = found.limit(stages[0].attempts.images[0].numel()), found.settings["p_min"]
    prob = {stage.title.lower(): stage.attempts.prob.double().numpy() for stage in stages}
    lit = {stage.title.lower(): stage.attempts.sparsity.double().numpy() for stage in stages}
    if found.real:
        lit["real images"] = found.real["sparsity"].double().numpy()
    top = max(limit, *(values.max() for values in lit.values()))
    width = math.ceil(top / 25)
    edge = limit + 0.5  # counts are whole: bins of whole width, one of which ends at the limit
    bins = np.arange(edge - width * math.ceil(edge / width), top + 0.5 + width, width)
    return [
        Picture(
            "histogram_prob",
            "Probability of the wanted class",
            "right of the dashed line it is high enough",
            "Histogram of the network's probability for the target class, before, during and after.",
            partial(
                figures.histograms,
                groups=prob, x="p(target)", bins=np.linspace(0, 1, 21), level=(f"asked: {p_min:g}", p_min),
            ),
        ),
        Picture(
            "histogram_sparsity",
            "Pixels lit",
            "left of the dashed line the image is sparse enough",
            "Histogram of the number of lit pixels of the attempts, and of real images.",
            partial(
                figures.histograms,
                groups=lit, x="entries above black", bins=bins, level=(f"limit: {limit}", edge),
            ),
        ),
    ]  # fmt: skip


def _outside(found: Experiment) -> Iterator[Picture]:
    """How far the images are from the training set, and what another network says to them."""
    distances = found.over_generations({"fooling images": "1/distance", "real test images": "1/distance_real"})
    if distances:
        yield Picture(
            "1_distance",
            "Distance to the training set",
            "of each image to the nearest training image, L2: mean",
            f"Curves of the mean distance to the nearest training image, by generation: {in_words(distances)}.",
            partial(figures.curves, series=distances, x=GENERATIONS, y="L2 distance"),
        )
    other = found.over_generations({"fooling images": "1/max_prob", "real test images": "1/max_prob_real"})
    if other:
        yield Picture(
            "1_max_prob",
            "What an independent network says",
            "its largest probability, of any class: mean",
            f"Curves of the mean largest probability under an independent network, by generation: {in_words(other)}.",
            partial(figures.curves, series=other, x=GENERATIONS, y="", shares=True),
        )
