"""Attacks by differential evolution: few pixels, no gradients, nothing but the model's answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks._evolve import Objective, Strategy, check, evolve
from sparring.attacks._forward import answer, judged
from sparring.attacks._model import answered, device_and_dtype, held_still
from sparring.attacks._norms import Bounds
from sparring.attacks._problem import Options, Preprocessing, Problem, Query, bounds_of, check_inputs
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Best, run
from sparring.attacks._seeds import example_seeds, seeds_by_place
from sparring.attacks.recovery import Recovery
from sparring.gradients import Lowered
from sparring.losses import Loss

_GENES = 2**22  # of the candidates that are worked on at a time


def differential_evolution(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    pixels: int = 1,
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = "prob",
    population: int = 400,
    steps: int = 100,
    strategy: Strategy = "rand1bin",
    mutation: float | tuple[float, float] = 0.5,
    recombination: float = 1.0,
    early_stop: bool = True,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 1,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Change at most `pixels` positions of each input, in all channels, so that the model errs: the one-pixel attack.

    Each candidate holds, for each of the pixels, where it is and its new value in every channel; where two of its
    pixels coincide the larger values count. Differential evolution raises `loss` over the candidates, with forward
    passes alone: ``population * (steps + 1)`` of them an input at most. The best candidate is returned, or the input
    itself if none was better.

    Parameters
    ----------
    model
        Maps (B, ...) to logits (B, K); need not be differentiable.
    inputs
        (B, C, *grid) with `grid` the axes of the positions, as in (B, C, H, W); or (B, D), for D positions.
    labels, targets
        Integers (B,): the classes to leave, or those to reach.
    pixels
        Positions that may change, at most.
    bounds
        Range of valid entries; a new value is anywhere in it.
    loss
        What is raised: see :mod:`sparring.losses`.
    population, steps, strategy, mutation, recombination
        Size of each input's population, generations after the first, and how trials are made; see
        :func:`sparring.attacks.evolve`. The defaults are the paper's. More pixels profit from "best1bin" and a small
        `recombination`.
    early_stop
        Leave an input when a candidate fools the model; inputs that are mistaken already are not changed at all.
    preprocessing
        As in the other attacks.
    batch_size
        How many inputs' populations go through the model at a time. With 1 an input's result does not depend on the
        other inputs to the bit. More may suit a device better; the rounding of the model's arithmetic, which may depend
        on the batch, then decides between candidates that are alike.
    generator
        Seeds each input's own random numbers. None: one with seed 0.
    return_result
        Return an :class:`AttackResult`, its `distance` being the number of positions that differ and `steps_used` the
        generation.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; names the argument.

    Notes
    -----
    Su, Vargas & Sakurai 2019, "One pixel attack for fooling deep neural networks".
    """
    _check_counts(pixels=pixels, batch_size=batch_size)
    check(population, steps, strategy, mutation, recombination, called="steps")
    check_inputs(inputs)
    low, high = bounds_of(bounds)
    if inputs.dim() < 2 or 0 in inputs.shape[1:]:
        raise ValueError(f"inputs must be (B, C, H, W), (B, C, *grid) or (B, D), not empty; got {tuple(inputs.shape)}")
    seeds = example_seeds(inputs, 1, generator)[:, 0]
    settings: dict[str, Any] = {
        "population": population, "generations": steps, "strategy": strategy, "mutation": mutation,
        "recombination": recombination, "early_stop": early_stop,
    }  # fmt: skip

    def attack(problem: Problem, rows: slice) -> Best:
        best = Best(problem.ball, steps)
        everything = torch.arange(len(problem.labels), device=problem.labels.device)
        for first in range(0, len(everything), batch_size):
            at = everything[first : first + batch_size]
            nothing = torch.zeros_like(problem.ball.inputs[at])
            best.update(at, nothing, answer(problem.rows(at), nothing), 0, first_only=False)
        going = everything[~best.fooled] if early_stop else everything
        block = max(1, _GENES // (population * pixels * Dots.genes(problem.ball.inputs)))
        for first in range(0, len(going), block):
            at = going[first : first + block]
            part = problem.rows(at)
            dots = Dots(part.ball.inputs, pixels, part.ball.bounds)
            objective = dots.objective(partial(_ask, part), batch_size)
            found = evolve(objective, *dots.box(), seeds=seeds[rows][at.cpu()].tolist(), **settings)
            delta = dots.paint(found.best[:, None])[:, 0] - part.ball.inputs
            new = found.reached & ~best.fooled[at]
            best.update(at, delta, Query(delta, -found.cost, found.reached, at < 0), 0, first_only=False)
            best.steps[at[new]] = found.generations[new]
        return best

    options = Options(high - low, math.inf, targets, bounds, loss, preprocessing, return_result=True)
    result = run(model, inputs, labels, attack, options)
    assert isinstance(result, AttackResult)
    changed = result.adv != inputs.clamp(*bounds)
    changed = changed.flatten(2).any(1) if inputs.dim() > 2 else changed
    return replace(result, distance=changed.sum(1).double()) if return_result else result.adv


def evolve_images(
    model: nn.Module,
    targets: Tensor | Sequence[int],
    shape: Sequence[int],
    *,
    pixels: int = 100,
    p_min: float = 0.9,
    black: float = 0.0,
    bounds: Bounds = (0.0, 1.0),
    population: int = 50,
    steps: int = 500,
    strategy: Strategy = "best1bin",
    mutation: float | tuple[float, float] = 0.5,
    recombination: float = 0.1,
    batch_size: int = 1,
    generator: torch.Generator | None = None,
) -> Recovery:
    """Make sparse fooling images from nothing as `recover` does, but by differential evolution, without gradients.

    A candidate is a list of at most `pixels` entries on a black background: where each is, and its value. Evolution
    raises ``log p(target)`` and stops at `p_min`. Other processes find other images, which shows whether a model that
    was trained against one of them is robust, or has only learnt its style.

    Parameters
    ----------
    model, targets, shape, p_min, black, bounds
        As in :func:`recover`; the model need not be differentiable.
    pixels
        Entries of an image that may differ from `black`.
    population, steps, strategy, mutation, recombination, batch_size, generator
        As in :func:`differential_evolution`.
    """
    _check_counts(pixels=pixels, batch_size=batch_size)
    device, dtype = device_and_dtype(model)
    targets = targets if isinstance(targets, Tensor) else torch.as_tensor(targets, device="cpu")
    targets = targets.to(device, torch.int64)
    if not 0 <= p_min <= 1:
        raise ValueError(f"p_min must be in [0, 1], got {p_min}")
    if not bounds[0] <= black <= bounds[1]:
        raise ValueError(f"black must be in the bounds {bounds}, got {black}")
    background = torch.full((len(targets), 1, *shape), black, device=device, dtype=dtype)
    dots = Dots(background, pixels, bounds)
    seeds = seeds_by_place(len(targets), generator)

    def log_prob(images: Tensor, aims: Tensor) -> Tensor:
        logits = answered(model, images.reshape(-1, *shape))
        losses.check("ce", logits, aims)
        return -losses.value("ce", logits, aims)

    def ask(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        found = log_prob(points, targets[rows])
        return -found, found.exp() >= p_min

    with held_still(model), torch.no_grad():
        found = evolve(
            dots.objective(ask, batch_size), *dots.box(), population=population, generations=steps, strategy=strategy,
            mutation=mutation, recombination=recombination, seeds=seeds,
        )  # fmt: skip
        images = dots.paint(found.best[:, None]).reshape(-1, *shape)
        prob = log_prob(images, targets).exp()
    sparsity = (images != black).flatten(1).sum(1)
    return Recovery(images, prob, sparsity, found.generations, prob >= p_min, torch.zeros_like(sparsity))


def _ask(problem: Problem, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cost of points, which are of the examples `rows`, and whether they fool the model."""
    targets = None if problem.targets is None else problem.targets[rows]
    found = judged(problem, points, problem.labels[rows], targets)
    return -found.loss, found.fooled


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer, at least 1; got {value!r}")


@dataclass(frozen=True)
class Dots:
    """Images as evolution sees them: so many pixels set in a background, each by its position and values.

    `background` is (B, C, *grid) or (B, D); a pixel's genes are a number for each axis of the grid that is longer than
    1 (its place there is the whole part) and the value in each channel.
    """

    background: Tensor
    pixels: int
    bounds: Bounds

    @staticmethod
    def axes(background: Tensor) -> tuple[int, tuple[int, ...]]:
        """Channels, and the lengths of the axes that positions are counted along."""
        channels, *grid = background.shape[1:] if background.dim() > 2 else (1, *background.shape[1:])
        return channels, tuple(n for n in grid if n > 1)

    @staticmethod
    def genes(background: Tensor) -> int:
        """Numbers that describe one pixel."""
        channels, grid = Dots.axes(background)
        return len(grid) + channels

    def rows(self, keep: Tensor) -> Dots:
        return replace(self, background=self.background[keep])

    def box(self) -> tuple[Tensor, Tensor]:
        """Least and largest gene of each pixel, twice (B, genes)."""
        channels, grid = self.axes(self.background)
        low = [0.0] * len(grid) + [self.bounds[0]] * channels
        high = [float(n) for n in grid] + [self.bounds[1]] * channels
        both = torch.tensor([low, high], device=self.background.device, dtype=self.background.dtype)
        low_, high_ = both.repeat(1, self.pixels)[:, None].expand(-1, len(self.background), -1)
        return low_, high_

    def paint(self, candidates: Tensor) -> Tensor:
        """The images that candidates (B, P, genes) stand for: (B, P, C, *grid) or (B, P, D)."""
        channels, grid = self.axes(self.background)
        batch, count = candidates.shape[:2]
        genes = candidates.reshape(batch, count, self.pixels, len(grid) + channels)
        at = torch.zeros_like(genes[..., 0], dtype=torch.int64)
        for axis, length in enumerate(grid):
            at = at * length + genes[..., axis].long().clamp(max=length - 1)
        at = at[:, :, None].expand(-1, -1, channels, -1)
        values = genes[..., len(grid) :].transpose(2, 3)
        blank = self.background.reshape(batch, 1, channels, math.prod(grid)).repeat(1, count, 1, 1)
        # The largest value counts, in whatever order they come: blank to -inf first, then maximum.
        painted = blank.scatter_(3, at, -math.inf).scatter_reduce_(3, at, values, "amax")
        return painted.reshape(batch, count, *self.background.shape[1:])

    def objective(self, ask: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], batch_size: int) -> Objective:
        """What `evolve` asks, put to the model for `batch_size` populations at a time.

        ``ask(points, rows)``: images (n, ...), and the rows of the background that they are of -> cost and goal (n,).
        """

        def judge(rows: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
            answers = []
            for first in range(0, len(rows), batch_size):
                block = slice(first, first + batch_size)
                points = self.rows(rows[block]).paint(candidates[block]).flatten(0, 1)
                answers.append(ask(points, rows[block].repeat_interleave(candidates.shape[1])))
            cost, reached = (torch.cat(parts).reshape(candidates.shape[:2]) for parts in zip(*answers, strict=True))
            return cost, reached

        return judge
