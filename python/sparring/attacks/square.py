"""Square attack: random search over windows, without gradients (Andriushchenko et al. 2020; Croce & Hein 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring.attacks._forward import answer
from sparring.attacks._norms import Bounds, Norm, norm_name
from sparring.attacks._problem import Options, Preprocessing, Problem, Query, check
from sparring.attacks._random import uniform
from sparring.attacks._result import AttackResult
from sparring.attacks._search import Best, run
from sparring.attacks._seeds import example_seeds
from sparring.attacks._squares import PROPOSALS, Grid, Squares
from sparring.gradients import Lowered
from sparring.losses import Loss

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which windows have half the share of the image that they had, of 10000."""
AHEAD = 32
"""Queries whose random numbers are drawn at once."""


def square(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = math.inf,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    loss: Loss = "margin",
    targets: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    preprocessing: Preprocessing | None = None,
    early_stop: bool = True,
    keep_finished: bool = False,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    return_result: bool = False,
) -> Tensor | AttackResult:
    """Square attack: change one window of the image at a time, and keep what raises the loss. It needs no gradients.

    The model's answers alone are asked for, so that nothing which hides gradients hides anything from it. In Linf a
    window of every channel goes up or down by `eps`; in L2 and L1 what is in one window moves to another. Each example
    has windows of its own: neither the rest of the batch nor the order matters.

    Parameters
    ----------
    inputs
        (B, C, H, W). (B, C, L) is taken for rows of L positions, (B, D) for one row, (B, C, \\*, H, W) for all rows one
        below the other.
    queries
        Forward passes an example, of each restart, besides one for the input itself.
    p_init
        Share of the image that the first windows have, in (0, 1]; it is halved nine times.
    early_stop
        Whether an example is done once it is fooled; else its loss is raised to the end.

    The other arguments and the result are described in :mod:`sparring.attacks`; `steps_used` counts queries.

    Notes
    -----
    Departures from AutoAttack's code, each found stronger on two robust networks and none slower: in Linf no window is
    tried that changes nothing, and windows shrink sooner where there are fewer than 10000 queries (after a share of
    them as in the paper, but its square root); in L2 what the box cuts off is given back to the whole perturbation; in
    L1 a window gets twice what there is to give, and the exact projection, which lowers all entries by the same amount,
    makes room for it.
    """
    settings = _Settings(queries, p_init)
    options = Options(
        eps, norm, targets, bounds, loss, preprocessing, restarts, True, early_stop, keep_finished, batch_size,
        generator, return_result,
    )  # fmt: skip
    check(inputs, options)
    if norm_name(norm) not in PROPOSALS:
        raise ValueError(f"square works in {', '.join(PROPOSALS)}, not in {norm_name(norm)}")
    seeds = example_seeds(inputs, 2 * restarts, generator).to(inputs.device)

    def attack(problem: Problem, rows: slice) -> Best:
        best = Best(problem.ball, restarts * queries)
        everything = torch.arange(len(problem.labels), device=problem.labels.device)
        nothing = torch.zeros_like(problem.ball.inputs)
        best.update(everything, nothing, answer(problem, nothing), 0, first_only=early_stop)
        for restart in range(restarts):
            at = everything[~best.fooled] if early_stop else everything
            if len(at):
                pair = seeds[rows, 2 * restart : 2 * restart + 2][at]
                _Walk(problem.rows(at), at, pair, settings).to_the_end(best, restart * queries, options)
        return best

    return run(model, inputs, labels, attack, options)


@dataclass(frozen=True)
class _Settings:
    queries: int
    p_init: float

    def __post_init__(self) -> None:
        if isinstance(self.queries, bool) or not isinstance(self.queries, int) or self.queries < 1:
            raise ValueError(f"queries must be an integer of at least 1; got {self.queries!r}")
        number = isinstance(self.p_init, int | float) and not isinstance(self.p_init, bool)
        if not number or not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must be a share of the image, in (0, 1]; got {self.p_init!r}")

    def share(self, number: int, norm: str) -> float:
        """Of the image that the window of this query has."""
        sooner = math.sqrt(10_000 / self.queries) if norm == "Linf" else 1.0
        return self.p_init * 0.5 ** sum(number * sooner > after for after in HALVED_AFTER)


class _Walk:
    """One start of the examples `at`: the perturbation of each so far, and what the model says of it."""

    def __init__(self, problem: Problem, at: Tensor, seeds: Tensor, settings: _Settings) -> None:
        self.problem, self.at, self.seeds, self.settings = problem, at, seeds, settings
        self.squares = self._squares()
        first = uniform(seeds[:, 0], 0, 1, self.squares.draws[0])[:, 0]
        self.delta = self.squares.start(first)
        found = self._asked(self.delta)
        self.loss, self.fooled, self.query = found.loss, found.fooled, found
        self.random = first

    def to_the_end(self, best: Best, before: int, options: Options) -> None:
        """All queries, noted in `best`."""
        for number in range(1, self.settings.queries + 1):
            last = number == self.settings.queries
            if last or bool(self.query.fooled.any()):
                found = Query(self.query.grad, self.loss, self.fooled, self.query.bad_grad)
                best.update(self.at, self._shaped(self.delta), found, before + number, first_only=options.early_stop)
                if options.early_stop:
                    going = ~self.fooled
                    left = int(going.sum())
                    if left == 0:
                        return
                    # To take examples out means to copy all others; a few that are done may stay.
                    if not options.keep_finished and left <= 0.95 * len(going):
                        self._keep(going)
            if not last:
                self._step(number)

    def _step(self, number: int) -> None:
        """Try a window, and keep it where it raises the loss, or fools for the first time."""
        ahead = (number - 1) % AHEAD
        if ahead == 0:
            self.random = uniform(self.seeds[:, 1], number - 1, AHEAD, self.squares.draws[1])
        size = self.squares.size(self.settings.share(number, self.problem.ball.name))
        trial = self.squares.propose(self.delta, size, self.random[:, ahead])
        self.query = self._asked(trial)
        better = (self.query.fooled > self.fooled) | (
            (self.query.fooled == self.fooled) & (self.query.loss > self.loss)
        )
        self.delta = torch.where(better[:, None, None], trial, self.delta)
        self.loss = torch.where(better, self.query.loss, self.loss)
        self.fooled = self.fooled | self.query.fooled

    def _squares(self) -> Squares:
        ball = self.problem.ball
        return PROPOSALS[ball.name](ball, Grid(ball.inputs))

    def _shaped(self, delta: Tensor) -> Tensor:
        return delta.reshape(self.problem.ball.inputs.shape)

    def _asked(self, delta: Tensor) -> Query:
        return answer(self.problem, self._shaped(delta))

    def _keep(self, rows: Tensor) -> None:
        self.at, self.problem = self.at[rows], self.problem.rows(rows)
        self.squares, self.query = self._squares(), self.query.rows(rows)
        for name in ("seeds", "delta", "loss", "fooled", "random"):
            setattr(self, name, getattr(self, name)[rows])
