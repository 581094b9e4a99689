"""Sets of fooling images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FoolingSet:
    """Images made by attacking one network, with what that network said to them.

    Attributes
    ----------
    images : (B, C, H, W), in [0, 1].
    targets : int64 (B,), the class each image was made for.
    prob : (B,), the network's probability for that class.
    sparsity : int64 (B,), entries above black (0).
    stop_step : int64 (B,), the step at which the attack stopped.
    success : bool (B,), whether the image qualifies: probable and sparse enough.
    """

    images: Tensor
    targets: Tensor
    prob: Tensor
    sparsity: Tensor
    stop_step: Tensor
    success: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor | slice) -> FoolingSet:
        return FoolingSet(*(tensor[index] for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, in order."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> FoolingSet:
        """The same images on `device`."""
        return FoolingSet(*(tensor.to(device) for tensor in self.tensors().values()))

    @property
    def successes(self) -> FoolingSet:
        """The images that qualify."""
        return self[self.success]

    @property
    def fooled(self) -> float:
        """Share of the images that qualify (the attack's yield)."""
        return float(self.success.double().mean())


def join(sets: list[FoolingSet]) -> FoolingSet:
    """All sets, one after the other, as one; at least one is needed."""
    return FoolingSet(*(torch.cat(tensors) for tensors in zip(*(s.tensors().values() for s in sets), strict=True)))
