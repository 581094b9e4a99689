"""The sparse projection against `torch.topk`: eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import peers
from harness import SHAPES, judge_sparse
from sparring import ops, reference

PER_ENTRY = 10 / 784


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_project_l0_box(versus: Callable[..., None], shape: tuple[int, int], device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).to(device)
    delta = torch.randn(shape, generator=generator).to(device)
    k = round(PER_ENTRY * shape[1])
    out = torch.empty_like(x)
    fast = peers.compiled(peers.topk_project)
    versus(
        lambda: ops.project_l0_box(delta, x, k, out=out),
        {
            "torch.topk": lambda: peers.topk_project(delta, x, k),
            "torch.topk, compiled": lambda: fast(delta, x, k),
        },
        fresh=lambda: ops.project_l0_box(delta, x, k),
        op="project_l0_box",
        shape=shape,
        device=device,
        judge=judge_sparse(lambda rows: reference.project_l0_box(delta.cpu()[rows], x.cpu()[rows], k), x, k),
        bytes_per_entry=12,
        required={},
        weaker=dict.fromkeys(("torch.topk", "torch.topk, compiled"), "no check for NaN"),
    )
