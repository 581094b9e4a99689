"""Adversarial training in L1: Euclidean steps do not overfit catastrophically, as sparse ones do."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from sparring import data, networks
from sparring.attacks import apgd, pgd
from sparring.training import FitConfig, fit_adversarial
from sparring.training.fit.loop import named_attack

EPS = 3.0


class Accuracies(NamedTuple):
    """Of a network on clean images, under the attack that it was trained on, and under a strong one."""

    clean: float
    own: float
    strong: float


@functools.cache
def trained(step: str | None) -> Accuracies:
    """A perceptron trained on single steps in L1, on the digits of scikit-learn."""
    options: dict[str, Any] = {"norm": 1, "steps": 1, "random_start": False}
    if step is not None:
        options |= {"step": step, "step_size": 1.0 if step == "sparse" else 3.0}
    config = FitConfig(
        epochs=20, batch_size=64, attack="pgd", eps=EPS, attack_options=options, alpha=0.0, optimizer="adam", lr=2e-3,
        test_eps=(), label_smoothing=0.0,
    )  # fmt: skip
    test = data.load("digits", split="test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = networks.build("mlp-300-100", (1, 8, 8), 10)
    fit_adversarial(model, data.load("digits"), test, config)

    def accuracy(images: Any) -> float:
        with torch.no_grad():
            return float((model(images).argmax(1) == test.labels).double().mean())

    if step is None:
        options |= {"step": "euclidean"}
    own = pgd(model, test.images, test.labels, eps=EPS, **options)
    strong = apgd(model, test.images, test.labels, eps=EPS, norm=1, steps=50)
    return Accuracies(accuracy(test.images), accuracy(own), accuracy(strong))


def test_sparse_steps_overfit_catastrophically() -> None:
    """What the default guards against: most stand under the attack of training, and hardly any under a strong one."""
    found = trained("sparse")
    assert found.own > 0.85
    assert found.strong < 0.2


def test_training_in_l1_does_not_overfit_catastrophically() -> None:
    """The step that training takes by itself."""
    found = trained(None)
    assert found.clean > 0.9
    assert found.strong > trained("sparse").strong + 0.15
    assert found.own - found.strong < 0.35


def test_training_by_pgd_in_l1_takes_euclidean_steps_unless_told_otherwise() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = networks.build("mlp-300-100", (1, 8, 8), 10)
    digits = data.load("digits")[:6]
    moved = {}
    for step in (None, "euclidean", "sparse"):
        options: dict[str, Any] = {"norm": "L1", "steps": 2} | ({} if step is None else {"step": step})
        attack = named_attack(FitConfig(attack="pgd", eps=EPS, attack_options=options))
        assert attack is not None
        moved[step] = attack(model, digits.images, digits.labels)
    assert torch.equal(moved[None], moved["euclidean"])
    assert not torch.equal(moved[None], moved["sparse"])
