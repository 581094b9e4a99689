"""What an attack returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class GradientMaskingWarning(UserWarning):
    """The attack had no gradient to follow, so that what it did not fool may only look robust."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, one entry an example, on the inputs' device.

    Attributes
    ----------
    adv
        (B, ...) like the inputs: in the bounds, and no farther from the input than `eps` when measured in float64.
    success
        bool (B,): whether the model's class for exactly this `adv` differs from the label, or is the target.
    distance
        float64 (B,): of `adv` from the input, in the attack's norm.
    loss
        (B,): the attack's loss at `adv`; attacks raise it.
    steps_used
        int64 (B,): steps until the aim was first reached, counted over restarts; the whole budget where it was not.
    bad_grad
        bool (B,): whether a gradient was zero, NaN or inf while the example was not yet fooled.
    """

    adv: Tensor
    success: Tensor
    distance: Tensor
    loss: Tensor
    steps_used: Tensor
    bad_grad: Tensor

    def accuracy_at(self, eps: float | Sequence[float] | Tensor) -> Tensor:
        """The share of the examples that no point within eps fools, float64 of the shape of `eps`.

        The curve of robust accuracy over eps, where the attack looks for the nearest point
        (`sparring.attacks.minimal`). An example that the model gets wrong as it is counts as fooled at any eps.
        """
        radii = torch.as_tensor(eps, dtype=torch.float64, device=self.distance.device)
        near = torch.where(self.success, self.distance, torch.inf)
        return (near > radii[..., None]).double().mean(-1)

    def __len__(self) -> int:
        return self.adv.shape[0]
