"""What the forward of a user's module reads beside itself: what is watched for changes, and what is refused."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparring.tracing import Reads, reads

# What the forwards below read.
FACTOR = 2.0
PAIR = (1.0, 2.0)
LIST = [1.0]
GIVEN: dict[str, float] = {"a": 1.0}
TENSOR = torch.ones(3)
GENERATOR = torch.Generator()
MODULE = nn.Linear(2, 2)
ARRAY = np.ones(3)
OWN = ModuleType("own")
OWN.factor = 3.0  # type: ignore[attr-defined]
OWN.helper = lambda x: 2 * x  # type: ignore[attr-defined]
DRAW = random.random


def helper(x: Tensor) -> Tensor:
    return x * FACTOR


def with_a_default(x: Tensor, factor: float = 2.0) -> Tensor:
    return x * factor


def with_a_list(x: Tensor, factors: list[float] = [2.0]) -> Tensor:  # noqa: B006
    return x * factors[0]


def with_a_keyword(x: Tensor, *, factors: dict[str, float] = {}) -> Tensor:  # noqa: B006
    return x * len(factors)


class Settings:
    factor = 2.0

    @staticmethod
    def scaled(x: Tensor) -> Tensor:
        return x * 2


class Callable_:
    def __call__(self, x: Tensor) -> Tensor:
        return x


OBJECT = Callable_()


class Descriptor:
    def __get__(self, owner: Any, kind: type | None = None) -> float:
        return 2.0


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x


def of(forward: Callable[..., Any], **members: Any) -> nn.Module:
    """A module of a class of its own with this forward and these members of the class."""
    kind = type("Made", (nn.Module,), {"forward": forward, "__module__": __name__, **members})
    made: nn.Module = kind()
    return made


class Base(nn.Module):
    shift = 0.5

    def scaled(self, x: Tensor) -> Tensor:
        return x * 2

    @property
    def twice(self) -> float:
        return 2 * FACTOR

    doubled = functools.partialmethod(helper)

    @staticmethod
    def halved(x: Tensor) -> Tensor:
        return x / 2

    @classmethod
    def named(cls, x: Tensor) -> Tensor:
        return x


class Derived(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.named(self.halved(self.scaled(x))) + self.shift + self.twice


def closed(factor: Any) -> tuple[nn.Module, Callable[[Any], None]]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x * factor

    def change(new: Any) -> None:
        nonlocal factor
        factor = new

    return of(forward), change


def swapped(place: Any, name: str, new: Any) -> Callable[[], Callable[[], None]]:
    """A change of one name, which returns the way back."""

    def change() -> Callable[[], None]:
        old = vars(place)[name]
        setattr(place, name, new)
        return lambda: setattr(place, name, old)

    return change


THIS = __import__("sys").modules[__name__]


def of_globals(name: str, new: Any) -> Callable[[], Callable[[], None]]:
    def change() -> Callable[[], None]:
        old = helper.__globals__[name]
        helper.__globals__[name] = new
        return lambda: helper.__globals__.__setitem__(name, old)

    return change


def gone(name: str) -> Callable[[], Callable[[], None]]:
    def change() -> Callable[[], None]:
        old = helper.__globals__.pop(name)
        return lambda: helper.__globals__.__setitem__(name, old)

    return change


def other(x: Tensor) -> Tensor:
    return x


WATCHED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Callable[[], None]]]] = {
    "a number": (lambda: of(lambda self, x: x * FACTOR), of_globals("FACTOR", 3.0)),
    "its type": (lambda: of(lambda self, x: x * FACTOR), of_globals("FACTOR", 2)),
    "a number that goes": (lambda: of(lambda self, x: x * FACTOR), gone("FACTOR")),
    "a tuple": (lambda: of(lambda self, x: x * PAIR[0]), of_globals("PAIR", (1.0, 3.0))),
    "a function": (lambda: of(lambda self, x: helper(x)), of_globals("helper", other)),
    "what a function reads": (lambda: of(lambda self, x: helper(x)), of_globals("FACTOR", 3.0)),
    "in a comprehension": (lambda: of(lambda self, x: sum(x * FACTOR for _ in range(2))), of_globals("FACTOR", 3.0)),
    "in a function in it": (lambda: of(lambda self, x: (lambda z: z * FACTOR)(x)), of_globals("FACTOR", 3.0)),
    "a class's constant": (Derived, swapped(Base, "shift", 0.25)),
    "a method": (Derived, swapped(Base, "scaled", lambda self, x: x)),
    "a static method": (Derived, swapped(Base, "halved", staticmethod(other))),
    "a class method": (Derived, swapped(Base, "named", classmethod(lambda cls, x: 2 * x))),
    "what a property reads": (Derived, of_globals("FACTOR", 3.0)),
    "a property": (Derived, swapped(Base, "twice", property(lambda self: 3.0))),
    "a partial method": (
        lambda: of(lambda self, x: self.doubled(), doubled=Base.__dict__["doubled"]), of_globals("FACTOR", 3.0)
    ),
    "of another class": (lambda: of(lambda self, x: x * Settings.factor), swapped(Settings, "factor", 3.0)),
    "a static method of another class": (
        lambda: of(lambda self, x: Settings.scaled(x)), swapped(Settings, "scaled", other)
    ),
    "of a module": (lambda: of(lambda self, x: x * OWN.factor), swapped(OWN, "factor", 4.0)),
    "a function of a module": (lambda: of(lambda self, x: OWN.helper(x)), swapped(OWN, "helper", other)),
    "behind a wrapper": (lambda: of(functools.wraps(helper)(lambda self, x: x)), of_globals("FACTOR", 3.0)),
    "behind a partial function": (
        lambda: of(lambda self, x: self.function(x), function=staticmethod(functools.partial(helper))),
        of_globals("FACTOR", 3.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WATCHED)
def test_changes_are_noticed(name: str) -> None:
    make, change = WATCHED[name]
    found = reads(make().modules())
    assert found.reasons == []
    assert not found.changed()
    back = change()
    try:
        assert found.changed()
    finally:
        back()
    assert not found.changed()


def test_closures_are_watched() -> None:
    model, change = closed(2.0)
    found = reads([model])
    assert found.reasons == []
    change(3.0)
    assert found.changed()
    change(2.0)
    assert not found.changed(), "an equal number is the same"
    change([2.0])
    assert found.changed()
    assert reads([model]).reasons == ["forward uses factor, a list that is not the model's and may change"]


def test_slots_classes_and_modules_of_a_class_are_harmless() -> None:
    model = of(
        lambda self, x: x * self.gain, __slots__=("gain",), Inner=Settings, own=OWN, __annotations__={"gain": float}
    )
    assert reads([model]).reasons == []
    assert reads([of(lambda self, x: self.Inner and self.own and x, Inner=Settings, own=OWN)]).reasons == []


def test_other_names_are_not_watched() -> None:
    found = reads([of(lambda self, x: x * 2)])
    assert found == Reads([], [])
    back = of_globals("FACTOR", 5.0)()
    assert not found.changed()
    back()
    assert reads([nn.Linear(2, 2), nn.ReLU()]) == Reads([], []), "torch's own modules are trusted"


def draws(self: Any, x: Tensor) -> Tensor:
    return x * random.random()


def draws_elsewhere(self: Any, x: Tensor) -> Tensor:
    return x * DRAW()


def draws_with_numpy(self: Any, x: Tensor) -> Tensor:
    return x * np.random.rand()  # noqa: NPY002


def reads_a_clock(self: Any, x: Tensor) -> Tensor:
    return x * time.time()


def imports_a_clock(self: Any, x: Tensor) -> Tensor:
    import datetime

    return x * (lambda now: now.second)(datetime.datetime.now())


def opens(self: Any, x: Tensor) -> Tensor:
    with open("file") as file:
        return x * len(file.read())


def sets_a_global(self: Any, x: Tensor) -> Tensor:
    global FACTOR
    FACTOR = 2.0
    return x


def sets_an_attribute(self: Any, x: Tensor) -> Tensor:
    setattr(self, "x", 1)  # noqa: B010
    return x


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a list": (lambda: of(lambda self, x: x * LIST[0]), "forward uses LIST, a list that is not the model's"),
    "a dict": (lambda: of(lambda self, x: x * GIVEN["a"]), "forward uses GIVEN, a dict that is not"),
    "a tensor": (lambda: of(lambda self, x: x * TENSOR), "forward uses TENSOR, a Tensor that is not"),
    "a module": (lambda: of(lambda self, x: MODULE(x)), "forward uses MODULE, a Linear that is not"),
    "an object": (lambda: of(lambda self, x: OBJECT(x)), "forward uses OBJECT, a Callable_ that is not"),
    "a generator": (lambda: of(lambda self, x: torch.rand(2, generator=GENERATOR)), "draws random numbers .GENERATOR"),
    "a function of autograd": (lambda: of(lambda self, x: Double.apply(x)), "uses Double, a torch.autograd.Function"),
    "random": (lambda: of(draws), "forward uses random"),
    "a method of random": (lambda: of(draws_elsewhere), r"forward draws random numbers \(DRAW\)"),
    "numpy.random": (lambda: of(draws_with_numpy), "forward uses numpy"),
    "a clock": (lambda: of(reads_a_clock), "forward uses time"),
    "an import": (lambda: of(imports_a_clock), "forward imports datetime"),
    "a file": (lambda: of(opens), "forward calls open"),
    "a global": (lambda: of(sets_a_global), "sets_a_global sets a global"),
    "setattr": (lambda: of(sets_an_attribute), "forward calls setattr"),
    "a default": (lambda: of(with_a_list), "forward uses a default, a list"),
    "a keyword's default": (lambda: of(with_a_keyword), "forward uses a default, a dict"),
    "of a function that is called": (lambda: of(lambda self, x: with_a_list(x)), "forward uses a default, a list"),
    "a class's list": (lambda: of(lambda self, x: x * self.factors[0], factors=[1.0]), "forward uses factors, a list"),
    "an argument of a partial function": (
        lambda: of(lambda self, x: self.function(x), function=functools.partialmethod(with_a_list, [3.0])),
        "forward uses an argument of a partial function, a list|forward uses a default, a list",
    ),
    "in a tuple": (lambda: of(lambda self, x: x * MIXED[0]), "forward uses MIXED, a list"),
    "a property kept": (
        lambda: of(lambda self, x: x * self.kept, kept=functools.cached_property(lambda self: LIST[0])),
        "forward uses LIST, a list",
    ),
    "a descriptor": (
        lambda: of(lambda self, x: x * self.odd, odd=Descriptor()), "forward uses odd, a Descriptor that is not"
    ),
    "an object as forward": (lambda: of(OBJECT), "forward calls a Callable_"),
}  # fmt: skip
MIXED = (1.0, [2.0])


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_change_unseen_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    found = reads(make().modules())
    assert len(found.reasons) >= 1
    assert __import__("re").search(reason, found.reasons[0]), found.reasons


def test_what_a_module_holds_is_looked_at() -> None:
    model = of(lambda self, x: self.function(x))
    model.function = lambda x: x * LIST[0]  # type: ignore[assignment]
    assert reads([model]).reasons == ["forward uses LIST, a list that is not the model's and may change"]
    model.function = functools.partial(with_a_default, factor=3.0)  # type: ignore[assignment]
    assert reads([model]).reasons == []
    model.function = functools.partial(with_a_default, factor=[3.0])  # type: ignore[assignment]
    assert len(reads([model]).reasons) == 1
    model.function = MODULE.forward  # type: ignore[assignment]
    assert reads([model]).reasons == []
    model.generator = GENERATOR  # type: ignore[assignment]
    assert reads([model]).reasons == ["holds a random generator (generator)"]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = dict(vars(THIS))
    yield
    assert {name: value for name, value in vars(THIS).items() if name in ("FACTOR", "PAIR", "helper")} == {
        name: before[name] for name in ("FACTOR", "PAIR", "helper")
    }
