"""Gains of normalisations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparring.lipschitz import rounding
from sparring.lipschitz.gains.gain import Call, Gain, Refused, exactly


def channel_scale(running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``weight / sqrt(running_var + eps)`` in float64, off by at most five roundings, relatively."""
    scale = (running_var.detach().to(torch.float64) + eps).sqrt().reciprocal()
    return scale if weight is None else scale * weight.detach().to(torch.float64)


def batch_norm(
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
    constant = weight is not None and not bool(weight.detach().any())  # a scale may be below float64's numbers
    return exactly(
        0.0 if constant else rounding.up(largest * (1 + 8 * rounding.UNIT)),
        "largest scale",
        f"{len(running_var)} channels",
    )


def _normalised(weight: Tensor | None, eps: float) -> Gain:
    """Division by ``s = sqrt(mean square + eps)`` of n entries, of which the mean may have been taken off before.

    With P the projection that takes off the mean (or P = I) and z = P x / s, the derivative is (P - z z^T / n) / s. As
    z lies in the range of P and |z|^2 = n (mean square) / s^2 < n, the symmetric matrix P - z z^T / n has eigenvalues
    in [0, 1]. So the norm is at most 1 / s <= 1 / sqrt(eps), which entries that are nearly equal come close to.
    """
    if not eps > 0:
        raise Refused("divides by a deviation that may be 0")
    largest = 1.0 if weight is None else float(weight.detach().abs().max())
    upper = rounding.up(largest / math.sqrt(eps) * (1 + 4 * rounding.UNIT))
    if not math.isfinite(upper):
        raise Refused("its largest scale / sqrt(eps) is not finite")
    return Gain(None, upper, "largest scale / sqrt(eps)")


def layer_norm(
    call: Call, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Gain:
    return _normalised(weight, eps)


def rms_norm(call: Call, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Gain:
    # By default torch takes eps from the dtype in which it works, float32 for what is narrower.
    dtype = torch.promote_types(call.x.dtype, torch.float32)
    return _normalised(weight, torch.finfo(dtype).eps if eps is None else eps)


def group_norm(
    call: Call, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Gain:
    return _normalised(weight, eps)


def instance_norm(
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
    return batch_norm(call, running_mean, running_var, weight, bias, False, momentum, eps)
