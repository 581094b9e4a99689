"""Input gradients and Jacobians against autograd, torch.func and torch.compile; errors against autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from harness import Judge, Run, sample_rows
from peers import compiled
from sparring import networks

CASES = [("mlp", count, members) for count in (128, 1024) for members in (1, 10, 100)]
CASES += [("lenet5", 128, 1), ("lenet5", 1024, 1), ("lenet5", 128, 10), ("lenet5", 1024, 10), ("lenet5", 128, 100)]

# Contestants that are asked for: times ours. A loop is autograd over the members, one by one.
MIXTURE = {"autograd": 1.7, "torch.func vmap(grad)": 1.0, "torch.compile(vmap(grad))": 1.0}
ONE = {"torch.compile(vmap(grad))": 1.0}
JACOBIAN = {"autograd": 1.8, "torch.func jacrev": 1.4}
CONVOLUTIONAL = {"autograd, channels-last": 1.3}


def make(name: str, count: int, device: torch.device) -> list[nn.Module]:
    """Networks of 28 x 28 images, in float32, with logits some units apart as those of trained networks are."""
    models = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            model = networks.mlp((784, 100, 100, 10)) if name == "mlp" else networks.lenet5((1, 28, 28), 10)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(20)
        models.append(model.eval().requires_grad_(False).to(device))
    return models


def batch(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return x.to(device), (torch.arange(count) % 10).to(device)


def mixture_loss(models: list[nn.Module], x: Tensor, labels: Tensor) -> Tensor:
    if len(models) == 1:
        return F.cross_entropy(models[0](x), labels, reduction="sum")
    mixed: Any = sum(model(x).softmax(1) for model in models)
    return F.nll_loss((mixed / len(models)).log(), labels, reduction="sum")


def autograd(models: list[nn.Module], x: Tensor, labels: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(mixture_loss(models, leaf, labels), leaf)[0]


def vmapped(models: list[nn.Module], labels: Tensor) -> Callable[[Tensor], Tensor]:
    """torch.func's way: one network example by example, an ensemble with its members' weights stacked."""
    if len(models) == 1:
        weights = dict(models[0].named_parameters())

        def one(x: Tensor, label: Tensor) -> Tensor:
            logits = torch.func.functional_call(models[0], weights, (x[None],))
            return F.cross_entropy(logits, label[None], reduction="sum")

        each = torch.func.vmap(torch.func.grad(one))
        return lambda x: each(x, labels)
    stacked, _ = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")

    def mixture(x: Tensor) -> Tensor:
        logits = torch.func.vmap(lambda w: torch.func.functional_call(skeleton, w, (x,)))(stacked)
        return F.nll_loss(logits.softmax(2).mean(0).log(), labels, reduction="sum")

    return torch.func.grad(mixture)


def rows_of_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(B, K, ...), one backward pass a logit."""
    leaf = x.detach().requires_grad_()
    logits = model(leaf)
    rows = [torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] for k in range(logits.shape[1])]
    return torch.stack(rows, 1)


def judge(right: Callable[[list[nn.Module], Tensor], Tensor], models: list[nn.Module], count: int) -> Judge:
    """Error of sampled rows, each relative to its largest entry in `right(models in float64, rows)`; the ninth decile.

    Not the largest: where rounding turns a ReLU or the maximum of a window the other way, a row changes by that unit's
    whole share, and there are millions of units.
    """
    rows = sample_rows((count, 16_384))
    expected = right([copy.deepcopy(model).cpu().double() for model in models], rows).flatten(1)

    def error(answer: Tensor) -> dict[str, float]:
        ours = answer if answer.shape[0] == count else answer.transpose(0, 1)  # torch.func puts the logits first
        off = (ours[rows.to(ours.device)].cpu().double().flatten(1) - expected).abs().amax(1)
        return {"error": float((off / expected.abs().amax(1)).quantile(0.9))}

    return error


def rounds(name: str, count: int, members: int) -> int:
    """Fewer for what takes long."""
    work = count * members * (20 if name == "lenet5" else 1)
    return 24 if work < 2e4 else 12 if work < 1e5 else 6


