"""A term of the loss that keeps the norms of a network's layers small, and with them its Lipschitz bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from sparring._arguments import number
from sparring.lipschitz.ambient import plain_arithmetic
from sparring.lipschitz.operators import LayerMap, layer_maps

Kind = Literal["log", "square", "product", "hinge"]

FLOOR = 1e-6
"""Below it a norm is no longer reduced by its logarithm, whose slope would have no limit."""

FIRST_STEPS = 20
"""Steps of the power iteration on the weights as they are at first."""

STAY = 1e-18
"""The share of a vector that stays, so that it is there when weights are 0 no longer."""


class Penalty:
    """What `penalty` returns: called, it gives the term; it remembers a singular vector of each layer between calls.

    Attributes
    ----------
    left_out
        Names of the modules that have parameters and are not part of it, such as normalisations.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[list[LayerMap]],
        left_out: list[str],
        kind: Kind,
        weight: float,
        target: float,
        iterations: int,
        generator: torch.Generator,
    ) -> None:
        self.left_out = left_out
        self._model, self._groups = model, groups
        self._kind, self._weight, self._target, self._iterations = kind, weight, target, iterations
        self._vectors: dict[str, Tensor] = {}
        for layer in self._layers():
            weights = layer.weights().detach()
            start = torch.randn(len(weights), *layer.shape, generator=generator, dtype=torch.float64).to(weights)
            self._vectors[layer.name] = start / _lengths(start)
            self._iterate(layer, FIRST_STEPS)

    @plain_arithmetic()
    def __call__(self, model: nn.Module | None = None) -> Tensor:
        """The term, a scalar with derivatives towards the weights; takes `iterations` steps of the power iteration.

        Parameters
        ----------
        model
            What is trained, as `fit` passes it: the model that the penalty was made for, or one that it is part of.
        """
        if model is not None and model is not self._model and all(part is not self._model for part in model.modules()):
            raise ValueError("model is not the one that this penalty was made for, nor is that a part of it")
        terms = [self._term(self._norms(group)) for group in self._groups]
        return self._weight * (terms[0] if len(terms) == 1 else torch.stack(terms).sum())

    @plain_arithmetic()
    @torch.no_grad()
    def estimates(self) -> dict[str, Tensor]:
        """The norm of each layer by the vectors at hand, (), or (M,) where weights are stacked: never above the truth.

        `sparring.lipschitz.layer_bounds` gives bounds from above.
        """
        found = {}
        for layer in self._layers():
            norms, _, _ = _step(layer, layer.weights(), self._vectors[layer.name])
            found[layer.name] = norms.flatten() if layer.stacked else norms.squeeze()
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """The vectors, (M, ...) for each layer: with them and the weights training goes on with the same bits."""
        return dict(self._vectors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; ValueError if it is that of other layers."""
        shapes = {name: tuple(vector.shape) for name, vector in self._vectors.items()}
        given = {name: tuple(vector.shape) for name, vector in state.items()}
        if given != shapes:
            raise ValueError(f"state is not that of this penalty: it has vectors {given}, wanted {shapes}")
        for name, vector in self._vectors.items():
            self._vectors[name] = state[name].detach().to(vector, copy=True)

    def _layers(self) -> list[LayerMap]:
        return [layer for group in self._groups for layer in group]

    def _term(self, norms: Tensor) -> Tensor:
        """Of the layers of one network, (layers, M)."""
        if self._kind == "log":
            return norms.clamp(min=FLOOR).log().sum()
        if self._kind == "square":
            return norms.square().sum()
        if self._kind == "product":
            return norms.prod(0).sum()
        return (norms - self._target).clamp(min=0).square().sum()

    def _norms(self, group: list[LayerMap]) -> Tensor:
        """Of the layers of one network, (layers, M), with derivatives; their vectors go on."""
        for layer in group:
            self._vectors[layer.name] = self._vectors[layer.name].to(layer.parameter.device)  # where the model is now
            self._iterate(layer, self._iterations - 1)
        dense, norms = [layer for layer in group if layer.dense], list[Tensor]()
        if dense:
            of_dense = _DenseNorms.apply(self._vectors, dense, *(layer.wide() for layer in dense))  # type: ignore[no-untyped-call]
            norms.append(of_dense)
        for layer in group:
            if not layer.dense:
                of_layer, _, self._vectors[layer.name] = _step(layer, layer.weights(), self._vectors[layer.name])
                norms.append(of_layer.view(1, -1))
        return torch.cat(norms)

    @torch.no_grad()
    def _iterate(self, layer: LayerMap, steps: int) -> None:
        for _ in range(steps):
            _, _, self._vectors[layer.name] = _step(layer, layer.weights(), self._vectors[layer.name])


@plain_arithmetic()
def penalty(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    kind: Kind = "log",
    weight: float = 1.0,
    target: float = 1.0,
    iterations: int = 1,
    generator: torch.Generator | None = None,
) -> Penalty:
    """A term for the loss that grows with the norms s_l of a network's layers: ``fit(..., regularizer=penalty(net))``.

    The norm is that of the linear map from a layer's input to its output, Euclidean on both sides: for a convolution
    the map of whole images, with its stride, padding, dilation, groups and size, not its kernel as a matrix. Each call
    takes `iterations` steps of the power iteration from the singular vectors that the last call ended with (Yoshida and
    Miyato 2017 for matrices, Farnia et al. 2019 for convolutions), two products with the layer each, and differentiates
    the norm at these vectors, ``u^T W v``: its derivative is ``u v^T``. A norm so found is never above the truth, and
    a little below while weights change; bounds to show are those of `sparring.lipschitz.layer_bounds`.

    Parameters
    ----------
    model
        Its linear layers and convolutions (also transposed) count; of an ensemble those of all members, as the sum of
        the terms that they would have each by itself. Other modules with weights do not count (`Penalty.left_out` names
        them), nor do the scales of a batch normalisation, which may undo what the penalty does.
    input_shape
        Shape of one input, such as (C, H, W), from which follows what images convolutions are given, and which layers
        are called at all. None: all layers, and convolutions of images with 16 entries along each side, or as many as
        the kernel has if that is more. Linear layers need no shape.
    kind
        ====================== ==========================================================================
        "log"                  ``sum_l log s_l``, the logarithm of the product bound; below 1e-6 constant
        "square"               ``sum_l s_l^2``
        "product"              ``prod_l s_l``, the product bound without the constants of activations
        "hinge"                ``sum_l max(0, s_l - target)^2``
        ====================== ==========================================================================
    weight
        What the term is multiplied by.
    target
        Of "hinge": the norm that costs nothing.
    iterations
        Steps in each call.
    generator
        CPU generator that the first vectors are drawn from, 20 steps before the first call; None: one with seed 0.

    Returns
    -------
    Penalty
        ``penalty()`` is a scalar in float32, or in float64 where weights are; weights of 0 have the derivative 0.

    Raises
    ------
    ValueError
        If the model has no such layer, or an option is none of these.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}; accepted: {', '.join(map(repr, get_args(Kind)))}")
    number(weight, "weight", "0 <= weight < inf", lambda value: 0 <= value < math.inf)
    number(target, "target", "0 <= target < inf", lambda value: 0 <= value < math.inf)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations is {iterations!r}: give a whole number, 1 at least")
    groups, left_out = layer_maps(model, input_shape, purpose="a penalty")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    return Penalty(model, groups, left_out, kind, weight, target, iterations, generator)


