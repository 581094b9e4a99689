"""The settings of training against attacks on the fly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sparring.training.config import check_choice, check_count, check_range, from_json

Attack = Literal["none", "fgsm", "fgm", "pgd", "apgd", "slide"]
Updates = Literal["joint", "independent"]
Optimizer = Literal["adadelta", "adam", "sgd"]
Schedule = Literal["constant", "step", "cosine"]
LossName = Literal["ce", "bernoulli"]

TEST_EPS = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)


@dataclass(frozen=True)
class FitConfig:
    """How a network or a mixture is trained; the defaults are those of the experiments on mixtures (source S0).

    The loss is ``alpha J(x) + (1 - alpha) J(x_adv)``, x_adv from an attack on the model as it is (Goodfellow et al.
    2015); without an attack it is J(x).

    Attributes
    ----------
    epochs, batch_size : images are shuffled anew in every epoch.
    attack, eps, attack_options : the attack, by its name in `sparring.attacks`; its budget; and what else it is given.
        "pgd" in L1 goes by Euclidean steps unless ``step="sparse"`` is given: after few sparse steps ("slide" has them
        too) networks withstand the attack of training alone, catastrophic overfitting: a perceptron on digits, trained
        on one step with eps 3, has .92 under that step and .10 under APGD; with a Euclidean step .55 and .37.
    alpha : the share of the loss on real images.
    optimizer, lr, weight_decay : "adadelta" has rho .95 and eps 1e-8, "sgd" momentum .9.
    schedule, lr_decay : of the learning rate; "step" multiplies it by `lr_decay` every epoch.
    loss : J. "ce": cross-entropy; "bernoulli": that of models which return log-probabilities of each class by itself
        (`sparring.losses.bernoulli`), single networks on labels that are not smoothed.
    label_smoothing : share of each label spread over all classes, in training.
    augment : what is done to real images; see :mod:`sparring.training.augment`.
    updates : of a mixture. "joint": the loss is that of the mixture. "independent": each member has its own loss, and
        only the weights have the mixture's.
    reg : ``reg * mean(-log w)`` is added to the loss of the weights w of a mixture; the larger, the more uniform they
        become. With 0 nothing keeps a weight from vanishing.
    weights_lr : learning rate of the weights' logits, by Adam; 0 leaves the weights as they are.
    lipschitz : this times the logarithm of the product of the layers' norms is added to the loss, of a mixture for each
        member; see `sparring.lipschitz.penalty`.
    test_eps : budgets of the fast gradient sign method that the model is tested with after every epoch.
    real_images, eval_images : how many training images are used, and how many test images the tests are on; 0: all.
    seed : every random number follows from it.
    """

    epochs: int = 10
    batch_size: int = 100
    attack: Attack = "fgsm"
    eps: float = 0.3
    attack_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    alpha: float = 0.5
    optimizer: Optimizer = "adadelta"
    lr: float = 0.1
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    lr_decay: float = 1.0
    loss: LossName = "ce"
    label_smoothing: float = 0.1
    augment: Literal["none", "affine", "crop-flip"] = "none"
    updates: Updates = "joint"
    reg: float = 0.0
    weights_lr: float = 0.01
    lipschitz: float = 0.0
    test_eps: tuple[float, ...] = TEST_EPS
    real_images: int = 0
    eval_images: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "test_eps", tuple(self.test_eps))  # a list, where it was JSON
        for name, accepted in (
            ("attack", Attack),
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("loss", LossName),
            ("augment", Literal["none", "affine", "crop-flip"]),
            ("updates", Updates),
        ):
            check_choice(name, getattr(self, name), get_args(accepted))
        for name, least in (("epochs", 0), ("batch_size", 1), ("real_images", 0), ("eval_images", 0), ("seed", 0)):
            check_count(name, getattr(self, name), least)
        positive = (1e-12, math.inf)
        ranges = {
            "eps": (0.0, math.inf), "alpha": (0.0, 1.0), "lr": positive, "weight_decay": (0.0, math.inf),
            "lr_decay": (1e-12, 1.0), "label_smoothing": (0.0, 0.999), "reg": (0.0, math.inf),
            "weights_lr": (0.0, math.inf), "lipschitz": (0.0, math.inf),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            check_range(name, getattr(self, name), low, high)
        if self.loss == "bernoulli" and self.label_smoothing:
            raise ValueError(f"label_smoothing must be 0 with loss 'bernoulli'; got {self.label_smoothing}")
        for eps in self.test_eps:
            check_range("test_eps", eps, *positive)

    def replace(self, **changes: Any) -> FitConfig:
        """A copy with some fields changed; None leaves a field as it is."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> FitConfig:
        """The settings that a run was made with; see `sparring.training.config.from_json`."""
        return from_json(cls, settings)
