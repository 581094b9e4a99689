"""What a run of `sparring mixture` keeps of the mixture beside its records: answers, filters, values and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparring import _files, attacks
from sparring.data import Dataset
from sparring.ensembles import StackedEnsemble
from sparring.runs import Record, Run
from sparring.training import FitConfig
from sparring.training.evaluate import BATCH
from sparring.training.fit import members_loss, mixture_loss
from sparring.training.fit.measure import attacked_sample, unmasked
from sparring.training.loop import Checkpoint
from sparring.training.state import load_model, prefixed
from sparring.training.streams import stream

Tensors = dict[str, Tensor]

ANSWERED = 1000  # test images whose answers are kept
VALUES = 4096  # entries of each of the parameters
MEMBERS, UNITS = 6, 8  # whose filters are


class Keeper:
    """A run that, with each record, also gets a snapshot of the mixture.

    It is drawn in TensorBoard and kept in the files first.safetensors and last.safetensors.
    """

    def __init__(self, run: Run, mixture: StackedEnsemble, test: Dataset, config: FitConfig) -> None:
        self.run, self.mixture, self.config = run, mixture, config
        self.sample = attacked_sample(test, config)[:ANSWERED]
        self._before: tuple[int, Tensors] | None = None

    def log(self, record: Record) -> None:
        """Append a record and draw the mixture as it is."""
        if self._before is not None:
            self._draw(*self._before)
            self._before = None
        self.run.log(record)
        self._draw(record["epoch"], snapshot(self.mixture, self.sample, self.config))

    def save(self, tensors: Tensors, state: dict[str, Any]) -> None:
        """Write a checkpoint."""
        self.run.save(tensors, state)

    def restore(self) -> Checkpoint | None:
        """Go back to the last checkpoint, if there is one; what was drawn there is drawn again before more is."""
        found = self.run.restore()
        if found is not None:
            load_model(self.mixture, prefixed(found.tensors)["model"])
            drawn = snapshot(self.mixture, self.sample, self.config)
            # copies: some are parts of the mixture, which goes on
            self._before = found.history[-1]["epoch"], {name: tensor.clone() for name, tensor in drawn.items()}
        return found

    def _draw(self, epoch: int, tensors: Tensors) -> None:
        for name in ["first"] * (epoch == 0) + ["last"]:
            _files.write(self.run.path / f"{name}.safetensors", _files.packed(tensors))
        shown = (tensors["images/real"], tensors["images/attacked"])
        sheet = torch.cat([torch.cat([*images.cpu()], 2) for images in shown], 1)
        histograms = {name: values for name, values in tensors.items() if name.startswith(("parameter/", "gradient/"))}
        self.run.draw(epoch, histograms, {"images/real_above_attacked": sheet})


def shown_eps(config: FitConfig) -> float | None:
    """The budget that a run's report speaks of: that of training, or of those tested the one nearest to it."""
    return min(config.test_eps, key=lambda eps: abs(eps - config.eps)) if config.test_eps else None


def snapshot(mixture: StackedEnsemble, sample: Dataset, config: FitConfig) -> Tensors:
    """The mixture as it is, by what it does with a sample of images.

    ``logits/real`` and ``logits/attacked`` (M, N, K) of the members, ``labels`` (N,); ``images/real``,
    ``images/attacked`` and ``answers/real``, ``answers/attacked``, an image of each class and the mixture's
    probabilities; ``filters`` (members, units, C, h, w) of the first layer, if it has an image's shape;
    ``parameter/<name>`` and ``gradient/<name>``, some entries of each parameter with several dimensions, and of the
    gradient of the training's loss on a batch. Attacked is by the fast gradient sign method with `shown_eps`.
    """
    x, y = sample.images, sample.labels
    with evaluating(mixture):
        with unmasked():
            moved = attacks.fgsm(mixture, x, y, eps=shown_eps(config) or config.eps)
        assert isinstance(moved, Tensor)
        shown = torch.stack([(y == c).nonzero()[0, 0] for c in range(sample.classes) if bool((y == c).any())])
        tensors: Tensors = {"labels": y, "images/labels": y[shown]}
        for name, images in (("real", x), ("attacked", moved)):
            with torch.no_grad():
                parts = [mixture.member_logits(batch) for batch in torch.split(images, BATCH)]
                answers = mixture(images[shown]).softmax(1)
            tensors |= {f"logits/{name}": torch.cat(parts, 1), f"images/{name}": images[shown]}
            tensors[f"answers/{name}"] = answers
        tensors |= _filters(mixture, sample.input_shape)
        batch = slice(config.batch_size)
        tensors |= _entries(mixture, _training_loss(mixture, x[batch], moved[batch], y[batch], config))
    return tensors


@contextmanager
def evaluating(mixture: StackedEnsemble) -> Iterator[None]:
    """The mixture in eval mode; then as it was."""
    training = mixture.training
    mixture.eval()
    try:
        yield
    finally:
        mixture.train(training)


def _training_loss(
    mixture: StackedEnsemble, real: Tensor, attacked: Tensor, labels: Tensor, config: FitConfig
) -> Tensor:
    shares = [(config.alpha, real), (1 - config.alpha, attacked)] if config.attack != "none" else [(1.0, real)]
    total = real.new_zeros(())
    with torch.enable_grad():
        for share, images in shares:
            logits = mixture.member_logits(images)
            if config.updates == "joint":
                weights = mixture.weights.log().to(logits.device)
                loss = mixture_loss(logits, labels, weights, mixture.combine, label_smoothing=config.label_smoothing)
            else:
                loss = members_loss(logits, labels, label_smoothing=config.label_smoothing)
            total = total + share * loss.mean()
    return total


def _entries(mixture: StackedEnsemble, loss: Tensor) -> Tensors:
    """Some entries of every parameter with several dimensions in a member, and of the gradient of `loss` there."""
    chosen = {name: parameter for name, parameter in mixture.named_parameters() if parameter.ndim > 2}
    gradients = torch.autograd.grad(loss, [*chosen.values()], allow_unused=True)
    tensors: Tensors = {}
    for (name, parameter), gradient in zip(chosen.items(), gradients, strict=True):
        count = parameter.numel()
        index = torch.arange(count)
        if count > VALUES:
            index = torch.randint(count, (VALUES,), generator=stream(0, "entries", name))
        name = name.removeprefix("net.").removesuffix(".weight")
        for kind, values in (("parameter", parameter.detach()), ("gradient", gradient)):
            if values is not None:
                tensors[f"{kind}/{name}"] = values.flatten()[index.to(values.device)].cpu()
    return tensors


def _filters(mixture: StackedEnsemble, shape: tuple[int, ...]) -> Tensors:
    """What the first layer looks for: its weights as images."""
    first = next((parameter for parameter in mixture.parameters() if parameter.ndim > 2), None)
    if first is None:
        return {}
    weights = first.detach()[:MEMBERS, :UNITS]
    if weights.ndim == 3 and weights.shape[2] == math.prod(shape):
        weights = weights.reshape(*weights.shape[:2], *shape)
    return {"filters": weights} if weights.ndim == 5 and weights.shape[2] in (1, 3) else {}
