"""Lipschitz bounds of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, fx, nn

from sparring.lipschitz import given
from sparring.lipschitz.ambient import plain_arithmetic
from sparring.lipschitz.dense_chains import DenseChain, behind, dense_chains, is_dense, operand
from sparring.lipschitz.empirical import empirical_lower_bound
from sparring.lipschitz.entrance import entrances
from sparring.lipschitz.gains.gain import Gain, product
from sparring.lipschitz.gains.weighted import shape_text
from sparring.lipschitz.graph import Graph
from sparring.lipschitz.report import WEIGHTS_ALONE, LayerBound, LipschitzReport
from sparring.lipschitz.spectral import spectral_norm

_PRODUCT = "product of the layers' bounds"


@plain_arithmetic()
def layer_bounds(
    model: nn.Module | Mapping[str, Tensor],
    input_shape: int | Sequence[int] | None = None,
    *,
    tol: float = 1e-6,
    certified: bool = True,
    chains: bool = True,
    data: Tensor | None = None,
) -> LipschitzReport:
    """Bound the Lipschitz constant of each layer of a network, and of the whole, in the Euclidean norm.

    The network is understood as the function of one example that its stored parameters define in exact arithmetic, in
    the mode that it is in, of inputs of its dtype, and without an autocast around the call. It is worked on as a copy
    in float64; if its forward does something else there (an ``eps`` that follows the dtype), as it is, and ``.note``
    says so. Its forward is traced by ``torch.fx``. Bounds are rounded upwards throughout; what has no bound is named in
    ``.refused``, and the bound of the whole is then infinite.

    Parameters
    ----------
    model : nn.Module or mapping of str to Tensor
        A network, which is copied and not touched; or a state dict, of whose weights alone the report is then: see its
        ``.note``.
    input_shape : int or sequence of int, optional
        Of one example, channels first, such as (3, 224, 224). Needed for a network.
    tol : float
        How close the ends of each layer's enclosure should come; see `spectral_norm`.
    certified : bool
        False leaves proofs out: upper ends are then estimates.
    chains : bool
        Whether to bound dense layers that follow each other together as well; see `sparring.lipschitz.chain_bound`.
    data : Tensor, optional
        Inputs (N, ...); ``.lower`` is then their `empirical_lower_bound`, if there is a copy in float64.

    Returns
    -------
    LipschitzReport

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or the model cannot be copied.

    Notes
    -----
    Refused are attention, products of two activations, whatever jumps, every function that is not known, every call
    that the rule of its operation does not cover (`sparring.lipschitz.gains.table`), and what makes an example's result
    depend on others of its batch. ``docs/lipschitz-networks.md`` lists what is known.
    """
    given.positive(tol, "tol")
    if isinstance(model, Mapping):
        if data is not None:
            raise ValueError("data are for a network; a state dict alone has no Jacobian")
        return _of_weights(model, tol, certified)
    if input_shape is None:
        raise ValueError("input_shape is needed for a network: the shape of one example, such as (3, 224, 224)")
    shape = given.integers(input_shape, "input_shape", "positive numbers, such as (3, 224, 224)")
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape must be positive numbers, such as (3, 224, 224); got {input_shape}")
    graph = Graph(model, shape, tol=tol, certified=certified)
    lower = None if data is None or graph.other_function else empirical_lower_bound(model, data)
    refused = tuple(graph.refused)
    note = ""
    if graph.other_function:
        note = f"Of the network in its own dtype, as float64 would make it another function: {graph.other_function}."
    if graph.output is None:
        try:
            weights = _of_weights(model.state_dict(), tol, certified).layers
        except ValueError:
            weights = ()
        return LipschitzReport(
            weights, math.inf, math.inf, _PRODUCT, certified, refused, lower, note=note, input_shape=shape
        )
    whole = math.inf if refused else graph.bounds()[graph.output]
    report = LipschitzReport(
        _layers(graph), whole, whole, _PRODUCT, certified, refused, lower, note=note, input_shape=shape,
        jumps=graph.jumps(),
    )  # fmt: skip
    if refused:
        return report
    if chains:
        report = _with_chains(report, graph)
    return _with_head(report, graph, chains)


def _with_others(report: LipschitzReport, graph: Graph, source: fx.Node | None, chains: bool) -> LipschitzReport:
    found = dense_chains(graph, source or cast(fx.Node, graph.output)) if chains else []
    return replace(report, others=entrances(graph, report.upper, report.features, source, found))


def _layers(graph: Graph) -> tuple[LayerBound, ...]:
    bounds, found = graph.bounds(), []
    for node, step in graph.steps.items():
        if node is graph.output or step.join is None:
            continue
        method, gain = step.join.method, step.gain
        if gain is None:
            factor = step.join.parts[0][1] if len(step.join.parts) == 1 else None
            found.append(LayerBound(step.name, step.kind, "", None, factor, method, True, bounds[node]))
        else:
            ends, certified = (gain.lower, gain.upper), gain.certified
            found.append(LayerBound(step.name, step.kind, gain.shape, *ends, method, certified, bounds[node]))
    return tuple(found)


def _with_chains(report: LipschitzReport, graph: Graph) -> LipschitzReport:
    end = cast(fx.Node, graph.output)
    found = dense_chains(graph, end)
    shorter = _bounds(graph, found)[end]
    if shorter >= report.upper:
        return report
    spans = ", ".join(f"{graph.steps[c.nodes[0]].name} to {graph.steps[c.nodes[-1]].name}" for c in found)
    return replace(report, upper=shorter, method=f"LipSDP of {spans}")


def _with_head(report: LipschitzReport, graph: Graph, chains: bool) -> LipschitzReport:
    """With the last layer's weight, the bound of what it is given, and both for inputs in other norms."""
    last, *_ = behind(graph, cast(fx.Node, graph.output), activations=False)
    if not is_dense(graph, last) or cast(Gain, graph.steps[last].gain).error:
        # Of rows that are nearly the same, an error of each entry may be all of the difference.
        return _with_others(report, graph, None, chains)
    source = operand(graph, last)
    bound = _bounds(graph, dense_chains(graph, source) if chains else [])[source]
    weight = cast(Tensor, cast(Gain, graph.steps[last].gain).matrix)
    report = replace(report, features=bound, head=weight.to(torch.float64))
    return _with_others(report, graph, source, chains)


