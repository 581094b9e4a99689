"""The L1 step against the steps of APGD-L1 (AutoAttack, adv-lib), SLIDE (Foolbox), PGD (ART), and `torch.topk`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import peers
from harness import EPS_PER_ENTRY, SHAPES, judge_l1
from sparring import ops, reference

REQUIRED = {784: {"AutoAttack": 35}, 3072: {"AutoAttack": 35}, 150_528: {"AutoAttack": 80}}  # by row length
FRACTION = 0.05


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_l1_step(versus: Callable[..., None], shape: tuple[int, int], device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    size = shape[1]
    eps = EPS_PER_ENTRY * size
    x = torch.rand(shape, generator=generator).to(device)
    grad = torch.randn(shape, generator=generator).to(device)
    # Feasible and off the faces: every coordinate can move, so that peers that do not look take the same step.
    delta = 0.9 * ops.project_l1_box(torch.randn(shape, generator=generator).to(device), x, eps)
    k = round(FRACTION * size)
    per_row = torch.full(shape[:1], eps, device=device)
    kept = torch.full(shape[:1], (k - 0.5) / size, device=device)  # the packages round towards more coordinates
    out = torch.empty_like(x)
    step = peers.compiled(peers.topk_step)
    versus(
        lambda: ops.l1_step(delta, grad, x, eps, eps, k, out=out),
        {
            "AutoAttack": lambda: peers.step_autoattack(delta, grad, x, eps, per_row[:, None], kept),
            "adv-lib": lambda: peers.step_advlib(delta, grad, x, per_row, per_row, kept),
            "Foolbox SLIDE": lambda: peers.step_foolbox(delta, grad, x, eps, eps, (k - 0.5) / size),
            "ART": lambda: peers.step_art(delta, grad, x, eps, eps),
            "torch.topk, compiled bisection": lambda: step(delta, grad, x, eps, eps, k),
        },
        fresh=lambda: ops.l1_step(delta, grad, x, eps, eps, k),
        op="l1_step",
        shape=shape,
        device=device,
        judge=judge_l1(
            lambda rows: reference.l1_step(delta.cpu()[rows], grad.cpu()[rows], x.cpu()[rows], eps, eps, k), x, eps
        ),
        bytes_per_entry=16,
        required=REQUIRED[size] if device.type == "cpu" and shape[0] > 1 else {},
        weaker={
            "Foolbox SLIDE": "projects without the box, then clips",
            "ART": "one coordinate, rescales radially",
        },
    )
