"""Augmentation: random changes of a batch of images, each image with a draw of its own.

An augmentation is called with images (B, C, H, W) and a CPU generator, and returns images of the same shape, dtype and
device. `draw` and `apply` are its two halves: the same image with the same draw gives the same bits in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Augmentation(Protocol):
    """Images (B, C, H, W) and a CPU generator in, images alike out."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Affine:
    """Rotate about the centre, scale, then shift, with bilinear interpolation; for MNIST.

    Attributes
    ----------
    degrees
        The angle is uniform in [-degrees, degrees]; counter-clockwise is positive.
    shift
        The shift is uniform in [-shift, shift], a share of the width to the right and one of the height downwards.
    scale
        The factor is uniform between these two.
    fill
        What comes in from outside the image: the background.
    """

    degrees: float = 5.0
    shift: float = 0.1
    scale: tuple[float, float] = (0.9, 1.1)
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"degrees must be from 0 to 180, got {self.degrees}")
        if not 0 <= self.shift <= 1:
            raise ValueError(f"shift must be a share from 0 to 1, got {self.shift}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale must be two positive numbers in ascending order, got {self.scale}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float64 (count, 4): the angle in degrees, the shifts right and down in shares, and the factor."""
        low = torch.tensor([-self.degrees, -self.shift, -self.shift, self.scale[0]], dtype=torch.float64)
        high = torch.tensor([self.degrees, self.shift, self.shift, self.scale[1]], dtype=torch.float64)
        return low + (high - low) * torch.rand(count, 4, generator=generator, dtype=torch.float64)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The images (B, C, H, W), each changed as its row of `draws` (B, 4) says."""
        _check(images, draws, 4)
        height, width = images.shape[2:]
        angle, right, down, scale = draws.to(images.device).unbind(1)
        cos, sin = (f(angle.deg2rad()) / scale for f in (torch.cos, torch.sin))
        # Where each pixel comes from, in pixels from the centre; not affine_grid, whose matrix product depends on B.
        x = (torch.arange(width, device=images.device) - (width - 1) / 2 - right[:, None] * width)[:, None, :]
        y = (torch.arange(height, device=images.device) - (height - 1) / 2 - down[:, None] * height)[:, :, None]
        cos, sin = cos[:, None, None], sin[:, None, None]
        source = torch.stack([(cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)], dim=3)
        moved = F.grid_sample(images - self.fill, source.to(images.dtype), align_corners=False)
        return moved + self.fill

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(images, self.draw(len(images), generator))


@dataclass(frozen=True)
class CropFlip:
    """Pad with `padding` zeros, crop to the image's size anywhere, and mirror with probability 1/2; for CIFAR.

    Mirrored is left to right.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must not be negative, got {self.padding}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 (count, 3): the window's first row and column in the padded image, and 1 where it is mirrored."""
        ends = torch.tensor([2 * self.padding + 1, 2 * self.padding + 1, 2])
        return (torch.rand(count, 3, generator=generator, dtype=torch.float64) * ends).long()

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The images (B, C, H, W), each changed as its row of `draws` (B, 3) says."""
        _check(images, draws, 3)
        height, width = images.shape[2:]
        top, left, mirrored = draws.to(images.device).unbind(1)
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        columns = left[:, None] + torch.where(mirrored[:, None] == 1, width - 1 - columns, columns)
        image = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
        padded = F.pad(images, (self.padding,) * 4)
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(images, self.draw(len(images), generator))


AUGMENTATIONS: Mapping[str, Augmentation] = {"affine": Affine(), "crop-flip": CropFlip()}


def augmentation_for(name: str, real: Tensor) -> Augmentation:
    """The augmentation of that name for images like `real`, whose darkest value is taken for their background."""
    augmentation = AUGMENTATIONS[name]
    return replace(augmentation, fill=float(real.min())) if isinstance(augmentation, Affine) else augmentation


def _check(images: Tensor, draws: Tensor, numbers: int) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point (B, C, H, W), got {images.dtype} of shape {tuple(images.shape)}"
        )
    if draws.shape != (len(images), numbers):
        raise ValueError(f"draws must have shape {(len(images), numbers)}, got {tuple(draws.shape)}")
