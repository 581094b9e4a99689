"""The attack of Szegedy et al. image by image with scipy's L-BFGS-B, as Foolbox 2, advertorch and DeepRobust had it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

Minimum = Callable[[float], np.ndarray]
Margin = Callable[[np.ndarray], float]


def nearest(model: nn.Module, x: Tensor, target: int, search: Callable[..., Iterator[np.ndarray]]) -> float:
    """Distance of the nearest point in [0, 1] that `search` found of the class `target`; inf if it found none.

    `model` is in eval mode, with parameters that need no gradients.
    """
    start, aim = x.double().flatten().numpy(), torch.tensor([target])

    def point(z: np.ndarray) -> Tensor:
        return torch.from_numpy(z.astype(np.float32)).reshape(1, *x.shape)

    def objective(z: np.ndarray, weight: float) -> tuple[float, np.ndarray]:
        at = point(z).requires_grad_()
        loss = F.cross_entropy(model(at), aim)
        (grad,) = torch.autograd.grad(loss, at)
        r = z - start
        return weight * float(r @ r) + float(loss.detach()), 2 * weight * r + grad.flatten().numpy().astype(np.float64)

    def minimum(weight: float) -> np.ndarray:
        found = minimize(objective, start, (weight,), "L-BFGS-B", jac=True, bounds=[(0, 1)] * len(start))
        return np.asarray(found.x)

    def margin(z: np.ndarray) -> float:
        with torch.no_grad():
            logits = model(point(z))[0]
        others = torch.cat([logits[:target], logits[target + 1 :]])
        return float(logits[target] - others.max())

    steepness = float(np.linalg.norm(objective(start, 0.0)[1]))
    first = steepness**2 / (4 * abs(margin(start)))
    return min((float(np.linalg.norm(z - start)) for z in search(minimum, margin, first)), default=math.inf)


def same_search(minimum: Minimum, margin: Margin, first: float) -> Iterator[np.ndarray]:
    """The minima that fool the model, for the weights that `sparring.attacks.lbfgs` would try."""
    low, high, at_low, at_high, weight = -math.inf, math.inf, 0.0, 0.0, first
    for trial in range(1, 41):
        z = minimum(weight)
        lead, here = margin(z), math.log(weight)
        if lead > 0:
            yield z
            if here > low:
                low, at_low = here, lead
        elif here < high:
            high, at_high = here, lead
        if high - low <= math.log1p(1e-4):
            return
        share = at_low / (at_low - at_high) if at_low > at_high else 0.5
        share = 0.5 if trial % 3 == 0 else min(0.9, max(0.1, share))
        widened = here + math.log(4) * (1 if lead > 0 else -1)
        weight = math.exp(low + share * (high - low) if math.isfinite(high - low) else widened)


def nine_bisections(minimum: Minimum, margin: Margin, _first: float) -> Iterator[np.ndarray]:
    """The same from .01 on, ten times larger while it succeeds, then by bisection (advertorch's defaults)."""
    low, high, weight = 0.0, math.inf, 0.01
    for _ in range(9):
        z = minimum(weight)
        if margin(z) > 0:
            yield z
            low = weight
        else:
            high = weight
        weight = 10 * weight if math.isinf(high) else (low + high) / 2
