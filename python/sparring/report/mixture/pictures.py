"""The sections of images and of histograms: attacked images, filters, values of weights and gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sparring import figures
from sparring._text import percent
from sparring.figures import Theme
from sparring.report.mixture.experiment import Experiment
from sparring.report.page import Picture, Section, as_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

LAYERS = 4  # whose histograms are shown


def attacked(found: Experiment) -> Section:
    """Real images beside attacked ones, with what the mixture says of them."""
    kept = found.last
    if not kept:
        return Section("", "", "", [])
    eps = found.eps or found.fit.eps
    fooled = _labels(kept["answers/attacked"]) != kept["images/labels"]
    words = f"{int(fooled.sum())} of {len(fooled)} move the answer away from the class"
    text = (
        "One test image of each class: as it is, moved, and the difference (blue: brighter, orange: darker). On the "
        "right, what the mixture takes the two for, with its probability. An orange frame: it is wrong."
    )
    picture = Picture(
        "images",
        f"Real and moved by FGS, eps {eps:g}",
        words,
        f"Grid of a test image of each class, the same moved by FGS at eps {eps:g}, and their difference; {words}.",
        partial(_attacked, found, eps),
    )
    return Section("", "Images", text, [picture])


def filters(found: Experiment) -> Section:
    """What the first layer of some members looks for, before and after training."""
    pictures = []
    for name, title, kept in (("first", "Before training", found.first), ("last", "After training", found.last)):
        if "filters" in kept:
            members, units = kept["filters"].shape[:2]
            pictures.append(
                Picture(
                    f"filters_{name}",
                    title,
                    f"a row for each of {members} members: {units} units",
                    f"Grid of the weights of the first layer as images, {title.lower()}: {units} units of "
                    f"{members} members.",
                    partial(_filters, kept["filters"]),
                )
            )
    text = (
        "The weights of the first layer, unit by unit, as images: blue is positive, orange negative, paper 0; each "
        "unit is scaled by its largest weight."
    )
    return Section("", "Filters", text, pictures)


def histograms(found: Experiment) -> Section:
    """Weights of some layers, and the loss's gradients there, before and after training."""
    pictures = []
    names = [key.removeprefix("parameter/") for key in found.last if key.startswith("parameter/")]
    shown = names if len(names) <= LAYERS else [names[i * (len(names) - 1) // (LAYERS - 1)] for i in range(LAYERS)]
    for name in shown:
        for kind, title in (("parameter", "weights"), ("gradient", "gradients")):
            both = {
                when: kept.get(f"{kind}/{name}")
                for when, kept in (("at first", found.first), ("at the end", found.last))
            }
            groups = {when: _finite(values) for when, values in both.items() if values is not None}
            groups = {when: values for when, values in groups.items() if len(values)}
            if groups:
                spread = ", ".join(f"{when} {values.std():.2g}" for when, values in groups.items())
                largest = max(float(np.quantile(np.abs(values), 0.998)) for values in groups.values()) or 1.0
                pictures.append(
                    Picture(
                        f"histogram_{kind}_{name}",
                        f"{name}: {title}",
                        f"standard deviation: {spread}",
                        f"Histogram of the {title} of {name} in all members; standard deviation {spread}.",
                        partial(
                            figures.histograms,
                            groups=groups, x=title, bins=np.linspace(-largest, largest, 42), of="entries",
                        ),
                    )
                )  # fmt: skip
    text = (
        "Of all members together, a sample of the entries. Gradients are those of the loss of training, on a batch of "
        "test images; what is beyond the ends is counted in the last bars."
    )
    return Section("", "Weights and gradients", text, pictures)


def _attacked(found: Experiment, eps: float, theme: Theme) -> Figure:
    kept = found.last
    rows = []
    for i, label in enumerate(kept["images/labels"].tolist()):
        real, moved = kept["images/real"][i], kept["images/attacked"][i]
        shown: list[np.ndarray | None] = [as_picture(real), as_picture(moved), _signed(moved - real, eps)(theme)]
        said = [kept[f"answers/{name}"][i].max(0) for name in ("real", "attacked")]
        wrong = [int(answer.indices) != label for answer in said]
        remark = ", ".join(f"{int(answer.indices)} ({percent(float(answer.values))})" for answer in said)
        rows.append((str(label), shown, [*wrong, False], remark))
    return figures.image_grid(theme, rows, (), ("real", "moved", "difference"))


def _filters(weights: Tensor, theme: Theme) -> Figure:
    rows = []
    for i, units in enumerate(weights):
        images: list[np.ndarray | None] = [_signed(unit, float(unit.abs().max()))(theme) for unit in units]
        rows.append((str(i), images, [False] * len(images), ""))
    return figures.image_grid(theme, rows, ())


def _signed(image: Tensor, largest: float) -> Callable[[Theme], np.ndarray]:
    """An image (C, H, W) of values with signs; of several channels their mean."""
    return lambda theme: figures.signed(theme, image.float().mean(0).numpy(), largest)


def _labels(answers: Tensor) -> Tensor:
    return answers.argmax(1)


def _finite(values: Tensor) -> np.ndarray:
    found: np.ndarray = values[values.isfinite()].double().numpy()
    return found
