"""Numbers of every size and kind, and arrays of no size."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from checks import same_bits, sample
from torch import Tensor
from unusual import ARRAYS, COLUMNS, REFUSED, ROWS, good, run

from sparring import ops, reference

# Numbers of every size and kind: the plain number they stand for, or None where they are refused.
NUMBERS: list[tuple[str, str, Any, Any]] = [
    *(("project_l1_box", "eps", value, like) for value, like in (
        (1e39, math.inf), (2**70, math.inf), (math.inf, math.inf), (-0.0, 0.0), (1, 1.0), (Fraction(1, 2), 0.5),
        (Decimal("0.5"), 0.5), (np.float32(0.5), 0.5), (np.float16(0.5), 0.5), (np.longdouble(0.5), 0.5),
        (np.int8(1), 1.0), (np.array(0.5), 0.5), (torch.tensor(0.5), 0.5), (torch.tensor(1), 1.0),
        (np.full(ROWS, 0.5, ">f8"), 0.5),
        (np.ones(ROWS, np.uint8), 1.0), (np.ones(ROWS, np.uint64), 1.0),
        (10**400, None), (Fraction(10**400), None), (math.nan, None), (Decimal("nan"), None), (-1, None), (True, None),
        (np.True_, None), ("1", None), (np.str_("1"), None), (1 + 0j, None), (None, None), ([1.0] * ROWS, None),
        (np.datetime64("2020"), None), (torch.tensor(True), None), (torch.tensor(1 + 0j), None),
        (np.ones(ROWS, bool), None), (np.ones(ROWS, complex), None), (np.ones(ROWS, np.longdouble), None),
        (torch._efficientzerotensor(()), None), (torch.tensor(1.0, device="meta"), None),
    )),
    *(("l1_step", "k", value, like) for value, like in (
        (2**70, COLUMNS), (10**400, COLUMNS), (2**63, COLUMNS), (2**63 - 1, COLUMNS), (np.uint64(2**64 - 1), COLUMNS),
        (np.full(ROWS, 2**64 - 1, np.uint64), COLUMNS), (np.int16(2), 2), (torch.tensor(2), 2), (Fraction(1, 4), 2),
        (np.float32(0.25), 2), (Decimal("0.25"), 2), (torch.tensor([0.25] * ROWS), 2),
        (0, None), (-(2**70), None), (True, None), (2.0, None), (math.nan, None), (-0.0, None), (Fraction(5, 2), None),
        (torch.tensor(2, device="meta"), None),
    )),
    *(("project_l0_box", "k", value, like) for value, like in (
        (2**70, COLUMNS), (np.uint64(2**64 - 1), COLUMNS), (np.int16(2), 2), (0, 0), (np.zeros(ROWS, np.int8), 0),
        (Fraction(1, 4), 2), (torch.tensor([0.25] * ROWS), 2), (-1, None), (True, None), (2.0, None), (0.0, None),
        (math.nan, None), ("1", None), ([1] * ROWS, None),
    )),
    *(("l1_step", "step_size", value, like) for value, like in (
        (1e39, 1e30), (1e300, 1e30), (2**70, 1e30), (-0.0, 0.0),
        (torch.full((ROWS,), 1e300, dtype=torch.float64), 1e30), (math.inf, None), (10**400, None), (True, None),
    )),
    *(("sparse_pgd_step", "k", value, like) for value, like in (
        (2**70, COLUMNS), (0, 0), (np.int16(2), 2), (Fraction(1, 4), 2), (-1, None), (True, None), (2.0, None),
    )),
    *(("sparse_pgd_step", name, value, like) for name in ("step_size", "mask_step") for value, like in (
        (-0.0, 0.0), (Fraction(1, 2), 0.5), (np.float32(0.5), 0.5), (math.inf, None), (-1, None),
        (True, None), (10**400, None),
    )),
    ("sparse_pgd_step", "step_size", 1e39, 1e38),
    *(("recovery_step", "step", value, like) for value, like in (
        (2**70, 10**9), (np.int64(3), 3), (torch.tensor(3), 3), (0, None), (True, None), (1.5, None),
        ("1", None), (-(2**70), None),
    )),
    *(("recovery_step", name, value, None) for name in ("lr", "lam")
      for value in (math.inf, math.nan, -1, True, 10**400)),
    *(("recovery_step", "black", value, None) for value in (1e39, math.inf, math.nan, True, 10**400)),
    *(("recovery_step", "bounds", value, None)
      for value in ((1e39, 2e39), (-2e39, -1e39), (True, 2), ("0", 1), (0, 10**400))),
    ("recovery_step", "black", np.float32(0.25), 0.25),
    ("recovery_step", "bounds", (torch.tensor(0.0), np.float32(0.5)), (0.0, 0.5)),
    ("recovery_step", "bounds", (0, 1e39), (0.0, math.inf)),
    ("recovery_step", "betas", (Fraction(1, 2), np.float32(0.25)), (0.5, 0.25)),
    ("recovery_step", "betas", 0.9, None),
    ("recovery_step", "floor", 1e39, math.inf),
    ("recovery_step", "adam_eps", 2**70, float(2**70)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "name", "value", "like"), NUMBERS, ids=[f"{n[0]}-{n[1]}-{str(n[2])[:20]}" for n in NUMBERS]
)
def test_numbers_of_every_size_and_kind(op: str, name: str, value: Any, like: Any) -> None:
    arguments = good(op) | {name: value}
    if like is None:
        with pytest.raises(REFUSED, match=rf"\b{name}\b"):
            run(op, arguments)
        return
    want, got = run(op, good(op) | {name: like}), run(op, arguments)
    for key, tensor in want.items():
        assert same_bits(got[key], tensor)


@pytest.mark.parametrize("penalty", ["subgradient", "prox"])
@pytest.mark.parametrize("adam", [False, True], ids=["plain", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "numbers",
    [
        {"lr": 1e39, "lam": 0.0},
        {"lr": 1e39, "lam": 1e39},
        {"lr": 1e-39, "lam": 1e40},
        {"lr": 0.0, "lam": 1e39},
        {"lr": 1e38, "lam": 1.0},
        {
            "lr": torch.tensor([1e39, 0.1, 0.0], dtype=torch.float64),
            "lam": torch.tensor([0.0, 1e39, 1e300], dtype=torch.float64),
        },
        {"lr": 1e39, "lam": 1e-3, "adam_eps": 1e39},
        {"lr": 0.1, "lam": 0.1, "adam_eps": 1e-60},
        {"lr": 1e300, "lam": 0.0, "adam_eps": 1e-60},
    ],
    ids=str,
)
def test_steps_beyond_float32_are_right(numbers: dict[str, Any], dtype: torch.dtype, adam: bool, penalty: str) -> None:
    """With a gradient of 0 in some places, which moves nothing however long the step is."""
    _, image = sample((ROWS, COLUMNS), dtype)
    image[:, ::3] = 0.0
    grad = torch.randn(ROWS, COLUMNS, dtype=dtype, generator=torch.Generator().manual_seed(0))
    grad[:, ::2] = 0
    moments = {"exp_avg": torch.zeros_like(image), "exp_avg_sq": torch.zeros_like(image)} if adam else {}
    want, *_ = reference.recovery_step(image, grad, penalty=penalty, **moments, **numbers)
    got = ops.recovery_step(image.clone(), grad, penalty=penalty, **moments, **numbers)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


def test_the_two_forces_of_an_endless_step() -> None:
    """Both the step and the threshold beyond float32: the larger of gradient and penalty has its way."""
    grad = torch.tensor([[2.0, -2.0, 0.5, -0.5]])
    image = torch.full((1, 4), 0.5)
    ops.recovery_step(image, 1e30 * grad, lr=1e30, lam=4e30, penalty="prox")
    assert image.tolist() == [[0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (0, 0), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("op", ARRAYS)
def test_nothing_to_do(op: str, shape: tuple[int, ...]) -> None:
    arguments = {k: v.new_zeros(shape) if isinstance(v, Tensor) else v for k, v in good(op).items()}
    for tensor in run(op, arguments).values():
        assert tensor.shape == shape
