"""A bound is of one example's function, so nothing may come from the others of its batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from made_layers import Calls
from sparring.lipschitz import batches, layer_bounds
from sparring.lipschitz.batches import batch_obstacle

MIXING: dict[str, Callable[[Any], Any]] = {
    "mean taken off": lambda x: x - x.mean(0),
    "mean": lambda x: x.mean(0, keepdim=True).expand(x.shape[0], -1, -1),
    "a hair of it": lambda x: x + 1e-300 * x.sum(0),
    "sum over everything": lambda x: x + x.sum(),
    "largest": lambda x: x + x.amax((0, 2), keepdim=True),
    "softmax": lambda x: x.softmax(0),
    "log-softmax from the end": lambda x: F.log_softmax(x, -3),
    "rolled": lambda x: x.roll(1, 0),
    "rolled by many": lambda x: x.roll(12, 0),
    "rolled as one row": lambda x: x.roll(1),
    "flipped": lambda x: x.flip(0),
    "flipped with others": lambda x: x.flip((1, 0)),
    "one example for all": lambda x: x[:1].expand(x.shape[0], -1, -1),
    "the first alone": lambda x: x[:1],
    "one index": lambda x: torch.index_select(x, 0, torch.zeros(1, dtype=torch.int64)),
    "doubled": lambda x: torch.cat([x, x], 0),
    "stacked": lambda x: torch.stack([x, x]),
    "folded": lambda x: x.reshape(-1, 4),
    "folded and worked on": lambda x: x.reshape(1, -1, 4).softmax(1).reshape(-1, 3, 4),
    "transposed": lambda x: x.transpose(0, 1).reshape(-1, 3, 4),
    "one vector": lambda x: x.flatten(),
    "a number": lambda x: x.sum(),
    "fixed rows": lambda x: x.view(1, 12),
    "normalised over it": lambda x: F.layer_norm(x.transpose(0, 2), (3, 1)),
    "normalised with training statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "scaled by its size": lambda x: x / x.shape[0],
    "kernel over it": lambda x: F.avg_pool1d(x.transpose(0, 2), 1, 1).transpose(0, 2) + x.cumsum(0),
    "pooled over it": lambda x: F.max_pool1d(F.pad(x.permute(1, 2, 0), (1, 1)), 3, 1).permute(2, 0, 1),
    "padded around it": lambda x: F.pad(x.permute(1, 2, 0), (1, 0)).permute(2, 0, 1)[:-1],
    "two results, one of them": lambda x: (x, x.mean(0, keepdim=True)),
    "two results, the second scaled by its size": lambda x: (x, x * x.shape[0]),
    "two results, the first scaled by its size": lambda x: (x * x.shape[0], x),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_a_batch_is_refused(name: str) -> None:
    report = layer_bounds(Calls(MIXING[name]), (3, 4))
    assert report.refused
    assert report.upper == math.inf


APART: dict[str, Callable[[Any], Any]] = {
    "folded and unfolded": lambda x: x.reshape(-1, 4).softmax(1).reshape(-1, 3, 4),
    "windows": lambda x: x.reshape(x.shape[0] * 3, 4).sum(1).view(-1, 3),
    "branches summed": lambda x: torch.stack([x, 2 * x]).sum(0),
    "there and back": lambda x: x.transpose(0, 1).transpose(0, 1).flatten(1),
    "instances normalised": lambda x: F.instance_norm(x),
    "two results": lambda x: (x, x.mean(1)),
}


SIZED: dict[str, Callable[[Any], Any]] = {
    "number": lambda x: x * (1 + x.shape[0] // 8),
    "never reached": lambda x: x * (1 + x.size(0) // 10**6),
    "all numbers": lambda x: x * (1 + x.numel() // 10**6),
    "number of dimensions folded": lambda x: x * (1 + x.reshape(-1, 4).shape[0] // 10**6),
    "what is beyond some": lambda x: x * (1 + x[8:].shape[0]),
    "comparison": lambda x: x * (1 + (x.shape[0] > 10**6)),
    "divided": lambda x: x / (1 + x.shape[0] // 10**6),
    "added": lambda x: torch.add(x, x, alpha=1 + x.shape[0] // 10**6),
    "slope": lambda x: F.leaky_relu(x, 1 + x.shape[0] // 10**6),
    "filled": lambda x: x * x.new_full((x.shape[0], 1, 1), 1 + x.shape[0] // 10**6),
    "repeated": lambda x: x.repeat(1, 1 + x.shape[0] // 8, 1),
    "sum of ones": lambda x: x * (1 + x.new_ones((x.shape[0],)).sum() / 1e6),
    "numbered": lambda x: x * x.new_ones((x.shape[0], 1, 1)).cumsum(0),
}


@pytest.mark.parametrize("name", SIZED)
def test_arithmetic_with_the_size_of_the_batch_is_refused(name: str) -> None:
    report = layer_bounds(Calls(SIZED[name]), (3, 4))
    assert report.refused
    assert report.upper == math.inf


SHAPED: dict[str, Callable[[Any], Any]] = {
    "size of the example": lambda x: x * x.shape[1] ** -0.5 + x.size(-1),
    "token": lambda x: torch.cat([x, torch.ones(1, 1, 4, dtype=x.dtype).expand(x.shape[0], -1, -1)], 1),
    "zeros": lambda x: torch.cat([x, x.new_zeros((x.shape[0], 2, 4))], 1),
    "filled": lambda x: x + x.new_full((x.shape[0], 3, 1), 2.0) + torch.zeros_like(x),
    "flattened by its number": lambda x: x.view(x.shape[0], x.numel() // x.shape[0]),
    "flattened by its sizes": lambda x: x.reshape(x.size(0), x.size(1) * x.size(2)),
    "constants of its dtype": lambda x: x + x.new_zeros((1, 4)) + x.new_tensor([2.0]),
    "its own shape": lambda x: x.reshape(-1, x.shape[2]).relu().reshape(x.shape),
}


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_may_grow_with_the_batch(name: str) -> None:
    report = layer_bounds(Calls(SHAPED[name]), (3, 4))
    assert report.refused == ()
    assert report.upper < math.inf


@pytest.mark.parametrize("name", APART)
def test_what_keeps_examples_apart_is_bounded(name: str) -> None:
    report = layer_bounds(Calls(APART[name]), (3, 4))
    assert report.refused == ()
    assert report.upper < math.inf


@pytest.mark.parametrize("name", sorted(set(MIXING) - {"rolled by many"}))
def test_calls_alone_show_what_mixes(name: str) -> None:
    """Without the graph, on the network as it is."""
    assert batch_obstacle(MIXING[name], torch.rand(1, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("name", APART)
def test_calls_alone_show_what_does_not(name: str) -> None:
    assert batch_obstacle(APART[name], torch.rand(1, 3, 4, dtype=torch.float64)) == ""


@pytest.mark.parametrize("name", ["mean taken off", "softmax", "rolled by many", "largest"])
def test_the_graph_alone_shows_where(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring.lipschitz import graph

    monkeypatch.setattr(graph, "batch_obstacle", lambda model, x: "")
    report = layer_bounds(Calls(MIXING[name]), (3, 4))
    assert any("batch" in reason for _, reason in report.refused), report.refused
    assert report.refused[0][0] != "forward"


def test_dropout_in_training_mode_is_no_mixing() -> None:
    for model in (nn.Sequential(nn.Dropout(0.5)), nn.RReLU()):
        assert layer_bounds(model.train(), (3,)).refused == ()


def test_both_examples_are_followed() -> None:
    """What only the second of two examples reaches, and what only the first does."""
    x = torch.rand(1, 3, dtype=torch.float64)
    node: Any = object()
    for mixed in (lambda x: x.cumsum(0), lambda x: x.flip(0).cumsum(0)):
        found = batches.mixing(lambda x, mixed=mixed: [(node, mixed(x))], x)
        assert found.nodes
    assert batches.mixing(lambda x: [(node, x * 2)], x).axes == {node: {0}}


@pytest.mark.parametrize("function", [lambda x: x.reshape(1, 12), lambda x: x.view(3, 4)[None]])
def test_what_cannot_be_called_with_two_is_said(function: Callable[[Any], Any]) -> None:
    graph = fx.symbolic_trace(Calls(function))

    def values(x: Tensor) -> Iterator[tuple[fx.Node, Any]]:
        found: dict[fx.Node, Any] = {}
        for node in graph.graph.nodes:
            if node.op == "output":
                return
            arguments = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
            if node.op == "placeholder":
                found[node] = x
            elif node.op == "call_method":
                found[node] = getattr(arguments[0][0], node.target)(*arguments[0][1:], **arguments[1])
            elif node.op == "get_attr":
                found[node] = getattr(graph, node.target)
            else:
                found[node] = node.target(*arguments[0], **arguments[1])
            yield node, found[node]

    assert batches.mixing(values, torch.rand(1, 3, 4)).fails.startswith("cannot be called with a batch of two: ")
    assert batches.mixing(values, torch.rand(1, 3, 4)).nodes == {}
