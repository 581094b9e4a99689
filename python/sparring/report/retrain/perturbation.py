"""The section on clean images perturbed by fooling images, P = clip(Q + alpha R), and what it is made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparring import _files, figures
from sparring._text import number, percent
from sparring.figures import Theme
from sparring.report.page import Picture, Section, Table, as_picture, load
from sparring.report.retrain.experiment import Experiment
from sparring.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from sparring.analysis import Perturbations
    from sparring.data import Dataset
    from sparring.training.fooling import FoolingSet

FILE = "perturbation.safetensors"
EACH = 3  # fooling images of each target, and real images of each class: all pairs of them are tried
SHOWN = 2  # pairs of a class in the strip of pictures
TEXT = (
    "How much of a fooling image R, added to a real test image Q, makes the final network see R's class with p above "
    ".9? The table gives the median of the smallest alpha in clip(Q + alpha R, 0, 1), a row for each class that the "
    "network gives R, a column for each true class of Q; ∞: half of the pairs or more never do, up to alpha 300."
)


def keep_perturbation(run: Run, model: nn.Module, test: Dataset, made: FoolingSet) -> None:
    """Perturb test images by the images `made`, those likeliest for each target, and store in the run what it took.

    Nothing is done if the run has it already, or if there is no image.
    """
    from sparring.analysis import perturb

    path = run.path / FILE
    if path.exists() or not len(made):
        return
    likeliest = made.prob.argsort(descending=True, stable=True)
    chosen = torch.cat([likeliest[made.targets[likeliest] == c][:EACH] for c in range(test.classes)])
    first = torch.cat([(test.labels == c).nonzero()[:EACH, 0] for c in range(test.classes)])
    found = perturb(model, test.images[first], test.labels[first], made.images[chosen])
    shown = _shown(found)
    q, r, p = found.strip(shown).unbind(1)
    kept = {
        "attack": found.attack_class, "truth": found.true_class, "alpha": found.alpha,
        "shown/attack": found.attack_class[shown], "shown/alpha": found.alpha[shown],
        "shown/q": q, "shown/r": r, "shown/p": p,
    }  # fmt: skip
    _files.write(path, _files.packed(kept))


def section(found: Experiment) -> Section:
    """Smallest alpha by attack class and true class, and a strip of pictures; nothing without the file."""
    kept = load(found.run.path / FILE)
    if not kept:
        return Section("", "", "", [])
    attack, truth, alpha = kept["attack"], kept["truth"], kept["alpha"].nan_to_num(nan=math.inf)
    rows = sorted(set(attack.tolist()))
    groups = [[alpha[(attack == a) & (truth == c)] for c in range(found.classes)] for a in rows]
    medians = [[number(float(of.median())).replace("inf", "∞") if len(of) else "" for of in row] for row in groups]
    shares = np.array([[float(of.isfinite().double().mean()) if len(of) else np.nan for of in row] for row in groups])
    names = [_class(a, found.classes) for a in rows]
    whole = percent(float(alpha.isfinite().double().mean()))
    pictures = [
        Picture(
            "perturbation_shares",
            "Pairs that come to be seen as R",
            f"with some alpha; of all pairs {whole}",
            f"Map of the share of pairs for which some alpha suffices, by class of R and true class; of all {whole}.",
            partial(
                figures.share_map,
                xs=[float(c) for c in range(found.classes)],
                values=shares,
                x="true class of Q",
                rows=names,
                y="class of R",
            ),
        )
    ]
    if len(kept["shown/alpha"]):
        pictures.insert(
            0,
            Picture(
                "perturbation_pairs",
                "Real, fooling, and both",
                "for each class that R is seen as, two pairs with the smallest alpha above 0",
                "Grid of images, a row for each class of R: a real image Q, a fooling image R, and clip(Q + alpha R).",
                partial(_pairs, kept, found.classes),
            ),
        )
    head = ["R seen as", *(f"Q is {c}" for c in range(found.classes))]
    lines = [[name, *line] for name, line in zip(names, medians, strict=True)]
    return Section("", "Real images perturbed by fooling images", TEXT, pictures, Table(head, lines))


def _shown(found: Perturbations) -> Tensor:
    """Of each attack class `SHOWN` pairs with the smallest alpha above 0, each with another true class of Q."""
    indices = []
    order = found.alpha.argsort(stable=True)
    order = order[found.alpha[order] > 0]  # NaN, where no alpha was found, is not
    for c in sorted(set(found.attack_class.tolist())):
        of_class = order[found.attack_class[order] == c]
        truths = found.true_class[of_class].tolist()
        indices += [of_class[truths.index(t)] for t in [*dict.fromkeys(truths)][:SHOWN]]
    return torch.stack(indices) if indices else order[:0]


def _pairs(kept: dict[str, Tensor], classes: int, theme: Theme) -> Figure:
    rows: list[tuple[str, Sequence[np.ndarray | None], Sequence[bool], str]] = []
    for c in sorted(set(kept["shown/attack"].tolist())):
        of_class = (kept["shown/attack"] == c).nonzero()[:, 0].tolist()
        pictures: list[np.ndarray | None] = [None] * (3 * SHOWN)
        for i, index in enumerate(of_class):
            pictures[3 * i : 3 * i + 3] = [as_picture(kept[f"shown/{key}"][index]) for key in "qrp"]
        alphas = ", ".join(number(float(kept["shown/alpha"][index])) for index in of_class)
        rows.append((_class(c, classes), pictures, [False] * len(pictures), f"α {alphas}"))
    return figures.image_grid(theme, rows, [], ("Q", "R", "Q + αR") * SHOWN)


def _class(c: int, classes: int) -> str:
    """A class of the network, of which those from `classes` on are fake."""
    return str(c) if c < classes else f"fake {c - classes}"
