"""Signs that a model only looks robust: it hides its gradients, so that attacks that follow them get lost.

The signs are those of Athalye, Carlini & Wagner 2018 and Carlini et al. 2019. A difference between two attacks counts
only if it is larger than one percent of the examples and larger than chance would make it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from sparring._text import percent
from sparring.evaluation.result import AttackRow

BAD_GRADIENTS = 0.1  # of the examples that an attack did not fool
ROUNDING = 1e-3  # of the largest logit: two predictions may differ so much on processors that sum in any order
CONCLUSION = "gradients are likely masked, and the model less robust than it looks: "


def evidence(rows: Sequence[AttackRow], logits: Tensor, again: Tensor) -> list[str]:
    """What speaks against the figures; `logits` and `again` are two predictions of the same unchanged examples."""
    found = [*_of_outputs(logits, again)]
    signs = [*_bad_gradients(rows), *_weaker_than_simple(rows), *_larger_eps(rows)]
    if signs:
        found.append(CONCLUSION + "; ".join(signs))
    return found


def _of_outputs(logits: Tensor, again: Tensor) -> Iterator[str]:
    change = float((logits - again).abs().max())
    if not change <= ROUNDING * float(logits.abs().max()):
        yield (
            f"two predictions of the same images differ (logits by up to {change:.3g}): the model is random, and an "
            "attack on a random model needs the mean of many gradients; these figures overestimate its robustness"
        )
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        yield (
            "the model returns probabilities, not logits: losses on logits go flat where they saturate; take the "
            "softmax out of the model and try again"
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
            if same and numbers and large.eps > small.eps and _more(small, large):
                yield (
                    f"{small.name} with {large.threat} leaves {percent(large.accuracy)} standing, with the smaller "
                    f"eps {small.eps:g} only {percent(small.accuracy)}"
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
