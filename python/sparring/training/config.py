"""What a retraining experiment does: one frozen record, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from sparring.attacks._objective import Loss, Penalty
from sparring.attacks._start import Start
from sparring.attacks.recovery import Method

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

Labelling = Literal["fake", "uniform"]
Network = Literal["continue", "fresh"]
Mode = Literal["epoch", "batches", "continuous"]
Optimizer = Literal["adam", "adadelta", "sgd"]
Schedule = Literal["step", "cosine", "constant"]
Augment = Literal["none", "affine", "crop-flip"]


@dataclass(frozen=True)
class RetrainConfig:
    """Settings of :func:`sparring.training.retrain`.

    Attributes
    ----------
    labelling : "fake" gives the network 2K outputs and labels an image recovered for class c as c + K; "uniform"
        keeps K outputs and trains fooling images towards the uniform distribution.
    network : "continue" trains the same network on; "fresh" starts a new one in every generation.
    mode : where the fooling images of training come from. "epoch": the attack between generations. "batches": it too,
        and in training, every `generate_every` batches, another on the network as it is. "continuous": a pool of
        images which every batch of training moves on, one step towards each one's class.
    generations : rounds of generate, merge and train, at most.
    pretrain_epochs, epochs : epochs on real images alone before the first attack, and per generation after it.
    keep : fraction of every past set of fooling images that is kept when a new one is merged (beta).
    images, fresh : fooling images attempted per generation, for training and held out for metric 4.
    generate_every, batch_images : mode "batches": batches between two attacks, and attempts in each of them.
    pool_images, pool_lr, pool_lam : mode "continuous": images in the pool, Adam's rate and the weight of the penalty
        (a soft threshold) with which they are moved.
    method, loss, penalty, steps, lam, lam_final, lam_step, attack_lr, lr_step, floor, mask_fraction, start : passed to
        :func:`sparring.attacks.recover`; lam None leaves the weight of the penalty to it, since each method wants
        another.
    anneal, halvings : whether, when an attack finds no image that qualifies, it is repeated with half of `lam`, so
        often at most in the experiment; later attacks go on with the weight that was reached.
    p_min, s_max : an image qualifies when p(target) >= p_min and at most s_max of its entries are above black;
        s_max is a count, or a float in (0, 1) for that fraction of the entries.
    independent, independent_epochs : whether the training images are cut in two halves, one to train on and one for an
        independent network, trained for so many epochs, for metrics 1 and 6 (see :func:`sparring.halves.halves`).
    other_images, other_steps, other_p_min : attempts of each of the different processes of metric 7 per generation, 0
        for none; how many generations differential evolution has, and the probability from which on its images qualify,
        smaller than p_min, which it seldom reaches without gradients.
    final_factor : the attack of metric 8 has so many times the steps and the attempts of the others.
    optimizer, lr, weight_decay, batch_size : training.
    schedule, lr_decay : the learning rate in each generation: "step" multiplies it by lr_decay after every epoch,
        "cosine" lets it fall to nearly 0, "constant" leaves it.
    augment : what is done to real images in training; see :mod:`sparring.training.augment`.
    fooling_share : smallest share of fooling images in an epoch; they are repeated to reach it.
    real_images, eval_images : how many real training images are used, and how many images at most metrics 1, 3, 5, 7
        and 9 are measured on; 0 takes all.
    seed : every random number of the experiment follows from it.
    """

    labelling: Labelling = "fake"
    network: Network = "continue"
    mode: Mode = "epoch"
    generations: int = 12
    pretrain_epochs: int = 8
    epochs: int = 4
    keep: float = 1.0
    images: int = 300
    fresh: int = 100
    generate_every: int = 10
    batch_images: int = 20
    pool_images: int = 50
    pool_lr: float = 0.05
    pool_lam: float = 5.0
    method: Method = "l1"
    loss: Loss = "ce"
    penalty: Penalty | Mapping[str, float] = "input"
    steps: int = 500
    lam: float | None = None
    lam_final: float | None = None
    lam_step: int | None = None
    attack_lr: float = 0.5
    lr_step: int | None = None
    floor: float = 0.1
    mask_fraction: float = 0.0
    start: Start = "noise"
    anneal: bool = False
    halvings: int = 5
    p_min: float = 0.9
    s_max: int | float = 0.25
    independent: bool = False
    independent_epochs: int = 8
    other_images: int = 0
    other_steps: int = 300
    other_p_min: float = 0.5
    final_factor: int = 2
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = "step"
    lr_decay: float = 1.0
    batch_size: int = 64
    augment: Augment = "none"
    fooling_share: float = 0.0
    real_images: int = 0
    eval_images: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in _CHOICES.items():
            check_choice(name, getattr(self, name), get_args(accepted))
        for name, least in _COUNTS.items():
            check_count(name, getattr(self, name), least)
        for name, (low, high) in _RANGES.items():
            check_range(name, getattr(self, name), low, high)
        for name in ("anneal", "independent"):
            check_choice(name, getattr(self, name), (True, False))
        if not isinstance(self.penalty, Mapping):
            check_choice("penalty", self.penalty, get_args(Penalty))
        for name in ("lam", "lam_final"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0.0, math.inf)
        for name in ("lam_step", "lr_step"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 0)
        if (self.lam_final is None) != (self.lam_step is None):
            raise ValueError(f"lam_final is {self.lam_final} and lam_step is {self.lam_step}: give both or neither")
        if self.anneal and (self.lam is None or (self.method == "l1" and self.penalty in ("input", "none"))):
            raise ValueError(
                f"anneal halves lam, but lam is {self.lam} for method {self.method!r} with penalty {self.penalty!r}: "
                "give lam, and a method or penalty that has such a weight"
            )
        if isinstance(self.s_max, int):
            check_count("s_max", self.s_max, 1)
        elif not 0.0 < self.s_max < 1.0:
            raise ValueError(f"s_max is {self.s_max}: give a whole number, or a fraction between 0 and 1")

    def sparsity_limit(self, entries: int) -> int:
        """`s_max` as a number of entries, for images of so many."""
        return self.s_max if isinstance(self.s_max, int) else max(1, round(self.s_max * entries))

    def replace(self, **changes: Any) -> RetrainConfig:
        """A copy with some fields changed; None leaves a field as it is."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> RetrainConfig:
        """The settings that a run was made with; see `from_json`."""
        return from_json(cls, settings)


