"""What a stacked network returns, as the logits of its members."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring.ensembles.quick import quick
from sparring.gradients.members import Members, OnDevice, StackedDense

M, K = 3, 6


def test_what_stacked_members_return_is_taken_apart_only_where_it_is_logits() -> None:
    stack = sp.StackedEnsemble([nn.Linear(4, K) for _ in range(M)])
    flat = torch.arange(5 * M * K).view(5, M * K)
    apart = stack._apart(flat)
    assert apart.shape == (M, 5, K)
    assert torch.equal(apart[1, 2], flat[2, K : 2 * K])
    for wrong in ((5, M * K + 1), (5, M * K, 1), (5 * M * K,)):
        with pytest.raises(ValueError, match=r"a member must return logits \(B, K\); all 3 gave"):
            stack._apart(torch.zeros(wrong))


def test_one_member_is_an_ensemble() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    stack = sp.StackedEnsemble([net], combine="logits")
    x = torch.rand(3, 4)
    torch.testing.assert_close(stack(x), net(x))
    torch.testing.assert_close(stack.member_logits(x), net(x)[None])
    torch.testing.assert_close(stack.member(0)(x), net(x))


@pytest.mark.parametrize("rows", [1, 2])
def test_on_a_device_members_go_side_by_side_to_the_same_numbers(rows: int) -> None:
    """The way that a CPU does not take for convolutions, taken on one."""
    nets = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, K)).double() for _ in range(M)]
    (step, _) = sp.lower(sp.StackedEnsemble(nets)).steps
    assert isinstance(step, OnDevice)
    x = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, saved = step.take(x, "float32").forward(x, "float32")
    flat, tape = step.side_by_side.take(x).forward(x)
    torch.testing.assert_close(flat.view(5, M, K).transpose(0, 1), logits)
    grad = torch.rand(M, 5 * rows, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = step.backward(grad.clone(), saved)
    torch.testing.assert_close(step.backward(grad.clone(), (flat.dtype, tape)), wanted)


class Called(nn.Module):
    """A network whose forward does something between two layers."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Conv2d(1, 3, 3), nn.Linear(12, K), between
        self.norm = nn.Linear(3, 12)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


@pytest.mark.parametrize("between", [
    lambda self, x: x.flatten(1), lambda self, x: x.flatten(1, -1), lambda self, x: torch.flatten(x, 1),
    lambda self, x: torch.flatten(x, start_dim=1, end_dim=-1), lambda self, x: x.view(x.size(0), -1).relu(),
    lambda self, x: x.reshape(x.size(0), -1), lambda self, x: torch.relu(x).flatten(1) + 1,
])  # fmt: skip
def test_what_keeps_features_apart_is_stacked(between: Any) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        nets = [self_contained(between) for _ in range(2)]
    stack = sp.StackedEnsemble(nets, combine="logits")
    assert stack.reasons == []
    x = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(stack.member_logits(x), torch.stack([net(x) for net in nets]))
    torch.testing.assert_close(stack._apart(stack.net(x)), torch.stack([net(x) for net in nets]))


def self_contained(between: Any) -> nn.Module:
    net = Called(between)
    del net.norm, net.scale
    return net.eval()


@pytest.mark.parametrize(("between", "reason"), [
    (lambda self, x: x.flatten(0, 1).view(5, 12), "flatten"), (lambda self, x: x.flatten(1, 2).flatten(1), "flatten"),
    (lambda self, x: x.view(-1, 12), "view"),
    (lambda self, x: x.mean(1, keepdim=True).flatten(1), "mean"), (lambda self, x: x.flatten(1).softmax(1), "softmax"),
    (lambda self, x: x.transpose(1, 2).flatten(1), "transpose"), (lambda self, x: x.sum((2, 3)), "sum"),
    (lambda self, x: x.view(x.size(1), -1), "size|view"),
])  # fmt: skip
def test_what_mixes_features_is_not_stacked(between: Any, reason: str) -> None:
    nets = [self_contained(between) for _ in range(2)]
    (why,) = sp.StackedEnsemble(nets).reasons
    assert re.search(reason, why), why


