"""The loop that all gradient attacks share: query the model, remember the best point of each example, move on.

An attack brings its moves (:class:`Moves`); starts, restarts, early stopping, batches and the result are here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks._model import answered, held_still, preprocessed
from sparring.attacks._norms import NORMED, Ball, Bounds, Norm, ball_of, check_works, norm_name, slack
from sparring.attacks._result import AttackResult, GradientMaskingWarning
from sparring.attacks._seeds import example_seeds
from sparring.gradients import InputGrad, Lowered, lower
from sparring.gradients.batched import Spans, asked, spans_of
from sparring.gradients.home import explained, home_of
from sparring.losses import Loss

Preprocessing = dict[str, object] | nn.Module


@dataclass(frozen=True)
class Options:
    """What every attack takes besides the model, the examples and its own settings; see :mod:`sparring.attacks`."""

    eps: float | Tensor
    norm: Norm
    targets: Tensor | None
    bounds: Bounds
    loss: Loss
    preprocessing: Preprocessing | None
    restarts: int = 1
    random_start: bool = False
    early_stop: bool = False
    keep_finished: bool = False
    batch_size: int | None = None
    generator: torch.Generator | None = None
    return_result: bool = False
    norms: Sequence[str] = NORMED  # in which the attack works
    gradients: bool = True  # whether it asks for any


class Query(NamedTuple):
    """The model's answer at a point, one entry an example: `fooled` says whether the attack's aim is reached there."""

    grad: Tensor
    loss: Tensor
    fooled: Tensor
    bad_grad: Tensor

    def rows(self, keep: Tensor) -> Query:
        return Query(*(field[keep] for field in self))


@dataclass(frozen=True)
class Problem:
    """Whom to attack, where, and to what end. `aims` are the classes that the loss steers to, if it does.

    `spans` are those of all labels and targets of the call, read once.
    """

    model: Lowered
    ball: Ball
    labels: Tensor
    targets: Tensor | None
    loss: Loss
    aims: Tensor | None
    spans: Spans

    def rows(self, keep: Tensor) -> Problem:
        targets, aims = (None if classes is None else classes[keep] for classes in (self.targets, self.aims))
        return replace(self, ball=self.ball.rows(keep), labels=self.labels[keep], targets=targets, aims=aims)

    def query(self, delta: Tensor) -> Query:
        """Loss and gradient at ``inputs + delta``; the gradient is 0 where it or the loss is not finite."""
        found = self.ask(self.ball.points(delta), self.loss)
        flat = found.grad.flatten(1)
        steepest = flat.abs().amax(1)  # NaN and inf show here
        fine = steepest.isfinite() & found.loss.isfinite()
        grad = found.grad if bool(fine.all()) else found.grad.masked_fill(~self.ball.column(fine), 0)
        fooled = self.fooled(found.logits)
        return Query(grad, found.loss.nan_to_num(nan=-math.inf), fooled, ~fooled & ~(fine & (steepest > 0)))

    def ask(self, points: Tensor, loss: Loss) -> InputGrad:
        """Gradient, loss and logits at any points (B, ...)."""
        found = asked(self.model, points, self.labels, loss, self.aims, self.spans)
        losses.check_two_classes(found.logits)
        return found

    def logits(self, points: Tensor) -> Tensor:
        """The model's answer to any points (B, ...), (B, K)."""
        logits = answered(self.model, points)
        losses.check(self.loss, logits, self.labels, self.targets, self.spans)
        losses.check_two_classes(logits)
        return logits

    def fooled(self, logits: Tensor) -> Tensor:
        return fooled(logits, self.labels, self.targets)


def fooled(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Whether the likeliest class is the target, or, without targets, not the label; never for NaN logits."""
    top = logits.argmax(1)
    reached = top != labels if targets is None else top == targets
    return reached & ~logits.isnan().any(1)


class Moves:
    """How an attack moves: every tensor among its attributes has one entry an example, so that examples can leave.

    `delta` is the perturbation to query next; `step` is given the answer and moves `delta` on.
    """

    def __init__(self, ball: Ball, delta: Tensor) -> None:
        self.ball, self.delta = ball, delta

    def step(self, query: Query) -> None:
        raise NotImplementedError

    def keep(self, rows: Tensor) -> None:
        """Drop all examples but `rows`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, Ball):
                setattr(self, name, value.rows(rows))


