"""Run attacks on the same examples and check what they return."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparring import losses
from sparring._progress import Progress
from sparring.attacks._model import answered, backward_of, held_still, keep_still, preprocessed
from sparring.attacks._norms import COUNTED, NORMED, Norm, distances_of, inside, slack
from sparring.attacks._problem import Backward, bounds_of, check_hooks
from sparring.attacks._result import GradientMaskingWarning
from sparring.attacks.straight_through import Differentiable
from sparring.evaluation.masking import Outputs, evidence, last_resort
from sparring.evaluation.plan import Entry, Key, Plan, Sizes, make_plans
from sparring.evaluation.result import AttackRow, Evaluation, Examples
from sparring.gradients import Lowered, input_grad, lower
from sparring.gradients.home import explained, home_of
from sparring.training.streams import stream

NORMS = (*NORMED, *COUNTED)


def evaluate(
    model: nn.Module | Lowered,
    x: Tensor,
    y: Tensor,
    attacks: Iterable[Entry] | None = None,
    *,
    norm: Norm | None = None,
    eps: Sizes | Mapping[Any, Sizes] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    preprocessing: Mapping[str, Any] | nn.Module | None = None,
    eot: int | None = None,
    backward: Backward | None = None,
    worst_case: bool | None = None,
    full: bool = False,
    batch_size: int = 250,
    seed: int = 0,
    tolerance: float = 1e-5,
    keep: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_row: Callable[[AttackRow], None] | None = None,
) -> Evaluation:
    """Attack the examples that `model` classifies correctly, and report what share withstands.

    No attack is taken at its word: every point it returns is classified again, and its distance and its place in the
    bounds are measured in float64; a point that is not allowed is reported, never counted.

    Parameters
    ----------
    model
        Maps (B, ...) to logits (B, K), or what :func:`sparring.lower` made of it. In eval mode meanwhile, and left
        exactly as it was.
    x
        (N, ...), float32 or float64, in `bounds` (a millionth of the larger one outside is tolerated, and brought
        inside), on the model's device.
    y
        (N,), the true classes.
    attacks
        A list of: names (:data:`sparring.evaluation.NAMES`); functions ``f(model, x, y, ...)`` or
        `functools.partial` of them, which return the adversarial points or an object with them as `adv`
        (:class:`sparring.attacks.AttackResult`); pairs ``(name or function, options)``; dicts
        ``{"attack": name or function, "name": how to call it, **options}``. A function gets the keyword arguments it
        has parameters for, out of `eps`, `norm`, `bounds`, `generator`, `early_stop` and `return_result`, and its
        options. An attack with no eps among its options runs under every threat model that it can work in.
        None: :data:`sparring.evaluation.BATTERIES` for each of them, and, where the figures show signs of masked
        gradients, what gets around that on what is left, in rows that are marked as added: APGD with the gradient of
        :class:`sparring.attacks.Differentiable`, for a random model with the mean of ten draws, and `square`.
    norm, eps
        The threat model: inf, 2, 1, 0 ("Linf", "L2", "L1", "L0"; None: inf) or "pixels", and the radius, a number or a
        tensor (N,) with one per example. In "L0" eps is how many entries may differ, in "pixels" how many positions,
        all channels of one counting as one. For several threat models: a list of numbers, or eps by norm, such as
        ``{"Linf": [0.1, 0.3], "L1": 10.0}``.
    bounds, preprocessing
        The range of `x`, and what stands between it and the model: ``{"mean": ..., "std": ...}`` or a module.
    eot
        For a random model: gradients are the mean over so many draws of it. Passed to the attacks that have such a
        parameter, as `backward` is; None: what each has by default.
    backward
        For a model whose gradient is hidden: a module, or a function, from `x` to logits like the model's, whose
        gradient attacks follow instead; what counts is the model's answer. It stands behind `preprocessing` too.
    worst_case
        Attack only examples that no earlier attack under the same threat model fooled, as AutoAttack does: faster, and
        the same worst case; but then a row's accuracy is what is left after it and the attacks before it. Noise, single
        steps and the first attack after them run on all examples even so, to be compared. None: for the default
        attacks, unless `full`.
    full
        Run every attack on all examples that are classified correctly.
    batch_size
        Examples attacked at a time.
    seed
        Every attack has random numbers of its own, which follow from the seed, its name and the example: neither the
        other attacks and examples nor the batch size change them.
    tolerance
        How much farther than eps a point may be, as a share of eps: for the rounding of other libraries' attacks. Not
        for what is counted, in "L0" and "pixels".
    keep
        Adversarial examples to keep of each class, for each attack.
    on_progress, on_row
        Called as work goes on, and with each attack's row.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError, TypeError
        If an argument is not acceptable, or if no attack can run. An attack that fails, or returns something else than
        points like `x`, while others run, says why in its row, and in the warnings.

    Warns
    -----
    GradientMaskingWarning
        If the figures show signs that the model hides its gradients; ``Evaluation.warnings`` says which.
    """
    module = model.model if isinstance(model, Lowered) else model
    if not isinstance(module, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, or what was lowered from one, not {type(module).__name__}")
    if full and worst_case:
        raise ValueError("full and worst_case exclude each other: every attack on all examples, or on what is left")
    only_left = (attacks is None and not full) if worst_case is None else worst_case
    check_examples(module, x, y, bounds)
    _check(batch_size, seed, tolerance, keep)
    check_hooks(1 if eot is None else eot, backward)
    x, y = x.detach().clamp(*inside(bounds, x.dtype)), y.long()  # attacks would start in the bounds too
    judge = preprocessed(module, preprocessing, x)
    stand_in = backward_of(backward, preprocessing, x)
    with held_still(*([judge] if stand_in is None else [judge, stand_in])):
        lowered = lower(judge)
        logits = clean_logits(judge, x, y, batch_size)
        plans = make_plans(attacks, norm, eps, logits.shape[1], len(x))
        first = slice(0, batch_size)
        again = _logits(judge, x[first])
        hooks = {name: value for name, value in (("eot", eot), ("backward", stand_in)) if value is not None}
        for name in hooks:
            if not any(name in plan.accepts for plan in plans):
                raise ValueError(f"{name} is given, but no attack has a parameter of that name")
        outputs = Outputs(logits[first], again, eot or 1, _hidden(lowered, stand_in, x[first], y[first], again))
        predictions = logits.argmax(1)
        correct = predictions == y
        standing: dict[Key, Tensor] = {}
        compared: set[Key] = set()  # threat models under which an attack of many steps ran
        rows: list[AttackRow] = []
        failures: list[Exception] = []
        for number, plan in enumerate(plans):

            def on_share(done: float, number: int = number, plan: Plan = plan) -> None:
                if on_progress is not None:
                    on_progress(Progress(number + done, len(plans), f"{plan.name}, {plan.threat}"))

            simple = plan.kind in ("noise", "one-step")
            on_all = not plan.added and (simple or plan.key not in compared or not only_left)
            attacked = correct if on_all else standing.get(plan.key, correct)
            if not simple:
                compared.add(plan.key)
            trial = _Trial(plan, lowered, judge, x, y, bounds, tolerance, keep, hooks)
            row = trial.run(attacked, batch_size, functools.partial(stream, seed, "attack", plan.name), on_share)
            if trial.failure is not None:
                failures.append(trial.failure)
                if len(failures) == len(plans):
                    raise failures[0]
            standing[plan.key] = standing.get(plan.key, correct) & ~row.fooled.to(correct.device)
            rows.append(row)
            if on_row is not None:
                on_row(row)
            last = plan.key not in [other.key for other in plans[number + 1 :]]
            if attacks is None and last and not plan.added:
                ran = [row for row in rows if row.error is None]
                if evidence(ran, outputs):
                    through = None if stand_in is not None else _seen_through(judge, x[first], y[first])
                    plans[number + 1 : number + 1] = last_resort(plan, outputs, through)
        if on_progress is not None:
            on_progress(Progress(len(plans), len(plans), "done"))
    found = evidence([row for row in rows if row.error is None], outputs)
    for line in found:
        warnings.warn(line, GradientMaskingWarning, stacklevel=2)
    found += [f"{row.name} ({row.threat}) could not run: {row.error}" for row in rows if row.error is not None]
    return Evaluation(y.cpu(), predictions.cpu(), rows, found, seed, bounds, only_left)


class _Trial:
    """One attack on all examples, and what came of it, example by example."""

    def __init__(
        self, plan: Plan, lowered: Lowered, judge: nn.Module, x: Tensor, y: Tensor, bounds: tuple[float, float],
        tolerance: float, keep: int, hooks: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.plan, self.judge, self.x, self.y, self.hooks = plan, judge, x, y, hooks
        self.model = judge if plan.kind == "other" else lowered
        self.bounds, self.tolerance, self.keep = bounds, tolerance, keep
        count = len(x)
        self.eps = torch.as_tensor(plan.eps, dtype=torch.float64, device=x.device).expand(count)
        self.fooled, self.infeasible = (torch.zeros(count, dtype=torch.bool, device=x.device) for _ in range(2))
        self.distances = {norm: torch.full((count,), math.nan, dtype=torch.float64, device=x.device) for norm in NORMS}
        self.steps: Tensor | None = None
        self.bad_grad: Tensor | None = None
        self.overrun, self.unconfirmed, self.seconds = 0.0, 0, 0.0
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self.failure: Exception | None = None

    def run(
        self,
        attacked: Tensor,
        batch_size: int,
        generator: Callable[[], torch.Generator],
        on_share: Callable[[float], None],
    ) -> AttackRow:
        """Attack the examples where `attacked` (bool (N,)) is True; every batch has the same `generator` anew."""
        on_share(0.0)
        done = 0
        at = attacked.nonzero()[:, 0]
        context = {"bounds": self.bounds, "early_stop": True, "return_result": True, **self.hooks}
        for rows in _batches(at, batch_size):
            x, y = self.x[rows], self.y[rows]
            arguments = self.plan.arguments(rows, len(self.x), {**context, "generator": generator()})
            begun = time.perf_counter()
            try:
                result = self._call(x, y, arguments)
                keep_still(self.judge)  # an attack of the user's may have set modes
                if x.is_cuda:
                    torch.cuda.synchronize(x.device)
                self.seconds += time.perf_counter() - begun
                self._judge(result, rows, x, y)
            except Exception as error:  # of an attack, which may be the user's code; others go on
                self.failure = error
                break
            done += len(rows)
            on_share(done / len(at))
        index, images, predictions = (
            (torch.cat(parts) for parts in zip(*self.kept, strict=True))
            if self.kept
            else (self.y[:0], self.x[:0], self.y[:0])
        )
        cpu = {name: value.cpu() for name, value in self.distances.items()}
        return AttackRow(
            name=self.plan.name, kind=self.plan.kind, norm=self.plan.norm, eps=self.plan.eps, attacked=attacked.cpu(),
            robust=(attacked & ~self.fooled).cpu(), fooled=self.fooled.cpu(), infeasible=self.infeasible.cpu(),
            overrun=self.overrun, unconfirmed=self.unconfirmed, distances=cpu,
            steps=None if self.steps is None else self.steps.cpu(),
            bad_grad=None if self.bad_grad is None else self.bad_grad.cpu(), seconds=self.seconds,
            examples=Examples(index.cpu(), images.cpu(), predictions.cpu()),
            error=None if self.failure is None else _in_a_line(self.failure), shown=self.plan.shown,
            added=self.plan.added,
        )  # fmt: skip

    def _call(self, x: Tensor, y: Tensor, arguments: dict[str, Any]) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GradientMaskingWarning)  # said once, of all attacks together
                return self.plan.call(self.model, x.clone(), y.clone(), **arguments)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"attack {self.plan.name!r}: {error}") from error

    def _judge(self, result: Any, rows: Tensor, x: Tensor, y: Tensor) -> None:
        """Measure and classify what the attack returned for the examples `rows`, (x, y)."""
        adv = getattr(result, "adv", result)
        if not isinstance(adv, Tensor) or adv.shape != x.shape or adv.device != x.device:
            got = f"{tuple(adv.shape)} on {adv.device}" if isinstance(adv, Tensor) else type(adv).__name__
            raise ValueError(
                f"attack {self.plan.name!r} returned {got} for x of shape {tuple(x.shape)} on {x.device}; wanted are "
                "points of that shape, or an object that has them as adv"
            )
        adv = adv.detach().to(x.dtype)
        for norm, distances in distances_of(adv.double() - x.double()).items():
            self.distances[norm][rows] = distances
        eps, distance = self.eps[rows], self.distances[self.plan.norm][rows]
        low, high, beyond = *self.bounds, slack(self.bounds)
        in_box = ((adv >= low - beyond) & (adv <= high + beyond)).flatten(1).all(1)  # NaN is outside
        tolerance = 0.0 if self.plan.norm in COUNTED else self.tolerance  # counts do not round
        feasible = in_box & (distance <= eps * (1 + tolerance))
        if not self.plan.nearest:
            self.overrun = max(self.overrun, float((distance - eps).nan_to_num(0.0).max()))
        prediction = _logits(self.judge, adv).argmax(1)
        fooled = feasible & (prediction != y)
        self.fooled[rows] = fooled
        self.infeasible[rows] = ~in_box if self.plan.nearest else ~feasible  # the nearest point may be too far
        success = getattr(result, "success", None)
        if isinstance(success, Tensor):
            self.unconfirmed += int((success.bool() & feasible & ~fooled).sum())
        for name, attribute in (("steps", "steps_used"), ("bad_grad", "bad_grad")):
            value = getattr(result, attribute, None)
            if isinstance(value, Tensor):
                self._note(name, value, rows)
        self._keep(adv, rows, y, prediction, fooled)

    def _note(self, name: str, value: Tensor, rows: Tensor) -> None:
        old: Tensor | None = getattr(self, name)
        if old is None:
            empty = torch.zeros_like(self.fooled)
            old = empty if name == "bad_grad" else torch.full_like(self.eps, math.nan).contiguous()
            setattr(self, name, old)
        old[rows] = value.to(old)

    def _keep(self, adv: Tensor, rows: Tensor, y: Tensor, prediction: Tensor, fooled: Tensor) -> None:
        """Keep the first adversarial examples of each class."""
        for c in sorted(set(y.tolist())) if self.keep else ():
            have = sum(int((self.y[index] == c).sum()) for index, _, _ in self.kept)
            new = (fooled & (y == c)).nonzero()[: self.keep - have, 0]
            self.kept.append((rows[new], adv[new], prediction[new]))


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    logits = answered(model, x)
    losses.check_two_classes(logits)
    return logits


def _hidden(lowered: Lowered, stand_in: nn.Module | None, x: Tensor, y: Tensor, logits: Tensor) -> Tensor | None:
    """Where the model itself has no gradient, bool (B,), which no attack says that follows another: None without."""
    if stand_in is None:
        return None
    with explained(stand_in, x, "x", "backward"):
        shape = answered(stand_in, x).shape
    if shape != logits.shape:
        raise ValueError(
            f"backward must return logits like the model's, {tuple(logits.shape)}, but gave {tuple(shape)}"
        )
    steepest = input_grad(lowered, x, y, "margin").grad.flatten(1).abs().amax(1)
    return ~(steepest.isfinite() & (steepest > 0))


def _seen_through(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module | None:
    """The model seen through, if it has gradients there."""
    through = Differentiable(model)
    try:
        grad = input_grad(through, x, y, "margin").grad
    except Exception:  # of the user's model, for which there is no other way to say whether it can be
        return None
    return through if bool(grad.isfinite().all()) and bool(grad.any()) else None


def _in_a_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def clean_logits(judge: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """The answers (N, K) to the unchanged examples; ValueError or TypeError where model and examples do not fit."""
    with explained(judge, x, "x"):
        logits = torch.cat([_logits(judge, some) for some in torch.split(x, batch_size)])
    if not bool(logits.isfinite().all()):
        bad = int((~logits.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"model: its output for the unchanged example {bad} is not finite")
    if int(y.max()) >= logits.shape[1]:
        raise ValueError(f"y holds the class {int(y.max())}, but the model has {logits.shape[1]} outputs")
    return logits


def check_examples(module: nn.Module, x: Tensor, y: Tensor, bounds: tuple[float, float]) -> None:
    """TypeError or ValueError unless x are examples within the bounds, where the model is, and y their classes."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.dim() < 2:
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a float32 or float64 tensor (N, ...), not {got}")
    if len(x) == 0:
        raise ValueError("x holds no examples")
    if x.layout is not torch.strided or x.is_meta:
        raise TypeError(f"x must be a dense tensor of numbers, not of layout {x.layout} on {x.device}")
    sparse = isinstance(y, Tensor) and (y.layout is not torch.strided or y.is_meta)
    if not isinstance(y, Tensor) or sparse or y.dtype not in losses.INTEGERS or y.shape != x.shape[:1]:
        got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y must be class indices ({len(x)},), not {got}")
    if y.device != x.device:
        raise ValueError(f"y is on device '{y.device}', but x on '{x.device}'; nothing is moved")
    if int(y.min()) < 0:
        raise ValueError(f"y holds the class {int(y.min())}; classes are counted from 0")
    low, high = bounds_of(bounds)
    least, most = (float(end) for end in x.detach().aminmax())
    if not (least >= low - slack(bounds) and most <= high + slack(bounds)):
        raise ValueError(
            f"x ranges over [{least:.7g}, {most:.7g}], outside bounds {bounds}; scale it, or pass the bounds it has. "
            "A model that wants normalised inputs takes preprocessing={'mean': ..., 'std': ...}"
        )
    home = home_of(module)
    if home.device is not None and x.device != home.device:
        raise ValueError(f"x is on device '{x.device}', but the model on '{home.device}'; nothing is moved")


def _check(batch_size: int, seed: int, tolerance: float, keep: int) -> None:
    for name, value, least_ in (("batch_size", batch_size, 1), ("keep", keep, 0), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least_:
            raise ValueError(f"{name} must be an integer of at least {least_}; got {value!r}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be at least 0 and finite, a share of eps; got {tolerance!r}")
