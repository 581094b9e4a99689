"""The metrics of retraining, as names and numbers; what each asks is said in :mod:`sparring.training.metrics`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparring.attacks._model import answered, held_still
from sparring.data import Dataset
from sparring.training.fooling import BINS, FoolingSet
from sparring.training.labelling import Labels

Metrics = dict[str, float]

BATCH = 64  # the fastest on a CPU, where activations then stay in its caches
_CELLS = 2**24  # of the table of distances that is worked on at a time
_CANDIDATES = 4


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """The network's outputs (B, K) in eval mode, without a graph; every flag is left as it was."""
    with held_still(model):
        return torch.cat([answered(model, batch) for batch in torch.split(images, BATCH)])


def summary(group: str, values: Mapping[str, Tensor], labels: Tensor, classes: int) -> Metrics:
    """Means of per-image values (B,), over all images and over each class that has any."""
    metrics: Metrics = {f"{group}/images": float(len(labels))}
    for name, value in values.items():
        metrics[f"{group}/{name}"] = float(value.double().mean())
        for c in range(classes):
            of_class = labels == c
            if of_class.any():
                metrics[f"{group}/{name}/class_{c}"] = float(value[of_class].double().mean())
    return metrics


def attack_metrics(group: str, attempts: FoolingSet, classes: int) -> Metrics:
    """Metrics 0, 8 and of the attacks for 6 and 7: what an attack reached, over all its attempts."""
    bins = attempts.bins().index
    values = {
        "yield": attempts.success,
        "prob": attempts.prob,
        "sparsity": attempts.sparsity,
        "stop_step": attempts.stop_step,
        **{f"bin_{i}": bins == i for i in range(len(BINS))},
    }
    return summary(group, values, attempts.targets, classes)


def distribution_metrics(images: FoolingSet, train: Dataset, real: Dataset, independent: nn.Module | None) -> Metrics:
    """Metric 1: how far fooling images, and as a baseline real ones, are from the nearest of the training images.

    `distance` is Euclidean, over all entries; `max_prob` is what the `independent` network, if there is one, gives the
    likeliest of the real classes. Without images there is nothing to say.
    """
    if len(images) == 0:
        return {}

    def of(shown: Tensor, suffix: str = "") -> dict[str, Tensor]:
        values = {f"distance{suffix}": nearest_distance(shown, train.images)}
        if independent is not None:
            probs = logits_of(independent, shown).softmax(1)
            values[f"max_prob{suffix}"] = probs[:, : train.classes].amax(1)
        return values

    baseline = summary("1", of(real.images, "_real"), real.labels, train.classes)
    return baseline | summary("1", of(images.images), images.targets, train.classes)


def fooling_metrics(group: str, model: nn.Module, images: FoolingSet, labels: Labels, classes: int) -> Metrics:
    """Metrics 2 to 7: whether fooling images are recognised. Without images there is nothing to say."""
    if len(images) == 0:
        return {}
    logits = logits_of(model, images.images)
    values = {"loss": losses(logits, labels.fooling(images.targets)), **labels.detection(logits, images.targets)}
    return summary(group, values, images.targets, classes)


def real_metrics(group: str, model: nn.Module, real: Dataset, labels: Labels) -> Metrics:
    """Metrics 9 and 10, and of images to validate on: accuracy, and how many are taken for fooling images."""
    logits = logits_of(model, real.images)
    values = {
        "loss": losses(logits, labels.real(real.labels)),
        "accuracy": logits.argmax(1) == real.labels,
        "false_alarm": labels.flagged(logits),
    }
    return summary(group, values, real.labels, real.classes)


def losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy (B,) to the wanted probabilities."""
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")


def nearest_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Euclidean distance of each image to the nearest of the `reference` images, float64 (B,).

    Matrix products in the images' dtype find a few candidates in each part of the reference, whose distances are then
    taken in float64: where two are so near each other that rounding decides, it is between them.
    """
    points = images.flatten(1)
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    for part in torch.split(reference.flatten(1), max(_CANDIDATES, _CELLS // max(1, len(points)))):
        half_norms = part.square().sum(1) / 2
        candidates = (half_norms - points @ part.T).topk(min(_CANDIDATES, len(part)), dim=1, largest=False).indices
        for candidate in candidates.T:
            exact = (points.double() - part[candidate].double()).square().sum(1)
            nearest = nearest.minimum(exact)
    return nearest.sqrt()
