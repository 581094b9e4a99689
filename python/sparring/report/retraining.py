"""The report of `sparring retrain`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparring import figures
from sparring._text import percent, plural
from sparring.data import Dataset
from sparring.figures import Series, Theme
from sparring.report.page import Picture, Section, Summary, Tile, as_picture, load
from sparring.runs import Run, RunError
from sparring.training.fooling import FoolingSet
from sparring.training.state import read_sets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # images of a class in a grid
CAVEAT = (
    "This is said of one attack with one budget: another process, more steps or more pixels may find what it did not. "
    "Nor does it ask whether an image might be a fair example of its class; look at them below."
)

# What each fooling metric asks: its number, title, and one line on how to read it.
DETECTION = (
    (
        2,
        "Images it was just trained on",
        "Does training work at all? Near 100 % at the end of each generation is expected.",
    ),
    (3, "Images of earlier generations", "Does it forget? A fall after a new generation means that it does."),
    (4, "Fresh images from the same attack", "Made by the newest attack but held out: learnt in general, or by heart?"),
    (5, "Fresh images from earlier attacks", "Held out like those of 4, from the attacks on the earlier networks."),
)
NAMES = {"caught": "caught", "caught_exact": "exact fake class", "prob_fake": "p(fake class)", "max_prob": "largest p"}


def keep_reference(run: Run, real: Dataset) -> None:
    """Store in the run what its report shows of the real images: one of each class, and how sparse they are."""
    from safetensors.torch import save_file

    first = torch.stack([(real.labels == c).nonzero()[0, 0] for c in range(real.classes)])
    sparsity = (real.images > 0).flatten(1).sum(1)
    save_file({"images": real.images[first].cpu(), "sparsity": sparsity.cpu()}, run.path / "real.safetensors")


def story(run: Run) -> tuple[Summary, list[Section]]:
    """What the report says of a run of `sparring retrain`, finished or not."""
    found = _Story(run)
    return found.summary(), found.sections()


class _Story:
    """What a run's numbers and images have to say."""

    def __init__(self, run: Run) -> None:
        self.config = run.config
        self.settings: dict[str, Any] = run.config["retrain"]
        self.records = run.records()
        self.epochs = [record for record in self.records if record["kind"] == "epoch"]
        self.attacks = [record for record in self.records if record["kind"] == "attack"]
        self.verdict = next((record for record in self.records if record["kind"] == "verdict"), None)
        found = run.checkpoint()
        if found is None or not self.epochs:
            raise RunError(f"{run.path} has no finished epoch yet: there is nothing to report")
        self.fresh = read_sets(found[0], "fresh")
        self.final = read_sets(found[0], "final")
        self.classes = int(self.config["data"]["classes"])
        self.marks = [record["epoch"] for record in self.attacks]
        self.real = load(run.path / "real.safetensors")

    # -- the top of the page

    def summary(self) -> Summary:
        """The top of the page and its foot."""
        last, verdict = self.epochs[-1], self.verdict
        if verdict is None:
            headline, robust = "Unfinished", False
            lead = f"{last['epoch']} epochs and {len(self.attacks)} attacks done. Go on with --resume."
        else:
            robust = bool(verdict["robust"]) and verdict["generations"] > 0
            headline = "Robust to this process" if robust else "Still fooled"
            budget = f"{verdict['attempts']} attempts of {verdict['steps']} steps each"
            sparse = f"p of at least {verdict['p_min']:g} with at most {verdict['s_max']} entries lit"
            after = f"After {verdict['generations']} {plural('generation', verdict['generations'])} of retraining, "
            lead = after + (
                f"the attack found no image that qualifies ({sparse}) in {budget}."
                if robust
                else f"{percent(verdict['8/yield'])} of {budget} still reach {sparse}."
            )
            if verdict["robust"] and not robust:
                headline = "The attack never succeeded"
                found = self.attacks[-1]
                lead = (
                    f"Not even the network before any retraining was fooled in {budget}: on average they reached "
                    f"p {found['0/prob']:.2f} with {found['0/sparsity']:.1f} entries lit, where {sparse} was asked. "
                    "This speaks of a weak attack, not of a robust network."
                )
        return Summary(
            what="retraining on fooling images",
            headline=headline,
            good=robust,
            lead=lead,
            caveat=CAVEAT,
            tiles=self._tiles(),
            command=self.config.get("command", "sparring retrain"),
            tables=[self.settings, self._setting_up()],
        )

    def _tiles(self) -> list[Tile]:
        before = [record for record in self.epochs if record["generation"] == 0]
        tiles = [self._tile("images that fool it", [r["0/yield"] for r in self.attacks], True)]
        accuracy = [r["10/accuracy"] for r in (before or self.epochs)[-1:] + self.epochs[-1:]]
        tiles.append(self._tile("accuracy on real test images", accuracy, True))
        last = self.epochs[-1]
        if "4/caught" in last:
            tiles.append(self._tile("fresh fooling images caught", [last["4/caught"]], True))
        tiles.append(self._tile("real test images rejected", [last["10/false_alarm"]], True))
        tiles.append(self._tile("pixels lit in an attempt, mean", [r["0/sparsity"] for r in self.attacks], False))
        return [tile for tile in tiles if tile.value]

    @staticmethod
    def _tile(label: str, values: Sequence[float], share: bool) -> Tile:
        shown = [percent(value) if share else f"{value:.1f}" for value in values]
        return Tile(label, shown[-1] if shown else "", f"before: {shown[0]}" if len(shown) > 1 else "")

    def _setting_up(self) -> dict[str, Any]:
        table = {"network": self.config.get("network", {}).get("name", ""), "threads": self.config.get("threads", "")}
        table |= {f"data: {key}": value for key, value in self.config["data"].items() if value is not None}
        return table | dict(self.config.get("versions", {}))

    # -- the parts of the page

    def sections(self) -> list[Section]:
        """The parts, in order; those without data are left out."""
        parts = [self._images(), self._attack(), *self._detection(), self._real(), self._losses()]
        return [part for part in parts if part is not None and part.pictures]

    def _images(self) -> Section | None:
        stages = self._stages()
        if not stages:
            return None
        pictures = [
            Picture(
                f"images_{file}",
                title,
                text,
                f"Grid of images made to fool the network, one row for each class: {title}.",
                partial(self._grid, shown),
            )
            for file, title, text, shown in stages
        ]
        return Section(
            "1",
            "The images",
            "One row a class"
            + (": a real image on the left, then " if self.real else ": ")
            + "what the attack made for that class. An orange frame: the network is fooled, with the probability asked "
            "for and few enough pixels lit. On the right, how many of the class's attempts fool it.",
            [*pictures, *self._histograms()],
        )

    def _stages(self) -> list[tuple[str, str, str, FoolingSet]]:
        stages = []
        if self.fresh:
            stages.append(("before", "Before", "attack on the network that saw real images only", self.fresh[0]))
        if len(self.fresh) > 2 or (len(self.fresh) == 2 and not self.final):
            middle = len(self.fresh) // 2
            stages.append(("during", "During", f"after {middle} {plural('generation', middle)}", self.fresh[middle]))
        for final in self.final:
            count = len(self.fresh)
            text = f"the last attack, after {count} {plural('generation', count)}"
            stages.append(("after", "After", text, final))
        return stages

    def _grid(self, shown: FoolingSet, theme: Theme) -> Figure:
        rows = []
        for c in range(self.classes):
            of_class = shown[shown.targets == c]
            order = torch.argsort(of_class.success.int(), descending=True, stable=True)[:SHOWN]
            images = [as_picture(image) for image in of_class.images[order]]
            remark = f"{int(of_class.success.sum())} of {len(of_class)}"
            rows.append((str(c), images, of_class.success[order].tolist(), remark))
        real = [as_picture(image) for image in self.real["images"]] if self.real else []
        return figures.image_grid(theme, rows, real)

    def _histograms(self) -> list[Picture]:
        stages = self._stages()
        entries = stages[0][3].images[0].numel()
        limit = self.settings["s_max"]
        limit = limit if isinstance(limit, int) else max(1, round(limit * entries))
        prob = {title.lower(): shown.prob.double().numpy() for _, title, _, shown in stages}
        lit = {title.lower(): shown.sparsity.double().numpy() for _, title, _, shown in stages}
        if self.real:
            lit["real images"] = self.real["sparsity"].double().numpy()
        top = max(limit, *(values.max() for values in lit.values()))
        width = math.ceil(top / 25)
        edge = limit + 0.5  # counts are whole: bins of whole width, one of which ends at the limit
        bins = np.arange(edge - width * math.ceil(edge / width), top + 0.5 + width, width)
        p_min = self.settings["p_min"]
        return [
            Picture(
                "histogram_prob",
                "Probability of the wanted class",
                "right of the dashed line it is high enough",
                "Histogram of the network's probability for the target class, before, during and after.",
                lambda theme: figures.histograms(
                    theme, prob, x="p(target)", bins=np.linspace(0, 1, 21), level=(f"asked: {p_min:g}", p_min)
                ),
            ),
            Picture(
                "histogram_sparsity",
                "Pixels lit",
                "left of the dashed line the image is sparse enough",
                "Histogram of the number of lit pixels of the attempts, and of real images.",
                lambda theme: figures.histograms(
                    theme, lit, x="entries above black", bins=bins, level=(f"limit: {limit}", edge)
                ),
            ),
        ]

    def _attack(self) -> Section | None:
        if not self.attacks:
            return None
        generations = [float(record["generation"]) for record in self.attacks]
        fooling = self._of_attacks("0/yield")
        found = {"fool the network": fooling, "mean p(target)": self._of_attacks("0/prob")}
        lit = {"attempts, mean": self._of_attacks("0/sparsity")}
        steps = {"mean": self._of_attacks("0/stop_step")}
        real = ("real images, mean", float(self.real["sparsity"].double().mean())) if self.real else None
        by_class = self._by_class("0/yield", self.attacks)
        x = "generations of retraining before the attack"
        return Section(
            "0",
            "Does the attack find sparse images that fool the network?",
            "The attack on each network in turn. Retraining helps where the share of attempts that fool it falls, "
            "or where they need more pixels or more steps.",
            [
                Picture(
                    "0_yield",
                    "Attempts that fool it",
                    "and the mean probability of the wanted class",
                    f"Curve of the share of attempts that fool the network, by generation: {_from_to(fooling)}.",
                    lambda theme: figures.curves(theme, found, x=x, y="", shares=True),
                ),
                Picture(
                    "0_sparsity",
                    "Pixels lit",
                    "mean over all attempts",
                    "Curve of the mean number of lit pixels of the attempts by generation.",
                    lambda theme: figures.curves(theme, lit, x=x, y="entries above black", level=real),
                ),
                Picture(
                    "0_stop_step",
                    "Steps of the attack",
                    "until an attempt succeeds; the whole budget where it does not",
                    "Curve of the mean number of steps of the attack by generation.",
                    lambda theme: figures.curves(theme, steps, x=x, y="steps"),
                ),
                Picture(
                    "0_classes",
                    "Class by class",
                    "share of attempts that fool it",
                    "Map of the share of attempts that fool the network, by class and generation.",
                    lambda theme: figures.share_map(theme, generations, by_class, x=x),
                ),
            ],
        )

    def _detection(self) -> list[Section]:
        sections = []
        for number, title, text in DETECTION:
            records = [record for record in self.epochs if f"{number}/caught" in record]
            series = {name: self._of_epochs(f"{number}/{key}") for key, name in NAMES.items()}
            series = {name: values for name, values in series.items() if values[0]}
            if records:
                pictures = self._pair(f"{number}", series, f"{number}/caught", records, "images caught")
                sections.append(Section(str(number), title, text, pictures))
        return sections

    def _real(self) -> Section:
        accuracy = {"training": self._of_epochs("9/accuracy"), "test": self._of_epochs("10/accuracy")}
        alarms = {"training": self._of_epochs("9/false_alarm"), "test": self._of_epochs("10/false_alarm")}
        rejected = Picture(
            "9_10_false_alarms",
            "Taken for fooling images",
            "real images that the network rejects",
            f"Curves of the share of real images taken for fooling images by epoch; test: {_from_to(alarms['test'])}.",
            lambda theme: figures.curves(theme, alarms, x="epoch", y="", shares=True, marks=self.marks),
        )
        curve, classes = self._pair("9_10", accuracy, "10/accuracy", self.epochs, "test images classified correctly")
        return Section(
            "9, 10",
            "Real images",
            "What retraining costs: accuracy on real training (9) and test images (10). With fake classes, a real "
            "image that is taken for a fooling image counts as wrong.",
            [curve, rejected, classes],
        )

    def _losses(self) -> Section:
        names = {2: "2 current", 3: "3 past", 4: "4 fresh", 9: "9 training", 10: "10 test"}
        losses = {name: self._of_epochs(f"{number}/loss") for number, name in names.items()}
        losses = {name: values for name, values in losses.items() if values[0]}
        picture = Picture(
            "losses",
            "Cross-entropy",
            "to the labels wanted: mean, in nats",
            "Curves of the mean cross-entropy of each metric by epoch.",
            lambda theme: figures.curves(theme, losses, x="epoch", y="nats", marks=self.marks),
        )
        return Section("", "Losses", "The numbers are those of the metrics above.", [picture])

    def _pair(
        self, file: str, series: dict[str, Series], by_class: str, records: list[dict[str, Any]], what: str
    ) -> list[Picture]:
        """A figure of curves over the epochs, and a map of one metric by class."""
        values = self._by_class(by_class, records)
        epochs = [float(record["epoch"]) for record in records]
        first = next(iter(series))
        metric = file.replace("_", " and ")
        return [
            Picture(
                f"{file}_curves",
                "Epoch by epoch",
                "dotted lines: a new attack",
                f"Curves of {', '.join(series)} by epoch, metric {metric}; {first} goes {_from_to(series[first])}.",
                lambda theme: figures.curves(theme, series, x="epoch", y="", shares=True, marks=self.marks),
            ),
            Picture(
                f"{file}_classes",
                "Class by class",
                f"share of {what}; empty: none of that class",
                f"Map of the share of {what}, by class and epoch, metric {metric}.",
                lambda theme: figures.share_map(theme, epochs, values, x="epoch"),
            ),
        ]

    def _of_epochs(self, name: str) -> Series:
        return _series(self.epochs, name, "epoch")

    def _of_attacks(self, name: str) -> Series:
        return _series(self.attacks, name, "generation")

    def _by_class(self, name: str, records: list[dict[str, Any]]) -> np.ndarray:
        return np.array(
            [[record.get(f"{name}/class_{c}", np.nan) for record in records] for c in range(self.classes)], dtype=float
        )


def _series(records: list[dict[str, Any]], name: str, x: str) -> Series:
    having = [record for record in records if name in record]
    return [float(record[x]) for record in having], [float(record[name]) for record in having]


def _from_to(series: Series) -> str:
    return f"from {series[1][0]:.3g} to {series[1][-1]:.3g}"
