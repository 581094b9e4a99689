"""What lies in nested lists, tuples and dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a value that is no list, tuple, slice or mapping; with repetitions."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from leaves(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, slice):
        yield from leaves((value.start, value.stop, value.step))
    else:
        yield value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among them."""
    return (one for one in leaves(value) if isinstance(one, Tensor))