_CHOICES = {
    "labelling": Labelling, "network": Network, "mode": Mode, "method": Method, "loss": Loss, "start": Start,
    "optimizer": Optimizer, "schedule": Schedule, "augment": Augment,
}  # fmt: skip

_COUNTS = {
    **dict.fromkeys(
        ("generations", "pretrain_epochs", "epochs", "images", "fresh", "generate_every", "batch_images"), 1
    ),
    **dict.fromkeys(("pool_images", "steps", "batch_size", "independent_epochs", "other_steps", "final_factor"), 1),
    **dict.fromkeys(("halvings", "other_images", "real_images", "eval_images", "seed"), 0),
}

_POSITIVE = (1e-12, math.inf)
_RANGES = {
    "keep": (0.0, 1.0), "p_min": (0.0, 1.0), "other_p_min": (0.0, 1.0), "floor": (0.0, 1.0),
    "mask_fraction": (0.0, 0.999), "fooling_share": (0.0, 0.9),
    "pool_lam": (0.0, math.inf), "weight_decay": (0.0, math.inf),
    "lr": _POSITIVE, "attack_lr": _POSITIVE, "pool_lr": _POSITIVE, "lr_decay": (1e-12, 1.0),
}  # fmt: skip


def from_json(cls: type[Settings], settings: object) -> Settings:
    """The settings, a dataclass, that a run was made with; fields that it lacks have their defaults.

    So a run of an earlier version goes on where there are new fields. ValueError if there are unknown fields, or a
    value is of another kind than the field's.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"the run's settings are a {type(settings).__name__}: wanted is an object")
    unknown = sorted({*settings} - {field.name for field in fields(cls)})
    if unknown:
        raise ValueError(
            f"the run's settings have unknown {', '.join(unknown)}: it is of another version of Sparring, which "
            "alone can go on with it"
        )
    try:
        return cls(**settings)
    except TypeError as error:
        raise ValueError(f"the run's settings have a value of the wrong kind: {error}") from error


def check_choice(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}: accepted are {', '.join(repr(choice) for choice in accepted)}")


def check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value!r}: give a number from {low:g} to {high:g}")
