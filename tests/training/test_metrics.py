"""Every metric of retraining on constructed networks and images, where its value is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparring.data import Dataset
from sparring.training import METRICS, Parts, RetrainConfig, retrain
from sparring.training.building import Learner, make_optimizer
from sparring.training.evaluate import (
    attack_metrics,
    distribution_metrics,
    fooling_metrics,
    nearest_distance,
    real_metrics,
)
from sparring.training.fooling import FoolingSet
from sparring.training.generate import Generate
from sparring.training.labelling import FakeClasses, Uniform
from sparring.training.measure import Real, epoch_metrics
from sparring.training.selection import harmonic, selection_metrics
from sparring.training.state import State

LOG3 = math.log(3)


class Constant(nn.Module):
    """Gives every image the same logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


class Brightest(nn.Module):
    """Of three pixels, the class of the brightest, by a logit of `height` where all others are 0; nothing is fake."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(height))

    def forward(self, images: Tensor) -> Tensor:
        real = self.height * nn.functional.one_hot(images.flatten(1).argmax(1), 3)
        return torch.cat([real, torch.zeros_like(real)], 1)


def three(**changes: Any) -> FoolingSet:
    """Images of three pixels, one lit for the class of each, made for the classes 0, 1, 1."""
    images = torch.eye(3).reshape(3, 1, 1, 3)
    values = {
        "images": images,
        "targets": torch.tensor([0, 1, 1]),
        "prob": torch.tensor([0.95, 0.6, 0.2]),
        "sparsity": torch.tensor([1, 2, 3]),
        "stop_step": torch.tensor([10, 20, 30]),
        "success": torch.tensor([True, True, False]),
    }
    return FoolingSet(**{**values, **changes})


def real(split: Any = "test") -> Dataset:
    """The same images as real ones of the classes 0, 1 and 2."""
    return Dataset("three", split, torch.eye(3).reshape(3, 1, 1, 3), torch.arange(3), 3)


def test_metric_0_and_8_what_an_attack_reached() -> None:
    for group in ("0", "8"):
        found = attack_metrics(group, three(), 3)
        wanted = {
            "images": 3, "yield": 2 / 3, "yield/class_0": 1, "yield/class_1": 0.5, "prob": 1.75 / 3,
            "prob/class_1": 0.4, "sparsity": 2, "sparsity/class_1": 2.5, "stop_step": 20, "stop_step/class_0": 10,
            "bin_0": 1 / 3, "bin_1": 0, "bin_2": 1 / 3, "bin_3": 0, "bin_4": 1 / 3, "bin_0/class_1": 0.5,
            "bin_4/class_0": 1, "bin_4/class_1": 0,
        }  # fmt: skip
        for name, value in wanted.items():
            assert found[f"{group}/{name}"] == pytest.approx(value), name
        assert not any(name.endswith("class_2") for name in found)


def test_metric_1_distance_to_the_nearest_training_image_and_what_another_network_says() -> None:
    train = replace(real("train"), images=torch.eye(3).reshape(3, 1, 1, 3) * 0.5)
    shown = three(images=torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 1, 0]]).reshape(3, 1, 1, 3))
    found = distribution_metrics(shown, train, real(), Constant(2.0, 0.0, 0.0, 9.0, 0.0, 0.0))
    distances = [0.5, 0.5, math.sqrt(0.25 + 1)]
    assert found["1/distance"] == pytest.approx(sum(distances) / 3)
    assert found["1/distance/class_1"] == pytest.approx((distances[1] + distances[2]) / 2)
    assert found["1/distance_real"] == pytest.approx(0.5)
    share = math.exp(2) / (math.exp(2) + math.exp(9) + 4)  # the likeliest of the real classes, not the fake one
    assert found["1/max_prob"] == found["1/max_prob_real"] == pytest.approx(share)
    assert "1/max_prob" not in distribution_metrics(shown, train, real(), None)
    assert distribution_metrics(shown[:0], train, real(), None) == {}


@pytest.mark.parametrize("reference", [1, 3, 200])
def test_nearest_distance_is_that_of_all_pairs_in_float64(reference: int) -> None:
    generator = torch.Generator().manual_seed(reference)
    images = torch.rand(7, 1, 5, 5, generator=generator)
    points = torch.rand(reference, 1, 5, 5, generator=generator)
    points[0] = images[3] + 1e-4  # far nearer than a difference of squares in float32 can tell
    found = nearest_distance(images, points)
    wanted = torch.cdist(images.flatten(1).double(), points.flatten(1).double()).amin(1)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_metrics_2_to_7_of_a_network_that_calls_everything_fake() -> None:
    model = Constant(0.0, 0.0, 0.0, 0.0, 50.0, 0.0)  # the fake class of class 1
    for group in ("2", "3", "4", "5", "6", "7-de"):
        found = fooling_metrics(group, model, three(), FakeClasses(3), 3)
        assert found[f"{group}/images"] == 3
        assert found[f"{group}/caught"] == 1
        assert found[f"{group}/caught_exact"] == found[f"{group}/prob_fake"] == pytest.approx(2 / 3)
        assert found[f"{group}/caught_exact/class_0"] == pytest.approx(0, abs=1e-9)
        assert found[f"{group}/loss"] == pytest.approx(50 / 3)
        assert found[f"{group}/loss/class_1"] == pytest.approx(0, abs=1e-6)


def test_metrics_2_to_7_of_a_network_that_calls_nothing_fake() -> None:
    found = fooling_metrics("4", Brightest(20.0), three(), FakeClasses(3), 3)
    assert found["4/caught"] == found["4/caught_exact"] == 0
    assert found["4/prob_fake"] == pytest.approx(math.exp(-20), rel=1e-4)
    assert found["4/loss"] == pytest.approx(20)


def test_metrics_2_to_7_of_undecided_and_of_decided_networks() -> None:
    labels = Uniform(3, threshold=0.4)
    undecided = fooling_metrics("2", Constant(0.0, 0.0, 0.0), three(), labels, 3)
    decided = fooling_metrics("2", Constant(30.0, 0.0, 0.0), three(), labels, 3)
    assert (undecided["2/caught"], decided["2/caught"]) == (1, 0)
    assert undecided["2/max_prob"] == pytest.approx(1 / 3)
    assert decided["2/max_prob"] == pytest.approx(1)
    assert (undecided["2/loss"], decided["2/loss"]) == pytest.approx((LOG3, 20))
    assert "2/caught_exact" not in decided


def test_metrics_9_and_10_of_networks_that_are_right_and_that_call_everything_fake() -> None:
    right = real_metrics("10", Brightest(20.0), real(), FakeClasses(3))
    assert right["10/accuracy"] == right["10/accuracy/class_2"] == 1
    assert right["10/false_alarm"] == 0
    assert right["10/loss"] == pytest.approx(0, abs=1e-7)
    fake = real_metrics("9", Constant(0.0, 0.0, 0.0, 50.0, 0.0, 0.0), real(), FakeClasses(3))
    assert fake["9/accuracy"] == 0
    assert fake["9/false_alarm"] == fake["9/false_alarm/class_1"] == 1
    assert fake["9/loss"] == pytest.approx(50)


def test_which_images_each_metric_of_an_epoch_is_measured_on() -> None:
    """The network sees only class 1 as fake, so the share caught exactly says which targets a metric looked at."""
    model = Constant(0.0, 0.0, 0.0, 0.0, 50.0, 0.0)
    config = RetrainConfig(eval_images=0)

    def of(*targets: int) -> FoolingSet:
        count = len(targets)
        zeros = torch.zeros(count, dtype=torch.int64)
        return FoolingSet(torch.rand(count, 1, 1, 3), torch.tensor(targets), zeros.float(), zeros, zeros, zeros == 0)

    def failed(images: FoolingSet) -> FoolingSet:
        return replace(images, success=images.success & (torch.arange(len(images)) > 0))

    state = State(Learner(model, make_optimizer(config, model.parameters())), generation=3)
    state.train_sets = [of(1, 1, 0), of(0, 0), of(1, 0, 0, 0)]
    state.fresh_sets = [failed(of(1, 1, 1)), failed(of(0, 0)), failed(of(0, 1))]
    state.other_sets = {"6": [of(1, 1, 1, 0)], "7-de": [of(1), of(0)], "7-prox": [failed(of(1))]}
    data = Real(real("train"), real(), valid=real())
    found = epoch_metrics(state, data, FakeClasses(3), config)
    exact = {name.split("/")[0]: value for name, value in found.items() if name.endswith("/caught_exact")}
    assert exact == pytest.approx({"2": 1 / 4, "3": 2 / 5, "4": 1, "5": 2 / 3, "6": 3 / 4, "7-de": 1 / 2})
    assert found["3/images"] == 5
    assert found["5/images"] == 3
    assert found["valid/false_alarm"] == found["10/false_alarm"] == 1
    sampled = epoch_metrics(state, data, FakeClasses(3), replace(config, eval_images=2))
    assert [sampled[f"{group}/images"] for group in ("2", "3", "5", "6", "9", "10")] == [4, 2, 2, 2, 2, 3]


@given(st.floats(0.01, 1), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_harmonic_mean_lies_between_the_shares(accuracy: float, caught: list[float]) -> None:
    h = harmonic(accuracy, caught)
    assert 2 / h == pytest.approx(1 / accuracy + sum(1 / share for share in caught) / len(caught))
    assert min(accuracy, *caught) - 1e-9 <= h <= max(accuracy, *caught) + 1e-9


def test_selection_takes_all_sets_and_prefers_images_to_validate_on() -> None:
    metrics = {"10/accuracy": 0.5, "4/caught": 0.8, "6/caught": 0.4, "4/caught/class_0": 0.1, "4/caught_exact": 0.0}
    assert selection_metrics(metrics) == {
        "selection/h": pytest.approx(2 / (1 / 0.5 + (1 / 0.8 + 1 / 0.4) / 2)),
        "selection/h_exact": 0,
    }
    assert selection_metrics({**metrics, "valid/accuracy": 1.0})["selection/h"] == pytest.approx(2 / (1 + 3.75 / 2))
    assert selection_metrics({**metrics, "10/accuracy": 0.0})["selection/h"] == 0
    assert selection_metrics({"10/accuracy": 0.9}) == selection_metrics({"4/caught": 0.9}) == {}


def test_best_epoch_is_the_one_with_the_largest_mean(
    train: Dataset, test: Dataset, network: Any, config: RetrainConfig, steep: Generate
) -> None:
    states = {}

    def evaluate(state: State, *arguments: Any) -> dict[str, float]:
        epoch = state.learner.epoch
        states[epoch] = {name: tensor.clone() for name, tensor in state.learner.model.state_dict().items()}
        share = {6: 0.9, 8: 0.9}.get(epoch, 0.5)
        return {"10/accuracy": 1.0, "2/caught": share}

    result = retrain(train, test, network, config, parts=Parts(generate=steep, evaluate=evaluate))
    assert result.best_epoch == 6
    assert result.best_h == pytest.approx(2 / (1 + 1 / 0.9))
    assert result.history[-1]["selection/best_epoch"] == 6
    for name, tensor in result.best_model.state_dict().items():
        assert torch.equal(tensor, states[6][name])
    assert not torch.equal(result.best_model.state_dict()["4.bias"], result.model.state_dict()["4.bias"])


def test_independent_network_and_other_processes_are_measured(
    train: Dataset, test: Dataset, network: Any, config: RetrainConfig
) -> None:
    """Metrics 6 and 7 come from attacks of their own, whose yields are known to be what the sets say."""
    changed = replace(
        config, steps=30, s_max=8, independent=True, independent_epochs=4, other_images=6, other_steps=30, generations=1
    )
    result = retrain(train, test, network, changed)
    by_kind = {record["kind"]: record for record in result.history}
    assert by_kind["independent"]["independent/epoch"] == 4
    assert by_kind["independent"]["independent/accuracy"] > 0.9
    assert {*result.other_sets} == {"6", "7-de", "7-prox"}
    assert [len(result.other_sets[group]) for group in ("6", "7-de", "7-prox")] == [1, 2, 2]
    assert by_kind["independent attack"]["6/yield"] == result.other_sets["6"][0].fooled > 0
    assert by_kind["attack"]["7-prox/yield"] == result.other_sets["7-prox"][-1].fooled
    assert by_kind["attack"]["7-de/images"] == 6
    assert {"6/caught", "6/prob_fake/class_1", "7-prox/caught", "valid/accuracy"} <= {*by_kind["epoch"]}
    assert by_kind["verdict"]["8/images"] == 2 * 42
    assert by_kind["verdict"]["steps"] == 60
    assert 30 < result.final.stop_step.max() <= 60 or result.final.success.all()


def test_every_metric_has_a_title_and_a_meaning() -> None:
    assert [*METRICS] == [str(number) for number in range(11)]
    for number, metric in METRICS.items():
        assert metric.number == number
        assert metric.title
        assert metric.meaning.endswith(("?", "."))
        assert len(metric.meaning) < 140


@pytest.mark.parametrize(("wanted", "used"), [(0, 5), (2, 2), (5, 5), (20_000, 5)])
def test_of_fewer_images_than_are_asked_for_all_are_used(wanted: int, used: int) -> None:
    """Also where the classes have unequally many."""
    train = Dataset("made", "train", torch.rand(5, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1]), 2)
    found = Real.of(train, train, RetrainConfig(real_images=wanted)).train
    assert len(found) == used
