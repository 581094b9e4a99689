"""The primitives as ``torch.ops.sparring.*``, for torch.compile, autograd and ``torch.library.opcheck``.

Eager calls without autograd go straight to the compiled module (:mod:`sparring.ops`); only what is traced, transformed
or differentiated passes here. Numbers that may differ from row to row are tensors of shape (B,) or ().
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparring import _eager as eager


@torch.library.custom_op("sparring::project_l1_box", mutates_args=())
def project_l1_box(delta: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float, check_finite: bool = True) -> Tensor:
    result: Tensor = eager.project_l1_box(delta, x, eps, (lo, hi), None, check_finite)
    return result


@project_l1_box.register_fake
def _(delta: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float, check_finite: bool = True) -> Tensor:
    return torch.empty_like(delta, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    delta, x, eps, ctx.lo, ctx.hi, _ = inputs
    ctx.save_for_backward(delta, x, eps, output)


def _projection_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """v = s clip(m - t, 0, room): entries strictly between move with delta, those at the box with -x, and on the
    sphere t makes sum |v| = eps, so that dt = (sum of d|v| at fixed t - d eps) / (number strictly between)."""
    delta, x, eps, v = ctx.saved_tensors
    d, points, out, g = (a.flatten(1) if a.ndim > 1 else a.unsqueeze(1) for a in (delta, x, v, upstream))
    sign, kept = d.sign(), out.abs()
    room = torch.where(d < 0, points - ctx.lo, ctx.hi - points).clamp(min=0)
    tie = 4 * torch.finfo(d.dtype).eps * kept
    at_box = (kept > 0) & (kept >= room - tie)
    between = (kept > 0) & ~at_box
    moved = (d.abs() - kept > tie) & between
    on_sphere = moved.any(dim=1, keepdim=True)
    per_entry = (g * sign * between).sum(1, keepdim=True) / between.sum(1, keepdim=True).clamp(min=1)
    h = torch.where(on_sphere, per_entry, 0.0)
    grad_delta = torch.where(between, g - sign * h, 0.0)
    grad_x = torch.where(at_box, sign * h - g, 0.0)
    grad_eps = h[:, 0].to(eps.dtype)
    return (
        grad_delta.reshape_as(delta),
        grad_x.reshape_as(x),
        grad_eps if eps.ndim else grad_eps.sum(),
        None,
        None,
        None,
    )


project_l1_box.register_autograd(_projection_backward, setup_context=_save)


@torch.library.custom_op("sparring::project_l0_box", mutates_args=())
def project_l0_box(
    delta: Tensor, x: Tensor, k: Tensor, lo: float, hi: float, channels: int = 1, check_finite: bool = True
) -> Tensor:
    result: Tensor = eager.project_l0_box(delta, x, k, (lo, hi), channels, None, check_finite)
    return result


@project_l0_box.register_fake
def _(
    delta: Tensor, x: Tensor, k: Tensor, lo: float, hi: float, channels: int = 1, check_finite: bool = True
) -> Tensor:
    return torch.empty_like(delta, memory_format=torch.contiguous_format)


def _save_kept(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    delta = inputs[0]
    ctx.save_for_backward(output != 0, output == delta)


def _l0_projection_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """What is kept moves with delta, or, at a face of the box, with -x."""
    kept, free = ctx.saved_tensors
    return upstream * (kept & free), -upstream * (kept & ~free), None, None, None, None, None


project_l0_box.register_autograd(_l0_projection_backward, setup_context=_save_kept)


@torch.library.custom_op("sparring::l1_step", mutates_args=())
def l1_step(
    delta: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    k: Tensor,
    lo: float,
    hi: float,
    check_finite: bool = True,
) -> Tensor:
    result: Tensor = eager.l1_step(delta, grad, x, eps, step_size, k, (lo, hi), None, check_finite)
    return result


@l1_step.register_fake
def _(
    delta: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    step_size: Tensor,
    k: Tensor,
    lo: float,
    hi: float,
    check_finite: bool = True,
) -> Tensor:
    return torch.empty_like(delta, memory_format=torch.contiguous_format)


@torch.library.custom_op("sparring::recovery_step", mutates_args=("image", "exp_avg", "exp_avg_sq"))
def recovery_step(
    image: Tensor,
    grad: Tensor,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    lr: Tensor,
    lam: Tensor,
    mask: Tensor | None,
    frozen: Tensor | None,
    prox: bool,
    step: int,
    beta1: float,
    beta2: float,
    adam_eps: float,
    black: float,
    lo: float,
    hi: float,
    floor: float,
    check_finite: bool = True,
) -> None:
    eager.recovery_step(
        image, grad, lr, lam, "prox" if prox else "subgradient", exp_avg, exp_avg_sq, step, (beta1, beta2), adam_eps,
        black, (lo, hi), floor, mask, frozen, check_finite,
    )  # fmt: skip


@torch.library.custom_op("sparring::sparse_pgd_step", mutates_args=("values", "mask", "unchanged"))
def sparse_pgd_step(
    values: Tensor,
    mask: Tensor,
    unchanged: Tensor | None,
    grad: Tensor,
    x: Tensor,
    k: Tensor,
    step_size: Tensor,
    mask_step: Tensor,
    projected: bool,
    channels: int,
    lo: float,
    hi: float,
    check_finite: bool = True,
) -> Tensor:
    result: Tensor = eager.sparse_pgd_step(
        values, mask, grad, x, k, step_size, mask_step, projected, unchanged, channels, (lo, hi), check_finite
    )
    return result


@sparse_pgd_step.register_fake
def _(
    values: Tensor,
    mask: Tensor,
    unchanged: Tensor | None,
    grad: Tensor,
    x: Tensor,
    k: Tensor,
    step_size: Tensor,
    mask_step: Tensor,
    projected: bool,
    channels: int,
    lo: float,
    hi: float,
    check_finite: bool = True,
) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)
