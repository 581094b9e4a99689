"""Where random starts come from: a seed for each example that nothing but the example decides."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_BITS = 62  # what torch.randint can draw, and every generator takes


def example_seeds(inputs: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Seeds for `count` draws of each example (B, ...), int64 (B, count) on the CPU.

    A hash of the example's entries, of one draw of the `generator` (None: one with seed 0), and of the draw's number.
    Neither the rest of the batch, nor its order, nor how many draws there are has a part in it.
    """
    base = _draw(generator, 1)[0].to_bytes(8, "little")
    rows = inputs.detach().cpu().contiguous() + 0.0  # 0 and -0 are one number
    if rows.numel() == 0:
        return torch.zeros(len(rows), count, dtype=torch.int64, device="cpu")
    seeds = []
    for entries in rows.reshape(len(rows), -1).view(torch.uint8).numpy():
        about = hashlib.blake2b(entries.data, digest_size=8, key=base)
        for draw in range(count):
            one = about.copy()
            one.update(draw.to_bytes(8, "little"))
            seeds.append(int.from_bytes(one.digest(), "little") >> (64 - _BITS))
    return torch.tensor(seeds, dtype=torch.int64, device="cpu").reshape(len(rows), count)


def seeds_by_place(count: int, generator: torch.Generator | None) -> list[int]:
    """A seed for each of `count` images that are made from nothing, one after the other."""
    return _draw(generator, count)


def _draw(generator: torch.Generator | None, count: int) -> list[int]:
    if generator is None:
        generator = torch.Generator("cpu").manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, not {type(generator).__name__}")
    drawn: list[int] = torch.randint(2**_BITS, (count,), generator=generator, device=generator.device).tolist()
    return drawn
