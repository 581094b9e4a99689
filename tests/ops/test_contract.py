"""One list of bad inputs against every operation, and what each does about NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from checks import same_bits, sample
from torch import Tensor
from unusual import CHANGED

from sparring import ops

ROWS, COLUMNS = 5, 12


def good_arguments(op: str) -> dict[str, Any]:
    delta, x = sample((ROWS, COLUMNS), torch.float32)
    grad, _ = sample((ROWS, COLUMNS), torch.float32, seed=1)
    return {
        "project_l1_box": {"delta": delta, "x": x, "eps": 1.0},
        "project_l0_box": {"delta": delta, "x": x, "k": 3, "channels": 2},
        "l1_step": {"delta": delta, "grad": grad, "x": x, "eps": 1.0, "step_size": 0.5, "k": 3},
        "recovery_step": {
            "image": x,
            "grad": grad,
            "lr": 0.1,
            "lam": 1.0,
            "exp_avg": torch.zeros_like(x),
            "exp_avg_sq": torch.zeros_like(x),
        },
        "sparse_pgd_step": {
            "values": 0.1 * delta,
            "mask": sample((ROWS, COLUMNS), torch.float32, seed=2)[0],
            "grad": grad,
            "x": x,
            "k": 3,
            "step_size": 0.25,
            "mask_step": 0.5,
            "unchanged": torch.zeros(ROWS, dtype=torch.int64),
        },
    }[op]


def as_dtype(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same with all floating-point tensors of that type."""
    floating = {k: t for k, t in arguments.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return arguments | {k: t.to(dtype) for k, t in floating.items()}


ARRAYS = {
    "project_l1_box": ("delta", "x"),
    "project_l0_box": ("delta", "x"),
    "l1_step": ("delta", "grad", "x"),
    "recovery_step": ("image", "grad", "exp_avg", "exp_avg_sq"),
    "sparse_pgd_step": ("values", "mask", "grad", "x"),
}
PER_ROW = {
    "project_l1_box": ("eps",),
    "l1_step": ("eps", "step_size"),
    "recovery_step": ("lr", "lam"),
    "sparse_pgd_step": ("step_size", "mask_step"),
}
OUTPUT = ("project_l1_box", "project_l0_box", "l1_step")


@dataclass
class Bad:
    """One bad argument: which operation, which argument, and the value (or how to spoil the good one)."""

    op: str
    name: str
    label: str
    value: Any
    error: type[Exception] | tuple[type[Exception], ...] = ValueError

    def arguments(self) -> dict[str, Any]:
        arguments = good_arguments(self.op)
        spoil = self.value
        arguments[self.name] = spoil(arguments.get(self.name)) if callable(spoil) else spoil
        return arguments


SPOILED_ARRAYS: list[tuple[str, Callable[[Tensor], Any], Any]] = [
    ("a list", lambda t: t.tolist(), TypeError),
    ("None", lambda t: None, TypeError),
    ("an integer type", lambda t: t.int(), (TypeError, ValueError)),
    ("half precision", lambda t: t.half(), (TypeError, ValueError)),
    ("bfloat16", lambda t: t.bfloat16(), (TypeError, ValueError)),
    ("bool", lambda t: t > 0, (TypeError, ValueError)),
    ("complex", lambda t: t + 0j, (TypeError, ValueError)),
    ("the meta device", lambda t: t.to("meta"), ValueError),
    ("sparse", lambda t: t.to_sparse(), (TypeError, ValueError)),
]
# Told from the first array of the call, so they cannot concern that one.
UNLIKE_THE_FIRST: list[tuple[str, Callable[[Tensor], Any], Any]] = [
    ("another type", lambda t: t.double(), (TypeError, ValueError)),
    ("fewer rows", lambda t: t[:-1], ValueError),
    ("fewer columns", lambda t: t[:, :-1], ValueError),
    ("one row", lambda t: t[:1], ValueError),
    ("another number of dimensions", lambda t: t.reshape(ROWS, 3, 4), ValueError),
]
SPOILED_NUMBERS: list[tuple[str, Any, Any]] = [
    ("negative", -0.5, ValueError),
    ("NaN", math.nan, ValueError),
    ("a string", "1", TypeError),
    ("None", None, TypeError),
    ("one negative", torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0]), ValueError),
    ("one NaN", torch.tensor([1.0, math.nan, 1.0, 1.0, 1.0]), ValueError),
    ("too few", torch.ones(ROWS - 1), ValueError),
    ("two-dimensional", torch.ones(ROWS, COLUMNS), ValueError),
]
SPOILED_BOUNDS: list[tuple[str, Any, Any]] = [
    ("reversed", (1.0, 0.0), ValueError),
    ("NaN", (0.0, math.nan), ValueError),
    ("three", (0.0, 0.5, 1.0), (TypeError, ValueError)),
    ("a number", 1.0, (TypeError, ValueError)),
]
SPOILED_OUTPUTS: list[tuple[str, Any, Any]] = [
    ("a list", [0.0], TypeError),
    ("another shape", torch.empty(ROWS, COLUMNS + 1), ValueError),
    ("too few rows", torch.empty(ROWS - 1, COLUMNS), ValueError),
    ("another type", torch.empty(ROWS, COLUMNS, dtype=torch.float64), (TypeError, ValueError)),
    ("another device", torch.empty(ROWS, COLUMNS, device="meta"), ValueError),
    ("not contiguous", torch.empty(COLUMNS, ROWS).T, ValueError),
    ("overlapping", torch.empty(1, COLUMNS).expand(ROWS, COLUMNS), ValueError),
    ("a leaf that requires grad", torch.empty(ROWS, COLUMNS, requires_grad=True), ValueError),
]
SPOILED_K: list[tuple[str, Any, Any]] = [
    ("negative", -3, ValueError),
    ("fraction zero", 0.0, ValueError),
    ("fraction above one", 1.5, ValueError),
    ("fraction NaN", math.nan, ValueError),
    ("too few", torch.tensor([1, 2]), ValueError),
    ("one negative", torch.tensor([1, 2, -1, 3, 4]), ValueError),
    ("two-dimensional", torch.ones(ROWS, COLUMNS, dtype=torch.int64), ValueError),
    ("None", None, TypeError),
    ("one fraction above one", torch.tensor([0.5, 0.5, 2.0, 0.5, 0.5]), ValueError),
    ("a string", "all", TypeError),
]
SPOILED_CHANNELS: list[tuple[str, Any, Any]] = [
    ("zero", 0, ValueError),
    ("negative", -2, ValueError),
    ("no divisor", 5, ValueError),
    ("more than entries", 2 * COLUMNS, ValueError),
    ("a fraction", 2.0, ValueError),
    ("a bool", True, ValueError),
    ("None", None, ValueError),
]
SPARSE_PGD: list[tuple[str, str, Any, Any]] = [
    ("mask", "of fewer places", lambda t: t[:, :4].contiguous(), ValueError),
    ("mask", "overlapping", lambda t: t[:1].expand(ROWS, COLUMNS), ValueError),
    ("values", "requires grad", lambda t: t.clone().requires_grad_(), ValueError),
    ("values", "overlapping", lambda t: t[:1].expand(ROWS, COLUMNS), ValueError),
    ("step_size", "infinite", math.inf, ValueError),
    ("mask_step", "infinite", math.inf, ValueError),
    ("projected", "a number", 1, TypeError),
    ("projected", "a string", "both", TypeError),
    ("unchanged", "of int32", torch.zeros(ROWS, dtype=torch.int32), TypeError),
    ("unchanged", "too few", torch.zeros(ROWS - 1, dtype=torch.int64), ValueError),
    ("unchanged", "with gaps", torch.zeros(2 * ROWS, dtype=torch.int64)[::2], ValueError),
    ("unchanged", "a list", [0] * ROWS, TypeError),
]
RECOVERY: list[tuple[str, str, Any, Any]] = [
    ("penalty", "unknown", "l2", ValueError),
    ("exp_avg", "without exp_avg_sq", None, ValueError),
    ("exp_avg_sq", "without exp_avg", None, ValueError),
    ("step", "zero", 0, ValueError),
    ("betas", "one", (0.9, 1.0), ValueError),
    ("betas", "negative", (-0.1, 0.9), ValueError),
    ("adam_eps", "negative", -1e-8, ValueError),
    ("adam_eps", "NaN", math.nan, ValueError),
    ("floor", "negative", -0.1, ValueError),
    ("floor", "NaN", math.nan, ValueError),
    ("black", "NaN", math.nan, ValueError),
    ("mask", "of numbers", torch.ones(ROWS, COLUMNS), (TypeError, ValueError)),
    ("mask", "of another shape", torch.ones(ROWS, COLUMNS - 1, dtype=torch.bool), ValueError),
    ("mask", "one per row", torch.ones(ROWS, dtype=torch.bool), ValueError),
    ("mask", "on the meta device", torch.ones(ROWS, COLUMNS, dtype=torch.bool, device="meta"), ValueError),
    ("frozen", "of numbers", torch.ones(ROWS), (TypeError, ValueError)),
    ("frozen", "too few", torch.ones(ROWS - 1, dtype=torch.bool), ValueError),
    ("image", "requires grad", lambda t: t.clone().requires_grad_(), ValueError),
    ("image", "overlapping", lambda t: t[:1].expand(ROWS, COLUMNS), ValueError),
    ("exp_avg", "with gaps between its rows", torch.zeros(ROWS, COLUMNS + 1)[:, 1:], ValueError),
    ("exp_avg", "overlapping", lambda t: t[:1].expand(ROWS, COLUMNS), ValueError),
]

