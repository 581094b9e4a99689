"""What a network's Lipschitz constant is at least, from its derivatives at given inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sparring.gradients import jacobian
from sparring.lipschitz.graph import generators_kept

_ROUNDING = 1e-9  # of a Jacobian and its norm in float64, with room


def empirical_lower_bound(model: nn.Module, inputs: Tensor, *, batch_size: int = 128) -> float:
    """The largest spectral norm of the Jacobian over the inputs, a lower bound of the Lipschitz constant.

    Parameters
    ----------
    model : nn.Module
        From (B, ...) to logits (B, K). A copy in float64 is differentiated, in the mode that the model is in.
    inputs : Tensor
        (N, ...), N >= 1.
    batch_size : int
        Inputs at a time.

    Returns
    -------
    float
        Reduced by a billionth for what float64 rounds. The network is understood to be differentiable at the inputs.

    Raises
    ------
    TypeError, ValueError
        Where `inputs` are not such a tensor, or the model does not return (B, K).
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise TypeError("inputs must be a floating-point tensor (N, ...)")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(f"inputs must be at least one example, (N, ...), got shape {tuple(inputs.shape)}")
    wide = copy.deepcopy(model).double()
    largest = 0.0
    with generators_kept():  # dropout in training mode draws
        for some in torch.split(inputs.detach().double(), batch_size):
            rows = jacobian(wide, some).flatten(2)
            squares = torch.linalg.eigvalsh(rows @ rows.mT)[:, -1]
            largest = max(largest, float(squares.max().clamp(min=0).sqrt()))
    return largest * (1 - _ROUNDING)
