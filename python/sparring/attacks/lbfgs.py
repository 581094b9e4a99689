"""Minimal perturbations by L-BFGS in a box (Szegedy et al. 2013), for all examples at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks._box_lbfgs import CONVERGED, MOST_PAIRS, PENALTIES, REJECTED, BoxLbfgs
from sparring.attacks._norms import Bounds
from sparring.attacks._problem import Options, Preprocessing, Problem, bounds_of, check_inputs, positive, step_count
from sparring.attacks._result import AttackResult
from sparring.attacks._search import run
from sparring.attacks._seeds import example_seeds
from sparring.attacks.minimum_norm.hunt import Nearest, margins
from sparring.gradients import Lowered
from sparring.losses import Loss

TARGETS = ("likeliest", "random", "every")
WIDEN, WIDEN_AGAIN = 4.0, 1.5
"""Factor between weights of the penalty until one succeeds and another fails; and where an earlier search ended."""
EMPTY_HANDED = 24
"""Weights that may fail one after the other before an example is given up."""
MARGIN, SCALES = 40.0, (1e-6, 1e6)
"""What `sharpness=None` makes of the margin at the inputs, by factors of the logits in this range."""
SETTLED_SHARE = 0.8
"""Examples leave the batch when not more than this share of it is still going."""
GLANCE = 8
"""Steps between two looks at which examples are done; each makes a GPU wait."""


class WeightSearch:
    """For every example, the largest weight of the penalty whose minimiser still fools the model.

    The margin at the minimiser falls as the weight grows; its zero is bracketed by factors of `WIDEN`, then found by
    regula falsi in the logarithm of the weight, held a tenth of the bracket away from its ends, with every third trial
    in the middle. Every tensor among the attributes has one entry an example.
    """

    def __init__(self, weight: Tensor, done: Tensor, tolerance: float, most: int, widen: float) -> None:
        self.weight, self.done = weight, done.clone()
        self._widen = math.log(widen)
        self._tolerance, self._most = math.log1p(tolerance), most
        self._low = torch.full_like(weight, -math.inf)  # logarithm of the largest weight that succeeded
        self._high = torch.full_like(weight, math.inf)  # and of the smallest that failed
        self._at_low, self._at_high = torch.zeros_like(weight), torch.zeros_like(weight)  # the margins there
        self._trials = torch.zeros_like(weight)

    def update(self, ended: Tensor, margin: Tensor) -> None:
        """Choose the next weight of the examples that `ended` (bool), having come to `margin`; or have them done."""
        here, margin = self.weight.log(), margin.double()
        fooled = margin > 0
        above, below = ended & fooled & (here > self._low), ended & ~fooled & (here < self._high)
        self._low, self._at_low = here.where(above, self._low), margin.where(above, self._at_low)
        self._high, self._at_high = here.where(below, self._high), margin.where(below, self._at_high)
        self._trials = self._trials + ended
        wide = self._high - self._low
        share = (self._at_low / (self._at_low - self._at_high)).nan_to_num(0.5).clamp(0.1, 0.9)
        share = torch.where(self._trials % 3 == 0, 0.5, share)
        widened = here + torch.where(fooled, self._widen, -self._widen)
        chosen = torch.where(wide.isfinite(), self._low + share * wide, widened).exp()
        never = self._low.isinf() & (self._trials >= EMPTY_HANDED)
        self.done = self.done | (ended & ((wide <= self._tolerance) | (self._trials >= self._most) | never))
        self.weight = chosen.where(ended & ~self.done, self.weight)

    def keep(self, rows: Tensor) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


class Answer(NamedTuple):
    """The model's at a point: what is to rise, its gradient, and the margin, above 0 where the aim is reached."""

    grad: Tensor
    loss: Tensor
    margin: Tensor


@dataclass(frozen=True)
class Settings:
    """Those of `lbfgs`."""

    penalty: str
    steps: int
    weights: int
    weight_tolerance: float
    tolerance: float
    history: int
    sharpness: tuple[float, ...]
    relative: bool


