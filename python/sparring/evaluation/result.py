"""What an evaluation found: one row an attack, and the worst case of all attacks under one threat model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparring._text import aligned, number, percent, plural
from sparring.evaluation.plan import Eps, Key, Kind, eps_name, threat_key, threat_name

Json = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """Some of the adversarial examples that an attack found: where they are in the data, and the model's class."""

    index: Tensor
    images: Tensor
    predictions: Tensor


@dataclass(frozen=True)
class AttackRow:
    """One attack on N examples; tensors are on the CPU.

    Attributes
    ----------
    name, kind, norm, eps
        What ran ("noise", "one-step", "iterative", "black-box" or "other"), and under which threat model.
    attacked
        bool (N,): which examples it was run on: those classified correctly, and with `worst_case` standing until then.
    robust
        bool (N,): classified correctly and not fooled; with `worst_case` neither by an attack before it.
    fooled
        bool (N,): the returned point is feasible and the model's class there, predicted afresh, is not the label.
    infeasible
        bool (N,): the returned point is farther than eps or out of bounds; never counted.
    overrun
        How much farther than eps the farthest returned point is, 0 if none is farther.
    unconfirmed
        How many feasible points the attack called a success but the fresh prediction did not.
    distances
        float64 (N,) by norm, from the original, NaN where not attacked.
    steps
        float64 (N,), NaN where not attacked; None if the attack does not say.
    bad_grad
        bool (N,): a gradient was zero, NaN or inf on the way; None if the attack does not say.
    seconds
        Wall time of the attack alone.
    examples
        Adversarial examples, as many as were asked for.
    error
        Why the attack could not run, or not on all examples; None where it did. What it fooled before counts.
    shown
        eps in words, told apart from those of the other threat models; empty: four digits of it.
    added
        Whether the evaluation ran it of its own accord, on what the attacks before it left, since the figures showed
        signs of masked gradients; `robust` is then what all of them left.
    """

    name: str
    kind: Kind
    norm: str
    eps: Eps
    attacked: Tensor
    robust: Tensor
    fooled: Tensor
    infeasible: Tensor
    overrun: float
    unconfirmed: int
    distances: Mapping[str, Tensor]
    steps: Tensor | None
    bad_grad: Tensor | None
    seconds: float
    examples: Examples
    error: str | None = None
    shown: str = ""
    added: bool = False

    @property
    def key(self) -> Key:
        """The threat model, by its numbers."""
        return threat_key(self.norm, self.eps)

    @property
    def threat(self) -> str:
        """Norm and eps, such as "Linf, eps 0.3"."""
        return threat_name(self.norm, self.eps, self.shown)

    @property
    def accuracy(self) -> float:
        """Share of all examples that are `robust`."""
        return share(self.robust)

    def distance(self, norm: str | None = None) -> tuple[float, float]:
        """Mean and median distance of the successful points, by default in the attack's own norm; NaN without any."""
        found = self.distances[norm or self.norm][self.fooled]
        return (float(found.mean()), float(found.quantile(0.5))) if len(found) else (math.nan, math.nan)

    @property
    def mean_steps(self) -> float:
        """Mean of the steps on the attacked examples; NaN if unknown."""
        return math.nan if self.steps is None else float(self.steps[self.attacked].mean())


