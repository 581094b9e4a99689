"""Whether what fools one network fools another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from sparring.attacks import AttackResult
from sparring.attacks._model import held_still
from sparring.training.evaluate import logits_of

Networks = Mapping[str, nn.Module] | Sequence[nn.Module]
Attack = Callable[..., Any]


@dataclass(frozen=True)
class TransferMatrix:
    """Accuracy of each target (T) on what was made to fool each source (S) (SPEC B9).

    Attributes
    ----------
    sources, targets : their names.
    accuracy : float64 (S, T).
    clean : float64 (T,), on the inputs as they are.
    flipped : float64 (S, T), of the examples that the target has right as they are, the share that it now has wrong:
        the rate at which attacks transfer. NaN where it has none right.
    count : how many examples there are.
    """

    sources: list[str]
    targets: list[str]
    accuracy: Tensor
    clean: Tensor
    flipped: Tensor
    count: int

    @property
    def error(self) -> Tensor:
        """Float64 (S, T)."""
        return 1 - self.accuracy

    def interval(self, level: float = 0.95) -> Tensor:
        """Wilson's interval of each accuracy, (S, T, 2)."""
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1; got {level}")
        z = NormalDist().inv_cdf((1 + level) / 2)
        centre = self.accuracy + z * z / (2 * self.count)
        half = z * (self.accuracy * (1 - self.accuracy) / self.count + z * z / (4 * self.count**2)).sqrt()
        ends = torch.stack([centre - half, centre + half], 2) / (1 + z * z / self.count)
        return ends.clamp(0, 1)  # which rounding alone may leave

    def table(self) -> str:
        """Error in per cent, in Markdown: a row for each source, a column for each target."""
        lines = [f"| made for | {' | '.join(self.targets)} |", f"|---|{'---:|' * len(self.targets)}"]
        for name, row in zip(["nothing (clean)", *self.sources], [1 - self.clean, *self.error], strict=True):
            lines.append(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in row.tolist())} |")
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Everything as a JSON value; NaN becomes null."""
        flipped = [[None if math.isnan(value) else value for value in row] for row in self.flipped.tolist()]
        return {
            "sources": self.sources,
            "targets": self.targets,
            "accuracy": self.accuracy.tolist(),
            "interval": self.interval().tolist(),
            "clean": self.clean.tolist(),
            "flipped": flipped,
            "count": self.count,
        }

    def plot(self, path: str | Path) -> None:
        """Write a heat map of the error as a PNG file."""
        from sparring.figures import DPI, LIGHT, share_map

        figure = share_map(
            LIGHT, self.targets, self.error.numpy(), x="tested on (colour: error)", rows=self.sources, y="made for"
        )
        figure.savefig(Path(path), dpi=DPI)


def transfer_matrix(
    sources: Networks, targets: Networks | None, inputs: Tensor, labels: Tensor, attack: Attack
) -> TransferMatrix:
    """Attack every source, and show the result to every target.

    Parameters
    ----------
    sources, targets
        Networks by name, or in order, when their names are their numbers; targets None: the sources.
    inputs, labels
        (N, ...) and int64 (N,).
    attack
        A function of a model, inputs and labels that returns adversarial inputs, or an `AttackResult`: one of
        `sparring.attacks`, with what else it needs bound by ``functools.partial``. It is called once for each source,
        which is in eval mode meanwhile and has parameters without gradients.
    """
    by_source = _named(sources, "sources")
    by_target = by_source if targets is None else _named(targets, "targets")
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise ValueError(f"inputs and labels must be of as many examples, at least 1; got {len(inputs)}, {len(labels)}")

    def right(images: Tensor) -> Tensor:
        return torch.stack([logits_of(model, images).argmax(1) == labels for model in by_target.values()]).cpu()

    before, after = right(inputs), []
    for name, model in by_source.items():
        with held_still(model):
            moved = attack(model, inputs, labels)
        moved = moved.adv if isinstance(moved, AttackResult) else moved
        if not isinstance(moved, Tensor) or moved.shape != inputs.shape:
            raise ValueError(f"attack must return a tensor like inputs; for source {name} it returned {moved!r}")
        after.append(right(moved))
    stacked = torch.stack(after)
    lost = (before & ~stacked).double().sum(2)
    return TransferMatrix(
        [*by_source],
        [*by_target],
        stacked.double().mean(2),
        before.double().mean(1),
        lost / before.double().sum(1),
        len(inputs),
    )


def _named(models: Networks, name: str) -> dict[str, nn.Module]:
    named = dict(models) if isinstance(models, Mapping) else {str(i): model for i, model in enumerate(models)}
    if not named or not all(isinstance(model, nn.Module) for model in named.values()):
        raise ValueError(f"{name} must be one module at least, by name or in a sequence")
    return named
