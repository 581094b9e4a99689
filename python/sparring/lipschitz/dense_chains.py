"""Where in a network dense layers follow each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from torch import Tensor, fx

from sparring.lipschitz.chains import LARGEST, chain_bound
from sparring.lipschitz.gains.gain import Gain, product
from sparring.lipschitz.graph import Graph


@dataclass(frozen=True)
class DenseChain:
    """Dense layers with activations between them, and nothing else that reads what is in between.

    Attributes
    ----------
    start
        The node that the first layer is given.
    nodes
        The layers.
    gains
        What is known of them.
    slopes
        Between two of them, the largest slope of the activations there.
    between
        These activations, for each pair of layers; maybe none.
    """

    start: fx.Node
    nodes: list[fx.Node]
    gains: list[Gain]
    slopes: list[float]
    between: list[list[fx.Node]]

    def after_first(self, graph: Graph) -> DenseChain:
        """All layers but the first."""
        start = operand(graph, self.nodes[1]) if len(self.nodes) > 1 else self.nodes[0]
        return DenseChain(start, self.nodes[1:], self.gains[1:], self.slopes[1:], self.between[1:])

    def bound(self) -> float:
        """Of the last layer's result as a function of what the first is given; inf if very wide or steep."""
        weights = [cast(Tensor, gain.matrix) for gain in self.gains]
        if sum(len(weight) for weight in weights) > LARGEST or math.inf in self.slopes:
            return math.inf
        return chain_bound(weights, self.slopes, error=[gain.error for gain in self.gains])


def dense_chains(graph: Graph, end: fx.Node) -> list[DenseChain]:
    """The longest chains of at least two dense layers, up to the node `end`."""
    nodes = [*graph.steps]
    found: list[DenseChain] = []
    taken: set[fx.Node] = set()
    for node in reversed(nodes[: nodes.index(end) + 1] if end in graph.steps else []):
        if node not in taken and is_dense(graph, node):
            chain = _ending(graph, node)
            taken |= {*chain.nodes}
            if len(chain.nodes) > 1:
                found.insert(0, chain)
    return found


def whole_chain(graph: Graph) -> DenseChain | None:
    """The chain that a network is, if it is nothing else; of one layer too."""
    if graph.output is None or graph.refused:
        return None
    last, *_ = behind(graph, graph.output, activations=False)
    if not is_dense(graph, last):
        return None
    chain = _ending(graph, last)
    return chain if behind(graph, chain.nodes[0], activations=False)[0] is graph.input else None


def _ending(graph: Graph, last: fx.Node) -> DenseChain:
    nodes, slopes, names = [last], list[float](), list[list[fx.Node]]()
    while True:
        before, slope, between = behind(graph, nodes[0], activations=True)
        if not is_dense(graph, before) or len(before.users) != 1:
            break
        nodes.insert(0, before)
        slopes.insert(0, slope)
        names.insert(0, between)
    gains = [cast(Gain, graph.steps[node].gain) for node in nodes]
    return DenseChain(operand(graph, nodes[0]), nodes, gains, slopes, names)


def is_dense(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is a dense layer of one vector."""
    step = graph.steps.get(node)
    return step is not None and step.gain is not None and step.gain.matrix is not None


def operand(graph: Graph, node: fx.Node) -> fx.Node:
    """What a step of one operand is given."""
    join = graph.steps[node].join
    assert join is not None
    return join.parts[0][0].source


def behind(graph: Graph, node: fx.Node, *, activations: bool) -> tuple[fx.Node, float, list[fx.Node]]:
    """What is before a node and what only passes on its operand, or rises: the largest slope there, and what rises."""
    slope, names = 1.0, list[fx.Node]()
    join = graph.steps[node].join
    if join is None or len(join.parts) != 1:
        return node, slope, names
    before = operand(graph, node)
    while before in graph.steps and len(before.users) == 1:
        gain = graph.steps[before].gain
        if activations and gain is not None and gain.slopes is not None and gain.slopes.low >= 0:
            slope = product(slope, gain.slopes.high)
            names.insert(0, before)
        elif not graph.passes_on(before):
            break
        before = operand(graph, before)
    return before, slope, names
