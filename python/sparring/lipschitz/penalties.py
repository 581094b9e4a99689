"""A term of the loss that keeps the norms of a network's layers small, and with them its Lipschitz bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from sparring._arguments import number
from sparring.lipschitz.operators import LayerMap, layer_maps

Kind = Literal["log", "square", "product", "hinge"]

FLOOR = 1e-6
"""Below it a norm is no longer reduced by its logarithm, whose slope would have no limit."""

FIRST_STEPS = 20
"""Steps of the power iteration on the weights as they are at first."""

TINY, STAY = 1e-30, 1e-18
"""Added to what is divided by; the share of a vector that stays, so that it is there when weights are 0 no longer."""


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
            self._vectors[layer.name] = start / _column(vector_norm(start.flatten(1), dim=1), start)
            self._iterate(layer, weights, FIRST_STEPS)

    def __call__(self, model: nn.Module | None = None) -> Tensor:
        """The term, a scalar with derivatives towards the weights; takes `iterations` steps of the power iteration.

        Parameters
        ----------
        model
            What is trained, as `fit` passes it: the model that the penalty was made for, or one that it is part of.
        """
        if model is not None and model is not self._model and all(part is not self._model for part in model.modules()):
            raise ValueError("model is not the one that this penalty was made for, nor is that a part of it")
        terms = []
        for group in self._groups:
            norms = []
            for layer in group:
                weights = layer.weights()
                self._iterate(layer, weights.detach(), self._iterations - 1)
                vector = self._vector(layer, weights)
                of_layer, image = _norms(layer, weights, vector)
                norms.append(of_layer)
                self._vectors[layer.name] = _next(layer, weights.detach(), vector, image)
            terms.append(self._term(torch.stack(norms)))
        return self._weight * torch.stack(terms).sum()

    @torch.no_grad()
    def estimates(self) -> dict[str, Tensor]:
        """The norm of each layer by the vectors at hand, (), or (M,) where weights are stacked: never above the truth.

        `sparring.lipschitz.layer_bounds` gives bounds from above.
        """
        found = {}
        for layer in self._layers():
            weights = layer.weights()
            norms, _ = _norms(layer, weights, self._vector(layer, weights))
            found[layer.name] = norms if layer.stacked else norms[0]
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

    @torch.no_grad()
    def _iterate(self, layer: LayerMap, weights: Tensor, steps: int) -> None:
        for _ in range(steps):
            vector = self._vector(layer, weights)
            self._vectors[layer.name] = _next(layer, weights, vector, _norms(layer, weights, vector)[1])

    def _vector(self, layer: LayerMap, weights: Tensor) -> Tensor:
        return self._vectors[layer.name].to(weights)


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


def _norms(layer: LayerMap, weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the images of unit vectors (M, ...), (M,), and the images over these; where one is 0, both are 0.

    The derivative of the norm towards the weights is ``u v^T``, u the image over its norm and v the vector.
    """
    if layer.kind == "dense":
        found: tuple[Tensor, Tensor] = _DenseNorms.apply(layer, weights, vectors)  # type: ignore[no-untyped-call]
        return found
    image = layer.apply(weights, vectors)
    norms = vector_norm(image.flatten(1), dim=1)
    return norms, image.detach() / _column(norms.detach() + TINY, image)


class _DenseNorms(torch.autograd.Function):
    """As autograd would have it, but for the outer product, which it takes several times as long for."""

    @staticmethod
    def forward(ctx: Any, layer: LayerMap, weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        image = layer.apply(weights, vectors)
        norms = vector_norm(image, dim=1)
        image /= norms.unsqueeze(1) + TINY
        ctx.save_for_backward(image, vectors)
        ctx.mark_non_differentiable(image)
        return norms, image

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[None, Tensor, None]:
        image, vectors = ctx.saved_tensors
        return None, (grad.unsqueeze(1) * image).unsqueeze(2) * vectors.unsqueeze(1), None


def _next(layer: LayerMap, weights: Tensor, vectors: Tensor, image: Tensor) -> Tensor:
    """The vectors after a step of the power iteration; those of before where the weights are 0."""
    back = layer.adjoint(weights, image).add_(vectors, alpha=STAY)
    return back.div_(_column(vector_norm(back.flatten(1), dim=1), back))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
