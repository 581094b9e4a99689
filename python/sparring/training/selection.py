"""Which epoch's network is the best one: as good as possible on real and on fooling images at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparring.training.metrics import METRICS


@dataclass(frozen=True)
class Best:
    """The weights of the best epoch so far, by name as in the network's `state_dict`, and its harmonic mean."""

    epoch: int
    h: float
    weights: dict[str, Tensor]


def harmonic(real: float, caught: Sequence[float]) -> float:
    """H of ``2 / H = 1 / real + mean_i(1 / caught_i)``, shares in [0, 1]; 0 if one of them is 0."""
    if not real or not all(caught):
        return 0.0
    return 2 / (1 / real + sum(1 / share for share in caught) / len(caught))


def selection_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """H of an epoch: `selection/h` counts any fake class as caught, `selection/h_exact` only that of the image's class.

    The real accuracy is that on images to validate on where there are any (`valid/accuracy`), and else metric 10: then
    the test images have a part in the choice, and the accuracy of the chosen epoch is a little flattered. The shares
    caught are those of metrics 2 to 7 which the epoch has; without any, or without an accuracy, there is no H.
    """
    real = metrics.get("valid/accuracy", metrics.get("10/accuracy"))
    found: dict[str, float] = {}
    if real is None:
        return found
    for name, what in (("h", "caught"), ("h_exact", "caught_exact")):
        caught = [value for key, value in metrics.items() if _group(key, what) in METRICS]
        if caught:
            found[f"selection/{name}"] = harmonic(real, caught)
    return found


def _group(key: str, what: str) -> str:
    """The metric's number if `key` is its number `what` over all images, else nothing."""
    group, *rest = key.split("/")
    return group.split("-")[0] if rest == [what] else ""
