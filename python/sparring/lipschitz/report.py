"""What is known of the Lipschitz constant of a network, layer by layer, and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from sparring._text import aligned, plural

COLUMNS = ("name", "kind", "shape", "lower", "upper", "bound", "method", "certified")
"""Of `LipschitzReport.rows`."""

_HEAD = ("layer", "kind", "shape", "method", "lower", "upper", "up to here")

WEIGHTS_ALONE = (
    "Of the weights alone: a matrix is a dense layer, other weights are convolutions of any stride and image, padded "
    "with zeros. The product is a bound of a network in which they follow each other, with nothing "
    "between them but layers of constant 1, such as ReLU and max-pooling of disjoint windows."
)
"""The note of a report of a state dict."""


@dataclass(frozen=True)
class LayerBound:
    """The Lipschitz constant of a layer, and the bound of the network from the input up to and with it.

    Attributes
    ----------
    name, kind : str
        Of a module its name and class; of other operations where they stand, and the function.
    shape : str
        Inputs first, outputs last: "9216×4096", "3×11×11×96 stride 4 at 224×224".
    lower, upper : float or None
        Between which the layer's constant lies. None: nothing is known of that end, or the layer is where branches
        come together and has no constant of its own.
    method : str
        How the upper end was found.
    certified : bool
        Whether the upper end is proven.
    bound : float or None
        The network's bound up to here, by the product of constants; None where the layers' order is not known.
    """

    name: str
    kind: str
    shape: str
    lower: float | None
    upper: float | None
    method: str
    certified: bool
    bound: float | None


class Entrance(NamedTuple):
    """Bounds of results in the Euclidean norm, over the distance of inputs in the norm `norm`.

    Attributes
    ----------
    norm
        "L2", "L1" or "Linf".
    upper
        Of the network.
    features
        Of what the last layer is given, where that is dense and gives the output. If it is given the input itself: of
        what it is given in `norm`.
    rows
        The norm in which the rows of the last layer then count: 2, or, if it is given the input itself, the dual one.
    """

    norm: str
    upper: float
    features: float | None
    rows: float = 2.0


@dataclass(frozen=True)
class LipschitzReport:
    """Bounds of a network in the Euclidean norm: ``|f(x) - f(y)| <= upper |x - y|`` for single examples x and y.

    Attributes
    ----------
    layers : tuple of LayerBound
        In the order of the forward pass.
    product : float
        The bound by multiplying constants along chains, adding them where branches add up, and taking the root of the
        sum of squares where they are put side by side; inf if something is refused.
    upper : float
        The smallest bound known: `product`, or, where dense layers follow each other, the one by a chain of them.
    method : str
        How `upper` was found.
    certified : bool
        Whether all upper ends are proven. If not, bounds are estimates.
    refused : tuple of (str, str)
        What has no bound, and why.
    lower : float or None
        What the constant is at least, by `empirical_lower_bound` of given inputs; None without.
    features : float or None
        The bound of what the last layer is given, where that is dense and gives the output.
    head : Tensor or None
        The weight of that layer, float64 (out, in).
    note : str
        What the bounds take for granted, where the network itself is not known, or of which function they are, where
        float64 makes it another.
    input_shape : tuple of int or None
        Of one example, for which the bounds were made; None where weights alone are bounded.
    jumps : float
        How far, in the Euclidean norm, results may be from those of the function that is bounded, where torch's own
        jumps: softplus at its threshold.
    others : tuple of Entrance
        Bounds for inputs whose distance is measured in L1 and in Linf.
    """

    layers: tuple[LayerBound, ...]
    product: float
    upper: float
    method: str
    certified: bool
    refused: tuple[tuple[str, str], ...] = ()
    lower: float | None = None
    features: float | None = None
    head: Tensor | None = field(default=None, repr=False, compare=False)
    note: str = ""
    input_shape: tuple[int, ...] | None = None
    jumps: float = 0.0
    others: tuple[Entrance, ...] = ()

    def entrance(self, norm: str) -> Entrance:
        """The bounds for inputs whose distance is measured in "L2", "L1" or "Linf"."""
        found = {entrance.norm: entrance for entrance in self.others}
        return Entrance("L2", self.upper, self.features) if norm == "L2" else found[norm]

    @property
    def gap(self) -> float | None:
        """How far `upper` is above `lower`, as a share of it: ``upper / lower - 1``; None without a lower bound."""
        if self.lower is None:
            return None
        return self.upper / self.lower - 1 if self.lower > 0 else math.inf

    def rows(self) -> list[dict[str, str | float | bool | None]]:
        """A dictionary for each layer, for a file."""
        return [{name: getattr(layer, name) for name in COLUMNS} for layer in self.layers]

    def table(self) -> str:
        """Layers with a constant other than 1, the bounds of the whole, and what is refused, as aligned text."""
        shown = [layer for layer in self.layers if layer.shape or layer.upper != 1]
        lines = [
            (layer.name, layer.kind, layer.shape, layer.method + ("" if layer.certified else " (estimate)"),
             _text(layer.lower), _text(layer.upper), _text(layer.bound))
            for layer in shown
        ]  # fmt: skip
        parts = [aligned(_HEAD, lines, left=4)]
        plain = sorted({layer.kind for layer in self.layers if layer not in shown})
        if plain:
            count = len(self.layers) - len(shown)
            parts.append(f"and {count} {plural('layer', count)} of constant 1: {', '.join(plain)}")
        parts += ["", *self._summary()]
        if self.refused:
            parts += ["", "Refused, so that there is no bound of the whole:"]
            parts += [f"  {name}: {reason}" for name, reason in self.refused]
        return "\n".join(parts)

    def _summary(self) -> list[str]:
        values = [("product of the layers' bounds", _text(self.product))]
        if self.upper < self.product:
            values.append((f"tighter: {self.method}", _text(self.upper)))
        if self.lower is not None and self.gap is not None:
            values.append(("largest Jacobian found", _text(self.lower)))
            values.append(("bound / largest Jacobian", _text(1 + self.gap)))
        width = max(len(name) for name, _ in values)
        lines = [f"{name.ljust(width)}  {value}" for name, value in values]
        if not self.certified:
            lines.append("upper ends are estimates, not proven")
        return lines + ([self.note] if self.note else [])


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
