"""What is measured of a network or a mixture after every epoch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.data import Dataset
from sparring.ensembles.mixture import Mixture
from sparring.gradients.mixture import mix
from sparring.training.evaluate import BATCH, Metrics, logits_of
from sparring.training.fit.config import FitConfig
from sparring.training.streams import stream

MEANINGS = {
    "test": "images of the test set, all of them",
    "fgs": "a sample of the test images, moved by the fast gradient sign method on the model as a whole, by eps",
    "accuracy": "share that the model has right",
    "members": "the mean over the members of a mixture of the share that each has right",
    "vote": "the share that the members' majority has right",
    "weights": "of a mixture's members: the smallest, the largest, and exp(entropy), the number that count",
}


def epoch_metrics(model: nn.Module, test: Dataset, config: FitConfig) -> Metrics:
    """Accuracy on test images, and on a sample of them under the fast gradient sign method; of the weights, if any."""
    metrics = _accuracies("test", model, test.images, test.labels)
    sample = attacked_sample(test, config)
    if config.test_eps:
        metrics |= _accuracies("fgs/0", model, sample.images, sample.labels)
    for eps in config.test_eps:
        with unmasked():
            moved = cast(Tensor, attacks.fgsm(model, sample.images, sample.labels, eps=eps))
        metrics |= _accuracies(f"fgs/{eps:g}", model, moved, sample.labels)
    if isinstance(model, Mixture):
        metrics |= weight_metrics(model.weights)
    return metrics


def attacked_sample(test: Dataset, config: FitConfig) -> Dataset:
    """The test images that the attack is tested on."""
    if 0 < config.eval_images < len(test):
        chosen = torch.randperm(len(test), generator=stream(config.seed, "test"))[: config.eval_images]
        return test[chosen.to(test.labels.device)]
    return test


@contextmanager
def unmasked() -> Iterator[None]:
    """No warnings of masked gradients: of single batches of a network in training they say little."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", attacks.GradientMaskingWarning)
        yield


def weight_metrics(weights: Tensor) -> Metrics:
    """The extremes of a mixture's weights, and how many members count: exp of their entropy."""
    entropy = -torch.special.xlogy(weights, weights).sum()
    return {
        "weights/min": float(weights.min()),
        "weights/max": float(weights.max()),
        "weights/effective": float(entropy.exp()),
    }


def _accuracies(group: str, model: nn.Module, images: Tensor, labels: Tensor) -> Metrics:
    def right(predicted: Tensor) -> float:
        return float((predicted == labels).double().mean())

    if not isinstance(model, Mixture):
        return {f"{group}/accuracy": right(logits_of(model, images).argmax(1))}
    from sparring.analysis.votes import votes

    logits = member_logits_of(model, images)
    weights = model.weights.to(images.device)
    return {
        f"{group}/accuracy": right(mix(logits, weights, model.combine).argmax(1)),
        f"{group}/members": right(logits.argmax(2)),
        f"{group}/vote": right(votes(logits, weights=weights).label),
    }


def member_logits_of(model: Mixture, images: Tensor) -> Tensor:
    """The members' logits, (M, B, K), without a graph; in eval mode, which is left as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model.member_logits(batch) for batch in torch.split(images, BATCH)], 1)
    finally:
        model.train(training)
