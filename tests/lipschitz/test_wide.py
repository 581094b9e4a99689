"""What is done to an input, recorded: every way in which two forwards may differ is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparring.lipschitz.wide import changes, difference, identical, recorded, widened

X = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))


def twice(x: Tensor) -> Tensor:
    y = x * 2
    y += 1
    return y * y


def alias(x: Tensor) -> Tensor:
    y = x * 2
    z = y + 1
    return z * y


OTHERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], str]] = {
    "another operation": (torch.sin, torch.cos, "sin.default in place of cos.default"),
    "another number": (lambda x: x + 1.0, lambda x: x + 1.5, "add.Tensor with 1.0 in place of 1.5"),
    "another kind of number": (lambda x: x + 1, lambda x: x + 1.0, "add.Tensor with 1 in place of 1.0"),
    "another constant": (lambda x: x + X[0], lambda x: x + X[1], "with another constant"),
    "another operand": (twice, alias, "of something that was changed in place"),
    "one more": (torch.sin, lambda x: torch.sin(x).cos(), "cos.default or not"),
    "another dtype": (lambda x: x.half(), lambda x: x.bfloat16(), "torch.float16 in place of torch.bfloat16"),
    "another shape of a constant": (lambda x: x + X[:1], lambda x: x + X[:, :1], "with another constant"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_differences_are_seen(name: str) -> None:
    one, other, text = OTHERS[name]
    found = difference(recorded(one, X.clone()).done, recorded(other, X.clone()).done, identical, dtypes=True)
    assert text in found
    same = difference(recorded(one, X.clone()).done, recorded(one, X.clone()).done, identical, dtypes=True)
    assert same == ""


def test_what_works_in_place_is_the_same_where_nothing_reads_it_again() -> None:
    def in_place(x: Tensor) -> Tensor:
        y = x * 2
        y += 1
        return y.relu_()

    done = [recorded(f, X.clone()).done for f in (in_place, lambda x: (x * 2 + 1).relu())]
    assert difference(*done, identical, dtypes=True) == ""


def test_casts_that_lose_nothing_do_not_count() -> None:
    assert recorded(lambda x: x.double() + 1, X.clone()).done[0].name == "add.Tensor"
    assert recorded(lambda x: x.half() + 1, X.clone()).done[0].name == "_to_copy.default"


def test_the_copy_in_float64_and_why_it_is_another_function() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    wide, reason = widened(model, (3,))
    assert reason == ""
    assert torch.equal(wide[0].weight, model[0].weight.double())
    assert "cannot be called with a batch of two" in widened(nn.Linear(4, 2), (3,))[1]


def test_changes_of_tensors_are_named() -> None:
    model, copy = nn.BatchNorm1d(2), nn.BatchNorm1d(2).double()
    model.extra, copy.extra = X, X + 0
    assert changes(model, copy) == []
    copy.running_mean[0] = 1
    copy.extra[0, 0] = 7
    assert changes(model, copy) == ["running_mean", "extra"]


def test_identical_is_of_the_same_kind() -> None:
    assert identical(X, X.clone())
    assert not identical(X, X.double())
    assert not identical(X, X[:1])
    assert not identical(X, X.flatten())
    assert not identical(X, X + 1e-6)
    nan = torch.full((2,), torch.nan)
    assert identical(nan, nan.clone())
    assert not identical(nan, torch.zeros(2))
    assert identical(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert not identical(torch.tensor([1, 2]), torch.tensor([1, 3]))
