"""lbfgs: nearest points on linear models against closed forms and quadratic programs, against scipy, and promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from sparring import data
from sparring.attacks import AttackResult, GradientMaskingWarning, lbfgs


class Linear(nn.Module):
    """Logits ``0`` and ``w.x - b`` of two classes."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1) @ self.w - self.b
        return torch.stack([torch.zeros_like(value), value], 1)


def problem(rows: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Inputs of which many entries are at the faces, and a boundary that none has crossed but all can."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, n, generator=draws, dtype=torch.float64)
    x = torch.where(torch.rand(rows, n, generator=draws) < 0.5, x.round(), x)
    w = torch.randn(n, generator=draws, dtype=torch.float64)
    most = ((w > 0) * (1 - x) * w - (w < 0) * x * w).sum(1) + x @ w
    b = float((x @ w).max() + 0.5 * (most.min() - (x @ w).max()))
    return x.to(dtype), w.to(dtype), b


def nearest(penalty: str, x: Tensor, w: Tensor, b: float) -> Tensor:
    """The least norm of r with ``w.(x + r) = b``, ``x + r`` in [0, 1]: (B,), float64."""
    x, w = x.double(), w.double()
    need = b - x @ w
    room = torch.where(w > 0, 1 - x, x)
    if penalty == "L1":  # the steepest entries go as far as they can, one after the other
        order = w.abs().argsort(descending=True)
        gains = (room * w.abs())[:, order]
        used = (need[:, None] - (gains.cumsum(1) - gains)).clamp(min=0).minimum(gains)
        return (used / w.abs()[order]).sum(1)
    low, high = torch.zeros(len(x), 1, dtype=torch.float64), torch.full((len(x), 1), 1e4, dtype=torch.float64)
    for _ in range(200):
        t = (low + high) / 2
        reached = ((t * w.abs()).minimum(room) * w.abs()).sum(1, keepdim=True) >= need[:, None]
        low, high = torch.where(reached, low, t), torch.where(reached, t, high)
    return (high * w.abs()).minimum(room).norm(dim=1)


@pytest.mark.parametrize("penalty", ["squared L2", "L2", "L1"])
def test_linear_models_in_closed_form(penalty: str) -> None:
    x, w, b = problem(1000, 40)
    model = Linear(w, b)
    found = lbfgs(model, x, torch.zeros(1000, dtype=torch.int64), penalty=penalty, return_result=True)
    assert isinstance(found, AttackResult)
    assert found.success.all()
    exact = nearest(penalty, x, w, b)
    moved = found.adv - x
    held = ((moved != 0) & ((found.adv == 0) | (found.adv == 1))).any(1)
    assert held.sum() > 500  # the box matters
    assert (found.distance >= exact * (1 - 1e-9)).all()
    excess = found.distance / exact - 1
    if penalty == "L1":  # a corner of the ball is now and then taken for the best one
        assert excess.quantile(0.99) <= 1e-3
        assert excess.max() <= 5e-2
    else:
        assert excess.max() <= 1e-4


class Affine(nn.Module):
    """Softmax regression."""

    def __init__(self, classes: int, n: int, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(scale * torch.randn(classes, n, generator=draws, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T


def quadratic_program(w: np.ndarray, x: np.ndarray, target: int) -> float:
    """The least |r|_2 for which ``w (x + r)`` is largest at the target and x + r in [0, 1]: the value of the dual."""
    others = [k for k in range(len(w)) if k != target]
    rows = w[target] - w[others]
    need = -rows @ x

    def dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        r = np.clip(x + rows.T @ multipliers / 2, 0, 1) - x
        return float(multipliers @ (rows @ r - need) - r @ r), rows @ r - need

    found = minimize(
        dual, np.zeros(len(others)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(others),
        options={"maxiter": 5000, "maxfun": 50000, "ftol": 1e-16, "gtol": 1e-10},
    )  # fmt: skip
    return math.sqrt(max(0.0, -float(found.fun)))


def test_softmax_regression_against_a_quadratic_program() -> None:
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(60, 30, generator=draws, dtype=torch.float64)
    x = torch.where(torch.rand(60, 30, generator=draws) < 0.4, x.round(), x)
    model = Affine(5, 30)
    labels = model(x).argmax(1)
    targets = (labels + torch.randint(1, 5, (60,), generator=draws)) % 5
    exact = torch.tensor(
        [quadratic_program(model.w.detach().numpy(), x[i].numpy(), int(targets[i])) for i in range(60)]
    )
    options = {"targets": targets, "return_result": True}
    sharp = lbfgs(model, x, labels, sharpness=(1, 10, 100, 1000, 10000), **options)
    plain = lbfgs(model, x, labels, **options)
    assert sharp.success.all()
    assert plain.success.all()
    assert (sharp.distance >= exact * (1 - 1e-6)).all()
    assert (sharp.distance <= exact * (1 + 1e-4)).all()
    assert (plain.distance >= exact * (1 - 1e-6)).all()
    assert plain.distance.mean() <= 1.1 * exact.mean()


def scipy_distance(model: nn.Module, x: Tensor, label: int, target: int) -> float:
    """By scipy's L-BFGS-B, weight after weight: ten times larger while it succeeds, then twelve bisections."""
    start = x.double().flatten().numpy()
    aim = torch.tensor([target])

    def objective(z: np.ndarray, weight: float) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(z).to(x.dtype).reshape(1, *x.shape).requires_grad_()
        loss = nn.functional.cross_entropy(model(point), aim)
        (grad,) = torch.autograd.grad(loss, point)
        r = z - start
        return weight * float(r @ r) + float(loss.detach()), 2 * weight * r + grad.double().flatten().numpy()

    low, high, best = 0.0, math.inf, math.inf
    weight = 1e-3
    for _ in range(16):
        z = minimize(objective, start, (weight,), "L-BFGS-B", jac=True, bounds=[(0, 1)] * len(start)).x
        with torch.no_grad():
            fooled = int(model(torch.from_numpy(z).to(x.dtype).reshape(1, *x.shape)).argmax()) == target
        if fooled:
            low, best = weight, min(best, float(np.linalg.norm(z - start)))
        else:
            high = weight
        weight = 10 * low if math.isinf(high) else math.sqrt(low * high) if low else high / 10
    return best


def test_no_farther_than_scipy(digits_network: Callable[[str], nn.Module]) -> None:
    model, test = digits_network("mlp"), data.load("digits", split="test")
    with torch.no_grad():
        right = model(test.images).argmax(1) == test.labels
    images, labels = test.images[right][:6], test.labels[right][:6]
    targets = (labels + 1) % 10
    found = lbfgs(model, images, labels, targets=targets, return_result=True)
    pairs = zip(images, labels.tolist(), targets.tolist(), strict=True)
    theirs = torch.tensor([scipy_distance(model, *pair) for pair in pairs])
    assert found.success.all()
    assert found.distance.mean() <= theirs.mean()
    assert (found.distance <= 1.05 * theirs).all()


@pytest.fixture(scope="module")
def classified() -> tuple[nn.Module, Tensor, Tensor]:
    """A smooth network of four classes, inputs, and the classes it gives them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
        nn.init.normal_(model[1].weight, std=1.0)
        nn.init.normal_(model[3].weight, std=1.0)
        x = torch.rand(24, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


Classified = tuple[nn.Module, Tensor, Tensor]


@pytest.mark.parametrize("penalty", ["squared L2", "L2", "L1"])
def test_what_is_returned(classified: Classified, penalty: str) -> None:
    model, x, labels = classified
    targets = (labels + 1) % 4
    found = lbfgs(model, x, labels, targets=targets, penalty=penalty, return_result=True)
    assert ((found.adv >= 0) & (found.adv <= 1)).all()
    assert torch.equal(found.success, model(found.adv).argmax(1) == targets)
    moved = (found.adv - x).flatten(1)
    assert torch.allclose(found.distance, moved.abs().sum(1) if penalty == "L1" else moved.norm(dim=1))
    assert torch.equal(found.adv[~found.success], x[~found.success])
    assert found.success.double().mean() > 0.7  # some classes lie nowhere in the box
    assert (found.steps_used[found.success] > 0).all()
    plain = lbfgs(model, x, labels, targets=targets, penalty=penalty)
    assert torch.equal(plain, found.adv)


def test_each_penalty_is_best_at_its_own_norm(classified: Classified) -> None:
    model, x, labels = classified
    found = {p: lbfgs(model, x, labels, penalty=p, sharpness=(1, 10, 100)) - x for p in ("squared L2", "L2", "L1")}
    one, two = ({p: r.flatten(1).norm(order, dim=1).mean() for p, r in found.items()} for order in (1, 2))
    assert one["L1"] < 0.95 * one["squared L2"]
    assert two["squared L2"] < 0.95 * two["L1"]
    assert float(two["L2"]) == pytest.approx(float(two["squared L2"]), rel=0.02)
    assert (found["L1"] == 0).double().mean() > (found["L2"] == 0).double().mean()


def test_inputs_that_fool_the_model_already_stay(classified: Classified) -> None:
    model, x, labels = classified
    wrong = (labels + 1) % 4
    found = lbfgs(model, x, wrong, targets=None, loss="margin", return_result=True)
    assert torch.equal(found.adv, x)
    assert found.success.all()
    assert (found.distance == 0).all()
    assert (found.steps_used == 0).all()


def test_choices_of_the_target(classified: Classified) -> None:
    model, x, labels = classified
    logits = model(x)
    likeliest = logits.scatter(1, labels[:, None], -math.inf).argmax(1)
    assert torch.equal(lbfgs(model, x, labels), lbfgs(model, x, labels, targets=likeliest))
    every = lbfgs(model, x, labels, targets="every", return_result=True)
    ways = [lbfgs(model, x, labels, targets=(labels + k) % 4, return_result=True) for k in (1, 2, 3)]
    distances = torch.stack([way.distance.where(way.success, math.inf) for way in ways])
    assert torch.allclose(every.distance, distances.amin(0))
    assert torch.equal(every.steps_used, torch.stack([way.steps_used for way in ways]).sum(0))
    drawn = [
        lbfgs(model, x, labels, targets="random", generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    untargeted = lbfgs(model, x, labels, targets=None, loss="margin", return_result=True)
    assert untargeted.distance.mean() <= 1.2 * every.distance.mean()


class RowByRow(nn.Module):
    """The same model, each example by itself, so that its rounding does not depend on the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.model(row) for row in x.split(1)])


def test_an_example_does_not_depend_on_the_others(classified: Classified) -> None:
    model, x, labels = classified
    whole = lbfgs(RowByRow(model), x, labels, return_result=True)
    for part in (slice(3, 4), slice(5, 12)):
        alone = lbfgs(RowByRow(model), x[part], labels[part], return_result=True)
        assert torch.equal(alone.adv, whole.adv[part])
        assert torch.equal(alone.steps_used, whole.steps_used[part])
    assert torch.equal(lbfgs(RowByRow(model), x, labels, batch_size=5), whole.adv)
    none = lbfgs(model, x[:0], labels[:0], return_result=True)
    assert none.adv.shape == (0, 3, 4)
    assert len(none.success) == 0


def test_nothing_else_is_touched(classified: Classified) -> None:
    model, x, labels = classified
    model.train()
    state = torch.random.get_rng_state()
    copies = x.clone(), labels.clone()
    lbfgs(model, x, labels, targets="random")
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x, copies[0])
    assert torch.equal(labels, copies[1])


class Flat(nn.Module):
    """No gradient anywhere, and NaN for every other input."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([x.sum((1, 2)) * 0 + 1, x.sum((1, 2)) * 0], 1)
        logits[1::2] = logits[1::2] * math.nan
        return logits


def test_where_there_is_no_gradient_the_input_is_returned() -> None:
    x = torch.rand(4, 2, 3)
    with pytest.warns(GradientMaskingWarning):
        found = lbfgs(
            Flat(), x, torch.zeros(4, dtype=torch.int64), targets=torch.ones(4, dtype=torch.int64), return_result=True
        )
    assert torch.equal(found.adv, x)
    assert not found.success.any()
    assert found.bad_grad.all()
    assert (found.steps_used == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "L0"}, "penalty must be one of squared L2, L2, L1; got 'L0'"),
        ({"targets": "nearest"}, "targets must be .* likeliest, random, every; got 'nearest'"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "targets must be class indices"),
        ({"steps": -1}, "steps must be an integer of at least 0; got -1"),
        ({"weights": 0}, "weights must be an integer of at least 1; got 0"),
        ({"history": 17}, "history must be an integer in 1 ... 16; got 17"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"weight_tolerance": math.inf}, "weight_tolerance must be positive"),
        ({"sharpness": ()}, "sharpness must be one factor at least"),
        ({"sharpness": (1.0, -2.0)}, "sharpness must be positive"),
        ({"bounds": (0.5, 1.0)}, "outside bounds"),
        ({"loss": "hinge"}, "loss must be one of"),
    ],
)
def test_bad_arguments(classified: Classified, options: dict[str, Any], message: str) -> None:
    model, x, labels = classified
    with pytest.raises(ValueError, match=message):
        lbfgs(model, x, labels, **options)


def test_a_model_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        lbfgs(nn.Sequential(nn.Flatten(), nn.Linear(6, 1)), torch.rand(2, 6), torch.zeros(2, dtype=torch.int64))
