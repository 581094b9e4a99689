"""fgsm, fgm, pgd, slide and apgd: closed-form optima on linear models, feasibility, independence, promises."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparring import attacks, ops
from sparring.attacks import AttackResult, GradientMaskingWarning

NORMS = ("Linf", "L2", "L1")
ORDER = {"Linf": math.inf, "L2": 2, "L1": 1}
ITERATED: dict[str, Callable[..., Any]] = {"pgd": attacks.pgd, "apgd": attacks.apgd}


class Linear(nn.Module):
    """Two classes whose logits are -w.x / 2 and w.x / 2: the loss of class 0 rises with w.x alone."""

    def __init__(self, w: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(w * scale)

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1) @ self.w / 2
        return torch.stack([-value, value], 1)


def optimum(norm: str, w: Tensor, x: Tensor, eps: float) -> Tensor:
    """The largest w.delta over the ball and the box [0, 1], in closed form: (B,)."""
    room = torch.where(w > 0, 1 - x, x)
    if norm == "Linf":
        return (room.clamp(max=eps) * w.abs()).sum(1)
    if norm == "L1":  # the best entries are filled first
        order = w.abs().argsort(descending=True)
        spent = room[:, order].cumsum(1)
        used = (eps - (spent - room[:, order])).clamp(min=0).minimum(room[:, order])
        return (used * w.abs()[order]).sum(1)
    low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e9).double()
    for _ in range(200):  # delta_i = min(room_i, t |w_i|), its length rising with t
        t = (low + high) / 2
        over = (t * w.abs()).minimum(room).norm(dim=1, keepdim=True) > eps
        low, high = torch.where(over, low, t), torch.where(over, t, high)
    return ((low * w.abs()).minimum(room) * w.abs()).sum(1)


def network(seed: int = 0, classes: int = 4, entries: int = 12) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(entries, 16), nn.Tanh(), nn.Linear(16, classes)).double()


class RowByRow(nn.Module):
    """A network without matrix products, whose rounding would depend on the batch size."""

    def __init__(self, classes: int = 4, entries: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(16, entries, generator=generator, dtype=torch.float64) / 3)
        self.second = nn.Parameter(torch.randn(classes, 16, generator=generator, dtype=torch.float64) / 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x[:, None] * self.first).sum(2).tanh()
        return (hidden[:, None] * self.second).sum(2)


def images(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.rand(count, *(shape or (12,)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def check_feasible(result: AttackResult, x: Tensor, eps: float | Tensor, norm: str, bounds: Any = (0.0, 1.0)) -> None:
    moved = (result.adv.double() - x.double()).flatten(1)
    length = torch.linalg.vector_norm(moved, ORDER[norm], dim=1)
    assert bool((length <= torch.as_tensor(eps, dtype=torch.float64)).all())
    assert bool(((result.adv.double() >= bounds[0]) & (result.adv.double() <= bounds[1])).all())
    assert torch.equal(result.distance, length)


@pytest.mark.parametrize(
    ("name", "norm", "eps", "share"),
    [
        ("apgd", "Linf", 0.4, 1 - 1e-9),
        ("pgd", "Linf", 0.4, 1 - 1e-9),
        ("apgd", "L2", 0.05, 1 - 1e-3),
        ("apgd", "L2", 0.4, 1 - 1e-3),
        ("pgd", "L2", 0.4, 0.97),
        ("apgd", "L1", 0.1, 1 - 1e-3),  # fits into one entry
        ("apgd", "L1", 4.0, 0.98),
        ("slide", "L1", 4.0, 0.9),
    ],
)
def test_linear_models_closed_form_is_reached(name: str, norm: str, eps: float, share: float) -> None:
    """To the given share at least; the box is active, but for the smallest eps."""
    w = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = images(20, 40) * 0.8 + 0.1
    zeros = torch.zeros(20, dtype=torch.long)
    options = {"quantile": 0.9} if name == "slide" else {"norm": norm}
    attack: Callable[..., Any] = getattr(attacks, name)
    result = attack(Linear(w), x, zeros, eps=eps, steps=200, loss="margin", return_result=True, **options)
    reached = (result.adv - x) @ w
    best = optimum(norm, w, x, eps)
    assert bool((reached <= best * (1 + 1e-9)).all())
    assert bool((reached >= best * share).all()), reached / best
    check_feasible(result, x, eps, norm)


def test_fgsm_and_fgm_are_their_formulas() -> None:
    model, x, y = network(), images(6), torch.tensor([0, 1, 2, 3, 0, 1])
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    assert torch.allclose(attacks.fgsm(model, x, y, eps=0.1), (x + 0.1 * grad.sign()).clamp(0, 1), atol=1e-12)
    step = 0.1 * grad / grad.norm(dim=1, keepdim=True)
    assert torch.allclose(attacks.fgm(model, x, y, eps=0.1), (x + step).clamp(0, 1), atol=1e-9)
    spent = (attacks.fgsm(model, x, y, eps=0.1, norm=1) - x).abs()
    assert bool(((spent > 0).sum(1) <= 1).all())


@given(
    norm=st.sampled_from(NORMS),
    name=st.sampled_from([*ITERATED, "fgsm"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([0.0, 1e-30, 1e-6, 0.03, 0.3, 2.0, 50.0]),
    bounds=st.sampled_from([(0.0, 1.0), (-0.3, 0.7)]),
    seed=st.integers(0, 100),
)
def test_every_point_is_feasible(
    norm: str, name: str, dtype: torch.dtype, eps: float, bounds: tuple[float, float], seed: int
) -> None:
    x = (images(5, 3, 2, 2, seed=seed) * 1.2 - 0.1).clamp(0, 1).to(dtype) + bounds[0]  # some entries at the faces
    x = x.clamp(*bounds)
    x = torch.where(x.double() > bounds[1], torch.nextafter(x, torch.full_like(x, -1)), x)
    x = torch.where(x.double() < bounds[0], torch.nextafter(x, torch.full_like(x, 1)), x)
    y = torch.arange(5) % 4
    model = network(seed).to(dtype)
    attack: Callable[..., Any] = getattr(attacks, name)
    extra = {} if name == "fgsm" else {"steps": 6}
    result = attack(model, x, y, eps=eps, norm=norm, bounds=bounds, return_result=True, **extra)
    check_feasible(result, x, eps, norm, bounds)
    assert torch.equal(result.success, labels_of(model, result.adv) != y)
    if eps == 0:
        assert torch.equal(result.adv, x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ITERATED)
@pytest.mark.parametrize("early_stop", [False, True])
def test_examples_do_not_depend_on_each_other(name: str, norm: str, early_stop: bool) -> None:
    """One at a time, in batches of 3, with done ones kept or not: the same points, and the same counts, to the bit."""
    model, x = RowByRow(), images(10)
    y = labels_of(model, x)
    eps = torch.linspace(0.01, 0.5, 10) * (8 if norm == "L1" else 2 if norm == "L2" else 1)

    def attack(**options: Any) -> AttackResult:
        found: AttackResult = ITERATED[name](
            model, x, y, eps=eps, norm=norm, steps=15, restarts=2, early_stop=early_stop, return_result=True, **options
        )
        return found

    together = attack()
    assert 0 < int(together.success.sum()) < 10, "the test wants both"
    for other in (attack(batch_size=1), attack(batch_size=3), attack(keep_finished=True)):
        assert torch.equal(other.adv, together.adv)
        assert torch.equal(other.success, together.success)
        assert torch.equal(other.steps_used, together.steps_used)
    assert bool((together.steps_used[~together.success] == 30).all())
    assert bool((together.steps_used[together.success] <= 30).all())


@pytest.mark.parametrize("name", ITERATED)
def test_restarts_are_chosen_per_example(name: str) -> None:
    model, x = network(5), images(30)
    y = labels_of(model, x)
    loss = []
    for restarts in (1, 2, 6):
        result = ITERATED[name](model, x, y, eps=0.3, norm=2, steps=1, restarts=restarts, return_result=True)
        loss.append(torch.where(result.success, math.inf, result.loss))
    assert bool((loss[1] >= loss[0]).all())
    assert bool((loss[2] >= loss[1]).all())
    assert bool((loss[2] > loss[0]).any())


@pytest.mark.parametrize("name", [*ITERATED, "fgsm", "slide"])
def test_targets_are_reached_and_are_not_labels(name: str) -> None:
    model, x = network(2), images(20)
    y = labels_of(model, x)
    targets = (y + 1) % 4
    attack: Callable[..., Any] = getattr(attacks, name)
    eps = 6.0 if name == "slide" else 0.8
    result = attack(model, x, y, eps=eps, targets=targets, return_result=True)
    assert torch.equal(result.success, labels_of(model, result.adv) == targets)
    assert int(result.success.sum()) >= (5 if name == "fgsm" else 15)


def test_target_classes_find_what_a_single_direction_misses() -> None:
    model, x = network(7, classes=8), images(60)
    y = labels_of(model, x)
    one = attacks.apgd(model, x, y, eps=0.12, steps=10, loss="dlr", return_result=True)
    all_ways = attacks.apgd(model, x, y, eps=0.12, steps=10, loss="dlr", target_classes=7, return_result=True)
    assert int(all_ways.success.sum()) >= int(one.success.sum())
    assert bool((all_ways.steps_used[~all_ways.success] == 70).all())


def test_preprocessing_is_in_front_of_the_model() -> None:
    model = network(1)
    x, y = images(8, 3, 2, 2), torch.arange(8) % 4
    mean, std = [0.2, 0.4, 0.6], [0.5, 0.25, 0.3]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            shift, scale = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in (mean, std))
            out: Tensor = self.inner((x - shift) / scale)
            return out

    given_, wanted = (
        attacks.apgd(m, x, y, eps=0.1, steps=10, preprocessing=p)
        for m, p in ((model, {"mean": mean, "std": std}), (Whole(), None))
    )
    torch.testing.assert_close(given_, wanted, rtol=0, atol=1e-9)


def test_nothing_global_is_touched() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    model[1].weight.requires_grad_(False)
    x, y = torch.rand(6, 12), torch.arange(6) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for attack in (attacks.fgsm, attacks.pgd, attacks.apgd):
        with torch.no_grad():
            attack(model, x, y, eps=0.1)
    with torch.inference_mode():
        attacks.slide(model, x, y, eps=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]


def test_generator_decides_the_starts() -> None:
    model, x, y = network(), images(4), torch.arange(4)

    def attack(seed: int) -> Any:
        return attacks.pgd(model, x, y, eps=0.3, steps=1, step_size=0.01, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))


def test_masked_gradients_are_said() -> None:
    """Logits so far apart that the softmax's gradient underflows; the difference of logits still has one."""
    w = torch.ones(8)
    model, x, y = Linear(w, 1e3), torch.full((10, 8), 0.1), torch.ones(10, dtype=torch.long)
    with pytest.warns(GradientMaskingWarning, match=r"10 of the 10 examples .* zero, NaN or inf"):
        result = attacks.pgd(model, x, y, eps=0.01, random_start=False, return_result=True)
    assert bool(result.bad_grad.all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = attacks.pgd(model, x, y, eps=0.01, random_start=False, loss="margin", return_result=True)
    assert not bool(result.bad_grad.any())


def test_models_that_give_nan_fool_nobody() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return torch.where((x[:, :1] > 0.5), torch.nan, out)

    x, y = images(12), torch.arange(12) % 4
    broken = x[:, 0] > 0.5
    with pytest.warns(GradientMaskingWarning):
        result = attacks.pgd(Breaks(), x, y, eps=1e-3, random_start=False, return_result=True)
    assert bool((result.bad_grad == broken).all())
    assert not bool(result.success[broken].any())
    assert bool(result.adv.isfinite().all())


def test_no_examples() -> None:
    for attack in (attacks.fgsm, attacks.pgd, attacks.apgd, attacks.slide):
        result = attack(network(), torch.zeros(0, 12).double(), torch.zeros(0).long(), eps=1.0, return_result=True)
        assert isinstance(result, AttackResult)
        assert len(result) == 0
        assert result.adv.shape == (0, 12)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"eps": -0.1}, "eps must be at least 0 and finite; got -0.1"),
        ({"eps": math.nan}, "eps must be at least 0"),
        ({"eps": torch.ones(3)}, r"eps must be a number or of shape \(4,\); got shape \(3,\)"),
        ({"norm": 3}, "norm is 3; accepted: inf, 2, 1"),
        ({"bounds": (1, 0)}, "bounds must be"),
        ({"bounds": (0.0, 0.5)}, r"inputs range over \[.*\], outside bounds \(0.0, 0.5\)"),
        ({"labels": torch.ones(4)}, r"labels must be class indices \(4,\); got torch.float32"),
        ({"labels": torch.ones(3).long()}, r"labels must be class indices \(4,\); got torch.int64 of shape \(3,\)"),
        ({"labels": torch.full((4,), 9)}, "labels must lie in 0 ... 3"),
        ({"targets": torch.full((4,), -1)}, "targets must not be negative; got -1"),
        ({"loss": "mse"}, "loss must be one of"),
        ({"steps": -1}, "steps must be an integer of at least 0; got -1"),
        ({"steps": 2.5}, "steps must be an integer"),
        ({"restarts": 0}, "restarts must be an integer of at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be an integer"),
        ({"inputs": torch.rand(4, 12)}, "inputs are torch.float32, but the model is torch.float64"),
        ({"inputs": torch.rand(4, 12).half()}, "inputs must be a float32 or float64 tensor"),
        ({"inputs": torch.full((4, 12), math.nan).double()}, r"inputs range over \[nan"),
        ({"preprocessing": {"means": 1}}, "preprocessing must be a module or a dict"),
        ({"preprocessing": {"std": 0.0}}, "preprocessing's std must be positive"),
    ],
)
@pytest.mark.parametrize("name", ITERATED)
def test_bad_arguments_are_named(name: str, change: dict[str, Any], expected: str) -> None:
    arguments = {"inputs": images(4), "labels": torch.arange(4), "eps": 0.1, **change}
    with pytest.raises((ValueError, TypeError), match=expected):
        ITERATED[name](network(), arguments.pop("inputs"), arguments.pop("labels"), **arguments)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("pgd", {"step_size": 0.0}, "step_size must be positive"),
        ("pgd", {"k": 0, "norm": 1}, "k must be an integer of at least 1, or a share"),
        ("slide", {"quantile": 1.0}, "quantile must be in"),
        ("apgd", {"rho": 2.0}, "rho must be in"),
        ("apgd", {"schedule": ((2.0, 0.5),)}, "schedule must be pairs"),
        ("apgd", {"schedule": ((2.0, 0.8), (1.5, 0.8), (1.0, 0.1))}, "shares must add up"),
        ("apgd", {"target_classes": 0}, "target_classes must be at least 1"),
    ],
)
def test_bad_settings_are_named(name: str, options: dict[str, Any], expected: str) -> None:
    attack: Callable[..., Any] = getattr(attacks, name)
    with pytest.raises(ValueError, match=expected):
        attack(network(), images(4), torch.arange(4), eps=0.1, **options)


