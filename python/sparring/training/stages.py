"""What is done between two checkpoints of retraining: an attack, a new generation, an epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sparring.training.batches import Mixer
from sparring.training.building import Learner, NetworkSource, learning_rate, new_learner
from sparring.training.config import RetrainConfig
from sparring.training.evaluate import Metrics, attack_metrics, real_metrics
from sparring.training.fooling import FoolingSet, balanced_targets, join
from sparring.training.generate import attempt, other_processes, recover_with
from sparring.training.labelling import Labels
from sparring.training.measure import Real
from sparring.training.parts import Parts
from sparring.training.pool import Pool
from sparring.training.selection import Best
from sparring.training.state import State
from sparring.training.streams import stream


def attack(
    state: State, model: nn.Module, real: Real, config: RetrainConfig, parts: Parts, name: str, factor: int = 1
) -> FoolingSet:
    """Attack a network: `config.images` attempts to train on, then `config.fresh` held out, each balanced over classes.

    With `factor` so many times the attempts and the steps; a process that is not the settings' own has its own steps.
    """
    shape, classes, entries = real.train.input_shape, real.train.classes, real.train.images[0].numel()
    generate = parts.generate or recover_with(config, entries, halvings=state.halvings, factor=factor)
    counts = (config.images * factor, config.fresh * factor)
    targets = torch.cat([balanced_targets(count, classes) for count in counts]).to(real.train.labels.device)
    generator = stream(config.seed, name, state.generation, state.halvings)
    limit = config.sparsity_limit(entries)
    return attempt(model, generate, targets, shape, generator, p_min=config.p_min, s_max=limit)


def attack_otherwise(state: State, real: Real, config: RetrainConfig) -> Metrics:
    """Attack the network under training by the different processes of metric 7, and keep the attempts."""
    metrics: Metrics = {}
    if config.other_images == 0:
        return metrics
    model, shape, entries = state.learner.model, real.train.input_shape, real.train.images[0].numel()
    classes, limit = real.train.classes, config.sparsity_limit(entries)
    targets = balanced_targets(config.other_images, classes).to(real.train.labels.device)
    for group, (generate, p_min) in other_processes(config, entries).items():
        generator = stream(config.seed, group, state.generation)
        attempts = attempt(model, generate, targets, shape, generator, p_min=p_min, s_max=limit)
        state.other_sets.setdefault(group, []).append(attempts)
        metrics |= attack_metrics(group, attempts, classes)
    return metrics


def begin_generation(
    state: State, attempts: FoolingSet, network: NetworkSource, real: Real, config: RetrainConfig, parts: Parts
) -> None:
    """Merge the images of an attack with those of the past, and go on with the same network or a fresh one."""
    new, fresh = attempts[: config.images], attempts[config.images :]
    state.fresh_sets.append(fresh)
    if config.network == "fresh":
        place, epoch = state.generation + 1, state.learner.epoch
        state.learner = new_learner(network, real.train, config, place=place, epoch=epoch)
    if config.mode == "continuous":
        if state.pool is None or config.network == "fresh":
            state.pool = Pool.begin(real.train, config, generation=state.generation)
        new = state.pool.judged(state.learner.model, config)
    state.train_sets = parts.merge(state.train_sets, new, config, generation=state.generation)
    state.generation += 1


def train_network(
    state: State,
    real: Real,
    labels: Labels,
    config: RetrainConfig,
    parts: Parts,
    on_fraction: Callable[[float], None],
) -> float:
    """Train the network under training for an epoch, in the configuration's mode; return the mean loss."""
    learner, place = state.learner, (state.learner.epoch,)
    mixer = Mixer(real.train, labels, config, place)
    if config.mode == "batches" and state.train_sets:
        generate = parts.generate or recover_with(config, real.train.images[0].numel(), halvings=state.halvings)
        batches = mixer.extended(state.train_sets, learner, generate)
    elif state.pool is not None:
        batches = mixer.pooled(state.pool, learner)
    else:
        batches = mixer.mixed(join(state.train_sets) if state.train_sets else None)
    _set_rate(learner, learning_rate(config, _epoch_of_generation(state, config), _epochs(state, config)))
    loss = parts.train(learner, batches, config, place, on_fraction)
    learner.epoch += 1
    if state.pool is not None:
        state.train_sets[-1] = state.pool.judged(learner.model, config)
    return loss


def train_independent(
    state: State,
    real: Real,
    labels: Labels,
    config: RetrainConfig,
    parts: Parts,
    on_fraction: Callable[[float], None],
) -> Metrics:
    """Train the independent network for an epoch on its own half of the real images; return its numbers."""
    learner = state.independent
    assert learner is not None
    assert real.other_train is not None
    assert real.other_valid is not None
    place = ("independent", learner.epoch)
    batches = Mixer(real.other_train, labels, config, place).mixed(None)
    _set_rate(learner, learning_rate(config, learner.epoch, config.independent_epochs))
    loss = parts.train(learner, batches, config, place, on_fraction)
    learner.epoch += 1
    accuracy = real_metrics("independent", learner.model, real.other_valid, labels)["independent/accuracy"]
    return {"independent/epoch": learner.epoch, "independent/loss": loss, "independent/accuracy": accuracy}


def keep_best(state: State, metrics: Metrics) -> None:
    """Keep the network's weights if the epoch's harmonic mean is the largest so far, and not 0."""
    h = metrics.get("selection/h", 0.0)
    if h > (0.0 if state.best is None else state.best.h):
        weights = {name: tensor.detach().clone() for name, tensor in state.learner.model.state_dict().items()}
        state.best = Best(state.learner.epoch, h, weights)


def best_of(state: State) -> Metrics:
    """The best epoch and its harmonic mean; nothing if no epoch had one above 0."""
    if state.best is None:
        return {}
    return {"selection/best_epoch": state.best.epoch, "selection/best_h": state.best.h}


def attack_is_due(state: State, config: RetrainConfig) -> bool:
    """Whether the generation has had its epochs."""
    return _epoch_of_generation(state, config) == _epochs(state, config)


def _set_rate(learner: Learner, rate: float) -> None:
    for group in learner.optimizer.param_groups:
        group["lr"] = rate


def _epochs(state: State, config: RetrainConfig) -> int:
    """Epochs that this generation has, or that there are before the first one."""
    return config.epochs if state.generation else config.pretrain_epochs


def _epoch_of_generation(state: State, config: RetrainConfig) -> int:
    """Epochs since the last attack was merged, or since the beginning."""
    before = config.pretrain_epochs + (state.generation - 1) * config.epochs if state.generation else 0
    return state.learner.epoch - before
