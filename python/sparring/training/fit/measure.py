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
        return test.subset(config.eval_images, stream(config.seed, "test"))
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
    logits = logits_of(model, images)
    metrics = {f"{group}/accuracy": float((logits.argmax(1) == labels).double().mean())}
    if isinstance(model, Mixture):
        predicted = member_predictions(model, images)
        metrics[f"{group}/members"] = float((predicted == labels).double().mean())
        votes = torch.zeros(len(images), logits.shape[1], dtype=torch.float64, device=images.device)
        weight = model.weights.to(images.device)[:, None].expand_as(predicted)
        votes = votes.scatter_add_(1, predicted.t(), weight.t())
        # of equally many votes, the class that the mixture prefers
        first = votes == votes.amax(1, keepdim=True)
        majority = torch.where(first, logits, -torch.inf).argmax(1)
        metrics[f"{group}/vote"] = float((majority == labels).double().mean())
    return metrics


def member_predictions(model: Mixture, images: Tensor) -> Tensor:
    """The class that each member names, int64 (M, B); in eval mode, which is left as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = [model.member_logits(batch).argmax(2) for batch in torch.split(images, BATCH)]
    finally:
        model.train(training)
    return torch.cat(parts, 1)
