"""Stacked ensembles: the same numbers as their members one by one, forward, backward and in training."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring import losses, networks
from sparring.ensembles.quick import Dropout, ReluPool, quick

M, K = 3, 6
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(5)
TARGETS = torch.tensor([1, 0, 3, 2, 2])
WEIGHTS = [3.0, 0.0, 2.0]


class Traced(nn.Module):
    """Functions in place of modules, a strided convolution in groups, without biases in places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(4, 6, 3, padding="same", groups=2)
        self.linear = nn.Linear(6 * 2 * 2, K, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.1)
        x = F.max_pool2d(self.conv2(x), 2).tanh()
        return self.linear(x.view(x.size(0), -1))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8),
        nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, K),
    )  # fmt: skip


KINDS: dict[str, Any] = {
    "mlp": lambda: networks.mlp((64, 9, 7, K)),
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, K)),
    "bare layer": lambda: nn.Linear(8, K),
    "lenet5": lambda: networks.lenet5((1, 8, 8), K),
    "cnn": lambda: networks.cnn((1, 8, 8), K),
    "traced": Traced,
    "normalised": normalised,
    "first normalised": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, K)),
    "groups first": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(32, K)),
    "layer norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, K)),
    "circular": lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="circular"), nn.Flatten(), nn.Linear(72, K)),
    "residual": lambda: networks.ResNet18((1, 8, 8), K, width=2),
}


def inputs(kind: str) -> Tensor:
    return {"bare layer": X[:, 0, 0], "groups first": X.reshape(5, 4, 4, 4)}.get(kind, X)


