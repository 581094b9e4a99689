"""``python benchmarks/lipschitz_layers.py``: the table of docs/lipschitz.md.

Every layer of AlexNet (seeded random weights, 224 x 224) and the convolutions of ResNet-18 at 32 x 32: both ends of the
enclosure against the operator's own norm, what others take for it, and how many times as long they take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from norms import ALEXNET, DENSE, RESNET18, of_convolution, of_matrix, seeded
from sparring.lipschitz import spectral_norm

T = TypeVar("T")


def fft_without_stride(weight: Tensor, size: int) -> float:
    """Circular padding at stride 1 (Sedghi et al. 2019), as orthogonium and lip4conv take a layer that has a stride."""
    symbol = torch.fft.fft2(weight.double(), s=(max(size, weight.shape[2]),) * 2).permute(2, 3, 0, 1)
    return float(torch.linalg.svdvals(symbol)[..., 0].max())


def reshaped(weight: Tensor) -> float:
    """What torch.nn.utils.parametrizations.spectral_norm divides a kernel by."""
    return float(torch.linalg.matrix_norm(weight.flatten(1), 2))


def timed(function: Callable[..., T], *arguments: Any, **options: Any) -> tuple[T, float]:
    begin = time.perf_counter()
    result = function(*arguments, **options)
    return result, time.perf_counter() - begin


def above(value: float, truth: float) -> str:
    return f"{100 * (value / truth - 1):+.2g} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print("| layer | weight | input, stride | norm | lower | upper | method | FFT, SVD at stride 1 | reshaped kernel |")
    print("|---|---|---|--:|--:|--:|---|--:|--:|")
    total: dict[str, float] = {}
    for network, layers in (("AlexNet", ALEXNET), ("ResNet-18", RESNET18)):
        for name, shape, size, stride, padding in layers:
            weight = seeded(shape)
            found, seconds = timed(spectral_norm, weight, "conv2d", size, stride=stride, padding=padding)
            total[network] = total.get(network, 0.0) + seconds
            truth = of_convolution(weight, size, stride, padding)
            peers = []
            for value, other in (timed(fft_without_stride, weight, size), timed(reshaped, weight)):
                peers.append(f"{above(value, truth)}, {other / seconds:.2g}x")
            ends = f"{above(found.lower, truth)} | {above(found.upper, truth)}"
            print(
                f"| {network} {name} | {'x'.join(map(str, shape))} | {size}, {stride} | {truth:.5g} | {ends} "
                f"| {found.method} | {' | '.join(peers)} |",
                flush=True,
            )
    for name, shape in DENSE:
        weight = seeded(shape)
        found, seconds = timed(spectral_norm, weight)
        total["AlexNet"] += seconds
        truth = of_matrix(weight)
        ends = f"{above(found.lower, truth)} | {above(found.upper, truth)}"
        print(
            f"| AlexNet {name} | {'x'.join(map(str, shape))} | | {truth:.5g} | {ends} | {found.method} | | |",
            flush=True,
        )
    print({network: f"{seconds:.1f} s in all" for network, seconds in total.items()})


if __name__ == "__main__":
    main()
