"""`recover`: closed forms, independence of the batch, early stop, masks, the best kept, and a model left as it was."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from sparring import data, networks
from sparring.attacks import Recovery, recover
from sparring.attacks.recovery import Method

METHODS = get_args(Method)
SHAPE = (1, 8, 8)
TARGETS = torch.arange(20) % 10

Network = Callable[[str], nn.Module]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    return nn.Sequential(nn.Flatten(), layer)


def prob_of(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).softmax(1).gather(1, targets[:, None])[:, 0]


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(4, 30, generator=seeded(), dtype=torch.float64)


def test_first_step_of_l1_on_a_linear_model(weight: Tensor) -> None:
    """From black, where all classes are equally likely, the k entries of largest w_target - mean w become lr."""
    targets = torch.arange(4)
    slope = weight - weight.mean(0)
    expected = torch.zeros_like(slope)
    for row, best in zip(expected, slope.clamp(min=0).topk(5, dim=1).indices, strict=True):
        row[best] = 0.3
    found = recover(
        linear(weight), targets, (30,), method="l1", steps=1, p_min=1, start="black", k=5, lr=0.3, growth=0.5
    )
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.prob, (expected @ weight.T).softmax(1).diagonal(), rtol=1e-12, atol=0)
    assert found.sparsity.tolist() == [5] * 4


@pytest.mark.parametrize("method", ["adam", "prox"])
def test_first_step_of_adam_on_a_linear_model(weight: Tensor, method: Method) -> None:
    """Adam's first step is lr g / (|g| + 1e-4), whatever the moments' decay; "prox" then shrinks in the same metric."""
    lr, lam, targets = 0.01, 2.0, torch.arange(4)
    start = torch.rand(4, 30, generator=seeded(1), dtype=torch.float64) * 0.6 + 0.2
    prob = (start @ weight.T).softmax(1)
    grad = prob @ weight - weight
    if method == "adam":
        grad = grad + lam / 30
        expected = start - lr * grad / (grad.abs() + 1e-4)
    else:
        expected = start - lr * grad / (grad.abs() + 1e-4) - lr / (grad.abs() + 1e-4) * lam / 30
    found = recover(
        linear(weight), targets, (30,), method=method, steps=1, p_min=1, start=start, lr=lr, lam=lam, floor=0
    )
    torch.testing.assert_close(found.images, expected.clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_new_methods_need_fewer_steps_than_the_original(digits_network: Network, name: str) -> None:
    targets = torch.arange(50) % 10
    found = {
        method: recover(digits_network(name), targets, SHAPE, method=method, steps=100, s_max=15) for method in METHODS
    }
    steps = {method: float(result.stop_step.double().mean()) for method, result in found.items()}
    assert steps["l1"] < 0.6 * steps["prox"] < 0.3 * steps["adam"]
    assert found["adam"].success.sum() < found["prox"].success.sum() == found["l1"].success.sum() == 50
    assert found["l1"].stop_step.max() <= 30
    assert found["l1"].sparsity.double().mean() < found["prox"].sparsity.double().mean()


def test_on_a_network_trained_against_them_the_new_methods_still_find_images(
    digits_network: Network, fit: Callable[..., None]
) -> None:
    """Three rounds of generating and training, on fake classes: the subgradient fails, even with as large a lambda."""
    model, digits, targets = deepcopy(digits_network("mlp")), data.load("digits"), torch.arange(200) % 10
    head = nn.Linear(128, 20)
    with torch.no_grad():
        head.weight.copy_(torch.cat([model.linear3.weight, torch.zeros(10, 128)]))
        head.bias.copy_(torch.cat([model.linear3.bias, torch.zeros(10)]))
    model.linear3 = head
    images, labels = digits.images, digits.labels
    for seed in range(3):
        found = recover(model, targets, SHAPE, method="l1", steps=100, s_max=16, generator=seeded(seed))
        images = torch.cat([images, found.images[found.success]])
        labels = torch.cat([labels, targets[found.success] + 10])
        fit(model, images, labels, epochs=6, generator=seeded(seed))
    attempts: dict[str, dict[str, Any]] = {
        "original": {"method": "adam"}, "subgradient": {"method": "adam", "lam": 5.0}, "prox": {"method": "prox"},
        "l1": {"method": "l1"},
    }  # fmt: skip
    made = {
        name: int(recover(model, targets[:50], SHAPE, steps=100, s_max=16, **options).success.sum())
        for name, options in attempts.items()
    }
    assert made["original"] <= 5
    assert made["subgradient"] + 10 <= made["prox"] <= made["l1"]
    assert made["l1"] >= 48


def beyond_a_hill() -> nn.Module:
    """Class 1 is likely where the sum of 20 of 30 entries is above 6; between 1 and 4 it is the less so the larger."""

    class Hill(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            total = images.flatten(1)[:, :20].sum(1)
            logit = total.clamp(max=1) - 2 * (total - 1).relu() + 6 * (total - 4).relu()
            return torch.stack([torch.zeros_like(logit), logit], 1)

    return Hill().double()


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"batch_size": 3}, {"keep_finished": True}])
def test_an_image_that_gains_no_more_begins_again_from_outside(options: dict[str, Any]) -> None:
    """Between black and the images wanted the loss has a hill: only from beyond it are they reached."""
    model, targets = beyond_a_hill(), torch.ones(7, dtype=torch.int64)
    begin = torch.zeros(7, 30, dtype=torch.float64)
    settings: dict[str, Any] = {"start": begin, "s_max": 20, "steps": 300, "k": 2}
    assert not recover(model, targets, (30,), restarts=0, **settings).success.any()
    found = recover(model, targets, (30,), **settings, **options)
    assert found.success.all()
    assert (found.restarts >= 1).all()
    assert (found.stop_step > 20).all()
    assert len(found.images.unique(dim=0)) == 7
    expected = recover(model, targets, (30,), **settings)
    torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-9)
    assert torch.equal(found.stop_step, expected.stop_step)


def test_what_is_masked_stays_black_from_outside_too() -> None:
    model, mask = beyond_a_hill(), torch.rand(30, generator=seeded(3)) < 0.9
    found = recover(
        model, [1] * 4, (30,), start=torch.zeros(4, 30, dtype=torch.float64), s_max=20, steps=300, k=2, mask=mask
    )
    assert (found.restarts >= 1).all()
    assert (found.images[:, ~mask] == 0).all()
    assert (found.images[:, mask] != 0).any()


def test_the_default_is_the_strongest(digits_network: Network) -> None:
    by_default, l1 = (
        recover(digits_network("mlp"), TARGETS, SHAPE, steps=30, s_max=12, **o) for o in ({}, {"method": "l1"})
    )
    assert torch.equal(by_default.images, l1.images)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_returned_is_what_a_fresh_look_at_the_images_says(digits_network: Network, method: Method) -> None:
    model = digits_network("cnn")
    found = recover(model, TARGETS, SHAPE, method=method, steps=30, s_max=25)
    torch.testing.assert_close(found.prob, prob_of(model, found.images, TARGETS), rtol=1e-5, atol=0)
    assert torch.equal(found.sparsity, (found.images > 0).flatten(1).sum(1))
    assert torch.equal(found.success, (found.prob >= 0.9) & (found.sparsity <= 25))
    assert bool((found.stop_step[~found.success] == 30).all())
    assert bool((found.stop_step[found.success] <= 30).all())  # 30 where only the last image qualifies
    assert ((found.images == 0) | (found.images >= 0.1)).all()
    assert found.images.max() <= 1
    assert len(found) == 20
    assert not any(field.requires_grad for field in vars(found).values())
    assert (found.sparsity.dtype, found.stop_step.dtype, found.success.dtype) == (torch.int64, torch.int64, torch.bool)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mask_fraction", [0.0, 0.3])
def test_no_image_depends_on_the_batch(digits_network: Network, method: Method, mask_fraction: float) -> None:
    """In float64 the batch's shape changes the model's arithmetic by 1e-15 or so, and a path of 40 steps by 1e-9."""
    model = deepcopy(digits_network("mlp")).double()

    def found(count: int = 20, **options: Any) -> Recovery:
        return recover(
            model, TARGETS[:count], SHAPE, method=method, steps=40, s_max=28, generator=seeded(7),
            mask_fraction=mask_fraction, **options,
        )  # fmt: skip

    whole = found()
    assert whole.success.any()
    for other in (found(batch_size=1), found(batch_size=7), found(keep_finished=True), found(count=5)):
        assert torch.equal(other.stop_step, whole.stop_step[: len(other)])
        torch.testing.assert_close(other.images, whole.images[: len(other)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_stops_at_its_first_success(digits_network: Network, method: Method) -> None:
    model = deepcopy(digits_network("mlp")).double()
    found = recover(model, TARGETS[:6], SHAPE, method=method, steps=60, s_max=30, generator=seeded(2))
    assert found.success.sum() >= 3
    for i in found.success.nonzero()[:, 0].tolist():
        stop = int(found.stop_step[i])
        enough, too_few = (
            recover(model, TARGETS[: i + 1], SHAPE, method=method, steps=steps, s_max=30, generator=seeded(2))
            for steps in (stop, max(0, stop - 1))
        )
        assert enough.success[i]
        assert stop == 0 or not too_few.success[i]
        torch.testing.assert_close(enough.images[i], found.images[i], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_start_that_already_succeeds_is_returned_in_no_steps(digits_network: Network, method: Method) -> None:
    model = digits_network("mlp")
    test = data.load("digits", split="test")
    sure = test[prob_of(model, test.images, test.labels) > 0.99][:8]
    found = recover(model, sure.labels, SHAPE, method=method, steps=10, start=sure.images, s_max=64, floor=0.05)
    assert found.stop_step.tolist() == [0] * 8
    assert torch.equal(found.images, torch.where(sure.images < 0.05, 0, sure.images))
    assert found.success.all()


@pytest.mark.parametrize("method", METHODS)
def test_the_best_step_is_kept_where_none_succeeds(digits_network: Network, method: Method) -> None:
    """p = 1 is out of reach: with any sparsity allowed, a longer search is never worse."""
    model = deepcopy(digits_network("mlp")).double()
    prob = torch.zeros(20, dtype=torch.float64)
    for steps in (0, 3, 6, 12, 24):
        found = recover(model, TARGETS, SHAPE, method=method, steps=steps, p_min=1.0, s_max=64, lr=0.5)
        assert (found.prob >= prob - 1e-12).all()
        assert found.stop_step.tolist() == [steps] * 20
        assert not found.success.any()
        prob = found.prob
    assert prob.min() > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_sparse_enough_comes_before_probable(digits_network: Network, method: Method) -> None:
    """From black there is a sparse enough step, however improbable, which is returned rather than a dense one."""
    found = recover(digits_network("mlp"), TARGETS, SHAPE, method=method, steps=15, start="black", s_max=3, p_min=0.999)
    assert (found.sparsity <= 3).all()
    assert not found.success.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("black", [0.0, 0.3])
def test_masked_entries_stay_exactly_black(digits_network: Network, method: Method, black: float) -> None:
    options: dict[str, Any] = {"method": method, "steps": 8, "s_max": 30, "black": black, "p_min": 0.99}
    given = torch.rand(20, *SHAPE, generator=seeded(3)) < 0.6
    found = recover(digits_network("mlp"), TARGETS, SHAPE, mask=given, **options)
    assert (found.images[~given] == black).all()
    assert (found.images[given] != black).any()
    one_for_all = recover(digits_network("mlp"), TARGETS, SHAPE, mask=given[0], **options)
    assert (one_for_all.images[:, ~given[0]] == black).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_random_mask_holds_its_fraction_of_each_image(method: Method) -> None:
    """A model that wants every entry white gets all but the held ones, of which each image has its own 16 of 64."""
    model = linear(torch.stack([torch.zeros(64), torch.full((64,), 0.1)]))
    found = recover(
        model, [1] * 12, SHAPE, method=method, steps=60, p_min=1, s_max=64, lam=0, k=64, growth=1.0, mask_fraction=0.25
    )
    held = found.images == 0
    assert (held.flatten(1).sum(1) == 16).all()
    assert len(held.unique(dim=0)) == 12


@pytest.mark.parametrize("method", METHODS)
def test_other_bounds_and_background(method: Method, digits_network: Network) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = digits_network("mlp")

        def forward(self, images: Tensor) -> Tensor:
            return self.network((images + 1) / 2)

    found = recover(Shifted(), TARGETS, SHAPE, method=method, steps=40, s_max=25, black=-1.0, bounds=(-1.0, 1.0))
    assert found.images.min() == -1
    assert found.images.max() <= 1
    assert torch.equal(found.sparsity, (found.images > -1).flatten(1).sum(1))
    assert found.success.float().mean() >= (0.1 if method == "adam" else 0.9)


def test_each_image_has_its_own_noise_and_a_generator_repeats_it(digits_network: Network) -> None:
    model, same = digits_network("mlp"), torch.zeros(20, dtype=torch.int64)
    for method in METHODS:
        found = recover(model, same, SHAPE, method=method, steps=20, s_max=25, generator=seeded(1))
        assert len(found.images.unique(dim=0)) >= 18
        assert torch.equal(
            recover(model, same, SHAPE, method=method, steps=20, s_max=25, generator=seeded(1)).images, found.images
        )
        assert not torch.equal(recover(model, same, SHAPE, method=method, steps=20, s_max=25).images, found.images)


class Awkward(nn.Module):
    """Batch norm and dropout, some submodules in training mode, a frozen parameter, and gradients already there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 36, 10)
        self.train()
        self.drop.eval()
        self.conv.bias.requires_grad_(False)
        for parameter in (self.conv.weight, self.head.weight):
            parameter.grad = torch.ones_like(parameter)
        self.fail_after = -1

    def forward(self, images: Tensor) -> Tensor:
        self.fail_after -= 1
        if self.fail_after == 0:
            raise RuntimeError("out of order")
        return self.head(self.drop(self.norm(self.conv(images)).relu()).flatten(1))


