"""Attacks of the smallest perturbation: closed forms on linear models, promises, and what strangers' networks need."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring import attacks
from sparring.attacks import AttackResult
from sparring.attacks.minimum_norm.halfspace import project_halfspace_box

ORDERS: dict[str, float] = {"L2": 2, "L1": 1, "Linf": math.inf, "L0": 0}
WORKS: dict[str, tuple[str, ...]] = {
    "minimal": ("L2", "L1", "Linf", "L0"), "alma": ("L2", "L1"), "ddn": ("L2", "L1", "Linf"),
    "fab": ("L2", "L1", "Linf"), "pdpgd": ("L2", "L1"), "sigma_zero": ("L0",),
}  # fmt: skip
EACH = [(name, norm) for name, norms in WORKS.items() for norm in norms]


def run(name: str, model: nn.Module, x: Tensor, y: Tensor, norm: Any, **options: Any) -> AttackResult:
    found = getattr(attacks, name)(model, x, y, norm=norm, return_result=True, **options)
    assert isinstance(found, AttackResult)
    return found


def linear(classes: int = 5, n: int = 40, scale: float = 1.0, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = nn.Linear(n, classes).double()
    with torch.no_grad():
        model.weight.mul_(scale)
        model.bias.mul_(scale)
    return model


def images(count: int = 30, n: int = 40, seed: int = 1) -> Tensor:
    return torch.rand(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.2 + 0.4


def curved(seed: int = 2) -> nn.Module:
    """Three colours of 6 x 6, four classes, kinks and saturation."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.Tanh(), nn.Linear(16, 4)
        )
    for parameter in net.parameters():
        parameter.data.mul_(2)
    return net.double().eval()


@pytest.fixture(scope="module")
def classified() -> tuple[nn.Module, Tensor, Tensor]:
    model = curved()
    x = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def exact(model: nn.Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The least distance in the box to where another class takes over; the dual norm far from the box's sides."""
    z, w = model(x).detach(), model.weight.detach()
    best = torch.full((len(x),), math.inf, dtype=torch.float64)
    for other in range(len(w)):
        need, rows = z.gather(1, y[:, None])[:, 0] - z[:, other], w[other] - w[y]
        room = torch.where(rows > 0, 1 - x, x)
        if norm == "L0":  # the entries that bring most, all the way
            gains = (rows.abs() * room).sort(dim=1, descending=True).values.cumsum(1)
            away = (gains < need[:, None]).sum(1).double() + 1
        else:
            v = project_halfspace_box(rows, need, x, norm, (0.0, 1.0))
            away = torch.linalg.vector_norm(v, ORDERS[norm], dim=1)
            away[(rows * v).sum(1) < need * (1 - 1e-9)] = math.inf
        best = torch.where(other == y, best, best.minimum(away))
    return best


# By how much the farthest of thirty points may be beyond the nearest there is.
CLOSE = {
    ("minimal", "L2"): 1.01, ("minimal", "L1"): 1.03, ("minimal", "Linf"): 1.03, ("minimal", "L0"): 2.0,
    ("alma", "L2"): 1.05, ("alma", "L1"): 1.25, ("ddn", "L2"): 1.05, ("ddn", "L1"): 1.1, ("ddn", "Linf"): 1.1,
    ("fab", "L2"): 1.01, ("fab", "L1"): 1.03, ("fab", "Linf"): 1.01, ("pdpgd", "L2"): 1.3, ("pdpgd", "L1"): 1.3,
    ("sigma_zero", "L0"): 2.0,
}  # fmt: skip


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("name", "norm"), EACH)
def test_linear_models_whatever_the_scale_of_their_logits(name: str, norm: str, scale: float) -> None:
    if name == "pdpgd" and scale != 1.0:
        pytest.skip("its loss, softplus of the margin, has a scale")
    model, x = linear(classes=3 if name == "minimal" and norm != "L0" else 2, scale=scale), images()
    y = model(x).argmax(1)
    found = run(name, model, x, y, norm)
    assert found.success.all()
    ratio = found.distance / exact(model, x, y, norm)
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= CLOSE[name, norm]


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_what_is_returned_is_what_was_asked_about(
    classified: tuple[nn.Module, Tensor, Tensor], name: str, norm: str
) -> None:
    model, x, y = classified
    found = run(name, model, x, y, norm)
    assert found.success.double().mean() > 0.9
    assert found.adv.min() >= 0
    assert found.adv.max() <= 1
    assert torch.equal(model(found.adv).argmax(1) != y, found.success)
    moved = (found.adv - x).flatten(1)
    assert torch.equal(torch.linalg.vector_norm(moved, ORDERS[norm], dim=1), found.distance)
    assert torch.equal(found.adv[~found.success], x[~found.success])


