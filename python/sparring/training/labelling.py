"""What a network is asked to say to a fooling image, and when it counts as caught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class Labels(Protocol):
    """One way of labelling. `logits` are (B, outputs); `classes` and the values returned are (B,)."""

    @property
    def outputs(self) -> int:
        """Outputs that the network needs."""
        ...

    def real(self, classes: Tensor) -> Tensor:
        """Wanted probabilities, (B, outputs), for real images of these classes."""
        ...

    def fooling(self, classes: Tensor) -> Tensor:
        """Wanted probabilities, (B, outputs), for fooling images recovered for these classes."""
        ...

    def flagged(self, logits: Tensor) -> Tensor:
        """Which images the network takes for fooling images."""
        ...

    def detection(self, logits: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Per fooling image: how far it is recognised as one."""
        ...


@dataclass(frozen=True)
class FakeClasses:
    """2K outputs: an image recovered for class c belongs to the fake class c + K."""

    classes: int

    @property
    def outputs(self) -> int:
        return 2 * self.classes

    def real(self, classes: Tensor) -> Tensor:
        return one_hot(classes, self.outputs).float()

    def fooling(self, classes: Tensor) -> Tensor:
        return self.real(classes + self.classes)

    def flagged(self, logits: Tensor) -> Tensor:
        return logits.argmax(1) >= self.classes

    def detection(self, logits: Tensor, classes: Tensor) -> dict[str, Tensor]:
        fake = classes + self.classes
        return {
            "prob_fake": logits.softmax(1).gather(1, fake[:, None])[:, 0],
            "caught": self.flagged(logits),
            "caught_exact": logits.argmax(1) == fake,
        }


@dataclass(frozen=True)
class Uniform:
    """K outputs: a fooling image should leave the network undecided, no class reaching `threshold`."""

    classes: int
    threshold: float = 0.3

    @property
    def outputs(self) -> int:
        return self.classes

    def real(self, classes: Tensor) -> Tensor:
        return one_hot(classes, self.outputs).float()

    def fooling(self, classes: Tensor) -> Tensor:
        return torch.full((len(classes), self.outputs), 1.0 / self.outputs, device=classes.device)

    def flagged(self, logits: Tensor) -> Tensor:
        return logits.softmax(1).amax(1) < self.threshold

    def detection(self, logits: Tensor, classes: Tensor) -> dict[str, Tensor]:
        return {"max_prob": logits.softmax(1).amax(1), "caught": self.flagged(logits)}


def labels_for(labelling: str, classes: int) -> Labels:
    """The labelling of that name ("fake" or "uniform") for so many real classes."""
    return FakeClasses(classes) if labelling == "fake" else Uniform(classes)
