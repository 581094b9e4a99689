"""How far each example can be moved before the answer changes, from both sides: what is proven, and what was found."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparring._progress import Progress
from sparring._text import aligned, number, percent, plural
from sparring.attacks._model import answered, held_still, preprocessed
from sparring.attacks._norms import Norm, norm_name
from sparring.attacks._problem import module_of
from sparring.attacks._result import AttackResult
from sparring.attacks.minimum_norm import minimal
from sparring.attacks.minimum_norm.hunt import counted
from sparring.evaluation.evaluate import check_examples, clean_logits
from sparring.gradients import Lowered, lower
from sparring.lipschitz import LipschitzReport, certified_radius, layer_bounds, rounding
from sparring.lipschitz.gains.gain import root
from sparring.lipschitz.radius import check_report

ORDERS = {"L2": 2.0, "L1": 1.0, "Linf": math.inf}
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the examples that are classified correctly: the quantiles in a table."""
HEADS = tuple("median" if share == 0.5 else f"{100 * share:.0f} %" for share in SHARES)
POINTS = 101  # of a curve


class BracketWarning(RuntimeWarning):
    """A perturbation was found where a proof says that there is none: one of the two is wrong, which is a bug."""


class Curve(NamedTuple):
    """Shares of all examples, float64 of the shape of `eps`: those that certainly, and those that maybe withstand it.

    The true robust accuracy at each eps lies between `certified` and `robust`.
    """

    eps: Tensor
    certified: Tensor
    robust: Tensor


