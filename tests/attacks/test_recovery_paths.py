"""`recover` step by step against plain float64 torch: hidden penalties, schedules, losses; images that are stuck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring import networks
from sparring.attacks import Recovery, recover

SHAPE = (1, 8, 8)
TARGETS = torch.arange(6) % 10

Norms = Callable[[Tensor], Mapping[str, Tensor]]


class Watched(nn.Module):
    """A network that notes every batch of images it is asked about."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if bool(images.isfinite().all()):  # which depends on data, so that the model is not lowered past this line
            self.seen.append(images.detach().clone())
        logits: Tensor = self.network(images)
        return logits


def small(seed: int = 0) -> nn.Sequential:
    """Conv - ReLU in place - linear - ReLU - linear, in float64."""
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(108, 12), nn.ReLU(), nn.Linear(12, 10)
    ).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        scale = 0.6 if parameter.dim() > 1 else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def norms(network: nn.Sequential, images: Tensor) -> dict[str, Tensor]:
    """L1 norm over the number of entries of each image's activation, by module, written out."""
    conv = network[0](images)
    relu = conv.clamp(min=0)
    hidden = network[3](relu.flatten(1))
    last = hidden.clamp(min=0)
    values = {"0": conv, "1": relu, "3": hidden, "4": last, "5": network[5](last)}
    return {name: value.abs().flatten(1).mean(1) for name, value in values.items()}


