"""The search for sparse fooling images as first published, written plainly in torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LR, ADAM_EPS, LAM, FLOOR = 0.5, 1e-4, 0.1, 0.1


class Found(NamedTuple):
    """Images (B, *shape), those that qualified as they were then; and the steps taken, of the whole batch."""

    images: Tensor
    steps: int


def original(
    model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, steps: int, p_min: float, s_max: int, seed: int
) -> Found:
    """Adam on ``-log p(target) + lam |image|_1 / D`` from N(0, 1) noise, clamped and floored after every step.

    It stops when every image has qualified at some step, or after `steps`. `model` is in eval mode and needs no
    gradients.
    """
    image = torch.randn(len(targets), *shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=LR, eps=ADAM_EPS)
    found, qualified = image.detach().clone(), torch.zeros(len(targets), dtype=torch.bool)
    for step in range(steps + 1):
        logits = model(image)
        with torch.no_grad():
            prob = logits.softmax(1).gather(1, targets[:, None])[:, 0]
            now = (prob >= p_min) & ((image != 0).flatten(1).sum(1) <= s_max) & ~qualified
            found[now] = image[now]
            qualified |= now
        if step == steps or bool(qualified.all()):
            break
        loss = F.cross_entropy(logits, targets, reduction="sum") + LAM * image.abs().sum() / image[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            image.clamp_(0, 1)
            image.masked_fill_(image < FLOOR, 0)
    found[~qualified] = image.detach()[~qualified]
    return Found(found, step)


def network_alone(model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, steps: int) -> None:
    """What `original` cannot do without: the network forward, and backward to the images, so many times."""
    image = torch.rand(len(targets), *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for _ in range(steps):
        image.grad = None
        F.cross_entropy(model(image), targets, reduction="sum").backward()
