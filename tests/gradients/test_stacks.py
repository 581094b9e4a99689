"""Members of an ensemble as one stack of products: the numbers of each member, and which members have one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring.gradients.members import (
    Buffers,
    Members,
    StackedConv2d,
    StackedDense,
    StackedLinear,
    dense_stack,
    stacked,
)
from sparring.gradients.steps import Flatten, Linear, NotLowered


def named(value: object) -> str:
    """What a parameter is called, in every process the same."""
    return str(getattr(value, "__name__", value))


M, B = 3, 4
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return build().double().eval()


def dense(widths: Sequence[int], activation: Callable[[], nn.Module], bias: bool = True) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs, bias=bias), activation()]
        return nn.Sequential(*layers[:-1])

    return build


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "one layer": dense((6, 3), nn.ReLU),
    "two": dense((6, 5, 3), nn.ReLU),
    "three": dense((6, 5, 4, 3), nn.Tanh),
    "four without biases": dense((6, 5, 4, 7, 2), lambda: nn.LeakyReLU(0.2), bias=False),
    "sigmoid": dense((6, 5, 3), nn.Sigmoid),
    "softplus": dense((6, 5, 3), nn.Softplus),
    "nothing between": dense((6, 5, 3), nn.Identity),
    "an activation last": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Tanh()),
    "equal widths": dense((6, 6, 6), nn.ReLU),
}


def members(name: str, count: int = M) -> list[nn.Module]:
    return [network(ARCHITECTURES[name], seed) for seed in range(count)]


def whole(nets: Sequence[nn.Module]) -> StackedDense:
    found = stacked([sp.lower(net) for net in nets])
    assert found is not None
    return found


@pytest.mark.parametrize("scalars", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=named)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_stack_is_its_members(name: str, dtype: torch.dtype, scalars: int) -> None:
    nets = members(name)
    if dtype is not torch.float64:
        nets = [net.float() for net in nets]
    tolerance = TOLERANCE[dtype]
    step = whole(nets)
    for batch in (B, 1, 0):
        x = normal(batch, 2, 3).to(dtype)
        logits, saved = step.forward(x)
        exact = [copy.deepcopy(net).double().requires_grad_(False) for net in nets]
        wanted = torch.stack([net(x.double()) for net in exact])
        assert logits.dtype is dtype
        torch.testing.assert_close(logits.double(), wanted, rtol=tolerance, atol=tolerance)
        seeds = normal(M, batch * scalars, wanted.shape[2], seed=1)
        found = step.backward(seeds.to(dtype, copy=True), saved)
        assert found.shape == (batch * scalars, 2, 3)
        for scalar in range(scalars if batch else 0):
            towards = sum(
                torch.func.vjp(net, x.double())[1](seeds[m, scalar::scalars])[0] for m, net in enumerate(exact)
            )
            torch.testing.assert_close(
                found[scalar::scalars].double(), towards, rtol=4 * tolerance, atol=20 * tolerance
            )


def test_one_member_is_a_stack() -> None:
    (net,) = members("two", 1)
    x = normal(B, 6)
    logits, _ = whole([net]).forward(x)
    torch.testing.assert_close(logits[0], net(x).detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=named)
def test_passes_that_overlap_share_no_memory(dtype: torch.dtype) -> None:
    nets = [net.to(dtype) for net in members("three")]
    step = whole(nets)
    x, other = normal(B, 6).to(dtype), normal(B, 6, seed=3).to(dtype)
    seeds = normal(M, B, 3, seed=1).to(dtype)
    alone = [step.backward(seeds.clone(), step.forward(each)[1]) for each in (x, other)]
    first, saved = step.forward(x)
    kept = first.clone()
    second, saved_second = step.forward(other)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(step.backward(seeds.clone(), saved), alone[0], rtol=0, atol=0)
    torch.testing.assert_close(step.backward(seeds.clone(), saved_second), alone[1], rtol=0, atol=0)
    assert second.shape == first.shape


def test_memory_is_used_again_and_of_the_right_kind() -> None:
    idle: list[dict[Any, Tensor]] = []
    like = torch.zeros(1)
    buffers = Buffers(idle)
    first = buffers.get(like, (2, 3), "a", 1)
    assert first.shape == (2, 3)
    assert buffers.get(like, (2, 3), "a", 1) is first
    assert buffers.get(like, (2, 3), "a", 2) is not first
    assert buffers.get(like, (3, 2), "a", 1).shape == (3, 2)
    assert buffers.get(like.double(), (3, 2), "a", 1).dtype is torch.float64
    more = [Buffers(idle) for _ in range(3)]
    kept = buffers.get(like, (3, 2), "b")
    del buffers
    assert len(idle) == 1
    again = Buffers(idle)
    assert idle == []
    assert again.get(like, (3, 2), "b") is kept
    del again, more[:]
    assert len(idle) == 2, "no more than two are kept"


def test_weights_are_taken_once_for_a_call_and_renewed_for_the_next() -> None:
    nets = members("two")
    step = whole(nets)
    x = normal(B, 6)
    before = step.forward(x)[0].clone()
    taken = step.take(x, "float32")
    with torch.no_grad():
        nets[1][1].weight.mul_(2)
        nets[2][3].bias.data.numpy()[:] += 1
    torch.testing.assert_close(taken.forward(x)[0], before, rtol=0, atol=0)
    now = torch.stack([net(x) for net in nets])
    torch.testing.assert_close(step.forward(x)[0], now.detach())
    torch.testing.assert_close(step.take(x, "float32").forward(x)[0], now.detach())
    assert step.weights(x) is step.weights(x), "not made again while nothing changes"
    half = whole([net.float() for net in nets]).take(x.float(), "bf16")
    assert half.forward(x.bfloat16())[0].dtype is torch.bfloat16


ALIKE: dict[str, Callable[[], nn.Module]] = {
    "another width": dense((6, 4, 3), nn.ReLU),
    "another activation": dense((6, 5, 3), nn.Tanh),
    "another slope": dense((6, 5, 3), lambda: nn.LeakyReLU(0.3)),
    "no bias": dense((6, 5, 3), nn.ReLU, bias=False),
    "a layer more": dense((6, 5, 5, 3), nn.ReLU),
    "no flatten": lambda: dense((6, 5, 3), nn.ReLU)()[1:],
    "another flatten": lambda: nn.Sequential(nn.Flatten(-2), *dense((6, 5, 3), nn.ReLU)()[1:]),
    "a flatten more": lambda: nn.Sequential(nn.Flatten(), *dense((6, 5, 3), nn.ReLU)()),
    "a flatten at the end": lambda: nn.Sequential(*dense((6, 5, 3), nn.ReLU)(), nn.Flatten()),
    "a softmax": lambda: nn.Sequential(*dense((6, 5, 3), nn.ReLU)(), nn.Softmax(1)),
    "an activation first": lambda: nn.Sequential(nn.Flatten(), nn.Tanh(), *dense((6, 5, 3), nn.ReLU)()[1:]),
    "another type": lambda: dense((6, 5, 3), nn.ReLU)(),
}


@pytest.mark.parametrize("name", ALIKE)
def test_members_of_different_kinds_have_no_stack(name: str) -> None:
    net = network(dense((6, 5, 3), nn.ReLU), 0)
    other = network(ALIKE[name], 1)
    if name == "another type":
        other = other.float()
    for pair in ((net, other), (other, net)):
        assert stacked([sp.lower(each) for each in pair]) is None
    assert stacked([sp.lower(net), sp.lower(network(dense((6, 5, 3), nn.ReLU), 2))]) is not None


def test_members_without_layers_or_left_to_autograd_have_no_stack() -> None:
    assert stacked([sp.lower(nn.Flatten()), sp.lower(nn.Flatten())]) is None
    odd = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.GELU()).eval()
    assert stacked([sp.lower(odd), sp.lower(odd)]) is None


def test_a_stack_of_tensors_is_one_of_linear_layers_behind_reshapes() -> None:
    weight, bias = normal(M, 5, 6), normal(M, 5)
    layer = Linear(lambda: weight, lambda: bias)
    found = dense_stack([Flatten(1, -1), layer], M)
    assert found is not None
    logits, _ = found.forward(normal(B, 2, 3))
    wanted = torch.einsum("bf,mhf->mbh", normal(B, 2, 3).flatten(1), weight) + bias[:, None]
    torch.testing.assert_close(logits, wanted)
    assert dense_stack([layer, Flatten(1, -1)], M) is None
    assert dense_stack([Flatten(1, -1), layer, nn.Identity()], M) is None  # type: ignore[list-item]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_members_one_by_one(precision: str) -> None:
    nets = [*members("two", 2), network(dense((6, 4, 3), nn.Tanh), 5)]
    nets = [net.float() for net in nets]
    x = normal(B, 2, 3).float()
    step = Members([sp.lower(net) for net in nets]).take(x, precision)
    logits, saved = step.forward(x, precision)
    tolerance = 1e-5 if precision == "float32" else 5e-2
    torch.testing.assert_close(logits, torch.stack([net(x) for net in nets]).detach(), rtol=tolerance, atol=tolerance)
    seeds = normal(3, B, 3, seed=1).float()
    found = step.backward(seeds.clone(), saved)
    towards = sum(torch.func.vjp(net, x)[1](seeds[m])[0] for m, net in enumerate(nets))
    torch.testing.assert_close(found.float(), towards, rtol=tolerance, atol=2 * tolerance)


def test_members_must_agree() -> None:
    nets = [network(dense((6, 3), nn.ReLU), 0), network(dense((6, 2), nn.ReLU), 1)]
    x = normal(B, 6)
    with pytest.raises(ValueError, match=r"must return logits of one shape, but gave \[\(4, 2\), \(4, 3\)\]"):
        Members([sp.lower(net) for net in nets]).take(x, "float32").forward(x, "float32")


def test_weights_of_another_type_are_left_to_the_model() -> None:
    with pytest.raises(NotLowered, match=r"weights are torch\.float64, inputs torch\.float32"):
        whole(members("two")).forward(normal(B, 6).float())


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_of_members_on_shared_channels_and_side_by_side(groups: int) -> None:
    """Step by step, without the model to fall back on; height and width are none of the numbers of channels."""
    weight, bias = normal(M, 4, 2 // groups, 3, 3), normal(M, 4, seed=1)
    step = StackedConv2d(lambda: weight, lambda: bias, (2, 1), (1, 0), (1, 1), groups)
    each = [normal(B, 2, 8, 5, seed=2 + m) for m in range(M)]
    apart = torch.cat(each, 1)
    found, saved = step.forward(apart)
    wanted = [F.conv2d(x, w, b, (2, 1), (1, 0), 1, groups) for x, w, b in zip(each, weight, bias, strict=True)]
    torch.testing.assert_close(found, torch.cat(wanted, 1))
    grad = normal(*found.shape, seed=9)
    towards = step.backward(grad.clone(), saved)
    for m, part in enumerate(towards.split(2, 1)):
        _, back = torch.func.vjp(lambda x, m=m: F.conv2d(x, weight[m], bias[m], (2, 1), (1, 0), 1, groups), each[m])
        torch.testing.assert_close(part, back(grad[:, 4 * m : 4 * m + 4])[0])
    if groups > 1:
        with pytest.raises(NotLowered, match="groups in the first convolution of stacked members"):
            step.forward(each[0])
        return
    found, saved = step.forward(each[0])
    torch.testing.assert_close(found, F.conv2d(each[0], weight.flatten(0, 1), bias.flatten(), (2, 1), (1, 0)))
    _, back = torch.func.vjp(lambda x: F.conv2d(x, weight.flatten(0, 1), None, (2, 1), (1, 0)), each[0])
    torch.testing.assert_close(step.backward(grad.clone(), saved), back(grad)[0])


def test_linear_layers_of_members_on_shared_features_and_side_by_side() -> None:
    weight, bias = normal(M, 4, 6), normal(M, 4, seed=1)
    for b in (bias, None):
        step = StackedLinear(lambda: weight, lambda b=b: b)
        each = [normal(B, 6, seed=2 + m) for m in range(M)]
        extra = torch.zeros(M, 4).double() if b is None else b
        found, saved = step.forward(torch.cat(each, 1))
        torch.testing.assert_close(
            found, torch.cat([x @ w.t() + e for x, w, e in zip(each, weight, extra, strict=True)], 1)
        )
        grad = normal(B, 12, seed=9)
        torch.testing.assert_close(
            step.backward(grad.clone(), saved), torch.cat([grad[:, 4 * m : 4 * m + 4] @ weight[m] for m in range(M)], 1)
        )
        found, saved = step.forward(each[0])
        torch.testing.assert_close(found, each[0] @ weight.flatten(0, 1).t() + extra.flatten())
        torch.testing.assert_close(step.backward(grad.clone(), saved), grad @ weight.flatten(0, 1))