def test_tensors_of_no_layer_are_named() -> None:
    """Those that forward uses itself, and those that it does not use: their members would not be told apart."""
    x = torch.rand(5, 1, 4, 4)
    for between, drop, why in (
        (lambda self, x: x.flatten(1), "scale", "norm: weights of no layer that forward calls"),
        (lambda self, x: x.flatten(1), "norm", "scale: weights of no layer that forward calls"),
        (lambda self, x: x.flatten(1), "", "norm, scale: weights of no layer that forward calls"),
        (lambda self, x: (x * self.scale).flatten(1), "norm", "scale, a tensor that forward uses"),
    ):
        nets = [Called(between).eval() for _ in range(2)]
        for net in nets:
            if drop:
                delattr(net, drop)
        stack = sp.StackedEnsemble(nets, combine="logits")
        assert stack.reasons == [why]
        torch.testing.assert_close(stack.member_logits(x), torch.stack([net(x) for net in nets]))


def test_dense_members_are_one_stack_and_those_with_convolutions_go_one_by_one_on_a_cpu() -> None:
    """The same numbers either way: what is quicker where."""
    flat, image = torch.rand(2, 4), torch.rand(2, 1, 4, 4)
    dense = sp.StackedEnsemble([nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K)) for _ in range(2)])
    convolutional = sp.StackedEnsemble([self_contained(lambda self, x: x.flatten(1)) for _ in range(2)])
    odd = sp.StackedEnsemble([nn.Sequential(nn.Linear(4, K), nn.Softmax(1)) for _ in range(2)])
    assert not dense._one_by_one(flat)
    assert convolutional._one_by_one(image)
    assert not convolutional._one_by_one(image.to("meta"))
    assert odd._one_by_one(flat)
    assert [type(sp.lower(stack).steps[0]) for stack in (dense, convolutional, odd)] == [
        StackedDense,
        OnDevice,
        Members,
    ]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("first", "shape"), [
    (lambda: nn.BatchNorm1d(4), (6, 4)), (lambda: nn.BatchNorm1d(3), (6, 3, 2)),
    (lambda: nn.BatchNorm2d(2), (6, 2, 3, 1)),
])  # fmt: skip
def test_inputs_that_are_normalised_first(first: Any, shape: tuple[int, ...], training: bool) -> None:
    """All members are given the same, and each normalises it its own way."""
    nets = []
    for seed in range(M):
        net = nn.Sequential(first(), nn.Flatten(), nn.Linear(math.prod(shape[1:]), K)).double()
        with torch.no_grad():
            for i, tensor in enumerate([*net.parameters(), net[0].running_mean, net[0].running_var]):
                drawn = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(10 * seed + i))
                tensor.copy_(drawn + 0.5)
        nets.append(net.train(training))
    stack = sp.StackedEnsemble(nets, combine="logits").train(training)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert stack.reasons == []
    torch.testing.assert_close(stack.member_logits(x), torch.stack([net(x) for net in nets]))
    for m, net in enumerate(nets):
        torch.testing.assert_close(stack.member(m)[0].running_mean, net[0].running_mean)
        torch.testing.assert_close(stack.member(m)[0].running_var, net[0].running_var)


class Twice(nn.Module):
    """What a convolution gives goes two ways, behind ReLU and as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool, self.last = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Linear(3, K)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(self.pool(self.relu(y) - 2 * y).flatten(1))


def test_layers_whose_answer_goes_two_ways_are_left_apart() -> None:
    nets = [Twice().eval() for _ in range(M)]
    x = torch.rand(5, 1, 4, 4)
    wanted = torch.stack([net(x) for net in nets])
    torch.testing.assert_close(sp.StackedEnsemble(nets).member_logits(x), wanted)
    torch.testing.assert_close(quick(nets[0]).network(x), nets[0](x))


class Shared(nn.Module):
    """One ReLU in two places: before a pooling, and behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(x))).flatten(1)
        return self.last(self.relu(self.first(x) - 1))


def test_a_layer_in_two_places_is_left_as_it_is() -> None:
    net = Shared().eval()
    x = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(quick(net).network(x), net(x))
