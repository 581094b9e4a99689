"""Layers moved into a ball of operator norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sparring._arguments import number
from sparring.lipschitz.ambient import plain_arithmetic
from sparring.lipschitz.operators import LayerMap, layer_maps
from sparring.lipschitz.spectral import check_weight, spectral_norm

Method = Literal["clip", "scale"]

CUT = 2e-6
"""How much below the bound, as a share, singular values are cut: twice what `spectral_norm` leaves between its ends."""


@plain_arithmetic()
@torch.no_grad()
def project_(
    model: nn.Module, bound: float, input_shape: Sequence[int] | None = None, *, method: Method = "clip"
) -> dict[str, float]:
    """Change the weights of each layer, in place, so that its norm is at most `bound`, by `spectral_norm`'s proof.

    A layer that is so already stays as it is. Another is changed by "clip", if it is linear: singular values above the
    bound become the bound, which gives the nearest such matrix in the Frobenius norm, but for the last two millionths,
    which the proof for the written weights needs; or by "scale": the weights are multiplied by one number. Convolutions
    are scaled with either method. Biases and normalisations stay as they are, and so does the state of an optimiser.

    Parameters
    ----------
    model
        Its linear layers and convolutions; those of each member of an ensemble.
    bound
        Of the norm of each layer, positive.
    input_shape
        Shape of one input, such as (C, H, W): convolutions are bounded on the images that they are given then, and
        layers that are not called stay as they are. None: on images of any size.
    method
        "clip" or "scale".

    Returns
    -------
    dict
        The proven upper end of each layer's norm, by the layer's name; of stacked weights the largest.

    To be used after each step of training: ``fit(..., after_step=lambda model: project_(model, 2.0))``.

    Raises
    ------
    ValueError
        If there are no such layers, a weight is NaN or infinite, or is computed from others (a parametrisation); or if
        a convolution pads otherwise than with zeros and there is no `input_shape`.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; accepted: {', '.join(map(repr, get_args(Method)))}")
    number(bound, "bound", "0 < bound < inf", lambda value: 0 < value < math.inf)
    groups, _ = layer_maps(model, input_shape, purpose="project_")
    layers = [layer for group in groups for layer in group]
    for layer in layers:
        if layer.module._parameters.get("weight") is None:
            raise ValueError(f"model computes the weight of {layer.name} from others, so that it cannot be changed")
        if any(step == 0 < n - 1 for n, step in zip(layer.parameter.shape, layer.parameter.stride(), strict=True)):
            raise ValueError(f"model's weight of {layer.name} has entries that share their memory: clone() it first")
    found = {}
    for layer in layers:
        options = _options(layer, sized=input_shape is not None)
        weights = layer.parameter.detach()
        found[layer.name] = max(
            _project(weight, bound, method, options) for weight in (weights if layer.stacked else [weights])
        )
    return found


def _project(weight: Tensor, bound: float, method: Method, options: dict[str, Any]) -> float:
    """Write smaller weights if their norm is above the bound; the upper end of what it is then."""
    check_weight(weight, options["kind"])
    if method == "clip" and options["kind"] == "dense":
        _clip(weight, bound)
    upper = spectral_norm(weight, **options).upper
    margin = torch.finfo(weight.dtype).eps  # for the rounding of the written weights
    while upper > bound:
        weight.copy_(weight.double() * (bound / upper * (1 - margin)))
        margin, upper = 2 * margin, spectral_norm(weight, **options).upper
    return upper


def _clip(weight: Tensor, bound: float) -> None:
    """Cut singular values above the bound to a little less than it, so that the proof mostly succeeds at once.

    From the eigenvectors U of ``W W^T``, of the shorter side, which takes a third of the time of the singular value
    decomposition: ``W + U (bound / s - 1) U^T W`` over the singular values s above the bound.
    """
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().mT
    largest = wide.abs().max()
    scaled = wide / (largest if largest > 0 else 1)  # so that squares neither overflow nor vanish
    squares, vectors = torch.linalg.eigh(scaled @ scaled.mT)
    values = squares.clamp(min=0).sqrt() * largest
    count = int((values > bound).sum())
    if count:
        above, along = values[-count:], vectors[:, -count:]
        wide = wide + along * (bound * (1 - CUT) / above - 1) @ (along.mT @ wide)
        weight.copy_(wide if wide.shape == weight.shape else wide.mT)


def _options(layer: LayerMap, *, sized: bool) -> dict[str, Any]:
    """A layer as `spectral_norm` takes it."""
    module: Any = layer.module
    if layer.kind == "dense":
        return {"kind": "dense"}
    options = {"kind": layer.kind, "dilation": module.dilation, "groups": module.groups}
    mode = getattr(module, "padding_mode", "zeros")
    if not sized:
        if mode != "zeros":
            raise ValueError(f"input_shape must be given, for {layer.name} has padding_mode {mode!r}")
        return options  # bounded for every stride, padding and size
    if layer.kind.startswith("conv_transpose"):
        options["output_padding"] = module.output_padding
    options |= {"stride": module.stride, "padding": module.padding, "padding_mode": mode}
    return {**options, "input_shape": layer.shape[1:]}