def plain_adam(
    objective: Callable[[Tensor], Tensor], start: Tensor, steps: int, *, lr: Callable[[int], float],
    lam: Callable[[int], float], prox: bool = False, floor: float = 0.1,
) -> list[Tensor]:  # fmt: skip
    """The images before each step and after the last, of torch's Adam on the penalised loss as one writes it."""
    image = start.clone()
    image[image < floor] = 0
    path = [image.clone()]
    entries = image[0].numel()
    image.requires_grad_()
    optimizer = torch.optim.Adam([image], eps=1e-4)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr(step)
        weight = lam(step) / entries
        loss = objective(image) if prox else objective(image) + weight * image.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if prox:
                root = (optimizer.state[image]["exp_avg_sq"] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-4
                image.copy_(image.sign() * (image.abs() - lr(step) / root * weight).clamp(min=0))
            image.clamp_(0, 1)
            image[image < floor] = 0
        path.append(image.detach().clone())
    return path


def watch(network: nn.Module, start: Tensor, steps: int, **options: Any) -> list[Tensor]:
    """The images that `recover` visits: p = 1 is out of reach, so that none leaves the batch."""
    model = Watched(network)
    recover(model, TARGETS, SHAPE, start=start, steps=steps, p_min=1.0, restarts=0, **options)
    return [seen for seen in model.seen if seen.shape == start.shape][-steps - 2 : -1]


@pytest.fixture
def start() -> Tensor:
    return torch.rand(len(TARGETS), *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["adam", "prox"])
def test_schedules_against_plain_torch(start: Tensor, method: Any) -> None:
    """lambda changes after 6 steps and the rate after 9; each of 15 steps is that of plain torch."""
    network = small()

    def rate(step: int) -> float:
        return 0.05 if step < 9 else 0.025

    def weight(step: int) -> float:
        return 0.5 if step < 6 else 8.0

    def objective(image: Tensor) -> Tensor:
        return F.cross_entropy(network(image), TARGETS, reduction="sum")

    path = plain_adam(objective, start, 15, lr=rate, lam=weight, prox=method == "prox")
    options: dict[str, Any] = {"method": method, "lr": 0.05, "lam": 0.5}
    agree(watch(network, start, 15, **options, lam_final=8.0, lam_step=6, lr_step=9), path)
    unscheduled = watch(network, start, 15, **options)
    for step, (one, other) in enumerate(zip(unscheduled, path, strict=True)):
        assert torch.allclose(one, other, rtol=0, atol=1e-9) == (step <= 6)


@pytest.mark.parametrize(
    ("penalty", "weights"),
    [
        ("none", {}),
        ("input", {"input": 1.0}),
        ("hidden", {"1": 1.0, "4": 1.0}),
        ("all", {"input": 1.0, "1": 1.0, "4": 1.0}),
        ({"0": 3.0, "5": 0.5}, {"0": 3.0, "5": 0.5}),
        ({"input": 2.0, "3": 1.0, "4": 0.0}, {"input": 2.0, "3": 1.0}),
    ],
)
def test_penalties_against_an_objective_written_out(start: Tensor, penalty: Any, weights: dict[str, float]) -> None:
    """Ten steps, the weight of all penalties rising after five; the activation after the convolution is in place."""
    network, own = small(), weights.get("input", 0.0)
    hidden = {name: weight for name, weight in weights.items() if name != "input"}
    now = 0

    def lam(step: int) -> float:
        nonlocal now
        now = step
        return own * (2.0 if step < 5 else 6.0)

    def objective(image: Tensor) -> Tensor:
        found = norms(network, image)
        penalties = [weight * found[name].sum() for name, weight in hidden.items()]
        scale = 2.0 if now < 5 else 6.0
        return F.cross_entropy(network(image), TARGETS, reduction="sum") + scale * sum(penalties)

    path = plain_adam(objective, start, 10, lr=lambda step: 0.05, lam=lam)
    given = (
        {f"network.{name}" if name != "input" else name: w for name, w in penalty.items()}
        if isinstance(penalty, dict)
        else penalty
    )
    found = watch(network, start, 10, method="adam", lr=0.05, lam=2.0, lam_final=6.0, lam_step=5, penalty=given)
    agree(found, path)


def test_the_l1_ball_takes_hidden_penalties_and_halves_its_steps(start: Tensor) -> None:
    """The first step on a linear model moves the k steepest entries of the penalised objective by lr, or half of it."""
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    layer = nn.Linear(64, 10, bias=False, dtype=torch.float64)
    layer.weight.data = weight
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Identity(), layer))
    image = torch.full((6, *SHAPE), 0.5, dtype=torch.float64).requires_grad_()
    logits = model(image)
    objective = F.cross_entropy(logits, TARGETS, reduction="sum") + 7 * logits.abs().mean(1).sum()
    (grad,) = torch.autograd.grad(objective, image)
    slope = grad.flatten(1)
    steepest = slope.abs().topk(4, dim=1).indices
    for lr_step, lr in ((1, 0.3), (0, 0.15)):
        found = watch(
            model, image.detach(), 1, method="l1", k=4, lr=0.3, growth=2.0, lr_step=lr_step, lam=7.0,
            penalty={"network.1.1": 1.0}, floor=0.0,
        )  # fmt: skip
        moved = (found[1] - found[0]).flatten(1)
        expected = torch.zeros_like(moved).scatter_(1, steepest, -lr * slope.gather(1, steepest).sign())
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_hidden_layers_of_a_model_that_applies_functions(start: Tensor) -> None:
    """Without modules that are activation functions, all layers but the last count."""

    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(12, 10).double(), nn.Linear(64, 12).double()
            for layer in (self.first, self.last):
                generator = torch.Generator().manual_seed(4)
                layer.weight.data = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.first(images.flatten(1)).relu())  # type: ignore[no-any-return]

    model = Functions()
    for name, expected in (("hidden", {"first": 1.0}), ("all", {"first": 1.0, "input": 1.0})):
        one, other = (
            recover(model, TARGETS, SHAPE, method="adam", steps=4, start=start, penalty=p) for p in (name, expected)
        )
        assert torch.equal(one.images, other.images)


