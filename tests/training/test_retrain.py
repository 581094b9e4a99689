from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring.data import Dataset
from sparring.runs import Run
from sparring.training import Parts, Progress, RetrainConfig, RetrainResult, retrain
from sparring.training.batches import Mixer, train_epoch
from sparring.training.building import Learner, learning_rate, make_optimizer
from sparring.training.evaluate import logits_of
from sparring.training.fooling import FoolingSet, balanced_targets
from sparring.training.generate import Generate, attempt, merge
from sparring.training.labelling import FakeClasses
from sparring.training.state import State, pack, unpack
from sparring.training.streams import global_stream, stream

Network = Callable[[int], nn.Module]
Again = Callable[..., RetrainResult]


@pytest.fixture
def again(train: Dataset, test: Dataset, network: Network, config: RetrainConfig, steep: Generate) -> Again:
    """Run the small experiment; keywords change the configuration or are passed on."""

    def run(
        generate: Generate | None = steep, run: Any = None, on_progress: Any = None, **changes: Any
    ) -> RetrainResult:
        changed, parts = replace(config, **changes), Parts(generate=generate)
        return retrain(train, test, network, changed, parts=parts, run=run, on_progress=on_progress)

    return run


def of_kind(result: RetrainResult, kind: str) -> list[dict[str, Any]]:
    return [record for record in result.history if record["kind"] == kind]


def test_records_come_in_order_and_hold_every_metric(again: Again, config: RetrainConfig) -> None:
    result = again()
    kinds = [record["kind"] for record in result.history]
    generation = ["attack"] + ["epoch"] * config.epochs
    assert kinds == ["epoch"] * config.pretrain_epochs + generation * config.generations + ["attack", "verdict"]
    last = of_kind(result, "epoch")[-1]
    for number in (2, 3, 4, 5):
        for what in ("loss", "prob_fake", "caught", "caught_exact"):
            assert f"{number}/{what}" in last
            assert any(name.startswith(f"{number}/{what}/class_") for name in last)
    for number in (9, 10):
        for what in ("loss", "accuracy", "false_alarm"):
            assert all(f"{number}/{what}{suffix}" in last for suffix in ("", "/class_0", "/class_2"))
    for what in ("yield", "prob", "sparsity", "stop_step"):
        assert f"0/{what}/class_1" in of_kind(result, "attack")[0]


def test_retraining_works_and_costs_little_accuracy(again: Again) -> None:
    """With time to train, fooling images seen are caught, and so are most held-out ones from the same attack."""
    result = again(epochs=40, generations=2)
    last = of_kind(result, "epoch")[-1]
    assert last["3/caught"] > 0.9
    assert last["5/caught"] > 0.7
    assert last["10/accuracy"] > 0.9
    assert of_kind(result, "attack")[0]["0/yield"] > 0.8


def test_still_fooled(again: Again, config: RetrainConfig) -> None:
    result = again()
    assert not result.verdict.robust
    assert result.verdict.fooled == result.final.fooled > 0
    assert result.verdict.attempts == 2 * (config.images + config.fresh) == len(result.final)
    assert str(result.verdict).startswith("still fooled: yield")


def test_robust_when_the_attack_finds_nothing(again: Again, nothing: Generate) -> None:
    result = again(generate=nothing)
    assert result.verdict.robust
    assert result.verdict.generations == 0
    asked = "within 84 images x 1000 steps (p >= 0.5, sparsity <= 6)"
    assert str(result.verdict).startswith(f"robust to this process {asked}, but before any retraining")
    assert str(replace(result.verdict, generations=1)) == f"robust to this process {asked}"
    assert [record["kind"] for record in result.history[-2:]] == ["attack", "verdict"]


def test_success_is_judged_on_the_images_themselves(train: Dataset, network: Network, steep: Generate) -> None:
    model = network(6).train()
    targets = balanced_targets(30, 3)
    made = attempt(model, steep, targets, train.input_shape, stream(0, "attack"), p_min=0.2, s_max=4)
    probability = logits_of(model, made.images).softmax(1).gather(1, made.targets[:, None])[:, 0]
    assert torch.equal(made.prob, probability)
    assert torch.equal(made.sparsity, made.images.count_nonzero((1, 2, 3)))
    assert torch.equal(made.success, (made.prob >= 0.2) & (made.sparsity <= 4))
    assert torch.equal(made.targets, targets)
    assert all(module.training for module in model.modules())  # though the attack put it in eval mode


def test_generator_of_wrong_shape_is_refused(again: Again, steep: Generate) -> None:
    def wrong(model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, generator: torch.Generator) -> Any:
        return steep(model, targets[1:], shape, generator=generator)

    with pytest.raises(ValueError, match="generate returned images of shape"):
        again(generate=wrong)