@dataclass(frozen=True)
class WorstCase:
    """All attacks under one threat model together, those that ran: an example is robust only if none fooled it."""

    norm: str
    eps: Eps
    attacks: int
    robust: Tensor
    shown: str = ""

    @property
    def threat(self) -> str:
        """Norm and eps, such as "Linf, eps 0.3"."""
        return threat_name(self.norm, self.eps, self.shown)

    @property
    def accuracy(self) -> float:
        """Share of all examples that are `robust`."""
        return share(self.robust)


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`sparring.evaluate` on N examples.

    Attributes
    ----------
    labels, predictions
        int64 (N,): the true classes, and those that the model gave the unchanged examples.
    rows
        The attacks, in the order in which they ran: one threat model after the other.
    warnings
        Why the figures may say more than is true: signs of masked gradients, with the evidence.
    seed, bounds, worst_case_only
        Settings that it ran with.
    """

    labels: Tensor
    predictions: Tensor
    rows: Sequence[AttackRow]
    warnings: Sequence[str]
    seed: int
    bounds: tuple[float, float]
    worst_case_only: bool

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """bool (N,): classified correctly as they are."""
        return self.predictions == self.labels

    @property
    def clean_accuracy(self) -> float:
        """Share of the unchanged examples that are classified correctly."""
        return share(self.correct)

    @property
    def robust(self) -> Tensor:
        """bool (N,): classified correctly and fooled by no attack of any threat model."""
        robust = self.correct
        for row in self.rows:
            robust = robust & ~row.fooled
        return robust

    @property
    def worst_cases(self) -> list[WorstCase]:
        """One for each threat model under which an attack ran, in the order in which they first came up."""
        found: dict[Key, WorstCase] = {}
        for row in self.rows:
            old = found.get(row.key, WorstCase(row.norm, row.eps, 0, self.correct, row.shown))
            ran = old.attacks + (row.error is None)
            found[row.key] = replace(old, attacks=ran, robust=old.robust & ~row.fooled)
        return [case for case in found.values() if case.attacks]

    def per_class(self, robust: Tensor) -> list[float]:
        """Share of `robust` (bool (N,)) among the examples of each class up to the largest label; NaN without any."""
        return [share(robust[self.labels == c]) for c in range(int(self.labels.max()) + 1)]

    @property
    def verdict(self) -> str:
        """One line: the worst case under each threat model, and what was done to find it."""
        cases = self.worst_cases
        ran = sum(row.error is None for row in self.rows)
        size = f"{len(self)} {plural('image', len(self))}, {ran} {plural('attack', ran)}"
        if ran < len(self.rows):
            size += f" ({len(self.rows) - ran} could not run)"
        if len(cases) == 1:
            case = cases[0]
            return f"robust accuracy {percent(case.accuracy)} ({case.threat}, {size})"
        parts = [f"{percent(case.accuracy)} ({case.threat})" for case in cases]
        return f"robust accuracy {', '.join(parts)}; {size}"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table's head and its lines, as text."""
        head = ["attack", "norm", "eps", "robust accuracy", "distance", "steps", "seconds"]
        lines = [["none", "", "", percent(self.clean_accuracy), "", "", ""]]
        for row in self.rows:
            name = row.name + (" (added, on what is left)" if row.added else "")
            name += f" ({int(row.infeasible.sum())} infeasible)" if bool(row.infeasible.any()) else ""
            left = percent(row.accuracy) if row.error is None else "could not run"
            lines.append([
                name, row.norm, row.shown or eps_name(row.eps), left, number(row.distance()[1]),
                number(row.mean_steps), f"{row.seconds:.1f}",
            ])  # fmt: skip
        for case in self.worst_cases:
            eps = case.shown or eps_name(case.eps)
            lines.append(["worst case", case.norm, eps, percent(case.accuracy), "", "", ""])
        return head, lines

    def table(self) -> str:
        """Attacks line by line: robust accuracy, median distance of the successes, mean steps, seconds."""
        return aligned(*self.cells(), left=2)

    def __str__(self) -> str:
        return "\n".join([self.table(), "", self.verdict, *(f"warning: {warning}" for warning in self.warnings)])

    def to_dict(self) -> Json:
        """Everything but the tensors of distances and images, as values that JSON has; NaN is None."""
        found = {
            "verdict": self.verdict,
            "images": len(self),
            "seed": self.seed,
            "bounds": list(self.bounds),
            "worst_case_only": self.worst_case_only,
            "clean": self._accuracies(self.correct),
            "worst_case": [
                {"norm": case.norm, "eps": _json_eps(case.eps), "attacks": case.attacks}
                | self._accuracies(case.robust)
                | {"robust": case.robust.nonzero()[:, 0].tolist()}
                for case in self.worst_cases
            ],
            "attacks": [self._attack(row) for row in self.rows],
            "warnings": list(self.warnings),
        }
        without_nan: Json = _without_nan(found)
        return without_nan

    def to_json(self, path: str | Path) -> Path:
        """Write :meth:`to_dict` to a file that does not exist yet."""
        path = Path(path)
        with path.open("x", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)
            file.write("\n")
        return path

    def _accuracies(self, robust: Tensor) -> Json:
        return {"accuracy": share(robust), "per_class": self.per_class(robust)}

    def _attack(self, row: AttackRow) -> Json:
        distances = {norm: dict(zip(("mean", "median"), row.distance(norm), strict=True)) for norm in row.distances}
        bad = None if row.bad_grad is None else int((row.bad_grad & row.attacked).sum())
        return {
            "name": row.name, "kind": row.kind, "norm": row.norm, "eps": _json_eps(row.eps),
            **self._accuracies(row.robust),
            "attacked": int(row.attacked.sum()), "fooled": int(row.fooled.sum()),
            "infeasible": int(row.infeasible.sum()), "overrun": row.overrun, "unconfirmed": row.unconfirmed,
            "error": row.error, "added": row.added, "bad_grad": bad, "distances": distances, "steps": row.mean_steps,
            "seconds": row.seconds, "fooled_examples": row.fooled.nonzero()[:, 0].tolist(),
        }  # fmt: skip


def share(mask: Tensor) -> float:
    """Share of True; NaN without any entry."""
    return int(mask.sum()) / len(mask) if len(mask) else math.nan


def _json_eps(eps: Eps) -> float | list[float]:
    values: float | list[float] = torch.as_tensor(eps, dtype=torch.float64, device="cpu").tolist()
    return values


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
