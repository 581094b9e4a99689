"""Other libraries' calls for Sparring's attacks: change the import, keep the rest.

``sparring.adapters.foolbox``, ``.torchattacks`` and ``.autoattack`` have the names, arguments, defaults and return
values of the packages that they are called after, none of which has to be installed, and pass them on to
:mod:`sparring.attacks`. What has no counterpart there is refused with an error that says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn


def refuse(library: str, name: str, known: list[str], instead: Mapping[str, str] | None = None) -> NoReturn:
    """For a module's ``__getattr__``: a clear error where the other library may well have the name.

    `instead` has, by name, the call of Sparring's that serves the same purpose by other means.
    """
    if name[:1].isupper():
        advice = f"; for its purpose there is sparring.attacks.{instead[name]}" if instead and name in instead else ""
        has = ", ".join(sorted(known))
        raise ImportError(f"{library}'s {name} has no counterpart in Sparring; what has: {has}{advice}")
    raise AttributeError(f"module 'sparring.adapters.{library.lower()}' has no attribute {name!r}")


def only(library: str, name: str, value: object, accepted: object, why: str) -> None:
    """ValueError unless the argument `name` has the one value that is passed on faithfully."""
    if value != accepted:
        raise ValueError(f"{library}'s {name}={value!r} has no counterpart: {why}; accepted: {accepted!r}")
