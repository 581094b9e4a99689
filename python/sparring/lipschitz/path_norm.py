"""The path norm of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sparring.lipschitz.ambient import plain_arithmetic
from sparring.lipschitz.operators import LayerMap, layer_maps, networks

PASSED: tuple[type[nn.Module], ...] = (nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that leave what is positive as it is; dropout, as after training."""

CALLED: tuple[type[nn.Module], ...] = (nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@plain_arithmetic()
def path_norm(model: nn.Module, input_shape: Sequence[int] | None = None) -> Tensor:
    """Square root of the sum, over all paths from an input to an output, of the product of the squared weights on it.

    It does not change when a unit's incoming weights are multiplied and its outgoing ones divided by a number, as the
    function of a ReLU network does not (Neyshabur, Tomioka and Srebro 2015). One pass computes it: the network with
    squared weights and without biases, of an input of ones. Where there is max-pooling, of the paths through a window
    those of one entry count, chosen so that the sum is largest.

    Parameters
    ----------
    model
        `nn.Sequential`, nested or not, of linear layers, convolutions, ReLU, dropout, max-pooling and flattening; or an
        ensemble of such: then the sum over the members.
    input_shape
        Shape of one input, such as (C, H, W); needed for convolutions.

    Returns
    -------
    Tensor
        A scalar with derivatives towards the weights (0 where it is 0), to be used as
        ``fit(..., regularizer=lambda model: 1e-3 * path_norm(model))``.

    Raises
    ------
    ValueError
        If the model has another module, which is named, or none with weights.
    """
    groups, _ = layer_maps(model, input_shape, purpose="the path norm")
    return torch.stack(
        [
            _of_chain([*_chain(network, prefix.rstrip("."))], {layer.module: layer for layer in group}, input_shape)
            for group, (prefix, network, _, _) in zip(groups, networks(model), strict=True)
        ]
    ).sum()


def _of_chain(
    chain: list[tuple[str, nn.Module]], layers: dict[nn.Module, LayerMap], input_shape: Sequence[int] | None
) -> Tensor:
    """Of one network, or the sum over networks whose weights are stacked."""
    first = next(iter(layers.values()))
    if input_shape is None and not first.dense:
        raise ValueError(f"input_shape must be given, for {first.name} is a convolution: the shape of one input")
    shape = first.shape[1:] if input_shape is None else input_shape
    x = first.weights().new_ones(len(first.weights()), *shape)
    exponent = x.new_zeros((), dtype=torch.float64)  # of the power of two that was divided by, in the result
    for name, module in chain:
        layer = layers.get(module)
        if layer is not None:
            weights, power = _near_one(layer.weights())
            weights, exponent = weights.square(), exponent + power.log2()
            if layer.dense and x.ndim != 2:
                raise ValueError(f"model is no chain: its linear layer {name} is given {x.ndim - 1} dimensions, not 1")
            x = layer.apply(weights, x.unsqueeze(1)).squeeze(1) if layer.dense else layer.apply(weights, x)
            x, power = _near_one(x)
            exponent = exponent + power.log2() / 2
        elif isinstance(module, CALLED):
            x = module(x)
        elif not isinstance(module, PASSED):
            accepted = ", ".join(kind.__name__ for kind in (*PASSED, *CALLED))
            raise ValueError(
                f"model has {name or 'a module'} ({type(module).__name__}), of which the path norm knows nothing; "
                f"accepted: nn.Sequential of linear layers, convolutions, {accepted}"
            )
    root = x.flatten(1).sum(1).clamp(min=torch.finfo(x.dtype).tiny).sqrt().sum()
    return (root.double() * exponent.exp2()).to(root)


def _near_one(x: Tensor) -> tuple[Tensor, Tensor]:
    """Over a power of two, so that its largest magnitude is near 1 and squares stay in range; and that, in float64."""
    with torch.no_grad():
        largest = x.abs().amax()
        power = (largest / (2 * torch.frexp(largest).mantissa)).clamp(min=torch.finfo(x.dtype).tiny)
        power = torch.where(largest > 0, power, 1.0)
    return x / power, power.double()


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a network calls one after the other, by name."""
    if not isinstance(module, nn.Sequential):
        yield name, module
        return
    for key, part in module._modules.items():  # also those that are there twice
        if part is not None:
            yield from _chain(part, f"{name}.{key}" if name else key)
