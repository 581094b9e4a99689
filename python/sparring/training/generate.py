"""Making fooling images by attacking a network, and merging them with those of the past."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sparring.attacks import recover
from sparring.attacks._model import held_still
from sparring.training.config import RetrainConfig
from sparring.training.fooling import FoolingSet
from sparring.training.generators import generator_named
from sparring.training.streams import stream

POPULATION = 20  # of differential evolution: its images rise faster by more generations than by larger ones


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


class Merge(Protocol):
    """What becomes of the past sets of fooling images, and of the attempts of generation `generation`: the new sets.

    The new set is the last one.
    """

    def __call__(
        self, past: list[FoolingSet], new: FoolingSet, config: RetrainConfig, *, generation: int
    ) -> list[FoolingSet]: ...


def recover_with(config: RetrainConfig, entries: int, *, halvings: int = 0, factor: int = 1) -> Generate:
    """The process that the configuration describes: :func:`sparring.attacks.recover`, for images of so many entries.

    The weight of the penalty is halved `halvings` times; the budget is `factor` times that of the configuration.
    """
    lam, lam_final = (None if weight is None else weight * 0.5**halvings for weight in (config.lam, config.lam_final))
    return partial(
        recover,
        method=config.method,
        loss=config.loss,
        penalty=config.penalty,
        steps=config.steps * factor,
        lam=lam,
        lam_final=lam_final,
        lam_step=config.lam_step,
        lr=config.attack_lr,
        lr_step=config.lr_step,
        p_min=config.p_min,
        s_max=config.sparsity_limit(entries),
        floor=config.floor,
        mask_fraction=config.mask_fraction,
        start=config.start,
    )


def other_processes(config: RetrainConfig, entries: int) -> Mapping[str, tuple[Generate, float]]:
    """The different processes of metric 7 by the name of its group of numbers, and when their images qualify: p_min."""
    way: Literal["prox", "l1"] = "prox" if config.method == "l1" else "l1"
    limit = config.sparsity_limit(entries)
    evolution = generator_named(
        "evolution", p_min=config.other_p_min, s_max=limit, steps=config.other_steps, population=POPULATION
    )
    descent = generator_named(way, p_min=config.p_min, s_max=limit, steps=config.steps)
    return {"7-de": (evolution, config.other_p_min), f"7-{way}": (descent, config.p_min)}


def attempt(
    model: nn.Module,
    generate: Generate,
    targets: Tensor,
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    p_min: float,
    s_max: int,
) -> FoolingSet:
    """Attack the network once for each target; an image qualifies with ``prob >= p_min`` and ``sparsity <= s_max``.

    The images are judged here, by a forward pass of their own, whatever `generate` thinks of them. The network is in
    eval mode meanwhile, and left as it was.
    """
    with held_still(model), torch.enable_grad():
        recovered = generate(model, targets, shape, generator=generator)
    images = recovered.images
    if images.shape != (len(targets), *shape):
        raise ValueError(f"generate returned images of shape {tuple(images.shape)}, wanted {(len(targets), *shape)}")
    return FoolingSet.judge(model, images, targets, recovered.stop_step, p_min=p_min, s_max=s_max)


def merge(past: list[FoolingSet], new: FoolingSet, config: RetrainConfig, *, generation: int) -> list[FoolingSet]:
    """Add the new images that qualify to the past sets, of each of which a random `config.keep` stays."""
    generator = stream(config.seed, "merge", generation)
    kept = [s[torch.randperm(len(s), generator=generator)[: round(config.keep * len(s))]] for s in past]
    return [*kept, new.successes]
