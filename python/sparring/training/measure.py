"""What an experiment measures of its networks: after every epoch, and after every attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sparring.data import Dataset
from sparring.halves import halves
from sparring.training.config import RetrainConfig
from sparring.training.evaluate import (
    Metrics,
    attack_metrics,
    distribution_metrics,
    fooling_metrics,
    real_metrics,
)
from sparring.training.fooling import FoolingSet, join
from sparring.training.labelling import Labels
from sparring.training.state import State
from sparring.training.streams import seed_of, stream


@dataclass(frozen=True)
class Real:
    """The real images of an experiment.

    Attributes
    ----------
    train, test : to train the network on, and for metric 10.
    valid : to choose the best epoch by, and
    other_train, other_valid : those of the independent network; all None where there is none.
    """

    train: Dataset
    test: Dataset
    valid: Dataset | None = None
    other_train: Dataset | None = None
    other_valid: Dataset | None = None

    @classmethod
    def of(cls, train: Dataset, test: Dataset, config: RetrainConfig) -> Real:
        """The images that the configuration asks for."""
        if 0 < config.real_images < len(train):  # of fewer images all are taken, however many each class has
            train = train.subset(config.real_images, stream(config.seed, "real images"))
        if not config.independent:
            return cls(train, test)
        parts = halves(train, seed_of(config.seed, "halves"))
        device = train.labels.device
        a, valid, b, other_valid = (
            train[index.to(device)] for index in (parts.train_a, parts.valid_a, parts.train_b, parts.valid_b)
        )
        return cls(a, test, valid, b, other_valid)


def epoch_metrics(state: State, real: Real, labels: Labels, config: RetrainConfig) -> Metrics:
    """Metrics 2 to 7, 9 and 10 of the network as it is; those without images are left out."""
    model, classes, limit = state.learner.model, real.train.classes, config.eval_images

    def caught(group: str, sets: list[FoolingSet]) -> Metrics:
        if not sets:
            return {}
        sample = _sample(join(sets), limit, stream(config.seed, group, state.generation))
        return fooling_metrics(group, model, sample, labels, classes)

    fresh = [attempts.successes for attempts in state.fresh_sets]
    metrics: Metrics = {}
    if state.train_sets:
        metrics |= fooling_metrics("2", model, state.train_sets[-1], labels, classes)
        metrics |= caught("3", state.train_sets[:-1])
        metrics |= fooling_metrics("4", model, fresh[-1], labels, classes)
        metrics |= caught("5", fresh[:-1])
    for group, sets in state.other_sets.items():
        metrics |= caught(group, [attempts.successes for attempts in sets])
    train = _sample(real.train, limit, stream(config.seed, "real"))
    metrics |= real_metrics("9", model, train, labels)
    metrics |= real_metrics("10", model, real.test, labels)
    if real.valid is not None:
        metrics |= real_metrics("valid", model, real.valid, labels)
    return metrics


def generation_metrics(state: State, attempts: FoolingSet, real: Real, config: RetrainConfig) -> Metrics:
    """Metrics 0 and 1 of an attack, and the weight of its penalty."""
    classes = real.train.classes
    metrics = attack_metrics("0", attempts, classes)
    independent = None if state.independent is None else state.independent.model
    test = _sample(real.test, config.eval_images, stream(config.seed, "real test"))
    metrics |= distribution_metrics(attempts.successes, real.train, test, independent)
    if config.lam is not None:
        metrics["attack/lam"] = config.lam * 0.5**state.halvings
    return metrics


def _sample(images: Any, limit: int, generator: torch.Generator) -> Any:
    """At most `limit` of the images (0: all), at random; the same ones whenever the generator is the same."""
    if not 0 < limit < len(images):
        return images
    return images[torch.randperm(len(images), generator=generator)[:limit]]
