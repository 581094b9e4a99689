"""How far something that takes a while is."""

from __future__ import annotations

from typing import NamedTuple


class Progress(NamedTuple):
    """`done` of at most `total` units of work, which need not take the same time; `doing` says what is going on."""

    done: float
    total: int
    doing: str
