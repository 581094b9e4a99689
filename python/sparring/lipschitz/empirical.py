"""What a network's Lipschitz constant is at least, from how it changes near given inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparring._arguments import count
from sparring.gradients import jacobian
from sparring.lipschitz import given
from sparring.lipschitz.ambient import callers_device, generators_kept, plain_arithmetic, seed
from sparring.lipschitz.wide import in_float64

_ROUNDING = 1e-9  # of a Jacobian and its norm in float64, with room
_STEPS = (2.0**-8, 2.0**-12, 2.0**-16, 2.0**-20)  # of the length of an input


@plain_arithmetic()
def empirical_lower_bound(model: nn.Module, inputs: Tensor, *, batch_size: int = 128) -> float:
    """The largest spectral norm of the Jacobian over the inputs, a lower bound of the Lipschitz constant.

    Of each input the norm counts no more than the network is seen to change along the Jacobian's steepest direction,
    for derivatives may be others than those of the function (a backward pass of its own, a cast).

    Parameters
    ----------
    model : nn.Module
        From (B, ...) to logits (B, K). A copy in float64 is differentiated, in the mode that the model is in.
    inputs : Tensor
        (N, ...), N >= 1, finite.
    batch_size : int
        Inputs at a time.

    Returns
    -------
    float
        Reduced by a billionth for what float64 rounds.

    Raises
    ------
    TypeError, ValueError
        Where `inputs` are not such a tensor, the model does not return (B, K), or its copy in float64 is another
        function.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise TypeError("inputs must be a floating-point tensor (N, ...)")
    given.network(model)
    given.readable(inputs, "inputs")
    batch_size = count(batch_size, "batch_size")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(f"inputs must be at least one example, (N, ...), got shape {tuple(inputs.shape)}")
    if not given.finite(inputs):
        raise ValueError("inputs must be finite, but have NaN or inf")
    wide = in_float64(model, inputs.shape[1:], "empirical_lower_bound")
    largest = 0.0
    with generators_kept(), callers_device():
        for some in torch.split(inputs.detach().to(torch.float64, copy=True), batch_size):
            seed(0)  # dropout in training mode draws, the same each time
            rows = jacobian(lambda x: wide(x), some).flatten(2)  # a function is left to autograd
            if not given.finite(rows):
                raise ValueError("model has a Jacobian with NaN or inf at one of the inputs")
            squares, vectors = torch.linalg.eigh(rows @ rows.mT)
            norms = squares[:, -1].clamp(min=0).sqrt()
            steepest = (vectors[:, None, :, -1] @ rows)[:, 0].view_as(some)
            largest = max(largest, float(torch.minimum(norms, _quotients(wide, some, steepest)).max()))
    return largest * (1 - _ROUNDING)


@torch.no_grad()
def _quotients(model: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    """The largest |f(x + d) - f(x - d)| / |2 d| of each example for steps d along its direction, (B,)."""
    sizes = x.flatten(1).norm(dim=1) + 1
    scale = (sizes / direction.flatten(1).norm(dim=1).clamp(min=1e-300)).view(-1, *(1,) * (x.ndim - 1))
    found = torch.zeros_like(sizes)
    for step in _STEPS:
        ends = x + step * scale * direction, x - step * scale * direction
        given = (ends[0] - ends[1]).flatten(1).norm(dim=1)
        results = []
        for end in ends:
            seed(0)
            results.append(model(end.clone()).flatten(1))
        quotient = (results[0] - results[1]).norm(dim=1) / given
        found = torch.maximum(found, quotient.nan_to_num(nan=0.0, posinf=0.0))
    return found
