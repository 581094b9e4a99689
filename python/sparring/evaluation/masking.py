"""Signs that a model only looks robust: it hides its gradients, so that attacks that follow them get lost.

The signs are those of Athalye, Carlini & Wagner 2018 and Carlini et al. 2019, and that attacks disagree. A difference
between two attacks counts only if it is larger than one percent of the examples (for attacks that disagree, ten) and
larger than chance would make it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparring._text import percent
from sparring.attacks._norms import NORMED
from sparring.evaluation.plan import Plan, added
from sparring.evaluation.result import AttackRow

BAD_GRADIENTS = 0.1  # of the examples that an attack did not fool
ROUNDING = 1e-3  # of the largest logit: two predictions may differ so much on processors that sum in any order
DISAGREEMENT = 0.1  # of all examples, that attacks fool together and the best of them alone does not
EOT = 10  # draws for each gradient of a random model
AGAIN = ("apgd-ce", "apgd-t")  # what runs with other gradients where those of the model look masked
AGAIN_RANDOM = ("apgd-ce", "apgd-margin")  # of so many draws each
CONCLUSION = "gradients are likely masked, and the model less robust than it looks: "


class Outputs(NamedTuple):
    """What the model says of some unchanged examples: logits and, asked `again`, logits; (B, K) each.

    `eot` draws are what attacks take a gradient's mean of. `hidden`, bool (B,), is where the model has no gradient of
    its own, if attacks follow another one.
    """

    logits: Tensor
    again: Tensor
    eot: int = 1
    hidden: Tensor | None = None

    @property
    def random(self) -> bool:
        """Whether the answers to the same question differ by more than rounding."""
        return not self.change <= ROUNDING * float(self.logits.abs().max())

    @property
    def change(self) -> float:
        return float((self.logits - self.again).abs().max())


def evidence(rows: Sequence[AttackRow], outputs: Outputs) -> list[str]:
    """What speaks against the figures."""
    found = [*_of_outputs(outputs)]
    signs = [
        *_own_gradients(outputs), *_bad_gradients(rows), *_weaker_than_simple(rows), *_larger_eps(rows),
        *_left_by_all_gradients(rows), *_disagreeing(rows),
    ]  # fmt: skip
    if signs:
        found.append(CONCLUSION + "; ".join(signs))
    return found


def last_resort(plan: Plan, outputs: Outputs, through: nn.Module | None) -> list[Plan]:
    """What else to run after the last `plan` of a threat model, where there are signs.

    APGD with the gradient of `through`, the model seen through, if there is one, and of a random model with the mean of
    several draws, if attacks took none; then `square` with all its queries.
    """
    if plan.norm not in NORMED:
        return []
    options: dict[str, Any] = {} if through is None else {"backward": through}
    names = AGAIN
    if outputs.random and outputs.eot == 1:
        options["eot"], names = EOT, AGAIN_RANDOM
    classes = outputs.logits.shape[1]
    found = [added(name, plan, options, classes) for name in names] if options else []
    return [*found, added("square", plan, {}, classes)]


def _of_outputs(outputs: Outputs) -> Iterator[str]:
    logits, eot = outputs.logits, outputs.eot
    if outputs.random:
        yield (
            f"two predictions of the same images differ (logits by up to {outputs.change:.3g}): the model is random, "
            "and an attack on a random model needs the mean of many gradients"
            + (f" (here {eot} draws: eot)" if eot > 1 else " (eot=)")
            + "; these figures overestimate its robustness"
        )
    sums = logits.sum(1)
    ones = bool(((sums - 1).abs() < 1e-4).all())
    # Of one row, or of rows that are all alike, the sum says nothing.
    alike = bool(((sums - sums[0]).abs() < 1e-5 * sums[0]).all()) and bool((logits != logits[0]).any())
    if bool((logits >= 0).all()) and (ones or alike):
        scaled = "" if ones else f" times {float(sums[0]):.4g}"
        yield (
            f"the model returns probabilities{scaled}, not logits: losses on logits go flat where they saturate; take "
            "the softmax out of the model and try again"
        )


def _own_gradients(outputs: Outputs) -> Iterator[str]:
    hidden = outputs.hidden
    if hidden is not None and int(hidden.sum()) > BAD_GRADIENTS * len(hidden):
        yield (
            f"the model's own gradient is zero, NaN or infinite on {int(hidden.sum())} of {len(hidden)} unchanged "
            "examples (attacks followed that of backward)"
        )


def _bad_gradients(rows: Sequence[AttackRow]) -> Iterator[str]:
    for row in rows:
        if row.bad_grad is not None:
            standing = row.attacked & ~row.fooled
            bad = int((row.bad_grad & standing).sum())
            if bad > BAD_GRADIENTS * max(1, int(row.attacked.sum())):
                yield (
                    f"{row.name} ({row.threat}) met a zero, NaN or infinite gradient on {bad} of the "
                    f"{int(standing.sum())} examples that it did not fool"
                )


def _weaker_than_simple(rows: Sequence[AttackRow]) -> Iterator[str]:
    """Random noise as strong as an attack along gradients, or one step stronger than many."""
    for simple in rows:
        for strong in rows:
            if simple.key != strong.key or strong.kind not in ("one-step", "iterative"):
                continue
            by_simple, by_strong = _on_same(simple, strong)
            some = by_simple > 0.01 * len(simple.robust)
            if simple.kind == "noise" and some and by_simple >= by_strong:
                yield (
                    f"random noise ({simple.name}, {simple.threat}) fooled {by_simple} examples, {strong.name} "
                    f"no more: {by_strong}"
                )
            elif simple.kind == "one-step" and strong.kind == "iterative" and _more(simple, strong):
                yield (
                    f"the single step of {simple.name} ({simple.threat}) fooled {by_simple} examples, {strong.name} "
                    f"with its many steps {by_strong}"
                )


def _larger_eps(rows: Sequence[AttackRow]) -> Iterator[str]:
    for small in rows:
        for large in rows:
            same = small.name.split(" (")[0] == large.name.split(" (")[0] and small.norm == large.norm
            numbers = isinstance(small.eps, float) and isinstance(large.eps, float)
            numbers &= (
                small.kind != "black-box"
            )  # which makes steps of the size of eps, and may find less with a larger
            if same and numbers and large.eps > small.eps and _more(small, large):
                yield (
                    f"{small.name} with {large.threat} leaves {percent(large.accuracy)} standing, with the smaller "
                    f"eps {small.eps:g} only {percent(small.accuracy)}"
                )


def _left_by_all_gradients(rows: Sequence[AttackRow]) -> Iterator[str]:
    """A black-box attack that fools what every attack along gradients leaves."""
    for blind in rows:
        guided = [row for row in rows if row.kind == "iterative" and row.key == blind.key]
        if blind.kind == "black-box" and guided:
            attacked = torch.stack([row.attacked for row in guided]).any(0) & blind.attacked
            left = attacked & ~torch.stack([row.fooled for row in guided]).any(0)
            found = int((blind.fooled & left).sum())
            if found > max(0.01 * len(left), 2 * math.sqrt(found)):
                yield (
                    f"{blind.name} ({blind.threat}), which needs no gradient, fooled {found} of the "
                    f"{int(left.sum())} examples that all attacks along gradients had left"
                )


def _disagreeing(rows: Sequence[AttackRow]) -> Iterator[str]:
    """Attacks of many steps that each fool other examples, so that the best of them is far from all together."""
    for key in dict.fromkeys(row.key for row in rows):
        strong = [row for row in rows if row.key == key and row.kind in ("iterative", "black-box")]
        if len(strong) > 1:
            on = torch.stack([row.attacked for row in strong]).all(0)
            fooled = torch.stack([row.fooled for row in strong]) & on
            best, together = int(fooled.sum(1).max()), int(fooled.any(0).sum())
            more, left = together - best, int(on.sum()) - together
            if more > max(DISAGREEMENT * len(on), 2 * math.sqrt(more)):
                yield (
                    f"the attacks disagree ({strong[0].threat}): of {int(on.sum())} examples they leave {left} "
                    f"together, the best of them alone {left + more}"
                )


def _on_same(one: AttackRow, other: AttackRow) -> tuple[int, int]:
    """How many each fooled of the examples that both were run on."""
    both = one.attacked & other.attacked
    return int((one.fooled & both).sum()), int((other.fooled & both).sum())


def _more(one: AttackRow, other: AttackRow) -> bool:
    """Whether the first fooled more than the second: by one percent, and two standard deviations of the difference."""
    both = one.attacked & other.attacked
    only_one = int((one.fooled & ~other.fooled & both).sum())
    only_other = int((other.fooled & ~one.fooled & both).sum())
    return only_one - only_other > max(0.01 * len(one.attacked), 2 * math.sqrt(only_one + only_other))
