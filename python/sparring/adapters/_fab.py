"""FAB as AutoAttack and torchattacks have it: within a radius, with restarts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.attacks._norms import Norm


def fab_within(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, steps: int, restarts: int = 1,
    target_classes: int | None = None, targets: Tensor | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """The nearest points (B, ...) that fool the model, where they are within `eps`; elsewhere the images.

    Sparring's FAB begins at the image and draws nothing at random. Of several restarts the first is that one, and each
    further one is aimed at another of the likeliest wrong classes.
    """
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
        raise ValueError(f"n_restarts must be an integer of at least 1; got {restarts!r}")
    if restarts > 1 and (target_classes is not None or targets is not None):
        raise ValueError(
            f"n_restarts={restarts!r} has no counterpart where FAB is aimed at classes, since it starts at the image "
            "itself; accepted there: 1"
        )
    adv = images.clone()
    left = torch.arange(len(images), device=images.device)
    for aims in [target_classes] if restarts == 1 else [None, restarts - 1]:
        if len(left) == 0:
            break
        result = attacks.fab(
            model, images[left], labels[left], norm=norm, steps=steps, target_classes=aims,
            targets=None if targets is None else targets[left], return_result=True, **options,
        )  # fmt: skip
        assert isinstance(result, attacks.AttackResult)
        near = result.success & (result.distance <= eps)
        adv[left[near]] = result.adv[near]
        left = left[~near]
    return adv