BAD = [
    *(Bad(op, name, *row) for op, names in ARRAYS.items() for name in names for row in SPOILED_ARRAYS
      if not (row[0] == "None" and name.startswith("exp_"))),
    *(Bad(op, name, *row) for op, names in ARRAYS.items() for name in names[1:] for row in UNLIKE_THE_FIRST),
    *(Bad(op, name, *row) for op, names in PER_ROW.items() for name in names for row in SPOILED_NUMBERS),
    *(Bad(op, "bounds", *row) for op in ARRAYS for row in SPOILED_BOUNDS),
    *(Bad(op, "out", *row) for op in OUTPUT for row in SPOILED_OUTPUTS),
    *(Bad(op, "k", *row) for op in ("l1_step", "project_l0_box", "sparse_pgd_step") for row in SPOILED_K),
    Bad("l1_step", "k", "zero", 0),
    Bad("l1_step", "k", "one zero", torch.tensor([1, 2, 0, 3, 4])),
    *(Bad(op, "channels", *row) for op in ("project_l0_box", "sparse_pgd_step") for row in SPOILED_CHANNELS),
    *(Bad("sparse_pgd_step", *row) for row in SPARSE_PGD),
    *(Bad("recovery_step", *row) for row in RECOVERY),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.op}-{bad.name}-{bad.label}")
