"""The compiled primitives: batched steps of sparse attacks, checked and typed.

Arrays are torch tensors (CPU or CUDA), NumPy arrays or anything with ``__dlpack__``; float32 or float64; the first
dimension is the batch, and every example is a row of D numbers whatever its shape. An example's result does not depend
on the rest of the batch nor on the number of threads. The maths is stated in ``csrc/ops/<name>.h``;
:mod:`sparring.reference` has it in float64 torch.

Refused by name are tensors without plain memory (fake, zero, sparse, nested, quantised, of torch.func, of subclasses
that compute for themselves) and arrays that overlap one that is written. What is traced, transformed or watched
(``torch.compile``, ``torch.export``, ``torch.jit.trace``, ``make_fx``, ``torch.func``, dispatch modes) is a call of the
registered operator, ``torch.ops.sparring.<name>``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from sparring import _arguments as arguments
from sparring import _bridge as bridge
from sparring import _eager as eager
from sparring._bridge import Array
from sparring._gate import recorded, refuse_tangent

__all__ = ["l1_step", "project_l0_box", "project_l1_box", "recovery_step", "sparse_pgd_step"]


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
    if recorded() or (torch.is_grad_enabled() and (_wants_grad(delta) or _wants_grad(x) or _wants_grad(eps))):
        _refuse_out(out)
        d, points = _operands(delta=delta, x=x)
        lo, hi = arguments.bounds_of(bounds, d.dtype)
        return _registered().project_l1_box(d, points, _numbers(eps, "eps", d), lo, hi, check_finite)
    return eager.project_l1_box(delta, x, eps, bounds, out, check_finite)


def _wants_grad(array: Any) -> bool:
    return isinstance(array, Tensor) and array.requires_grad


def _registered() -> Any:
    """``torch.ops.sparring``: the primitives for autograd and torch.compile."""
    from sparring import library  # noqa: F401  (registers them)

    return torch.ops.sparring


def _operands(**arrays: Array) -> list[Tensor]:
    """The arrays as tensors; those that torch itself records, wraps or fakes pass as they are."""
    if not recorded():
        return [bridge.as_tensor(array, name) for name, array in arrays.items()]
    tensors = [bridge.converted(array, name) for name, array in arrays.items()]
    if not torch.compiler.is_compiling():
        for name, tensor in zip(arrays, tensors, strict=True):
            refuse_tangent(tensor, name)
    return tensors


def _numbers(value: Any, name: str, batch: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter that is one number or one a row, as the tensor that a registered operator takes."""
    plain = value if type(value) is float else None if isinstance(value, Tensor) else arguments.scalar(value, name)
    if plain is not None:
        return torch.full((), plain, dtype=dtype, device=batch.device)
    (tensor,) = _operands(**{name: value})
    return tensor.to(batch.device, dtype)


