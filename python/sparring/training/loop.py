"""Retraining on fooling images, again and again, until the attack finds none or the budget ends."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sparring._progress import Progress
from sparring.data import Dataset
from sparring.training.building import NetworkSource, new_learner
from sparring.training.config import RetrainConfig
from sparring.training.evaluate import Metrics, attack_metrics
from sparring.training.fooling import FoolingSet
from sparring.training.labelling import labels_for
from sparring.training.measure import Real, generation_metrics
from sparring.training.parts import Parts
from sparring.training.selection import selection_metrics
from sparring.training.stages import (
    attack,
    attack_is_due,
    attack_otherwise,
    begin_generation,
    best_of,
    keep_best,
    train_independent,
    train_network,
)
from sparring.training.state import State, pack, unpack

Record = dict[str, Any]


class Checkpoint(NamedTuple):
    """The state of an experiment, and the records written until then."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    history: list[Record]


class Journal(Protocol):
    """Where an experiment is written down; :class:`sparring.runs.Run` is one."""

    def log(self, record: Record) -> None:
        """Append a record."""
        ...

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint."""
        ...

    def restore(self) -> Checkpoint | None:
        """Go back to the last checkpoint, if there is one."""
        ...


@dataclass(frozen=True)
class Verdict:
    """The answer of an experiment, and the attack it was asked with.

    Attributes
    ----------
    robust : whether no image of the last attack, that of metric 8, qualified.
    fooled : share of its `attempts` that qualified (the yield).
    steps, p_min, s_max : the attack's steps and what an image needs to qualify.
    generations : rounds of training on fooling images before it.
    """

    robust: bool
    fooled: float
    attempts: int
    steps: int
    p_min: float
    s_max: int
    generations: int

    def __str__(self) -> str:
        asked = f"{self.attempts} images x {self.steps} steps (p >= {self.p_min:g}, sparsity <= {self.s_max})"
        if self.robust and self.generations == 0:
            return f"robust to this process within {asked}, but before any retraining: the attack is too weak to tell"
        if self.robust:
            return f"robust to this process within {asked}"
        return f"still fooled: yield {100 * self.fooled:.3g} % of {asked}"


@dataclass(frozen=True)
class RetrainResult:
    """What an experiment gives; all networks are in eval mode.

    Attributes
    ----------
    model : the network as it was at the end, which the verdict is about.
    verdict : the answer.
    history : all records.
    train_sets, fresh_sets, other_sets, final : the images, as in `State`.
    best_epoch, best_h, best_model : the epoch with the largest harmonic mean (see :mod:`sparring.training.selection`),
        that mean, and the network as it was then; the last epoch and 0 if no epoch had one above 0.
    """

    model: nn.Module
    verdict: Verdict
    history: list[Record]
    train_sets: list[FoolingSet]
    fresh_sets: list[FoolingSet]
    other_sets: dict[str, list[FoolingSet]]
    final: FoolingSet
    best_epoch: int
    best_h: float
    best_model: nn.Module


def retrain(
    train: Dataset,
    test: Dataset,
    network: NetworkSource = "cnn",
    config: RetrainConfig | None = None,
    *,
    parts: Parts | None = None,
    run: Journal | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> RetrainResult:
    """Attack a network, train it on the images that fooled it, and again, until the attack finds no more.

    Parameters
    ----------
    train, test
        Real images, on the device to work on.
    network
        A name in `sparring.networks.NETWORKS`, or a function that makes a network with so many outputs.
    config
        The settings; by default those of `RetrainConfig`.
    parts
        Other ways to generate, merge, train and evaluate.
    run
        Where records and checkpoints go; if it holds a checkpoint, the experiment continues there, and on the CPU with
        the same number of threads ends with the same bits as one that was never interrupted.
    on_progress, on_record
        Called as work goes on, and with each record as it is made.

    Returns
    -------
    RetrainResult
        torch's global random state is what it was before.

    Raises
    ------
    ValueError
        If the parts or the network do not fit the settings, or `run` holds a checkpoint of another version.
    """
    config = config if config is not None else RetrainConfig()
    parts = parts if parts is not None else Parts()
    if config.anneal and parts.generate is not None:
        raise ValueError("anneal halves lam of the attack that the settings describe: leave parts.generate None")
    real = Real.of(train, test, config)
    labels = labels_for(config.labelling, train.classes)
    state = State(new_learner(network, real.train, config))
    if config.independent:
        state.independent = new_learner(network, real.train, config, place="independent")
    history: list[Record] = []
    checkpoint = run.restore() if run is not None else None
    if checkpoint is not None:
        unpack(state, checkpoint.tensors, checkpoint.state)
        history = checkpoint.history

    def log(kind: str, metrics: Metrics | Record) -> None:
        record = {"kind": kind, "generation": state.generation, "epoch": state.learner.epoch, **metrics}
        history.append(record)
        if run is not None:
            run.log(record)
        if on_record is not None:
            on_record(record)

    def progress(doing: str, fraction: float = 0.0) -> None:
        if on_progress is not None:
            on_progress(Progress(_done(state) + fraction, _total(config), doing))

    while state.final is None:
        if state.independent is not None and state.independent.epoch < config.independent_epochs:
            doing = f"independent network, epoch {state.independent.epoch + 1}"
            log("independent", train_independent(state, real, labels, config, parts, partial(progress, doing)))
        elif state.independent is not None and "6" not in state.other_sets:
            progress("attack on the independent network")
            attempts = attack(state, state.independent.model, real, config, parts, "independent attack")
            state.other_sets["6"] = [attempts]
            log("independent attack", attack_metrics("6", attempts, train.classes))
        elif state.over:
            progress("final attack")
            state.final = attack(state, state.learner.model, real, config, parts, "final attack", config.final_factor)
            verdict = _verdict(state, config)
            log("verdict", {**asdict(verdict), **attack_metrics("8", state.final, train.classes), **best_of(state)})
        elif attack_is_due(state, config):
            progress(f"attack on the network of generation {state.generation}")
            attempts = attack(state, state.learner.model, real, config, parts, "attack")
            metrics = generation_metrics(state, attempts, real, config)
            if not attempts.success.any() and config.anneal and state.halvings < config.halvings:
                log("attack", metrics)
                state.halvings += 1  # and the same network is attacked again
            else:
                log("attack", metrics | attack_otherwise(state, real, config))
                if attempts.success.any() and state.generation < config.generations:
                    begin_generation(state, attempts, network, real, config, parts)
                else:
                    state.over = True
        else:
            doing = f"generation {state.generation}, epoch {state.learner.epoch + 1}"
            loss = train_network(state, real, labels, config, parts, partial(progress, doing))
            metrics = parts.evaluate(state, real, labels, config)
            metrics |= selection_metrics(metrics)
            keep_best(state, metrics)
            log("epoch", {"train/loss": loss, **metrics})
        if run is not None:
            run.save(*pack(state))
    progress("done")
    return _result(state, config, history)


def _done(state: State) -> int:
    """Epochs and attacks done."""
    independent = 0 if state.independent is None else state.independent.epoch + ("6" in state.other_sets)
    main = state.learner.epoch + state.generation + state.halvings + state.over
    return independent + main + (state.final is not None)


def _total(config: RetrainConfig) -> int:
    """Epochs and attacks in all, at most."""
    independent = (config.independent_epochs + 1) * config.independent
    generations = config.pretrain_epochs + config.generations * (config.epochs + 1)
    return independent + generations + config.halvings * config.anneal + 2


def _verdict(state: State, config: RetrainConfig) -> Verdict:
    assert state.final is not None
    return Verdict(
        robust=not bool(state.final.success.any()),
        fooled=state.final.fooled,
        attempts=len(state.final),
        steps=config.steps * config.final_factor,
        p_min=config.p_min,
        s_max=config.sparsity_limit(state.final.images[0].numel()),
        generations=state.generation,
    )


def _result(state: State, config: RetrainConfig, history: list[Record]) -> RetrainResult:
    assert state.final is not None
    model = state.learner.model.eval()
    best_model, best = deepcopy(model), state.best
    if best is not None:
        best_model.load_state_dict(best.weights)
    return RetrainResult(
        model=model,
        verdict=_verdict(state, config),
        history=history,
        train_sets=state.train_sets,
        fresh_sets=state.fresh_sets,
        other_sets=state.other_sets,
        final=state.final,
        best_epoch=state.learner.epoch if best is None else best.epoch,
        best_h=0.0 if best is None else best.h,
        best_model=best_model,
    )