@pytest.mark.parametrize(("name", "count", "members"), CASES)
def test_input_grad(versus: Callable[..., None], name: str, count: int, members: int, device: torch.device) -> None:
    models = make(name, members, device)
    x, labels = batch(count, device)
    lowered = sp.lower(models[0] if members == 1 else sp.Ensemble(models).eval())
    step = lowered.take(x)
    peers: dict[str, Run] = {
        "ours, taken once as in attacks": lambda: sp.input_grad(step, x, labels).grad,
        "autograd": lambda: autograd(models, x, labels),
    }
    required = MIXTURE if members == 100 and count == 128 else ONE if members == 1 else {}
    if name == "lenet5":
        last = [copy.deepcopy(model).to(memory_format=torch.channels_last) for model in models]
        peers["autograd, channels-last"] = lambda: autograd(last, x.to(memory_format=torch.channels_last), labels)
        required = CONVOLUTIONAL
    function = vmapped(models, labels)
    fast = compiled(function)
    peers |= {"torch.func vmap(grad)": lambda: function(x), "torch.compile(vmap(grad))": lambda: fast(x)}
    versus(
        lambda: sp.input_grad(lowered, x, labels).grad,
        peers,
        op=f"input_grad, {name}, {members} member{'s' * (members > 1)}",
        shape=(count, 784),
        device=device,
        judge=judge(lambda m, rows: autograd(m, x[rows].cpu().double(), labels[rows].cpu()), models, count),
        bytes_per_entry=8,
        required=required if device.type == "cpu" else {},
        tolerance=1e-4 if name == "mlp" or members == 1 else 1e-2,  # a unit turned in most rows, among so many
        rounds=rounds(name, count, members),
    )


@pytest.mark.parametrize(("name", "count", "members"), [case for case in CASES if case[1] == 128])
def test_bf16(versus: Callable[..., None], name: str, count: int, members: int, device: torch.device) -> None:
    models = make(name, members, device)
    x, labels = batch(count, device)
    lowered = sp.lower(models[0] if members == 1 else sp.Ensemble(models).eval())
    step = lowered.take(x, "bf16")

    def autocast() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return autograd(models, x, labels)

    versus(
        lambda: sp.input_grad(lowered, x, labels, precision="bf16").grad,
        {
            "ours, taken once as in attacks": lambda: sp.input_grad(step, x, labels, precision="bf16").grad,
            "ours, float32": lambda: sp.input_grad(lowered, x, labels).grad,
            "autograd, autocast": autocast,
        },
        op=f"input_grad in bf16, {name}, {members} member{'s' * (members > 1)}",
        shape=(count, 784),
        device=device,
        judge=judge(lambda m, rows: autograd(m, x[rows].cpu().double(), labels[rows].cpu()), models, count),
        bytes_per_entry=8,
        required={"ours, float32": 1.7},
        tolerance=1.0,  # of the largest entry: a ReLU that flips changes a gradient by a unit's whole share
        rounds=rounds(name, count, members),
    )


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_jacobian(versus: Callable[..., None], name: str, device: torch.device) -> None:
    (model,) = models = make(name, 1, device)
    x, _ = batch(128, device)
    lowered = sp.lower(model)
    summed = torch.func.jacrev(lambda examples: model(examples).sum(0))
    each = torch.func.vmap(torch.func.jacrev(lambda example: model(example[None])[0]))
    versus(
        lambda: sp.jacobian(lowered, x),
        {
            "autograd": lambda: rows_of_jacobian(model, x),
            "torch.func jacrev": lambda: summed(x),
            "torch.func vmap(jacrev)": lambda: each(x),
        },
        op=f"jacobian, {name}",
        shape=(128, 7840),
        device=device,
        judge=judge(lambda m, rows: rows_of_jacobian(m[0], x[rows].cpu().double()), models, 128),
        bytes_per_entry=8,
        required=JACOBIAN if device.type == "cpu" else {},
        tolerance=1e-4,
    )