def lbfgs(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | str | None = "likeliest",
    penalty: str = "squared L2",
    steps: int = 1000,
    weights: int = 40,
    weight_tolerance: float = 1e-4,
    tolerance: float | None = None,
    history: int = 5,
    loss: Loss = "ce",
    sharpness: Sequence[float] | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """The nearest points that the model takes for another class: box-constrained L-BFGS (Szegedy et al. 2013).

    Each example is moved to the minimum of ``c penalty(r) - loss(inputs + r)`` in the box, for weights c of its own
    that close in on the largest whose minimum still fools the model; of all points evaluated on the way, the nearest
    that fools it is returned. A first weight is read off the gradient at the input, the next minimisation begins where
    the last one ended and knows its curvature, and examples go each at their own pace.

    Parameters
    ----------
    targets
        Integer (B,): the classes to reach. "likeliest": of each example the likeliest but its label; "random": one
        drawn from the others; "every": all others, one after the other, of which the nearest counts. None: any but
        the label, where ``loss="margin"`` is the better loss.
    penalty
        "squared L2", "L2" or "L1": ``|r|_2^2``, ``|r|_2`` or ``|r|_1``, and what nearest means.
    steps
        Evaluations of the model's gradient at most, for each example (and target of "every").
    weights
        Weights c at most.
    weight_tolerance
        The search ends where a weight succeeds and one larger by this share fails.
    tolerance
        A minimum is reached where a step lowers the objective by this share, or less; None: 1e-6, or 1e-9 in float64.
    history
        Pairs of steps and changes of the gradient that each example remembers, 1 ... 16: ``2 history`` copies of the
        inputs.
    sharpness
        Factors of the logits before the loss, one search after the other, each from where the last one ended. A
        cross-entropy weighs all classes, also those that are no obstacle: where logits are small, or classes many, the
        points that it leads to lie beyond the nearest. None: a factor for each example that makes its margin at the
        input 40, so that the logits' own scale does not matter. (1,) is the paper's; (1, 10, 100) takes three times the
        steps.
    generator
        Draws random targets; None: one with seed 0.

    The other arguments and the result are described in :mod:`sparring.attacks`; `AttackResult.distance` is in the
    penalty's norm. Where no point was found, the input is returned.

    References
    ----------
    Szegedy et al., "Intriguing properties of neural networks", 2013, section 4.1. The minimisation is described in
    ``csrc/ops/lbfgs_accept.h`` and ``csrc/ops/lbfgs_direction.h``.
    """
    check_inputs(inputs)
    low, high = bounds_of(bounds)
    choice = targets if isinstance(targets, str) else None
    if tolerance is None:
        tolerance = 1e-9 if inputs.dtype is torch.float64 else 1e-6
    settings = Settings(
        penalty,
        step_count(steps),
        weights,
        weight_tolerance,
        tolerance,
        history,
        (1.0,) if sharpness is None else tuple(sharpness),
        sharpness is None,
    )
    _check(settings, choice)
    reach = max(1.0, (high - low) * inputs[:1].numel())  # no limit: every point of the box is nearer
    options = Options(
        reach, penalty.split()[-1], None if isinstance(targets, str) else targets, bounds, loss, preprocessing,
        batch_size=batch_size, generator=generator, return_result=return_result,
    )  # fmt: skip
    seeds = example_seeds(inputs, 1, generator)[:, 0] if choice == "random" else None

    def attack(problem: Problem, rows: slice) -> Nearest:
        nearest = Nearest(problem.ball)
        for aims in _aims(problem, choice, None if seeds is None else seeds[rows]):
            _approach(replace(problem, aims=aims), settings, nearest)
        return nearest

    return run(model, inputs, labels, attack, options)


def _approach(problem: Problem, settings: Settings, nearest: Nearest) -> None:
    """Find the nearest point of every example that is of the class it aims at."""
    found = Nearest(problem.ball)
    scale = _unit(problem) if settings.relative else torch.ones_like(problem.ball.eps, dtype=problem.ball.inputs.dtype)
    answer = _ask(problem, problem.ball.inputs, settings.sharpness[0] * scale)
    weight, hopeless = _first_weight(settings.penalty, answer)
    fooled = answer.margin > 0
    found.distance[fooled] = 0
    done, widen = hopeless | fooled, WIDEN
    for sharpness in settings.sharpness:
        weight = _minimise(problem, settings, found, sharpness * scale, weight, done, widen)
        widen = WIDEN_AGAIN
    nearer = found.distance < nearest.distance
    nearest.nearest[nearer], nearest.distance[nearer] = found.nearest[nearer], found.distance[nearer]
    nearest.steps += found.steps
    nearest.bad_grad |= hopeless & ~fooled


def _minimise(
    problem: Problem, settings: Settings, found: Nearest, sharpness: Tensor, weight: Tensor, done: Tensor, widen: float
) -> Tensor:
    """Search the weights of all examples that are not `done`, from what was found so far; returns the last ones."""
    ball, last = problem.ball, weight.clone()
    at = torch.arange(len(done), device=done.device)
    search = WeightSearch(weight, done, settings.weight_tolerance, settings.weights, widen)
    descent = BoxLbfgs(
        ball.inputs, settings.penalty, ball.bounds, start=found.nearest, history=settings.history,
        tolerance=settings.tolerance,
    )  # fmt: skip
    for step in range(settings.steps + 1):
        verdict = descent.accept(search.weight, *_ask(problem, descent.trial, sharpness), frozen=search.done)
        search.update((verdict >= CONVERGED) & ~search.done, descent.margin)
        found.steps[at] += ~search.done
        if step % GLANCE == 0 or step == settings.steps:
            going = (~search.done).nonzero()[:, 0]
            if len(going) <= SETTLED_SHARE * len(at) or step == settings.steps:
                found.note(at, descent.best, descent.best_distance)
                last[at] = search.weight
                if len(going) == 0:
                    break
                at, problem, verdict, sharpness = at[going], problem.rows(going), verdict[going], sharpness[going]
                search.keep(going)
                descent.keep(going)
        descent.advance(search.weight, (verdict != REJECTED) & ~search.done)
    return last


def _ask(problem: Problem, points: Tensor, sharpness: Tensor) -> Answer:
    """The model's answer, with a loss of logits that are multiplied by `sharpness` (B,), divided by it."""

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        factor = sharpness.to(logits.dtype)
        aims = classes if problem.aims is not None else None
        return losses.value(problem.loss, factor[:, None] * logits, classes, aims) / factor

    found = problem.ask(points, loss)
    return Answer(found.grad, found.loss, margins(problem, found.logits, problem.aims))


def _unit(problem: Problem) -> Tensor:
    """The factors (B,) of the logits at which the margin at the inputs is `MARGIN`."""
    logits = problem.logits(problem.ball.inputs)
    margin = losses.value("margin", logits, problem.labels, problem.aims).abs()
    return (MARGIN / margin).clamp(*SCALES)


def _first_weight(penalty: str, answer: Answer) -> tuple[Tensor, Tensor]:
    """A weight (B,) near the one that is sought, were the model linear; and where there is no gradient to follow.

    There the penalty balances the loss's gradient at the boundary, where the target is as likely as the class before
    it, so that a cross-entropy's gradient is half of what it was at the start.
    """
    grad = answer.grad.flatten(1).double()
    steepness = torch.linalg.vector_norm(grad, math.inf if penalty == "L1" else 2, dim=1)
    hopeless = ~(steepness.isfinite() & (steepness > 0) & answer.loss.isfinite())
    weight = steepness / 2
    if penalty == "squared L2":
        weight = weight * steepness / (2 * answer.margin.double().abs())
    return weight.where(weight.isfinite() & (weight > 0), 1.0), hopeless


def _aims(problem: Problem, choice: str | None, seeds: Tensor | None) -> list[Tensor | None]:
    """The classes (B,) to aim at, one tensor for every pass; None: any but the label."""
    if choice is None:
        return [problem.targets]
    logits = problem.logits(problem.ball.inputs)
    classes, labels = logits.shape[1], problem.labels
    if choice == "likeliest":
        return [logits.scatter(1, labels[:, None], -math.inf).argmax(1)]
    if choice == "every":
        return [(labels + shift) % classes for shift in range(1, classes)]
    assert seeds is not None
    streams = [torch.Generator("cpu").manual_seed(seed) for seed in seeds.tolist()]
    drawn = [int(torch.randint(1, classes, (), generator=stream, device="cpu")) for stream in streams]
    return [(labels + torch.tensor(drawn, dtype=torch.int64, device=labels.device)) % classes]


def _check(settings: Settings, choice: str | None) -> None:
    if choice is not None and choice not in TARGETS:
        raise ValueError(f"targets must be classes (B,), None, or one of {', '.join(TARGETS)}; got {choice!r}")
    if settings.penalty not in PENALTIES:
        raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}; got {settings.penalty!r}")
    for name, most in (("weights", None), ("history", MOST_PAIRS)):
        value = getattr(settings, name)
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= 1 and (most is None or value <= most)
        if not fine:
            accepted = "an integer of at least 1" if most is None else f"an integer in 1 ... {most}"
            raise ValueError(f"{name} must be {accepted}; got {value!r}")
    for name in ("weight_tolerance", "tolerance"):
        positive(name, getattr(settings, name))
    if not settings.sharpness:
        raise ValueError("sharpness must be one factor at least")
    for factor in settings.sharpness:
        positive("sharpness", factor)
