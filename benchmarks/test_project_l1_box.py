"""The projection against AutoAttack's, adv-lib's, Foolbox's and what one can write with torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import peers
from harness import EPS_PER_ENTRY, SHAPES, judge_l1
from sparring import ops, reference

BISECTIONS = ("", ", one threshold a pass", ", in blocks")  # which is the fastest depends on the shape
REQUIRED = {  # by row length
    size: {"AutoAttack": autoattack} | {f"torch.compile bisection{kind}": compiled for kind in BISECTIONS}
    for size, autoattack, compiled in ((784, 50, 4), (3072, 50, 4), (150_528, 150, 10))
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
        halve = peers.compiled(peers.halve)
        contestants["torch.compile bisection, one threshold a pass"] = lambda: halve(delta, x, eps)
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
