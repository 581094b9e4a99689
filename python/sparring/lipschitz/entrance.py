"""What a network does to distances that are measured in L1 or Linf at its input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import fx

from sparring.lipschitz.dense_chains import DenseChain, operand
from sparring.lipschitz.gains.gain import product, root
from sparring.lipschitz.graph import Graph
from sparring.lipschitz.report import Entrance

_ENTRY_BY_ENTRY = {"add", "sub", "subtract", "rsub", "mul", "multiply", "div", "truediv", "divide", "true_divide",
                   "neg", "batch_norm"}  # fmt: skip


def entrances(
    graph: Graph, upper: float, features: float | None, source: fx.Node | None, chains: Sequence[DenseChain]
) -> tuple[Entrance, ...]:
    """For inputs in L1 and in Linf, from the bounds for inputs in L2.

    A difference of inputs has at most its L1 norm, and sqrt(D) times its Linf norm, as its L2 norm. In L1 a layer that
    is given the input itself, with each entry times a factor maybe, has a constant of its own: the longest column.

    Parameters
    ----------
    upper, features
        For inputs in L2: of the output, and of `source`.
    source
        What the last layer is given, if that is dense.
    chains
        Dense layers that follow each other, up to `source` or, without one, up to the output.
    """
    assert graph.input is not None
    assert graph.output is not None
    scaled = _scaled_inputs(graph)
    by_columns = graph.bounds(_shortcuts(graph, scaled, chains))
    root_d = root(graph.value(graph.input).numel())
    in_l1, in_linf = min(upper, by_columns[graph.output]), product(upper, root_d)
    if source is None or features is None:
        return Entrance("L1", in_l1, None), Entrance("Linf", in_linf, None)
    if source in scaled:  # a linear network: the norm of the rows is the dual one
        factor = scaled[source]
        return Entrance("L1", in_l1, factor, math.inf), Entrance("Linf", in_linf, factor, 1.0)
    return (
        Entrance("L1", in_l1, min(features, by_columns[source])),
        Entrance("Linf", in_linf, product(features, root_d)),
    )


def _shortcuts(
    graph: Graph, scaled: Mapping[fx.Node, float], chains: Sequence[DenseChain]
) -> dict[fx.Node, tuple[fx.Node, float]]:
    """From the input, whose distances are in L1, to layers that are given it, and through the chains after these."""
    assert graph.input is not None
    found: dict[fx.Node, tuple[fx.Node, float]] = {}
    for node, step in graph.steps.items():
        if step.gain is not None and step.gain.columns is not None and operand(graph, node) in scaled:
            found[node] = graph.input, product(step.gain.columns, scaled[operand(graph, node)])
    for chain in chains:
        rest = chain.after_first(graph) if chain.nodes[0] in found else chain
        if len(rest.nodes) > 1:
            found[rest.nodes[-1]] = rest.start, rest.bound()
    return found


def _scaled_inputs(graph: Graph) -> dict[fx.Node, float]:
    """Nodes whose entries are those of the input, each times a factor and shifted; and the largest factor."""
    assert graph.input is not None
    found = {graph.input: 1.0}
    for node, step in graph.steps.items():
        if step.join is None or len(step.join.parts) != 1:
            continue
        branch, factor = step.join.parts[0]
        if branch.source not in found:
            continue
        same_count = step.operation in _ENTRY_BY_ENTRY and graph.value(node).numel() == branch.value.numel()
        if same_count or graph.passes_on(node):
            found[node] = product(found[branch.source], factor)
    return found
