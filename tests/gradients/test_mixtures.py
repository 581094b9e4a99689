"""Mixing the members' logits, the step that does it, and losses of a mixture, against the formulas written out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparring import losses
from sparring.gradients.mixture import Combine, loss_grad, mix


def named(value: object) -> str:
    """What a parameter is called, in every process the same."""
    return str(getattr(value, "__name__", value))


M, B, K = 3, 5, 4
COMBINES = ("probs", "logits", "loss", "vote")
WEIGHTS = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(logits: Tensor, weights: Tensor, combine: str) -> Tensor:
    """Example by example, class by class."""
    rows = []
    for b in range(logits.shape[1]):
        probs = [logits[m, b].softmax(0) for m in range(len(logits))]
        if combine == "logits":
            rows.append(sum(w * z for w, z in zip(weights, logits[:, b], strict=True)))
        elif combine == "loss":
            rows.append(sum(w * p.log() for w, p in zip(weights, probs, strict=True)))
        else:
            mean = sum(w * p for w, p in zip(weights, probs, strict=True))
            if combine == "vote":
                votes = torch.zeros(logits.shape[2], dtype=torch.float64)
                for w, p in zip(weights, probs, strict=True):
                    votes[int(p.argmax())] += w
                mean = votes + 1e-6 * mean
            rows.append(mean.log())
    return torch.stack(rows)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("weights", WEIGHTS, ids=named)
def test_mix(weights: Tensor, combine: str) -> None:
    logits = normal(M, B, K)
    torch.testing.assert_close(mix(logits, weights, combine), mixed(logits, weights, combine))
    single = mix(logits.float(), weights, combine)
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), mixed(logits, weights, combine), rtol=1e-5, atol=1e-5)


def test_equal_votes_are_told_apart_by_the_mean() -> None:
    logits = torch.tensor([[[2.0, 0.0, -3.0]], [[0.0, 3.0, -3.0]]], dtype=torch.float64)
    found = mix(logits, torch.tensor([0.5, 0.5]).double(), "vote")[0]
    assert int(found.argmax()) == 1
    assert float(found[0]) == pytest.approx(math.log(0.5), abs=1e-5)
    assert -20 < float(found[2]) < -14, "a class without votes has a millionth of its mean probability"


@pytest.mark.parametrize("scalars", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=named)
@pytest.mark.parametrize("combine", COMBINES)
def test_the_step(combine: str, dtype: torch.dtype, scalars: int) -> None:
    """Backward is that of the mean probability where votes have no gradient."""
    weights = WEIGHTS[1]
    step = Combine(SimpleNamespace(combine=combine, weights=weights))
    logits = normal(M, B, K).to(dtype)
    exact = logits.double()
    shown, saved = step.forward(logits)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(shown.double(), mixed(exact, weights, combine), rtol=tolerance, atol=tolerance)
    assert shown.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    smooth = "probs" if combine == "vote" else combine
    _, back = torch.func.vjp(lambda z: mix(z, weights, smooth), exact)
    seeds = normal(B * scalars, K, seed=1)
    found = step.backward(seeds.to(shown.dtype), saved)
    assert found.shape == (M, B * scalars, K)
    assert found.dtype is dtype
    for scalar in range(scalars):
        (towards,) = back(seeds[scalar::scalars])
        torch.testing.assert_close(found[:, scalar::scalars].double(), towards, rtol=tolerance, atol=4 * tolerance)


def squares(logits: Tensor, classes: Tensor) -> Tensor:
    return -logits.gather(1, classes[:, None])[:, 0].square()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=named)
@pytest.mark.parametrize("loss", [*losses.NAMES, squares], ids=named)
@pytest.mark.parametrize("combine", [None, *COMBINES])
def test_losses_of_a_mixture(combine: Any, loss: Any, dtype: torch.dtype, targeted: bool, inference: bool) -> None:
    weights = WEIGHTS[1]
    mixture = None if combine is None else Combine(SimpleNamespace(combine=combine, weights=weights))
    with torch.inference_mode(inference):
        logits = (normal(B, K) if combine is None else normal(M, B, K)).to(dtype)
        labels = torch.arange(B) % K
        targets = (labels + 1) % K if targeted else None
        found = loss_grad(loss, logits, mixture, labels, targets)
    exact, classes = logits.double().clone().requires_grad_(), labels.clone()
    aims = None if targets is None else targets.clone()
    if combine is None:
        combined = exact
        value = losses.value(loss, exact, classes, aims)
    elif combine == "loss":
        combined = mix(exact, weights, "loss")
        value = sum(w * losses.value(loss, one, classes, aims) for w, one in zip(weights, exact, strict=True))
    else:
        combined = mix(exact, weights, combine)
        value = losses.value(loss, mix(exact, weights, "probs" if combine == "vote" else combine), classes, aims)
    (grad,) = torch.autograd.grad(value.sum(), exact)
    tolerance = 1e-11 if dtype is torch.float64 else 2e-4
    for a, b in ((found.loss, value), (found.grad, grad), (found.combined, combined)):
        assert not a.requires_grad
        torch.testing.assert_close(a.double(), b.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("labels", "targets", "match"), [
    ([0, K, 0, 0, 0], None, "labels must lie in 0 ... 3"), ([0] * 5, [0, 0, -1, 0, 0], "targets must lie in 0 ... 3"),
    ([0] * 4, None, "labels has shape"),
])  # fmt: skip
def test_classes_are_checked(labels: list[int], targets: list[int] | None, match: str) -> None:
    for logits, mixture in (
        (normal(B, K), None), (normal(M, B, K), Combine(SimpleNamespace(combine="probs", weights=WEIGHTS[0]))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            loss_grad("ce", logits, mixture, torch.tensor(labels), None if targets is None else torch.tensor(targets))


def test_a_mixture_of_probabilities_is_that_of_one_model_where_there_is_one() -> None:
    logits = normal(1, B, K)
    for combine in ("probs", "loss"):
        torch.testing.assert_close(mix(logits, torch.ones(1).double(), combine), F.log_softmax(logits[0], -1))


@pytest.mark.parametrize("combine", COMBINES)
def test_weights_that_were_made_in_inference_mode(combine: str) -> None:
    """Autograd cannot keep those."""
    with torch.inference_mode():
        weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mixture = Combine(SimpleNamespace(combine=combine, weights=weights))
    found = loss_grad(squares, normal(M, B, K), mixture, torch.arange(B) % K, None)
    plain = Combine(SimpleNamespace(combine=combine, weights=WEIGHTS[1]))
    wanted = loss_grad(squares, normal(M, B, K), plain, torch.arange(B) % K, None)
    torch.testing.assert_close(found.grad, wanted.grad)
    torch.testing.assert_close(found.loss, wanted.loss)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("loss", ["ce", "dlr", squares], ids=named)
def test_classes_of_any_integers(loss: Any, kind: torch.dtype) -> None:
    labels, targets = torch.arange(B) % K, (torch.arange(B) + 1) % K
    for logits in (normal(B, K), normal(B, K).bfloat16()):
        wanted = loss_grad(loss, logits, None, labels, targets)
        found = loss_grad(loss, logits, None, labels.to(kind), targets.to(kind))
        torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=0)
        plain = loss_grad(loss, logits, None, labels.to(kind), None)
        torch.testing.assert_close(plain.loss, loss_grad(loss, logits, None, labels, None).loss, rtol=0, atol=0)
