"""What an attack returns."""

from __future__ import annotations

from dataclasses import dataclass

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

    def __len__(self) -> int:
        return self.adv.shape[0]
