"""What a retraining experiment does: one frozen record, and presets of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Labelling = Literal["fake", "uniform"]
Network = Literal["continue", "fresh"]
Method = Literal["adam", "prox", "l1"]
Optimizer = Literal["adam", "adadelta", "sgd"]


@dataclass(frozen=True)
class RetrainConfig:
    """Settings of :func:`sparring.training.retrain`.

    Attributes
    ----------
    labelling : "fake" gives the network 2K outputs and labels an image recovered for class c as c + K; "uniform"
        keeps K outputs and trains fooling images towards the uniform distribution.
    network : "continue" trains the same network on; "fresh" starts a new one in every generation.
    generations : rounds of generate, merge and train, at most.
    pretrain_epochs, epochs : epochs on real images alone before the first attack, and per generation after it.
    keep : fraction of every past set of fooling images that is kept when a new one is merged (beta).
    images, fresh : fooling images attempted per generation, for training and held out for metric 4.
    method, steps, lam, attack_lr, floor, mask_fraction, start : passed to :func:`sparring.attacks.recover`;
        lam None leaves the weight of the penalty to it, since each method wants another.
    p_min, s_max : an image qualifies when p(target) >= p_min and at most s_max of its entries are above black;
        s_max is a count, or a float in (0, 1) for that fraction of the entries.
    optimizer, lr, lr_decay, batch_size : training; the rate is multiplied by lr_decay after every epoch and starts
        again in every generation.
    fooling_share : smallest share of fooling images in an epoch; they are repeated to reach it.
    real_images, eval_images : how many real training images are used, and how many images at most metrics 3 and 9
        are measured on; 0 takes all.
    seed : every random number of the experiment follows from it.
    """

    labelling: Labelling = "fake"
    network: Network = "continue"
    generations: int = 12
    pretrain_epochs: int = 8
    epochs: int = 4
    keep: float = 1.0
    images: int = 300
    fresh: int = 100
    method: Method = "l1"
    steps: int = 500
    lam: float | None = None
    attack_lr: float = 0.5
    floor: float = 0.1
    mask_fraction: float = 0.0
    start: Literal["noise", "black"] = "noise"
    p_min: float = 0.9
    s_max: int | float = 0.25
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    lr_decay: float = 1.0
    batch_size: int = 64
    fooling_share: float = 0.0
    real_images: int = 0
    eval_images: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("labelling", self.labelling, get_args(Labelling))
        _check_choice("network", self.network, get_args(Network))
        _check_choice("method", self.method, get_args(Method))
        _check_choice("optimizer", self.optimizer, get_args(Optimizer))
        _check_choice("start", self.start, ("noise", "black"))
        for name in ("generations", "pretrain_epochs", "epochs", "images", "fresh", "steps", "batch_size"):
            _check_count(name, getattr(self, name), 1)
        for name in ("real_images", "eval_images", "seed"):
            _check_count(name, getattr(self, name), 0)
        _check_range("keep", self.keep, 0.0, 1.0)
        _check_range("p_min", self.p_min, 0.0, 1.0)
        _check_range("mask_fraction", self.mask_fraction, 0.0, 0.999)
        _check_range("floor", self.floor, 0.0, 1.0)
        _check_range("fooling_share", self.fooling_share, 0.0, 0.9)
        if self.lam is not None:
            _check_range("lam", self.lam, 0.0, math.inf)
        _check_range("lr", self.lr, 1e-12, math.inf)
        _check_range("lr_decay", self.lr_decay, 1e-12, 1.0)
        _check_range("attack_lr", self.attack_lr, 1e-12, math.inf)
        if isinstance(self.s_max, int):
            _check_count("s_max", self.s_max, 1)
        elif not 0.0 < self.s_max < 1.0:
            raise ValueError(f"s_max is {self.s_max}: give a whole number, or a fraction between 0 and 1")

    def sparsity_limit(self, entries: int) -> int:
        """`s_max` as a number of entries, for images of so many."""
        return self.s_max if isinstance(self.s_max, int) else max(1, round(self.s_max * entries))

    def replace(self, **changes: Any) -> RetrainConfig:
        """A copy with some fields changed; None leaves a field as it is."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})


def _check_choice(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}: accepted are {', '.join(repr(choice) for choice in accepted)}")


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value!r}: give a number from {low:g} to {high:g}")


PRESETS: Mapping[str, RetrainConfig] = {
    # the digits of scikit-learn, 8 x 8: about a minute on two cores
    "default": RetrainConfig(),
    # a sample of the real images and few pixels: MNIST with a perceptron in about a minute on two cores
    "quick": RetrainConfig(
        generations=12,
        pretrain_epochs=5,
        epochs=3,
        images=500,
        s_max=0.125,
        batch_size=128,
        fooling_share=0.2,
        real_images=10_000,
    ),
    # the experiment as first run on MNIST: Adam with an L1 penalty, 1000 steps, at most 100 of 784 entries
    "full-sparse": RetrainConfig(
        generations=20,
        pretrain_epochs=5,
        epochs=2,
        images=1000,
        fresh=200,
        method="adam",
        steps=1000,
        s_max=0.128,
        optimizer="adadelta",
        lr=1.0,
        lr_decay=0.7,
    ),
}
