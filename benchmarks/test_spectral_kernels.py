"""What certified norms are made of, in float64, against the same from torch's matrix products and LAPACK."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, float64

from sparring.lipschitz import kernels

SYMBOLS = [(3, 61, 8000), (12, 13, 2000), (64, 13, 96), (64, 41, 96), (128, 13, 24)]  # n, lags, frequencies
MATRICES = [(6, 4000), (24, 2000), (64, 500), (128, 100), (512, 8)]  # m, number
WEIGHTS = [(4096, 1024), (100, 784)]


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=float64)


def _grams(size: int, count: int) -> Tensor:
    factors = _normal(count, size, size + 3)
    return factors @ factors.mT


def _identify(case: tuple[int, ...]) -> str:
    return "x".join(map(str, case))


@pytest.mark.parametrize("case", SYMBOLS, ids=_identify)
def test_symmetric_symbol(versus: Callable[..., None], case: tuple[int, int, int], device: torch.device) -> None:
    size, count, frequencies = case
    r = _normal(count, size, size)
    lags = torch.stack([r + r.mT, r - r.mT], 1).to(device)
    angles = 3 * _normal(frequencies, count)
    twiddles = torch.stack([angles.cos(), angles.sin()], 2).to(device)

    def products(into: Tensor) -> Tensor:
        even = (twiddles[:, :, 0] @ lags[:, 0].reshape(count, -1)).view(frequencies, size, size)
        odd = (twiddles[:, :, 1] @ lags[:, 1].reshape(count, -1)).view(frequencies, size, size)
        into[:, :size, :size] = into[:, size:, size:] = even
        into[:, size:, :size] = odd
        torch.neg(odd, out=into[:, :size, size:])
        return into

    shape = (frequencies, 2 * size, 2 * size)
    right = products(torch.empty(shape, dtype=float64, device=device))
    versus(
        lambda: kernels.symmetric_symbol(lags, twiddles),
        {"torch, two products and four blocks": lambda: products(torch.empty(shape, dtype=float64, device=device))},
        op=f"symmetric_symbol, {count} lags",
        shape=(frequencies, 4 * size * size),
        device=device,
        judge=lambda symbol: {"error": float((symbol - right).abs().max())},
        bytes_per_entry=8,
        dtype="float64",
        required={"torch, two products and four blocks": 1},
    )


@pytest.mark.parametrize("case", MATRICES, ids=_identify)
def test_positive_definite(versus: Callable[..., None], case: tuple[int, int], device: torch.device) -> None:
    size, count = case
    matrices = _grams(size, count).to(device)
    factors = torch.where(torch.arange(count, device=device) % 8 == 7, 0.99, 1.01)
    shift = factors * torch.linalg.eigvalsh(matrices)[:, -1]
    identity = torch.eye(size, dtype=float64, device=device)

    versus(
        lambda: kernels.positive_definite(matrices, shift),
        {"torch, cholesky_ex": lambda: torch.linalg.cholesky_ex(shift[:, None, None] * identity - matrices).info == 0},
        op="positive_definite",
        shape=(count, size * size),
        device=device,
        judge=lambda definite: {"error": float((definite != (factors > 1)).sum())},
        bytes_per_entry=8,
        dtype="float64",
        required={"torch, cholesky_ex": 1},
    )


@pytest.mark.parametrize("case", MATRICES, ids=_identify)
def test_top_eigenpair(versus: Callable[..., None], case: tuple[int, int], device: torch.device) -> None:
    size, count = case
    matrices = _grams(size, count).to(device)
    right = torch.linalg.eigvalsh(matrices)[:, -1]

    def power(steps: int = 100) -> Tensor:
        x = torch.ones(count, size, 1, dtype=float64, device=device)
        for _ in range(steps):
            x = matrices @ x
            x = x / x.norm(dim=1, keepdim=True)
        return (x * (matrices @ x)).sum((1, 2))

    versus(
        lambda: kernels.top_eigenpair(matrices).value,
        {"torch, eigvalsh": lambda: torch.linalg.eigvalsh(matrices)[:, -1], "torch, 100 power steps": power},
        op="top_eigenpair",
        shape=(count, size * size),
        device=device,
        judge=lambda value: {"error": float(((value - right) / right).abs().max())},
        bytes_per_entry=8,
        dtype="float64",
        required={"torch, eigvalsh": 1, "torch, 100 power steps": 1},
        weaker={"torch, 100 power steps": "a residual of any size"},
    )


@pytest.mark.parametrize("case", WEIGHTS, ids=_identify)
def test_absolute_sums(versus: Callable[..., None], case: tuple[int, int], device: torch.device) -> None:
    matrix = _normal(*case).to(device)
    right = torch.stack([matrix.abs().sum(1), matrix.square().sum(1)])
    versus(
        lambda: torch.stack(list(kernels.absolute_sums(matrix))),
        {"torch, two sums": lambda: torch.stack([matrix.abs().sum(1), matrix.square().sum(1)])},
        op="absolute_sums",
        shape=case,
        device=device,
        judge=lambda sums: {"error": float(((sums - right) / right).abs().max())},
        bytes_per_entry=8,
        dtype="float64",
        required={"torch, two sums": 1},
        weaker={"torch, two sums": "no bounds"},
    )
