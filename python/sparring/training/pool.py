"""A pool of fooling images that is moved on with the network in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring import ops
from sparring.attacks._model import held_still
from sparring.attacks._start import Starts
from sparring.data import Dataset
from sparring.gradients import input_grad
from sparring.training.config import RetrainConfig
from sparring.training.fooling import FoolingSet, balanced_targets
from sparring.training.streams import seed_of


@dataclass
class Pool:
    """Images, each on its way to one class, with Adam's moments.

    Attributes
    ----------
    images, exp_avg, exp_avg_sq : (B, C, H, W), the images in [0, 1].
    targets : int64 (B,).
    mask : bool (B, C, H, W), the entries that may leave black.
    steps : taken so far.
    """

    images: Tensor
    targets: Tensor
    mask: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: int = 0

    @classmethod
    def begin(cls, real: Dataset, config: RetrainConfig, *, generation: int) -> Pool:
        """`config.pool_images` images, shaped like the real ones, with starts and masks as the configuration says.

        Their targets are balanced over the classes.
        """
        count, limit = config.pool_images, config.sparsity_limit(real.images[0].numel())
        seeds = [seed_of(config.seed, "pool", generation, slot) for slot in range(count)]
        starts = Starts(
            real.input_shape, config.start, None, config.mask_fraction, 0.0, (0.0, 1.0), max(1, limit // 2), seeds
        )
        drawn, masks = zip(*(starts.first(slot) for slot in range(count)), strict=True)
        images = torch.stack(drawn).clamp(0, 1).to(real.images)
        mask = torch.stack(
            [
                torch.ones_like(image, dtype=torch.bool) if m is None else m
                for image, m in zip(drawn, masks, strict=True)
            ]
        )
        mask = mask.to(images.device)
        targets = balanced_targets(count, real.classes).to(images.device)
        return cls(images * mask, targets, mask, torch.zeros_like(images), torch.zeros_like(images))

    def step(self, model: nn.Module, config: RetrainConfig) -> None:
        """Move every image one step of proximal Adam towards its class, on the network as it is in eval mode.

        Entries are not floored: a step is shorter than the floor, and no entry could leave black.
        """
        with held_still(model):
            grad = input_grad(model, self.images, self.targets).grad
        self.steps += 1
        ops.recovery_step(
            self.images, grad, lr=config.pool_lr, lam=config.pool_lam, penalty="prox", exp_avg=self.exp_avg,
            exp_avg_sq=self.exp_avg_sq, step=self.steps, mask=self.mask,
        )  # fmt: skip

    def judged(self, model: nn.Module, config: RetrainConfig) -> FoolingSet:
        """The images as they are, and what the network says to them; `stop_step` is the steps taken."""
        limit = config.sparsity_limit(self.images[0].numel())
        stop_step = torch.full_like(self.targets, self.steps)
        images = self.images.clone()
        return FoolingSet.judge(model, images, self.targets, stop_step, p_min=config.p_min, s_max=limit)