def _step(layer: LayerMap, weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step of the power iteration from unit vectors v, (M, ...).

    Returns the norms of their images W v, (M, 1, ...), whose derivative towards the weights is ``u v^T``, 0 where they
    are 0; the images over these norms, u; and the next vectors, which are v where weights are 0.
    """
    image = layer.apply(weights, vectors)
    norms = _lengths(image)
    with torch.no_grad():
        tiny = torch.finfo(norms.dtype).tiny
        unit = image / norms.clamp(min=tiny)
        back = layer.adjoint(weights, unit).addcmul_(vectors, (STAY * norms).clamp_(min=tiny))
        return norms, unit, back.div_(_lengths(back))


class _DenseNorms(torch.autograd.Function):
    """Norms (layers, M) by `_step`, as autograd would have them, in fewer operations: half the time on small layers."""

    @staticmethod
    def forward(ctx: Any, vectors: dict[str, Tensor], layers: list[LayerMap], *weights: Tensor) -> Tensor:
        norms, saved = [], []
        for layer, weight in zip(layers, weights, strict=True):
            before = vectors[layer.name]
            of_layer, unit, vectors[layer.name] = _step(layer, weight if layer.stacked else weight[None], before)
            norms.append(of_layer.view(1, -1))
            saved += [unit, before]
        ctx.shapes = [weight.shape for weight in weights]
        ctx.save_for_backward(*saved)
        return torch.cat(norms)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_layers = zip(ctx.saved_tensors[::2], ctx.saved_tensors[1::2], grad, ctx.shapes, strict=True)
        # Products with broadcasting, for `bmm` takes several times as long for an outer product.
        return (None, None, *(((u * g.view(-1, 1, 1)).mT * v).view(shape) for u, v, g, shape in of_layers))


def _lengths(x: Tensor) -> Tensor:
    """Of each x[i], (M, 1, ...), summed in float64, whose range holds float32's squares; at 0 the derivative is 0."""
    lengths: Tensor = vector_norm(x, dim=[*range(1, x.ndim)], keepdim=True, dtype=torch.float64)
    return lengths.to(x.dtype)