def test_rounding_outside_the_bounds_is_tolerated() -> None:
    x = images(4).float()
    x[0, 0], x[1, 1] = -3e-8, 1 + 1e-7
    adv = attacks.fgsm(network().float(), x, torch.arange(4), eps=0.1)
    assert isinstance(adv, Tensor)
    assert 0 <= float(adv.min()) <= float(adv.max()) <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_memory_layout_does_not_matter(norm: str) -> None:
    x, y = images(4, 3, 2, 2), torch.arange(4)
    other = x.to(memory_format=torch.channels_last)
    wanted, found = (attacks.pgd(network(), each, y, eps=0.3, norm=norm, steps=5) for each in (x, other))
    assert torch.equal(found, wanted)


def test_a_euclidean_step_in_l1_on_a_linear_model() -> None:
    """It is the projection of the gradient scaled to that Euclidean norm."""
    weight = torch.randn(2, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer = nn.Linear(30, 2, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    x = torch.rand(5, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y, eps, size = torch.zeros(5, dtype=torch.int64), 1.5, 0.6
    rise = (weight[1] - weight[0]).expand(5, -1)  # times a positive number for each image
    step = eps * size * rise / rise.norm(dim=1, keepdim=True)
    expected = x + ops.project_l1_box(step, x, torch.full((5,), eps, dtype=torch.float64), (0.0, 1.0))
    options: dict[str, Any] = {"eps": eps, "norm": 1, "steps": 1, "step_size": size, "random_start": False}
    found = attacks.pgd(layer, x, y, step="euclidean", **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (found != x).sum() > (attacks.pgd(layer, x, y, **options) != x).sum()


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_euclidean_steps_keep_to_ball_and_box(steps: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 4))
    x, y = torch.rand(6, 30, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 4
    x[0], eps = 0.0, torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 1e6])
    found = attacks.pgd(model, x, y, eps=eps, norm="L1", steps=steps, step="euclidean")
    assert ((found >= 0) & (found <= 1)).all()
    assert ((found.double() - x.double()).abs().sum(1) <= eps.double()).all()
    for i in range(6):
        alone = attacks.pgd(model, x[i:][:1], y[i:][:1], eps=eps[i:][:1], norm="L1", steps=steps, step="euclidean")
        torch.testing.assert_close(alone, found[i:][:1])


def test_a_step_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="step must be one of 'sparse', 'euclidean'; got 'l2'"):
        attacks.pgd(nn.Flatten(), torch.rand(1, 3), torch.tensor([0]), eps=1.0, norm=1, step="l2")  # type: ignore[arg-type]
