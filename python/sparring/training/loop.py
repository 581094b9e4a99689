"""Retraining on fooling images, again and again, until the attack finds none or the budget ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sparring import networks
from sparring._progress import Progress
from sparring.data import Dataset
from sparring.training.config import RetrainConfig
from sparring.training.evaluate import Metrics, attack_metrics, fooling_metrics, logits_of, losses, real_metrics
from sparring.training.fooling import FoolingSet, join
from sparring.training.generate import Generate, attack, merge, recover_with
from sparring.training.labelling import Labels, labels_for
from sparring.training.state import State, make_optimizer, pack, unpack
from sparring.training.streams import global_stream, stream

Record = dict[str, Any]
NetworkSource = str | Callable[[int], nn.Module]


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
    robust : whether no image of the last attack qualified.
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
    """The trained network (in eval mode), the verdict, all records, and the images: as in `State`."""

    model: nn.Module
    verdict: Verdict
    history: list[Record]
    train_sets: list[FoolingSet]
    fresh_sets: list[FoolingSet]
    final: FoolingSet


def retrain(
    train: Dataset,
    test: Dataset,
    network: NetworkSource = "cnn",
    config: RetrainConfig | None = None,
    *,
    generate: Generate | None = None,
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
    generate
        The process that makes fooling images; by default `sparring.attacks.recover` as the settings say.
    run
        Where records and checkpoints go; if it holds a checkpoint, the experiment continues there, and on the CPU with
        the same number of threads ends with the same bits as one that was never interrupted.
    on_progress, on_record
        Called as work goes on, and with each record as it is made.

    Returns
    -------
    RetrainResult
        torch's global random state is what it was before.
    """
    config = config if config is not None else RetrainConfig()
    labels = labels_for(config.labelling, train.classes)
    generate = generate if generate is not None else recover_with(config, train.images[0].numel())
    if config.real_images:
        train = train.subset(min(config.real_images, len(train)), stream(config.seed, "real images"))

    model = new_network(network, train, config)
    state = State(model, make_optimizer(config, model.parameters()))
    history: list[Record] = []
    checkpoint = run.restore() if run is not None else None
    if checkpoint is not None:
        unpack(state, checkpoint.tensors, checkpoint.state)
        history = checkpoint.history

    def log(kind: str, metrics: Record) -> None:
        record = {"kind": kind, "generation": state.generation, "epoch": state.epoch, **metrics}
        history.append(record)
        if run is not None:
            run.log(record)
        if on_record is not None:
            on_record(record)

    def progress(doing: str, fraction: float) -> None:
        if on_progress is not None:
            done = state.epoch + state.generation + fraction
            total = config.pretrain_epochs + config.generations * (config.epochs + 1) + 1
            on_progress(Progress(done, total, doing))

    while state.final is None:
        if _attack_is_due(state, config):
            progress(f"attack on the network of generation {state.generation}", 0.0)
            attempts, fresh = attack(state.model, generate, config, train, generation=state.generation)
            both = join([attempts, fresh])
            log("attack", attack_metrics(both, train.classes))
            if state.generation == config.generations or not both.success.any():
                state.final = both
                verdict = _verdict(state, config)
                log("verdict", {**asdict(verdict), "8/yield": verdict.fooled})
            else:
                state.train_sets = merge(state.train_sets, attempts, config, generation=state.generation)
                state.fresh_sets.append(fresh)
                state.generation += 1
                if config.network == "fresh":
                    state.model = new_network(network, train, config, generation=state.generation)
                    state.optimizer = make_optimizer(config, state.model.parameters())
        else:
            doing = f"generation {state.generation}, epoch {state.epoch + 1}"
            loss = train_epoch(state, train, labels, config, partial(progress, doing))
            state.epoch += 1
            log("epoch", {"train/loss": loss, **evaluate(state, train, test, labels, config)})
        if run is not None:
            run.save(*pack(state))
    progress("done", 0.0)

    return RetrainResult(
        state.model.eval(), _verdict(state, config), history, state.train_sets, state.fresh_sets, state.final
    )


