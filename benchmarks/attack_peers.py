"""L1 attacks of today's libraries, at the settings that their papers and pages name, as functions of one signature.

Every function takes a network, images (B, ...) in [0, 1], labels, a budget and a seed, and returns adversarial images.
Foolbox, ART and torchattacks are imported (the last by ``pip install --no-deps torchattacks``: it asks for torchvision,
which it does not use). APGD of AutoAttack and adversarial-library, and the latter's PDPGD, are written out from their
papers with the libraries' tensor operations, for the reason given in `peers.py`. Against the packages' own code on the
perceptron (500 images, three seeds) APGD leaves as many images standing, to the spread of the seeds, in AutoAttack's
time and in 1.1 times adversarial-library's. Attacks that look for the smallest perturbation ignore the budget, and are
judged by how many images they fool within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import peers

STEPS = 100

# Shares of eps: the strongest of .025, .1, .3, 1 and 3 on 200 images at eps 10, as is PDPGD's rate among .1, .3, .5, 1.
FOOLBOX_PGD_STEP = 0.1
ART_STEP = 0.1

Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """An attack, whether it looks for the smallest perturbation, and how many gradients it takes."""

    run: Attack
    minimal: bool = False
    gradients: int = STEPS
    random: bool = True


# --- APGD of AutoAttack and adversarial-library ---------------------------------------------------------------------


def apgd_l1(
    step: Step, project: Callable[[Tensor, Tensor, Any], Tensor], skip_mistakes: bool, model: nn.Module, images: Tensor,
    labels: Tensor, eps: float, seed: int,
) -> Tensor:  # fmt: skip
    """APGD in L1 on the cross-entropy, 30, 30 and 40 % of the steps at 3, 2 and 1 eps (Croce & Hein 2021, 3.2)."""
    generator = torch.Generator().manual_seed(seed)
    adv = images.clone()
    with torch.no_grad():
        at = torch.arange(len(images)) if not skip_mistakes else (model(images).argmax(1) == labels).nonzero()[:, 0]
    x, y = images[at].flatten(1), labels[at]

    def ask(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = points.detach().requires_grad_()
        logits = model(leaf.reshape(-1, *images.shape[1:]))
        loss = F.cross_entropy(logits, y, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), grad, logits.detach().argmax(1) != y

    start = x + torch.randn(x.shape, generator=generator)
    start = x + project(start - x, x, 3 * eps)
    first = math.ceil(0.3 * STEPS)
    for scale, steps in ((3, first), (2, first), (1, STEPS - 2 * first)):
        radius = torch.full((len(x),), scale * eps)
        start = x + project(start - x, x, scale * eps)
        start, found, fooled = _stage(ask, step, x, start.clamp(0, 1), radius, steps)
    adv[at[fooled]] = found[fooled].reshape(-1, *images.shape[1:])
    return adv


def _stage(
    ask: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    step: Step,
    x: Tensor,
    point: Tensor,
    eps: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One radius: the point of highest loss, the last one that fooled the network, and where one did."""
    loss, grad, fooled = ask(point)
    best, best_loss, best_grad, found = point.clone(), loss.clone(), grad.clone(), point.clone()
    entries = (point != x).sum(1)
    size, kept = eps.clone(), entries / x.shape[1] / 1.5
    for number in range(1, steps + 1):
        point = x + step(point - x, grad, x, eps, size, kept)
        loss, grad, wrong = ask(point)
        found[wrong] = point[wrong]
        fooled = fooled | wrong
        up = loss > best_loss
        best[up], best_loss[up], best_grad[up] = point[up], loss[up], grad[up]
        if number % max(1, int(0.04 * steps)) == 0:
            now = (best != x).sum(1)
            falls = now / entries < 0.95
            size = torch.where(falls, eps, (size / 1.5).maximum(eps / 10))
            kept, entries = now / x.shape[1] / 1.5, now
            point[falls], grad[falls] = best[falls], best_grad[falls]
    return best, found, fooled


def autoattack(model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int) -> Tensor:
    def step(delta: Tensor, grad: Tensor, x: Tensor, eps: Tensor, size: Tensor, kept: Tensor) -> Tensor:
        return peers.step_autoattack(delta, grad, x, float(eps[0]), size[:, None], kept)

    return apgd_l1(step, peers.project_autoattack, True, model, images, labels, eps, seed)


def advlib_apgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int) -> Tensor:
    def project(delta: Tensor, x: Tensor, eps: float) -> Tensor:
        return peers.project_advlib(delta, x, torch.full((len(x),), eps))

    return apgd_l1(peers.step_advlib, project, False, model, images, labels, eps, seed)


# --- adversarial-library's PDPGD ------------------------------------------------------------------------------------


def pdpgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int, lr: float = 1.0) -> Tensor:
    """Primal-dual proximal gradient descent in L1 (Matyasko & Chau 2021), the proximal step in closed form."""
    delta, best, shortest = torch.zeros_like(images), images.clone(), torch.full((len(images),), math.inf)
    mean, square = torch.zeros_like(images), torch.zeros_like(images)
    dual = torch.stack([torch.zeros(len(images)), torch.full((len(images),), -math.log(0.01))], 1)
    weights = dual.softmax(1)  # of the norm, and of being wrong
    own = F.one_hot(labels, 10).bool()
    for i in range(STEPS):
        leaf = delta.detach().requires_grad_()
        logits = model(images + leaf)
        margin = logits[own] - logits.masked_fill(own, -math.inf).amax(1)
        (grad,) = torch.autograd.grad(F.softplus(margin).sum(), leaf)
        length = delta.flatten(1).abs().sum(1)
        better = (margin < 0) & (length < shortest)
        best[better], shortest[better] = (images + delta)[better], length[better]

        mean.lerp_(grad, 0.1)
        square.mul_(0.999).addcmul_(grad, grad, value=0.001)
        metric = (square / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8
        rate = lr * 0.01 ** (i / STEPS) / metric
        delta = (images + delta - rate * mean / (1 - 0.9 ** (i + 1))).clamp(0, 1) - images
        ratio = (weights[:, 0] / weights[:, 1]).reshape(-1, *(1,) * (images.dim() - 1))
        delta = delta.sign() * (delta.abs() - rate * ratio).clamp(min=0)

        share = (STEPS - 1 - i) / (STEPS - 1)
        dual[:, 1] += 0.1 * (share * 0.9 + 0.1) * margin.detach().sign()
        dual[:, 1].clamp_(math.log(1e-6), -math.log(1e-6))
        weights.lerp_(dual.softmax(1), 0.1)
    return best


# --- Foolbox, ART and torchattacks, through their own classes ---------------------------------------------------------


def foolbox(attack: Callable[[float], Any], minimal: bool = False) -> Attack:
    def run(model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int) -> Tensor:
        from foolbox import PyTorchModel

        torch.manual_seed(seed)
        known = PyTorchModel(model, bounds=(0, 1), device="cpu")
        adv: Tensor = attack(eps)(known, images, labels, epsilons=None if minimal else eps)[1]
        return adv

    return run


def foolbox_slide(eps: float) -> Any:
    from foolbox.attacks import SparseL1DescentAttack

    return SparseL1DescentAttack(quantile=0.99, steps=STEPS)


def foolbox_pgd(eps: float) -> Any:
    from foolbox.attacks import L1ProjectedGradientDescentAttack

    return L1ProjectedGradientDescentAttack(steps=STEPS, rel_stepsize=FOOLBOX_PGD_STEP)


def foolbox_ead(eps: float) -> Any:
    from foolbox.attacks import EADAttack

    return EADAttack(steps=STEPS, decision_rule="L1")


def foolbox_fmn(eps: float) -> Any:
    from foolbox.attacks import L1FMNAttack

    return L1FMNAttack(steps=STEPS)


def art(name: str, **settings: Any) -> Attack:
    def run(model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        np.random.seed(seed)  # noqa: NPY002 - what ART draws from
        torch.manual_seed(seed)
        known = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        attack = getattr(evasion, name)(
            known, norm=1, eps=eps, eps_step=ART_STEP * eps, max_iter=STEPS, batch_size=len(images), verbose=False,
            **settings,
        )  # fmt: skip
        return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))

    return run


def torchattacks_ead(model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int) -> Tensor:
    from torchattacks import EADL1

    adv: Tensor = EADL1(model, max_iterations=STEPS)(images, labels)
    return adv.detach()


PEERS = {
    "AutoAttack APGD": Peer(autoattack),
    "adv-lib APGD": Peer(advlib_apgd),
    "adv-lib PDPGD": Peer(pdpgd, minimal=True, random=False),
    "Foolbox SLIDE .99": Peer(foolbox(foolbox_slide), random=False),
    "Foolbox L1PGD": Peer(foolbox(foolbox_pgd)),
    "Foolbox FMN": Peer(foolbox(foolbox_fmn, minimal=True), minimal=True, random=False),
    "Foolbox EAD": Peer(foolbox(foolbox_ead, minimal=True), minimal=True, gradients=9 * STEPS, random=False),
    "ART AutoPGD": Peer(art("AutoProjectedGradientDescent", nb_random_init=1, loss_type="cross_entropy")),
    "ART PGD": Peer(art("ProjectedGradientDescentPyTorch", num_random_init=1)),
    "torchattacks EADL1": Peer(torchattacks_ead, minimal=True, gradients=9 * STEPS, random=False),
}