def _bounds(graph: Graph, chains: Sequence[DenseChain]) -> dict[fx.Node, float]:
    return graph.bounds({chain.nodes[-1]: (chain.start, chain.bound()) for chain in chains})


def _of_weights(state: Mapping[str, Tensor], tol: float, certified: bool) -> LipschitzReport:
    """Each weight as a layer by itself."""
    layers, refused, whole = [], [], 1.0
    for name, weight in state.items():
        if not isinstance(name, str):
            raise TypeError(f"model must be a state dict with names as keys; got {name!r}")
        if isinstance(weight, Tensor) and weight.is_nested:
            refused.append((name, "is a nested tensor"))
            continue
        if not isinstance(weight, Tensor) or not 2 <= weight.ndim <= 5:
            continue
        last = name.rpartition(".")[2]
        if "parametrizations" in name or ("weight" in last and last != "weight"):
            refused.append((name, "is no weight as a layer uses it: what is computed of it is not known"))
        if last != "weight":
            continue
        kind = "dense" if weight.ndim == 2 else f"conv{weight.ndim - 2}d"
        try:
            norm = spectral_norm(weight, kind, tol=tol, certified=certified)
        except (TypeError, ValueError) as why:
            refused.append((name, str(why)))
            continue
        whole = product(whole, norm.upper)
        text = shape_text(weight.shape, kind)
        layers.append(LayerBound(name, kind, text, norm.lower, norm.upper, norm.method, norm.certified, None))
    if not layers and not refused:
        raise ValueError("model is a state dict without a weight of two to five dimensions")
    whole = math.inf if refused else whole
    return LipschitzReport(tuple(layers), whole, whole, _PRODUCT, certified, tuple(refused), note=WEIGHTS_ALONE)
