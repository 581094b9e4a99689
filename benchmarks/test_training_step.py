"""A training step of M networks: as one stack, one after the other, by torch.func, and stacked by hand.

Every contestant's answer is a weight of the first member after its first step of Adam, from the same start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from harness import Judge, Run
from sparring import networks
from sparring.training.fit import members_loss

BATCH, LR = 128, 1e-3
CASES = [("mlp", 10), ("mlp", 100), ("cnn", 10)]
REQUIRED = {"mlp": {"modules in a loop": 2.8, "torch.baddbmm by hand": 1.0}, "cnn": {"modules in a loop": 1.5}}
BY_MEMBERS = (2, 4, 8, 16, 32, 64, 128, 256)
FLOOR = "the products and Adam alone"


def make(name: str, count: int, device: torch.device) -> list[nn.Module]:
    """Networks of 28 x 28 images in train mode, without their dropout, whose draws would differ."""
    generator = torch.Generator().manual_seed(0)
    models = []
    for _ in range(count):
        if name == "cnn":
            model = networks.build("cnn", (1, 28, 28), 10, generator=generator)
        else:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
                model = networks.mlp((784, 100, 100, 10))
        models.append(model.train().to(device))
    return models


def adam(parameters: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=LR, fused=True)


def loss_of_all(logits: Tensor, y: Tensor) -> Tensor:
    """Of logits (M, B, K), the sum of the members' mean losses."""
    return F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="sum").div(BATCH)


def first_weight(model: nn.Module) -> Tensor:
    return next(model.parameters()).detach()


def stack(models: list[nn.Module], x: Tensor, y: Tensor) -> Run:
    ensemble = sp.StackedEnsemble(models).train()
    optimizer = adam(ensemble.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        torch.autograd.backward(members_loss(ensemble.member_logits(x), y).sum().div(BATCH))
        optimizer.step()
        return first_weight(ensemble)[0]

    return step


def loop(models: list[nn.Module], x: Tensor, y: Tensor) -> Run:
    own = [copy.deepcopy(model) for model in models]
    optimizers = [adam(model.parameters()) for model in own]

    def step() -> Tensor:
        for model, optimizer in zip(own, optimizers, strict=True):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x), y))
            optimizer.step()
        return first_weight(own[0])

    return step


def functional(models: list[nn.Module], x: Tensor, y: Tensor) -> Run:
    parameters, _ = torch.func.stack_module_state([copy.deepcopy(model) for model in models])
    skeleton = copy.deepcopy(models[0]).to("meta")
    optimizer = adam(parameters.values())

    def logits(tensors: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(skeleton, tensors, (x,))

    def step() -> Tensor:
        optimizer.zero_grad()
        each = torch.func.vmap(logits, randomness="different")(parameters)
        torch.autograd.backward(loss_of_all(each, y))
        optimizer.step()
        first: Tensor = next(iter(parameters.values())).detach()[0]
        return first

    return step


def by_hand(models: list[nn.Module], x: Tensor, y: Tensor) -> Run:
    """Of perceptrons: weights (M, in, out), batched products throughout."""
    layers = [[m for m in model.modules() if isinstance(m, nn.Linear)] for model in models]
    weights = [
        torch.stack([m.weight.detach().t() for m in level]).requires_grad_() for level in zip(*layers, strict=True)
    ]
    biases = [
        torch.stack([m.bias.detach() for m in level])[:, None].requires_grad_() for level in zip(*layers, strict=True)
    ]
    optimizer = adam([*weights, *biases])

    def step() -> Tensor:
        optimizer.zero_grad()
        h = x.flatten(1).expand(len(models), -1, -1)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            h = h.relu() if i + 1 < len(weights) else h
        torch.autograd.backward(loss_of_all(h, y))
        optimizer.step()
        return weights[0].detach()[0].t()

    return step


def floor(models: list[nn.Module], x: Tensor, y: Tensor) -> Run:
    """Of perceptrons: every product that a step needs, into memory that is there already, and the optimiser."""
    members, flat = len(models), x.flatten(1)
    layers = [m for m in models[0].modules() if isinstance(m, nn.Linear)]
    weights = [torch.randn(members, m.out_features, m.in_features, device=x.device).requires_grad_() for m in layers]
    grads = [torch.rand_like(weight) for weight in weights]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    activations = [torch.rand(members, m.out_features, len(x), device=x.device) for m in layers]
    optimizer = adam(weights)

    def step() -> Tensor:
        with torch.no_grad():
            first = weights[0].view(-1, flat.shape[1])
            torch.mm(first, flat.t(), out=activations[0].view(len(first), -1))
            for weight, before, after in zip(weights[1:], activations, activations[1:], strict=False):
                torch.bmm(weight, before, out=after)
            for weight, grad, before, after in [
                *zip(weights[1:], grads[1:], activations, activations[1:], strict=False)
            ][::-1]:
                torch.bmm(after, before.transpose(1, 2), out=grad)
                torch.bmm(weight.transpose(1, 2), after, out=before)
            torch.mm(activations[0].view(len(first), -1), flat, out=grads[0].view(first.shape))
        optimizer.step()
        return weights[0].detach()[0]

    return step


def judge(models: list[nn.Module], x: Tensor, y: Tensor) -> Judge:
    """The ninth decile of the errors, in steps of Adam, which goes by the sign of gradients that rounding decides."""
    model = copy.deepcopy(models[0]).cpu().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    torch.autograd.backward(F.cross_entropy(model(x.cpu().double()), y.cpu()))
    optimizer.step()
    right = first_weight(model)
    return lambda weight: {"error": float(((weight.cpu().double() - right).abs() / LR).flatten().quantile(0.9))}


def batch(device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.rand(BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return x.to(device), (torch.arange(BATCH) % 10).to(device)


@pytest.mark.parametrize(("name", "members"), CASES)
def test_training_step(versus: Callable[..., None], name: str, members: int, device: torch.device) -> None:
    models, (x, y) = make(name, members, device), batch(device)
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    peers = {"modules in a loop": loop(models, x, y), "torch.func vmap": functional(models, x, y)}
    weaker = {}
    if name == "mlp":
        peers |= {"torch.baddbmm by hand": by_hand(models, x, y), FLOOR: floor(models, x, y)}
        weaker = {FLOOR: "trains nothing"}
    versus(
        stack(models, x, y),
        peers,
        op=f"training step, {name}, {members} members",
        shape=(BATCH, 784),
        device=device,
        judge=judge(models, x, y),
        bytes_per_entry=8,
        required=REQUIRED[name] if device.type == "cpu" else {},
        weaker=weaker,
        tolerance=0.01,
        rounds=24 if name == "mlp" and members == 10 else 9,
    )


@pytest.mark.parametrize("members", BY_MEMBERS)
def test_cost_by_members(versus: Callable[..., None], members: int, device: torch.device) -> None:
    """Whether M members take at most M times as long as a stack of one."""
    models, (x, y) = make("mlp", members, device), batch(device)
    one = stack(models[:1], x, y)

    def many() -> Tensor:
        for _ in range(members - 1):
            one()
        return one()

    versus(
        stack(models, x, y),
        {f"{members} steps of one member": many},
        op=f"training step, mlp, {members} members against as many steps of one",
        shape=(BATCH, 784),
        device=device,
        judge=judge(models, x, y),
        bytes_per_entry=8,
        required={f"{members} steps of one member": 1.0} if device.type == "cpu" else {},
        tolerance=0.01,
        rounds=9,
    )
