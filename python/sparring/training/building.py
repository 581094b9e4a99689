"""Networks under training: made with fresh weights, with an optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from sparring import networks
from sparring.data import Dataset
from sparring.training.config import RetrainConfig
from sparring.training.evaluate import logits_of
from sparring.training.labelling import labels_for
from sparring.training.streams import global_stream, stream

NetworkSource = str | Callable[[int], nn.Module]


@dataclass
class Learner:
    """A network, its optimiser, and how many epochs were trained: of the network, or of those in whose place it is."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0


def new_learner(
    network: NetworkSource, real: Dataset, config: RetrainConfig, *, place: str | int = 0, epoch: int = 0
) -> Learner:
    """A new network and its optimiser; see `new_network`."""
    model = new_network(network, real, config, place=place)
    return Learner(model, make_optimizer(config, model.parameters()), epoch)


def new_network(network: NetworkSource, real: Dataset, config: RetrainConfig, *, place: str | int = 0) -> nn.Module:
    """A network for the real images, with as many outputs as the labelling needs; its weights follow from `place`."""
    outputs = labels_for(config.labelling, real.classes).outputs
    if isinstance(network, str):
        generator = stream(config.seed, "network", place)
        model = networks.build(network, real.input_shape, outputs, generator=generator)
    else:
        with global_stream(config.seed, "network", place):
            model = network(outputs)
    model = model.to(real.images.device)
    shape = tuple(logits_of(model, real.images[:1]).shape)
    if shape != (1, outputs):
        raise ValueError(f"network gives outputs of shape {shape} for one image, wanted {(1, outputs)}")
    return model


class Optimisation(Protocol):
    """The settings of an optimiser, which both configurations have."""

    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def lr_decay(self) -> float: ...


def make_optimizer(
    config: Optimisation, parameters: Iterable[nn.Parameter], *, rho: float = 0.9, eps: float = 1e-6
) -> torch.optim.Optimizer:
    """The optimiser that the configuration names; `rho` and `eps` are Adadelta's."""
    if config.optimizer == "adadelta":
        return torch.optim.Adadelta(parameters, lr=config.lr, rho=rho, eps=eps, weight_decay=config.weight_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)


def learning_rate(config: Optimisation, epoch: int, epochs: int) -> float:
    """The rate of an epoch, counted from 0 in each generation, which has `epochs` of them."""
    if config.schedule == "step":
        return config.lr * config.lr_decay**epoch
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return config.lr