def state_of(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
        [tensor.tolist() for tensor in model.state_dict().values()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_and_the_global_state_are_left_as_they_were(method: Method) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Awkward()
    before = state_of(model)
    found = recover(model, TARGETS, SHAPE, method=method, steps=5)
    assert state_of(model) == before
    torch.testing.assert_close(found.prob, prob_of(deepcopy(model).eval(), found.images, TARGETS), rtol=1e-5, atol=0)
    model.fail_after = 3
    with pytest.raises(RuntimeError, match="out of order"):
        recover(model, TARGETS, SHAPE, method=method, steps=5)
    assert state_of(model) == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(digits_network: Network, context: Callable[[], Any]) -> None:
    expected = recover(digits_network("mlp"), TARGETS, SHAPE, method="l1", steps=10)
    with context():
        found = recover(digits_network("mlp"), TARGETS.clone(), SHAPE, method="l1", steps=10)
        assert not torch.is_grad_enabled()
    assert torch.equal(found.images, expected.images)


@pytest.mark.parametrize("method", METHODS)
def test_float64_models_get_float64_images(digits_network: Network, method: Method) -> None:
    found = recover(deepcopy(digits_network("cnn")).double(), TARGETS, SHAPE, method=method, steps=30, s_max=30)
    assert found.images.dtype == found.prob.dtype == torch.float64
    assert found.success.any()


@pytest.mark.parametrize("empty", [[], torch.empty(0, dtype=torch.int64)])
def test_no_targets_no_images(digits_network: Network, empty: Any) -> None:
    found = recover(digits_network("mlp"), empty, SHAPE)
    assert found.images.shape == (0, *SHAPE)
    assert [len(field) for field in vars(found).values()] == [0] * 6
    assert (found.images.dtype, found.stop_step.dtype, found.success.dtype) == (torch.float32, torch.int64, torch.bool)


def test_a_module_of_the_users_own() -> None:
    """No parameters, colour images, an output that is not the last layer's."""

    class Brightness(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 30 * images.mean((2, 3))

    found = recover(Brightness(), [0, 1, 2], (3, 4, 4), method="l1", steps=50, s_max=20)
    assert found.success.all()
    assert found.images.mean((2, 3)).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": [0.5]}, r"targets must be class indices \(B,\), got torch.float32 of shape \(1,\)"),
        ({"targets": [[1]]}, r"targets must be class indices \(B,\), got torch.int64 of shape \(1, 1\)"),
        ({"targets": [True]}, "targets must be class indices"),
        ({"targets": [3, -1]}, "targets must not be negative, got -1"),
        ({"targets": [3, 10]}, "targets must be below 10, the model's outputs; got 10"),
        ({"shape": ()}, r"shape must be one image's, such as \(1, 28, 28\), got \(\)"),
        ({"shape": (1, 0, 8)}, "shape must be"),
        ({"method": "sgd"}, "method must be one of adam, prox, l1; got 'sgd'"),
        ({"steps": -1}, "steps must be at least 0; got -1"),
        ({"lam": -0.1}, "lam must be at least 0"),
        ({"lam": float("nan")}, "lam must be at least 0, and finite; got nan"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"p_min": 1.1}, r"p_min must be in \[0, 1\]; got 1.1"),
        ({"s_max": -1}, "s_max must be at least 0"),
        ({"floor": -0.1}, "floor must be at least 0"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be \(lo, hi\) with lo < hi; got \(1.0, 0.0\)"),
        ({"black": 2.0}, r"black must be in the bounds \(0.0, 1.0\); got 2.0"),
        ({"k": 0}, "k must be None or at least 1"),
        ({"growth": 0.0}, "growth must be positive"),
        ({"batch_size": 0}, "batch_size must be None or at least 1"),
        ({"method": "l1", "lr": 0.05}, r"lr must be at least floor \(0.1\) for method 'l1'"),
        ({"start": "white"}, "start must be 'noise', 'black', 'sparse' or a tensor, got 'white'"),
        ({"start": torch.zeros(3, 1, 8, 8)}, r"start must be floating point of shape \(2, 1, 8, 8\) on cpu; got"),
        ({"start": torch.zeros(2, 1, 8, 8, dtype=torch.int64)}, "start must be floating point"),
        ({"start": torch.full((2, 1, 8, 8), torch.nan)}, "start must be finite"),
        ({"start": torch.zeros(2, 1, 8, 8, device="meta")}, "start must be .* on cpu; got .* on meta"),
        ({"mask": torch.ones(1, 8, 8)}, r"mask must be bool of shape \(1, 8, 8\) or \(2, 1, 8, 8\)"),
        ({"mask": torch.ones(8, 8, dtype=torch.bool)}, "mask must be bool of shape"),
        ({"mask": torch.ones(1, 8, 8, dtype=torch.bool), "mask_fraction": 0.5}, "mask and mask_fraction exclude"),
        ({"mask_fraction": 1.5}, r"mask_fraction must be in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_named(digits_network: Network, options: dict[str, Any], message: str) -> None:
    arguments = {"targets": [1, 2], "shape": SHAPE, "steps": 2} | options
    with pytest.raises(ValueError, match=message):
        recover(digits_network("mlp"), **arguments)


class Returns(nn.Module):
    def __init__(self, output: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Tensor:
        return self.output(images)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Returns(lambda images: images), r"model must return logits \(2, K\) for 2 images, not \(2, 1, 8, 8\)"),
        (Returns(lambda images: images.flatten(1)[:1]), r"model must return logits \(2, K\)"),
        (Returns(lambda images: images.flatten(1) * torch.nan), "model must return finite logits"),
        (Returns(lambda images: images.detach().flatten(1)), "model must be differentiable"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half(),
            "model must be in float32 or float64, not torch.float16",
        ),
    ],
)
def test_models_that_cannot_be_attacked_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recover(model, [1, 2], SHAPE, steps=2)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_is_an_error(method: Method) -> None:
    """The square root of 0 has an infinite slope: the output is fine, the gradient is not."""
    with pytest.raises(ValueError, match="grad"):
        recover(Returns(lambda images: images.flatten(1).sqrt()), [1, 2], SHAPE, method=method, steps=2, start="black")


@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
def test_on_a_device_with_a_generator_of_the_cpu(digits_network: Network, method: Method) -> None:
    options: dict[str, Any] = {"method": method, "steps": 40, "s_max": 25, "mask_fraction": 0.2}
    expected = recover(deepcopy(digits_network("mlp")).double(), TARGETS, SHAPE, generator=seeded(4), **options)
    model = deepcopy(digits_network("mlp")).double().cuda()
    found = recover(model, TARGETS, SHAPE, generator=seeded(4), **options)
    assert found.images.device.type == "cuda"
    assert torch.equal(found.stop_step.cpu(), expected.stop_step)
    torch.testing.assert_close(found.images.cpu(), expected.images, rtol=0, atol=1e-9)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "file"), [("mlp-300-100", "mnist_mlp"), ("lenet5", "mnist_lenet5")])