def test_the_penalty_has_no_slope_at_zero() -> None:
    """Of a black image that a module passes on, every entry is 0: the first step is that without the penalty."""
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(64, 10, bias=False)).double()
    model[2].weight.data = torch.randn(10, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    one, other = (
        recover(model, TARGETS, SHAPE, method="adam", steps=1, start="black", lam=50.0, penalty=penalty, p_min=1.0)
        for penalty in ({"0": 1.0}, "none")
    )
    assert (one.sparsity > 0).all()
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["adam", "l1"])
def test_hooks_are_removed_and_the_batch_does_not_matter(digits_network: Any, method: Any) -> None:
    model = deepcopy(digits_network("cnn")).double()
    whole, alone = (
        recover(model, TARGETS, SHAPE, method=method, steps=12, s_max=20, penalty="all", batch_size=size)
        for size in (None, 1)
    )
    assert torch.equal(whole.stop_step, alone.stop_step)
    torch.testing.assert_close(whole.images, alone.images, rtol=0, atol=1e-9)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="finite"):
        recover(_Broken(model), TARGETS, SHAPE, steps=3, penalty={"network.relu1": 1.0})
    assert not any(module._forward_hooks for module in model.modules())


class _Broken(Watched):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * torch.nan


@pytest.mark.parametrize("method", ["adam", "prox", "l1"])
def test_the_margin_is_a_loss_of_its_own(digits_network: Any, method: Any) -> None:
    """The first step goes along the gradient of the margin: on a network of two classes, twice that of z_target."""
    model = digits_network("mlp")
    found = recover(model, TARGETS, SHAPE, method=method, steps=60, s_max=20, loss="margin", lam=0.1)
    other = recover(model, TARGETS, SHAPE, method=method, steps=60, s_max=20, lam=0.1)
    assert found.success.sum() >= other.success.sum() - 1
    assert not torch.equal(found.images, other.images)
    weight = torch.tensor([[0.0, 0, 0], [3, 0, -1], [1, 9, 0]], dtype=torch.float64)
    linear = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    linear.weight.data = weight
    begin = torch.tensor([[0.3, 0.3, 0.3]], dtype=torch.float64)  # the best other logit is the last one
    step = recover(
        linear, [1], (3,), method="adam", steps=1, start=begin, loss="margin", lr=0.01, penalty="none", p_min=1, floor=0
    )
    slope = weight[2] - weight[1]
    torch.testing.assert_close(step.images, begin - 0.01 * slope / (slope.abs() + 1e-4), rtol=0, atol=1e-12)