def test_bad_argument_is_named(bad: Bad) -> None:
    arguments = bad.arguments()
    before = {name: t.clone() for name, t in arguments.items() if isinstance(t, Tensor) and t.layout == torch.strided}
    with pytest.raises(bad.error, match=rf"\b{bad.name}\b") as caught:
        getattr(ops, bad.op)(**arguments)
    assert isinstance(caught.value, TypeError | ValueError)
    for name in set(before) & set(ARRAYS[bad.op]):
        if before[name].device.type == "cpu":
            assert torch.equal(arguments[name], before[name]), "a refused call writes nothing"


@pytest.mark.parametrize("op", ARRAYS)
def test_an_unsupported_device_is_named_with_those_supported(op: str) -> None:
    arguments = {k: t.to("meta") if isinstance(t, Tensor) else t for k, t in good_arguments(op).items()}
    with pytest.raises(ValueError, match=r"(?i)meta.*cpu|cpu.*meta"):
        getattr(ops, op)(**arguments)


@pytest.mark.parametrize("op", ARRAYS)
def test_the_good_arguments_are_good(op: str) -> None:
    arguments = good_arguments(op)
    assert getattr(ops, op)(**arguments).shape == (ROWS, COLUMNS)


@pytest.mark.parametrize("op", ARRAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_rows(op: str, dtype: torch.dtype) -> None:
    arguments = {k: t[:0] if isinstance(t, Tensor) else t for k, t in as_dtype(good_arguments(op), dtype).items()}
    result = getattr(ops, op)(**arguments)
    assert result.shape == (0, COLUMNS)
    assert result.dtype == dtype


CHECKED = {**ARRAYS, "recovery_step": ("image", "grad")}
POISON = [(op, name) for op, names in CHECKED.items() for name in names]


@pytest.mark.parametrize(("op", "name"), POISON, ids=map("-".join, POISON))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_not_finite(backend: Any, op: str, name: str, value: float, dtype: torch.dtype) -> None:
    """Refused with the argument and the lowest row; unchecked, only the rows concerned are lost."""
    clean = as_dtype(good_arguments(op), dtype)

    def poisoned() -> dict[str, Any]:
        fresh = {k: t.clone() if isinstance(t, Tensor) else t for k, t in clean.items()}
        fresh[name][3, 11] = value
        fresh[name][4, 0] = value
        return fresh

    want = getattr(backend, op)(**{k: t.clone() if isinstance(t, Tensor) else t for k, t in clean.items()})
    arguments = poisoned()
    with pytest.raises(ValueError, match=rf"\b{name}\b.*\b3\b"):
        getattr(backend, op)(**arguments)
    unchecked = poisoned()
    got = getattr(backend, op)(**unchecked, check_finite=False)
    assert same_bits(got[:3], want[:3])
    if op in CHANGED:
        for argument in CHANGED[op]:
            assert same_bits(unchecked[argument][3:], poisoned()[argument][3:]), "the row is left untouched"
            assert same_bits(arguments[argument], unchecked[argument]), "the other rows are done before it raises"
    if op != "recovery_step":
        assert bool(got[3:].isnan().all())


@pytest.mark.parametrize(("op", "name"), POISON, ids=map("-".join, POISON))
def test_everything_not_finite(backend: Any, op: str, name: str) -> None:
    arguments = good_arguments(op)
    arguments[name].fill_(math.nan)
    with pytest.raises(ValueError, match=rf"\b{name}\b.*\b0\b"):
        getattr(backend, op)(**arguments)


@pytest.mark.parametrize("name", ["delta", "x"])
def test_not_finite_in_a_long_row(backend: Any, name: str) -> None:
    delta, x = sample((2, 1400), torch.float32)
    {"delta": delta, "x": x}[name][1, 1399] = math.nan
    with pytest.raises(ValueError, match=rf"\b{name}\b.*\b1\b"):
        backend.project_l1_box(delta, x, 1.0)
    v = backend.project_l1_box(delta, x, 1.0, check_finite=False)
    assert bool(v[0].isfinite().all())
    assert bool(v[1].isnan().all())


def test_a_frozen_row_may_hold_anything(backend: Any) -> None:
    arguments = good_arguments("recovery_step")
    arguments["image"][2, 3] = math.nan
    arguments["grad"][2, 4] = math.inf
    before = arguments["image"].clone()
    backend.recovery_step(**arguments, frozen=torch.tensor([False, False, True, False, False]))
    assert same_bits(arguments["image"][2], before[2])
