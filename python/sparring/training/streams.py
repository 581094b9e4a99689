"""Random streams, one for each place that draws.

Every stream follows from the experiment's seed and the name of the place (stage, generation, epoch), never from what
was drawn before. So there is no generator state to save: a run resumed at any epoch draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(seed: int, *place: str | int) -> int:
    """The 63-bit seed of a place."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:8], "little") >> 1


def stream(seed: int, *place: str | int) -> torch.Generator:
    """A new generator for a place; on the CPU, so that every device works with the same numbers."""
    return torch.Generator().manual_seed(seed_of(seed, *place))


@contextmanager
def global_stream(seed: int, *place: str | int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generator, which dropout and initialisation draw from, for a place; restore it at the end."""
    device = torch.device(device)
    index = device.index if device.index is not None else torch.cuda.current_device() if device.type == "cuda" else 0
    with torch.random.fork_rng(devices=[index] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed_of(seed, *place))
        if device.type == "cuda":
            torch.cuda.default_generators[index].manual_seed(seed_of(seed, *place))
        yield
