"""Sparse-RS: random search over few pixels, for which the model's answers are enough."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from sparring.attacks._forward import answer, judged
from sparring.attacks._norms import COUNTED, Bounds, L0Ball, Norm
from sparring.attacks._problem import Options, Preprocessing, Problem, Query, check
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Best, run
from sparring.attacks._seeds import example_seeds
from sparring.attacks._sparse_search import SparseSearch
from sparring.gradients import Lowered
from sparring.losses import Loss

SHARE = 0.3
"""Of the set that is exchanged at first; it falls to one place at the end."""
LOCAL = 0.5
"""How likely a place joins beside another one of the set."""
TRIALS = ((0.05, 1), (0.1, 2), (1.0, 4))
"""Up to which share of the queries so many are asked at once: later on few are better, and asking so is cheaper."""
BATCH = 64
"""Points that may go through the model at once though there are fewer examples."""
GLANCE = 8
"""Rounds between two looks at which examples are done, where a look makes a device wait."""


class BestPoints(Best):
    """Keeps points in place of perturbations, so that what is returned is to the bit what was asked about."""

    def __init__(self, problem: Problem, budget: int) -> None:
        super().__init__(problem.ball, budget)
        self.delta = problem.ball.inputs.clone()

    def points(self, ball: object) -> Tensor:
        return self.delta


def sparse_rs(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = "pixels",
    queries: int = 1000,
    restarts: int = 1,
    loss: Loss = "margin",
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    early_stop: bool = True,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Change at most `eps` pixels (or entries) by random search: a variant of Sparse-RS (Croce et al. 2022).

    Every example has a set of pixels, each channel of which is at one end of the bounds. A query tries the set with
    some of its pixels replaced, and keeps that if it fools the model or if the loss is no lower. No gradient is asked
    for.

    Parameters
    ----------
    eps
        How many pixels may differ: a whole number, or one per example (B,).
    norm
        "pixels": a pixel is a position with all its channels, inputs being (B, C, ...), or (B, D) with D positions;
        0 or "L0": entries.
    queries
        Answers to ask for per example and restart, besides one for the example itself.
    return_result
        True: an `AttackResult`, whose `steps_used` counts queries.

    The other arguments and the result are described in :mod:`sparring.attacks`; `early_stop` is on by default.

    Notes
    -----
    Departures from the published attack, each of which fools more images, or as many sooner, on the robust networks for
    which it was measured: half of the new pixels are neighbours of others of the set; a channel goes to an end of the
    bounds with a probability that grows as the square of the way there; fewer pixels are replaced at once; equal losses
    are moved to; after a tenth of the queries four are asked at once, of which the best counts.
    """
    options = Options(
        eps, norm, targets, bounds, loss, preprocessing, restarts, early_stop=early_stop, batch_size=batch_size,
        generator=generator, return_result=return_result, norms=COUNTED, gradients=False,
    )  # fmt: skip
    if isinstance(queries, bool) or not isinstance(queries, int) or queries < 1:
        raise ValueError(f"queries must be an integer of at least 1; got {queries!r}")
    check(inputs, options)
    seeds = example_seeds(inputs, restarts, generator).to(inputs.device)

    def attack(problem: Problem, rows: slice) -> Best:
        best = BestPoints(problem, restarts * queries)
        everything = torch.arange(len(problem.labels), device=problem.labels.device)
        unchanged = answer(problem, torch.zeros_like(problem.ball.inputs))
        best.update(everything, problem.ball.inputs, unchanged, 0, first_only=False)
        for restart in range(restarts):
            at = everything[~best.fooled] if early_stop else everything
            if len(at):
                drawn, most = seeds[rows][at, restart].contiguous(), batch_size or max(BATCH, len(at))
                _search(problem.rows(at), at, drawn, queries, best, restart * queries, early_stop, most)
        return best

    return run(model, inputs, labels, attack, options)


def _search(
    problem: Problem, at: Tensor, seeds: Tensor, queries: int, best: Best, before: int, early_stop: bool, most: int
) -> None:
    """One search for the examples `at`; no more than `most` points go through the model at once."""
    ball = problem.ball
    assert isinstance(ball, L0Ball)
    search = SparseSearch(ball.inputs, ball.channels, ball.eps.long(), seeds, ball.bounds, local=LOCAL, stop=early_stop)
    glance = 1 if ball.inputs.is_cpu else GLANCE
    for round_ in itertools.count(1):
        loss, fooled = _ask(problem, search.trials, most)
        asked = search.queries + search.trials.shape[1]
        trials = next(count for until, count in TRIALS if asked < until * queries or until == 1)
        trials = min(trials, queries - asked)
        search.answered(loss, fooled, SHARE * (1 - asked / queries), max(1, trials))
        if trials == 0:
            break
        if early_stop and round_ % glance == 0:
            going = (~search.best_fooled).nonzero()[:, 0]
            if len(going) <= 0.9 * len(at):  # a few that are done may stay: to take them out means to copy
                _note(best, at, search, before)
                if len(going) == 0:
                    return
                at, problem = at[going], problem.rows(going)
                search.keep(going)
    _note(best, at, search, before)


def _ask(problem: Problem, trials: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Loss at trials (B, T, ...) and whether they fool, (B, T), from batches of `most`."""
    count = trials.shape[1]
    labels, targets = (
        None if classes is None else classes.repeat_interleave(count) for classes in (problem.labels, problem.targets)
    )
    assert labels is not None
    points, answers = trials.flatten(0, 1), []
    for first in range(0, len(points), most):
        part = slice(first, first + most)
        answers.append(judged(problem, points[part], labels[part], None if targets is None else targets[part]))
    loss, fooled = (torch.cat([getattr(a, name) for a in answers]).reshape(-1, count) for name in ("loss", "fooled"))
    return loss, fooled


def _note(best: Best, at: Tensor, search: SparseSearch, before: int) -> None:
    """Take note of what was found for the examples `at`."""
    fooled = search.best_fooled
    first = fooled & ~best.fooled[at]
    found = Query(search.best[:, :0], search.best_loss, fooled, torch.zeros_like(fooled))
    best.update(at, search.best, found, 0, first_only=False)
    best.steps[at] = torch.where(first, before + search.used, best.steps[at])
