"""A small world to retrain in: images of bright rows, a small network, and attacks of a few lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sparring.data import Dataset, Split
from sparring.training import RetrainConfig
from sparring.training.generate import Generate

CLASSES = 3
SHAPE = (1, 4, 4)


@dataclass(frozen=True)
class Made:
    images: Tensor
    stop_step: Tensor


def _steep(model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, generator: torch.Generator) -> Made:
    images = torch.zeros(len(targets), *shape)
    first = torch.randint(images[0].numel(), (len(targets), 1), generator=generator)
    images.flatten(1).scatter_(1, first, 0.5)
    model.eval()
    for _ in range(4):
        images.requires_grad_()
        loss = nn.functional.cross_entropy(model(images), targets, reduction="sum")
        (grad,) = torch.autograd.grad(loss, images)
        images = images.detach()
        best = grad.flatten(1).masked_fill(images.flatten(1) == 1, torch.inf).argmin(1, keepdim=True)
        images.flatten(1).scatter_(1, best, 1.0)
    return Made(images, torch.full((len(targets),), 4))


def _nothing(model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, generator: torch.Generator) -> Made:
    return Made(torch.zeros(len(targets), *shape), torch.zeros(len(targets), dtype=torch.int64))


def _network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, outputs))


def _rows(split: Split, count: int) -> Dataset:
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.arange(count) % CLASSES
    images = 0.4 * torch.rand(count, *SHAPE, generator=generator)
    images[torch.arange(count), 0, labels] += 0.6
    return Dataset("rows", split, images, labels, CLASSES)


@pytest.fixture
def steep() -> Generate:
    """On black, one random grey entry; then four times the entry that raises log p(target) most becomes white."""
    return _steep


@pytest.fixture
def nothing() -> Generate:
    """An attack that only finds black images."""
    return _nothing


@pytest.fixture
def network() -> Callable[[int], nn.Module]:
    """A perceptron with dropout."""
    return _network


@pytest.fixture
def train() -> Dataset:
    """Images in which the row of the class is bright."""
    return _rows("train", 90)


@pytest.fixture
def test() -> Dataset:
    """Others of the same kind."""
    return _rows("test", 45)


@pytest.fixture
def config() -> RetrainConfig:
    """Three generations in a fraction of a second."""
    return RetrainConfig(
        generations=3, pretrain_epochs=4, epochs=2, images=30, fresh=12, batch_size=16, lr=0.02, p_min=0.5, s_max=6
    )
