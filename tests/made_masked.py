"""Networks whose gradients are hidden in the ways that the literature knows, and a small one to hide."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]


class Templates(nn.Module):
    """Four classes of 8 x 8 images with two templates each: logits ``log sum exp(-sharpness |x - template|^2)``."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(8, 1, 4, 4, generator=generator) * 0.6 + 0.2
        self.templates = nn.Parameter(nn.functional.interpolate(coarse, size=8, mode="bilinear"))
        self.sharpness = 2.0

    def forward(self, x: Tensor) -> Tensor:
        apart = (x[:, None] - self.templates).flatten(2).square().sum(2)
        return (-self.sharpness * apart).reshape(len(x), 4, 2).logsumexp(2)


def images(network: Templates, count: int = 40) -> tuple[Tensor, Tensor]:
    """Templates with noise, and what the network says of them."""
    generator = torch.Generator().manual_seed(1)
    which = torch.arange(count) % 8
    noise = 0.1 * torch.randn(count, 1, 8, 8, generator=generator)
    x = (network.templates.detach()[which] + noise).clamp(0, 1)
    with torch.no_grad():
        return x, network(x).argmax(1)


def jpeg(x: Tensor, step: float = 0.1, side: int = 4) -> Tensor:
    """Cosine coefficients of square blocks, rounded to multiples of `step`."""
    k = torch.arange(side, dtype=x.dtype)
    cosines = torch.cos(math.pi / side * (k + 0.5) * k[:, None]) * math.sqrt(2 / side)
    cosines[0] /= math.sqrt(2)
    blocks = x.unfold(2, side, side).unfold(3, side, side)
    rounded = (cosines @ blocks @ cosines.T / step).round() * step
    return (cosines.T @ rounded @ cosines).transpose(3, 4).reshape(x.shape).clamp(0, 1)


HIDDEN: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "jpeg": lambda network, x: network(jpeg(x)),
    "detach": lambda network, x: network(x.detach()),
    "rounded logits": lambda network, x: (network(x) * 2).round() / 2,
    "softmax of logits x 100": lambda network, x: (100 * network(x)).softmax(1),
    "softmax x 100": lambda network, x: 100 * network(x).softmax(1),
    "noise": lambda network, x: network(x + 0.1 * torch.randn_like(x)),
}


class Masked(nn.Module):
    """A network hidden in one of the ways of `HIDDEN`."""

    def __init__(self, network: nn.Module, how: str) -> None:
        super().__init__()
        self.network, self.how = network, how

    def forward(self, x: Tensor) -> Tensor:
        return HIDDEN[self.how](self.network, x)
