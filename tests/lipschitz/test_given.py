"""Arguments that are no such thing, and those that are after all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from made_layers import Calls
from sparring import lipschitz as lp

MODEL, X, W = nn.Linear(4, 3).eval(), torch.full((2, 4), 0.5), torch.ones(3, 3)
ANY: Any = None


def linear(weight: Any) -> nn.Linear:
    layer = nn.Linear(4, 3)
    layer.weight = weight if weight is None else nn.Parameter(weight)
    return layer


def labels(dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: lp.certified_radius(MODEL, X, torch.zeros(2).to(dtype))


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    **{f"y {d}": (labels(d), TypeError, "y must be") for d in (torch.uint16, torch.uint32, torch.uint64)},
    "y complex": (labels(torch.complex64), TypeError, "y must be"),
    "y bool": (labels(torch.bool), TypeError, "y must be"),
    "y meta": (
        lambda: lp.certified_radius(MODEL, X, torch.zeros(2, dtype=torch.int64, device="meta")),
        ValueError,
        "y ",
    ),
    "x meta": (lambda: lp.certified_radius(MODEL, X.to("meta")), ValueError, "x must have numbers"),
    "x sparse": (lambda: lp.certified_radius(MODEL, X.to_sparse()), ValueError, "x must have numbers"),
    "no model": (lambda: lp.certified_radius(ANY, X), TypeError, "model must be a torch.nn.Module, not NoneType"),
    "a function": (lambda: lp.certified_radius(ANY or (lambda x: x), X), TypeError, "model must be"),
    "keys": (lambda: lp.layer_bounds({1: W}), TypeError, "names as keys; got 1"),  # type: ignore[dict-item]
    "shape": (lambda: lp.layer_bounds(MODEL, ANY or 4.0), TypeError, "input_shape must be positive numbers"),
    "shapes": (lambda: lp.layer_bounds(MODEL, ANY or (4.0,)), TypeError, "input_shape must be positive numbers"),
    "shape str": (lambda: lp.layer_bounds(MODEL, ANY or "4"), TypeError, "input_shape must be positive numbers"),
    "tol": (lambda: lp.layer_bounds(MODEL, 4, tol=ANY), TypeError, "tol must be a positive number; got None"),
    "tol nan": (lambda: lp.layer_bounds(MODEL, 4, tol=math.nan), ValueError, "tol must be a positive number"),
    "groups": (lambda: lp.spectral_norm(W[None, None], "conv2d", groups=ANY or 1.0), TypeError, "groups must be"),
    "stride": (lambda: lp.spectral_norm(W[None, None], "conv2d", 8, stride=ANY or 2.0), TypeError, "stride must be"),
    "chain of NumPy": (lambda: lp.chain_bound([np.ones((3, 3)), W]), TypeError, "weights must be a tensor"),  # type: ignore[list-item]
    "chain complex": (lambda: lp.chain_bound([W * 1j, W]), TypeError, "weights must be a tensor of floats"),
    "chain sparse": (lambda: lp.chain_bound([W.to_sparse(), W]), ValueError, "weights must have numbers"),
    "chain meta": (lambda: lp.chain_bound([W.to("meta"), W]), ValueError, "weights must have numbers"),
    "slopes": (lambda: lp.chain_bound([W, W], [ANY]), TypeError, "slopes must be a number"),
    "batch of 0": (lambda: lp.empirical_lower_bound(MODEL, X, batch_size=0), ValueError, "batch_size is 0"),
    "batch of -1": (lambda: lp.empirical_lower_bound(MODEL, X, batch_size=-1), ValueError, "batch_size is -1"),
    "NaN weights": (lambda: lp.empirical_lower_bound(linear(torch.full((3, 4), math.nan)), X), ValueError, "Jacobian"),
    "inputs meta": (lambda: lp.empirical_lower_bound(MODEL, X.to("meta")), ValueError, "inputs must have numbers"),
    "radius complex": (lambda: lp.local_bound(MODEL, X, ANY or 1j), TypeError, "radius must be a real number"),
    "radii complex": (lambda: lp.local_bound(MODEL, X, torch.tensor([1j, 1.0])), TypeError, "radius must be a real"),
    "radius None": (lambda: lp.local_bound(MODEL, X, ANY), TypeError, "radius must be a real number"),
    "radius meta": (lambda: lp.local_bound(MODEL, X, torch.ones(2, device="meta")), ValueError, "radius must have"),
    "expanded": (lambda: lp.project_(linear(torch.ones(1, 4).expand(3, 4)), 1.0), ValueError, "share their memory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("function", [lp.penalty, lp.path_norm, lambda model: lp.project_(model, 1.0)])
def test_weights_that_are_no_numbers(function: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"model's 0\.weight has no shape yet"):
        function(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ValueError, match=r"model's weight must have numbers, as a dense tensor"):
        function(linear(torch.ones(3, 4).to_sparse()))
    with pytest.raises(TypeError, match=r"model's 0\.weight must be a tensor of floats; got NoneType"):
        function(nn.Sequential(linear(None)))
    with pytest.raises(TypeError, match=r"model's weight must be a tensor of floats; got torch.complex64"):
        function(nn.Linear(4, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, not NoneType"):
        function(None)


def test_numbers_of_other_libraries() -> None:
    assert lp.layer_bounds(MODEL, np.int64(4)).upper == lp.layer_bounds(MODEL, 4).upper  # type: ignore[arg-type]
    assert lp.layer_bounds(MODEL, np.array([4])).upper == lp.layer_bounds(MODEL, 4).upper  # type: ignore[arg-type]
    found = [lp.spectral_norm(W[None, None], "conv2d", 8, stride=n) for n in (2, np.int64(2), (2, 2))]  # type: ignore[arg-type]
    assert found[0] == found[1] == found[2]


def test_state_dicts_of_narrow_numbers() -> None:
    narrow = W.to(torch.float8_e4m3fn)
    assert lp.layer_bounds({"a.weight": narrow}).upper == lp.layer_bounds({"a.weight": W}).upper
    report = lp.layer_bounds({"b.weight": torch.nested.nested_tensor([W, W[:2]], layout=torch.jagged), "a.weight": W})
    assert report.refused == (("b.weight", "is a nested tensor"),)


KEYWORDS: list[Callable[[Any], Any]] = [
    lambda x: torch.flip(x, dims=[1]),
    lambda x: x.flip(dims=(1, 2)),
    lambda x: torch.flip(input=x, dims=(2,)),
    lambda x: torch.roll(x, shifts=1, dims=1),
    lambda x: torch.sum(x, axis=1),
    lambda x: x.mean(axis=2, keepdims=True),
    lambda x: torch.cat(tensors=[x, x], dim=1),
    lambda x: x.permute(dims=(0, 2, 1)),
    lambda x: x.view(size=(-1, 12)),
    lambda x: torch.reshape(input=x, shape=(-1, 12)),
    lambda x: torch.flatten(x, start_dim=1),
    lambda x: x.expand(size=(-1, 3, 4)),
    lambda x: torch.transpose(x, dim0=1, dim1=2),
    lambda x: torch.softmax(x, dim=1),
    lambda x: torch.amax(x, dim=1, keepdim=True),
    lambda x: torch.clamp(x, min=0.0, max=1.0),
]


@pytest.mark.parametrize("i", range(len(KEYWORDS)))
def test_arguments_by_name(i: int) -> None:
    assert lp.layer_bounds(Calls(KEYWORDS[i]), (3, 4)).refused == ()


def test_flips_along_the_batch_by_name_are_refused() -> None:
    for function in (lambda x: torch.flip(x, dims=[0]), lambda x: torch.sum(x, axis=0)):
        assert lp.layer_bounds(Calls(function), (3, 4)).upper == math.inf
