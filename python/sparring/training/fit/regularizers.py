"""Terms of the loss that do not depend on the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from sparring.data import Dataset
from sparring.training.fit.config import FitConfig
from sparring.training.fit.parallel import MemberParallel
from sparring.training.streams import stream

Regularizer = Callable[[nn.Module], Tensor]
"""From a model to a term of its loss, a scalar."""


@runtime_checkable
class Resumable(Protocol):
    """What changes from step to step, and goes into a checkpoint."""

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def regularizer_of(
    model: nn.Module, train: Dataset, config: FitConfig, given: Regularizer | None
) -> Regularizer | None:
    """The one given, or that of the configuration."""
    if not config.lipschitz:
        return given
    if given is not None:
        raise ValueError("regularizer must be None where config.lipschitz is not 0: it is one itself")
    from sparring.lipschitz import penalty

    own = model.own if isinstance(model, MemberParallel) else model
    draws = stream(config.seed, "penalty")
    return penalty(own, train.input_shape, weight=config.lipschitz, generator=draws)
