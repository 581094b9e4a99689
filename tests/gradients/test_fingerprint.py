"""Whether plain values changed: the same for a value as it was, another one after every change to it or inside it."""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparring.tracing import TooMuch, fingerprint


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Plain:
    def __init__(self) -> None:
        self.numbers, self.inner = [1, 2], SimpleNamespace(size=3)


class Slots:
    __slots__ = ("size",)


# What is held, and a change to it.
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a number": (lambda: 1, lambda h: setattr(h, "value", 2)),
    "its type": (lambda: 1, lambda h: setattr(h, "value", 1.0)),
    "true for one": (lambda: 1, lambda h: setattr(h, "value", True)),
    "the sign of zero": (lambda: 0.0, lambda h: setattr(h, "value", -0.0)),
    "a string": (lambda: "a", lambda h: setattr(h, "value", "b")),
    "none": (lambda: None, lambda h: setattr(h, "value", 0)),
    "a dtype": (lambda: torch.float32, lambda h: setattr(h, "value", torch.float64)),
    "a choice": (lambda: Color.RED, lambda h: setattr(h, "value", Color.BLUE)),
    "an entry of a list": (lambda: [1, 2], lambda h: h.value.__setitem__(0, 5)),
    "the length of a list": (lambda: [1, 2], lambda h: h.value.append(1)),
    "an equal list": (lambda: [1, 2], lambda h: setattr(h, "value", [1, 2])),
    "an entry of a tuple": (lambda: (1, 2), lambda h: setattr(h, "value", (1, 3))),
    "a list in a tuple": (lambda: (1, [2]), lambda h: h.value[1].append(3)),
    "a list for a tuple": (lambda: (1, 2), lambda h: setattr(h, "value", [1, 2])),
    "a deque": (lambda: deque([1]), lambda h: h.value.appendleft(2)),
    "a value of a dict": (lambda: {"a": 1}, lambda h: h.value.update(a=2)),
    "a key of a dict": (lambda: {"a": 1}, lambda h: (h.value.pop("a"), h.value.update(b=1))),
    "the order of a dict": (lambda: OrderedDict(a=1, b=2), lambda h: h.value.move_to_end("a")),
    "an equal dict": (lambda: {"a": 1}, lambda h: setattr(h, "value", {"a": 1})),
    "a set": (lambda: {1}, lambda h: h.value.add(2)),
    "another of as many": (lambda: {1, "a"}, lambda h: (h.value.discard(1), h.value.add("b"))),
    "an array": (lambda: np.zeros(3), lambda h: h.value.__setitem__(0, 1.0)),
    "a tensor": (lambda: torch.zeros(3), lambda h: h.value.add_(1)),
    "an equal tensor": (lambda: torch.zeros(3), lambda h: setattr(h, "value", torch.zeros(3))),
    "a module": (lambda: nn.Linear(1, 1), lambda h: setattr(h, "value", nn.Linear(1, 1))),
    "a function": (lambda: len, lambda h: setattr(h, "value", max)),
    "an attribute": (Plain, lambda h: h.value.numbers.append(3)),
    "an attribute of one": (Plain, lambda h: setattr(h.value.inner, "size", 4)),
    "an equal object": (Plain, lambda h: setattr(h, "value", Plain())),
    "an object without a dict": (Slots, lambda h: setattr(h, "value", Slots())),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows(name: str) -> None:
    make, change = CHANGES[name]
    holder = SimpleNamespace(value=make())
    kept = holder.value  # so that no other object takes its place in memory
    before = fingerprint(holder.value)
    assert fingerprint(holder.value) == before
    change(holder)
    assert fingerprint(holder.value) != before
    assert kept is not None or name == "none"


@pytest.mark.parametrize("make", [
    lambda: 1.5, lambda: "text", lambda: (1, "a", (2.0, None)), lambda: torch.Size([1]), lambda: slice(1),
    lambda: range(3), lambda: float("nan"), lambda: Color.RED, lambda: ...,
])  # fmt: skip
def test_equal_values_that_cannot_change_are_the_same(make: Callable[[], Any]) -> None:
    assert fingerprint(make()) == fingerprint(make())


def test_what_holds_itself_has_an_end() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    before = fingerprint(loop)
    assert fingerprint(loop) == before
    loop.append(2)
    assert fingerprint(loop) != before
    twice = [[1], [1]]
    one = [1]
    assert fingerprint((one, one)) != fingerprint((twice[0], twice[1]))


def test_what_has_no_end_is_too_much() -> None:
    assert fingerprint([[i] for i in range(1500)]) is not None
    with pytest.raises(TooMuch):
        fingerprint([[i] for i in range(2100)])


def test_generators_and_what_stands_for_itself_are_not_looked_into() -> None:
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(2, 2)
    before = [fingerprint(generator), fingerprint(module)]
    torch.rand(3, generator=generator)
    module.note = 3
    assert [fingerprint(generator), fingerprint(module)] == before
    with torch.inference_mode():
        made = torch.ones(2)
    assert fingerprint(made) == fingerprint(made)
