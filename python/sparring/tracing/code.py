"""What a function's code does beside computing with its arguments, told from its bytecode."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

# What a graph does not show, or what lies elsewhere than in arguments, names and attributes.
_REFUSED = {
    "STORE_GLOBAL": "sets a global",
    "DELETE_GLOBAL": "sets a global",
    "STORE_ATTR": "sets an attribute",
    "DELETE_ATTR": "sets an attribute",
    "STORE_SUBSCR": "sets an entry",
    "DELETE_SUBSCR": "sets an entry",
    "IMPORT_NAME": "imports a module",
    "BEFORE_WITH": "uses a context (with)",
    "BEFORE_ASYNC_WITH": "uses a context (with)",
    "SETUP_WITH": "uses a context (with)",
    "LOAD_SPECIAL": "uses a context (with)",
    "SETUP_FINALLY": "catches exceptions",
    "CHECK_EXC_MATCH": "catches exceptions",
    "LOAD_BUILD_CLASS": "defines a class",
}


class Code(NamedTuple):
    """Global names and attributes that a function, and those in it, read; and why it cannot be followed, if so."""

    names: frozenset[str]
    attributes: frozenset[str]
    calls_super: bool
    refused: str | None


@functools.lru_cache(maxsize=4096)
def read(code: CodeType) -> Code:
    """Look through the code of a function."""
    names, attributes, refused, calls_super = set[str](), set[str](), None, False
    for part in _parts(code):
        for step in dis.get_instructions(part):
            name = str(step.argval)
            refused = refused or _REFUSED.get(step.opname)
            if step.opname == "STORE_DEREF" and name in part.co_freevars and name in code.co_freevars:
                refused = refused or f"sets {name}, which is not its own"
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                names.add(name)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                attributes.add(name)
            elif "SUPER" in step.opname:
                attributes.add(name)
                calls_super = True
    dunder = [name for name in attributes if name.startswith("__") and name != "__init__"]
    if dunder:
        refused = refused or f"reads {min(dunder)}"
    return Code(frozenset(names), frozenset(attributes), calls_super or "super" in names, refused)


def _parts(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