def dead_on_black() -> nn.Sequential:
    """Ten classes, each its own column of bright pixels behind ReLUs that a black image does not wake."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8, bias=False)).double()
    columns = torch.zeros(8, 8, 8, dtype=torch.float64)
    columns[torch.arange(8), :, torch.arange(8)] = 3.0
    network[1].weight.data, network[1].bias.data = columns.flatten(1), torch.full((8,), -1.0, dtype=torch.float64)
    network[3].weight.data = 2 * torch.eye(8, dtype=torch.float64)
    return network


@pytest.mark.parametrize("method", ["adam", "prox", "l1"])
def test_from_a_start_without_a_gradient_images_begin_again(method: Any) -> None:
    """All-black starts of a network whose units are dead there: nothing moves; begun again, every image succeeds."""
    network, targets = dead_on_black(), torch.arange(16) % 8
    options: dict[str, Any] = {"method": method, "start": "black", "steps": 100, "s_max": 12, "lam": 0.1}
    plain = recover(network, targets, SHAPE, restarts=0, **options)
    assert (plain.images == 0).all()
    assert not plain.success.any()
    assert (plain.restarts == 0).all()

    found = recover(network, targets, SHAPE, **options)
    assert found.success.all()
    assert (found.restarts >= 1).all()
    assert len(found.images.unique(dim=0)) == 16
    same: list[Recovery] = [
        recover(network, targets, SHAPE, batch_size=1, **options),
        recover(network, targets, SHAPE, keep_finished=True, **options),
        recover(network, targets[:5], SHAPE, **options),
    ]
    for other in same:
        torch.testing.assert_close(other.images, found.images[: len(other)], rtol=0, atol=1e-9)
        assert torch.equal(other.restarts, found.restarts[: len(other)])
        assert torch.equal(other.stop_step, found.stop_step[: len(other)])


@pytest.mark.parametrize("method", ["adam", "l1"])
def test_what_is_masked_stays_black_where_images_begin_again(method: Any) -> None:
    mask = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(2)) < 0.6
    found = recover(
        dead_on_black(), torch.arange(8), SHAPE, method=method, start="black", steps=100, s_max=12, lam=0.1, mask=mask
    )
    assert (found.restarts >= 1).all()
    assert found.success.all()
    assert (found.images[~mask] == 0).all()


def test_only_images_without_a_gradient_begin_again() -> None:
    """Two starts, one awake: it needs no restart, and goes the way it goes alone."""
    network = dead_on_black()
    begin = torch.zeros(2, *SHAPE, dtype=torch.float64)
    begin[1, 0, :, 3] = 0.5
    found = recover(network, [3, 3], SHAPE, start=begin, steps=100, s_max=12)
    alone = recover(network, [3], SHAPE, start=begin[1:], steps=100, s_max=12)
    assert found.restarts[0] >= 1
    assert found.restarts[1] == 0
    torch.testing.assert_close(found.images[1], alone.images[0], rtol=0, atol=1e-12)


def test_a_gradient_that_is_not_finite_anywhere_counts_as_none() -> None:
    """The logits' slope is infinite at black, in every entry, and finite from sparse noise on.

    With the plain start nothing moves.
    """

    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            total = images.flatten(1).sum(1).sqrt()
            return torch.stack([8 * total, -8 * total], 1)

    options: dict[str, Any] = {"method": "l1", "start": "black", "steps": 20, "s_max": 10}
    plain = recover(Root(), [0, 0], SHAPE, restarts=0, **options)
    assert (plain.images == 0).all()
    found = recover(Root(), [0, 0], SHAPE, **options)
    assert found.success.all()
    assert found.restarts.tolist() == [1, 1]


def test_an_image_that_goes_nowhere_begins_again(digits_network: Any) -> None:
    """Steps shorter than the floor never leave black, whatever the gradient; after ten of them noise is tried."""
    model = digits_network("mlp")
    options: dict[str, Any] = {"method": "adam", "start": "black", "lr": 0.05, "floor": 0.15, "lam": 0.0, "s_max": 64}
    assert (recover(model, TARGETS, SHAPE, steps=40, restarts=0, **options).images == 0).all()
    assert recover(model, TARGETS, SHAPE, steps=10, **options).restarts.tolist() == [0] * 6
    found = recover(model, TARGETS, SHAPE, steps=40, **options)
    assert (found.restarts[~found.success] >= 1).all()
    assert (found.images != 0).flatten(1).any(1).all()


class Gated(nn.Module):
    """Logits that are all 0 up to a total brightness of 8, and beyond it grow with random weights."""

    def forward(self, images: Tensor) -> Tensor:
        weight = torch.randn(64, 10, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        bright = images.flatten(1).double()
        return (bright.sum(1, keepdim=True) - 8).relu() * (bright @ weight)


@pytest.mark.parametrize("method", ["adam", "l1"])
def test_the_second_restart_goes_by_the_margin_as_if_it_were_the_start(method: Any) -> None:
    """Black and the first noise, of 10 entries, are below the gate; the second, of 20, is above it."""
    options: dict[str, Any] = {
        "method": method, "steps": 8, "p_min": 1.0, "s_max": 20, "lr": 0.2, "floor": 0.0, "penalty": "none",
    }  # fmt: skip
    model = Watched(Gated()).double()
    begin = torch.zeros(6, *SHAPE, dtype=torch.float64)
    model.register_buffer("dtype", begin[0])  # so that images are in float64
    found = recover(model, TARGETS, SHAPE, start=begin, restarts=2, **options)
    assert found.restarts.tolist() == [2] * 6
    path = [seen for seen in model.seen if len(seen) == 6][-10:-1]
    assert [int((image != 0).sum()) for image in path[:3]] == [0, 60, 120]
    for loss in ("margin", "ce"):
        model.seen.clear()
        recover(model, TARGETS, SHAPE, start=path[2], loss=loss, restarts=0, **(options | {"steps": 6}))
        again = [seen for seen in model.seen if len(seen) == 6][-8:-1]
        alike = all(torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(path[2:], again, strict=True))
        assert alike == (loss == "margin")


def test_restarts_are_bounded() -> None:
    """A model that never has a gradient: as many restarts as allowed, and the best image is still returned."""

    class Dead(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3] * 0

    found = recover(Dead(), [0, 1, 2], SHAPE, steps=20, restarts=2, start="black")
    assert found.restarts.tolist() == [2, 2, 2]
    torch.testing.assert_close(found.prob, torch.full((3,), 1 / 3))


def test_a_sparse_start(digits_network: Any) -> None:
    """s_max / 2 entries (less those below the floor), each image its own, none of them masked."""
    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    for options in ({}, {"mask": mask}):
        found = recover(
            digits_network("mlp"), TARGETS, SHAPE, steps=0, start="sparse", s_max=20, floor=0.0, p_min=1.0, **options
        )
        assert (found.sparsity == 10).all()
        assert len(found.images.unique(dim=0)) == len(TARGETS)
    assert (found.images[:, ~mask] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "outputs"}, "penalty must be 'none', 'input', 'all', 'hidden' or a mapping"),
        ({"penalty": {"relu9": 1.0}}, "penalty names 'relu9'; accepted: 'input', 'flatten', 'linear1', 'relu1'"),
        ({"penalty": {"relu1": -1.0}}, "penalty must have weights of at least 0, and finite; got -1.0 for 'relu1'"),
        ({"loss": "dlr"}, "loss must be one of ce, margin; got 'dlr'"),
        ({"lam_final": 1.0}, "lam_final and lam_step go together"),
        ({"lam_final": -1.0, "lam_step": 3}, "lam_final must be at least 0"),
        ({"lr_step": -1}, "lr_step must be None or at least 0; got -1"),
        ({"lr_step": 5, "lr": 0.15, "method": "l1"}, r"lr must be at least twice floor \(0.2\), being halved"),
        ({"restarts": -1}, "restarts must be at least 0; got -1"),
    ],
)
def test_bad_arguments_are_named(digits_network: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recover(digits_network("mlp"), [1], SHAPE, steps=2, **options)


def test_modules_that_cannot_be_penalised_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.pair, self.head = nn.ReLU(), _Pair(), nn.Linear(64, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.pair(images)[0].flatten(1))  # type: ignore[no-any-return]

    class _Pair(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images, images

    model = networks.build("mlp", SHAPE, 3).__class__(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="penalty 'hidden' finds no hidden layer"):
        recover(model, [1], SHAPE, steps=1, penalty="hidden")
    with pytest.raises(ValueError, match="penalty names 'unused', which the model does not call"):
        recover(Odd(), [1], SHAPE, steps=1, penalty={"unused": 1.0})
    with pytest.raises(ValueError, match=r"penalty names 'pair', which must give a tensor \(1, ...\), but gave tuple"):
        recover(Odd(), [1], SHAPE, steps=1, penalty={"pair": 1.0})


@pytest.mark.parametrize(("lr", "lr_step"), [(0.2, 5), (0.25, 5), (0.1, None), (0.15, None)])
def test_steps_of_l1_may_be_as_short_as_the_floor_when_they_end(lr: float, lr_step: int | None) -> None:
    model = networks.mlp((16, 8, 3))
    found = recover(model, [0], (1, 4, 4), method="l1", lr=lr, lr_step=lr_step, floor=0.1, steps=8, k=2)
    assert found.images.shape == (1, 1, 4, 4)


def test_nothing_is_asked_once_all_are_done() -> None:
    asked: list[int] = []
    network = networks.mlp((16, 8, 3))

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return network(x)  # type: ignore[no-any-return]

    for steps in (2, 40):
        asked.clear()
        recover(Counted(), [0, 1], (1, 4, 4), p_min=0.0, s_max=16, steps=steps)
        if steps == 2:
            first = len(asked)
    assert len(asked) == first
