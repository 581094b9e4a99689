"""Where the fooling images of training come from, and how the experiment goes on when an attack finds none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring.data import Dataset
from sparring.training import Parts, RetrainConfig, retrain
from sparring.training.batches import Batch, Mixer
from sparring.training.building import Learner, make_optimizer
from sparring.training.fooling import FoolingSet
from sparring.training.generate import Generate
from sparring.training.labelling import FakeClasses
from sparring.training.pool import Pool

Network = Callable[[int], nn.Module]


def learner_of(model: nn.Module, config: RetrainConfig) -> Learner:
    return Learner(model, make_optimizer(config, model.parameters()))


def a_set(count: int, value: float) -> FoolingSet:
    zeros = torch.zeros(count, dtype=torch.int64)
    return FoolingSet(torch.full((count, 1, 4, 4), value), zeros, zeros.float(), zeros, zeros, zeros == 0)


def split(batch: Batch) -> tuple[Tensor, Tensor]:
    """Real and fooling images of a batch, by what is wanted of them."""
    fooling = batch.wanted[:, 3:].sum(1) > 0
    return batch.images[~fooling], batch.images[fooling]


def test_batches_attack_the_network_as_it_is_and_train_on_what_qualifies(
    train: Dataset, network: Network, config: RetrainConfig
) -> None:
    """An attack that answers the network's bias shows which network it saw; the images of each go into the set."""
    config = replace(config, mode="batches", generate_every=2, batch_images=3, p_min=0.0, s_max=16, batch_size=30)
    model = network(6)
    attacked: list[float] = []

    def generate(model: nn.Module, targets: Tensor, shape: Any, *, generator: torch.Generator) -> Any:
        attacked.append(float(model[4].bias[0].detach()))  # type: ignore[index]
        images = torch.full((len(targets), *shape), 0.25 * len(attacked))
        return FoolingSet(images, targets, targets, targets, targets, targets)

    sets = [a_set(5, 0.125), a_set(4, 0.0625)]
    mixer = Mixer(train, FakeClasses(3), config, (0,))
    batches = mixer.extended(sets, learner_of(model, config), generate)
    assert batches.count == 3
    drawn = []
    real = []
    for i, batch in enumerate(batches.each):
        with torch.no_grad():
            model[4].bias.fill_(i + 1.0)  # type: ignore[index]
        here, fooling = split(batch)
        real.append(here)
        drawn.append(set(fooling.flatten(1)[:, 0].tolist()))
        assert len(fooling) == [4, 4, 5][i]  # of 12, 12 and 15 fooling images for 90 real ones, in a batch of 30
    assert attacked[1] == 2.0  # after two batches
    assert [len(images) for images in sets] == [5, 10]
    assert drawn[0] | drawn[1] <= {0.125, 0.0625, 0.25}
    assert sorted(torch.cat(real).flatten(1).sum(1).tolist()) == sorted(train.images.flatten(1).sum(1).tolist())


def test_batches_keep_their_share_of_fooling_images(train: Dataset, network: Network, config: RetrainConfig) -> None:
    config = replace(config, mode="batches", generate_every=1, fooling_share=0.5, batch_size=15, s_max=1)

    def generate(model: nn.Module, targets: Tensor, shape: Any, *, generator: torch.Generator) -> Any:
        images = torch.ones(len(targets), *shape)  # too many entries are lit: none qualifies
        return FoolingSet(images, targets, targets, targets, targets, targets)

    for sets, wanted in (([a_set(0, 0.0)], 0), ([a_set(2, 0.5)], 15)):
        mixer = Mixer(train, FakeClasses(3), config, (0,))
        for batch in mixer.extended(sets, learner_of(network(6), config), generate).each:
            real, fooling = split(batch)
            assert (len(real), len(fooling)) == (15, wanted)


