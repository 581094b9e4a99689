"""The report of `sparring audit`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparring import _files, figures
from sparring._text import number, percent, plural
from sparring.figures import Series, Theme
from sparring.report import bracket
from sparring.report.page import Picture, Section, Summary, Table, Tile, as_picture, load
from sparring.runs import Run, RunError, content

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from sparring.analysis import Bracket
    from sparring.evaluation import Evaluation

RESULTS = "results.json"
KEPT = 8  # adversarial examples of each class and attack, for the pictures
POINTS = 16  # of a curve
CAVEAT = (
    "An upper bound: another attack, more steps or more restarts can only find more. "
    "From {images} images, chance alone leaves a 95 % interval of {intervals}."
)
MEANING = {
    "Linf": "every entry moved by at most {eps}",
    "L2": "a Euclidean distance of at most {eps}",
    "L1": "moves that add up to at most {eps}",
    "L0": "at most {eps} entries changed",
    "pixels": "at most {eps} pixels changed",
}


def save(run: Run, evaluation: Evaluation, x: Tensor, brackets: Mapping[str, Bracket] | None = None) -> None:
    """Write what an evaluation of `x` found: results.json, and examples.safetensors with everything per example.

    So too both sides of brackets of the same examples, if there are any.
    """
    tensors = {"labels": evaluation.labels, "predictions": evaluation.predictions, "robust": evaluation.robust}
    shown = [row.examples.index for row in evaluation.rows]
    originals = torch.tensor(sorted({int(i) for index in shown for i in index}), dtype=torch.int64)
    tensors |= {"originals/index": originals, "originals/images": x.cpu()[originals]}
    for i, row in enumerate(evaluation.rows):
        found = {
            "attacked": row.attacked, "robust": row.robust, "fooled": row.fooled, "infeasible": row.infeasible,
            "steps": row.steps, "bad_grad": row.bad_grad, "examples/index": row.examples.index,
            "examples/images": row.examples.images, "examples/predictions": row.examples.predictions,
        } | {f"distance/{norm}": distance for norm, distance in row.distances.items()}  # fmt: skip
        tensors |= {f"{i}/{name}": tensor for name, tensor in found.items() if tensor is not None}
    tensors |= bracket.tensors(brackets or {})
    numbers = json.dumps(bracket.added(evaluation.to_dict(), brackets or {}), indent=1) + "\n"
    # Both or none, whenever the process ends: that there are results means that there are examples.
    _files.write_all({run.path / "examples.safetensors": _files.packed(tensors), run.path / RESULTS: numbers})


def exist(path: Path) -> bool:
    """Whether the audit in a folder came to its end."""
    return (path / RESULTS).is_file()


def story(run: Run) -> tuple[Summary, list[Section]]:
    """What the report says of a run of `sparring audit`."""
    if not exist(run.path):
        raise RunError(f"{run.path} has no results.json: the audit did not come to its end, there is nothing to report")
    found = _Story(run)
    return found.summary(), found.sections()


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share found in `count` examples."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


class _Story:
    """What the numbers and images of an audit have to say."""

    def __init__(self, run: Run) -> None:
        self.config = run.config
        try:
            self.found = json.loads(content(run.path / RESULTS))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{run.path / RESULTS} is not valid JSON: {error}") from error
        self.tensors = load(run.path / "examples.safetensors")
        self.attacks: list[dict[str, Any]] = self.found["attacks"]
        self.cases: list[dict[str, Any]] = self.found["worst_case"]
        self.clean = self.found["clean"]["accuracy"]
        self.images: int = self.found["images"]

    # -- the top of the page

    def summary(self) -> Summary:
        """The top of the page and its foot."""
        data, found = self.config["data"], [case["accuracy"] for case in self.cases]
        worst = min(found)
        if len(found) == 1:
            headline = f"Robust accuracy {percent(worst)}"
        elif len(found) <= 3:
            shares = [f"{percent(case['accuracy'])} ({_threat(case)})" for case in self.cases]
            headline = f"Robust accuracy {', '.join(shares)}"
        else:
            headline = f"Robust accuracy from {percent(max(found))} to {percent(worst)}"
        norms = dict.fromkeys(case["norm"] for case in self.cases)
        lead = (
            f"Of {self.images} {data['name']} test {plural('image', self.images)} the model classifies "
            f"{percent(self.clean)} correctly as they are. {' '.join(map(self._sentence, norms))}"
        )
        ends = [interval(share, self.images) for share in found]
        intervals = ", ".join(f"{percent(low)} to {percent(high)}" for low, high in ends[:3])
        if len(ends) > 3:
            intervals = f"up to {100 * max(high - low for low, high in ends):.1f} points in width"
        return Summary(
            what="audit",
            headline=headline,
            good=worst >= self.clean / 2 and not self.found["warnings"],
            lead=lead,
            caveat=CAVEAT.format(images=self.images, intervals=intervals),
            tiles=self._tiles(),
            command=self.config.get("command", "sparring audit"),
            tables=[self._settings(), self._setting_up()],
            warnings=[f"{warning[0].upper()}{warning[1:]}." for warning in self.found["warnings"]],
        )

    def _sentence(self, norm: str) -> str:
        """What withstands in one norm."""
        cases = [case for case in self.cases if case["norm"] == norm]
        eps = f"{', '.join(map(_eps, cases[:-1]))} or {_eps(cases[-1])}" if len(cases) > 1 else _eps(cases[0])
        shares = [percent(case["accuracy"]) for case in cases]
        left = f"{', '.join(shares[:-1])} and {shares[-1]}" if len(shares) > 1 else shares[0]
        counts = {case["attacks"] for case in cases}
        all_of_them = "the one attack" if counts == {1} else f"all {max(counts)} attacks" if len(counts) == 1 else "all"
        return f"With {MEANING[norm].format(eps=eps)} ({norm}), {left} withstand {all_of_them}" + (
            ", in this order." if len(cases) > 1 else "."
        )

    def _tiles(self) -> list[Tile]:
        tiles = [Tile("accuracy on the images as they are", percent(self.clean), f"{self.images} images")]
        for case in self.cases:
            strongest = min(self._of(case), key=lambda attack: attack["accuracy"])
            small = f"strongest attack: {strongest['name']}"
            tiles.append(Tile(f"robust accuracy, {_threat(case)}", percent(case["accuracy"]), small))
        seconds = sum(attack["seconds"] for attack in self.attacks)
        tiles.append(Tile("time of the attacks", f"{seconds:.0f} s", f"{len(self.attacks)} attacks"))
        return tiles

    def _settings(self) -> dict[str, Any]:
        ran = ", ".join(f"{attack['name']} ({_threat(attack)})" for attack in self.attacks)
        settings = {name: value for name, value in self.config["audit"].items() if name not in ("attacks", "eps")}
        return {"attacks": ran} | {name: value for name, value in settings.items() if value is not None}

    def _setting_up(self) -> dict[str, Any]:
        table = {"weights": self.config["weights"]["file"], "network": self.config["network"]["name"]}
        table |= {f"data: {key}": value for key, value in self.config["data"].items() if value is not None}
        table |= {key: self.config[key] for key in ("device", "threads")}
        return table | dict(self.config.get("versions", {}))

    # -- the parts of the page

    def sections(self) -> list[Section]:
        """The parts, in order; those without data are left out."""
        parts = [self._overview(), self._sizes(), self._bracket(), self._classes(), self._images(), self._progress()]
        return [part for part in parts if part.pictures or part.table]

    def _of(self, case: dict[str, Any]) -> list[dict[str, Any]]:
        """The attacks under one threat model."""
        return [attack for attack in self.attacks if _threat(attack) == _threat(case)]

    def _overview(self) -> Section:
        counted = (norm for norm in ("L0", "pixels") if any(case["norm"] == norm for case in self.cases))
        norms = ["Linf", "L2", "L1", *counted]
        head = ["attack", "norm", "eps", "robust", "fooled", "steps", "seconds", *norms]
        text = (
            "Each attack is run on the images that are classified correctly as they are; what it returns is classified "
            "and measured again. robust: the share of all images that are still classified correctly; steps: their "
            f"mean number until an image is fooled, or all of them; {', '.join(norms)}: median distances of what "
            "fooled the model."
        )
        outside = any(attack["infeasible"] for attack in self.attacks)
        if outside:
            head.append("not allowed")
            text += " Not allowed are points farther than eps or out of bounds, which do not count."
        if self.found["worst_case_only"]:
            text += " An attack was run only on what those before it had left, so its figure includes theirs."
        lines, strong = [["none", "", "", percent(self.clean)]], []
        for case in self.cases:
            for attack in self._of(case):
                medians = [number(attack["distances"][norm]["median"]) for norm in norms]
                lines.append([
                    attack["name"], attack["norm"], _eps(attack), percent(attack["accuracy"]),
                    f"{attack['fooled']} of {attack['attacked']}", number(attack["steps"]),
                    f"{attack['seconds']:.1f}", *medians, *([str(attack["infeasible"])] if outside else []),
                ])  # fmt: skip
            strong.append(len(lines))
            lines.append(["worst case", case["norm"], _eps(case), percent(case["accuracy"])])
        filled = [line + [""] * (len(head) - len(line)) for line in lines]
        return Section("", "Attack by attack", text, [self._bars(case) for case in self.cases],
                       Table(head, filled, strong))  # fmt: skip

    def _bars(self, case: dict[str, Any]) -> Picture:
        values = {attack["name"]: attack["accuracy"] for attack in self._of(case)} | {"worst case": case["accuracy"]}
        words = ", ".join(f"{name} {percent(value)}" for name, value in values.items())
        return Picture(
            f"accuracy_{_file(case)}",
            f"Robust accuracy, {_threat(case)}",
            "the images that each attack leaves standing",
            f"Bars of the robust accuracy with {_threat(case)}: {words}; without attack {percent(self.clean)}.",
            lambda theme: figures.bars(
                theme, values, x="robust accuracy", level=("without attack", self.clean), strong=["worst case"]
            ),
        )

    def _sizes(self) -> Section:
        pictures = []
        for norm in dict.fromkeys(case["norm"] for case in self.cases):
            cases = sorted((c for c in self.cases if c["norm"] == norm and isinstance(c["eps"], float)), key=_size)
            if len(cases) > 1:
                xs, ys = [0.0, *map(_size, cases)], [self.clean, *(case["accuracy"] for case in cases)]
                words = ", ".join(f"{percent(y)} at {x:.4g}" for x, y in zip(xs, ys, strict=True))
                pictures.append(
                    Picture(
                        f"eps_{norm}",
                        f"Robust accuracy by eps, {norm}",
                        "in the worst case",
                        f"Curve of the robust accuracy in the worst case by eps in {norm}: {words}.",
                        partial(
                            figures.curves,
                            series={"worst case": (xs, ys)},
                            x=f"eps, {norm}",
                            y="",
                            shares=True,
                            whole=False,
                        ),
                    )
                )
        text = "A larger eps allows all that a smaller one does: where the curve rises, the attacks have failed."
        return Section("", "How it falls with eps", text, pictures)

    def _bracket(self) -> Section:
        return bracket.section(self.found, self.tensors)

    def _classes(self) -> Section:
        pictures = []
        for case in self.cases:
            rows = {"no attack": self.found["clean"], **{a["name"]: a for a in self._of(case)}, "worst case": case}
            values = np.array([row["per_class"] for row in rows.values()], dtype=float)
            classes = [float(c) for c in range(values.shape[1])]
            known = np.nan_to_num(values[-1], nan=2.0)
            weakest = int(known.argmin())
            words = f"class {weakest} is the weakest, with {percent(float(known[weakest]))} in the worst case"
            words = words if case["accuracy"] else "no image of any class withstands all"
            pictures.append(
                Picture(
                    f"classes_{_file(case)}",
                    f"Robust accuracy by class, {_threat(case)}",
                    words,
                    f"Map of the robust accuracy by class and attack with {_threat(case)}: {words}.",
                    partial(figures.share_map, xs=classes, values=values, x="class", rows=[*rows], y=""),
                )
            )
        text = "The share of the images of each class that stays classified correctly; empty: no image of that class."
        return Section("", "Class by class", text, pictures)

    def _images(self) -> Section:
        pictures = []
        for case in self.cases:
            attacks = [a for a in self._of(case) if a["kind"] != "noise" and len(self._example(a, "index"))]
            if attacks and self.tensors["originals/images"].dim() == 4:
                names = [attack["name"] for attack in attacks]
                pictures.append(
                    Picture(
                        f"images_{_file(case)}",
                        f"Adversarial images, {_threat(case)}",
                        f"left the original, then by {', '.join(names)}; on the right what the model takes them for",
                        f"Grid of images that fool the model, a row for each class and a column for each of "
                        f"{', '.join(names)}, with {_threat(case)}.",
                        partial(self._grid, attacks),
                    )
                )
        text = (
            "One image of each class, as it is and as each attack changed it; no picture: that attack did not fool the "
            "model with this image. Would you still read the right class?"
        )
        return Section("", "The images", text, pictures)

    def _grid(self, attacks: Sequence[dict[str, Any]], theme: Theme) -> Figure:
        labels, at = self.tensors["labels"], self.tensors["originals/index"].tolist()
        rows, real = [], []
        for c in sorted(set(labels.tolist())):
            found = [{int(i): k for k, i in enumerate(self._example(a, "index")) if labels[i] == c} for a in attacks]
            most = Counter(i for of in found for i in of).most_common(1)
            if not most:
                continue
            index = most[0][0]
            pictures: list[np.ndarray | None] = []
            classes = []
            for attack, of in zip(attacks, found, strict=True):
                have = index in of
                pictures.append(as_picture(self._example(attack, "images")[of[index]]) if have else None)
                classes.append(str(int(self._example(attack, "predictions")[of[index]])) if have else "-")
            real.append(as_picture(self.tensors["originals/images"][at.index(index)]))
            rows.append((str(c), pictures, [False] * len(pictures), " ".join(classes)))
        return figures.image_grid(theme, rows, real)

    def _progress(self) -> Section:
        pictures = []
        for case in self.cases:
            curves = {a["name"]: self._curve(a) for a in self._of(case) if a["kind"] == "iterative" and a["fooled"]}
            shown = {name: curve for name, curve in curves.items() if curve is not None}
            if shown:
                late = [name for name, (_, ys) in shown.items() if ys[-1] > 0 and ys[-2] - ys[-1] > 0.01]
                words = f"still falling at the end: {', '.join(late)}" if late else "none still falls at the end"
                pictures.append(
                    Picture(
                        f"steps_{_file(case)}",
                        f"Step by step, {_threat(case)}",
                        words,
                        f"Curves of the share of images standing by the steps taken, with {_threat(case)}, for "
                        f"{', '.join(shown)}: {words}.",
                        partial(figures.curves, series=shown, x="% of the attack's steps", y="", shares=True),
                    )
                )
        text = "Robust accuracy as each attack goes on. Where a curve still falls at its right end, give it more steps."
        return Section("", "Would more steps find more?", text, pictures)

    def _curve(self, attack: dict[str, Any]) -> Series | None:
        """Share of images standing after so many hundredths of the attack's steps."""
        i = self.attacks.index(attack)
        steps = self.tensors.get(f"{i}/steps")
        if steps is None:
            return None
        fooled, attacked = self.tensors[f"{i}/fooled"], self.tensors[f"{i}/attacked"]
        budget = float(steps[attacked].max())
        if budget < 2:
            return None
        xs = np.linspace(0, 100, POINTS)
        counts = [int((fooled & (steps <= x / 100 * budget)).sum()) for x in xs]
        return xs.tolist(), [(int(attacked.sum()) - count) / self.images for count in counts]

    def _example(self, attack: dict[str, Any], name: str) -> Tensor:
        return self.tensors[f"{self.attacks.index(attack)}/examples/{name}"]


def _threat(found: dict[str, Any]) -> str:
    return f"{found['norm']}, eps {_eps(found)}"


def _size(found: dict[str, Any]) -> float:
    return float(found["eps"])


def _eps(found: dict[str, Any]) -> str:
    eps = found["eps"]
    return f"{eps:.4g}" if not isinstance(eps, list) else f"{min(eps):.4g}-{max(eps):.4g}"


def _file(found: dict[str, Any]) -> str:
    return f"{found['norm']}_{_eps(found)}"
