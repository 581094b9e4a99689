"""ALMA: an augmented Lagrangian of the distance and the margin (Rony et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparring.attacks._norms import Bounds, Norm
from sparring.attacks._problem import Backward, Preprocessing, positive
from sparring.attacks._result import AttackResult
from sparring.attacks.minimum_norm.hunt import Hunt, counted, hunted, linear_distance, only, per_example
from sparring.gradients import Lowered
from sparring.losses import Loss

SMOOTHING = 0.3
CHECK_EVERY = 10
"""Steps between two looks at whether the penalty has to grow."""
LAST_RATE = 0.01
SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-6, 1e12


class Multipliers:
    """Of each example the multiplier mu of the constraint ``c < 0``, and the parameter rho of its penalty.

    The penalty is P2 of the paper: ``mu c + mu rho c^2 + rho^2 c^3 / 6`` for c >= 0, ``mu c / (1 - rho c)`` below.
    """

    def __init__(self, hunt: Hunt, smoothing: float) -> None:
        self.mu, self.rho = per_example(1.0, hunt), per_example(1.0, hunt)
        self.smoothing, self.steps = smoothing, 0
        self.last = self.mu
        self.found = torch.zeros_like(self.mu, dtype=torch.bool)

    def update(self, c: Tensor, fooled: Tensor) -> None:
        """Take note of the constraint's values; they have to fall by a twentieth until the aim is reached once."""
        if self.steps == 0:
            self.last = c
        elif (self.steps + 1) % CHECK_EVERY == 0:
            enough = self.found | (c < 0.95 * self.last)
            self.rho, self.last = torch.where(enough, self.rho, 1.2 * self.rho), c
        if self.steps:
            mu = self.smoothing * self.mu + (1 - self.smoothing) * self.slope(c)
            self.mu = mu.clamp(SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER)
        self.found = self.found | fooled
        self.steps += 1

    def slope(self, c: Tensor) -> Tensor:
        """The derivative of the penalty by c."""
        above = self.mu + 2 * self.mu * self.rho * c + 0.5 * self.rho.square() * c.square()
        below = self.mu / (1 - self.rho * c.clamp(max=0)).square()
        return torch.where(c >= 0, above, below)


def lagrangian(hunt: Hunt, steps: int, loss: Loss, unit: Tensor | None, first: Tensor, smoothing: float) -> None:
    """So many steps of RMSprop with momentum on the distance and the penalty of ``c = -loss / unit``.

    `first` (B,) is how far the first step goes. The rate falls to a hundredth from where the aim was first reached.
    """
    ball = hunt.ball
    width = ball.bounds[1] - ball.bounds[0]  # the unit of everything but delta itself
    delta, momentum, square = (torch.full_like(hunt.inputs, value) for value in (0.0, 0.0, 1.0))
    multipliers = Multipliers(hunt, smoothing)
    reached = per_example(steps, hunt)
    rate = first
    for step in range(steps):
        answer = hunt.ask(delta, loss)
        c = (-answer.loss if unit is None else -answer.loss / unit).clamp(-1e6, 1e6)
        reached = torch.where(answer.fooled & ~multipliers.found, reached.new_tensor(step), reached)
        multipliers.update(c, answer.fooled)
        weight = multipliers.slope(c) if unit is None else multipliers.slope(c) / unit
        grad = -ball.column(width * weight) * answer.grad
        if step == 0:
            rate = rate_for(width * grad, hunt, first)
        elif ball.name == "L2":
            grad += delta / ball.column(ball.length(delta).clamp(min=1e-12).to(delta.dtype))
        else:
            grad += delta.sign()
        square.mul_(smoothing).addcmul_(grad, grad, value=1 - smoothing)
        momentum.mul_(smoothing).addcdiv_(grad, square.sqrt().add_(1e-8))
        falls = LAST_RATE ** ((step - reached).clamp(min=0) / (steps - reached).clamp(min=1))
        delta = ball.points(delta - ball.column(width * rate * falls) * momentum) - hunt.inputs


def rate_for(grad: Tensor, hunt: Hunt, wanted: Tensor) -> Tensor:
    """The rate (B,) at which a step against `grad` from the inputs goes as far as `wanted`, or as far as it can."""
    ball = hunt.ball

    def too_far(rate: Tensor) -> Tensor:
        return ball.length(ball.points(-ball.column(rate.to(grad.dtype)) * grad) - hunt.inputs) > wanted

    low, high = (torch.full_like(wanted, 2.0**power, dtype=torch.float64) for power in (-60, 60))
    for _ in range(40):
        middle = (low * high).sqrt()
        far = too_far(middle)
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    return low.to(grad.dtype)


def one_round(hunt: Hunt, steps: int, aims: Tensor | None, first_step: float, smoothing: float = SMOOTHING) -> None:
    """A search of so many steps for the classes `aims` (B,), or for any."""
    loss = hunt.aiming(aims)
    start = hunt.ask(torch.zeros_like(hunt.inputs), loss)
    unit: Tensor | None = (-start.loss).clamp(min=torch.finfo(start.loss.dtype).tiny)
    first = first_step * linear_distance(hunt, start)
    if loss == "margin" and hunt.problem.targets is None and hunt.classes > 2:
        loss, unit = "dlr", None
    lagrangian(hunt, steps - 1, loss, unit, first, smoothing)


def alma(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = 2,
    steps: int = 100,
    first_step: float = 0.25,
    smoothing: float = SMOOTHING,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    eot: int = 1,
    backward: Backward | None = None,
    batch_size: int | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Augmented Lagrangian attack of the smallest L2 or L1 perturbation (Rony, Granger, Pedersoli & Ben Ayed 2021).

    Parameters
    ----------
    norm
        2 or 1.
    steps
        Gradients for each example.
    first_step
        How far the first step goes, as a share of the distance at which the model would be fooled were it linear. The
        paper has a number here, which has to be found anew for each network.
    smoothing
        Of the multiplier, of RMSprop, and the momentum. The paper has .9 for 1000 steps, .5 for 100.

    The other arguments and the result are described in :mod:`sparring.attacks`; where no point was found, the input is
    returned.
    """
    positive("first_step", first_step)
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing must be in (0, 1); got {smoothing!r}")
    steps = counted(steps)

    def approach(hunt: Hunt) -> None:
        one_round(hunt, steps, None, first_step, smoothing)

    return hunted(
        model, inputs, labels, approach, norm=only(norm, "L2", "L1"), targets=targets, bounds=bounds,
        preprocessing=preprocessing, eot=eot, backward=backward, batch_size=batch_size, return_result=return_result,
    )  # fmt: skip