@dataclass(frozen=True)
class Bracket:
    """The result of :func:`bracket` on N examples; tensors are on the CPU.

    Attributes
    ----------
    norm
        "L2", "L1" or "Linf".
    lower
        float64 (N,): the certified radius. No change smaller than that alters the answer, in the bounds or beyond. 0
        where the model errs, where it has no margin, and everywhere if there is no bound.
    upper
        float64 (N,): distance, measured in float64, of the nearest point found that has another class. 0 where the
        model errs, inf where none was found.
    correct
        bool (N,): classified correctly as they are.
    adv
        (N, ...) like the inputs: these points; the input itself where the model errs or none was found.
    method
        How the lower side was found.
    reason
        Why there is no lower side; "" where there is.
    """

    norm: str
    lower: Tensor
    upper: Tensor
    correct: Tensor
    adv: Tensor = field(repr=False)
    method: str
    reason: str = ""

    def __len__(self) -> int:
        return len(self.lower)

    @property
    def success(self) -> Tensor:
        """bool (N,): a point of another class is known, be it the input."""
        return self.upper.isfinite()

    @property
    def gap(self) -> Tensor:
        """float64 (N,): how much is left open, `upper` less `lower`; 0 where nothing can change the answer."""
        return torch.where(self.lower == self.upper, 0.0, self.upper - self.lower)

    @property
    def contradicted(self) -> Tensor:
        """bool (N,): something was found within the certified radius, which cannot be."""
        return (self.lower > 0) & self.success & (self.upper <= self.lower)

    def nearer(self, distance: Tensor) -> Bracket:
        """With what was found in another way: distances (N,) in the same norm, inf or NaN where nothing was.

        `adv` stays as it is.
        """
        found = torch.where(self.correct & (distance < self.upper), distance, self.upper)
        result = replace(self, upper=found)
        result.warn_of_contradictions()
        return result

    def warn_of_contradictions(self) -> None:
        """A `BracketWarning` if there are any."""
        wrong = self.contradicted.nonzero()[:, 0].tolist()
        if wrong:
            ends = f"certified {float(self.lower[wrong[0]]):.9g}, found {float(self.upper[wrong[0]]):.9g}"
            warnings.warn(
                f"a perturbation was found within the certified radius of {len(wrong)} "
                f"{plural('example', len(wrong))} (example {wrong[0]}: {ends}, in {self.norm}): one of the two is "
                "wrong, which is a bug; please report it",
                BracketWarning,
                stacklevel=3,
            )

    def curve(self, eps: float | Sequence[float] | Tensor | None = None) -> Curve:
        """Certified and robust accuracy at each eps; None: 101 of them, from 0 to the largest perturbation found.

        An example is certified at eps if its radius is larger, as all changes of at most eps are then smaller than it;
        it counts as robust if no point within eps was found.
        """
        if eps is None:
            known = torch.cat([self.upper[self.success], self.lower[self.lower.isfinite()], self.lower.new_zeros(1)])
            eps = torch.linspace(0, 1.02 * float(known.max()) or 1.0, POINTS, dtype=torch.float64)
        sizes = torch.as_tensor(eps, dtype=torch.float64, device="cpu")
        if not bool((sizes >= 0).all()):
            raise ValueError(f"eps must be numbers of at least 0; got {eps!r}")
        shares = [(side > sizes[..., None]).double().mean(-1) for side in (self.lower, self.upper)]
        return Curve(sizes, *shares)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table's head and its lines, as text."""
        head = [self.norm, *HEADS]
        sides = {"certified radius": self.lower, "smallest perturbation found": self.upper, "gap": self.gap}
        return head, [[name, *map(_length, self._quantiles(side))] for name, side in sides.items()]

    def table(self) -> str:
        """Both sides and their gap, as quantiles over the examples that are classified correctly."""
        return aligned(*self.cells(), left=1)

    @property
    def verdict(self) -> str:
        """In one or two lines: the medians, what was not found, and why there is no lower side if so."""
        count = int(self.correct.sum())
        size = f"{len(self)} {plural('image', len(self))}, {percent(count / len(self))} classified correctly"
        if not count:
            return f"{self.norm}: {size}"
        low, high = (_length(self._quantiles(side)[2]) for side in (self.lower, self.upper))
        between = f"at most {high} (found)" if self.reason else f"between {low} (proven) and {high} (found)"
        lines = [f"{self.norm}: median {between}; {size}"]
        if missed := int((self.correct & ~self.success).sum()):
            lines.append(f"for {missed} of these no perturbation was found")
        if self.reason:
            lines.append(f"no lower side: {self.reason}")
        if wrong := int(self.contradicted.sum()):
            lines.append(f"for {wrong} the sides contradict each other, which is a bug: do not trust the lower one")
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join([self.table(), "", self.verdict])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as values that JSON has; None stands for inf and for the median of nothing."""
        curve = self.curve()
        return {
            "norm": self.norm, "images": len(self), "correct": int(self.correct.sum()),
            "not_found": int((self.correct & ~self.success).sum()), "contradicted": int(self.contradicted.sum()),
            "method": self.method, "reason": self.reason,
            "quantiles": {
                "shares": [*SHARES],
                **{
                    name: [value if math.isfinite(value) else None for value in self._quantiles(side)]
                    for name, side in (("lower", self.lower), ("upper", self.upper), ("gap", self.gap))
                },
            },
            "curve": {name: values.tolist() for name, values in curve._asdict().items()},
        }  # fmt: skip

    def to_csv(self, path: str | Path) -> Path:
        """Write both sides, a line an example, to a file that does not exist yet."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["example", "correct", "lower", "upper"])
        for i, sides in enumerate(zip(self.correct.tolist(), self.lower.tolist(), self.upper.tolist(), strict=True)):
            writer.writerow([i, *sides])
        path = Path(path)
        with path.open("x", encoding="ascii") as file:
            file.write(lines.getvalue())
        return path

    def _quantiles(self, side: Tensor) -> list[float]:
        """Of the examples that are classified correctly; of each the value below, as there may be inf; NaN of none."""
        found = side[self.correct].sort().values
        return [float(found[int(share * (len(found) - 1))]) if len(found) else math.nan for share in SHARES]


