"""Training on attacks on the fly: the loss by definition, mixtures and their weights, resuming, and what goes wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparring as sp
from sparring import attacks, data, networks
from sparring.data import Dataset
from sparring.lipschitz import penalty, project_
from sparring.runs import Run
from sparring.training import FitConfig, fit, fit_adversarial, fit_mixture
from sparring.training.fit import members_loss, mixture_loss
from sparring.training.streams import stream

M, K = 4, 3
QUICK = FitConfig(
    epochs=2, batch_size=16, eps=0.2, optimizer="sgd", lr=0.05, label_smoothing=0.0, test_eps=(0.2,), eval_images=20
)


@pytest.fixture
def images() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % K
    pictures = 0.3 * torch.rand(48, 1, 4, 4, generator=generator)
    pictures[torch.arange(48), 0, labels] += 0.5  # one bright row for each class
    return Dataset("rows", "train", pictures, labels, K)


def mixture(combine: str = "probs", count: int = M, weights: Any = None) -> sp.StackedEnsemble:
    generator = torch.Generator().manual_seed(1)
    models = []
    for _ in range(count):
        model = networks.mlp((16, 6, K))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        models.append(model)
    return sp.StackedEnsemble(models, combine, weights)


@pytest.mark.parametrize("combine", ["probs", "logits", "loss", "vote"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixture_loss_and_its_derivatives(combine: str, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = (3 * torch.randn(M, 7, K, generator=generator, dtype=torch.float64)).requires_grad_()
    raw = torch.randn(M, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.arange(7) % K

    def by_definition(logits: Tensor, raw: Tensor) -> Tensor:
        w = raw.softmax(0)[:, None, None]
        wanted = (1 - smoothing) * F.one_hot(labels, K) + smoothing / K
        if combine == "loss":
            return -(w * wanted * logits.log_softmax(2)).sum((0, 2))
        log_p = (w * logits.softmax(2)).sum(0).log() if combine != "logits" else (w * logits).sum(0).log_softmax(1)
        return -(wanted * log_p).sum(1)

    ours = mixture_loss(logits, labels, raw.log_softmax(0), combine, label_smoothing=smoothing)
    right = by_definition(logits, raw)
    torch.testing.assert_close(ours, right)
    seed = torch.rand(7, generator=generator, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (logits, raw), seed), torch.autograd.grad(right, (logits, raw), seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, M])
def test_members_loss_is_the_sum_of_theirs(smoothing: float, count: int) -> None:
    logits = torch.randn(count, 7, K, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    labels = torch.arange(7) % K
    right = sum(F.cross_entropy(one, labels, reduction="none", label_smoothing=smoothing) for one in logits)
    ours = members_loss(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(ours, right)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), logits)[0], torch.autograd.grad(torch.as_tensor(right).sum(), logits)[0]
    )


def test_a_step_is_the_one_of_the_combined_loss(images: Dataset) -> None:
    """One batch and one step of plain descent, by hand: alpha J(x) + (1 - alpha) J(x + eps sign)."""
    model = mixture(count=1).member(0)
    by_hand = copy.deepcopy(model)
    config = QUICK.replace(epochs=1, batch_size=48, alpha=0.3, lr=0.1, weight_decay=0.0)
    fit_adversarial(model, images, images, config)
    moved = attacks.fgsm(by_hand, images.images, images.labels, eps=0.2)
    loss = 0.3 * F.cross_entropy(by_hand(images.images), images.labels)
    loss = loss + 0.7 * F.cross_entropy(by_hand(moved), images.labels)
    grads = torch.autograd.grad(loss, [*by_hand.parameters()])
    for ours, before, grad in zip(model.parameters(), by_hand.parameters(), grads, strict=True):
        torch.testing.assert_close(ours, before - 0.1 * grad)


def test_training_helps_against_the_attack(images: Dataset) -> None:
    config = QUICK.replace(epochs=30, optimizer="adam", lr=0.01, eps=0.25, test_eps=(0.25,), eval_images=0)
    plain, hardened = mixture(count=1).member(0), mixture(count=1).member(0)
    first = fit(plain, images, images, config).history[-1]
    second = fit_adversarial(hardened, images, images, config).history[-1]
    assert first["test/accuracy"] == second["test/accuracy"] == 1
    assert second["fgs/0.25/accuracy"] > first["fgs/0.25/accuracy"] + 0.2
    assert "train/loss_attacked" in second
    assert "train/loss_attacked" not in first


def test_joint_and_independent_updates(images: Dataset) -> None:
    """Independent members train as they would alone; joint ones do not."""
    config = QUICK.replace(attack="none", updates="independent", weights_lr=0.0)
    together = fit_mixture(mixture(), images, images, config)
    for i in range(M):
        alone = mixture().member(i)
        fit(alone, images, images, config)
        for name, tensor in together.model.member(i).state_dict().items():  # type: ignore[operator]
            torch.testing.assert_close(tensor, alone.state_dict()[name])
    joint = fit_mixture(mixture(), images, images, config.replace(updates="joint"))
    assert not torch.allclose(
        joint.model.get_parameter("net.linear1.weight"), together.model.get_parameter("net.linear1.weight"), rtol=1e-3
    )


@pytest.mark.parametrize("updates", ["joint", "independent"])
def test_larger_reg_gives_more_uniform_weights(images: Dataset, updates: str) -> None:
    """And without any the best of the members take over; weights always sum to 1."""
    spread = []
    for reg in (0.0, 0.1, 1.0):
        start = mixture(weights=[0.7, 0.1, 0.1, 0.1])
        config = QUICK.replace(updates=updates, reg=reg, weights_lr=0.02, epochs=30)
        result = fit_mixture(start, images, images, config)
        assert result.weights is not None
        assert result.weights.shape == (30 * 3 + 1, M)
        torch.testing.assert_close(result.weights.sum(1), torch.ones(30 * 3 + 1))
        torch.testing.assert_close(result.weights[0], torch.tensor([0.7, 0.1, 0.1, 0.1]))
        assert torch.equal(result.weights[-1], result.model.get_buffer("weights").float())
        assert result.history[-1]["weights/max"] == pytest.approx(float(result.weights[-1].max()))
        spread.append(float(result.weights[-1].std()))
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.06 < 0.1 < spread[0]


def test_an_ensemble_of_modules_trains_as_the_stack_does(images: Dataset) -> None:
    stack = mixture()
    modules = sp.Ensemble([stack.member(i) for i in range(M)])
    config = QUICK.replace(reg=0.5)
    one, other = (fit_mixture(model, images, images, config) for model in (stack, modules))
    assert one.history[-1]["test/accuracy"] == pytest.approx(other.history[-1]["test/accuracy"])
    for i in range(M):
        for name, tensor in stack.member(i).state_dict().items():
            torch.testing.assert_close(tensor, modules.member(i).state_dict()[name], rtol=1e-4, atol=1e-5)


class Journal:
    """A run in memory, cut off after so many records."""

    def __init__(self, records: int) -> None:
        self.left, self.history, self.kept = records, list[Any](), None

    def log(self, record: Any) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.history.append(record)

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.kept = (copy.deepcopy(tensors), copy.deepcopy(state), len(self.history))

    def restore(self) -> Any:
        if self.kept is None:
            return None
        from sparring.training.loop import Checkpoint

        self.history = self.history[: self.kept[2]]
        return Checkpoint(self.kept[0], self.kept[1], [*self.history])


@pytest.mark.parametrize("optimizer", ["adadelta", "adam", "sgd"])
def test_resumed_after_every_epoch_to_the_same_bits(images: Dataset, optimizer: Any) -> None:
    config = QUICK.replace(optimizer=optimizer, reg=0.5, augment="affine", epochs=3, schedule="cosine")
    whole = fit_mixture(mixture(), images, images, config)
    for records in (1, 2, 3):
        run = Journal(records)
        with pytest.raises(KeyboardInterrupt):
            fit_mixture(mixture(), images, images, config, run=run)
        run.left = -1
        resumed = fit_mixture(mixture(), images, images, config, run=run)
        assert resumed.history == run.history == whole.history
        assert whole.weights is not None
        assert resumed.weights is not None
        assert torch.equal(resumed.weights, whole.weights)
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], tensor)


def test_in_a_run_folder(images: Dataset, tmp_path: Path) -> None:
    config = QUICK.replace(epochs=1)
    with Run.create(tmp_path, "one", {}) as run:
        first = fit_mixture(mixture(), images, images, config, run=run)
    with Run.open(tmp_path / "one") as run:
        assert run.records() == first.history
        again = fit_mixture(mixture(), images, images, config, run=run)
    assert again.history == first.history
    assert torch.equal(again.model(images.images), first.model(images.images))


def test_stops_at_nan_with_the_last_good_model(images: Dataset) -> None:
    state, calls = Journal(-1), list[int]()

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        calls.append(len(x))
        return x + (0.1 if len(calls) <= 3 else torch.nan)  # the second epoch's

    good = fit_mixture(mixture(), images, images, QUICK.replace(epochs=1), attack=attack)
    calls.clear()
    result = fit_mixture(mixture(), images, images, QUICK.replace(epochs=5), attack=attack, run=state)
    assert result.stopped == "the loss was not finite in epoch 2; the model is that of epoch 1"
    assert [record["kind"] for record in result.history] == ["start", "epoch", "stopped"]
    for name, tensor in good.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], tensor)
    again = fit_mixture(mixture(), images, images, QUICK.replace(epochs=5), run=state)
    assert again.stopped == result.stopped
    assert again.history == result.history


def test_nothing_global_is_touched(images: Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, K))
    state = torch.get_rng_state()
    first = fit_adversarial(copy.deepcopy(model), images, images, QUICK)
    torch.rand(5)
    torch.set_rng_state(state)
    with torch.no_grad():
        second = fit_adversarial(copy.deepcopy(model), images, images, QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.history == second.history
    assert not first.model.training


@pytest.mark.parametrize("updates", ["joint", "independent"])
def test_a_regularizer_is_part_of_the_loss(images: Dataset, updates: Any) -> None:
    """Once a step, whatever the batch size: one step of plain descent, by hand, of a mixture's stacked parameters."""

    def norm(model: nn.Module) -> Tensor:
        return 0.1 * torch.stack([(parameter**2).sum() for parameter in model.parameters()]).sum()

    config = QUICK.replace(epochs=1, batch_size=48, lr=0.1, attack="none", updates=updates, weights_lr=0.0)
    plain, changed, start = mixture(), mixture(), mixture()
    without = fit_mixture(plain, images, images, config)
    result = fit_mixture(changed, images, images, config, regularizer=norm)
    for one, other, before in zip(plain.parameters(), changed.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(other, one - 0.1 * 0.2 * before)
    assert result.history[-1]["train/regularizer"] == pytest.approx(norm(start).item())
    assert result.history[-1]["train/loss"] == pytest.approx(without.history[-1]["train/loss"])
    assert "train/regularizer" not in without.history[-1]


def test_a_penalty_lowers_the_bound_and_is_resumed_to_the_same_bits(images: Dataset) -> None:
    config = QUICK.replace(epochs=3, optimizer="adam", lr=0.01, attack="none")

    def trained(run: Any = None, weight: float = 0.2) -> Any:
        model = mixture()
        return fit_mixture(model, images, images, config, regularizer=penalty(model, weight=weight), run=run)

    whole = trained()
    first, _, last = (record.get("train/regularizer") for record in whole.history[1:])
    assert last < first
    norms = [penalty(result.model).estimates()["net.linear1"] for result in (whole, trained(weight=0.0))]
    assert (norms[0] < 0.9 * norms[1]).all()
    for records in (1, 2, 3):
        run = Journal(records)
        with pytest.raises(KeyboardInterrupt):
            trained(run)
        run.left = -1
        resumed = trained(run)
        assert resumed.history == whole.history
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], tensor)


