"""Where `recover` begins an image, and begins it again: starts and masks, each image's from a seed of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Start = Literal["noise", "black", "sparse"]


@dataclass(frozen=True)
class Starts:
    """Draws the start and mask of each image from its own seed; all on the CPU, in float64.

    Attributes
    ----------
    shape, start, mask, mask_fraction, black, bounds
        As in `recover`.
    entries
        How many entries sparse noise has.
    seeds
        Of each image.
    """

    shape: tuple[int, ...]
    start: Start | Tensor
    mask: Tensor | None
    mask_fraction: float
    black: float
    bounds: tuple[float, float]
    entries: int
    seeds: list[int]

    def first(self, row: int) -> tuple[Tensor, Tensor | None]:
        """Start and mask of image `row`, (*shape)."""
        generator = torch.Generator("cpu").manual_seed(self.seeds[row])
        held = self._held(row, generator)
        if isinstance(self.start, Tensor):
            return self.start[row].detach(), held
        if self.start == "noise":
            return self._noise(generator), held
        if self.start == "sparse":
            return self._sparse(self.entries, held, generator), held
        return torch.full(self.shape, self.black, dtype=torch.float64, device="cpu"), held

    def again(self, row: int, attempt: int, held: Tensor | None) -> Tensor:
        """Sparse noise to begin image `row` again with: other noise each time, and twice as many entries."""
        generator = torch.Generator("cpu").manual_seed(self.seeds[row] + attempt)
        return self._sparse(self.entries * 2 ** (attempt - 1), held, generator)

    def noise(self, row: int, attempt: int) -> Tensor:
        """Dense noise to begin image `row` again with: other noise each time."""
        return self._noise(torch.Generator("cpu").manual_seed(self.seeds[row] + attempt))

    def _noise(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.shape, generator=generator, dtype=torch.float64, device="cpu")

    def _held(self, row: int, generator: torch.Generator) -> Tensor | None:
        if self.mask is not None:
            return self.mask if self.mask.dim() == len(self.shape) else self.mask[row]
        if self.mask_fraction == 0:
            return None
        entries = math.prod(self.shape)
        order = torch.randperm(entries, generator=generator, device="cpu")
        return (order >= round(self.mask_fraction * entries)).reshape(self.shape)

    def _sparse(self, entries: int, held: Tensor | None, generator: torch.Generator) -> Tensor:
        """Black but for so many entries, each anywhere in the bounds; none of them masked if there are others."""
        image = torch.full(self.shape, self.black, dtype=torch.float64, device="cpu").flatten()
        order = torch.rand(len(image), generator=generator, dtype=torch.float64, device="cpu")
        if held is not None:
            order[~held.flatten().cpu()] = -1
        at = order.topk(min(entries, len(image))).indices
        lo, hi = self.bounds
        image[at] = lo + (hi - lo) * torch.rand(len(at), generator=generator, dtype=torch.float64, device="cpu")
        return image.reshape(self.shape)


def check_images(
    count: int, shape: tuple[int, ...], device: torch.device, start: str | Tensor, mask: Tensor | None,
    mask_fraction: float,
) -> None:  # fmt: skip
    """ValueError unless start and mask suit `count` images."""
    if not isinstance(start, Tensor):
        if start not in get_args(Start):
            raise ValueError(f"start must be 'noise', 'black', 'sparse' or a tensor, got {start!r}")
    elif tuple(start.shape) != (count, *shape) or not start.is_floating_point() or start.device != device:
        raise ValueError(
            f"start must be floating point of shape {(count, *shape)} on {device}; "
            f"got {start.dtype} of shape {tuple(start.shape)} on {start.device}"
        )
    elif not bool(start.isfinite().all()):
        raise ValueError("start must be finite")
    if not 0 <= mask_fraction <= 1:
        raise ValueError(f"mask_fraction must be in [0, 1], got {mask_fraction}")
    if mask is None:
        return
    if mask_fraction:
        raise ValueError("mask and mask_fraction exclude each other")
    if mask.dtype != torch.bool or tuple(mask.shape) not in (shape, (count, *shape)) or mask.device != device:
        raise ValueError(
            f"mask must be bool of shape {shape} or {(count, *shape)} on {device}; "
            f"got {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}"
        )
