"""Making fooling images by attacking a network, and merging them with those of the past."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from sparring.attacks import recover
from sparring.data import Dataset
from sparring.training.config import RetrainConfig
from sparring.training.evaluate import logits_of
from sparring.training.fooling import FoolingSet
from sparring.training.streams import stream


class Recovered(Protocol):
    """What a generator returns: images (B, *shape) and the step at which each one stopped (B,)."""

    @property
    def images(self) -> Tensor: ...
    @property
    def stop_step(self) -> Tensor: ...


class Generate(Protocol):
    """A process that makes one image for each target class, (B,), by attacking `model`."""

    def __call__(
        self, model: nn.Module, targets: Tensor, shape: tuple[int, ...], *, generator: torch.Generator
    ) -> Recovered: ...


def recover_with(config: RetrainConfig, entries: int) -> Generate:
    """The process that the configuration describes: :func:`sparring.attacks.recover`, for images of so many entries."""
    return partial(
        recover,
        method=config.method,
        steps=config.steps,
        lam=config.lam,
        lr=config.attack_lr,
        p_min=config.p_min,
        s_max=config.sparsity_limit(entries),
        floor=config.floor,
        mask_fraction=config.mask_fraction,
        start=config.start,
    )


def attack(
    model: nn.Module,
    generate: Generate,
    config: RetrainConfig,
    real: Dataset,
    *,
    generation: int,
) -> tuple[FoolingSet, FoolingSet]:
    """Attack the network; return the images to train on (`config.images` attempts) and those held out (`config.fresh`).

    Images have the shape of the `real` ones; targets are balanced over the classes. The images are judged here, by a
    forward pass of their own, whatever `generate` thinks of them.
    """
    shape, device = real.input_shape, real.images.device
    targets = torch.cat([torch.arange(config.images), torch.arange(config.fresh)]).to(device) % real.classes
    recovered = generate(model, targets, shape, generator=stream(config.seed, "attack", generation))
    images = recovered.images.detach()
    if images.shape != (len(targets), *shape):
        raise ValueError(f"generate returned images of shape {tuple(images.shape)}, wanted {(len(targets), *shape)}")
    prob = logits_of(model, images).softmax(1).gather(1, targets[:, None])[:, 0]
    sparsity = (images > 0).flatten(1).sum(1)
    success = (prob >= config.p_min) & (sparsity <= config.sparsity_limit(images[0].numel()))
    made = FoolingSet(images, targets, prob, sparsity, recovered.stop_step.to(torch.int64), success)
    return made[: config.images], made[config.images :]


def merge(past: list[FoolingSet], new: FoolingSet, config: RetrainConfig, *, generation: int) -> list[FoolingSet]:
    """Add the new images that qualify to the past sets, of each of which a random `config.keep` stays."""
    generator = stream(config.seed, "merge", generation)
    kept = [s[torch.randperm(len(s), generator=generator)[: round(config.keep * len(s))]] for s in past]
    return [*kept, new.successes]