def test_on_networks_trained_by_others(shared: Path, name: str, file: str) -> None:
    model = networks.load_weights(networks.build(name, (1, 28, 28), 10), shared / "models" / f"{file}.safetensors")
    found = {
        method: recover(model, TARGETS, (1, 28, 28), method=method, steps=60, s_max=100) for method in ("prox", "l1")
    }
    assert all(result.success.all() for result in found.values())
    assert found["l1"].stop_step.max() <= 20 < found["prox"].stop_step.median()
    original = recover(model, TARGETS, (1, 28, 28), method="adam", steps=60, s_max=100)
    assert original.success.sum() <= 2


def robust_network(shared: Path) -> nn.Module:
    """The adversarially trained network on MNIST."""
    with torch.random.fork_rng():
        model = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
    return networks.load_weights(model, shared / "models" / "mnist_robust_cnn.safetensors")


@pytest.mark.shared
def test_the_default_finds_nearly_all_on_a_network_trained_to_withstand_attacks(shared: Path) -> None:
    """Where steps out of black get stuck on most classes, and Adam's penalty leaves too many pixels lit."""
    model, targets, options = robust_network(shared), torch.arange(30) % 10, {"s_max": 30, "steps": 400}
    found = recover(model, targets, (1, 28, 28), **options)  # type: ignore[arg-type]
    assert found.success.sum() >= 25
    outwards = recover(model, targets, (1, 28, 28), restarts=0, **options)  # type: ignore[arg-type]
    original = recover(model, targets, (1, 28, 28), method="adam", **options)  # type: ignore[arg-type]
    assert max(outwards.success.sum(), original.success.sum()) <= 15
    torch.testing.assert_close(found.prob, prob_of(model, found.images, targets), rtol=1e-5, atol=0)
    assert torch.equal(found.success, (found.prob >= 0.9) & (found.sparsity <= 30))
    assert (found.restarts[found.success] > 0).any()
