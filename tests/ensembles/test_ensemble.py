"""Ensembles: what they return, their gradients stacked and one by one, and that stacks are never stale."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring import losses, networks
from sparring.gradients.members import Members, StackedDense

COMBINES = ("probs", "logits", "loss")
WEIGHTS = [3.0, 1.0, 0.0, 2.0]
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(5)
TARGETS = torch.tensor([1, 0, 3, 2, 2])


def members(*names: str) -> list[nn.Module]:
    generator = torch.Generator().manual_seed(1)
    models = [networks.build(name, (1, 8, 8), 6, generator=generator).double().eval() for name in names]
    for model in models:
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(20)  # logits some units apart, as a trained network's are
    return models


class Perceptron(nn.Module):
    """Without biases in places, with an activation that has an option, and traced from forward."""

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 7, bias=False), nn.Linear(7, 6)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.leaky_relu(self.first(x.flatten(1)), self.slope))


KINDS: dict[str, Any] = {
    "dense": lambda: members(*["mlp"] * 4),
    "deep": lambda: members(*["mlp-256-128-128"] * 4),
    "one layer": lambda: [nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).double().eval() for _ in range(4)],
    "no bias": lambda: [Perceptron().double().eval() for _ in range(4)],
    "convolutional": lambda: members(*["lenet5"] * 4),
    "mixed": lambda: members("mlp", "lenet5", "mlp-300-100", "mlp"),
    "two slopes": lambda: [Perceptron(slope).double().eval() for slope in (0.1, 0.2, 0.1, 0.1)],
    "not lowered": lambda: [*members("mlp", "mlp"), *(nn.Sequential(m, nn.GELU()) for m in members("mlp", "mlp"))],
}
STACKED = ("dense", "deep", "one layer", "no bias")


def loss_by_definition(ensemble: sp.Ensemble, x: Tensor, loss: Any, targets: Tensor | None) -> Tensor:
    z = torch.stack([model(x) for model in ensemble.models])
    w = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
    if ensemble.combine == "loss":
        return sum(wm * losses.evaluate(loss, zm, LABELS, targets) for wm, zm in zip(w, z, strict=True))
    mixed = (w[:, None, None] * (z.softmax(2) if ensemble.combine == "probs" else z)).sum(0)
    return losses.evaluate(loss, mixed.log() if ensemble.combine == "probs" else mixed, LABELS, targets)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient(kind: str, combine: str) -> None:
    ensemble = sp.Ensemble(KINDS[kind](), combine, WEIGHTS).eval()
    lowered = sp.lower(ensemble)
    assert isinstance(lowered.steps[0], StackedDense if kind in STACKED else Members)
    assert lowered.is_lowered == (kind != "not lowered")
    names = losses.NAMES if kind == "dense" else ("ce",)
    for loss in (*names, lambda z, y: z.gather(1, y[:, None])[:, 0].sinh()):
        for targets in (None, TARGETS):
            leaf = X.clone().requires_grad_()
            value = loss_by_definition(ensemble, leaf, loss, targets)
            (right,) = torch.autograd.grad(value.sum(), leaf)
            ours = sp.input_grad(lowered, X, LABELS, loss, targets=targets)
            torch.testing.assert_close(ours.loss, value.detach(), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(ours.grad, right, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(ours.logits, ensemble(X).detach(), rtol=1e-10, atol=1e-12)


def test_forward() -> None:
    models = members("mlp", "lenet5")
    probs, logits, loss = (sp.Ensemble(models, combine, [1, 3])(X) for combine in COMBINES)
    a, b = models[0](X), models[1](X)
    torch.testing.assert_close(logits, (a + 3 * b) / 4)
    torch.testing.assert_close(probs.exp(), (a.softmax(1) + 3 * b.softmax(1)) / 4)
    torch.testing.assert_close(loss, (a.log_softmax(1) + 3 * b.log_softmax(1)) / 4)
    torch.testing.assert_close(sp.Ensemble(models)(X).exp(), (a.softmax(1) + b.softmax(1)) / 2)


def test_certain_members_still_have_a_gradient() -> None:
    """A mixture of networks whose probabilities underflow: the loss and its gradient stay finite, and are not 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).eval()
    with torch.no_grad():
        model[1].weight.mul_(1e4)
    result = sp.input_grad(sp.Ensemble([model, copy.deepcopy(model)]).eval(), X.float(), model(X.float()).argmin(1))
    assert result.loss.isfinite().all()
    assert bool((result.grad.flatten(1).norm(dim=1) > 0).all())


def fused_step(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.1, fused=True)
    nn.functional.cross_entropy(model(X.float()), LABELS).backward()
    optimizer.step()


