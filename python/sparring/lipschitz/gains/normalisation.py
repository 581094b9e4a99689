"""Gains of normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparring.lipschitz import rounding
from sparring.lipschitz.gains.gain import Call, Gain, Refused, exactly


def channel_scale(running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``weight / sqrt(running_var + eps)`` in float64, off by at most five roundings, relatively."""
    scale = (running_var.detach().to(torch.float64) + eps).sqrt().reciprocal()
    return scale if weight is None else scale * weight.detach().to(torch.float64)


def _batch_norm(
    call: Call,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Gain:
    if training or running_var is None:
        raise Refused("normalises by the statistics of the batch, so that an example's result depends on the others")
    largest = float(channel_scale(running_var, weight, eps).abs().max())
    if not math.isfinite(largest):
        raise Refused("divides by a deviation of 0")
    return exactly(largest * (1 + 8 * rounding.UNIT), "largest scale", f"{len(running_var)} channels")


def _normalised(weight: Tensor | None, eps: float) -> Gain:
    """Division by ``s = sqrt(mean square + eps)`` of n entries, of which the mean may have been taken off before.

    With P the projection that takes off the mean (or P = I) and z = P x / s, the derivative is (P - z z^T / n) / s. As
    z lies in the range of P and |z|^2 = n (mean square) / s^2 < n, the symmetric matrix P - z z^T / n has eigenvalues
    in [0, 1]. So the norm is at most 1 / s <= 1 / sqrt(eps), which entries that are nearly equal come close to.
    """
    if not eps > 0:
        raise Refused("divides by a deviation that may be 0")
    largest = 1.0 if weight is None else float(weight.detach().abs().max())
    return Gain(None, largest / math.sqrt(eps) * (1 + 4 * rounding.UNIT), "largest scale / sqrt(eps)")


def _layer_norm(
    call: Call, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Gain:
    return _normalised(weight, eps)


def _rms_norm(call: Call, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Gain:
    return _normalised(weight, torch.finfo(call.x.dtype).eps if eps is None else eps)


def _group_norm(
    call: Call, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Gain:
    return _normalised(weight, eps)


def _instance_norm(
    call: Call,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Gain:
    if use_input_stats:
        return _normalised(weight, eps)
    return _batch_norm(call, running_mean, running_var, weight, bias, False, momentum, eps)


RULES: dict[str, Callable[..., Gain]] = {
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
}
