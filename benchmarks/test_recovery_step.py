"""The recovery step against torch: eager, in place, fused Adam, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import peers
from harness import SHAPES, judge_image
from sparring import ops, reference

LR, LAM, FLOOR = 1e-3, 0.1, 0.01
PLAIN = {"torch.compile": 4}
ADAM = {784: {"torch fused Adam": 7}, 3072: {"torch fused Adam": 7}, 150_528: {"torch fused Adam": 18}}
COMMON: dict[str, Any] = {"lr": LR, "lam": LAM, "penalty": "prox", "floor": FLOOR}


def start(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """An image with black entries, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(shape, generator=generator) * 1.5 - 0.5).clamp(0, 1)
    return image.to(device), 0.1 * torch.randn(shape, generator=generator).to(device)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda s: "x".join(map(str, s)))
def test_plain(versus: Callable[..., None], shape: tuple[int, int], device: torch.device) -> None:
    image, grad = start(shape, device)
    weight = LAM / shape[1]

    def on_a_copy(function: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return partial(function, image.clone(), grad, LR, weight, FLOOR)

    def oracle(rows: Tensor) -> Any:
        return reference.recovery_step(image.cpu()[rows], grad.cpu()[rows], **COMMON)[0]

    mine = image.clone()
    versus(
        lambda: ops.recovery_step(mine, grad, **COMMON),
        {
            "torch": on_a_copy(peers.ista),
            "torch, in place": on_a_copy(peers.ista_by_hand_),
            "torch.compile": on_a_copy(peers.compiled(peers.ista)),
            "torch.compile, in place": on_a_copy(peers.compiled(peers.ista_)),
        },
        op="recovery_step, plain",
        shape=shape,
        device=device,
        judge=judge_image(oracle, shape),
        bytes_per_entry=12,
        required=PLAIN if device.type == "cpu" else {},
    )


@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda s: "x".join(map(str, s)))
def test_adam(versus: Callable[..., None], shape: tuple[int, int], device: torch.device) -> None:
    image, grad = start(shape, device)
    weight = LAM / shape[1]

    def state() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return image.clone(), grad, torch.zeros_like(image), torch.zeros_like(image)

    def on_a_copy(function: Callable[..., Any]) -> Callable[[], Any]:
        return partial(function, *state(), 1, LR, weight, FLOOR)

    def oracle(rows: Tensor) -> Any:
        zeros = torch.zeros(len(rows), shape[1])
        return reference.recovery_step(
            image.cpu()[rows], grad.cpu()[rows], exp_avg=zeros, exp_avg_sq=zeros, step=1, **COMMON
        )[0]

    mine, _, m, v = state()
    eager, fast = on_a_copy(peers.adam_ista), on_a_copy(peers.compiled(peers.adam_ista))
    versus(
        lambda: ops.recovery_step(mine, grad, exp_avg=m, exp_avg_sq=v, step=1, **COMMON),
        {
            "torch": lambda: eager()[0],
            "torch fused Adam": peers.FusedAdam(image.clone(), grad, LR, weight, FLOOR),
            "torch.compile": lambda: fast()[0],
            "torch.compile, in place": on_a_copy(peers.compiled(peers.adam_ista_)),
        },
        op="recovery_step, Adam",
        shape=shape,
        device=device,
        judge=judge_image(oracle, shape),
        bytes_per_entry=28,
        required=ADAM[shape[1]] if device.type == "cpu" else {},
    )
