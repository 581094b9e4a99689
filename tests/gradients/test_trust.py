# ruff: noqa: NPY002 (the global state is what models read)
"""Gradients are the model's own, whatever its forward does: a table of forwards that no plan may stand for."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring.gradients import comparison, lowering

X = torch.rand(4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(4)


def mlp(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5)).double().eval()


class Net(nn.Module):
    """`body(self, x)` as forward, with some layers at hand."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.first, self.back, self.body = mlp(), mlp(1)[0], mlp(2)[0], body
        self.back.weight = nn.Parameter(self.back.weight.detach().t().clone())
        self.back.bias = None
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float64))
        self.seen: list[Any] = []
        self.cache: dict[str, Tensor] = {}
        self.settings = SimpleNamespace(scale=2.0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


GLOBALS: dict[str, float] = {"scale": 2.0}
FLAG = True
reverse = Reverse.apply


@torch.no_grad()
def without_gradient(net: Any, x: Tensor) -> Tensor:
    return net.back(net.first(x))


def in_no_grad(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.back(net.first(x))
    return net.f(x)


def in_autocast(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = (x.float() @ torch.eye(20)).double()
    return net.f(x)


def counts(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.f(x)


def counts_in_place(net: Any, x: Tensor) -> Tensor:
    net.calls.add_(1)
    return net.f(x)


def drifts(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.scale.mul_(1.5)
    return net.f(x * net.scale)


def drifts_in_line(net: Any, x: Tensor) -> Tensor:
    return net.f(x * net.scale.mul_(1.5))


def changes_weights(net: Any, x: Tensor) -> Tensor:
    net.first.weight.data.mul_(0.5)
    return net.f(net.back(net.first(x)))


def sets_weights(net: Any, x: Tensor) -> Tensor:
    net.first.weight.data = net.back.weight.data.t() * 0.1
    return net.f(net.back(net.first(x)))


def remembers(net: Any, x: Tensor) -> Tensor:
    net.seen.append(x)
    return net.f(x)


def caches(net: Any, x: Tensor) -> Tensor:
    if "w" not in net.cache:
        net.cache["w"] = F.normalize(net.first.weight)
    return net.f(net.back(F.linear(x, net.cache["w"])))


def writes_to_its_input(net: Any, x: Tensor) -> Tensor:
    x -= 0.5
    x /= 0.25
    return net.f(x)


def sums_over_the_batch(net: Any, x: Tensor) -> Tensor:
    return net.f(x - x.mean(0))


def takes_a_branch(net: Any, x: Tensor) -> Tensor:
    return net.f(x) if float(x.detach().sum()) > 0 else net.f(-x)


def pushes_the_gradient(net: Any, x: Tensor) -> Tensor:
    y = x * 1.0
    if y.requires_grad:
        y.register_hook(lambda grad: 3 * grad)
    return net.f(y)


BODIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "custom backward": lambda net, x: net.f(Reverse.apply(x)),
    "custom backward by another name": lambda net, x: net.f(reverse(x)),
    "custom backward inside": lambda net, x: net.f[2](Round.apply(net.f[0](x))),
    "custom backward of a partial": partial(lambda function, net, x: net.f(function(x)), Reverse.apply),
    "straight through": lambda net, x: net.f(x + (x.round() - x).detach()),
    "detached": lambda net, x: net.f(x.detach()) + net.f(x),
    "data": lambda net, x: net.f(x.data * 2),
    "no_grad": in_no_grad,
    "no_grad as a decorator": lambda net, x: net.f(without_gradient(net, x)),
    "autocast": in_autocast,
    "counts": counts,
    "counts in place": counts_in_place,
    "drifts": drifts,
    "drifts in line": drifts_in_line,
    "changes weights": changes_weights,
    "sets weights": sets_weights,
    "remembers": remembers,
    "caches": caches,
    "writes to its input": writes_to_its_input,
    "sums over the batch": sums_over_the_batch,
    "takes a branch": takes_a_branch,
    "hook of a tensor": pushes_the_gradient,
    "reads a dict": lambda net, x: net.f(x * GLOBALS["scale"]),
    "checkpoint": lambda net, x: torch.utils.checkpoint.checkpoint(net.f, x, use_reentrant=False),
}


FOLLOWED = ("writes to its input", "checkpoint")
"""Of these a plan is right."""


def truth(model: Callable[[Tensor], Tensor], x: Tensor = X) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of the cross-entropy, by autograd."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf.clone())
    loss = F.cross_entropy(logits, LABELS[: len(x)], reduction="sum")
    if not loss.requires_grad:
        return logits, torch.zeros_like(x)
    (grad,) = torch.autograd.grad(loss, leaf, allow_unused=True, materialize_grads=True)
    return logits.detach(), grad


@pytest.mark.parametrize("name", BODIES)
def test_a_forward_that_is_more_than_its_graph(name: str) -> None:
    model, twin = Net(BODIES[name]), Net(BODIES[name])
    for _ in range(3):  # with what the model remembers from call to call
        found = sp.input_grad(model, X, LABELS)
        logits, grad = truth(twin)
        assert bool(sp.lower(model).reasons) == (name not in FOLLOWED)
        torch.testing.assert_close(found.logits, logits, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.grad, grad, rtol=1e-10, atol=1e-12)
        assert not any(tensor.requires_grad for tensor in found)


@pytest.mark.parametrize("name", BODIES)
def test_lowering_leaves_the_model_as_it_is(name: str) -> None:
    model = Net(BODIES[name])
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    tensors = {key: (value.clone(), value._version) for key, value in model.state_dict(keep_vars=True).items()}
    held = dict(vars(model)), [*model.seen], dict(model.cache), vars(model.settings).copy()
    sp.lower(model)
    assert (dict(vars(model)), model.seen, model.cache, vars(model.settings)) == held
    for key, value in model.state_dict(keep_vars=True).items():
        assert type(value) in (Tensor, nn.Parameter)
        assert value._version == tensors[key][1]
        assert torch.equal(value, tensors[key][0])
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def one_of_two(net: Any, x: Tensor) -> Tensor:
    return net.f(x) if int(torch.randint(2, (1,))) else net.f(-x)


def one_of_two_by_python(net: Any, x: Tensor) -> Tensor:
    return net.f(x) if random.random() < 0.5 else net.f(-x)


def one_of_two_by_numpy(net: Any, x: Tensor) -> Tensor:
    return net.f(x) if np.random.rand() < 0.5 else net.f(-x)


@pytest.mark.parametrize("body", [one_of_two, one_of_two_by_python, one_of_two_by_numpy])
def test_random_choices_are_drawn_at_each_call(body: Callable[[Any, Tensor], Tensor]) -> None:
    model = Net(body)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        losses = {round(float(sp.input_grad(model, X, LABELS).loss.sum()), 9) for _ in range(30)}
    assert len(losses) == 2


def test_what_forward_reads_outside_of_the_model_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        return net.f(x) if FLAG else net.f(-x)

    def settings(net: Any, x: Tensor) -> Tensor:
        return net.f(x * net.settings.scale)

    by_global, by_attribute = Net(body), Net(settings)
    for change in (lambda: None, lambda: monkeypatch.setitem(globals(), "FLAG", False)):
        change()
        torch.testing.assert_close(sp.input_grad(by_global, X, LABELS).grad, truth(by_global)[1])
    assert sp.lower(by_global).is_lowered
    for by_attribute.settings.scale in (2.0, -1.0):
        torch.testing.assert_close(sp.input_grad(by_attribute, X, LABELS).grad, truth(by_attribute)[1])
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.tanh())
    torch.testing.assert_close(sp.input_grad(by_global, X, LABELS).grad, truth(by_global)[1])


def test_a_plan_that_was_made_before_follows_the_model() -> None:
    model = mlp()
    plan = sp.lower(model)
    model[1] = nn.Tanh()
    torch.testing.assert_close(sp.input_grad(plan, X, LABELS).grad, truth(model)[1])
    handle = model[0].register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(sp.input_grad(plan, X, LABELS).grad, truth(model)[1])
    handle.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda module, args, output: 0.5 * output)
    try:
        torch.testing.assert_close(sp.input_grad(plan, X, LABELS).grad, truth(model)[1])
    finally:
        everywhere.remove()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
@pytest.mark.parametrize(
    "make", [mlp, lambda: sp.Ensemble([mlp(0), mlp(1)]), lambda: sp.StackedEnsemble([mlp(), mlp(1)])]
)
def test_copies_of_plans_are_plans_of_copies(how: Callable[[Any], Any], make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    plan = sp.lower(model)
    sp.input_grad(plan, X, LABELS)
    twin = how(plan)
    right = truth(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin.is_lowered
    found = sp.input_grad(twin, X, LABELS)
    torch.testing.assert_close(found.logits, right[0])
    torch.testing.assert_close(found.grad, right[1])
    assert not sp.input_grad(plan, X, LABELS).grad.any()


# --- The comparison ---------------------------------------------------------------------------------------------------


def wrong(model: nn.Module, where: str) -> nn.Module:
    """Make the plan of a model wrong in its logits, or in its gradient alone."""
    lowered = sp.lower(model)
    step = lowered.plan.steps[0]  # type: ignore[index]
    inner = getattr(step, where)

    def off(*args: Any) -> Any:
        result = inner(*args)
        return (result[0] * 1.01, result[1]) if where == "forward" else result * 1.01

    setattr(step, where, off)
    return model


@pytest.mark.parametrize(("where", "why"), [("forward", "logits are not"), ("backward", "gradient is not")])
def test_a_plan_that_is_wrong_is_not_believed(where: str, why: str) -> None:
    model = wrong(mlp(), where)
    torch.testing.assert_close(sp.input_grad(model, X, LABELS).grad, truth(model)[1])
    assert any(why in reason for reason in sp.lower(model).reasons)
    assert sp.lower(model).steps[0].__class__.__name__ == "Autograd"


def test_a_plan_is_compared_once_for_each_kind_of_input(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    compare = comparison.disagreement
    monkeypatch.setattr(comparison, "disagreement", lambda low, x: (asked.append(len(x)), compare(low, x))[1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 5)).eval()
    for x in (X, X[:1], X.view(4, 4, 5), X.view(4, 4, 5)):
        sp.input_grad(model, x.float(), LABELS[: len(x)])
    sp.attacks.pgd(model, X.float(), LABELS, eps=0.1)
    assert len(asked) == 2


def test_a_unit_at_its_kink_is_no_disagreement() -> None:
    """A hidden unit that is zero but for rounding: the derivative of ReLU is a matter of chance there."""
    model = mlp().float()
    x = X.float()
    with torch.no_grad():
        model[0].bias[:8] -= model[0](x)[0, :8]
    assert sp.input_grad(model, x, LABELS).grad.isfinite().all()
    assert sp.lower(model).is_lowered, sp.lower(model).reasons


def test_what_the_model_says_twice_must_agree() -> None:
    class Forgetful(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = Forgetful(20, 5).double()
    assert lowering.lower(model).is_lowered
    answers = iter(range(100))
    lowered = sp.lower(model)
    lowered.model = lambda x: model(x) * next(answers)  # type: ignore[assignment]
    assert comparison.disagreement(lowered, X) == "the model's answer to the same question changes"


# --- What the model is given, and what is returned --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["writes to its input", "counts", "straight through"])
def test_no_attack_lets_the_model_touch_a_point(name: str) -> None:
    model, x = Net(BODIES[name]), X.clone()
    labels = LABELS.clone()
    for attack in (
        partial(sp.attacks.pgd, eps=0.1),
        partial(sp.attacks.fgsm, eps=0.1),
        partial(sp.attacks.apgd, eps=0.5, norm=1, steps=4),
        partial(sp.attacks.uniform_noise, eps=0.1),
        partial(sp.attacks.lbfgs, steps=20),
        partial(sp.attacks.differential_evolution, population=8, steps=3),
    ):
        found = attack(model, x, labels, return_result=True)
        assert torch.equal(x, X)
        assert torch.equal(labels, LABELS)
        assert found.adv.min() >= 0
        assert found.adv.max() <= 1
        assert found.adv.data_ptr() != x.data_ptr()
        assert not any(value.requires_grad for value in vars(found).values())
        assert torch.equal(found.success, model(found.adv.clone()).argmax(1) != LABELS)
        eps = {"apgd": 0.5}.get(attack.func.__name__, 0.1)
        if attack.func.__name__ in ("pgd", "fgsm", "uniform_noise"):
            assert (found.adv - X).abs().max() <= eps


def test_a_buffer_that_is_used_again_does_not_change_what_was_returned() -> None:
    class Reuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.out = mlp(), torch.empty(4, 5, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.out[: len(x)] = self.f(x)
            return self.out[: len(x)]

    model = Reuses()
    first = sp.input_grad(model, X, LABELS).logits
    kept = first.clone()
    sp.input_grad(model, 1 - X, LABELS)
    assert torch.equal(first, kept)


def test_models_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, body = mlp(), Net(BODIES["straight through"])
    for one, plain in ((model, mlp()), (body, Net(BODIES["straight through"]))):
        torch.testing.assert_close(sp.input_grad(one, X, LABELS).grad, truth(plain)[1])
        assert torch.equal(sp.attacks.pgd(one, X, LABELS, eps=0.1), sp.attacks.pgd(plain, X, LABELS, eps=0.1))


@pytest.mark.parametrize("bad", [-1, 5, 99])
def test_labels_are_looked_at_in_every_call(bad: int) -> None:
    model, labels = mlp(), LABELS.clone()
    sp.input_grad(model, X, labels)
    labels.numpy()[0] = bad  # unseen by torch's counts
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\.\. 4"):
        sp.input_grad(model, X, labels)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "prob"])
def test_one_output_is_refused_with_the_way_out(loss: str) -> None:
    model = nn.Linear(20, 1).double().eval()
    zeros = torch.zeros_like(LABELS)
    for call in (
        partial(sp.input_grad, model, X, zeros, loss),
        partial(sp.attacks.pgd, model, X, zeros, eps=0.1, loss=loss),
    ):
        with pytest.raises(ValueError, match=r"torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)"):
            call()
