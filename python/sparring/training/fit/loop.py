"""Training of a network, or of a mixture of them, on images and on attacks on the fly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from sparring import attacks, losses
from sparring._progress import Progress
from sparring.attacks._norms import norm_name
from sparring.data import Dataset
from sparring.ensembles.mixture import Mixture
from sparring.training.augment import augmentation_for
from sparring.training.building import Learner, learning_rate, make_optimizer
from sparring.training.evaluate import Metrics
from sparring.training.fit.config import FitConfig
from sparring.training.fit.losses import members_loss, mixture_loss
from sparring.training.fit.measure import epoch_metrics, unmasked
from sparring.training.fit.parallel import MemberParallel, from_first, part_of, sum_gradients, world
from sparring.training.fit.regularizers import Regularizer, Resumable, regularizer_of
from sparring.training.loop import Journal, Record
from sparring.training.state import Json, Tensors, check_format, pack_learner, prefixed, unpack_learner
from sparring.training.streams import global_stream, stream

FORMAT = "sparring fit 1"

PlainAttack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a model, images (B, C, H, W) and labels (B,) to images that fool it."""


@dataclass(frozen=True)
class FitResult:
    """What training gives.

    Attributes
    ----------
    model : the network or mixture, trained in place, in eval mode.
    history : a record for each epoch, and one before the first.
    weights : float32 (steps + 1, M), a mixture's weights before the first step and after each; None for a network.
    stopped : why training ended early, with the model as it was after the last good epoch; empty if it did not.
    """

    model: nn.Module
    history: list[Record]
    weights: Tensor | None = None
    stopped: str = ""


@dataclass
class _State:
    """What changes, and so what a checkpoint holds."""

    learner: Learner
    weights: _Weights | None = None
    regularizer: Regularizer | None = None
    stopped: str = ""


@dataclass
class _Weights:
    """The weights of a mixture as the softmax of logits, and Adam for these."""

    mixture: Mixture
    logits: Tensor
    optimizer: torch.optim.Adam
    history: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, mixture: Mixture, config: FitConfig) -> _Weights:
        logits = mixture.weights.log().detach().clone().requires_grad_()
        return cls(mixture, logits, torch.optim.Adam([logits], config.weights_lr), [mixture.weights.float().cpu()])

    def note(self) -> None:
        """Give the mixture its new weights."""
        self.mixture.weights.copy_(self.logits.detach().softmax(0))
        self.history.append(self.mixture.weights.float().cpu())


def fit(model: nn.Module, train: Dataset, test: Dataset, config: FitConfig | None = None, **options: Any) -> FitResult:
    """Train on real images alone: `fit_adversarial` without an attack."""
    config = config if config is not None else FitConfig()
    return fit_adversarial(model, train, test, config.replace(attack="none"), **options)


