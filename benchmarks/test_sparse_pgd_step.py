"""The step of sparse PGD against what its authors do, and against `torch.topk`, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import peers
from harness import SHAPES, judge_sparse
from sparring import ops, reference

PER_ENTRY, STEP, TURN = 10 / 784, 0.25, 7.0


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_sparse_pgd_step(versus: Callable[..., None], shape: tuple[int, int], device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    values = torch.rand(shape, generator=generator) - x
    grad, mask = (torch.randn(shape, generator=generator) for _ in range(2))
    k = round(PER_ENTRY * shape[1])

    def oracle(rows: Tensor) -> Tensor:
        state = (t[rows] for t in (values, mask, grad, x))
        return reference.sparse_pgd_step(*state, k, step_size=STEP, mask_step=TURN)[0]

    there = [t.to(device) for t in (values, mask, grad, x)]
    mine = [t.clone() for t in there]
    fast = peers.compiled(peers.sparse_pgd)
    versus(
        lambda: ops.sparse_pgd_step(*mine, k, step_size=STEP, mask_step=TURN),
        {
            "as published": lambda: peers.sparse_pgd_sorted(*there, k, STEP, TURN),
            "torch.topk": lambda: peers.sparse_pgd(*there, k, STEP, TURN),
            "torch.topk, compiled": lambda: fast(*there, k, STEP, TURN),
        },
        op="sparse_pgd_step",
        shape=shape,
        device=device,
        judge=judge_sparse(oracle, there[3], k),
        bytes_per_entry=28,
        required={},
        weaker=dict.fromkeys(("as published", "torch.topk", "torch.topk, compiled"), "no check for NaN"),
    )