def _counts(k: Any, batch: Tensor, channels: int = 1) -> Tensor:
    """k as the tensor that a registered operator takes: counts, or, where it is a tensor itself, as it is."""
    if isinstance(k, Tensor):
        return k
    k = max(1, round(k * (bridge.shape_of(batch)[1] // channels))) if isinstance(k, float) else k
    return _numbers(min(k, arguments.LARGEST_INT) if isinstance(k, int) else k, "k", batch, torch.int64)


def _refuse_out(out: Array | None) -> None:
    if out is not None:
        raise ValueError(
            "out cannot be combined with arguments that require grad, nor with torch.compile, tracing, torch.func or "
            "dispatch modes; pass out=None"
        )


def project_l0_box(
    delta: Array,
    x: Array,
    k: int | float | Array,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    channels: int = 1,
    out: Array | None = None,
    check_finite: bool = True,
) -> Array:
    """Nearest perturbation to `delta` that changes at most `k` entries, or pixels, and stays inside the box.

    For every example, a v that minimises ``|v - delta|_2`` subject to ``lo <= x + v <= hi`` and to being 0 in all but
    `k` places. A place is an entry, or, with `channels`, the entries of one position in all channels. Exact: each entry
    goes to its nearest value in the box, and the places stay whose entries, set to 0, would be missed most; equal ones
    by index, lowest first. ``x + v`` never leaves the box.

    Parameters
    ----------
    delta : (B, ...) float32 or float64
        Perturbations.
    x : like `delta`
        The points they perturb, inside `bounds`. A coordinate outside counts as having no room.
    k : int, float or (B,)
        Number of places that may change, >= 0; a float, or an array of floats, is a fraction of all places in (0, 1],
        rounded, at least one place.
    bounds : (float, float)
        The box; ends may be infinite.
    channels : int
        In how many channels every place has an entry: D must be a multiple, laid out channel first, as in (B, C, H, W).
    out : like `delta`, optional
        Where to write; may be `delta` itself.
    check_finite : bool
        As in :func:`project_l1_box`.

    Returns
    -------
    array like `delta`

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was wrong with it and what is accepted.

    Notes
    -----
    Without the box this is hard thresholding: Blumensath & Davies 2008, "Iterative thresholding for sparse
    approximations"; with it, Croce & Hein 2019, "Sparse and imperceivable adversarial attacks", section 4.1.
    Differentiable in `delta` and `x` when called on tensors that require grad, with the places held as they are.
    """
    if recorded() or (torch.is_grad_enabled() and (_wants_grad(delta) or _wants_grad(x))):
        _refuse_out(out)
        d, points = _operands(delta=delta, x=x)
        lo, hi = arguments.bounds_of(bounds, d.dtype)
        channels = arguments.count(channels, "channels")
        return _registered().project_l0_box(d, points, _counts(k, d, channels), lo, hi, channels, check_finite)
    return eager.project_l0_box(delta, x, k, bounds, channels, out, check_finite)


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
    if recorded():
        _refuse_out(out)
        d, g, points = _operands(delta=delta, grad=grad, x=x)
        lo, hi = arguments.bounds_of(bounds, d.dtype)
        counts = _counts(k, d)
        radius, length = _numbers(eps, "eps", d), _numbers(step_size, "step_size", d)
        return _registered().l1_step(d, g, points, radius, length, counts, lo, hi, check_finite)
    return eager.l1_step(delta, grad, x, eps, step_size, k, bounds, out, check_finite)


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
    if penalty not in ("subgradient", "prox"):
        raise ValueError(f"penalty is {penalty!r}; accepted: 'subgradient', 'prox'")
    if not recorded():
        return eager.recovery_step(
            image, grad, lr, lam, penalty, exp_avg, exp_avg_sq, step, betas, adam_eps, black, bounds, floor, mask,
            frozen, check_finite,
        )  # fmt: skip
    pixels, first, second = (
        bridge.writable(array, name) if array is not None and not isinstance(array, Tensor) else array
        for name, array in (("image", image), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq))
    )
    given = {"image": pixels, "grad": grad, "exp_avg": first, "exp_avg_sq": second, "mask": mask, "frozen": frozen}
    arrays = {name: array for name, array in given.items() if array is not None}
    arrays = dict(zip(arrays, _operands(**arrays), strict=True))
    pixels = arrays["image"]
    lo, hi = arguments.bounds_of(bounds, pixels.dtype)
    _registered().recovery_step(
        pixels, arrays["grad"], arrays.get("exp_avg"), arrays.get("exp_avg_sq"), _numbers(lr, "lr", pixels),
        _numbers(lam, "lam", pixels), arrays.get("mask"), arrays.get("frozen"), penalty == "prox",
        min(step, arguments.LARGEST_INT), *betas, adam_eps, black, lo, hi, floor, check_finite,
    )  # fmt: skip
    return image


def sparse_pgd_step(
    values: Array,
    mask: Array,
    grad: Array,
    x: Array,
    k: int | float | Array,
    *,
    step_size: float | Array,
    mask_step: float | Array,
    projected: bool = False,
    unchanged: Array | None = None,
    channels: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    check_finite: bool = True,
) -> Array:
    """One step of sparse PGD on perturbations that are `values` at the `k` places of largest `mask`, and 0 elsewhere.

    In order, for every example: the mask moves along the gradient that it would have if its sigmoid weighed the values,
    scaled to Euclidean length `mask_step`; the values move by `step_size` along the sign of `grad`, everywhere (the
    unprojected gradient) or only at the places that were chosen (`projected`), and into the box; the places are chosen
    anew, equal ones by index, lowest first.

    Parameters
    ----------
    values : (B, ...) float32 or float64
        What each entry would be changed by; written in place, rows must be contiguous.
    mask : (B, P), or without channels like `values`; of its dtype and device
        How much each of the P places is wanted, any number; written in place, rows must be contiguous.
    grad, x : like `values`
        Gradients of what is to grow, at ``x`` plus the perturbation; the points perturbed, inside `bounds`.
    k : int, float or (B,)
        Number of places, >= 0, or a fraction of all, as in :func:`project_l0_box`.
    step_size, mask_step : float or (B,)
        Finite, >= 0. The published ones are a quarter of the box's width and of ``sqrt(P)``.
    projected : bool
        Which gradient moves the values.
    unchanged : int64 (B,), optional
        Written in place: raised by 1 where the places are the same after the step as before, else set to 0.
    channels : int
        In how many channels every place has an entry, as in :func:`project_l0_box`: ``D == channels * P``.
    bounds : (float, float)
        The box; ends may be infinite.
    check_finite : bool
        Raise for NaN or inf in `values`, `mask`, `grad` or `x`. Such examples are left untouched in either case, NaN is
        returned for them, and all others are updated.

    Returns
    -------
    array like `values`
        The perturbations after the step. A constant to autograd.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was wrong with it and what is accepted.

    Notes
    -----
    Zhong, Liu & Xu 2024, "Towards efficient training and evaluation of robust models against l0 bounded adversarial
    perturbations", section 3.
    """
    if not recorded():
        return eager.sparse_pgd_step(
            values, mask, grad, x, k, step_size, mask_step, projected, unchanged, channels, bounds, check_finite
        )
    given = {"values": values, "mask": mask, "unchanged": unchanged}
    changed = {
        name: array if isinstance(array, Tensor) else bridge.writable(array, name)
        for name, array in given.items()
        if array is not None
    }
    arrays = changed | {"grad": grad, "x": x}
    arrays = dict(zip(arrays, _operands(**arrays), strict=True))
    v = arrays["values"]
    lo, hi = arguments.bounds_of(bounds, v.dtype)
    channels = arguments.count(channels, "channels")
    return _registered().sparse_pgd_step(
        v, arrays["mask"], arrays.get("unchanged"), arrays["grad"], arrays["x"], _counts(k, v, channels),
        _numbers(step_size, "step_size", v), _numbers(mask_step, "mask_step", v), projected, channels, lo, hi,
        check_finite,
    )  # fmt: skip