@pytest.mark.parametrize(("name", "norm"), [*EACH, ("minimal", "pixels"), ("sigma_zero", "pixels")])
def test_an_example_does_not_depend_on_the_others(
    classified: tuple[nn.Module, Tensor, Tensor], name: str, norm: str
) -> None:
    model, x, y = classified
    whole, batched = run(name, model, x, y, norm, steps=60), run(name, model, x, y, norm, steps=60, batch_size=5)
    torch.testing.assert_close(whole.distance, batched.distance, rtol=1e-6, atol=1e-9)
    backwards = run(name, model, x.flip(0), y.flip(0), norm, steps=60)
    torch.testing.assert_close(whole.distance, backwards.distance.flip(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_inputs_that_the_model_gets_wrong_stay(
    classified: tuple[nn.Module, Tensor, Tensor], name: str, norm: str
) -> None:
    model, x, y = classified
    wrong = y.clone()
    wrong[::2] = (y[::2] + 1) % 4
    found = run(name, model, x, wrong, norm, steps=30)
    assert torch.equal(found.adv[::2], x[::2])
    assert found.success[::2].all()
    assert (found.distance[::2] == 0).all()
    assert (found.steps_used[1::2] <= 32).all()
    assert found.accuracy_at(0.0) == 0.5 * float((found.distance[1::2] > 0).double().mean())


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_targets_are_reached(classified: tuple[nn.Module, Tensor, Tensor], name: str, norm: str) -> None:
    model, x, y = classified
    targets = (y + 1) % 4
    found = run(name, model, x, y, norm, targets=targets)
    assert torch.equal(model(found.adv).argmax(1) == targets, found.success)
    assert found.success.double().mean() > 0.5
    near = run(name, model, x, y, norm)
    assert near.distance.median() <= found.distance[found.success].median() * 1.05


def test_a_curve_comes_from_one_run(classified: tuple[nn.Module, Tensor, Tensor]) -> None:
    found = run("minimal", *classified, 2)
    radii = torch.tensor([0.0, 0.05, 0.2, 1.0, 1e9])
    curve = found.accuracy_at(radii)
    assert curve.shape == radii.shape
    assert torch.equal(curve, torch.stack([found.accuracy_at(float(eps)) for eps in radii]))
    assert (curve.diff() <= 0).all()
    assert curve[0] == 1
    assert torch.equal(curve[2], ((found.distance > 0.2) | ~found.success).double().mean())


def test_minimal_stops_where_a_point_is_near_enough(classified: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = classified
    far = run("minimal", model, x, y, 2, eps=1e3)
    assert (far.steps_used < 110).all()
    none = run("minimal", model, x, y, 2, eps=0.0)
    assert (none.steps_used > 290).all()
    eps = torch.where(torch.arange(len(x)) % 2 == 0, 1e3, 0.0).double()
    mixed = run("minimal", model, x, y, 2, eps=eps, batch_size=5)
    assert torch.equal(mixed.steps_used > 200, eps == 0)


def test_minimal_is_no_farther_than_its_parts(classified: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = classified
    for norm, parts in (("L2", ("alma", "ddn", "fab", "lbfgs")), ("L1", ("ddn", "pdpgd", "alma"))):
        best = run("minimal", model, x, y, norm, steps=600)
        for part in parts:
            other = run(part, model, x, y, norm) if part != "lbfgs" else attacks.lbfgs(model, x, y, return_result=True)
            assert isinstance(other, AttackResult)
            assert best.distance.mean() <= 1.02 * other.distance.mean(), part


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_two_classes_and_float32(name: str, norm: str) -> None:
    model = linear(classes=2).float()
    x = images().float()
    y = model(x).argmax(1)
    found = run(name, model, x, y, norm)
    assert found.success.all()
    assert found.adv.dtype == torch.float32


@pytest.mark.parametrize("bounds", [(-3.0, 5.0), (0.0, 255.0)])
@pytest.mark.parametrize(("name", "norm"), [pair for pair in EACH if pair[0] != "pdpgd"])
def test_other_units_give_the_same_points(name: str, norm: str, bounds: tuple[float, float]) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = model((x - bounds[0]) / width)
            return logits

    model, x, width = linear(), images(10), bounds[1] - bounds[0]
    y = model(x).argmax(1)
    plain, scaled = run(name, model, x, y, norm), run(name, Scaled(), x * width + bounds[0], y, norm, bounds=bounds)
    unit = 1.0 if norm == "L0" else width
    torch.testing.assert_close(plain.distance, scaled.distance / unit, rtol=0.05 if norm != "L0" else 0.3, atol=0)


def test_a_model_without_gradients_is_said(recwarn: pytest.WarningsRecorder) -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1)[:, :2] * 0).detach() + torch.tensor([1.0, 0.0]) + 0 * x.flatten(1)[:, :2]

    x = torch.rand(3, 4)
    with pytest.warns(attacks.GradientMaskingWarning):
        found = run("minimal", Blind(), x, torch.zeros(3, dtype=torch.int64), 2, steps=20)
    assert found.bad_grad.all()
    assert not found.success.any()
    assert torch.equal(found.adv, x)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("alma", {"norm": math.inf}, "norm"), ("alma", {"steps": 0}, "steps"), ("alma", {"first_step": 0.0}, "first_step"),
    ("alma", {"smoothing": 1.0}, "smoothing"), ("ddn", {"norm": 0}, "norm"),
    ("ddn", {"first_radius": -1.0}, "first_radius"),
    ("fab", {"target_classes": 0}, "target_classes"), ("pdpgd", {"rate": math.nan}, "rate"),
    ("sigma_zero", {"norm": 2}, "norm"), ("sigma_zero", {"sigma": 0.0}, "sigma"), ("minimal", {"norm": 3}, "norm"),
    ("minimal", {"eps": -1.0}, "eps"), ("minimal", {"eps": torch.ones(3)}, "eps"), ("minimal", {"steps": 2.5}, "steps"),
])  # fmt: skip
def test_bad_arguments_are_named(name: str, options: dict[str, Any], message: str) -> None:
    model, x = linear(), images(4)
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(attacks, name)(model, x, model(x).argmax(1), **options)


