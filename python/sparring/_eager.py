"""The primitives on plain memory, checked: what :mod:`sparring.ops` calls where nothing is recorded or differentiated,
and what the registered operators (:mod:`sparring.library`) do when they are run. Parameters are documented there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring import _arguments as arguments
from sparring import _bridge as bridge
from sparring._bridge import Array, Rows

_LEAST_FLOAT32 = torch.finfo(torch.float32).smallest_normal


def project_l1_box(delta: Array, x: Array, eps: Any, bounds: Any, out: Array | None, check_finite: bool) -> Array:
    d, points = bridge.as_tensor(delta, "delta"), bridge.as_tensor(x, "x")
    bridge.check_batch(d, "delta")
    bridge.check_like(points, "x", d, "delta")
    place = bridge.place_of(d, "delta")
    radius = arguments.per_row(eps, "eps", d, "numbers >= 0", arguments.not_negative)
    lo, hi = arguments.bounds_of(bounds, d.dtype)
    rows, n = bridge.shape_of(d)
    rows_d, rows_x = bridge.input_rows(d, "delta", rows, n), bridge.input_rows(points, "x", rows, n)
    target = _target(out, d, rows_d, {"x": rows_x, "eps": radius.tensor})
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
    if out is not None:
        bridge.written(out)
    if check_finite:
        bridge.raise_if_not_finite(bad, status, {"delta": d, "x": points})
    return bridge.like(target.tensor, delta) if out is None else out


def project_l0_box(
    delta: Array, x: Array, k: Any, bounds: Any, channels: Any, out: Array | None, check_finite: bool
) -> Array:
    d, points = bridge.as_tensor(delta, "delta"), bridge.as_tensor(x, "x")
    bridge.check_batch(d, "delta")
    bridge.check_like(points, "x", d, "delta")
    place = bridge.place_of(d, "delta")
    rows, n = bridge.shape_of(d)
    channels = arguments.channels_of(channels, n)
    places = n // channels
    count = arguments.coordinates(k, d, places, least=0)
    lo, hi = arguments.bounds_of(bounds, d.dtype)
    rows_d, rows_x = bridge.input_rows(d, "delta", rows, n), bridge.input_rows(points, "x", rows, n)
    target = _target(out, d, rows_d, {"x": rows_x, "k": count.tensor})
    scratch = bridge.scratch_for(place, d, places, torch.float64)
    status = bridge.status_for(place, d, check_finite)
    bad = bridge.native.project_l0_box(
        d.dtype is torch.float64,
        *place,
        rows,
        n,
        channels,
        rows_d.address,
        rows_d.stride,
        rows_x.address,
        rows_x.stride,
        count.address,
        int(count.value),
        lo,
        hi,
        target.address,
        target.stride,
        scratch.data_ptr(),
        0 if status is None else status.data_ptr(),
    )
    if out is not None:
        bridge.written(out)
    if check_finite:
        bridge.raise_if_not_finite(bad, status, {"delta": d, "x": points})
    return bridge.like(target.tensor, delta) if out is None else out


def l1_step(
    delta: Array, grad: Array, x: Array, eps: Any, step_size: Any, k: Any, bounds: Any, out: Array | None,
    check_finite: bool,
) -> Array:  # fmt: skip
    d, g, points = bridge.as_tensor(delta, "delta"), bridge.as_tensor(grad, "grad"), bridge.as_tensor(x, "x")
    bridge.check_batch(d, "delta")
    bridge.check_like(g, "grad", d, "delta")
    bridge.check_like(points, "x", d, "delta")
    place = bridge.place_of(d, "delta")
    radius = arguments.per_row(eps, "eps", d, "numbers >= 0", arguments.not_negative)
    length = arguments.per_row(step_size, "step_size", d, "finite numbers >= 0", arguments.finite_not_negative)
    count = arguments.coordinates(k, d)
    lo, hi = arguments.bounds_of(bounds, d.dtype)
    rows, n = bridge.shape_of(d)
    rows_d, rows_g = bridge.input_rows(d, "delta", rows, n), bridge.input_rows(g, "grad", rows, n)
    rows_x = bridge.input_rows(points, "x", rows, n)
    numbers = {"eps": radius.tensor, "step_size": length.tensor, "k": count.tensor}
    target = _target(out, d, rows_d, {"grad": rows_g, "x": rows_x, **numbers})
    scratch = None  # a row for each team at work, where out cannot serve
    if target.address == rows_d.address:
        scratch = bridge.scratch_for(place, d, n, d.dtype)
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
    if out is not None:
        bridge.written(out)
    if check_finite:
        bridge.raise_if_not_finite(bad, status, {"delta": d, "grad": g, "x": points})
    return bridge.like(target.tensor, delta) if out is None else out


def sparse_pgd_step(
    values: Array, mask: Array, grad: Array, x: Array, k: Any, step_size: Any, mask_step: Any, projected: Any,
    unchanged: Array | None, channels: Any, bounds: Any, check_finite: bool,
) -> Array:  # fmt: skip
    v, weights = bridge.writable(values, "values"), bridge.writable(mask, "mask")
    g, points = bridge.as_tensor(grad, "grad"), bridge.as_tensor(x, "x")
    bridge.check_batch(v, "values")
    bridge.check_like(g, "grad", v, "values")
    bridge.check_like(points, "x", v, "values")
    place = bridge.place_of(v, "values")
    rows, n = bridge.shape_of(v)
    channels = arguments.channels_of(channels, n)
    places = n // channels
    by_place = v.shape if channels == 1 and weights.shape == v.shape else (rows, places)
    bridge.check_like(weights, "mask", v.new_empty(()).expand(by_place), "one number for each place of values")
    count = arguments.coordinates(k, v, places, least=0)
    length = arguments.per_row(step_size, "step_size", v, "finite numbers >= 0", arguments.finite_not_negative)
    turn = arguments.per_row(mask_step, "mask_step", v, "finite numbers >= 0", arguments.finite_not_negative)
    if not isinstance(projected, bool):
        raise TypeError(f"projected must be True or False, not {projected!r}")
    same = None if unchanged is None else arguments.counters(unchanged, "unchanged", v)
    lo, hi = arguments.bounds_of(bounds, v.dtype)
    rows_v, rows_m = bridge.output_rows(v, "values", rows, n), bridge.output_rows(weights, "mask", rows, places)
    rows_g, rows_x = bridge.input_rows(g, "grad", rows, n), bridge.input_rows(points, "x", rows, n)
    read = {"grad": rows_g, "x": rows_x, "k": count.tensor, "step_size": length.tensor, "mask_step": turn.tensor}
    rule = "which is written in place, so they must not"
    bridge.refuse_overlap(rows_v, "values", {"mask": rows_m, "unchanged": same, **read}, rule)
    bridge.refuse_overlap(rows_m, "mask", {"unchanged": same, **read}, rule)
    if same is not None:
        rows_s = bridge.Rows(same, same.data_ptr(), rows, 1, rows)
        bridge.refuse_overlap(rows_s, "unchanged", read, rule)
    target = bridge.new_rows(v, rows, n)
    scratch = bridge.scratch_for(place, v, 2 * places, v.dtype)
    status = bridge.status_for(place, v, check_finite)
    bad = bridge.native.sparse_pgd_step(
        v.dtype is torch.float64,
        *place,
        rows,
        n,
        channels,
        rows_v.address,
        rows_v.stride,
        rows_m.address,
        rows_m.stride,
        rows_g.address,
        rows_g.stride,
        rows_x.address,
        rows_x.stride,
        length.address,
        length.value,
        turn.address,
        turn.value,
        count.address,
        int(count.value),
        projected,
        0 if same is None else same.data_ptr(),
        lo,
        hi,
        target.address,
        scratch.data_ptr(),
        0 if status is None else status.data_ptr(),
    )
    bridge.written(values, mask, unchanged)
    if check_finite:
        bridge.raise_if_not_finite(bad, status, {"values": v, "mask": weights, "grad": g, "x": points})
    return bridge.like(target.tensor, values)


def recovery_step(
    image: Array, grad: Array, lr: Any, lam: Any, penalty: str, exp_avg: Array | None, exp_avg_sq: Array | None,
    step: Any, betas: Any, adam_eps: Any, black: Any, bounds: Any, floor: Any, mask: Array | None, frozen: Array | None,
    check_finite: bool,
) -> Array:  # fmt: skip
    pixels, g = bridge.writable(image, "image"), bridge.as_tensor(grad, "grad")
    bridge.check_batch(pixels, "image")
    bridge.check_like(g, "grad", pixels, "image")
    place = bridge.place_of(pixels, "image")
    rate = arguments.per_row(lr, "lr", pixels, "finite numbers >= 0", arguments.finite_not_negative)
    weight = arguments.per_row(lam, "lam", pixels, "finite numbers >= 0", arguments.finite_not_negative)
    step = arguments.count(step, "step")
    beta1, beta2 = arguments.betas(betas)
    adam_eps = arguments.number(adam_eps, "adam_eps", "numbers > 0", arguments.is_positive)
    is_finite = arguments.is_finite_float32 if pixels.dtype is torch.float32 else math.isfinite
    black = arguments.number(black, "black", "finite numbers of the image's type", is_finite)
    floor = arguments.number(floor, "floor", "numbers >= 0", arguments.not_negative)
    lo, hi = arguments.bounds_of(bounds, pixels.dtype)
    rows, n = bridge.shape_of(pixels)
    rows_image, rows_g = bridge.output_rows(pixels, "image", rows, n), bridge.input_rows(g, "grad", rows, n)
    moments = arguments.moments(exp_avg, exp_avg_sq, pixels, rows, n)
    held = None if mask is None else arguments.bools(mask, "mask", pixels, (pixels.shape, pixels.shape[1:]))
    done = None if frozen is None else arguments.bools(frozen, "frozen", pixels, (pixels.shape[:1],))
    numbers = {"lr": rate.tensor, "lam": weight.tensor, "mask": held, "frozen": done}
    changed = [("image", rows_image), *zip(("exp_avg", "exp_avg_sq"), moments, strict=False)]
    for i, (name, memory) in enumerate(changed, 1):
        others = {"grad": rows_g, **dict(changed[i:]), **numbers}
        bridge.refuse_overlap(memory, name, others, "which is written in place, so they must not")
    if pixels.dtype is torch.float32 and (  # numbers that are none of float32: a step in float64, rounded at its end
        arguments.exceeds_float32(rate) or arguments.exceeds_float32(weight) or adam_eps < _LEAST_FLOAT32
    ):
        narrow = [pixels, *(moment.tensor for moment in moments)]
        wide = [tensor.double() for tensor in narrow]
        black, lo, hi, floor = (float(np.float32(number)) for number in (black, lo, hi, floor))
        first, second = wide[1:] or (None, None)
        try:
            recovery_step(
                wide[0], g.double(), rate.given, weight.given, penalty, first, second, step,
                (beta1, beta2), adam_eps, black, (lo, hi), floor, held, done, check_finite,
            )  # fmt: skip
        finally:
            for tensor, result in zip(narrow, wide, strict=True):
                tensor.detach().copy_(result)
        return image
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
    bridge.written(image, exp_avg, exp_avg_sq)
    if check_finite:
        bridge.raise_if_not_finite(bad, status, {"image": pixels, "grad": g})
    return image


def _target(out: Array | None, delta: Tensor, taken: Rows, inputs: dict[str, Rows | Tensor | None]) -> Rows:
    """The rows to write: a new tensor's or `out`'s, which may be `delta` itself, but no part of it or of the others."""
    if out is None:
        return bridge.new_rows(delta, taken.rows, taken.n)
    tensor = bridge.writable(out, "out")
    bridge.check_like(tensor, "out", delta, "delta")
    target = bridge.output_rows(tensor, "out", taken.rows, taken.n)
    if target.address != taken.address or (target.stride != taken.stride and taken.rows > 1):
        inputs["delta"] = taken
    bridge.refuse_overlap(target, "out", inputs, "which is written; only delta itself, as a whole, may")
    return target
