"""`sp.jacobian`: against autograd row by row, subsets of classes, splitting, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparring as sp
from sparring import networks


def row_by_row(model: Any, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    rows = [torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] for k in range(logits.shape[1])]
    return torch.stack(rows, 1)


def network(name: str) -> nn.Module:
    return networks.build(name, (2, 10, 10), 5).double().eval()


X = torch.rand(6, 2, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ["mlp", "lenet5", "cnn"])
def test_row_by_row(name: str) -> None:
    model = network(name)
    right = row_by_row(model, X)
    for form in (model, sp.lower(model), lambda x: model(x)):
        ours = sp.jacobian(form, X)
        assert not ours.requires_grad
        torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("classes", [[3], [4, 0, 4], torch.tensor([1, 2]), []])
@pytest.mark.parametrize("lowered", [True, False])
def test_some_classes(classes: Any, lowered: bool) -> None:
    model = network("lenet5")
    right = row_by_row(model, X)[:, torch.as_tensor(classes, dtype=torch.long)]
    ours = sp.jacobian(model if lowered else lambda x: model(x), X, classes)
    assert ours.shape == right.shape
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
@pytest.mark.parametrize("options", [{"chunk_size": 1}, {"chunk_size": 3}, {"memory": 1}, {"memory": 250_000}])
def test_in_parts(name: str, options: dict[str, int]) -> None:
    model = network(name)
    torch.testing.assert_close(sp.jacobian(model, X, **options), sp.jacobian(model, X), rtol=1e-12, atol=1e-14)


def test_ensemble() -> None:
    for combine in ("probs", "logits", "loss"):
        for members in (["mlp"] * 3, ["mlp", "lenet5"]):
            ensemble = sp.Ensemble([network(name) for name in members], combine).eval()
            assert sp.lower(ensemble).is_lowered
            torch.testing.assert_close(sp.jacobian(ensemble, X), row_by_row(ensemble, X), rtol=1e-10, atol=1e-13)


def test_bf16() -> None:
    model = network("mlp").float()
    ours, right = sp.jacobian(model, X.float(), precision="bf16"), sp.jacobian(model, X.float())
    assert ours.dtype is torch.float32
    assert (ours - right).norm() < 0.1 * right.norm()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": [5]}, r"classes must lie in 0 ... 4; got \[5\]"),
        ({"classes": [-1]}, "classes must lie in 0 ... 4"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"precision": "half"}, "precision must be"),
        ({"model": lambda x: x}, r"logits \(B, K\)"),
    ],
)
def test_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sp.jacobian(**({"model": network("mlp"), "x": X} | wrong))
