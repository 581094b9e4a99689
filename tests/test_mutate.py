"""The campaign that plants faults: one in a small module, told by a test and by none."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from campaigns import faults

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

SOURCE = '''
from functools import cache

LIMIT = 3  # not in a function

class Stack:
    def __init__(self, *, size: int = 3) -> None:
        self.size, self.things = size, []

    @property
    def full(self) -> bool:
        """Whether there is room."""
        return len(self.things) >= self.size

    def push(self, thing):
        if self.full:
            raise OverflowError(f"no room for {thing + 1}")
        self.things.append(thing)

@cache
def largest(a, b):
    def bigger():
        return max(a, b)
    return bigger()

def forever(n):
    while n > 0:
        n -= 1
    return n
'''


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    path = tmp_path / "made_for_mutants.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


def planted(module: ModuleType, old: str, new: str, test: Callable[[], Any], limit: float = 20) -> Any:
    """What a test returns in a fork in which the line `old` has become `new`; None where it did not end."""
    path = Path(str(module.__file__))
    (mutant,) = [mutant for mutant in faults.mutants_of(path) if (mutant.old, mutant.new) == (old, new)]
    codes, functions = faults.mutated(mutant), faults.functions_in([path])[path]
    assert faults.fits(codes, functions)

    def work() -> Any:
        faults.plant(codes, functions)
        return test()

    return faults.in_a_fork(work, limit)


def test_a_fault_is_noticed_in_its_fork_and_is_gone_after_it(module: ModuleType) -> None:
    def pushes(count: int) -> bool:
        stack = module.Stack()
        try:
            for thing in range(count):
                stack.push(thing)
        except OverflowError:
            return False
        return True

    old = "return len(self.things) >= self.size"
    assert [pushes(3), pushes(4)] == [True, False]
    assert planted(module, old, "return len(self.things) > self.size", lambda: [pushes(3), pushes(4)]) == [True, True]
    assert planted(module, old, "return len(self.things) < self.size", lambda: [pushes(3), pushes(4)]) == [False, False]
    assert [pushes(3), pushes(4)] == [True, False]


def test_functions_in_functions_and_behind_decorators(module: ModuleType) -> None:
    assert planted(module, "return max(a, b)", "return min(a, b)", lambda: module.largest(1, 2)) == 1
    assert module.largest(1, 2) == 2


def test_what_does_not_end_is_killed(module: ModuleType) -> None:
    assert planted(module, "n -= 1", "n += 1", lambda: module.forever(3), limit=0.5) is None
    assert module.forever(3) == 0


def test_messages_defaults_and_constants_are_left_alone(module: ModuleType) -> None:
    mutants = [*faults.mutants_of(Path(str(module.__file__)))]
    assert {mutant.function for mutant in mutants} == {
        "Stack.__init__", "Stack.full", "Stack.push", "largest.bigger", "forever",
    }  # fmt: skip
    assert not any("thing - 1" in mutant.new or "size: int = 4" in mutant.new or "LIMIT" in mutant.old
                   for mutant in mutants)  # fmt: skip
    assert "pass" in {mutant.new for mutant in mutants if mutant.old == "self.things.append(thing)"}