def test_network_with_wrong_outputs_is_refused(train: Dataset, test: Dataset, network: Network) -> None:
    with pytest.raises(ValueError, match=r"network gives outputs of shape \(1, 3\)"):
        retrain(train, test, lambda outputs: network(3))


def test_uniform_labelling(again: Again) -> None:
    result = again(labelling="uniform", epochs=30)
    last = of_kind(result, "epoch")[-1]
    assert {"2/max_prob", "2/caught"} <= set(last)
    assert "2/caught_exact" not in last
    assert result.model(result.final.images).shape[1] == 3


def test_fresh_network_in_every_generation(again: Again) -> None:
    same, fresh = again(), again(network="fresh")
    first = [of_kind(r, "epoch")[4]["9/loss"] for r in (same, fresh)]
    assert same.history[:5] == fresh.history[:5]  # until the first attack there is no difference
    assert first[1] > first[0]  # then the fresh one begins anew


def test_merge_keeps_a_fraction_of_every_past_set(config: RetrainConfig) -> None:
    def some(count: int) -> FoolingSet:
        zeros = torch.zeros(count, dtype=torch.int64)
        success = torch.arange(count) % 2 == 0
        return FoolingSet(torch.rand(count, 1, 4, 4), zeros, zeros.float(), zeros, zeros, success)

    past, new = [some(10), some(4)], some(6)
    kept = merge(past, new, replace(config, keep=0.5), generation=1)
    assert [len(s) for s in kept] == [5, 2, 3]
    rows = {tuple(image.flatten().tolist()) for image in past[0].images}
    assert {tuple(image.flatten().tolist()) for image in kept[0].images} <= rows
    assert torch.equal(kept[2].images, new.images[new.success])
    assert [len(s) for s in merge(past, new, config, generation=1)] == [10, 4, 3]


def test_fooling_images_are_repeated_to_their_share(train: Dataset, network: Network, config: RetrainConfig) -> None:
    seen = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(6)

        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            output: Tensor = self.inner(images)
            return output

    model = Counting()
    zeros = torch.zeros(4, dtype=torch.int64)
    fooling = FoolingSet(torch.rand(4, 1, 4, 4), zeros, zeros.float(), zeros, zeros, zeros == 0)
    learner = Learner(model, make_optimizer(config, model.parameters()))
    mixer = Mixer(train, FakeClasses(3), replace(config, fooling_share=0.25), (4,))
    train_epoch(learner, mixer.mixed(fooling), config, (4,), lambda fraction: None)
    assert sum(seen) == 90 + 8 * 4  # the least number of repetitions that makes a quarter
    assert max(seen) - min(seen) <= 1
    assert max(seen) <= config.batch_size


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("step", [1.0, 0.5, 0.25]), ("cosine", [1.0, 0.75, 0.25]), ("constant", [1.0, 1.0, 1.0])],
)
def test_learning_rate_by_schedule(config: RetrainConfig, schedule: Any, rates: list[float]) -> None:
    config = replace(config, lr=1.0, lr_decay=0.5, schedule=schedule)
    assert [learning_rate(config, epoch, 3) for epoch in range(3)] == pytest.approx(rates)


def test_learning_rate_starts_again_in_every_generation(
    train: Dataset, test: Dataset, network: Network, config: RetrainConfig, steep: Generate
) -> None:
    rates = []

    def note(learner: Learner, *arguments: Any) -> float:
        rates.append(learner.optimizer.param_groups[0]["lr"])
        return train_epoch(learner, *arguments)

    changed = replace(config, lr=0.04, lr_decay=0.5, pretrain_epochs=3, epochs=2, generations=2)
    retrain(train, test, network, changed, parts=Parts(generate=steep, train=note))
    assert rates == [0.04, 0.02, 0.01, 0.04, 0.02, 0.04, 0.02]


def test_same_seed_same_bits_and_no_trace(again: Again) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    one = again()
    torch.manual_seed(6)
    two = again()
    assert one.history == two.history
    assert again(seed=1).history != one.history
    torch.manual_seed(5)
    again()
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, deterministic)


def test_works_where_gradients_are_switched_off(again: Again, nothing: Generate) -> None:
    wanted = again(generate=nothing).history
    with torch.no_grad():
        assert again(generate=nothing).history == wanted


