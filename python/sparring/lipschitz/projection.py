"""Layers moved into a ball of operator norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sparring._arguments import number
from sparring.lipschitz.operators import LayerMap, layer_maps
from sparring.lipschitz.spectral import spectral_norm

Method = Literal["clip", "scale"]


@torch.no_grad()
def project_(
    model: nn.Module, bound: float, input_shape: Sequence[int] | None = None, *, method: Method = "clip"
) -> dict[str, float]:
    """Change the weights of each layer, in place, so that its norm is at most `bound`, by `spectral_norm`'s proof.

    A layer that is so already stays as it is. Another is changed by "clip", if it is linear: singular values above the
    bound become the bound, which gives the nearest such matrix in the Frobenius norm, but for the last millionth that
    the proof of the written weights needs; or by "scale": the weights are multiplied by one number. Convolutions are
    scaled with either method. Biases and normalisations stay as they are, and so does the state of an optimiser.

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
    upper = spectral_norm(weight, **options).upper
    if upper > bound and method == "clip" and weight.ndim == 2:
        left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
        weight.copy_((left * values.clamp(max=bound)) @ right)
        upper = spectral_norm(weight, **options).upper
    margin = torch.finfo(weight.dtype).eps  # for the rounding of the written weights
    while upper > bound:
        weight.copy_(weight.double() * (bound / upper * (1 - margin)))
        margin, upper = 2 * margin, spectral_norm(weight, **options).upper
    return upper


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