# Changes that torch does not count in `_version`.
UNCOUNTED: dict[str, Callable[[nn.Module], Any]] = {
    "fused optimiser": fused_step,
    "data": lambda model: model.linear1.weight.data.copy_(model.linear1.weight.flip(0)),
    "signs": lambda model: model.linear1.weight.data.neg_(),
    "NumPy": lambda model: model.linear1.weight.detach().numpy().__setitem__((3, 5), 7.0),
    "one bit": lambda model: model.linear2.bias.detach().numpy().view("int32").__ixor__(1),
    "vector_to_parameters": lambda model: nn.utils.vector_to_parameters(
        torch.linspace(-1, 1, sum(p.numel() for p in model.parameters())), model.parameters()
    ),
}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_stack_is_never_stale(precision: str) -> None:
    models = [model.float() for model in members(*["mlp"] * 3)]
    ensemble = sp.Ensemble(models).eval()
    x = X.float()
    lowered = sp.lower(ensemble)

    def renewed() -> bool:
        before = stack._kept
        ours = sp.input_grad(lowered, x, LABELS, precision=precision)
        fresh = sp.input_grad(copy.deepcopy(ensemble), x, LABELS, precision=precision)
        assert torch.equal(ours.grad, fresh.grad)
        return stack._kept is not before

    stack = lowered.steps[0]
    assert isinstance(stack, StackedDense)
    assert renewed()
    assert not renewed()
    optimizer = torch.optim.SGD(ensemble.parameters(), 0.1)
    nn.functional.cross_entropy(ensemble(x), LABELS).backward()
    optimizer.step()
    assert renewed()
    models[1].linear2.weight = nn.Parameter(torch.zeros(128, 128))
    assert renewed()
    models[2].load_state_dict(models[0].state_dict())
    assert renewed()
    for change in UNCOUNTED.values():
        change(models[1])
        assert renewed()
    assert not renewed()


def test_weights_are_kept_with_the_model() -> None:
    ensemble = sp.Ensemble(members("mlp", "mlp"), weights=[1, 3])
    assert ensemble.weights.tolist() == [0.25, 0.75]
    other = sp.Ensemble(members("mlp", "mlp"))
    other.load_state_dict(ensemble.state_dict())
    assert other.weights.tolist() == [0.25, 0.75]
    right = sp.input_grad(ensemble.eval(), X, LABELS).grad
    assert torch.equal(sp.input_grad(other.eval(), X, LABELS).grad, right)
    ensemble.weights.copy_(torch.tensor([0.75, 0.25]))
    assert not torch.equal(sp.input_grad(ensemble, X, LABELS).grad, right)


def test_inside_another_model() -> None:
    inner = sp.Ensemble(members("mlp", "mlp"), "logits")
    model = nn.Sequential(nn.Identity(), sp.Ensemble([inner, *members("lenet5")])).eval()
    assert sp.lower(model).is_lowered
    leaf = X.clone().requires_grad_()
    (right,) = torch.autograd.grad(losses.evaluate("ce", model(leaf), LABELS).sum(), leaf)
    torch.testing.assert_close(sp.input_grad(model, X, LABELS).grad, right, rtol=1e-10, atol=1e-12)


def test_no_array_of_members_examples_and_inputs() -> None:
    """The gradient of 40 stacked members allocates far less than 40 gradients."""
    models = [nn.Sequential(nn.Flatten(), nn.Linear(4096, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(40)]
    lowered = sp.lower(sp.Ensemble(models).eval())
    x = torch.rand(64, 4096)
    sp.input_grad(lowered, x, torch.zeros(64, dtype=torch.long))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sp.input_grad(lowered, x, torch.zeros(64, dtype=torch.long))
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest <= 2 * x.numel() * x.element_size()


def test_split_to_fit_into_memory() -> None:
    ensemble = sp.Ensemble(members(*["lenet5"] * 3)).eval()
    whole = sp.input_grad(ensemble, X, LABELS)
    parts = sp.input_grad(ensemble, X, LABELS, memory=100_000)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "one model at least"),
        (([nn.Linear(2, 2)], "sum"), "combine must be one of probs, logits, loss, vote; got 'sum'"),
        (([nn.Linear(2, 2)], "probs", [1, 2]), r"weights has shape \(2,\).*\(1,\)"),
        (([nn.Linear(2, 2)] * 2, "probs", [1, -1]), "weights must be at least 0"),
        (([nn.Linear(2, 2)] * 2, "probs", [0, 0]), "not all 0"),
        (([nn.Linear(2, 2)] * 2, "probs", [1, float("nan")]), "finite"),
        (([nn.Linear(2, 2)] * 2, "probs", [1, float("inf")]), "finite"),
    ],
)
def test_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sp.Ensemble(*arguments)


def test_members_must_agree() -> None:
    ensemble = sp.Ensemble([nn.Linear(4, 2), nn.Linear(4, 3)]).eval()
    x = torch.rand(2, 4)
    for call in (lambda: ensemble(x), lambda: sp.input_grad(ensemble, x, torch.zeros(2, dtype=torch.long))):
        with pytest.raises(ValueError, match=r"one shape, but gave \[\(\d, 2\), \(\d, 3\)\]"):
            call()
