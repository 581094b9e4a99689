"""The projection against AutoAttack's, adv-lib's, Foolbox's and what one can write with torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import peers
from harness import EPS_PER_ENTRY, SHAPES, judge_l1
from sparring import ops, reference

REQUIRED = {  # by row length
    784: {"AutoAttack": 50, "torch.compile bisection": 4, "torch.compile bisection, in blocks": 4},
    3072: {"AutoAttack": 50, "torch.compile bisection": 4, "torch.compile bisection, in blocks": 4},
    150_528: {"AutoAttack": 150, "torch.compile bisection": 10, "torch.compile bisection, in blocks": 10},
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_project_l1_box(versus: Callable[..., None], shape: tuple[int, int], device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).to(device)
    delta = torch.randn(shape, generator=generator).to(device)
    eps = EPS_PER_ENTRY * shape[1]
    per_row = torch.full(shape[:1], eps, device=device)
    out = torch.empty_like(x)
    contestants = {
        "AutoAttack": lambda: peers.project_autoattack(delta, x, eps),
        "adv-lib": lambda: peers.project_advlib(delta, x, per_row),
        "Foolbox": lambda: peers.project_foolbox(delta, x, eps),
        "torch bisection": lambda: peers.bisect(delta, x, eps),
        "torch.compile bisection": lambda: peers.bisect_compiled(delta, x, eps),
    }
    if device.type == "cuda":
        graphed = peers.compiled(peers.bisect, "reduce-overhead")
        contestants["torch.compile bisection, CUDA graph"] = lambda: graphed(delta, x, eps, 3)
    elif shape[0] > 1:
        contestants["torch.compile bisection, in blocks"] = lambda: peers.bisect_in_blocks(delta, x, eps)
    versus(
        lambda: ops.project_l1_box(delta, x, eps, out=out),
        contestants,
        fresh=lambda: ops.project_l1_box(delta, x, eps),
        op="project_l1_box",
        shape=shape,
        device=device,
        judge=judge_l1(lambda rows: reference.project_l1_box(delta.cpu()[rows], x.cpu()[rows], eps), x, eps),
        bytes_per_entry=12,
        required=REQUIRED[shape[1]] if device.type == "cpu" and shape[0] > 1 else {},
        weaker={"Foolbox": "ignores the box"},
    )
