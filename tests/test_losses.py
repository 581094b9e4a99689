"""The losses by their definitions, one example at a time, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring import losses

LOGITS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
LABELS = torch.arange(12) % 6
TARGETS = (LABELS + 1 + torch.arange(12) % 5) % 6


def by_definition(loss: str, z: list[float], y: int, t: int | None) -> float:
    p = [math.exp(a) / sum(map(math.exp, z)) for a in z]
    first, _, third, fourth, *_ = sorted(z, reverse=True)
    wanted = y if t is None else t
    others = max(a for j, a in enumerate(z) if j != wanted)
    plain = {
        "ce": -math.log(p[wanted]),
        "margin": others - z[wanted],
        "prob": -p[wanted],
        "dlr": (others - z[wanted]) / (first - third),
    }
    if t is None:
        return plain[loss]
    return (z[t] - z[y]) / (first - (third + fourth) / 2) if loss == "dlr" else -plain[loss]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", losses.NAMES)
def test_by_definition(loss: str, targeted: bool) -> None:
    targets = TARGETS if targeted else None
    expected = [
        by_definition(loss, z.tolist(), int(y), int(t) if targeted else None)
        for z, y, t in zip(LOGITS, LABELS, TARGETS, strict=True)
    ]
    result = losses.evaluate(loss, LOGITS, LABELS, targets)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    in_half = losses.evaluate(loss, LOGITS.bfloat16(), LABELS, targets)
    assert in_half.dtype is torch.float32


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", losses.NAMES)
def test_gradient(loss: str, targeted: bool) -> None:
    leaf = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: losses.evaluate(loss, z, LABELS, TARGETS if targeted else None), leaf)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["ce", "margin", "prob"])
def test_ascending_fools(loss: str, targeted: bool) -> None:
    """Moving the logits along the gradient lowers the label's rank, or raises the target's."""
    leaf = LOGITS.clone().requires_grad_()
    losses.evaluate(loss, leaf, LABELS, TARGETS if targeted else None).sum().backward()
    moved = LOGITS + 1e-3 * leaf.grad
    goal = TARGETS if targeted else LABELS

    def lead(z: Tensor) -> Tensor:
        others = z.scatter(1, goal[:, None], -math.inf).max(1).values
        return z.gather(1, goal[:, None])[:, 0] - others

    change = lead(moved) - lead(LOGITS)
    assert bool((change > 0 if targeted else change < 0).all())


def test_the_ratio_of_differences_does_not_see_shift_and_scale() -> None:
    for targets in (None, TARGETS):
        plain, moved = (losses.evaluate("dlr", z, LABELS, targets) for z in (LOGITS, 100 * LOGITS - 7))
        torch.testing.assert_close(plain, moved, rtol=1e-10, atol=1e-12)


def test_equal_logits_have_finite_losses() -> None:
    for loss in losses.NAMES:
        assert losses.evaluate(loss, torch.zeros(2, 5), torch.tensor([0, 4])).isfinite().all()


def test_a_callable_is_given_targets_where_there_are_any() -> None:
    def score(logits: Tensor, classes: Tensor) -> Tensor:
        return logits.gather(1, classes[:, None])[:, 0]

    assert torch.equal(losses.evaluate(score, LOGITS, LABELS), score(LOGITS, LABELS))
    assert torch.equal(losses.evaluate(score, LOGITS, LABELS, TARGETS), score(LOGITS, TARGETS))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integers_are_labels(dtype: torch.dtype) -> None:
    assert torch.equal(losses.evaluate("dlr", LOGITS, LABELS.to(dtype)), losses.evaluate("dlr", LOGITS, LABELS))


GOOD: dict[str, Any] = {"loss": "ce", "logits": LOGITS, "labels": LABELS, "targets": None}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"loss": "l2"}, ValueError, "loss must be one of ce, margin, dlr, prob or a callable; got 'l2'"),
        ({"loss": 3}, TypeError, "not int"),
        ({"logits": LOGITS[0]}, ValueError, r"\(B, K\)"),
        ({"logits": LOGITS.long()}, ValueError, "floating-point"),
        ({"logits": LOGITS[:, :2], "loss": "dlr"}, ValueError, "at least 3 classes"),
        ({"logits": LOGITS[:, :3], "loss": "dlr", "targets": LABELS % 3}, ValueError, "at least 4 classes"),
        ({"logits": LOGITS[:, :1], "loss": "margin"}, ValueError, "at least 2 classes"),
        ({"labels": LABELS.double()}, TypeError, "labels must be integers"),
        ({"labels": LABELS > 2}, TypeError, "labels must be integers"),
        ({"labels": LABELS.tolist()}, TypeError, "labels must be a tensor"),
        ({"labels": LABELS[1:]}, ValueError, r"labels has shape \(11,\)"),
        ({"labels": LABELS[:, None]}, ValueError, r"labels has shape \(12, 1\)"),
        ({"labels": LABELS + 1}, ValueError, r"labels must lie in 0 ... 5.*measured 1 ... 6"),
        ({"targets": LABELS - 1}, ValueError, r"targets must lie in 0 ... 5.*measured -1 ... 4"),
        ({"labels": LABELS.to("meta")}, ValueError, "on device 'meta'"),
        ({"loss": lambda z, y: z.sum()}, ValueError, "one number per example"),
        ({"loss": lambda z, y: y}, ValueError, "one number per example"),
        ({"loss": lambda z, y: 1.0}, ValueError, "float"),
    ],
)
def test_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        losses.evaluate(**(GOOD | wrong))


def test_bernoulli_by_the_formula() -> None:
    p = torch.tensor([[0.9, 0.2, 0.5], [0.1, 1.0, 1e-8]], dtype=torch.float64)
    found = losses.bernoulli(p.log(), torch.tensor([0, 2]))
    first = -math.log(0.9) - math.log(0.8) - math.log(0.5)
    assert float(found[0]) == pytest.approx(first, rel=1e-6)
    assert found.isfinite().all()  # though p = 1 of a wrong class is impossible to be right
    assert found[1] > 25
    log_p = p.log().requires_grad_()
    (grad,) = torch.autograd.grad(losses.bernoulli(log_p, torch.tensor([0, 2])).sum(), log_p)
    assert float(grad[0, 0]) == pytest.approx(-1)
    assert float(grad[0, 1]) == pytest.approx(0.2 / 0.8)
