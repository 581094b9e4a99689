"""What every attack is asked, and what it asks: options and their checks, and the model at a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparring import losses
from sparring.attacks._model import answered
from sparring.attacks._norms import NORMED, Ball, Bounds, Norm, check_works, norm_name, slack
from sparring.gradients import InputGrad, Lowered
from sparring.gradients.batched import Spans, asked
from sparring.gradients.home import explained, home_of
from sparring.losses import Loss

Preprocessing = dict[str, object] | nn.Module
Backward = nn.Module | Lowered | Callable[[Tensor], Tensor]


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
    eot: int = 1
    backward: Backward | None = None
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

    `spans` are those of all labels and targets of the call, read once. What `ask` says of a point is the mean of `eot`
    draws of the model, and the gradient that of `backward`, if there is one.
    """

    model: Lowered
    ball: Ball
    labels: Tensor
    targets: Tensor | None
    loss: Loss
    aims: Tensor | None
    spans: Spans
    eot: int = 1
    backward: Lowered | None = None

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
        """Gradient, loss and logits at any points (B, ...).

        Of several draws the means, of the logits that which has the mean of the probabilities.
        """
        found = self._draw(points, loss)
        if self.eot == 1:
            return found
        mean = _Mean(found)
        for _ in range(1, self.eot):
            mean.add(self._draw(points, loss))
        return mean.found()

    def _draw(self, points: Tensor, loss: Loss) -> InputGrad:
        """One answer of the model, with its gradient or that of `backward`."""
        if self.backward is None:
            found = asked(self.model, points, self.labels, loss, self.aims, self.spans)
            losses.check_two_classes(found.logits)
            return found
        logits = answered(self.model, points)
        losses.check(loss, logits, self.labels, self.aims, self.spans)
        losses.check_two_classes(logits)
        with torch.no_grad():
            value = losses.value(loss, logits, self.labels, self.aims)
        return InputGrad(self._stand_in(points, loss, logits.shape), value, logits)

    def _stand_in(self, points: Tensor, loss: Loss, shape: torch.Size) -> Tensor:
        """The gradient of `backward`, whose logits have to be of this shape."""
        assert self.backward is not None
        try:
            with explained(self.backward, points, "inputs", "backward"):
                found = asked(self.backward, points, self.labels, loss, self.aims, self.spans)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = next(kind for kind in (TypeError, ValueError, RuntimeError) if isinstance(error, kind))
            raise kind(f"backward cannot stand in for the model: {error}") from error
        if found.logits.shape != shape:
            raise ValueError(
                f"backward must return logits like the model's, {tuple(shape)}, but gave {tuple(found.logits.shape)}"
            )
        return found.grad

    def expected_logits(self, points: Tensor) -> Tensor:
        """Of `eot` answers to the points, the logits that have the mean of the probabilities, (B, K)."""
        logits = self.logits(points)
        if self.eot == 1:
            return logits
        return _pooled([logits, *(self.logits(points) for _ in range(1, self.eot))])

    def logits(self, points: Tensor) -> Tensor:
        """One answer of the model to any points (B, ...), (B, K)."""
        logits = answered(self.model, points)
        losses.check(self.loss, logits, self.labels, self.targets, self.spans)
        losses.check_two_classes(logits)
        return logits

    def fooled(self, logits: Tensor) -> Tensor:
        return fooled(logits, self.labels, self.targets)


class _Mean:
    """Means over the draws of a model."""

    def __init__(self, first: InputGrad) -> None:
        self.grad, self.loss, self.logits = first.grad.clone(), first.loss.clone(), [first.logits]

    def add(self, found: InputGrad) -> None:
        self.grad += found.grad
        self.loss += found.loss
        self.logits.append(found.logits)

    def found(self) -> InputGrad:
        draws = len(self.logits)
        return InputGrad(self.grad / draws, self.loss / draws, _pooled(self.logits))


def _pooled(logits: list[Tensor]) -> Tensor:
    """Logits that have the mean of the probabilities of several."""
    pooled: Tensor = torch.stack([some.log_softmax(1) for some in logits]).logsumexp(0) - math.log(len(logits))
    return pooled


def fooled(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Whether the likeliest class is the target, or, without targets, not the label; never for NaN logits."""
    top = logits.argmax(1)
    reached = top != labels if targets is None else top == targets
    return reached & ~logits.isnan().any(1)


def check(inputs: Tensor, options: Options) -> None:
    """Errors for what can be said without the model."""
    check_works(norm_name(options.norm), options.norms)
    for name in ("restarts", "batch_size"):
        value = getattr(options, name)
        if (value is not None or name == "restarts") and (type(value) is not int or value < 1):
            raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
    check_hooks(options.eot, options.backward)
    if options.generator is not None and not isinstance(options.generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, not {type(options.generator).__name__}")
    check_inputs(inputs)
    bounds_of(options.bounds)


def check_hooks(eot: int, backward: Backward | None) -> None:
    """Errors for what stands in for the model's gradient, as far as they can be known without asking."""
    if type(eot) is not int or eot < 1:
        raise ValueError(f"eot must be an integer of at least 1; got {eot!r}")
    if backward is not None and not callable(backward):
        raise TypeError(f"backward must be a module or a function from inputs to logits, not {type(backward).__name__}")


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


def module_of(model: nn.Module | Lowered) -> nn.Module:
    module = model.model if isinstance(model, Lowered) else model
    if not isinstance(module, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, or one that was lowered, not {type(module).__name__}")
    return module


def examples(
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
        return (
            inputs.detach().clone(memory_format=torch.contiguous_format),
            labels,
            targets,
            eps_of(options.eps, inputs),
        )


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


def eps_of(eps: float | Tensor, inputs: Tensor) -> Tensor:
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
