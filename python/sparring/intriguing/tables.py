"""What is measured on trained networks: errors on what was made to fool others, on noise, and confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring.attacks import AttackResult, fgsm, lbfgs
from sparring.losses import Loss
from sparring.training.evaluate import logits_of


@dataclass(frozen=True)
class Distorted:
    """Images changed to fool a network, what share of them does, and how far each was moved (`distortion`)."""

    images: Tensor
    success: float
    distortion: Tensor


def distort(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int | None = None, seed: int = 0
) -> Distorted:
    """The nearest images that the network takes for a class drawn for each, by `sparring.attacks.lbfgs`."""
    found = lbfgs(
        model, images, labels, targets="random", batch_size=batch_size, generator=torch.Generator().manual_seed(seed),
        return_result=True,
    )  # fmt: skip
    assert isinstance(found, AttackResult)
    return Distorted(found.adv, float(found.success.double().mean()), distortion(found.adv, images))


def distortion(changed: Tensor, images: Tensor) -> Tensor:
    """``sqrt(mean((x' - x)^2))`` of each image (SPEC C2), float64 (N,)."""
    return (changed.double() - images.double()).flatten(1).square().mean(1).sqrt()


def amplified(changed: Tensor, images: Tensor, to: float) -> Tensor:
    """The same directions with the distortion `to`; entries may leave [0, 1]. Images that were not changed stay."""
    factor = to / distortion(changed, images)
    factor = torch.where(factor.isfinite(), factor, 0).to(images.dtype).reshape(-1, *(1,) * (images.dim() - 1))
    return images + (changed - images) * factor


def noisy(images: Tensor, deviation: float, seed: int = 0) -> Tensor:
    """Gaussian noise added to every entry; entries may leave [0, 1]."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=images.dtype)
    return images + deviation * noise.to(images.device)


def errors(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor) -> list[float]:
    """Share of the images that each network has wrong."""
    return [float((logits_of(model, images).argmax(1) != labels).double().mean()) for model in models.values()]


@dataclass(frozen=True)
class Mistakes:
    """Error on images, and the mean confidence in what is wrong and in all; the first NaN where nothing is wrong."""

    error: float
    confidence_wrong: float
    confidence: float


def mistakes(model: nn.Module, images: Tensor, labels: Tensor, *, independent: bool = False) -> Mistakes:
    """Of a network whose outputs are logits, or, with `independent`, log-probabilities of each class by itself."""
    logits = logits_of(model, images)
    sure = (logits.exp() if independent else logits.softmax(1)).max(1).values.double()
    wrong = logits.argmax(1) != labels
    return Mistakes(float(wrong.double().mean()), float(sure[wrong].mean()), float(sure.mean()))


def under_fgs(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, loss: Loss = "ce", *, clipped: bool = True
) -> Tensor:
    """The images after a step of the fast gradient sign method, and, unless `clipped`, left as far outside [0, 1]."""
    bounds = (0.0, 1.0) if clipped else (-eps, 1 + eps)
    moved = fgsm(model, images, labels, eps=eps, loss=loss, bounds=bounds)
    assert isinstance(moved, Tensor)
    return moved