def test_a_penalty_by_the_settings(images: Dataset) -> None:
    config = QUICK.replace(epochs=2, attack="none", lipschitz=0.2)
    model = mixture()
    by_hand = penalty(model, (1, 4, 4), weight=0.2, generator=stream(config.seed, "penalty"))
    given = fit_mixture(model, images, images, config.replace(lipschitz=0.0), regularizer=by_hand)
    named = fit_mixture(mixture(), images, images, config)
    assert named.history == given.history
    with pytest.raises(ValueError, match=r"regularizer must be None where config\.lipschitz is not 0"):
        fit_mixture(mixture(), images, images, config, regularizer=by_hand)
    with pytest.raises(ValueError, match=r"lipschitz is -1\.0"):
        FitConfig(lipschitz=-1.0)


def test_after_each_step_weights_may_be_changed(images: Dataset) -> None:
    model, steps = mixture(count=1).member(0), list[float]()

    def held(model: nn.Module) -> None:
        steps.append(max(project_(model, 0.3).values()))

    result = fit(model, images, images, QUICK.replace(epochs=2, optimizer="adam"), after_step=held)
    assert len(steps) == 2 * 3
    assert max(steps) <= 0.3
    assert max(value.item() for value in penalty(result.model).estimates().values()) <= 0.3

    def spoil(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.nan

    stopped = fit_adversarial(model, images, images, QUICK, attack=spoil, after_step=held)
    assert stopped.stopped == "the loss was not finite in epoch 1; the model is that of epoch 0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "lbfgs"}, "attack is 'lbfgs': accepted are 'none', 'fgsm'"),
        ({"alpha": 1.5}, "alpha is 1.5: give a number from 0 to 1"),
        ({"reg": -1.0}, "reg is -1.0"),
        ({"updates": "both"}, "updates is 'both'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"test_eps": (0.1, 0.0)}, "test_eps is 0.0"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitConfig(**changes)


def test_bad_mixtures(images: Dataset) -> None:
    with pytest.raises(TypeError, match="mixture must be a StackedEnsemble or an Ensemble, not a Sequential"):
        fit_mixture(mixture().member(0), images, images, QUICK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mixture has a weight of 0"):
        fit_mixture(mixture(weights=[1, 0, 1, 1]), images, images, QUICK)


def test_settings_as_json() -> None:
    import dataclasses
    import json

    config = FitConfig(attack="pgd", attack_options={"steps": 3}, test_eps=(0.1,))
    assert FitConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(ValueError, match="have unknown more: it is of another version"):
        FitConfig.from_json({**dataclasses.asdict(config), "more": 1})


def test_radial_basis_functions_are_trained_with_a_loss_of_their_own() -> None:
    digits, test = data.load("digits"), data.load("digits", split="test")
    config = FitConfig(
        epochs=8, optimizer="adam", lr=0.05, attack="none", loss="bernoulli", label_smoothing=0.0, test_eps=()
    )
    model = networks.build("rbf", digits.input_shape, 10)
    result = fit(model, digits, test, config)
    assert result.history[-1]["test/accuracy"] > 0.7
    with torch.no_grad():
        sure = model(test.images).exp()
    assert float(sure.gather(1, test.labels[:, None]).mean()) > 3 * float(sure.mean())


def test_that_loss_is_refused_where_it_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="label_smoothing must be 0 with loss 'bernoulli'"):
        FitConfig(loss="bernoulli")
    digits = data.load("digits")
    mixture = sp.StackedEnsemble([networks.build("softmax", digits.input_shape, 10) for _ in range(2)])
    config = FitConfig(loss="bernoulli", label_smoothing=0.0)
    with pytest.raises(ValueError, match="loss must be 'ce' for a mixture"):
        fit_mixture(mixture, digits, digits, config)
