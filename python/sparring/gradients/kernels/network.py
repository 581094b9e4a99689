"""A small dense network, forward and backward in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, float64

from sparring import _bridge as bridge
from sparring.gradients.kernels._arguments import NUMBER, agree, check_indices, same_kind
from sparring.gradients.kernels.dense import LossGrad, loss_grad

_MOST_LAYERS = 8
_TILE_BYTES = 48 * 1024
_TILES = (8, 4, 1)  # examples; kernels are compiled for these
_GROUPS = 8  # of members, one fixed number: sums do not depend on the batch


class DenseLayer(NamedTuple):
    """A linear layer and what follows it, of one network or of M stacked ones."""

    weight: Tensor
    """(H, D) or (M, H, D)."""
    bias: Tensor | None
    """(H,) or (M, H)."""
    activation: str = "identity"
    slope: float = 0.01


def dense_network_fits(widths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether a network of these widths (inputs, of each layer) finds room in a thread block: see `dense_network`."""
    return 1 < len(widths) <= _MOST_LAYERS + 1 and _tile_bytes(widths, dtype) <= _TILE_BYTES


def _tile_bytes(widths: Sequence[int], dtype: torch.dtype) -> int:
    """What an example takes: everything's output, and the gradient at the logits."""
    return (sum(widths) + widths[-1]) * dtype.itemsize


def dense_network(
    x: Tensor,
    layers: Sequence[DenseLayer],
    labels: Tensor,
    targets: Tensor | None = None,
    loss: str = "ce",
    combine: str = "probs",
    weights: Tensor | None = None,
    *,
    tile: int | None = None,
) -> LossGrad:
    """A dense network, or an ensemble of them, forward and backward in one kernel: for small ones and small batches.

    One network takes one launch. An ensemble takes a launch for the logits, `loss_grad`, a launch that computes the
    activations once more and goes back, and a sum: no array of members and examples but the logits.

    Parameters
    ----------
    x : (B, D)
    layers : for which `dense_network_fits`
        The last one's activation is "identity".
    labels, targets, loss, combine, weights
        As in `loss_grad`.
    tile : 1, 4 or 8, optional
        How many examples a block works on; results do not depend on it.

    Returns
    -------
    LossGrad
        ``grad``: the loss's gradient towards `x`.
    """
    members = [1 if layer.weight.ndim == 2 else len(layer.weight) for layer in layers]
    widths = [x.shape[1], *(layer.weight.shape[-2] for layer in layers)]
    if not dense_network_fits(widths, x.dtype):
        raise ValueError(f"a network of widths {widths} in {x.dtype} does not fit")
    if layers[-1].activation != "identity":
        raise ValueError(f"the last layer's activation must be 'identity', not {layers[-1].activation!r}")
    for i, layer in enumerate(layers):
        name = f"layers[{i}]"
        agree((members[i], *layer.weight.shape[-2:]), (members[0], widths[i + 1], widths[i]), f"{name}.weight", "x")
        same_kind(layer.weight, x, f"{name}.weight")
        if layer.bias is not None:
            agree(tuple(layer.bias.shape), tuple(layer.weight.shape[:-1]), f"{name}.bias", "weight")
            same_kind(layer.bias, x, f"{name}.bias")
    net = _Network(x.contiguous(), [_contiguous(layer) for layer in layers], widths, members[0], tile)
    if members[0] > 1:
        logits = net.forward()
        result = loss_grad(logits, weights, labels, targets, loss, combine)
        return result._replace(grad=net.backward(result.grad))
    check_indices(labels, "labels", len(x), x)
    check_indices(targets, "targets", len(x), x)
    return net.forward_and_backward(labels, targets, loss)


class _Network(NamedTuple):
    """The arguments of one call."""

    x: Tensor
    layers: list[DenseLayer]
    widths: list[int]
    members: int
    tile: int | None

    def forward(self) -> Tensor:
        logits = self.x.new_empty((self.members, len(self.x), self.widths[-1]))
        self._run(self.members, logits=logits)
        return logits

    def backward(self, given: Tensor) -> Tensor:
        """From the gradients at the logits, (M, B, K)."""
        groups = min(self.members, _GROUPS)
        grads = self.x.new_empty((groups, *self.x.shape))
        self._run(groups, given=given.contiguous(), grad=grads)
        return grads.sum(0) if groups > 1 else grads[0]

    def forward_and_backward(self, labels: Tensor, targets: Tensor | None, loss: str) -> LossGrad:
        value, grad = self.x.new_empty(len(self.x)), torch.empty_like(self.x)
        logits = self.x.new_empty((len(self.x), self.widths[-1]))
        targets = None if targets is None else targets.contiguous()
        self._run(1, loss, labels=labels.contiguous(), targets=targets, value=value, logits=logits, grad=grad)
        return LossGrad(value, grad, logits)

    def _run(self, groups: int, loss: str = "ce", **arrays: Tensor | None) -> None:
        place = bridge.place_of(self.x, "x")
        batch = len(self.x)
        address = {name: array.data_ptr() for name, array in arrays.items() if array is not None}
        bridge.native.dense_network(
            self.x.dtype is float64,
            *place,
            batch,
            self._tile(groups, 2 * place.threads if place.device < 0 else 128),
            self.members,
            groups,
            self.widths[0],
            [
                (
                    w,
                    layer.weight.data_ptr(),
                    0 if layer.bias is None else layer.bias.data_ptr(),
                    NUMBER[layer.activation],
                )
                for w, layer in zip(self.widths[1:], self.layers, strict=True)
            ],
            [layer.slope for layer in self.layers],
            self.x.data_ptr(),
            address.get("given", 0),
            NUMBER[loss],
            *(address.get(name, 0) for name in ("labels", "targets", "value", "logits", "grad")),
        )

    def _tile(self, groups: int, wanted: int) -> int:
        """As many examples as fit, but work for so many blocks where there is as much."""
        fitting = [t for t in _TILES if t * _tile_bytes(self.widths, self.x.dtype) <= _TILE_BYTES]
        if self.tile is None:
            return next((t for t in fitting if -(-len(self.x) // t) * groups >= wanted), 1)
        if self.tile not in fitting:
            raise ValueError(f"tile is {self.tile}; for this network accepted: {', '.join(map(str, fitting))}")
        return self.tile


def _contiguous(layer: DenseLayer) -> DenseLayer:
    bias = None if layer.bias is None else layer.bias.contiguous()
    return layer._replace(weight=layer.weight.contiguous(), bias=bias)
