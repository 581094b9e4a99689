"""Whether a small ball around an input is as safe as chance makes it look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparring.attacks import gaussian_noise, lbfgs
from sparring.attacks._result import AttackResult
from sparring.training.evaluate import logits_of


@dataclass(frozen=True)
class Smoothness:
    """Shares of the inputs classified correctly as they are that a perturbation of each length misleads (SPEC C6).

    Attributes
    ----------
    radii : float64 (R,), lengths in L2.
    random : float64 (R,), by one perturbation in a random direction: the mean over all draws.
    random_worst : float64 (R,), by one of `draws` in random directions.
    optimised : float64 (R,), by the shortest that the attack found.
    distance : float64 (N,), the length of that, of every input counted; inf where none was found.
    draws, count : of random directions for each input, and of inputs.
    """

    radii: Tensor
    random: Tensor
    random_worst: Tensor
    optimised: Tensor
    distance: Tensor
    draws: int
    count: int

    def table(self) -> str:
        """In per cent, in Markdown: a row for each radius."""
        head = f"| L2 radius | a random direction | the worst of {self.draws} | optimised |"
        lines = [head, "|---:|---:|---:|---:|"]
        for radius, *shares in zip(self.radii, self.random, self.random_worst, self.optimised, strict=True):
            cells = " | ".join(f"{100 * float(share):.1f}" for share in shares)
            lines.append(f"| {float(radius):.3g} | {cells} |")
        return "\n".join(lines) + "\n"


def smoothness(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    *,
    draws: int = 20,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    **options: Any,
) -> Smoothness:
    """Perturb inputs at random and on purpose, at the same distances.

    Parameters
    ----------
    model, inputs, labels
        As in :mod:`sparring.attacks`; inputs that the model has wrong are left out.
    radii
        Positive lengths in L2. A random perturbation, normal noise scaled to that length, is shortened where the bounds
        cut it off.
    draws
        Random perturbations of each input and length, at least 1.
    generator
        Draws them; None: one with seed 0.
    options
        For :func:`sparring.attacks.lbfgs`, which finds the shortest perturbation.
    """
    if not radii or not all(0 < radius < float("inf") for radius in radii):
        raise ValueError(f"radii must be positive numbers, one at least; got {radii!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    right = logits_of(model, inputs).argmax(1) == labels
    if not bool(right.any()):
        raise ValueError("the model classifies none of the inputs correctly; there is nothing to mislead")
    inputs, labels = inputs[right], labels[right]
    generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
    mean, worst = [], []
    for radius in radii:
        misled = []
        for _ in range(draws):
            noisy = gaussian_noise(model, inputs, labels, eps=radius, bounds=bounds, generator=generator)
            assert isinstance(noisy, Tensor)
            misled.append(logits_of(model, noisy).argmax(1) != labels)
        of_draws = torch.stack(misled)
        mean.append(of_draws.double().mean())
        worst.append(of_draws.any(0).double().mean())
    found = lbfgs(model, inputs, labels, bounds=bounds, return_result=True, **options)
    assert isinstance(found, AttackResult)
    distance = found.distance.where(found.success, torch.inf)
    at = torch.tensor(radii, dtype=torch.float64, device=distance.device)
    optimised = (distance[None] <= at[:, None]).double().mean(1)
    return Smoothness(at, torch.stack(mean), torch.stack(worst), optimised, distance, draws, len(inputs))
