"""How the papers' networks are trained, within a point of their test errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sparring import networks
from sparring.data import Dataset, halves
from sparring.intriguing.autoencoder import train_encoder
from sparring.training import FitConfig, fit, fit_adversarial
from sparring.training.fit.config import LossName
from sparring.training.streams import stream


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    network : its name in `sparring.networks`.
    decay : this times the squares of all weights is added to the loss, in the proportion `DECAY`.
    epochs, lr : of Adam, whose rate falls to 0 along half a cosine.
    part : which half of the training images it sees, "P1" or "P2", or "all".
    code : whether the first layer is that of a sparse autoencoder, and stays so.
    loss : see `FitConfig`.
    dropout, weight_decay : of hidden units; Adam's.
    alpha, eps : share of real images in the loss, and the budget of the fast gradient sign method on the others.
    """

    network: str
    decay: float = 0.0
    epochs: int = 20
    lr: float = 3e-3
    part: str = "all"
    code: bool = False
    loss: LossName = "ce"
    dropout: float = 0.0
    weight_decay: float = 0.0
    alpha: float = 1.0
    eps: float = 0.25


RECIPES: dict[str, Recipe] = {
    "FC10(1e-4)": Recipe("softmax", decay=1e-4, lr=1e-3),
    "FC10(1e-2)": Recipe("softmax", decay=1e-2, lr=1e-3, epochs=10),
    "FC10(1)": Recipe("softmax", decay=1.0, lr=1e-3, epochs=10),
    "FC100-100-10": Recipe("sigmoid-100-100", decay=1e-5),
    "FC200-200-10": Recipe("sigmoid-200-200", decay=1e-5),
    "AE400-10": Recipe("sigmoid-400", decay=1e-6, code=True, lr=1e-2),
    "FC100-100-10 (P1)": Recipe("sigmoid-100-100", decay=1e-5, part="P1"),
    "FC123-456-10 (P1)": Recipe("sigmoid-123-456", decay=1e-5, part="P1"),
    "FC100-100-10' (P2)": Recipe("sigmoid-100-100", decay=1e-5, part="P2"),
    # Until the mean confidence on test images, 64 %, is about the paper's 61. After 20 epochs at a rate of 1e-2 it is
    # 71 %, the error 13.0 instead of 13.8 %, and where the network errs under FGS nothing is left of its confidence.
    "RBF": Recipe("rbf", loss="bernoulli", lr=5e-3, epochs=5),
}


class TrainingError(RuntimeError):
    """A network cannot be trained to the end: its loss was not finite."""


def train(
    name: str,
    recipe: Recipe,
    data: Dataset,
    test: Dataset,
    *,
    epochs: int | None = None,
    seed: int = 0,
    on_epoch: Callable[[int], None] | None = None,
) -> nn.Module:
    """The network of a recipe, in eval mode.

    Every random number follows from `seed` and `name`; `epochs` replaces the recipe's.
    """
    part = data if recipe.part == "all" else half(data, recipe.part, seed)
    own = int(torch.randint(2**31, (), generator=stream(seed, "intriguing", name)))
    model = networks.build(recipe.network, data.input_shape, data.classes, generator=torch.Generator().manual_seed(own))
    model = with_dropout(model, recipe.dropout).to(data.images.device)
    epochs = recipe.epochs if epochs is None else epochs
    if recipe.code:
        first = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
        train_encoder(first, part.images.flatten(1), epochs=epochs, seed=own)
        first.requires_grad_(False)
    config = FitConfig(
        epochs=epochs, batch_size=100, optimizer="adam", lr=recipe.lr, weight_decay=recipe.weight_decay,
        schedule="cosine", label_smoothing=0.0, attack="none" if recipe.alpha == 1 else "fgsm", eps=recipe.eps,
        alpha=recipe.alpha, loss=recipe.loss, test_eps=(), seed=own,
    )  # fmt: skip
    regularizer = partial(quadratic_decay, weight=recipe.decay) if recipe.decay else None
    begin = fit if recipe.alpha == 1 else fit_adversarial
    result = begin(
        model, part, test, config, regularizer=regularizer,
        on_record=None if on_epoch is None else lambda record: on_epoch(int(record["epoch"])),
    )  # fmt: skip
    if result.stopped:
        raise TrainingError(f"training of {name}: {result.stopped}")
    result.model.zero_grad(set_to_none=True)
    return result.model.requires_grad_(True).eval()


DECAY = 0.4
"""Times the decay and the squared weights is added to the loss.

The paper divides by a layer's units (Szegedy et al. 2013, section 4.1). At the optimum that gives softmax regression
with a decay of 1 a test error of 14.6 %, where it reports 20 %; half of the decay gives 21.7 %. With 0.4 all three of
its decays come within half a point.
"""


def quadratic_decay(model: nn.Module, weight: float) -> Tensor:
    """`DECAY` times `weight` times the sum of all squared weights."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return DECAY * weight * torch.stack([layer.weight.square().sum() for layer in layers]).sum()


def with_dropout(model: nn.Module, share: float) -> nn.Module:
    """The layers of a perceptron, with dropout after every activation."""
    if not share:
        return model
    layers: list[nn.Module] = []
    for layer in model.children():
        layers += [layer, nn.Dropout(share)] if isinstance(layer, (nn.Sigmoid, nn.ReLU)) else [layer]
    return nn.Sequential(*layers)


def half(data: Dataset, part: str, seed: int = 0) -> Dataset:
    """The images of "P1", or those of "P2": all others."""
    cut = halves(data, seed)
    rows = (cut.train_a, cut.valid_a) if part == "P1" else (cut.train_b, cut.valid_b)
    return data[torch.cat(rows).sort().values.to(data.labels.device)]
