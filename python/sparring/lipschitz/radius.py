"""How far each example can be moved, in L2, L1 or Linf, without another class: proven by Lipschitz bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparring.attacks._model import device_and_dtype
from sparring.attacks._norms import Norm, norm_name
from sparring.lipschitz import given, rounding
from sparring.lipschitz.ambient import callers_device, generators_kept, plain_arithmetic, states
from sparring.lipschitz.local import DenseRelu, check_examples
from sparring.lipschitz.network import layer_bounds
from sparring.lipschitz.report import WEIGHTS_ALONE, LipschitzReport
from sparring.lipschitz.wide import copied, identical, in_float64
from sparring.losses import INTEGERS

_CHORDS, _LESS = 3, 0.02
_BATCH = 256
_ALONE = 1e-9  # of the largest logit: what float64 may round otherwise in a batch


@plain_arithmetic()
def certified_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Norm = 2,
    report: LipschitzReport | None = None,
    local: bool = False,
) -> Tensor:
    """Radii of balls around the examples in which the network's class does not change.

    Two logits differ by a function with the constant sqrt(2) L, so a margin m between the class and the others holds
    up to m / (sqrt(2) L) (Tsuzuku, Sato & Sugiyama 2018, "Lipschitz-margin training"). Where the last layer is dense,
    with rows w_j, the difference of logits y and j has the constant |w_y - w_j| L', with L' the bound of what that
    layer is given. The larger of the two radii is returned.

    L and L' are for distances of the input in `norm`. From those in L2 follow others, as a ball of L1 radius r lies in
    the L2 ball of radius r, and one of Linf radius r in that of radius sqrt(D) r, for D entries. In L1 the first layers
    count by their longest column instead of their norm, where that gives less, and of a linear network the rows do by
    the dual norm, so that the radius is exact but for rounding.

    Parameters
    ----------
    model : nn.Module
        From (B, ...) to logits (B, K), K >= 2; in eval mode.
    x : Tensor
        (B, ...), of the dtype of the model's parameters.
    y : Tensor, optional
        Classes, integers (B,). None: those that the network gives.
    norm : 2, 1, inf, "L2", "L1" or "Linf"
        In which the radius is measured.
    report : LipschitzReport, optional
        From `layer_bounds` of this model with its present weights, so that it need not be made again; certified.
    local : bool
        For dense ReLU networks: bounds in balls of the radius in question (`local_bound`), which are smaller. In L2
        alone.

    Returns
    -------
    Tensor
        float64 (B,); 0 where the class is not y.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, the network has no bound, or a copy of it in float64 is another function.

    Notes
    -----
    Logits are those of a copy of the model in float64, and bounds are proven for exact arithmetic. The model is taken
    as it is by itself, without an autocast around the call. A network in float32
    computes something slightly different. So from each margin is taken 16 times the largest difference between the
    example's logits as the model computes them and in float64, and 16 units in the last place of its largest logit.
    That is an allowance from what was seen at the example, not a proof for the whole ball. Also taken off is what
    torch's softplus, which jumps at its threshold, may change: a difference of two logits by ``sqrt(2) report.jumps``
    at the example, and by as much within the ball.
    """
    given.network(model)
    check_examples(x)
    name = norm_name(norm)
    if local and name != "L2":
        raise ValueError(f"local bounds are of balls in L2; got norm {norm!r}")
    if any(module.training for module in model.modules()):
        raise ValueError("model must be in eval mode")
    _, dtype = device_and_dtype(model)
    if x.dtype is not dtype:
        raise ValueError(f"x must have the dtype of the model's parameters, {dtype}; got {x.dtype}")
    report = layer_bounds(model, x.shape[1:]) if report is None else report
    check_report(report, x.shape[1:])
    if not math.isfinite(report.upper):
        refused = "; ".join(f"{name}: {reason}" for name, reason in report.refused)
        raise ValueError(f"the network has no Lipschitz bound: {refused or 'it is beyond the numbers of float64'}")
    logits, allowance = _logits(model, x)
    if report.head is not None and len(report.head) != logits.shape[1]:
        raise ValueError(f"report is of a model with {len(report.head)} logits, but this one has {logits.shape[1]}")
    classes = logits.argmax(1) if y is None else _checked(y, x, logits.shape[1])
    margins = logits.gather(1, classes[:, None]) - logits - (allowance + 4 * report.jumps)[:, None]
    margins.scatter_(1, classes[:, None], math.inf)
    bounds = report.entrance(name)
    apart = _apart(report.head, classes, bounds.rows) if report.head is not None else None
    radius = _radius(margins, apart, bounds.features, bounds.upper)
    return _local(model, x, margins, apart, radius) if local else radius


def check_report(report: LipschitzReport, shape: torch.Size) -> None:
    """TypeError or ValueError unless a report proves something of networks with inputs of this shape."""
    if not isinstance(report, LipschitzReport):
        raise TypeError(f"report must be what layer_bounds returns, not {type(report).__name__}")
    if not report.certified:
        raise ValueError("report holds estimates, which prove nothing: make it with layer_bounds(..., certified=True)")
    if report.note == WEIGHTS_ALONE:
        raise ValueError("report is of weights alone, not of a network: give layer_bounds the model")
    if report.input_shape != shape:
        raise ValueError(f"report is for inputs of shape {report.input_shape}, but those of x have {tuple(shape)}")


def _radius(margins: Tensor, apart: Tensor | None, features: float | Tensor | None, whole: float | Tensor) -> Tensor:
    """Of both forms the larger radius, rounded down."""
    root_2 = margins.new_tensor(rounding.up(math.sqrt(2)))
    found = _quotient(margins.amin(1), root_2, torch.as_tensor(whole, dtype=margins.dtype, device=margins.device))
    if apart is not None and features is not None:
        above = torch.as_tensor(features, dtype=margins.dtype, device=margins.device)[..., None]
        found = torch.maximum(found, _quotient(margins, apart, above).amin(1))
    return found


def _quotient(margins: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``margins / (one * other)`` rounded down: 0 without a margin, inf where no input changes anything.

    The product and the quotient may leave the range of normal numbers, so each is moved to the next number.
    """
    still = (one == 0) | (other == 0)
    slopes = rounding.above(one * other)
    found = rounding.below(margins * (1 - 2.0**-48) / slopes)
    found = torch.where(still | margins.isposinf(), math.inf, found)
    return torch.where(margins > 0, found.nan_to_num(nan=0.0, posinf=math.inf), 0.0).clamp(min=0)