class Best:
    """The best point of each example so far: a fooling one before any other, then the one of highest loss."""

    def __init__(self, ball: Ball, budget: int) -> None:
        count, device = len(ball.inputs), ball.inputs.device
        self.delta = torch.zeros_like(ball.inputs)
        self.loss = torch.full((count,), -math.inf, device=device, dtype=torch.float64)
        self.fooled, self.bad_grad = (torch.zeros(count, dtype=torch.bool, device=device) for _ in range(2))
        self.steps = torch.full((count,), budget, device=device)

    def points(self, ball: Ball) -> Tensor:
        """What to return: (B, ...)."""
        return ball.exact_points(self.delta)

    def update(self, rows: Tensor, delta: Tensor, query: Query, step: int, *, first_only: bool) -> None:
        """Take note of the answers for the examples `rows`; with `first_only` fooled ones are settled."""
        fooled, loss = self.fooled[rows], query.loss.double()
        better = (query.fooled > fooled) | ((query.fooled == fooled) & (loss > self.loss[rows]))
        if first_only:
            better &= ~fooled
        new = query.fooled & ~fooled
        at = rows[better]
        self.delta[at], self.loss[at] = delta[better], loss[better]
        self.steps[rows[new]] = step
        self.fooled[at] = query.fooled[better]
        self.bad_grad[rows] |= query.bad_grad & ~fooled


Begin = Callable[[Ball, Tensor, int, "Moves | None"], Moves]
"""An attack's moves: in a ball, from a start, for so many steps, after those of an earlier stage if there was one."""


class Stage(NamedTuple):
    """So many steps in a ball `scale` times the size of the one asked for; only points of the last stage count."""

    scale: float
    steps: int