def members(kind: str, count: int = M) -> list[nn.Module]:
    """Networks in eval mode, none of whose statistics are those of a new one."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        models = [KINDS[kind]().double() for _ in range(count)]
        for model in models:
            for _ in range(3):
                model(torch.rand_like(inputs(kind)))
    return [model.eval() for model in models]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_the_members(kind: str) -> None:
    models, x = members(kind), inputs(kind)
    for combine in ("probs", "logits", "loss", "vote"):
        one_by_one = sp.Ensemble(models, combine, WEIGHTS).eval()
        stack = sp.StackedEnsemble(models, combine, WEIGHTS)
        assert not stack.training
        assert len(stack) == M
        torch.testing.assert_close(stack.member_logits(x), one_by_one.member_logits(x))
        torch.testing.assert_close(stack(x), one_by_one(x))
        lowered = sp.lower(stack)
        assert lowered.is_lowered == (kind not in ("residual", "layer norm", "circular")), lowered.reasons
        assert bool(stack.reasons) == (kind in ("layer norm", "circular")), stack.reasons
        for loss in losses.NAMES:
            for targets in (None, TARGETS):
                ours = sp.input_grad(stack, x, LABELS, loss, targets=targets)
                theirs = sp.input_grad(one_by_one, x, LABELS, loss, targets=targets)
                torch.testing.assert_close(ours.grad, theirs.grad)
                torch.testing.assert_close(ours.loss, theirs.loss)
                torch.testing.assert_close(ours.logits, theirs.logits)
        torch.testing.assert_close(sp.jacobian(stack, x), sp.jacobian(one_by_one, x))


@pytest.mark.parametrize("kind", KINDS)
def test_member_is_an_ordinary_module(kind: str) -> None:
    models, x = members(kind), inputs(kind)
    stack = sp.StackedEnsemble(models)
    for i, model in enumerate(models):
        member = stack.member(i)
        assert type(member) is type(model)
        assert member.training == stack.training
        assert {name: tensor.tolist() for name, tensor in member.state_dict().items()} == {
            name: tensor.tolist() for name, tensor in model.state_dict().items()
        }
        torch.testing.assert_close(member(x), stack.member_logits(x)[i])
        grad = sp.input_grad(model, x, LABELS).grad
        torch.testing.assert_close(stack.member_grads(x, LABELS)[i], grad)
    torch.testing.assert_close(stack.member(-1)(x), stack.member_logits(x)[-1])
    with pytest.raises(IndexError, match="index is 3; there are 3 members"):
        stack.member(3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cnn"])  # whose dropout draws for all at once
def test_training_is_that_of_every_member(kind: str) -> None:
    """Ten steps of momentum, with statistics that move, in one set of tensors and in many."""
    models, x = members(kind), inputs(kind)
    stack = sp.StackedEnsemble(models).train()
    optimiser = torch.optim.SGD(stack.parameters(), 0.01, momentum=0.9)
    for _ in range(10):
        optimiser.zero_grad()
        sum(F.cross_entropy(logits, LABELS) for logits in stack.member_logits(x)).backward()
        optimiser.step()
    for i, model in enumerate(models):
        alone = torch.optim.SGD(model.train().parameters(), 0.01, momentum=0.9)
        for _ in range(10):
            alone.zero_grad()
            F.cross_entropy(model(x), LABELS).backward()
            alone.step()
        for name, tensor in stack.member(i).state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-6, atol=1e-9)


def test_member_has_the_dtype_that_the_stack_was_given() -> None:
    stack = sp.StackedEnsemble([model.float() for model in members("normalised")]).double()
    member = stack.member(1)
    assert {tensor.dtype for tensor in member.state_dict().values()} == {torch.float64, torch.int64}
    torch.testing.assert_close(member(X), stack.member_logits(X)[1])
    member[0].weight.data.zero_()  # type: ignore[index, union-attr]
    assert bool(stack.get_parameter("net.0.weight")[1].any())  # a copy


def test_gradient_follows_weights_that_change() -> None:
    stack = sp.StackedEnsemble(members("mlp"))
    before = sp.input_grad(stack, X, LABELS).grad
    with torch.no_grad():
        stack.get_parameter("net.linear1.weight")[1] *= 2
    after = sp.input_grad(stack, X, LABELS).grad
    assert not torch.allclose(before, after)
    ensemble = sp.Ensemble([stack.member(i) for i in range(M)])
    torch.testing.assert_close(after, sp.input_grad(ensemble, X, LABELS).grad)


def test_derivatives_of_derivatives() -> None:
    """A penalty on the gradient can be trained with."""
    stack = sp.StackedEnsemble(members("mlp"))
    x = X[:2].clone().requires_grad_()

    def norm(first: Tensor, second: Tensor) -> Tensor:
        state = {"net.linear1.weight": first, "net.linear2.weight": second}
        (grad,) = torch.autograd.grad(torch.func.functional_call(stack, state, x).sum(), x, create_graph=True)
        return (grad**2).sum()

    weights = [stack.get_parameter(f"net.linear{i}.weight").detach().clone().requires_grad_() for i in (1, 2)]
    assert torch.autograd.gradcheck(norm, weights)


def test_saved_and_read_back(tmp_path: Path) -> None:
    stack = sp.StackedEnsemble(members("normalised"), "logits", WEIGHTS)
    file = tmp_path / "stack.safetensors"
    stack.save(file)
    assert [*tmp_path.iterdir()] == [file]
    again = sp.StackedEnsemble.load(file, members("normalised", 1)[0])
    assert torch.equal(again(X), stack(X))
    assert again.combine == "logits"
    with pytest.raises(FileExistsError, match="exists already"):
        stack.save(file)
    with pytest.raises(ValueError, match="not an ensemble of such networks"):
        sp.StackedEnsemble.load(file, members("mlp", 1)[0])
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        sp.StackedEnsemble.load(file, members("normalised", 1)[0])


def test_members_are_copied_and_models_left_alone() -> None:
    models = members("mlp")
    before = copy.deepcopy([model.state_dict() for model in models])
    state = torch.get_rng_state()
    stack = sp.StackedEnsemble(models)
    stack.member(0)
    sp.input_grad(stack, X, LABELS)
    stack.member_grads(X, LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in stack.parameters())
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.zero_()
    for model, tensors in zip(models, before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, K)), r"1 \(LayerNorm"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, K), nn.Softmax(1)), r"2 \(Softmax"),
        (lambda: nn.Sequential(nn.Unflatten(3, (2, 4)), nn.Flatten(), nn.Linear(64, K)), r"0 \(Unflatten"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="circular")), "padding_mode 'circular'"),
        (lambda: Mixing(), r"softmax \(softmax\)"),
        (lambda: Branching(), "forward cannot be traced"),
    ],
)
def test_why_members_are_not_computed_at_once(network: Any, reason: str) -> None:
    (found,) = sp.StackedEnsemble([network(), network()]).reasons
    assert re.search(reason, found)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, K)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.linear(x.flatten(1)), 1)


class Branching(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) if x.sum() > 0 else self.linear(-x.flatten(1))


@pytest.mark.parametrize("kind", ["lenet5", "traced", "normalised", "first normalised", "groups first", "residual"])
def test_side_by_side_is_the_same_as_one_by_one(kind: str) -> None:
    """What devices other than the CPU compute with."""
    models, x = members(kind), inputs(kind)
    stack = sp.StackedEnsemble(models)
    logits = stack.net(x).view(len(x), M, K).transpose(0, 1)
    torch.testing.assert_close(logits, stack.member_logits(x))
    jacobian = sp.jacobian(stack.net, x).unflatten(1, (M, K))
    torch.testing.assert_close(jacobian, torch.stack([sp.jacobian(model, x) for model in models], 1))
    leaf = x.repeat(1, M, *[1] * (x.ndim - 2)).requires_grad_()  # not shared
    torch.testing.assert_close(stack.net(leaf), stack.net(x))


def test_quick_layers_are_torchs() -> None:
    torch.manual_seed(0)
    model = networks.cnn((1, 8, 8), K)
    ours, last = quick(model)
    assert last
    assert not quick(Traced()).channels_last
    assert [type(ours.get_submodule(name)) for name in ("relu2", "pool", "dropout1")] == [
        nn.Identity,
        ReluPool,
        Dropout,
    ]
    assert [*ours.state_dict()] == [*model.state_dict()]
    x = X.float().requires_grad_()
    for one in (model.eval(), ours.eval()):
        one(x).sum().backward()
    assert torch.equal(ours(x), model(x))
    for parameter, other in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


@given(st.floats(0, 1), st.booleans())
def test_dropout_keeps_its_share_and_the_mean(p: float, last: bool) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        x = torch.ones(10, 8, 25, 5)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        y = Dropout(p).train()(x)
    assert y.stride() == x.stride()
    deviation = 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-15
    assert abs(float((y == 0).double().mean()) - p) <= deviation
    kept = y[y != 0]
    assert kept.numel() == 0 or torch.allclose(kept, kept[0], rtol=0)
    assert kept.numel() == 0 or float(kept[0]) == pytest.approx(1 / (1 - p), rel=2**-15 / (1 - p + 1e-9))


def test_dropout_draws_independently_of_place() -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        kept = torch.stack([Dropout(0.25).train()(torch.ones(1000)) != 0 for _ in range(400)]).double()
    assert (kept.mean(0) - 0.75).abs().max() < 5 * (0.25 * 0.75 / 400) ** 0.5
    neighbours = torch.corrcoef(torch.stack([kept[:, i::8].flatten() for i in range(8)])).fill_diagonal_(0)
    assert neighbours.abs().max() < 5 / 50_000**0.5


def test_bad_members_and_inputs() -> None:
    with pytest.raises(ValueError, match="models must hold one model at least"):
        sp.StackedEnsemble([])
    with pytest.raises(ValueError, match=r"model 0 has linear1: Linear\(in_features=64, out_features=9.*model 1 has"):
        sp.StackedEnsemble([networks.mlp((64, 9, K)), networks.mlp((64, 8, K))])
    tied = [networks.mlp((8, 8, 8)) for _ in range(2)]
    for model in tied:
        model.linear2.weight = model.linear1.weight
    with pytest.raises(ValueError, match="must not use a weight in two places"):
        sp.StackedEnsemble(tied)
    with pytest.raises(ValueError, match=r"model 0 has flatten: Flatten.* where model 1 has conv1: Conv2d"):
        sp.StackedEnsemble([members("mlp")[0], members("lenet5")[0]])
    stack = sp.StackedEnsemble(members("mlp"))
    with pytest.raises(ValueError, match=r"StackedLinear of 3 members was given \(5, 16\); expected 64 features"):
        stack(X[:, :, :2])
