"""The parts of the page: every table beside the papers' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sparring import figures
from sparring._text import number, percent
from sparring.figures import Theme
from sparring.intriguing import paper
from sparring.report.intriguing.words import claims, compared, said, transfer
from sparring.report.page import Picture, Section, Summary, Table, Tile, as_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

MAGNIFIED = 4
"""Times that differences are shown larger than they are."""
CAVEAT = (
    "The papers' networks were trained with other methods on unnamed images, and they do not say which class each "
    "image was moved to; here that is one drawn for each. What the papers conclude is which number is larger, not its "
    "size."
)


class Story:
    """What the numbers and images of a run have to say; parts whose stage is still to come are left out."""

    def __init__(
        self,
        config: dict[str, Any],
        numbers: dict[str, Any],
        tensors: Mapping[str, Tensor],
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.numbers, self.tensors, self.left_out = config, numbers, tensors, left_out or {}

    # -- the top of the page

    def summary(self) -> Summary:
        """The top of the page and its foot."""
        found = claims(self.numbers)
        held = sum(found.values())
        failing = [claim for claim, holds in found.items() if not holds]
        headline = f"{held} of {len(found)} findings hold" if found else "Networks are still being trained"
        lead = (
            "Small perturbations fool every network; they are not noise; and many fool networks that they were not "
            "made for."
        )
        if failing:
            lead = f"Not found again: {'; '.join(failing)}."
        data = [words for words in (self.config["data"]["name"], self.config["data"]["note"]) if words]
        return Summary(
            what="intriguing properties",
            headline=headline,
            good=bool(found) and not failing,
            lead=lead,
            caveat=f"{CAVEAT} Data: {', '.join(data)}.",
            tiles=self._tiles(),
            command=self.config.get("command", "sparring intriguing"),
            tables=[self._settings()],
            warnings=[f"Left out, as it cannot be computed: {name}: {why}." for name, why in self.left_out.items()],
        )

    def _tiles(self) -> list[Tile]:
        tiles = []
        if "cross-model" in self.numbers:
            found = self.numbers["cross-model"]
            tiles.append(Tile("mean distortion, FC100-100-10", number(found["distortion"]["FC100-100-10"]),
                              f"paper {paper.DISTORTION['FC100-100-10']}"))  # fmt: skip
            tiles.append(Tile("fool another network", percent(transfer(found)), "mean over all pairs"))
        if "RBF" in self.numbers:
            found = self.numbers["RBF"]["RBF"]["fgs"]
            tiles.append(Tile("RBF, FGS .25: error", percent(found["error"]), f"paper {paper.FGS_RBF[0]} %"))
            tiles.append(Tile("its confidence then", percent(found["confidence_wrong"]), f"paper {paper.FGS_RBF[1]} %"))
        return tiles

    def _settings(self) -> dict[str, Any]:
        shown = {key.replace("_", " "): value for key, value in self.config["intriguing"].items()}
        shown["train images"] = shown["train images"] or "all"
        return {"epochs at most" if key == "epochs" else key: value for key, value in shown.items()}

    # -- the page

    def sections(self) -> list[Section]:
        """The parts, in order."""
        parts = [self._networks()]
        if "cross-model" in self.numbers:
            published = {name: (*paper.CROSS_MODEL[name], paper.DISTORTION[name]) for name in paper.MODELS}
            noise = {deviation: (*row, deviation) for deviation, row in paper.NOISE.items()}
            parts += [self._images(), self._cross("cross-model", "Networks of other kinds", "C4", published, noise)]
        if "cross-training-set" in self.numbers:
            published = {name: (*paper.CROSS_SET[name], paper.CROSS_SET_DISTORTION[name]) for name in paper.HALVES}
            noise = {deviation: (*row, deviation) for deviation, row in paper.CROSS_SET_NOISE.items()}
            title = "Networks trained on other images"
            parts += [self._cross("cross-training-set", title, "C5", published, noise), self._amplified()]
        for stage, section in (
            ("smoothness", self._smoothness),
            ("FGS training", self._fgs_training),
            ("RBF", self._rbf),
            ("units", self._units),
        ):
            if stage in self.numbers:
                parts.append(section())
        return parts

    def _networks(self) -> Section:
        lines = []
        for key, found in self.numbers.items():
            if key.startswith("train "):
                name = key.removeprefix("train ")
                published = paper.TEST_ERROR.get(name)
                lines.append([
                    name, percent(found["train_error"]), percent(found["test_error"]),
                    "" if published is None else f"{published} %", str(found["epochs"]),
                ])  # fmt: skip
        off = [
            abs(100 * self.numbers[f"train {name}"]["test_error"] - error)
            for name, error in paper.TEST_ERROR.items()
            if f"train {name}" in self.numbers
        ]
        text = (
            "FC: fully connected layers with sigmoid units; in brackets the weight decay. AE: a sparse autoencoder, "
            "then softmax."
        )
        if off:
            text += f" Test errors are within {max(off):.2g} points of the paper's."
        head = ["network", "training error", "test error", "paper", "epochs"]
        return Section("C3", "The networks", text, [], Table(head, lines))

    def _images(self) -> Section:
        picture = Picture(
            "distorted",
            "Images that fool each network",
            f"of each network the images, and below them what was added, {MAGNIFIED} times larger around grey",
            "Digits as they are, and for each of six networks the same digits moved until the network takes them for "
            "another class; to the eye they look the same.",
            self._grid,
            wide=True,
        )
        text = (
            "Each image is moved as little as fools the network, to a class drawn for it. Would you read another digit?"
        )
        return Section("C1", "The images", text, [picture])

    def _grid(self, theme: Theme) -> Figure:
        originals = self.tensors["originals"]
        rows: list[tuple[str, list[np.ndarray | None], list[bool], str]] = []
        none = [False] * len(originals)
        rows.append(("", [as_picture(image) for image in originals], none, "original"))
        for name in paper.MODELS:
            changed = self.tensors[f"cross-model/{name}"]
            added = (0.5 + MAGNIFIED * (changed - originals)).clamp(0, 1)
            rows.append(("", [as_picture(image) for image in changed], none, name))
            rows.append(("", [as_picture(image) for image in added], none, ""))
        return figures.image_grid(theme, rows, [])

    def _cross(
        self, title: str, head: str, row: str, published: Mapping[str, Sequence[float]],
        published_noise: Mapping[float, Sequence[float]],
    ) -> Section:  # fmt: skip
        found = self.numbers[title]
        models: list[str] = found["models"]
        lines = [["none", *map(percent, found["clean"]), ""]]
        for name in models:
            lines.append([f"for {name}", *map(percent, found["errors"][name]), f"{found['distortion'][name]:.3f}"])
            lines.append(["paper", *(f"{value} %" for value in published[name][:-1]), f"{published[name][-1]}"])
        for deviation, shares in found["noise"].items():
            lines.append([f"noise {deviation}", *map(percent, shares), deviation])
            theirs = published_noise[float(deviation)]
            lines.append(["paper", *(f"{value} %" for value in theirs[:-1]), f"{theirs[-1]}"])
        values = np.array([found["errors"][name] for name in models])
        summary = said(found, published)
        picture = Picture(
            title.replace(" ", "-"),
            "Errors on what was made for each",
            "rows: made for; columns: shown to",
            f"Map of the error of {len(models)} networks on images made for each: {summary}",
            partial(figures.share_map, xs=[str(i + 1) for i in range(len(models))], values=values, x="shown to",
                    rows=[f"{i + 1} {name}" for i, name in enumerate(models)], y=""),
        )  # fmt: skip
        text = (
            f"{found['images']} test images, distorted for the network in each row, and the errors of the networks in "
            "the columns on them; last the mean distortion, the root of the mean squared change. "
            f"{summary}"
        )
        strong = [i for i, line in enumerate(lines) if line[0].startswith("for ")]
        return Section(row, head, text, [picture], Table(["distorted", *models, "distortion"], lines, strong))

    def _amplified(self) -> Section:
        found = self.numbers["cross-training-set"]
        lines = [[f"for {name}", *map(percent, shares)] for name, shares in found["amplified"].items()]
        text = (
            f"The same images with every distortion made larger or smaller until it is {paper.AMPLIFIED}: then they "
            f"mislead the other networks in {percent(transfer(found, 'amplified'))}, where it was "
            f"{percent(transfer(found))}."
        )
        table = Table(["distorted", *found["models"]], lines)
        return Section("C5", f"The same, rescaled to {paper.AMPLIFIED}", text, [], table)

    def _smoothness(self) -> Section:
        found = self.numbers["smoothness"]
        curves = {
            "optimised": (found["radii"], found["optimised"]),
            f"worst of {found['draws']} random": (found["radii"], found["random_worst"]),
            "random": (found["radii"], found["random"]),
        }
        at = max(range(len(found["radii"])), key=lambda i: found["optimised"][i] - found["random"][i])
        words = (
            f"at a distance of {found['radii'][at]:g} a random direction misleads {percent(found['random'][at])} of "
            f"the images, the best one {percent(found['optimised'][at])}; half are misled within {found['median']:.3g}"
        )
        picture = Picture(
            "smoothness",
            "Misled images by distance",
            words,
            f"Curves of the share of images misled by perturbations of each L2 distance: {words}.",
            partial(figures.curves, series=curves, x="L2 distance", y="", shares=True, whole=False),
        )
        text = "FC100-100-10: around an image nearly every direction is safe, but not all of them."
        return Section("C6", "Is the neighbourhood safe?", text, [picture])

    def _fgs_training(self) -> Section:
        arms = self.numbers["FGS training"]
        under = {name: percent(arm["fgs"]["error"]) for name, arm in arms.items()}
        text = (
            "A perceptron of 300 and 100 rectified units, trained as usual, with weight decay, with dropout, and on "
            f"images moved by the fast gradient sign method (FGS) with eps {paper.FGS_EPS} for half of the loss. Under "
            f"FGS the first errs on {under['plain']}, with weight decay on {under['weight decay']}, with dropout on "
            f"{under['dropout']}, trained on FGS on {under['FGS']}; on images as they are the last errs on "
            f"{percent(arms['FGS']['clean']['error'])}, the first on {percent(arms['plain']['clean']['error'])}. One "
            "step of FGS is the weakest of attacks, and a network can learn it without being robust."
        )
        lines = []
        for name, arm in arms.items():
            shares = (arm["clean"]["error"], arm["fgs"]["error"], arm["fgs"]["confidence_wrong"])
            lines.append([name, *map(percent, shares)])
        head = ["training", "error", f"error under FGS {paper.FGS_EPS}", "confidence in mistakes"]
        return Section("C9", "Training on adversarial images", text, [], Table(head, lines))

    def _rbf(self) -> Section:
        lines = []
        for name, (error, confidence) in (("FC10(1e-4)", paper.FGS_SOFTMAX), ("RBF", paper.FGS_RBF)):
            found = self.numbers["RBF"][name]
            clean, moved, clipped = (found[kind] for kind in ("clean", "fgs", "fgs clipped"))
            shares = [clean["error"], clean["confidence"]]
            for of in (moved, clipped):
                shares += [of["error"], of["confidence_wrong"]]
            lines.append([name, *map(percent, shares)])
            sure = f"{paper.CONFIDENCE_RBF_CLEAN} %" if name == "RBF" else ""
            lines.append(["paper", "", sure, f"{error} %", f"{confidence} %", "", ""])
        own, other = (self.numbers["RBF"][name]["fgs"] for name in ("RBF", "FC10(1e-4)"))
        text = (
            "One radial basis function for each class against softmax regression, under the fast gradient sign method "
            f"(FGS) with eps {paper.FGS_EPS}. Confidence is the largest probability of a class; those of the functions "
            f"need not sum to 1. The functions err on {percent(own['error'])} of the images"
            f"{_sure(own, ' and are on average sure of {} of what they say there')}; softmax regression errs on "
            f"{percent(other['error'])}{_sure(other, ', sure of {}')}. As in the paper, pixels may leave [0, 1]; last, "
            "with those clipped that do, which leaves the background no way but up."
        )
        head = [
            "network", "error", "confidence", f"error under FGS {paper.FGS_EPS}", "confidence in mistakes",
            "error, clipped", "confidence in mistakes, clipped",
        ]  # fmt: skip
        return Section("C10", "Networks that know when they do not know", text, [], Table(head, lines))

    def _units(self) -> Section:
        found = self.numbers["units"]
        lines, pictures = [], []
        for layer, of in found.items():
            for kind, words in (("units", "units"), ("random", "random directions")):
                low, high = of[kind]["interval"]
                lines.append([
                    layer, words, str(of[kind]["count"]), percent(of[kind]["purity"]),
                    f"{percent(low)} to {percent(high)}",
                ])  # fmt: skip
                pictures.append(
                    Picture(
                        f"units-{layer}-{kind}",
                        f"{layer}: {words}",
                        f"a row each: the test images that activate it most, and last the input optimised for it; "
                        f"{percent(of[kind]['purity'])} of top images are of one class",
                        f"Grid of the test images that activate eight {words} of {layer} most, and of inputs optimised "
                        "for each.",
                        partial(self._panel, layer, kind),
                    )
                )
        comparison = " ".join(compared(layer, of) for layer, of in found.items())
        text = (
            "If single units stood for something, the images that activate one would have more in common than those "
            "that activate a random direction of the same layer. Purity: the share of the top images that are of the "
            f"most frequent class among them, with a 95 % interval of its mean. {comparison} "
            "An input optimised for a unit stays faint, as a sigmoid is soon at its largest; along a direction there "
            "is more to gain."
        )
        table = Table(["layer", "of", "count", "purity", "interval"], lines, words=[1])
        return Section("C11", "Units and directions", text, pictures, table)

    def _panel(self, layer: str, kind: str, theme: Theme) -> Figure:
        top, best = (self.tensors[f"units/{layer}/{kind}/{name}"] for name in ("top", "optimised"))
        rows: list[tuple[str, list[np.ndarray | None], list[bool], str]] = []
        for i, (images, optimised) in enumerate(zip(top, best, strict=True)):
            pictures: list[np.ndarray | None] = [*map(as_picture, images), as_picture(optimised)]
            rows.append((str(i + 1), pictures, [False] * len(images) + [True], ""))
        return figures.image_grid(theme, rows, [])


def _sure(found: Mapping[str, float], words: str) -> str:
    """The words with the confidence in what is wrong; nothing where nothing is."""
    sure = percent(found["confidence_wrong"])
    return words.format(sure) if sure else ""
