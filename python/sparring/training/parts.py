"""The parts of the loop of retraining that a user can replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sparring.training.batches import Batches, Place, train_epoch
from sparring.training.building import Learner
from sparring.training.config import RetrainConfig
from sparring.training.evaluate import Metrics
from sparring.training.generate import Generate, Merge, merge
from sparring.training.labelling import Labels
from sparring.training.measure import Real, epoch_metrics
from sparring.training.state import State


class Train(Protocol):
    """Train `learner` for an epoch on `batches`, tell how far it is, and return the mean loss; `place` names it."""

    def __call__(
        self,
        learner: Learner,
        batches: Batches,
        config: RetrainConfig,
        place: Place,
        on_fraction: Callable[[float], None],
    ) -> float: ...


@dataclass(frozen=True)
class Parts:
    """The parts of the loop, each of which can be another one's.

    Attributes
    ----------
    generate : the process that makes fooling images; None: `sparring.attacks.recover` as the settings say.
    merge : what becomes of past and new sets of fooling images.
    train : an epoch of training.
    evaluate : the numbers of an epoch's record, by the names of :mod:`sparring.training.metrics`.
    """

    generate: Generate | None = None
    merge: Merge = merge
    train: Train = train_epoch
    evaluate: Callable[[State, Real, Labels, RetrainConfig], Metrics] = epoch_metrics