def _apart(head: Tensor, classes: Tensor, order: float) -> Tensor:
    """|w_y - w_j| in the norm of this order, rounded up, (B, K)."""
    return torch.stack([_lengths(head - row, order) for row in head])[classes]


def _lengths(rows: Tensor, order: float) -> Tensor:
    """Upper bounds of the lengths of rows that were rounded once, at any scale."""
    largest = rows.abs().amax(1)
    shares = torch.linalg.vector_norm(rows / largest.clamp(min=math.ulp(0.0))[:, None], order, dim=1)
    found = rounding.above(largest * shares * (1 + rounding.gamma(rows.shape[1] + 16)))
    return torch.where(largest == 0, 0.0, found.nan_to_num(nan=math.inf, posinf=math.inf))


def _local(model: nn.Module, x: Tensor, margins: Tensor, apart: Tensor | None, radius: Tensor) -> Tensor:
    """Larger radii, for which the bounds in that ball give at least as much."""
    network = DenseRelu(model, x.shape[1:])

    def found_in(radii: Tensor) -> Tensor:
        features, whole = network.bounds(x, radii)
        return _radius(margins, apart, features, whole)

    # What is given falls as the ball grows. Where it meets the radius is found by chords, each time a little less.
    low, given_low = radius, torch.maximum(found_in(radius), radius)
    high, given_high = given_low, found_in(given_low)
    for _ in range(_CHORDS):
        above, below = given_low - low, high - given_high
        share = (above / (above + below)).nan_to_num(nan=0.0).clamp(0, 1)
        tried = low + (high - low) * share * (1 - _LESS)
        found = found_in(tried)
        held = found >= tried
        low, given_low = torch.where(held, tried, low), torch.where(held, found, given_low)
        high, given_high = torch.where(held, high, tried), torch.where(held, given_high, found)
    return low


def _logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, and what is to be taken from margins for rounding."""
    wide, own = in_float64(model, x.shape[1:], "certified_radius"), copied(model)
    with torch.no_grad(), generators_kept(), callers_device():
        parts, before = torch.split(x.detach(), _BATCH), states()
        exact = torch.cat([_called(wide, some.to(torch.float64, copy=True)) for some in parts])
        seen = torch.cat([_called(own, some.clone()) for some in parts])
        again = _called(wide, parts[0].to(torch.float64, copy=True))
        first = exact[: len(again)]
        same = identical(again, first) or (  # devices may sum in another order each time
            x.device.type != "cpu" and torch.allclose(again, first, _ALONE, _ALONE * float(first.abs().max()), True)
        )
        if states() != before or not same:
            raise ValueError("model's forward draws random numbers, or changes from call to call: its class is not one")
        rows = sorted({0, len(again) // 2, len(again) - 1}) if len(again) else []
        alone = [_called(wide, x.detach()[row : row + 1].to(torch.float64, copy=True)) for row in rows]
    kind = torch.finfo(seen.dtype)
    units = kind.eps * exact.abs().amax(1) + kind.tiny
    allowance = 16 * ((seen.double() - exact).abs().amax(1) + units)
    for row, by_itself in zip(rows, alone, strict=True):
        if float((by_itself[0] - exact[row]).abs().max()) > _ALONE * float(exact[row].abs().max()) + allowance[row]:
            raise ValueError(f"model gives an example another result in a batch of {len(again)} than by itself")
    return exact, allowance


def _called(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x)
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return logits (B, K), a tensor; got {type(logits).__name__}")
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(
            f"model must return logits (B, K) of at least two classes, but gave {tuple(logits.shape)} for {len(x)} rows"
        )
    return logits


def _checked(y: Tensor, x: Tensor, classes: int) -> Tensor:
    if not isinstance(y, Tensor) or y.dtype not in INTEGERS:
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y must be a tensor of integers (B,), of at most 63 bits; got {got}")
    given.readable(y, "y")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), one class for each example; got {tuple(y.shape)}")
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise ValueError(f"y must lie in 0 ... {classes - 1}")
    return y.to(x.device, torch.int64)