def bracket(
    model: nn.Module | Lowered,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = 2,
    steps: int | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    preprocessing: Mapping[str, Any] | nn.Module | None = None,
    report: LipschitzReport | None = None,
    local: bool = False,
    batch_size: int = 250,
    on_progress: Callable[[Progress], None] | None = None,
) -> Bracket:
    """Enclose, example by example, the size of the smallest change that alters the answer.

    From below :func:`sparring.lipschitz.certified_radius`, which is proven; from above
    :func:`sparring.attacks.minimal`, which was found. The truth lies between them.

    Parameters
    ----------
    model
        Maps (B, ...) to logits (B, K). In eval mode meanwhile, and left exactly as it was.
    x, y
        (N, ...), float32 or float64, in `bounds`, on the model's device; the true classes, integers (N,).
    norm
        2, 1 or inf, or "L2", "L1", "Linf": of changes, in the units of `x`.
    steps
        Gradients for each example; None: what `minimal` takes by default.
    bounds, preprocessing
        The range of `x`, which what is found from above stays in, and what stands between it and the model.
    report
        From ``layer_bounds`` of the model behind its preprocessing, if it is at hand, so that it need not be made
        again.
    local
        For dense ReLU networks: also the larger radius from bounds in a ball around each example, a tenth of a second
        each. Another network has no such bounds and goes without.
    batch_size
        Examples attacked at a time. It changes nothing else.

    Returns
    -------
    Bracket
        A network that cannot be bounded has an upper side all the same: `lower` is 0, and `Bracket.reason` says why.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    Warns
    -----
    BracketWarning
        If a perturbation was found within a certified radius. That is a bug in one of the two.
    """
    name = _name(norm)
    if steps is not None:
        counted(steps)
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1; got {batch_size!r}")
    module = module_of(model)
    check_examples(module, x, y, bounds)
    x, y = x.detach().clamp(*bounds), y.long()
    judge = preprocessed(module, preprocessing, x)
    if report is not None:
        check_report(report, x.shape[1:])
    with held_still(judge):
        correct = clean_logits(judge, x, y, batch_size).argmax(1) == y
        adv, upper = x.clone(), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        lowered, at = lower(judge), correct.nonzero()[:, 0]
        for rows in torch.split(at, batch_size) if len(at) else ():
            if on_progress is not None:
                on_progress(Progress(int(rows[0]) / len(x), 1, f"bracket, {name}"))
            found = minimal(lowered, x[rows], y[rows], norm=norm, steps=steps, bounds=bounds, return_result=True)
            assert isinstance(found, AttackResult)
            fooled = found.success & (answered(judge, found.adv).argmax(1) != y[rows])
            moved = (found.adv.double() - x[rows].double()).flatten(1)
            distance = torch.linalg.vector_norm(moved, ORDERS[name], dim=1)
            adv[rows[fooled]] = found.adv[fooled]
            upper[rows] = torch.where(fooled, distance, math.inf)
        radius, method, reason = _certified(judge, x, y, name, report, local)
    radius = torch.where(correct, radius, 0.0)
    result = Bracket(name, radius.cpu(), upper.cpu(), correct.cpu(), adv.cpu(), method, reason)
    result.warn_of_contradictions()
    return result


def brackets(
    model: nn.Module | Lowered,
    x: Tensor,
    y: Tensor,
    norms: Sequence[Norm] = (math.inf, 2, 1),
    *,
    preprocessing: Mapping[str, Any] | nn.Module | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> dict[str, Bracket]:
    """:func:`bracket` in several norms, by their names; the network's bounds are made once."""
    names = [*dict.fromkeys(map(_name, norms))]
    module = module_of(model)
    report = options.pop("report", None)
    if report is None and isinstance(x, Tensor):
        with contextlib.suppress(TypeError, ValueError, RuntimeError), held_still(module):  # `bracket` says why
            report = layer_bounds(preprocessed(module, preprocessing, x).eval(), x.shape[1:])
    found = {}
    for i, name in enumerate(names):

        def on_part(now: Progress, i: int = i) -> None:
            if on_progress is not None:
                on_progress(Progress(i + now.done, len(names), now.doing))

        found[name] = bracket(
            model, x, y, norm=name, preprocessing=preprocessing, report=report, on_progress=on_part, **options
        )
    return found


def _certified(
    judge: nn.Module, x: Tensor, y: Tensor, norm: str, report: LipschitzReport | None, local: bool
) -> tuple[Tensor, str, str]:
    """The certified radii, how they were found, and why there are none, if so."""
    try:
        report = layer_bounds(judge, x.shape[1:]) if report is None else report
        radius = certified_radius(judge, x, y, norm=norm, report=report)
    except (TypeError, ValueError, RuntimeError) as why:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device), "", str(why)
    if not local:
        return radius, report.method, ""
    try:
        nearby = certified_radius(judge, x, y, report=report, local=True)
    except (TypeError, ValueError, RuntimeError):
        return radius, report.method, ""
    if norm == "Linf":
        nearby = rounding.below(nearby / root(x[0].numel())).clamp(min=0)
    return torch.maximum(radius, nearby), f"{report.method}, also in balls around each example", ""


def _name(norm: Norm) -> str:
    name = norm_name(norm)
    if name not in ORDERS:
        raise ValueError(f"norm is {norm!r}; a bracket is of L2, L1 or Linf")
    return name


def _length(value: float) -> str:
    return "none" if math.isinf(value) else number(value)