@pytest.mark.parametrize("norm", ["L2", "L1", "Linf"])
def test_the_nearest_point_of_a_half_space_in_the_box(norm: str) -> None:
    """Feasible, reaches what it has to, and no random feasible point is nearer."""
    draws = torch.Generator().manual_seed(0)
    w = torch.randn(50, 12, generator=draws, dtype=torch.float64)
    x = torch.rand(50, 12, generator=draws, dtype=torch.float64)
    most = (torch.where(w > 0, 1 - x, -x) * w).sum(1)
    b = most * torch.rand(50, generator=draws, dtype=torch.float64)
    v = project_halfspace_box(w, b, x, norm, (0.0, 1.0))
    assert ((x + v >= -1e-12) & (x + v <= 1 + 1e-12)).all()
    torch.testing.assert_close((w * v).sum(1), b, rtol=1e-9, atol=1e-12)
    length = torch.linalg.vector_norm(v, ORDERS[norm], dim=1)
    for _ in range(300):
        other = v + 0.1 * torch.randn(v.shape, generator=draws, dtype=torch.float64)
        other = (x + other).clamp(0, 1) - x
        reaches = (w * other).sum(1) >= b
        assert (torch.linalg.vector_norm(other, ORDERS[norm], dim=1) >= length - 1e-12)[reaches].all()
    beyond = project_halfspace_box(w, 2 * most, x, norm, (0.0, 1.0))
    torch.testing.assert_close((w * beyond).sum(1), most)
    assert (project_halfspace_box(w, -b, x, norm, (0.0, 1.0)) == 0).all()
