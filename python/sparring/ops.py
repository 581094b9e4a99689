"""The compiled primitives: batched steps of sparse attacks, checked and typed.

Arrays are torch tensors (CPU or CUDA), NumPy arrays or anything with ``__dlpack__``; float32 or float64; the first
dimension is the batch, and every example is a row of D numbers whatever its shape. An example's result does not depend
on the rest of the batch nor on the number of threads. The maths is stated in ``csrc/ops/<name>.h``;
:mod:`sparring.reference` has it in float64 torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from sparring import _arguments as arguments
from sparring import _bridge as bridge
from sparring._bridge import Array

__all__ = ["l1_step", "project_l1_box", "recovery_step"]


def _out_rows(out: Array | None, batch: Tensor, n: int, name: str, inputs: dict[str, bridge.Rows]) -> bridge.Rows:
    """The rows to write: a new tensor's or `out`'s, which may be `name` itself but none of the other `inputs`."""
    if out is None:
        return bridge.input_rows(torch.empty(batch.shape, dtype=batch.dtype, device=batch.device), n)
    tensor = bridge.writable(out, "out")
    bridge.check_like(tensor, "out", batch, name)
    rows = bridge.output_rows(tensor, "out", n)
    for other, taken in inputs.items():
        if rows.address == taken.address and batch.numel() > 0:
            raise ValueError(f"out shares memory with {other}; only {name} itself may be overwritten")
    return rows


def project_l1_box(
    delta: Array,
    x: Array,
    eps: float | Array,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    out: Array | None = None,
    check_finite: bool = True,
) -> Array:
    """Nearest perturbation to `delta` inside the L1 ball of radius `eps` and the box.

    For every example, the v that minimises ``|v - delta|_2`` subject to ``|v|_1 <= eps`` and ``lo <= x + v <= hi``.
    Exact up to the last places of the dtype, and feasible without exception: summed in float64, ``|v|_1`` is never
    above `eps`, and ``x + v`` never leaves the box.

    Parameters
    ----------
    delta : (B, ...) float32 or float64
        Perturbations.
    x : like `delta`
        The points they perturb, inside `bounds`. A coordinate outside counts as having no room.
    eps : float or (B,)
        L1 radius in the units of `x`; >= 0, inf allowed.
    bounds : (float, float)
        The box; ends may be infinite.
    out : like `delta`, optional
        Where to write; may be `delta` itself.
    check_finite : bool
        Raise for NaN or inf in `delta` or `x`. If False, such an example comes back as NaN throughout; on CUDA this
        also saves waiting for the device.

    Returns
    -------
    array like `delta`

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was wrong with it and what is accepted.

    Notes
    -----
    Croce & Hein 2021, "Mind the box: L1-APGD for sparse adversarial attacks on image classifiers", appendix A, without
    its sort. Differentiable in `delta`, `x` and `eps` when called on tensors that require grad.
    """
    d, points = bridge.as_tensor(delta, "delta"), bridge.as_tensor(x, "x")
    radius_grad = isinstance(eps, Tensor) and eps.requires_grad
    if torch.compiler.is_compiling() or (
        torch.is_grad_enabled() and (d.requires_grad or points.requires_grad or radius_grad)
    ):
        _refuse_out(out)
        lo, hi = bridge.bounds_of(bounds)
        return _registered().project_l1_box(d, points, _number_tensor(eps, d), lo, hi, check_finite)
    bridge.check_batch(d, "delta")
    bridge.check_like(points, "x", d, "delta")
    place = bridge.place_of(d, "delta")
    radius = bridge.per_row(eps, "eps", d, "numbers >= 0", arguments.not_negative)
    lo, hi = bridge.bounds_of(bounds)
    rows, n = bridge.shape_of(d)
    rows_d, rows_x = bridge.input_rows(d, n), bridge.input_rows(points, n)
    target = _out_rows(out, d, n, "delta", {"x": rows_x})
    status = bridge.status_for(place, d, check_finite)
    bad = bridge.native.project_l1_box(
        d.dtype is torch.float64,
        *place,
        rows,
        n,
        rows_d.address,
        rows_d.stride,
        rows_x.address,
        rows_x.stride,
        radius.address,
        radius.value,
        lo,
        hi,
        target.address,
        target.stride,
        0 if status is None else status.data_ptr(),
    )
    if check_finite:
        bridge.raise_if_not_finite(bad, status, {"delta": d, "x": points})
    return bridge.like(target.tensor, delta) if out is None else out


def _registered() -> Any:
    """``torch.ops.sparring``: the primitives for autograd and torch.compile."""
    from sparring import library  # noqa: F401  (registers them)

    return torch.ops.sparring


def _number_tensor(value: Any, batch: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.as_tensor(value, dtype=dtype, device=batch.device)


def _refuse_out(out: Array | None) -> None:
    if out is not None:
        raise ValueError(
            "out cannot be combined with arguments that require grad, nor with torch.compile; pass out=None"
        )


def l1_step(
    delta: Array,
    grad: Array,
    x: Array,
    eps: float | Array,
    step_size: float | Array,
    k: int | float | Array,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    out: Array | None = None,
    check_finite: bool = True,
) -> Array:
    """Steepest ascent step in the L1 norm on the `k` best coordinates, then :func:`project_l1_box`; in one pass over
    each row.

    A coordinate is movable if ``grad`` is not 0 there and ``x + delta`` is not already at the face of the box that
    ``grad`` points at. The (at most) `k` movable coordinates of largest ``|grad|``, equal ones by index, move by
    ``step_size / count`` each in the direction of their gradient. This is the step of APGD-L1 and of SLIDE.

    Parameters
    ----------
    delta, grad, x : (B, ...) float32 or float64
        Perturbations; gradients of what is to grow; the points perturbed, inside `bounds`.
    eps : float or (B,)
        L1 radius; >= 0.
    step_size : float or (B,)
        L1 length of the step; >= 0.
    k : int, float or (B,)
        Number of coordinates, >= 1; a float, or an array of floats, is a fraction of D in (0, 1], rounded, at least
        one coordinate.
    bounds, out, check_finite
        As in :func:`project_l1_box`.

    Returns
    -------
    array like `delta`
        A constant to autograd.

    Notes
    -----
    Tramer & Boneh 2019, "Adversarial training and robustness for multiple perturbations", section 3; Croce & Hein
    2021, section 3.3.
    """
    d, g, points = bridge.as_tensor(delta, "delta"), bridge.as_tensor(grad, "grad"), bridge.as_tensor(x, "x")
    bridge.check_batch(d, "delta")
    bridge.check_like(g, "grad", d, "delta")
    bridge.check_like(points, "x", d, "delta")
    if torch.compiler.is_compiling():
        _refuse_out(out)
        lo, hi = bridge.bounds_of(bounds)
        n = bridge.shape_of(d)[1]
        k = max(1, round(k * n)) if isinstance(k, float) else k
        counts = k if isinstance(k, Tensor) else _number_tensor(k, d, torch.int64)
        radius_, length_ = _number_tensor(eps, d), _number_tensor(step_size, d)
        return _registered().l1_step(d, g, points, radius_, length_, counts, lo, hi, check_finite)
    place = bridge.place_of(d, "delta")
    radius = bridge.per_row(eps, "eps", d, "numbers >= 0", arguments.not_negative)
    length = bridge.per_row(step_size, "step_size", d, "finite numbers >= 0", arguments.finite_not_negative)
    count = arguments.coordinates(k, d)
    lo, hi = bridge.bounds_of(bounds)
    rows, n = bridge.shape_of(d)
    rows_d, rows_g, rows_x = bridge.input_rows(d, n), bridge.input_rows(g, n), bridge.input_rows(points, n)
    target = _out_rows(out, d, n, "delta", {"grad": rows_g, "x": rows_x})
    scratch = None  # a row for each team at work, where out cannot serve
    if target.address == rows_d.address:
        scratch = torch.empty((place.threads if place.device < 0 else rows, n), dtype=d.dtype, device=d.device)
    status = bridge.status_for(place, d, check_finite)
    bad = bridge.native.l1_step(
        d.dtype is torch.float64,
        *place,
        rows,
        n,
        rows_d.address,
        rows_d.stride,
        rows_g.address,
        rows_g.stride,
        rows_x.address,
        rows_x.stride,
        radius.address,
        radius.value,
        length.address,
        length.value,
        count.address,
        int(count.value),
        lo,
        hi,
        target.address,
        target.stride,
        0 if scratch is None else scratch.data_ptr(),
        0 if status is None else status.data_ptr(),
    )
    if check_finite:
        bridge.raise_if_not_finite(bad, status, {"delta": d, "grad": g, "x": points})
    return bridge.like(target.tensor, delta) if out is None else out


def recovery_step(
    image: Array,
    grad: Array,
    *,
    lr: float | Array,
    lam: float | Array,
    penalty: Literal["subgradient", "prox"] = "subgradient",
    exp_avg: Array | None = None,
    exp_avg_sq: Array | None = None,
    step: int = 1,
    betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-4,
    black: float = 0.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    floor: float = 0.0,
    mask: Array | None = None,
    frozen: Array | None = None,
    check_finite: bool = True,
) -> Array:
    """One fused descent step on ``loss + lam |image - black|_1 / D`` for every example, in place.

    In order: the penalty's subgradient is added to `grad` (``penalty="subgradient"``); an Adam step, if the moments
    are given, else a gradient step; the soft threshold (``penalty="prox"``), which is the exact proximal map in Adam's
    diagonal metric; the clamp to `bounds`; entries nearer to `black` than `floor` become `black`.

    Parameters
    ----------
    image : (B, ...) float32 or float64
        Written in place; rows must be contiguous.
    grad : like `image`
        Gradient of the loss alone.
    lr, lam : float or (B,)
        Learning rate and weight of the penalty; >= 0.
    exp_avg, exp_avg_sq : like `image`, contiguous, optional
        Adam's moments, written in place.
    step : int
        Adam's step count, from 1.
    betas, adam_eps : (float, float), float
        As in :class:`torch.optim.Adam`.
    black, bounds, floor : float, (float, float), float
        The background, the box, and the distance from the background below which an entry is set to it.
    mask : bool, the shape of `image` or of one example, optional
        False holds an entry at `black`; its moments stay.
    frozen : (B,) bool, optional
        True leaves an example untouched.
    check_finite : bool
        Raise for NaN or inf in `image` or `grad`. Such examples are left untouched in either case, and all others are
        updated.

    Returns
    -------
    `image`

    Notes
    -----
    Kingma & Ba 2015, "Adam"; Parikh & Boyd 2014, "Proximal algorithms", section 6.5.
    """
    pixels, g = bridge.writable(image, "image"), bridge.as_tensor(grad, "grad")
    bridge.check_batch(pixels, "image")
    bridge.check_like(g, "grad", pixels, "image")
    if torch.compiler.is_compiling():
        lo, hi = bridge.bounds_of(bounds)
        rates = _number_tensor(lr, pixels), _number_tensor(lam, pixels)
        adam = step, *betas, adam_eps
        prox = penalty == "prox"
        _registered().recovery_step(
            pixels, g, exp_avg, exp_avg_sq, *rates, mask, frozen, prox, *adam, black, lo, hi, floor, check_finite
        )
        return image
    place = bridge.place_of(pixels, "image")
    if penalty not in ("subgradient", "prox"):
        raise ValueError(f"penalty is {penalty!r}; accepted: 'subgradient', 'prox'")
    rate = bridge.per_row(lr, "lr", pixels, "finite numbers >= 0", arguments.finite_not_negative)
    weight = bridge.per_row(lam, "lam", pixels, "finite numbers >= 0", arguments.finite_not_negative)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"step is {step!r}; accepted: integers >= 1")
    beta1 = arguments.number(betas[0], "betas", "two numbers in [0, 1)", arguments.is_share)
    beta2 = arguments.number(betas[1], "betas", "two numbers in [0, 1)", arguments.is_share)
    adam_eps = arguments.number(adam_eps, "adam_eps", "numbers > 0", arguments.is_positive)
    black = arguments.number(black, "black", "finite numbers", math.isfinite)
    floor = arguments.number(floor, "floor", "numbers >= 0", arguments.not_negative)
    lo, hi = bridge.bounds_of(bounds)
    rows, n = bridge.shape_of(pixels)
    rows_image, rows_g = bridge.output_rows(pixels, "image", n), bridge.input_rows(g, n)
    moments = arguments.moments(exp_avg, exp_avg_sq, pixels, n)
    for name, other in (("grad", rows_g), *zip(("exp_avg", "exp_avg_sq"), moments, strict=False)):
        if other.address == rows_image.address and pixels.numel() > 0:
            raise ValueError(f"image shares memory with {name}; it is written in place, so they must differ")
    held = None if mask is None else arguments.bools(mask, "mask", pixels, (pixels.shape, pixels.shape[1:]))
    done = None if frozen is None else arguments.bools(frozen, "frozen", pixels, (pixels.shape[:1],))
    status = bridge.status_for(place, pixels, check_finite)
    bad = bridge.native.recovery_step(
        pixels.dtype is torch.float64,
        *place,
        rows,
        n,
        rows_image.address,
        rows_image.stride,
        rows_g.address,
        rows_g.stride,
        moments[0].address if moments else 0,
        moments[1].address if moments else 0,
        n,
        0 if held is None else held.data_ptr(),
        n if held is not None and held.ndim == pixels.ndim else 0,
        0 if done is None else done.data_ptr(),
        rate.address,
        rate.value,
        weight.address,
        weight.value,
        penalty == "prox",
        beta1,
        beta2,
        adam_eps,
        step,
        black,
        lo,
        hi,
        floor,
        0 if status is None else status.data_ptr(),
    )
    if check_finite:
        bridge.raise_if_not_finite(bad, status, {"image": pixels, "grad": g})
    return image
