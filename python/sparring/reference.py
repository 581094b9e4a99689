"""The primitives in plain float64 torch: short, sorted, obviously right, and slow.

The compiled operations are checked against these. Each function takes CPU tensors of any floating-point type, computes
in float64 and returns float64; nothing is written in place. Bounds, black and floor are first rounded to the data's
type, as the compiled operations do, so that an entry that sits on one of them does so here too. Rows (the first
dimension is the batch) that hold a NaN or an infinity come back as all NaN from the projections and `l1_step`, and
unchanged from `recovery_step`
and `sparse_pgd_step`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["l1_step", "project_l0_box", "project_l1_box", "recovery_step", "sparse_pgd_step"]


def project_l1_box(delta: Tensor, x: Tensor, eps: float | Tensor, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Nearest point to `delta` in ``{v : |v|_1 <= eps, lo <= x + v <= hi}``, row by row, by sorting.

    The answer is ``v_i = sign(delta_i) clip(|delta_i| - t, 0, cap_i)``, where ``cap_i`` is the room left in the box and
    `t` the smallest number >= 0 for which ``|v|_1 <= eps`` (Croce & Hein 2021, appendix A). The mass ``|v|_1`` is
    piecewise linear in `t`, with a kink at every ``|delta_i|`` and ``|delta_i| - cap_i``: sort the kinks, find the
    segment on which the mass crosses `eps`, interpolate.

    Parameters
    ----------
    delta, x : Tensor, shape (B, ...)
        The perturbation, and the point perturbed. Where `x` is outside the bounds there is no room to move further out.
    eps : float or Tensor of shape (B,)
        Radius, at least 0.
    bounds : (lo, hi)
        May be infinite.

    Returns
    -------
    Tensor, float64, shape (B, ...)
        Feasible up to float64 rounding (the compiled operation has no such slack).
    """
    shape, (lo, hi) = delta.shape, _rounded(x, *bounds)
    delta, x = _rows(delta), _rows(x)
    if delta.numel() == 0:
        return delta.reshape(shape)
    radius = _per_row(eps, delta)
    magnitude = delta.abs()
    # Room beyond |delta_i| is never used; without it every kink is finite and at t >= 0.
    room = torch.where(delta > 0, hi - x, x - lo).clamp(min=0).minimum(magnitude)

    # |delta_i| - cap_i is held as the exact sum of two floats: where |delta| >> eps one float would lose cap_i.
    lower = magnitude - room
    kink = torch.cat([magnitude, lower], 1)
    tail = torch.cat([torch.zeros_like(room), (magnitude - lower) - room], 1)
    active = torch.cat([torch.ones_like(room), -torch.ones_like(room)], 1)
    order = tail.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, kink.gather(1, order).argsort(dim=1, descending=True, stable=True))
    kink, tail, active = kink.gather(1, order), tail.gather(1, order), active.gather(1, order).cumsum(1)

    # mass[j] = |v|_1 at t = kink[j]; between kink[j] and kink[j + 1] it rises by active[j] per unit of t.
    gap = (kink[:, :-1] - kink[:, 1:]) + (tail[:, :-1] - tail[:, 1:])
    mass = torch.cat([torch.zeros_like(radius), (active[:, :-1] * gap).cumsum(1)], 1)
    last = ((mass <= radius).sum(1, keepdim=True) - 1).clamp(min=0)
    below = (radius - mass.gather(1, last)) / active.gather(1, last).clamp(min=1)
    # t = kink + tail - below, never formed: all is relative to the marginal kink.
    kept = ((magnitude - kink.gather(1, last)) - tail.gather(1, last) + below).clamp(min=0).minimum(room)

    fits = room.sum(1, keepdim=True) <= radius
    v = delta.sign() * torch.where(fits, room, kept)
    return v.where(_finite(delta, x), torch.nan).reshape(shape)