def fit_adversarial(
    model: nn.Module,
    train: Dataset,
    test: Dataset,
    config: FitConfig | None = None,
    *,
    attack: PlainAttack | None = None,
    regularizer: Regularizer | None = None,
    after_step: Callable[[nn.Module], object] | None = None,
    run: Journal | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> FitResult:
    """Train a network on images and on attacks on it as it is: ``alpha J(x) + (1 - alpha) J(x_adv)``.

    Parameters
    ----------
    model
        From images (B, C, H, W) to logits (B, K); trained in place. An ensemble is trained as one network, with its
        weights as they are; `fit_mixture` trains these too.
    train, test
        Real images, on the device of the model.
    config
        The settings; by default those of `FitConfig`.
    attack
        Another attack than the configuration names, with everything that it needs bound to it.
    regularizer
        A function of the model, such as `sparring.lipschitz.penalty` gives, added to the loss of every batch. That loss
        is a mean over examples, so the term weighs the same whatever the batch size; there are fewer steps with larger
        ones. If it has `state_dict` and `load_state_dict` (tensors by name), checkpoints hold its state. None: the
        penalty that `config.lipschitz` asks for, if it does.
    after_step
        Called with the model after every step of the optimiser, to change weights in place, for instance
        ``lambda model: sparring.lipschitz.project_(model, 2.0)``.
    run
        Where records and checkpoints go; if it holds a checkpoint, training continues there, and on the CPU with the
        same number of threads ends with the same bits as if it had never stopped.
    on_progress, on_record
        Called as work goes on, and with each record as it is made.

    Returns
    -------
    FitResult
        If the loss is ever NaN or infinite, training stops, and the model is as it was after the last good epoch.
        torch's global random state is what it was before. Real and attacked images form one batch, so normalisation
        layers see both.

    Where ``torchrun`` started several processes and each calls this with the same arguments, every one works on part of
    each batch, and all have the same model at the end: that of one process, but for rounding, if no layer looks at the
    whole batch (normalisation) or draws (dropout). Give `run` to the process of rank 0 alone.

    Raises
    ------
    ValueError
        If `run` holds a checkpoint of another version.
    """
    config = config if config is not None else FitConfig()
    state = _State(_learner(model, config), regularizer=regularizer_of(model, train, config, regularizer))
    return _fit(state, train, test, config, attack, after_step, run, on_progress, on_record)


def fit_mixture(
    mixture: Mixture,
    train: Dataset,
    test: Dataset,
    config: FitConfig | None = None,
    *,
    attack: PlainAttack | None = None,
    regularizer: Regularizer | None = None,
    after_step: Callable[[nn.Module], object] | None = None,
    run: Journal | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> FitResult:
    """Train the members of a mixture and its weights, on images and on attacks on the mixture.

    The weights are ``w = softmax(a)``, of which a is trained by Adam with `config.weights_lr`. With `config.updates`
    "joint" members and weights have the loss of the mixture, ``-log sum w p(y)``; with "independent" each member has
    its own loss. To the loss of the weights is added ``config.reg * mean(-log w)``.

    Parameters
    ----------
    mixture
        A `sparring.StackedEnsemble` or `sparring.Ensemble`, trained in place, whose weights, none of them 0, training
        begins with.
    train, test, config, attack, regularizer, after_step, run, on_progress, on_record
        As for `fit_adversarial`; regularizer and after_step are functions of the mixture.

    Returns
    -------
    FitResult
        With the history of the weights.
    """
    config = config if config is not None else FitConfig()
    if not isinstance(mixture, Mixture):
        raise TypeError(f"mixture must be a StackedEnsemble or an Ensemble, not a {type(mixture).__name__}")
    if not bool((mixture.weights > 0).all()):
        raise ValueError("mixture has a weight of 0, which softmax never gives: begin with positive weights")
    if config.loss != "ce":
        raise ValueError(f"config.loss must be 'ce' for a mixture; got {config.loss!r}")
    regularizer = regularizer_of(mixture, train, config, regularizer)
    state = _State(_learner(mixture, config), _Weights.of(mixture, config), regularizer)
    return _fit(state, train, test, config, attack, after_step, run, on_progress, on_record)


def named_attack(config: FitConfig) -> PlainAttack | None:
    """The attack that a configuration names, or None; PGD in L1 goes by Euclidean steps unless its options say else."""
    if config.attack == "none":
        return None
    options = {"eps": config.eps, **config.attack_options}
    if config.attack == "pgd" and norm_name(options.get("norm", math.inf)) == "L1":
        options = {"step": "euclidean", **options}
    return partial(_call, getattr(attacks, config.attack), options)


def _call(attack: Callable[..., Any], options: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with unmasked():
        return cast(Tensor, attack(model, x, y, **options))


def _learner(model: nn.Module, config: FitConfig) -> Learner:
    return Learner(model, make_optimizer(config, model.parameters(), rho=0.95, eps=1e-8))


def _fit(
    state: _State,
    train: Dataset,
    test: Dataset,
    config: FitConfig,
    attack: PlainAttack | None,
    after_step: Callable[[nn.Module], object] | None,
    run: Journal | None,
    on_progress: Callable[[Progress], None] | None,
    on_record: Callable[[Record], None] | None,
) -> FitResult:
    attack = attack if attack is not None else named_attack(config)
    if config.real_images:
        train = train.subset(min(config.real_images, len(train)), stream(config.seed, "real images"))
    learner, history = state.learner, list[Record]()
    if run is not None and isinstance(learner.model, MemberParallel):
        raise ValueError("run must be None for members over several processes: no process has them all; save `own`")
    checkpoint = from_first(run.restore() if run is not None else None)
    if checkpoint is not None:
        _unpack(state, checkpoint.tensors, checkpoint.state)
        history = checkpoint.history

    def log(kind: str, metrics: Metrics) -> None:
        record: Record = {"kind": kind, "epoch": learner.epoch, **metrics}
        history.append(record)
        if run is not None:
            run.log(record)
            run.save(*_pack(state))
        if on_record is not None:
            on_record(record)

    def progress(fraction: float) -> None:
        if on_progress is not None:
            on_progress(Progress(learner.epoch + fraction, config.epochs, f"epoch {learner.epoch + 1}"))

    if not history:
        log("start", epoch_metrics(learner.model, test, config))
    while learner.epoch < config.epochs and not state.stopped:
        good = _pack(state)
        means = _epoch(state, train, config, attack, after_step, progress)
        if means is None:
            epoch = learner.epoch + 1
            _unpack(state, *good)
            state.stopped = f"the loss was not finite in epoch {epoch}; the model is that of epoch {learner.epoch}"
            log("stopped", {})
            break
        learner.epoch += 1
        log("epoch", means | epoch_metrics(learner.model, test, config))
    learner.model.eval()
    weights = None if state.weights is None else torch.stack(state.weights.history)
    return FitResult(learner.model, history, weights, state.stopped)


def _epoch(
    state: _State,
    train: Dataset,
    config: FitConfig,
    attack: PlainAttack | None,
    after_step: Callable[[nn.Module], object] | None,
    on_fraction: Callable[[float], None],
) -> Metrics | None:
    """Train for an epoch; the mean losses, or None if one was not finite."""
    model, optimizer, epoch = state.learner.model, state.learner.optimizer, state.learner.epoch
    regularizer = state.regularizer
    by_examples = world()[1] > 1 and not isinstance(model, MemberParallel)
    processes = world()[1] if by_examples else 1  # whose terms are summed
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, epoch, config.epochs)
    device = train.images.device
    count = math.ceil(len(train) / config.batch_size)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # real, attacked, regularizer
    seen = 0
    model.train()
    with torch.enable_grad(), global_stream(config.seed, "dropout", epoch, device=device):
        for i, (x, y) in enumerate(_batches(train, config, epoch)):
            of_batch = len(x)
            if by_examples:
                x, y = x[part_of(of_batch)], y[part_of(of_batch)]
            both, labels = x, y
            if attack is not None:
                both, labels = torch.cat([x, attack(model, x, y).detach()]), torch.cat([y, y])
            loss = _losses(state, both, labels, config).view(1 + (attack is not None), -1).double()  # real, attacked
            loss = loss.sum(1) / of_batch
            share = loss.new_tensor([config.alpha, 1 - config.alpha] if attack is not None else [1.0])
            total = (share * loss).sum()
            if regularizer is not None:
                term = regularizer(model) / processes
                total = total + term
                sums[2] += term.detach() * of_batch
            if state.weights is not None and config.reg:
                total = total + config.reg * -state.weights.logits.log_softmax(0).mean() / processes
            optimizer.zero_grad()
            if state.weights is not None:
                state.weights.optimizer.zero_grad()
            torch.autograd.backward(total)
            if by_examples:
                sum_gradients([*model.parameters(), *([] if state.weights is None else [state.weights.logits])])
            optimizer.step()
            if state.weights is not None:
                if config.weights_lr:
                    state.weights.optimizer.step()
                state.weights.note()
            sums[: len(loss)] += loss.detach() * of_batch
            seen += of_batch
            looks = after_step is not None or i % 50 == 49 or i + 1 == count  # not every time: on a device this waits
            if looks and not _everywhere(sums.isfinite().all() & total.isfinite()):
                return None
            if after_step is not None:
                after_step(model)
            on_fraction((i + 1) / count)
    if by_examples:
        distributed.all_reduce(sums)
    elif world()[1] > 1:
        distributed.all_reduce(sums[2:])  # the term is that of a process's own members
    means = (sums / seen).tolist()
    named = {
        "train/loss": True,
        "train/loss_attacked": attack is not None,
        "train/regularizer": regularizer is not None,
    }
    return {name: mean for (name, there), mean in zip(named.items(), means, strict=True) if there}


def _everywhere(condition: Tensor) -> bool:
    """Whether it holds in all processes."""
    if world()[1] == 1:
        return bool(condition)
    failing = (~condition).to(torch.int32)
    distributed.all_reduce(failing)
    return int(failing) == 0


def _losses(state: _State, x: Tensor, labels: Tensor, config: FitConfig) -> Tensor:
    """The loss of each image, (B,): of the model, or of a mixture's members and its weights."""
    smoothing = config.label_smoothing
    if state.weights is None and config.loss == "bernoulli":
        return losses.bernoulli(state.learner.model(x), labels)
    if state.weights is None:
        return F.cross_entropy(state.learner.model(x), labels, reduction="none", label_smoothing=smoothing)
    mixture = state.weights.mixture
    logits, log_weights = mixture.member_logits(x), state.weights.logits.log_softmax(0)
    if config.updates == "joint":
        return mixture_loss(logits, labels, log_weights, mixture.combine, label_smoothing=smoothing)
    own = members_loss(logits, labels, label_smoothing=smoothing)
    of_weights = mixture_loss(logits.detach(), labels, log_weights, mixture.combine, label_smoothing=smoothing)
    return of_weights + (own - own.detach())  # the value is the mixture's


def _batches(train: Dataset, config: FitConfig, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(train), generator=stream(config.seed, "shuffle", epoch)).to(train.labels.device)
    draws = stream(config.seed, "augment", epoch)
    augment = None if config.augment == "none" else augmentation_for(config.augment, train.images)
    for rows in torch.split(order, config.batch_size):
        x = train.images[rows]
        yield (x if augment is None else augment(x, draws)), train.labels[rows]


def _pack(state: _State) -> tuple[Tensors, Json]:
    """Copies of everything that changes."""
    tensors, learner = pack_learner(state.learner, "")
    json: Json = {"format": FORMAT, "learner": learner, "stopped": state.stopped}
    if state.weights is not None:
        tensors["weights/logits"] = state.weights.logits
        tensors["weights/history"] = torch.stack(state.weights.history)
        for name, value in state.weights.optimizer.state_dict()["state"].get(0, {}).items():
            tensors[f"weights optimizer/{name}"] = value
    if isinstance(state.regularizer, Resumable):
        tensors |= {f"regularizer/{name}": value for name, value in state.regularizer.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}, json


def _unpack(state: _State, tensors: Tensors, json: Json) -> None:
    check_format(json, FORMAT)
    of = prefixed(tensors)
    unpack_learner(state.learner, "", of, json["learner"])
    state.stopped = json["stopped"]
    if isinstance(state.regularizer, Resumable):
        state.regularizer.load_state_dict(of.get("regularizer", {}))
    if state.weights is not None:
        weights, optimizer = state.weights, state.weights.optimizer
        with torch.no_grad():
            weights.logits.copy_(of["weights"]["logits"])
        weights.history = [*of["weights"]["history"].cpu().unbind()]
        saved = of.get("weights optimizer")
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": {0: saved} if saved else {}, "param_groups": groups})