@pytest.mark.parametrize("optimizer", ["adam", "adadelta", "sgd"])
def test_packed_state_is_the_same_state(
    optimizer: str, train: Dataset, network: Network, config: RetrainConfig
) -> None:
    config = replace(config, optimizer=optimizer)

    def new(seed: int) -> State:
        torch.manual_seed(seed)
        model = network(6)
        return State(Learner(model, make_optimizer(config, model.parameters())))

    def train_on(state: State) -> float:
        batches = Mixer(train, FakeClasses(3), config, (0,)).mixed(None)
        return train_epoch(state.learner, batches, config, (0,), lambda fraction: None)

    state = new(0)
    train_on(state)
    restored = new(1)
    unpack(restored, *pack(state))
    assert train_on(state) == train_on(restored)
    for one, two in zip(state.learner.model.parameters(), restored.learner.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_checkpoint_of_another_version_is_refused(network: Network, config: RetrainConfig) -> None:
    model = network(6)
    state = State(Learner(model, make_optimizer(config, model.parameters())))
    tensors, json = pack(state)
    for older in ({**json, "format": "sparring retrain 1"}, {"epoch": 3, "generation": 0}):
        with pytest.raises(ValueError, match="the checkpoint is of another version"):
            unpack(state, tensors, older)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("network_mode", ["continue", "fresh"])
@pytest.mark.parametrize("mode", ["epoch", "batches", "continuous"])
def test_stopped_and_resumed_after_every_step_ends_with_the_same_bits(
    again: Again, tmp_path: Path, mode: str, network_mode: str
) -> None:
    """With everything on: an independent network, other processes, augmentation, attacks that want a smaller lam."""
    everything: dict[str, Any] = {
        "generate": None, "method": "prox", "steps": 10, "lam": 6.0, "anneal": True, "s_max": 8, "p_min": 0.4,
        "independent": True, "independent_epochs": 2, "other_images": 6, "other_steps": 2, "augment": "affine",
        "schedule": "cosine", "weight_decay": 1e-4, "generate_every": 2, "batch_images": 4, "pool_images": 6,
        "keep": 0.5, "fooling_share": 0.5, "generations": 2, "epochs": 3, "mode": mode, "network": network_mode,
    }  # fmt: skip
    whole = Run.create(tmp_path, "whole", {})
    with whole:
        wanted = again(run=whole, **everything)
    assert {record["kind"] for record in wanted.history} == {
        "independent", "independent attack", "epoch", "attack", "verdict",
    }  # fmt: skip
    last = of_kind(wanted, "attack")[-1]
    assert last["generation"] > 0
    assert last["attack/lam"] < 6

    path, resumed, stops = Run.create(tmp_path, "stopped", {}).path, None, 0
    while resumed is None:
        begun: list[str] = []

        def stop_at_the_second(progress: Progress, begun: list[str] = begun) -> None:
            begun.append(progress.doing)
            if progress.doing != begun[0]:
                raise Stopped

        try:
            with Run.open(path) as run:
                resumed = again(run=run, on_progress=stop_at_the_second, **everything)
        except Stopped:
            stops += 1
    assert stops > 12
    assert resumed.history == wanted.history
    assert (path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    one, two = (Run.open(folder).checkpoint() for folder in (path, whole.path))
    assert one is not None
    assert two is not None
    assert one[1] == two[1]
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][name], two[0][name]) for name in two[0])
    assert ("pool/exp_avg" in two[0]) == (mode == "continuous")
    assert resumed.best_epoch == wanted.best_epoch


def test_resuming_a_finished_run_changes_nothing(again: Again, tmp_path: Path) -> None:
    run = Run.create(tmp_path, "run", {})
    with run:
        first = again(run=run)
    log = (run.path / "metrics.jsonl").read_bytes()
    with Run.open(run.path) as run:
        second = again(run=run)
    assert second.verdict == first.verdict
    assert (run.path / "metrics.jsonl").read_bytes() == log


def test_progress_rises_to_the_end(again: Again) -> None:
    seen: list[Progress] = []
    again(on_progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert seen[-1].doing == "done"
    assert done[-1] <= seen[-1].total


def test_streams_differ_by_place_and_agree_by_seed() -> None:
    draws = {
        float(torch.rand((), generator=stream(*place)))
        for place in ((0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1))
    }
    assert len(draws) == 4
    assert torch.equal(torch.rand(3, generator=stream(7, "x")), torch.rand(3, generator=stream(7, "x")))
    with global_stream(0, "x"):
        first = torch.rand(3)
    with global_stream(0, "x"):
        assert torch.equal(torch.rand(3), first)


def test_logits_of_restores_every_modules_mode(network: Network) -> None:
    model = network(3)
    model.train()
    model[3].eval()  # type: ignore[index]
    modes = [module.training for module in model.modules()]
    logits_of(model, torch.rand(2, 1, 4, 4))
    assert [module.training for module in model.modules()] == modes
