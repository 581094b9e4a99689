"""The recovery step against torch: eager, in place, fused Adam, and compiled.

The targets are against the compiled function that returns a new image, which does not check for NaN, and against the
fused Adam followed by the formula of the soft threshold. Beside them: compiled functions that, like ours, leave rows
with NaN or inf as they are, and forms whose operations were put in place by hand.
"""

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
ADAM = {size: {"torch fused Adam, plain expressions": least} for size, least in ((784, 7), (3072, 7), (150_528, 18))}
CHECKED, UNCHECKED = "torch.compile, keeping rows with NaN", "no check for NaN"
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
    contestants = {
        "torch": on_a_copy(peers.ista),
        "torch, in place": on_a_copy(peers.ista_by_hand_),
        CHECKED: on_a_copy(peers.compiled(peers.ista_checked)),
        "torch.compile": on_a_copy(peers.compiled(peers.ista)),
        "torch.compile, in place": on_a_copy(peers.compiled(peers.ista_)),
    }
    versus(
        lambda: ops.recovery_step(mine, grad, **COMMON),
        contestants,
        op="recovery_step, plain",
        shape=shape,
        device=device,
        judge=judge_image(oracle, shape),
        bytes_per_entry=12,
        required=PLAIN if device.type == "cpu" else {},
        weaker=dict.fromkeys((name for name in contestants if name != CHECKED), UNCHECKED),
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
    checked = on_a_copy(peers.compiled(peers.adam_ista_checked))
    contestants: dict[str, Callable[[], Any]] = {
        "torch": lambda: eager()[0],
        "torch fused Adam, plain expressions": peers.FusedAdam(image.clone(), grad, LR, weight, FLOOR),
        "torch fused Adam, in-place operations": peers.FusedAdamByHand(image.clone(), grad, LR, weight, FLOOR),
        CHECKED: lambda: checked()[0],
        "torch.compile": lambda: fast()[0],
        "torch.compile, in place": on_a_copy(peers.compiled(peers.adam_ista_)),
    }
    versus(
        lambda: ops.recovery_step(mine, grad, exp_avg=m, exp_avg_sq=v, step=1, **COMMON),
        contestants,
        op="recovery_step, Adam",
        shape=shape,
        device=device,
        judge=judge_image(oracle, shape),
        bytes_per_entry=28,
        required=ADAM[shape[1]] if device.type == "cpu" else {},
        weaker=dict.fromkeys((name for name in contestants if name != CHECKED), UNCHECKED),
    )
