"""Layers of every kind with weights of every size, and the operator of each as a matrix: the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Draw = Callable[..., int]

_LAYERS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
_MOST = {1: 9, 2: 6, 3: 4}  # positions of a dimension
WEIGHTS = (
    "normal",
    "uniform",
    "zero",
    "rank one",
    "one entry",
    "denormal",
    "huge",
    "tiny",
    "equal",
    "signs",
    "bfloat16",
    "float64",
)


@dataclass(frozen=True)
class Layer:
    """What `spectral_norm` is given, and what it is to be measured against."""

    kind: str
    weight: Tensor
    options: dict[str, Any]
    input_shape: tuple[int, ...] | None
    of: str  # weights

    def operator(self) -> Tensor:
        """Float64 (outputs, inputs), from torch's own layer."""
        if self.kind == "dense":
            return self.weight.double()
        assert self.input_shape is not None
        groups = self.options.get("groups", 1)
        transposed = self.kind.startswith("conv_transpose")
        first, second = self.weight.shape[:2]
        inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
        layer = _LAYERS[self.kind](
            inputs, outputs, tuple(self.weight.shape[2:]), bias=False, dtype=torch.float64, **self.options
        )
        layer.weight = nn.Parameter(self.weight.double())
        size = torch.Size((inputs, *self.input_shape))
        with torch.no_grad():
            images: Tensor = layer(torch.eye(size.numel(), dtype=torch.float64).view(size.numel(), *size))
        return images.flatten(1).t()

    def __str__(self) -> str:
        return f"{self.kind} {tuple(self.weight.shape)} {self.of} {self.input_shape} {self.options}"


def layers(count: int, seed: int) -> Iterator[Layer]:
    """The first ``count`` of an endless row: every kind in turn, everything else drawn."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    kinds = ("dense", *_LAYERS)
    made = 0
    while made < count:
        layer = _layer(kinds[made % len(kinds)], draw, generator)
        if layer is not None:
            made += 1
            yield layer


def _layer(kind: str, draw: Draw, generator: torch.Generator) -> Layer | None:
    """None where what was drawn fits no input."""
    of = WEIGHTS[draw(0, len(WEIGHTS) - 1)]
    if kind == "dense":
        return Layer(kind, weights(of, (draw(1, 24), draw(1, 24)), generator), {}, None, of)
    dims = int(kind[-2])
    transposed = "transpose" in kind
    groups = draw(1, 3)
    kernel = tuple(draw(1, 4 if dims < 3 else 3) for _ in range(dims))
    size = tuple(draw(1, _MOST[dims]) for _ in range(dims))
    options: dict[str, Any] = {
        "stride": tuple(draw(1, 3) for _ in range(dims)),
        "dilation": tuple(draw(1, 2) for _ in range(dims)),
        "groups": groups,
    }
    padding = tuple(draw(0, 2) for _ in range(dims))
    if transposed:
        options["output_padding"] = tuple(
            draw(0, max(s, d) - 1) for s, d in zip(options["stride"], options["dilation"], strict=True)
        )
        out = [
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, s, p, d, k, e in zip(
                size, options["stride"], padding, options["dilation"], kernel, options["output_padding"], strict=True
            )
        ]
    else:
        options["padding_mode"] = ("zeros", "zeros", "circular", "reflect", "replicate")[draw(0, 4)]
        if options["padding_mode"] == "circular" and any(p > n for p, n in zip(padding, size, strict=True)):
            return None
        if options["padding_mode"] == "reflect" and any(p >= n for p, n in zip(padding, size, strict=True)):
            return None
        out = [n + 2 * p - d * (k - 1) for n, p, d, k in zip(size, padding, options["dilation"], kernel, strict=True)]
    if min(out) < 1:
        return None
    same = not transposed and max(options["stride"]) == 1 and options["padding_mode"] == "zeros" and draw(0, 1) == 1
    options["padding"] = "same" if same else padding
    channels = draw(1, 4), draw(1, 4)
    shape = (channels[0] * groups, channels[1], *kernel)
    return Layer(kind, weights(of, shape, generator), options, size, of)


def weights(of: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    normal = torch.randn(shape, generator=generator)
    if of == "uniform":
        return torch.rand(shape, generator=generator)
    if of == "zero":
        return torch.zeros(shape)
    if of == "rank one":
        first = torch.randn(shape[0], *(1 for _ in shape[1:]), generator=generator)
        return first * torch.randn(1, *shape[1:], generator=generator)
    if of == "one entry":
        return torch.nn.functional.one_hot(torch.tensor(0), normal.numel()).view(shape) * normal
    if of == "denormal":
        return normal * 1e-40
    if of == "huge":
        return normal * 1e30
    if of == "tiny":
        return normal * 1e-30
    if of == "equal":
        return torch.full(shape, 0.1)
    if of == "signs":
        return normal.sign()
    if of == "bfloat16":
        return normal.bfloat16()
    return normal.double() if of == "float64" else normal


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64, with weights drawn from a seed of their own."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The layer without its bias, as a matrix from the entries of an input to those of the output; differentiable."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return (layer(basis) - layer(torch.zeros_like(basis[:1]))).flatten(1).T


class Calls(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)