def project_l0_box(
    delta: Tensor, x: Tensor, k: int | float | Tensor, bounds: tuple[float, float] = (0.0, 1.0), channels: int = 1
) -> Tensor:
    """Nearest point to `delta` that is not 0 in at most `k` places and has ``lo <= x + v <= hi``, row by row, by
    sorting.

    A place is a position with its entries in all `channels`, laid out channel first. Every entry is brought into the
    box; the places stay that would add most to ``|v - delta|_2^2`` if they were 0, ties going to the lowest index.

    Parameters
    ----------
    delta, x : Tensor, shape (B, ...)
        Where `x` is outside the bounds there is no room to move further out.
    k : int, float or Tensor of shape (B,)
        Floats are fractions in (0, 1] of the number of places P, and stand for ``max(1, round(k * P))``.
    bounds : (lo, hi)
    channels : int

    Returns
    -------
    Tensor, float64, shape (B, ...)
    """
    shape, (lo, hi) = delta.shape, _rounded(x, *bounds)
    delta, x = (_rows(t).reshape(shape[0], channels, math.prod(shape[1:]) // channels) for t in (delta, x))
    if delta.numel() == 0:
        return delta.reshape(shape)
    room = torch.where(delta > 0, hi - x, x - lo).clamp(min=0)
    inside = delta.sign() * delta.abs().minimum(room)
    largest = delta.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    unit = torch.exp2(largest.log2().floor())  # of which no square overflows
    missed = (inside.abs() / unit) * ((2 * delta.abs() - inside.abs()) / unit)
    gain = sum(missed.unbind(1), torch.zeros_like(missed[:, 0]))
    v = torch.where(_largest(gain, k)[:, None], inside, 0.0).flatten(1)
    return v.where(_finite(delta.flatten(1), x.flatten(1)), torch.nan).reshape(shape)


def l1_step(
    delta: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    k: int | float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Steepest ascent step of L1 norm `step_size` on the `k` best coordinates, then `project_l1_box`.

    ``step_size / k'`` times the sign of the gradient is added at the ``k' = min(k, movable)`` movable coordinates of
    largest ``|grad|``, ties going to the lowest index (the step of SLIDE, Tramer & Boneh 2019, and of APGD-L1, Croce &
    Hein 2021). A coordinate is movable unless its gradient is 0 or points out of the box at a face that ``x + delta``,
    rounded to the input's type, has reached.

    Parameters
    ----------
    delta, grad, x : Tensor, shape (B, ...)
    eps, step_size : float or Tensor of shape (B,)
    k : int, float or Tensor of shape (B,)
        Floats are fractions in (0, 1] of the row's length D, and stand for ``max(1, round(k * D))``.
    bounds : (lo, hi)

    Returns
    -------
    Tensor, float64, shape (B, ...)
    """
    shape, (lo, hi) = delta.shape, _rounded(x, *bounds)
    point = x + delta
    stuck = _rows((grad == 0) | ((grad > 0) & (point >= hi)) | ((grad < 0) & (point <= lo))).bool()
    delta, grad, x = _rows(delta), _rows(grad), _rows(x)
    count = _per_row(k, delta)
    if torch.as_tensor(k, device=delta.device).is_floating_point():
        count = (count * delta.shape[1]).round().clamp(min=1)
    rank = torch.where(stuck, -1.0, grad.abs()).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    chosen = count.minimum((~stuck).sum(1, keepdim=True))
    move = grad.sign() * _per_row(step_size, delta) / chosen.clamp(min=1)
    stepped = torch.where(rank < chosen, delta + move, delta)
    v = project_l1_box(stepped, x, eps, (lo, hi))
    return v.where(_finite(delta, grad, x), torch.nan).reshape(shape)


def recovery_step(
    image: Tensor,
    grad: Tensor,
    *,
    lr: float | Tensor,
    lam: float | Tensor,
    penalty: Literal["subgradient", "prox"] = "subgradient",
    exp_avg: Tensor | None = None,
    exp_avg_sq: Tensor | None = None,
    step: int = 1,
    betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-4,
    black: float = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    floor: float = 0.0,
    mask: Tensor | None = None,
    frozen: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One descent step on ``loss + lam |image - black|_1 / D``, then clamp to the box and floor to black.

    The compiled operation works in place on `image`, `exp_avg` and `exp_avg_sq`; this one returns the three anew.
    With both moments given the step is Adam's (Kingma & Ba 2015, `adam_eps` outside the root), else a plain one. The
    penalty enters as its subgradient ``lam/D sign(image - black)``, or exactly as the proximal map of the step's own
    (diagonal) metric: a soft threshold at ``rate * lam / D``.

    Parameters
    ----------
    image, grad, exp_avg, exp_avg_sq : Tensor, shape (B, ...)
        `grad` is the gradient of the loss alone. D is the number of entries of one image.
    lr, lam : float or Tensor of shape (B,)
    step : int
        Counts from 1 (Adam's bias correction).
    floor : float
        Entries with ``|image - black| < floor`` become black.
    mask : bool Tensor, shape (B, ...) or without the batch dimension
        Where False the entry is set to black and its moments stay.
    frozen : bool Tensor, shape (B,)
        Rows to leave untouched.

    Returns
    -------
    image, exp_avg, exp_avg_sq : Tensor (or None for moments not given), float64, shape (B, ...)
    """
    lo, hi, black, floor = _rounded(image, *bounds, black, floor)
    inputs = [t for t in (image, grad, exp_avg, exp_avg_sq) if t is not None]
    old = image.to(torch.float64)
    old_m, old_v = (None if t is None else t.to(torch.float64) for t in (exp_avg, exp_avg_sq))
    like = (-1,) + (1,) * (image.dim() - 1)
    lr, lam = (torch.as_tensor(value, dtype=torch.float64, device=image.device).reshape(like) for value in (lr, lam))
    weight = lam / max(1, math.prod(image.shape[1:]))

    g = grad.to(torch.float64)
    if penalty == "subgradient":
        g = g + weight * (old - black).sign()
    m, v = old_m, old_v
    if m is None or v is None:
        rate, direction = lr, g
    else:
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        rate = lr / (v.sqrt() / math.sqrt(1 - betas[1] ** step) + adam_eps)
        direction = m / (1 - betas[0] ** step)
    y = old - _product(rate, direction) - black
    if penalty == "prox":
        y = y.sign() * (y.abs() - _product(rate, weight)).clamp(min=0)
    new = (black + y).clamp(lo, hi)
    new = new.where((new - black).abs() >= floor, black)

    live = _finite(*(_rows(t) for t in inputs)).reshape(like)
    if frozen is not None:
        live = live & ~frozen.reshape(like)
    moves = live.expand(image.shape)
    if mask is not None:
        new = new.where(mask, black)
        moves = live & mask
    return (
        new.where(live, old),
        None if m is None or old_m is None else m.where(moves, old_m),
        None if v is None or old_v is None else v.where(moves, old_v),
    )


def sparse_pgd_step(
    values: Tensor,
    mask: Tensor,
    grad: Tensor,
    x: Tensor,
    k: int | float | Tensor,
    *,
    step_size: float | Tensor,
    mask_step: float | Tensor,
    projected: bool = False,
    channels: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of sparse PGD (Zhong, Liu & Xu 2024), its gradients by autograd.

    The compiled operation works in place on `values` and `mask`; this one returns the two anew. The mask's gradient is
    that of ``sum(grad * values * sigmoid(mask))``; with `projected` the values' is that of ``sum(grad * values *
    chosen)``, `chosen` being 1 at the `k` places of largest mask, else of the former sum.

    Parameters
    ----------
    values, grad, x : Tensor, shape (B, ...)
    mask : Tensor, shape (B, P)
    k, step_size, mask_step : number or Tensor of shape (B,)
    projected : bool
    channels : int
    bounds : (lo, hi)

    Returns
    -------
    perturbation, values, mask : Tensor, float64, shape (B, ...), (B, ...) and (B, P)
    same : bool Tensor, shape (B,)
        Whether the places are those before the step.
    """
    shape, (lo, hi) = values.shape, _rounded(x, *bounds)
    by_place = (shape[0], channels, mask.shape[1])
    v, g, points = (_rows(t).reshape(by_place) for t in (values, grad, x))
    m, live = _rows(mask), _finite(_rows(values), _rows(mask), _rows(grad), _rows(x))
    v0, m0 = v.requires_grad_(), m.requires_grad_()
    chosen = _largest(m, k)
    # Squares of a gradient that is very large or small are not: its length is measured in units of its largest entry.
    of_mask, of_values = torch.autograd.grad((g * v * m.sigmoid()[:, None]).sum(), (m, v))
    if projected:
        (of_values,) = torch.autograd.grad((g * v * chosen[:, None]).sum(), v)
    v, m = v0.detach(), m0.detach()
    unit = of_mask.abs().amax(1, keepdim=True)
    direction = torch.where(unit > 0, of_mask / unit, 0.0)
    length = direction.norm(dim=1, keepdim=True).clamp(min=1)
    moved = m + _per_row(mask_step, m) * direction / length
    ahead = v + _per_row(step_size, m)[:, None] * of_values.sign()
    room = torch.where(ahead > 0, hi - points, points - lo).clamp(min=0)
    ahead = ahead.sign() * ahead.abs().minimum(room)
    again = _largest(moved.to(mask.dtype).double(), k)
    live = live[:, 0]
    return (
        (ahead * again[:, None]).where(live[:, None, None], torch.nan).reshape(shape),
        ahead.where(live[:, None, None], v).reshape(shape),
        moved.where(live[:, None], m),
        live & (again == chosen).all(1),
    )


def _largest(mask: Tensor, k: int | float | Tensor) -> Tensor:
    """bool (B, P): the `k` largest of each row, ties going to the lowest index."""
    count = _per_row(k, mask)
    if torch.as_tensor(k, device=mask.device).is_floating_point():
        count = (count * mask.shape[1]).round().clamp(min=1)
    return mask.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < count


def _rows(t: Tensor) -> Tensor:
    """(B, ...) to (B, D) in float64."""
    return t.reshape(t.shape[0], math.prod(t.shape[1:])).to(torch.float64)


def _product(rate: Tensor, factor: Tensor) -> Tensor:
    """Their product, where a rate that overflowed times 0 is 0."""
    return torch.where(factor == 0, 0.0, rate * factor)


def _rounded(like: Tensor, *numbers: float) -> list[float]:
    """Numbers as the type of `like` represents them."""
    rounded: list[float] = torch.tensor(numbers, dtype=like.dtype, device="cpu").tolist()
    return rounded


def _per_row(value: float | Tensor, rows: Tensor) -> Tensor:
    """A scalar, or one number per row, as a (B, 1) column."""
    return torch.as_tensor(value, dtype=torch.float64, device=rows.device).reshape(-1, 1).expand(rows.shape[0], 1)


def _finite(*rows: Tensor) -> Tensor:
    """(B, 1): whether the row is finite in every array."""
    return torch.stack([t.isfinite().all(1, keepdim=True) for t in rows]).all(0)
