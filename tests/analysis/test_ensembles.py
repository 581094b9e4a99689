"""How members relate, and what they decide together: constructed cases with known answers, and float64 oracles."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparring as sp
from sparring import attacks, networks
from sparring.analysis import (
    Agreement,
    accuracy_coverage,
    agreement,
    gradient_correlation,
    votes,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


@given(st.integers(2, 5), st.integers(2, 130), st.integers(0, 99))
def test_correlation_is_numpys(members: int, examples: int, seed: int) -> None:
    correct = torch.rand(members, examples, generator=seeded(seed)) > 0.4
    found = Agreement.from_correct(correct)
    right = correct.double().numpy()
    np.testing.assert_allclose(found.covariance, np.cov(right, bias=True), atol=1e-12)
    for i in range(members):
        for j in range(members):
            wrong = [set(np.flatnonzero(~correct[m].numpy())) for m in (i, j)]
            either = wrong[0] | wrong[1]
            assert found.jaccard[i, j] == pytest.approx(len(wrong[0] & wrong[1]) / len(either) if either else 1)
            if i != j and right[i].std() * right[j].std() > 0:
                assert found.correlation[i, j] == pytest.approx(np.corrcoef(right[i], right[j])[0, 1], abs=1e-12)
    assert found.correlation.isfinite().all()
    assert found.correlation.diagonal().tolist() == [1] * members


def test_identical_disjoint_and_perfect_members() -> None:
    correct = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    found = Agreement.from_correct(correct)
    assert found.accuracy.tolist() == [0.5, 0.5, 0.5, 1]
    assert found.correlation.tolist() == [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 1]]
    assert found.jaccard.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    mean, spread = found.between(found.jaccard)
    assert mean == pytest.approx(1 / 6)
    assert spread == pytest.approx((1 / 6) ** 0.5)
    assert math.isnan(Agreement.from_correct(correct[:1]).between(correct[:1, :1].double())[0])


def test_agreement_of_modules_an_ensemble_and_a_stack() -> None:
    models = [networks.build("mlp", (1, 4, 4), 3, generator=seeded(i)) for i in range(3)]
    x, y = torch.rand(70, 1, 4, 4, generator=seeded()), torch.arange(70) % 3
    wanted = torch.stack([model(x).argmax(1) == y for model in models])
    for group in (models, sp.Ensemble(models), sp.StackedEnsemble(models)):
        assert torch.equal(agreement(group, x, y).correct, wanted)
    with pytest.raises(ValueError, match="models must hold one model at least"):
        agreement([], x, y)
    for measure in (agreement, gradient_correlation):
        with pytest.raises(ValueError, match=r"labels one class for each; got shapes \(70, 1, 4, 4\) and \(1,\)"):
            measure(models, x, y[:1])
    with pytest.raises(ValueError, match=r"correct must be bool \(M, N\) with N > 0"):
        Agreement.from_correct(torch.zeros(2, 0, dtype=torch.bool))


def test_gradients_of_linear_models() -> None:
    """Of two classes, the gradient points along the difference of the rows, whatever the input."""
    models = [linear([[0, 0], [1, 0]]), linear([[0, 0], [5, 0]]), linear([[0, 0], [0, 2]]), linear([[0, 0], [-1, -1]])]
    models.append(linear([[1, 1], [1, 1]]))
    x, y = torch.rand(9, 2, generator=seeded()), torch.arange(9) % 2
    found = gradient_correlation(models, x, y)
    half = 0.5**0.5
    wanted = [[1, 1, 0, -half, 0], [1, 1, 0, -half, 0], [0, 0, 1, -half, 0], [-half, -half, -half, 1, 0], [0] * 5]
    torch.testing.assert_close(found.mean, torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0)
    assert found.std.abs().max() < 1e-3
    assert found.zeros.tolist() == [0, 0, 0, 0, 9]


def test_gradient_correlation_in_parts_and_by_autograd() -> None:
    models = [networks.build("lenet5", (1, 8, 8), 3, generator=seeded(i)).train() for i in range(3)]
    x, y = torch.rand(7, 1, 8, 8, generator=seeded()), torch.arange(7) % 3
    state = torch.get_rng_state()
    whole, parts = gradient_correlation(models, x, y), gradient_correlation(models, x, y, memory=2000)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(model.training for model in models)
    grads = []
    for model in models:
        leaf = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model.eval()(leaf), y, reduction="sum")
        grads.append(nn.functional.normalize(torch.autograd.grad(loss, leaf)[0].flatten(1).double(), dim=1))
    cosine = torch.stack([torch.stack([(a * b).sum(1) for b in grads]) for a in grads])
    for found in (whole, parts):
        torch.testing.assert_close(found.mean, cosine.mean(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.std, cosine.std(2, correction=0), atol=1e-3, rtol=0)
    assert found.between()[0] == pytest.approx(float(cosine.mean(2)[[0, 0, 1], [1, 2, 2]].mean()), abs=1e-5)


def member_logits(probs: list[list[list[float]]]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def test_votes_by_hand() -> None:
    """Two of three members name class 0 without conviction, the third class 1 with it."""
    logits = member_logits([[[0.5, 0.4, 0.1]], [[0.5, 0.4, 0.1]], [[0.01, 0.98, 0.01]]])
    majority, probs = votes(logits), votes(logits, "probs")
    assert majority.label.tolist() == [0]
    assert probs.label.tolist() == [1]
    assert majority.confidence.item() == pytest.approx(2 / 3)
    assert majority.disagreement.item() == pytest.approx(1 / 3)
    assert probs.confidence.item() == pytest.approx((0.4 + 0.4 + 0.98) / 3)
    assert probs.disagreement.item() == pytest.approx(2 / 3)
    mean = np.array([1.01, 1.78, 0.21]) / 3
    rows = np.array([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.01, 0.98, 0.01]])
    assert majority.divergence.item() == pytest.approx((rows * np.log(rows / mean)).sum(1).mean())
    weighted = votes(logits, weights=torch.tensor([0.1, 0.1, 0.8]))
    assert weighted.label.tolist() == [1]
    assert weighted.confidence.item() == pytest.approx(0.8)
    tie = votes(logits[1:])
    assert tie.label.tolist() == [1]  # the larger mean probability
    assert tie.confidence.item() == pytest.approx(0.5)
    logit_mean = votes(logits, "logits")
    assert logit_mean.label.item() == int(logits.mean(0).argmax())


def test_unanimous_members_do_not_disagree() -> None:
    logits = torch.randn(1, 20, 5, generator=seeded()).expand(4, 20, 5)
    for how in ("majority", "probs", "logits", "loss"):
        found = votes(logits, how)  # type: ignore[arg-type]
        assert torch.equal(found.label, logits[0].argmax(1))
        assert found.disagreement.abs().max() < 1e-12
        assert found.divergence.abs().max() < 1e-12
    with pytest.raises(ValueError, match="how must be one of majority, probs, logits, loss; got 'mean'"):
        votes(logits, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"member_logits must have shape \(M, B, K\)"):
        votes(logits[0])
    with pytest.raises(ValueError, match="weights must be 4 numbers >= 0"):
        votes(logits, weights=torch.tensor([1.0, -1.0, 1.0, 1.0]))


def test_votes_are_those_of_the_ensemble() -> None:
    models = [networks.build("mlp", (1, 4, 4), 3, generator=seeded(i)) for i in range(4)]
    x = torch.rand(50, 1, 4, 4, generator=seeded())
    for combine, how in (("vote", "majority"), ("probs", "probs"), ("logits", "logits"), ("loss", "loss")):
        ensemble = sp.Ensemble(models, combine)
        assert torch.equal(ensemble(x).argmax(1), votes(ensemble.member_logits(x), how).label)  # type: ignore[arg-type]


def test_an_ensemble_abstains() -> None:
    x = torch.rand(200, 1, 4, 4, generator=seeded())
    models = [networks.build("mlp", (1, 4, 4), 3, generator=seeded(i)) for i in range(4)]
    for combine, how in (("vote", "majority"), ("probs", "probs"), ("logits", "logits"), ("loss", "loss")):
        found = votes(sp.Ensemble(models).member_logits(x), how)  # type: ignore[arg-type]
        limits = {"confidence": float(found.confidence.median()), "disagreement": 0.3, "divergence": 0.01}
        decided = [sp.Ensemble(models, combine, abstain=some).decide(x) for some in (None, limits)]
        assert torch.equal(decided[0], found.label)
        sure = (found.confidence >= limits["confidence"]) & (found.disagreement <= 0.3) & (found.divergence <= 0.01)
        assert torch.equal(decided[1], torch.where(sure, found.label, -1))
        assert sp.StackedEnsemble(models, combine, abstain={"confidence": 1.1}).decide(x).unique().tolist() == [-1]
    with pytest.raises(ValueError, match="abstain must have limits of confidence, disagreement, divergence; got doubt"):
        sp.Ensemble(models, abstain={"doubt": 1})


def test_coverage_by_hand() -> None:
    confidence, correct = torch.tensor([0.9, 0.5, 0.7, 0.7]), torch.tensor([True, False, True, False])
    curve = accuracy_coverage(confidence, correct)
    assert curve.coverage.tolist() == [0.25, 0.75, 1]
    assert curve.accuracy.tolist() == pytest.approx([1, 2 / 3, 0.5])
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert curve.area == pytest.approx(0.25 + 0.5 * (1 + 2 / 3) / 2 + 0.25 * (2 / 3 + 0.5) / 2)
    assert [curve.at(share) for share in (0, 0.25, 0.3, 0.75, 1)] == pytest.approx([1, 1, 2 / 3, 2 / 3, 0.5])


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 99))
def test_coverage_is_a_count(count: int, distinct: int, seed: int) -> None:
    confidence = torch.randint(distinct, (count,), generator=seeded(seed)).float()
    correct = torch.rand(count, generator=seeded(seed)) > 0.5
    curve = accuracy_coverage(confidence, correct)
    for share, accuracy, threshold in zip(curve.coverage, curve.accuracy, curve.threshold, strict=True):
        answered = confidence >= threshold
        assert float(share) == pytest.approx(float(answered.double().mean()))
        assert float(accuracy) == pytest.approx(float(correct[answered].double().mean()))
    assert curve.coverage[-1] == 1
    assert 0 <= curve.area <= 1


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [(torch.ones(2), torch.ones(3) > 0), (torch.ones(2), torch.ones(2)), (torch.ones(0), torch.ones(0) > 0),
     (torch.tensor([torch.nan]), torch.ones(1) > 0)],
)  # fmt: skip
def test_bad_confidences(confidence: Tensor, correct: Tensor) -> None:
    with pytest.raises(ValueError, match="confidence"):
        accuracy_coverage(confidence, correct)


def test_transfer_between_linear_models(tmp_path: Path) -> None:
    """The sign step against one model fools it and its like, not the one that looks elsewhere, and its opposite not."""
    same, scaled, elsewhere = linear([[-1, 0], [1, 0]]), linear([[-3, 0], [3, 0]]), linear([[0, -1], [0, 1]])
    x = torch.tensor([[0.1, 0.1], [0.2, 0.2], [-0.1, -0.1], [-0.2, -0.2]])
    y = torch.tensor([1, 1, 0, 0])
    attack = partial(attacks.fgsm, eps=0.15, bounds=(-1, 1))
    matrix = sp.transfer_matrix({"a": same, "b": elsewhere}, {"a": same, "c": scaled, "b": elsewhere}, x, y, attack)
    assert matrix.accuracy.tolist() == [[0.5, 0.5, 1], [1, 1, 0.5]]
    assert matrix.clean.tolist() == [1, 1, 1]
    assert matrix.flipped.tolist() == [[0.5, 0.5, 0], [0, 0, 0.5]]
    assert matrix.count == 4
    low, high = matrix.interval()[0, 0].tolist()
    assert (low, high) == pytest.approx((0.15, 0.85), abs=5e-3)  # Wilson, 2 of 4
    assert matrix.interval()[0, 2].tolist() == pytest.approx((0.5101, 1), abs=1e-4)
    assert "| a | 50.0 | 50.0 | 0.0 |" in matrix.table()
    assert matrix.to_json()["interval"][0][0] == [low, high]
    matrix.plot(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 1000
    whole = partial(attack, return_result=True)
    by_number = sp.transfer_matrix([same, elsewhere], None, x, y, whole)
    assert by_number.targets == ["0", "1"]
    assert torch.equal(by_number.accuracy, matrix.accuracy[:, [0, 2]])


def test_sources_are_held_still_and_let_go() -> None:
    model = nn.Sequential(linear([[-1, 0], [1, 0]]), nn.Dropout(0.9))
    seen = []

    def attack(source: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append((source.training, any(parameter.requires_grad for parameter in source.parameters())))
        return x

    x, y = torch.tensor([[0.5, 0.0]]), torch.tensor([1])
    assert sp.transfer_matrix([model], None, x, y, attack).accuracy.tolist() == [[1]]
    assert seen == [(False, False)]
    assert model.training
    assert model[1].training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_targets_without_a_right_answer_have_no_rate() -> None:
    model, opposite = linear([[-1, 0], [1, 0]]), linear([[1, 0], [-1, 0]])
    x, y = torch.tensor([[0.5, 0.0]]), torch.tensor([1])
    matrix = sp.transfer_matrix([model], [opposite], x, y, lambda model, x, y: x)
    assert matrix.flipped.isnan().all()
    assert matrix.to_json()["flipped"] == [[None]]


def test_bad_transfers() -> None:
    model, x, y = linear([[-1, 0], [1, 0]]), torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="sources must be one module at least"):
        sp.transfer_matrix({}, None, x, y, lambda *_: x)
    with pytest.raises(ValueError, match="inputs and labels must be of as many examples"):
        sp.transfer_matrix([model], None, x, y[:2], lambda *_: x)
    with pytest.raises(ValueError, match="attack must return a tensor like inputs; for source 0 it returned None"):
        sp.transfer_matrix([model], None, x, y, lambda *_: None)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        sp.transfer_matrix([model], None, x, y, lambda *_: x).interval(1)
