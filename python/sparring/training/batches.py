"""What a network is trained on: batches of real and fooling images, and one epoch over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparring.data import Dataset
from sparring.training.augment import augmentation_for
from sparring.training.building import Learner
from sparring.training.config import RetrainConfig
from sparring.training.evaluate import losses
from sparring.training.fooling import FoolingSet, balanced_targets, join
from sparring.training.generate import Generate, attempt
from sparring.training.labelling import Labels
from sparring.training.pool import Pool
from sparring.training.streams import global_stream, stream

Place = tuple[str | int, ...]


class Batch(NamedTuple):
    """Images (B, C, H, W) and the probabilities wanted of them (B, outputs)."""

    images: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Batches:
    """The batches of an epoch, each made when it is its turn, and how many they are."""

    count: int
    each: Iterator[Batch]


@dataclass(frozen=True)
class Mixer:
    """Makes the batches of one epoch; `place` names it, so that every epoch shuffles and augments anew."""

    real: Dataset
    labels: Labels
    config: RetrainConfig
    place: Place

    def mixed(self, fooling: FoolingSet | None) -> Batches:
        """Real and fooling images, shuffled together; fooling images are repeated to their share of the epoch."""
        images, wanted = self.real.images, self.labels.real(self.real.labels)
        if fooling is not None and len(fooling):
            repeats = self._repeats(len(self.real), len(fooling))
            images = torch.cat([images, *[fooling.images] * repeats])
            wanted = torch.cat([wanted, *[self.labels.fooling(fooling.targets)] * repeats])
        batches = self._shuffled(len(images))

        def each() -> Iterator[Batch]:
            augment = self._augmentation()
            for rows in batches:
                batch = images[rows]
                real = rows < len(self.real)
                batch[real] = augment(batch[real])
                yield Batch(batch, wanted[rows])

        return Batches(len(batches), each())

    def extended(self, sets: list[FoolingSet], learner: Learner, generate: Generate) -> Batches:
        """Real images, and with every batch some fooling images drawn from all the sets.

        Every `config.generate_every` batches the network as it is gets attacked, and what qualifies is added to the
        last set. A batch holds as large a share of fooling images as all images together, or `config.fooling_share`.
        """
        batches = self._shuffled(len(self.real))

        def each() -> Iterator[Batch]:
            draw = stream(self.config.seed, "draw", *self.place)
            for i, real in enumerate(self._real(batches)):
                if i % self.config.generate_every == 0:
                    sets[-1] = join([sets[-1], self._attack(learner, generate, i).successes])
                    pool = join(sets)
                count = 0
                if len(pool):
                    count = math.ceil(max(self._wanted_ratio, len(pool) / len(self.real)) * len(real.images))
                drawn = pool[torch.randint(max(1, len(pool)), (count,), generator=draw).to(pool.targets.device)]
                yield self._with(real, drawn.images, drawn.targets)

        return Batches(len(batches), each())

    def pooled(self, pool: Pool, learner: Learner) -> Batches:
        """Real images, and with every batch the whole pool, moved on by a step on the network as it is.

        The pool is repeated to `config.fooling_share` of the batch.
        """
        batches = self._shuffled(len(self.real))

        def each() -> Iterator[Batch]:
            for real in self._real(batches):
                pool.step(learner.model, self.config)
                repeats = self._repeats(len(real.images), len(pool.images))
                yield self._with(real, pool.images.repeat(repeats, 1, 1, 1), pool.targets.repeat(repeats))

        return Batches(len(batches), each())

    @property
    def _wanted_ratio(self) -> float:
        return self.config.fooling_share / (1 - self.config.fooling_share)

    def _repeats(self, real: int, fooling: int) -> int:
        """How often so many fooling images are needed for their share beside so many real ones."""
        return max(1, math.ceil(self._wanted_ratio * real / fooling))

    def _shuffled(self, count: int) -> tuple[Tensor, ...]:
        """So many indices in random order, in batches of nearly equal size, none tiny."""
        order = torch.randperm(count, generator=stream(self.config.seed, "shuffle", *self.place))
        return order.to(self.real.images.device).tensor_split(math.ceil(count / self.config.batch_size))

    def _real(self, batches: tuple[Tensor, ...]) -> Iterator[Batch]:
        augment = self._augmentation()
        for rows in batches:
            yield Batch(augment(self.real.images[rows]), self.labels.real(self.real.labels[rows]))

    def _with(self, real: Batch, images: Tensor, targets: Tensor) -> Batch:
        return Batch(torch.cat([real.images, images]), torch.cat([real.wanted, self.labels.fooling(targets)]))

    def _attack(self, learner: Learner, generate: Generate, batch: int) -> FoolingSet:
        targets = balanced_targets(self.config.batch_images, self.real.classes).to(self.real.labels.device)
        draws = stream(self.config.seed, "attack in training", *self.place, batch)
        targets = (targets + batch // self.config.generate_every) % self.real.classes  # not the first ones every time
        shape, limit = self.real.input_shape, self.config.sparsity_limit(self.real.images[0].numel())
        return attempt(learner.model, generate, targets, shape, draws, p_min=self.config.p_min, s_max=limit)

    def _augmentation(self) -> Callable[[Tensor], Tensor]:
        if self.config.augment == "none":
            return lambda images: images
        augmentation = augmentation_for(self.config.augment, self.real.images)
        draws = stream(self.config.seed, "augment", *self.place)
        return lambda images: augmentation(images, draws)


def train_epoch(
    learner: Learner, batches: Batches, config: RetrainConfig, place: Place, on_fraction: Callable[[float], None]
) -> float:
    """Train on all batches, one step of the optimiser each; return the mean loss. `place` names the epoch."""
    device = next(learner.model.parameters()).device
    total, images = torch.zeros((), dtype=torch.float64, device=device), 0
    learner.model.train()
    with torch.enable_grad(), global_stream(config.seed, "dropout", *place, device=device):
        for i, batch in enumerate(batches.each):
            loss = losses(learner.model(batch.images), batch.wanted)
            learner.optimizer.zero_grad()
            torch.autograd.backward(loss.mean())
            learner.optimizer.step()
            total += loss.detach().sum()
            images += len(loss)
            on_fraction((i + 1) / batches.count)
    return float(total) / images