def train_epoch(
    state: State, real: Dataset, labels: Labels, config: RetrainConfig, on_fraction: Callable[[float], None]
) -> float:
    """One pass over the real images and all sets of fooling images, shuffled together; return the mean loss."""
    images, wanted = real.images, labels.real(real.labels)
    if any(len(s) for s in state.train_sets):
        fooling = join(state.train_sets)
        repeats = max(1, math.ceil(config.fooling_share / (1 - config.fooling_share) * len(real) / len(fooling)))
        images = torch.cat([images, *[fooling.images] * repeats])
        wanted = torch.cat([wanted, *[labels.fooling(fooling.targets)] * repeats])
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * config.lr_decay ** _epochs_of_this_generation(state, config)
    order = torch.randperm(len(images), generator=stream(config.seed, "shuffle", state.epoch)).to(images.device)
    batches = order.tensor_split(math.ceil(len(order) / config.batch_size))  # of nearly equal size, none tiny
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    state.model.train()
    with torch.enable_grad(), global_stream(config.seed, "dropout", state.epoch, device=images.device):
        for i, batch in enumerate(batches):
            loss = losses(state.model(images[batch]), wanted[batch])
            state.optimizer.zero_grad()
            torch.autograd.backward(loss.mean())
            state.optimizer.step()
            total += loss.detach().sum()
            on_fraction((i + 1) / len(batches))
    return float(total) / len(order)


def evaluate(state: State, train: Dataset, test: Dataset, labels: Labels, config: RetrainConfig) -> Metrics:
    """Metrics 2, 3, 4, 5, 9 and 10 of the network as it is; those without images are left out."""
    seed, classes, limit = config.seed, train.classes, config.eval_images
    metrics: Metrics = {}
    if state.train_sets:
        *past, current = state.train_sets
        *past_fresh, fresh = (s.successes for s in state.fresh_sets)
        metrics |= fooling_metrics(2, state.model, current, labels, classes)
        metrics |= fooling_metrics(4, state.model, fresh, labels, classes)
        if past:
            sample = stream(seed, "past", state.generation)
            metrics |= fooling_metrics(3, state.model, _sample(join(past), limit, sample), labels, classes)
            sample = stream(seed, "past fresh", state.generation)
            metrics |= fooling_metrics(5, state.model, _sample(join(past_fresh), limit, sample), labels, classes)
    real = _sample(train, limit, stream(seed, "real"))
    metrics |= real_metrics(9, state.model, real.images, real.labels, labels, classes)
    metrics |= real_metrics(10, state.model, test.images, test.labels, labels, classes)
    return metrics


def _sample(images: Any, limit: int, generator: torch.Generator) -> Any:
    """At most `limit` of the images (0: all), at random; the same ones whenever the generator is the same."""
    if not 0 < limit < len(images):
        return images
    return images[torch.randperm(len(images), generator=generator)[:limit]]


def new_network(network: NetworkSource, real: Dataset, config: RetrainConfig, *, generation: int = 0) -> nn.Module:
    """A network with fresh weights for the real images, with as many outputs as the labelling needs."""
    outputs = labels_for(config.labelling, real.classes).outputs
    if isinstance(network, str):
        generator = stream(config.seed, "network", generation)
        model = networks.build(network, real.input_shape, outputs, generator=generator)
    else:
        with global_stream(config.seed, "network", generation):
            model = network(outputs)
    model = model.to(real.images.device)
    shape = tuple(logits_of(model, real.images[:1]).shape)
    if shape != (1, outputs):
        raise ValueError(f"network gives outputs of shape {shape} for one image, wanted {(1, outputs)}")
    return model


def _attack_is_due(state: State, config: RetrainConfig) -> bool:
    return _epochs_of_this_generation(state, config) == (config.epochs if state.generation else config.pretrain_epochs)


def _epochs_of_this_generation(state: State, config: RetrainConfig) -> int:
    """Epochs since the last attack was merged, or since the beginning."""
    before = config.pretrain_epochs + (state.generation - 1) * config.epochs if state.generation else 0
    return state.epoch - before


def _verdict(state: State, config: RetrainConfig) -> Verdict:
    assert state.final is not None
    entries = state.final.images[0].numel()
    return Verdict(
        robust=not bool(state.final.success.any()),
        fooled=state.final.fooled,
        attempts=len(state.final),
        steps=config.steps,
        p_min=config.p_min,
        s_max=config.sparsity_limit(entries),
        generations=state.generation,
    )
