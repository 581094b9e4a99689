"""Cosines between the gradients of an ensemble's members, and their squares, added over examples, against torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.gradients import kernels

CASES = [(10, 1000, 784), (100, 1000, 784), (10, 1000, 3072)]  # members, examples, entries of a gradient


def einsum(grads: Tensor) -> Tensor:
    unit = F.normalize(grads, dim=2)
    return torch.einsum("ibd,jbd->ij", unit, unit)


def each_example(grads: Tensor) -> Tensor:
    unit = F.normalize(grads, dim=2).transpose(0, 1)
    cosines = unit @ unit.transpose(1, 2)
    return torch.stack([cosines.sum(0), cosines.square().sum(0)])


@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c)))
def test_pairwise_cosine(versus: Callable[..., None], case: tuple[int, int, int], device: torch.device) -> None:
    members, examples, entries = case
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(case, generator=generator) + torch.randn(case[1:], generator=generator)  # cosines about .5
    right = torch.zeros(2, members, members, dtype=torch.float64)
    for some in torch.split(grads, 100, dim=1):
        right += each_example(some.double())
    grads = grads.to(device)

    def judge(sums: Tensor) -> dict[str, float]:
        expected = right if sums.ndim == 3 else right[0]
        return {"error": float((sums.cpu().double() - expected).abs().max()) / examples}

    def ours() -> Tensor:
        result = kernels.pairwise_cosine(grads)
        return torch.stack([result.sum, result.square])

    versus(
        ours,
        {
            "torch, normalize and einsum": lambda: einsum(grads),
            "torch, normalize and bmm": lambda: each_example(grads),
        },
        op=f"pairwise_cosine, {members} members",
        shape=(examples, entries),
        device=device,
        judge=judge,
        bytes_per_entry=4 * members,
        required={"torch, normalize and einsum": 1},
        weaker={"torch, normalize and einsum": "no squares"},
    )
