"""`sp.input_grad` against autograd; what it leaves alone, independence of the batch, splitting, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring import data, losses, networks
from sparring.gradients.lowered import _bytes

NAMES = ("mlp", "lenet5", "cnn")


def images(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 1, 12, 12, generator=generator, dtype=dtype), torch.arange(count) % 7


def network(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """With logits some units apart, as a trained network's are."""
    model = networks.build(name, (1, 12, 12), 7).to(dtype).eval()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(30)
    return model


class Opaque(nn.Module):
    """A network that cannot be lowered: it looks at its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if bool((x < 9).any()) else x


def by_autograd(model: Any, x: Tensor, labels: Tensor, loss: Any, targets: Tensor | None = None) -> sp.InputGrad:
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    value = losses.evaluate(loss, logits, labels, targets)
    return sp.InputGrad(torch.autograd.grad(value.sum(), leaf)[0], value.detach(), logits.detach())


def squares(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.square().sum(1) + logits.gather(1, classes[:, None])[:, 0]


@pytest.mark.parametrize("loss", [*losses.NAMES, squares])
@pytest.mark.parametrize("name", NAMES)
def test_is_the_gradient(name: str, loss: Any) -> None:
    model = network(name, torch.float64)
    x, labels = images(5, torch.float64)
    for lowered in (sp.lower(model), sp.lower(Opaque(model))):
        for targets in (None, (labels + 2) % 7):
            ours, right = (
                sp.input_grad(lowered, x, labels, loss, targets=targets),
                by_autograd(model, x, labels, loss, targets),
            )
            for a, b in zip(ours, right, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
                assert not a.requires_grad
    assert sp.lower(model).is_lowered
    assert not sp.lower(Opaque(model)).is_lowered


@pytest.mark.parametrize("name", NAMES)
def test_in_float32_as_exact_as_autograd(name: str) -> None:
    model = network(name, torch.float64)
    x, labels = images(32, torch.float64)
    right = by_autograd(model, x, labels, "ce").grad
    model.float()
    ours = sp.input_grad(model, x.float(), labels).grad
    theirs = by_autograd(model, x.float(), labels, "ce").grad
    scale = right.abs().max()
    assert (ours - right).abs().max() <= 2 * (theirs - right).abs().max() + 1e-6 * scale


@pytest.mark.parametrize("opaque", [False, True])
def test_leaves_everything_alone(opaque: bool) -> None:
    inner = network("cnn")
    model = (Opaque(inner) if opaque else inner).eval()
    inner.conv1.weight.grad = torch.ones_like(inner.conv1.weight)
    inner.linear1.weight.requires_grad_(False)
    x, labels = images(4)
    x.requires_grad_()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    sp.input_grad(model, x, labels)
    sp.jacobian(model, x)
    assert x.grad is None
    assert [name for name, p in inner.named_parameters() if p.grad is not None] == ["conv1.weight"]
    assert bool((inner.conv1.weight.grad == 1).all())
    assert [name for name, p in inner.named_parameters() if not p.requires_grad] == ["linear1.weight"]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(module.training for module in model.modules())


def test_leaves_the_mode_as_it_is() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 7), nn.BatchNorm1d(7)).train()
    x, labels = images(6)
    right = by_autograd(model, x, labels, "ce")
    ours = sp.input_grad(model, x, labels)
    assert model.training
    torch.testing.assert_close(ours.grad, right.grad)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("opaque", [False, True])
def test_in_every_grad_mode(mode: Any, opaque: bool) -> None:
    model: nn.Module = Opaque(network("lenet5")) if opaque else network("lenet5")
    x, labels = images(4)
    right = sp.input_grad(model, x, labels)
    with mode():
        for loss in ("ce", squares):
            inside = sp.input_grad(model, x.clone(), labels.clone(), loss)
            jacobian = sp.jacobian(model, x.clone())
        inside = sp.input_grad(model, x.clone(), labels.clone())
    assert torch.equal(inside.grad, right.grad)
    assert torch.equal(jacobian, sp.jacobian(model, x))


def test_gradient_of_nothing_is_zero() -> None:
    x, labels = images(3)
    for model in (lambda z: z.detach().flatten(1)[:, :7], lambda z: torch.ones(3, 7, requires_grad=True)):
        assert not sp.input_grad(model, x, labels).grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_single(name: str) -> None:
    model = network(name)
    for count in (0, 1):
        x, labels = images(count)
        result = sp.input_grad(model, x, labels)
        assert result.grad.shape == x.shape
        assert result.loss.shape == (count,)
        assert result.logits.shape == (count, 7)
        assert sp.jacobian(model, x).shape == (count, 7, 1, 12, 12)


@pytest.mark.parametrize("name", NAMES)
def test_examples_do_not_depend_on_the_batch(name: str) -> None:
    """To the bit at one batch size; where another one changes the order of summation, to a few ulps."""
    model = network(name)
    x, labels = images(64)
    whole = sp.input_grad(model, x, labels)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = sp.input_grad(model, x[order], labels[order])
    assert torch.equal(shuffled.grad, whole.grad[order])
    ulp = 2.0**-23 * whole.grad.abs().amax((1, 2, 3), keepdim=True)
    for count in (1, 7, 16, 33):
        part = sp.input_grad(model, x[:count], labels[:count])
        assert bool(((part.grad - whole.grad[:count]).abs() <= 16 * ulp[:count]).all())


@pytest.mark.parametrize("name", NAMES)
def test_split_to_fit_into_memory(name: str) -> None:
    model = network(name, torch.float64)
    x, labels = images(9, torch.float64)
    targets = (labels + 1) % 7
    whole = sp.input_grad(model, x, labels, "margin", targets=targets)
    for memory in (1, 200_000):
        parts = sp.input_grad(model, x, labels, "margin", targets=targets, memory=memory)
        for a, b in zip(parts, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_memory_is_kept_to() -> None:
    """What a lowered forward pass keeps of the batch is below the budget."""
    model = network("lenet5")
    x, _ = images(64)
    lowered = sp.lower(model)
    rows = lowered.examples_in(2**17, x, "float32")
    assert 1 < rows < 64
    kept = [_bytes(lowered.forward(x[:count])[1]) for count in (1, rows)]  # both with the weights
    assert kept[1] - kept[0] <= 2**17


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opaque", [False, True])
def test_bf16(name: str, opaque: bool) -> None:
    model = network(name)
    x, labels = images(16)
    right = sp.input_grad(model, x, labels)
    half = sp.input_grad(Opaque(model) if opaque else model, x, labels, precision="bf16")
    assert {t.dtype for t in half} == {torch.float32}
    cosine = F.cosine_similarity(half.grad.flatten(1), right.grad.flatten(1))
    assert float(cosine.median()) > 0.98
    assert (half.loss - right.loss).abs().max() < 0.05 * (1 + right.loss.abs().max())


@pytest.mark.shared
@pytest.mark.parametrize(("name", "file"), [("mlp-300-100", "mnist_mlp"), ("lenet5", "mnist_lenet5")])
def test_on_trained_networks(name: str, file: str, shared: Path) -> None:
    model = networks.build(name, (1, 28, 28), 10)
    networks.load_weights(model, shared / "models" / f"{file}.safetensors")
    test = data.load("mnist", shared / "data" / "mnist", "test")
    x, labels = test.images[:64].double(), test.labels[:64]
    model.double().eval()
    assert sp.lower(model).is_lowered
    for loss in losses.NAMES:
        right = by_autograd(model, x, labels, loss).grad
        torch.testing.assert_close(sp.input_grad(model, x, labels, loss).grad, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch tensor, not list"),
        ({"x": torch.ones(2, 1, 12, 12, dtype=torch.long)}, TypeError, "x must be floating-point, not int64"),
        ({"x": torch.tensor(1.0)}, ValueError, "batch dimension"),
        ({"labels": torch.tensor([0, 7])}, ValueError, r"labels must lie in 0 ... 6.*measured 0 ... 7"),
        ({"labels": torch.tensor([0, 1, 2])}, ValueError, r"labels has shape \(3,\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "labels must be integers"),
        ({"targets": torch.tensor([0])}, ValueError, r"targets has shape \(1,\)"),
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"precision": "fp16"}, ValueError, "precision must be 'float32' or 'bf16'"),
        ({"memory": 0}, ValueError, "memory must be at least 1 byte"),
        ({"model": lambda x: x}, ValueError, r"logits \(B, K\)"),
        ({"model": lambda x: 3}, TypeError, "must return a tensor of logits, not int"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), "loss": "dlr"}, ValueError, "at least 3 classes"),
    ],
)
def test_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"model": network("mlp"), "x": images(2)[0], "labels": torch.tensor([0, 1])}
    with pytest.raises(error, match=message):
        sp.input_grad(**(good | wrong))
