"""The fused kernel for small dense networks gives what the steps give; where it is not for a model it says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparring as sp
from sparring import losses, networks
from sparring.gradients import fused

X = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 5
TARGETS = (LABELS + 2) % 5


def perceptrons(count: int) -> list[nn.Module]:
    generator = torch.Generator().manual_seed(1)
    models = [networks.build("mlp", (1, 5, 5), 5, generator=generator).eval() for _ in range(count)]
    for model in models:
        with torch.no_grad():
            model.linear3.weight.mul_(10)
    return models


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel runs on a CPU as well, though it never pays there."""
    monkeypatch.setattr(fused, "worthwhile", lambda x: True)


@pytest.mark.parametrize("loss", losses.NAMES)
@pytest.mark.parametrize("combine", [None, "probs", "logits", "loss"])
def test_as_the_steps(combine: str | None, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptrons(1)[0] if combine is None else sp.Ensemble(perceptrons(3), combine, [1, 2, 3]).eval()
    lowered = sp.lower(model)
    for targets in (None, TARGETS):
        right = sp.input_grad(lowered, X, LABELS, loss, targets=targets)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "worthwhile", lambda x: True)
            result = fused.input_grad(lowered, X, LABELS, targets, loss)
        assert result is not None
        for a, b in zip((result.grad, result.loss, result.combined), right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize(
    "model",
    [
        networks.build("lenet5", (1, 5, 5), 5),
        nn.Sequential(nn.Flatten(), nn.Linear(25, 5), nn.ReLU()),
        nn.Sequential(nn.Linear(5, 5), nn.Flatten(), nn.Linear(25, 5)),
        nn.Sequential(nn.Flatten(), nn.Linear(25, 5).double()),
        nn.Sequential(nn.Flatten(), nn.Linear(25, 20_000), nn.Linear(20_000, 5)),
        nn.Sequential(nn.Flatten(), nn.Linear(25, 5), nn.GELU()),
        sp.Ensemble([networks.build("lenet5", (1, 5, 5), 5)] * 2),
    ],
)
def test_not_for_every_model(model: nn.Module) -> None:
    assert fused.input_grad(sp.lower(model.eval()), X, LABELS, None, "ce") is None


@pytest.mark.usefixtures("on_a_cpu")
def test_classes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\.\. 4"):
        fused.input_grad(sp.lower(perceptrons(1)[0]), X, LABELS + 1, None, "ce")


def test_never_on_a_cpu() -> None:
    assert not fused.worthwhile(X)
    assert fused.input_grad(sp.lower(perceptrons(1)[0]), X, LABELS, None, "ce") is None


@pytest.mark.cuda
@pytest.mark.parametrize("count", [1, 3])
def test_on_a_device(count: int) -> None:
    models = perceptrons(count)
    model = models[0] if count == 1 else sp.Ensemble(models).eval()
    right = sp.input_grad(model, X, LABELS)
    model.cuda()
    lowered = sp.lower(model)
    assert fused.input_grad(lowered, X.cuda(), LABELS.cuda(), None, "ce") is not None
    for a, b in zip(sp.input_grad(lowered, X.cuda(), LABELS.cuda()), right, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "pays"), [(0, False), (1, True), (512, True), (513, False)])
def test_one_kernel_pays_on_a_device_for_few_examples(count: int, pays: bool) -> None:
    """Told from what stands for a tensor there."""

    class Stand(list[None]):
        dtype, is_cpu, is_cuda = torch.float32, True, True

    there = Stand([None] * count)
    assert fused.worthwhile(there) == pays  # type: ignore[arg-type]
    assert not fused.worthwhile(torch.zeros(1, 2))
    there.dtype = torch.float16
    assert not fused.worthwhile(there)  # type: ignore[arg-type]


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_classes_of_any_integers(kind: torch.dtype) -> None:
    lowered = sp.lower(perceptrons(1)[0])
    wanted = fused.input_grad(lowered, X, LABELS, TARGETS, "dlr")
    found = fused.input_grad(lowered, X, LABELS.to(kind), TARGETS.to(kind), "dlr")
    assert wanted is not None
    assert found is not None
    torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=0)