def search(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    begin: Begin,
    stages: Sequence[Stage],
    options: Options,
    *,
    aims: int | None = None,
) -> Tensor | AttackResult:
    """Attack every example, and return what the caller of the attack asked for.

    With `aims` the loss steers, restart after restart, to the so many most likely classes other than the label.
    """
    check(inputs, options)
    ways = options.restarts * (aims or 1)
    seeds = example_seeds(inputs, options.restarts, options.generator) if options.random_start else None
    budget = sum(stage.steps for stage in stages)

    def attack(problem: Problem, rows: slice) -> Best:
        ranked = _likeliest_others(problem, aims) if aims else None
        best = Best(problem.ball, ways * budget)
        for way in range(ways):
            going = ~best.fooled if options.early_stop else torch.ones_like(best.fooled)
            if not bool(going.any()):
                break
            at = going.nonzero()[:, 0]
            part = problem.rows(at) if len(at) < len(going) else problem
            if ranked is not None:
                part = replace(part, aims=ranked[at, way % ranked.shape[1]])
            start = torch.zeros_like(part.ball.inputs)
            if seeds is not None:
                drawn = seeds[rows, way // (aims or 1)]
                start = part.ball.scaled(stages[0].scale).random(drawn[at.cpu()].tolist())
            climb(part, at, begin, start, stages, best, way * budget, options)
        return best

    return run(model, inputs, labels, attack, options)


def run(
    model: nn.Module | Lowered,
    inputs: Tensor,
    labels: Tensor,
    attack: Callable[[Problem, slice], Best],
    options: Options,
) -> Tensor | AttackResult:
    """Have `attack` find a point for each example, batch after batch, with the model held still."""
    module = _module(model)
    inputs, labels, targets, eps = _examples(module, inputs, labels, options)
    losses.check_name(options.loss)
    whole = preprocessed(module, options.preprocessing, inputs)
    size = options.batch_size or max(1, len(inputs))
    results = []
    with held_still(whole), torch.inference_mode(False), explained(whole, inputs, "inputs"):
        ball = ball_of(options.norm, inputs, eps, bounds_of(options.bounds))
        lowered = lower(whole)
        lowered = lowered.take(inputs) if options.gradients else lowered
        everything = Problem(lowered, ball, labels, targets, options.loss, targets, spans_of(labels, targets))
        for first in range(0, max(1, len(inputs)), size):
            rows = slice(first, first + size)
            part = torch.arange(len(inputs), device=inputs.device)[rows]
            problem = everything.rows(part) if size < len(inputs) else everything
            results.append(_result(problem, attack(problem, rows)) if len(inputs) else _empty(problem))
    result = AttackResult(*(torch.cat([getattr(r, f.name) for r in results]) for f in fields(AttackResult)))
    _warn_of_masking(result)
    return result if options.return_result else result.adv


def climb(
    problem: Problem, at: Tensor, begin: Begin, start: Tensor, stages: Sequence[Stage], best: Best, before: int,
    options: Options,
) -> None:  # fmt: skip
    """One start of the examples `at`, through all stages."""
    moves: Moves | None = None
    for scale, steps in stages[:-1]:
        moves = begin(problem.ball.scaled(scale), start, steps, moves)
        for _ in range(steps):
            query = problem.query(moves.delta)
            best.bad_grad[at] |= query.bad_grad & ~best.fooled[at]
            moves.step(query)
        before += steps
    moves = begin(problem.ball, start, stages[-1].steps, moves)
    for step in range(stages[-1].steps + 1):
        query = problem.query(moves.delta)
        best.update(at, moves.delta, query, before + step, first_only=options.early_stop)
        if step == stages[-1].steps:
            return
        if options.early_stop:
            going = ~best.fooled[at]
            left = int(going.sum())
            if left == 0:
                return
            # To take examples out means to copy all others; a few that are done may stay.
            if not options.keep_finished and left <= 0.9 * len(at):
                at, problem, query = at[going], problem.rows(going), query.rows(going)
                moves.keep(going)
        moves.step(query)


def _likeliest_others(problem: Problem, count: int) -> Tensor:
    """The `count` likeliest classes of each example other than its label, most likely first: (B, count)."""
    logits = problem.logits(problem.ball.inputs)
    count = min(count, logits.shape[1] - 1)
    return logits.scatter(1, problem.labels[:, None], -math.inf).topk(count, dim=1).indices


def _result(problem: Problem, best: Best) -> AttackResult:
    """Judge the points as they are returned."""
    adv = best.points(problem.ball)
    logits = problem.logits(adv)
    with torch.no_grad():
        loss = losses.value(problem.loss, logits, problem.labels, problem.targets)
    distance = problem.ball.length(adv.double() - problem.ball.inputs.double())
    return AttackResult(adv, problem.fooled(logits), distance, loss, best.steps, best.bad_grad)


def _empty(problem: Problem) -> AttackResult:
    none = torch.zeros(0, device=problem.labels.device)
    return AttackResult(problem.ball.inputs, none.bool(), none.double(), none, none.long(), none.bool())


def _warn_of_masking(result: AttackResult) -> None:
    standing = ~result.success
    masked = int((result.bad_grad & standing).sum())
    if masked > 0.1 * len(standing):
        warnings.warn(
            f"gradients are likely masked: {masked} of the {int(standing.sum())} examples that the attack did not fool "
            "had a gradient that was zero, NaN or inf on the way (AttackResult.bad_grad says which), so that they may "
            "be less robust than they look. Try loss='margin' or 'dlr', float64, or an attack without gradients.",
            GradientMaskingWarning,
            stacklevel=4,
        )


def check(inputs: Tensor, options: Options) -> None:
    """Errors for what can be said without the model."""
    check_works(norm_name(options.norm), options.norms)
    for name in ("restarts", "batch_size"):
        value = getattr(options, name)
        if (value is not None or name == "restarts") and (type(value) is not int or value < 1):
            raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
    if options.generator is not None and not isinstance(options.generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, not {type(options.generator).__name__}")
    check_inputs(inputs)
    bounds_of(options.bounds)


def check_inputs(inputs: Tensor) -> None:
    """TypeError unless inputs are a dense tensor (B, ...) of numbers in float32 or float64."""
    if not isinstance(inputs, Tensor) or inputs.dtype not in (torch.float32, torch.float64) or inputs.dim() < 2:
        have = f"{inputs.dtype} of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be a float32 or float64 tensor (B, ...), not {have}")
    if inputs.layout is not torch.strided or inputs.is_meta or inputs.is_nested:
        kind = "nested" if inputs.is_nested else "meta" if inputs.is_meta else str(inputs.layout)
        raise TypeError(f"inputs must be a dense tensor of numbers, not a {kind} tensor")
    if 0 in inputs.shape[1:]:
        raise ValueError(f"inputs must have entries, (B, ...); got shape {tuple(inputs.shape)}")


def positive(name: str, value: float | None) -> None:
    """ValueError unless the number is positive and finite, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, or None; got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {value!r}")


def step_count(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be an integer of at least 0; got {steps!r}")
    return steps


def _module(model: nn.Module | Lowered) -> nn.Module:
    module = model.model if isinstance(model, Lowered) else model
    if not isinstance(module, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, or one that was lowered, not {type(module).__name__}")
    return module


def _examples(
    model: nn.Module, inputs: Tensor, labels: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Copies of inputs, labels, targets (int64) and eps (float64 (B,)), checked."""
    check(inputs, options)
    home = home_of(model)
    if home.device is not None and inputs.device != home.device:
        raise ValueError(f"inputs are on device '{inputs.device}', but the model on '{home.device}'; nothing is moved")
    low, high = bounds_of(options.bounds)
    if inputs.numel():
        least, most = (float(end) for end in inputs.detach().aminmax())
        if not (least >= low - slack((low, high)) and most <= high + slack((low, high))):  # NaN is outside too
            raise ValueError(
                f"inputs range over [{least:.7g}, {most:.7g}], outside bounds {options.bounds}; scale them, or pass "
                "their bounds. A model that wants normalised inputs takes preprocessing={'mean': ..., 'std': ...}"
            )
    labels = _classes(labels, "labels", inputs)
    targets = None if options.targets is None else _classes(options.targets, "targets", inputs)
    with torch.inference_mode(False):
        return inputs.detach().clone(memory_format=torch.contiguous_format), labels, targets, _eps(options.eps, inputs)


def bounds_of(bounds: Bounds) -> tuple[float, float]:
    try:
        low, high = bounds
        if isinstance(low, str) or isinstance(high, str):
            raise TypeError("text")
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        raise TypeError(f"bounds must be two numbers (lo, hi); got {bounds!r}") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"bounds must be (lo, hi) with lo < hi, both finite; got {bounds}")
    return low, high


