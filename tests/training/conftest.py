"""A small world to retrain in: blobs for images, a linear network, and an attack of a few lines."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sparring.data import Dataset
from sparring.training import RetrainConfig

CLASSES = 3
SHAPE = (1, 4, 4)


@dataclass(frozen=True)
class Made:
    images: Tensor
    stop_step: Tensor


def steep(model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, generator: torch.Generator) -> Made:
    """One random grey entry on black; then four times make white the entry that raises log p(target) most."""
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


def nothing(model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, generator: torch.Generator) -> Made:
    """An attack that finds only black images."""
    return Made(torch.zeros(len(targets), *shape), torch.zeros(len(targets), dtype=torch.int64))


def small_network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, outputs))


def blobs(split: str, count: int = 90, seed: int = 0) -> Dataset:
    """Images in which the rows of one class are bright."""
    generator = torch.Generator().manual_seed(seed + (split == "test"))
    labels = torch.arange(count) % CLASSES
    images = 0.4 * torch.rand(count, *SHAPE, generator=generator)
    images[torch.arange(count), 0, labels] += 0.6
    return Dataset("blobs", "test" if split == "test" else "train", images, labels, CLASSES)


@pytest.fixture
def train() -> Dataset:
    return blobs("train")


@pytest.fixture
def test() -> Dataset:
    return blobs("test", 45)


@pytest.fixture
def config() -> RetrainConfig:
    return RetrainConfig(
        generations=3, pretrain_epochs=4, epochs=2, images=30, fresh=12, batch_size=16, lr=0.01, p_min=0.6, s_max=6
    )
