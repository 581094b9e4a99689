"""The metrics of retraining, as names and numbers.

A name is `number/what` for all images, `number/what/class_c` for those of class c; the number is that of the question:

0 does the attack find sparse images that fool the network?   2 are the images it was just trained on recognised?
3 and those of earlier generations?   4 and fresh images, from the same attack on the same network?
5 and fresh images from attacks on earlier networks?   9, 10 how well does it do on real training and test images?
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparring.training.fooling import FoolingSet
from sparring.training.labelling import Labels

Metrics = dict[str, float]

BATCH = 1024


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """The network's outputs (B, K) in eval mode, without a graph; every module's mode is left as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(batch) for batch in torch.split(images, BATCH)])
    finally:
        for module in training:
            module.training = True


def summary(number: int, values: Mapping[str, Tensor], labels: Tensor, classes: int) -> Metrics:
    """Means of per-image values (B,), over all images and over each class that has any."""
    metrics: Metrics = {f"{number}/images": float(len(labels))}
    for name, value in values.items():
        metrics[f"{number}/{name}"] = float(value.double().mean())
        for c in range(classes):
            of_class = labels == c
            if of_class.any():
                metrics[f"{number}/{name}/class_{c}"] = float(value[of_class].double().mean())
    return metrics


def attack_metrics(attempts: FoolingSet, classes: int) -> Metrics:
    """Metric 0: what the attack reached, over all its attempts."""
    values = {
        "yield": attempts.success,
        "prob": attempts.prob,
        "sparsity": attempts.sparsity,
        "stop_step": attempts.stop_step,
    }
    return summary(0, values, attempts.targets, classes)


def fooling_metrics(number: int, model: nn.Module, images: FoolingSet, labels: Labels, classes: int) -> Metrics:
    """Metrics 2 to 5: whether fooling images are recognised. Without images there is nothing to say."""
    if len(images) == 0:
        return {}
    logits = logits_of(model, images.images)
    values = {"loss": losses(logits, labels.fooling(images.targets)), **labels.detection(logits, images.targets)}
    return summary(number, values, images.targets, classes)


def real_metrics(number: int, model: nn.Module, images: Tensor, truth: Tensor, labels: Labels, classes: int) -> Metrics:
    """Metrics 9 and 10: accuracy on real images, and how many of them are taken for fooling images."""
    logits = logits_of(model, images)
    values = {
        "loss": losses(logits, labels.real(truth)),
        "accuracy": logits.argmax(1) == truth,
        "false_alarm": labels.flagged(logits),
    }
    return summary(number, values, truth, classes)


def losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy (B,) to the wanted probabilities."""
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