def _eps(eps: float | Tensor, inputs: Tensor) -> Tensor:
    try:
        if isinstance(eps, Tensor) and eps.is_complex():
            raise TypeError("complex")
        numbers = torch.as_tensor(eps, dtype=torch.float64, device=inputs.device).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"eps must be a number or of shape ({len(inputs)},); got {eps!r}") from error
    if numbers.dim() > 1 or (numbers.dim() == 1 and len(numbers) != len(inputs)):
        raise ValueError(f"eps must be a number or of shape ({len(inputs)},); got shape {tuple(numbers.shape)}")
    if not bool(((numbers >= 0) & (numbers < math.inf)).all()):
        raise ValueError(f"eps must be at least 0 and finite; got {eps!r}")
    return numbers.expand(len(inputs)).clone(memory_format=torch.contiguous_format)


def _classes(classes: Any, name: str, inputs: Tensor) -> Tensor:
    if not isinstance(classes, Tensor):
        try:
            classes = torch.tensor(classes, device=inputs.device)  # not where new tensors go by default
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be class indices ({len(inputs)},); got {type(classes).__name__}") from error
    whole = classes.dtype in losses.INTEGERS and classes.layout is torch.strided and not classes.is_meta
    if classes.dim() != 1 or len(classes) != len(inputs) or not (whole or len(classes) == 0):
        raise ValueError(
            f"{name} must be class indices ({len(inputs)},); got {classes.dtype} of shape {tuple(classes.shape)}"
        )
    if classes.device != inputs.device:
        raise ValueError(f"{name} are on device '{classes.device}', but inputs on '{inputs.device}'; nothing is moved")
    if len(classes) and int(classes.min()) < 0:
        raise ValueError(f"{name} must not be negative; got {int(classes.min())}")
    copied: Tensor = classes.to(torch.int64, copy=True)
    return copied