def test_pool_moves_towards_its_targets_and_leaves_the_network_alone(
    train: Dataset, network: Network, config: RetrainConfig
) -> None:
    config = replace(config, pool_images=7, pool_lam=0.0)
    model = network(6).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pool = Pool.begin(train, config, generation=0)
    assert pool.targets.tolist() == [0, 1, 2, 0, 1, 2, 0]
    first = pool.judged(model, config)
    for _ in range(40):
        pool.step(model, config)
    last = pool.judged(model, config)
    assert (last.prob > first.prob).all()
    assert last.stop_step.tolist() == [40] * 7
    assert float(pool.images.min()) >= 0
    assert float(pool.images.max()) <= 1
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pools_first_step_is_that_of_proximal_adam(train: Dataset, config: RetrainConfig) -> None:
    """Adam's first step is lr in every entry, against the sign of the gradient; then the threshold lr lam / D / |g|."""
    config = replace(config, pool_images=3, pool_lr=0.01, pool_lam=0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    pool = Pool.begin(train, config, generation=0)
    start = pool.images.clone().double()
    weight, bias = (parameter.detach().double() for parameter in model[1].parameters())
    share = (start.flatten(1) @ weight.T + bias).softmax(1) - torch.eye(3, dtype=torch.float64)
    grad = (share @ weight).reshape(start.shape)
    pool.step(model, config)
    moved = start - 0.01 * grad / (grad.abs() + 1e-4)
    wanted = (moved.abs() - 0.01 * 0.5 / 16 / (grad.abs() + 1e-4)).clamp(min=0) * moved.sign()
    torch.testing.assert_close(pool.images, wanted.clamp(0, 1).float(), atol=1e-5, rtol=1e-4)


def test_a_masked_pool_stays_black_where_it_is_masked(train: Dataset, config: RetrainConfig) -> None:
    config = replace(config, pool_images=5, mask_fraction=0.75)
    pool = Pool.begin(train, config, generation=0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)  # of some networks all images end black
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    assert pool.mask.flatten(1).sum(1).tolist() == [4] * 5
    assert len(pool.mask.flatten(1).unique(dim=0)) == 5
    for _ in range(10):
        pool.step(model, config)
        assert not pool.images[~pool.mask].any()
    assert pool.images.any()


def test_pool_is_repeated_to_its_share_of_every_batch(train: Dataset, network: Network, config: RetrainConfig) -> None:
    config = replace(config, pool_images=4, fooling_share=0.5)
    pool = Pool.begin(train, config, generation=0)
    for batch in Mixer(train, FakeClasses(3), config, (0,)).pooled(pool, learner_of(network(6), config)).each:
        real, fooling = split(batch)
        assert (len(real), len(fooling)) == (15, 16)
        assert torch.equal(batch.images[15:], pool.images.repeat(4, 1, 1, 1))


def test_continuous_trains_on_the_pool_alone(
    train: Dataset, test: Dataset, network: Network, config: RetrainConfig, steep: Generate
) -> None:
    seen: list[int] = []
    settings = replace(config, mode="continuous", pool_images=9, generations=2, epochs=4)

    def through(learner: Learner, batches: Any, *arguments: Any) -> float:
        def each() -> Any:
            for batch in batches.each:
                seen.append(len(batch.images))
                yield batch

        return Parts().train(learner, replace(batches, each=each()), *arguments)

    result = retrain(train, test, network, settings, parts=Parts(generate=steep, train=through))
    pretraining = 6 * settings.pretrain_epochs
    assert set(seen[:pretraining]) == {15}
    assert set(seen[pretraining:]) == {15 + 9}
    steps = [images.stop_step.unique().tolist() for images in result.train_sets]
    assert steps == [[6 * 4], [6 * 8]]  # the same pool goes on, as it was left at the end of each generation
    epochs = [record for record in result.history if record["kind"] == "epoch"]
    assert epochs[-1]["2/images"] == epochs[-1]["3/images"] == 9
    fresh = retrain(train, test, network, replace(settings, network="fresh"), parts=Parts(generate=steep))
    assert [images.stop_step.unique().tolist() for images in fresh.train_sets] == [[24], [24]]  # with the network


def lams(history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(record["generation"], record["attack/lam"]) for record in history if record["kind"] == "attack"]


def test_annealing_halves_the_penalty_until_an_image_is_found(
    train: Dataset, test: Dataset, network: Network, config: RetrainConfig
) -> None:
    """And the next generation goes on with the weight that was reached."""
    config = replace(
        config, method="prox", lam=4000.0, steps=30, p_min=0.97, s_max=4, pretrain_epochs=10, generations=1, anneal=True
    )
    result = retrain(train, test, network, config)
    *tried, reached, after = lams(result.history)
    assert tried == [(0, 4000.0 * 0.5**i) for i in range(len(tried))]
    assert tried
    assert (reached, after) == ((0, tried[-1][1] / 2), (1, tried[-1][1] / 2))
    yields = [record["0/yield"] for record in result.history if record["kind"] == "attack"]
    assert [share > 0 for share in yields] == [False] * len(tried) + [True, True]
    without = retrain(train, test, network, replace(config, anneal=False))
    assert lams(without.history) == [(0, 4000.0)]


def test_annealing_ends_after_its_halvings(
    train: Dataset, test: Dataset, network: Network, config: RetrainConfig
) -> None:
    config = replace(config, method="prox", lam=8.0, p_min=0.99999, steps=3, anneal=True, halvings=2)
    result = retrain(train, test, network, config)
    assert lams(result.history) == [(0, 8.0), (0, 4.0), (0, 2.0)]
    assert result.verdict.robust


def test_annealing_and_an_attack_of_ones_own_exclude_each_other(
    train: Dataset, test: Dataset, network: Network, config: RetrainConfig, steep: Generate
) -> None:
    config = replace(config, method="adam", lam=1.0, anneal=True)
    with pytest.raises(ValueError, match=r"leave parts\.generate None"):
        retrain(train, test, network, config, parts=Parts(generate=steep))


def test_the_last_attack_is_stronger_and_its_answer_counts(
    train: Dataset, test: Dataset, network: Network, config: RetrainConfig, steep: Generate, nothing: Generate
) -> None:
    """The attack between generations finds nothing; that of metric 8, with more attempts, does: not robust."""

    def only_when_many(model: nn.Module, targets: Tensor, shape: Any, *, generator: torch.Generator) -> Any:
        attack = steep if len(targets) > 42 else nothing
        return attack(model, targets, shape, generator=generator)

    result = retrain(train, test, network, replace(config, final_factor=3), parts=Parts(generate=only_when_many))
    kinds = [record["kind"] for record in result.history]
    assert kinds == ["epoch"] * 4 + ["attack", "verdict"]
    assert result.history[-2]["0/yield"] == 0
    assert result.history[-1]["8/yield"] == result.verdict.fooled > 0
    assert result.verdict.attempts == result.history[-1]["8/images"] == 3 * 42
    assert not result.verdict.robust


def test_augmentation_changes_real_images_alone(train: Dataset, config: RetrainConfig) -> None:
    mixer = Mixer(train, FakeClasses(3), replace(config, augment="affine"), (0,))
    plain = {tuple(image.flatten().tolist()) for image in train.images}
    real, fooling = (torch.cat(parts) for parts in zip(*map(split, mixer.mixed(a_set(20, 0.5)).each), strict=True))
    assert (len(real), len(fooling)) == (90, 20)
    assert (fooling == 0.5).all()
    assert not plain & {tuple(image.flatten().tolist()) for image in real}
    again = torch.cat([batch.images for batch in mixer.mixed(a_set(20, 0.5)).each])
    assert torch.equal(again, torch.cat([batch.images for batch in mixer.mixed(a_set(20, 0.5)).each]))


def test_halves_share_no_image_and_the_network_sees_one_of_them(
    train: Dataset, test: Dataset, network: Network, config: RetrainConfig, nothing: Generate
) -> None:
    seen: dict[str, set[tuple[float, ...]]] = {"independent": set(), "main": set()}

    def note(learner: Learner, batches: Any, config: RetrainConfig, place: Any, on_fraction: Any) -> float:
        for batch in batches.each:
            seen["independent" if "independent" in place else "main"] |= {
                tuple(image.flatten().tolist()) for image in batch.images
            }
        return 0.0

    settings = replace(config, independent=True, independent_epochs=1)
    retrain(train, test, network, settings, parts=Parts(generate=nothing, train=note))
    assert not seen["independent"] & seen["main"]
    assert [len(images) for images in seen.values()] == [37, 37]  # of 45 and 45, less those to validate on
