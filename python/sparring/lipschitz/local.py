"""Lipschitz bounds of dense ReLU networks in a ball around each input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sparring.lipschitz import given, kernels, rounding
from sparring.lipschitz.ambient import plain_arithmetic
from sparring.lipschitz.dense_chains import whole_chain
from sparring.lipschitz.gains.gain import Gain
from sparring.lipschitz.graph import Graph
from sparring.lipschitz.masked import LARGEST, MaskedChain

_MEMORY = 2**28  # bytes for the matrices of as many examples as fit at a time
_UNDERFLOW = 4 * math.ulp(0.0)  # what a product may lose below the range of normal numbers, with room
_LOST_BY_SCALING = 2.0**-1000  # of the square of an entry, by scaling and by squaring
_ABOVE = 1e-4  # how far above the largest eigenvalue found a proof is first tried, relatively


@plain_arithmetic()
def local_bound(model: nn.Module, x: Tensor, radius: float | Tensor) -> Tensor:
    """Bound the Lipschitz constant of a dense ReLU network in a ball around each example.

    A unit whose input stays negative in the whole ball gives 0 there, whatever the input, and is left out. The bound is
    the lesser of two: the product of the norms of what is left of the layers' matrices, and LipSDP for what is left of
    the network (`sparring.lipschitz.chain_bound`), with the multipliers of the whole one. A unit's input changes in the
    ball by at most radius times the norm of its weights for units that are left, times the bound up to the layer
    before.

    Parameters
    ----------
    model : nn.Module
        Linear layers with ReLU or nothing between them, and what only reshapes, for one example at a time.
    x : Tensor
        (B, ...), floating-point.
    radius : float or Tensor
        In the Euclidean norm, >= 0: one, or (B,).

    Returns
    -------
    Tensor
        float64 (B,), proven against rounding. ``|f(y) - f(z)| <= bound |y - z|`` for y, z in the ball, f in exact
        arithmetic.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; the message says what of the model is not.
    """
    check_examples(x)
    if isinstance(radius, Tensor):
        given.readable(radius, "radius")
    try:
        real = not torch.as_tensor(radius).is_complex()
    except (TypeError, RuntimeError, ValueError):
        real = False
    if not real:
        raise TypeError(f"radius must be a real number or have shape ({len(x)},), got {radius!r}")
    radii = torch.as_tensor(radius, dtype=torch.float64, device=x.device).detach()
    if radii.ndim > 1 or (radii.ndim == 1 and len(radii) != len(x)):
        raise ValueError(f"radius must be a number or have shape ({len(x)},), got shape {tuple(radii.shape)}")
    if not bool(((radii >= 0) & radii.isfinite()).all()):
        raise ValueError("radius must be a finite number >= 0, or one for each example")
    return DenseRelu(model, x.shape[1:]).bounds(x, radii.expand(len(x)))[1]


def check_examples(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError("x must be a floating-point tensor (B, ...)")
    given.readable(x, "x")
    if x.ndim < 2:
        raise ValueError(f"x must be a batch (B, ...), got shape {tuple(x.shape)}")
    if not given.finite(x):
        raise ValueError("x must be finite, but has NaN or inf")


class DenseRelu:
    """A network that is a chain of linear layers with ReLU or nothing between them, in float64."""

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        graph = Graph(model, tuple(input_shape), tol=0.5, certified=False)  # for its structure alone
        chain = whole_chain(graph)
        there = [f"{name}: {why}" for name, why in graph.refused]
        if chain is not None:
            steps = [graph.steps[node] for nodes in chain.between for node in nodes]
            there += [step.kind for step in steps if step.operation != "relu"]
            there += ["BatchNorm"] * any(gain.error for gain in chain.gains)
        if chain is None or there:
            found = f", but there is {', '.join(there)}" if there else ""
            raise ValueError(f"model must be a chain of linear layers with ReLU between them{found}")
        rectified = [bool(activations) for activations in chain.between] + [False]
        self._layers = [_Layer(gain, followed) for gain, followed in zip(chain.gains, rectified, strict=True)]
        weights = [layer.weight for layer in self._layers]
        self._before, self._after = _masked(weights[:-1]), _masked(weights)

    def bounds(self, x: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
        """Of what the last layer is given, and of its result, in balls of these radii: float64 (B,) each."""
        chains = [chain.size**2 for chain in (self._before, self._after) if chain is not None]
        rows = max(1, _MEMORY // (8 * max(*(layer.weight.numel() for layer in self._layers), *chains, 1)))
        before, after = torch.empty_like(radii), torch.empty_like(radii)
        for begin in range(0, len(x), rows):
            some = slice(begin, begin + rows)
            before[some], after[some] = self._bounds(x[some].detach().flatten(1).to(torch.float64), radii[some])
        return before, after

    def _bounds(self, x: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
        value, lost = x, torch.zeros_like(x)  # of each unit, and how far it may be off
        left = torch.ones_like(x)  # 1 for units that are not constant in the ball
        hidden: list[Tensor] = []
        before = bound = torch.ones_like(radii)
        for layer in self._layers:
            before = bound
            value, lost = layer.forward(value, lost)
            remain = torch.ones_like(value)
            if layer.rectified:
                reach = (radii * bound)[:, None] * layer.row_norms(left)
                slack = (lost + reach) * (1 + 8 * rounding.UNIT) + value.abs() * 8 * rounding.UNIT
                remain = (~(value + slack < 0)).to(value.dtype)  # what is not a number is not off
                value = value.clamp(min=0)
            bound = rounding.above(bound * layer.norms(remain, left) * (1 + 4 * rounding.UNIT))
            left = remain
            hidden.append(remain)
        if self._before is not None:
            before = torch.minimum(before, self._before.bounds(hidden[:-2], hidden[-2]))
        if self._after is not None:
            bound = torch.minimum(bound, self._after.bounds(hidden[:-1], hidden[-1]))
        return before, bound


def _masked(weights: Sequence[Tensor]) -> MaskedChain | None:
    """LipSDP of layers, if there are several, and none so large that it would take too long."""
    units = sum(len(weight) for weight in weights) + min(weights[0].shape) if weights else 0
    if len(weights) < 2 or units > LARGEST or not all(bool(weight.any()) for weight in weights):
        return None
    return MaskedChain(weights)


class _Layer:
    """A linear layer, and whether a ReLU follows; for norms its weight is kept times a power of two, so that no square
    leaves the range.
    """

    def __init__(self, gain: Gain, rectified: bool) -> None:
        self.rectified = rectified
        matrix = cast(Tensor, gain.matrix)
        self.weight = matrix.to(torch.float64)
        self._bias = self.weight.new_zeros(len(matrix)) if gain.bias is None else gain.bias.detach().to(torch.float64)
        self._scaled, exponent = rounding.scaled(matrix)
        self._factor = rounding.times_power(1.0, exponent, math.inf)
        self._mass = rounding.squares(self._scaled)
        self._gram: Tensor | None = None  # with all columns

    def forward(self, value: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's result, and how far it may be off for values that may be off by `lost`."""
        magnitude, inputs = self.weight.abs().mT, self.weight.shape[1]
        rounded = rounding.gamma(inputs + 2) * (value.abs() @ magnitude + self._bias.abs())
        lost = (lost @ magnitude + rounded) * (1 + 4 * rounding.gamma(inputs + 8))
        return value @ self.weight.mT + self._bias, lost + (inputs + 2) * _UNDERFLOW

    def row_norms(self, columns: Tensor) -> Tensor:
        """Upper bounds of the norms of the rows, of these columns alone (1 where they are left), (B, out)."""
        inputs = self.weight.shape[1]
        squares = columns @ self._scaled.square().mT + inputs * _LOST_BY_SCALING
        return rounding.above(squares.sqrt() * self._factor * (1 + rounding.gamma(inputs + 8)))

    def norms(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Upper bounds of the norms of the matrix with these rows and columns alone, (B,)."""
        weight = self._scaled
        if len(weight) > weight.shape[1]:
            weight, rows, columns = weight.mT, columns, rows
        if bool((columns == 1).all()):
            self._gram = weight @ weight.mT if self._gram is None else self._gram
            grams = self._gram * rows[:, :, None] * rows[:, None, :]
        else:
            grams = (weight * columns[:, None, :]) @ weight.mT * rows[:, :, None] * rows[:, None, :]
        error = rounding.gamma(weight.shape[1] + 4) * self._mass
        traces = grams.diagonal(dim1=1, dim2=2).sum(1) * (1 + rounding.gamma(len(weight) + 4))
        squares = torch.minimum(_largest(grams), traces + error)  # the exact matrices have no eigenvalue below 0
        # The last for what the scaling may lose.
        norms = ((squares + error) * (1 + 8 * rounding.UNIT)).sqrt() * self._factor * (1 + 8 * rounding.UNIT)
        return rounding.above(norms)


def _largest(grams: Tensor) -> Tensor:
    """What the largest eigenvalues are proven not to exceed; inf where there is no proof after some trials."""
    size = grams.shape[1]
    found = kernels.top_eigenpair(grams, tol=1e-5).value.clamp(min=2.0**-1000)
    proven, above = torch.full_like(found, torch.inf), _ABOVE
    for _ in range(12):
        pending = proven.isinf().nonzero()[:, 0]
        if not len(pending):
            break
        shift = found[pending] * (1 + above)
        positive = kernels.positive_definite(grams[pending], shift)
        # As `kernels.positive_definite` says; the trace of c I - G is at most size c.
        beyond = 1 + 2 * rounding.gamma(size + 8) * size + 4 * rounding.UNIT
        proven[pending[positive]] = shift[positive] * beyond
        above *= 3
    return proven
