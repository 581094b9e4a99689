"""Kernels of certified norms, on every backend: against float64 linear algebra, exact fractions, and to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, float32, float64

from sparring.lipschitz import kernels

Run = Callable[..., Any]
UNIT = Fraction(1, 2**53)
SMALLEST = Fraction(5e-324)
DTYPES = [float32, float64]
SIZES = [1, 2, 3, 4, 5, 8, 9, 16, 31, 32, 33, 40, 65]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def _gram(count: int, size: int, seed: int = 0) -> Tensor:
    factors = _normal(count, size, size + 3, seed=seed)
    return factors @ factors.mT


def _lags(count: int, size: int) -> Tensor:
    """P and Q from random R_l: R_l + R_l^T and R_l - R_l^T, R_0 and 0 for the first."""
    r = _normal(count, size, size)
    lags = torch.stack([r + r.mT, r - r.mT], 1)
    lags[:1] = torch.stack([lags[:1, 0] / 2, torch.zeros_like(lags[:1, 1])], 1)
    return lags


def _twiddles(frequencies: int, lags: int) -> Tensor:
    angles = 3 * _normal(frequencies, lags, seed=1)
    return torch.stack([angles.cos(), angles.sin()], 2)


# --- symbols ----------------------------------------------------------------------------------------------------------

SYMBOLS = [(1, 1, 1), (2, 3, 5), (3, 7, 9), (5, 0, 2), (9, 5, 6), (20, 4, 3), (33, 2, 1), (4, 3, 0)]  # n, L, F


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "count", "frequencies"), SYMBOLS)
def test_symbols(run: Run, size: int, count: int, frequencies: int, dtype: torch.dtype) -> None:
    lags, twiddles = _lags(count, size).to(dtype), _twiddles(frequencies, count).to(dtype)
    symbol = run(kernels.symmetric_symbol, lags, twiddles)
    even = torch.einsum("fl,lij->fij", twiddles[:, :, 0].double(), lags[:, 0].double())
    odd = torch.einsum("fl,lij->fij", twiddles[:, :, 1].double(), lags[:, 1].double())
    right = torch.cat([torch.cat([even, -odd], 2), torch.cat([odd, even], 2)], 1)
    torch.testing.assert_close(symbol, right.to(dtype), rtol=0, atol=3e-5 if dtype is float32 else 1e-13)
    assert torch.equal(symbol, symbol.mT)


def test_eigenvalues_are_squared_singular_values_of_a_convolution(run: Run) -> None:
    """Of the circular convolution of length N by a kernel of five taps: each squared singular value twice."""
    taps, outputs, inputs, length = 5, 3, 4, 7
    kernel = _normal(taps, outputs, inputs)
    lag = [sum(kernel[d + k] @ kernel[d].t() for d in range(taps - k)) for k in range(taps)]
    lags = torch.stack([torch.stack([r + r.t(), r - r.t()]) for r in lag])
    lags[0] = torch.stack([lag[0], torch.zeros_like(lag[0])])
    angles = 2 * math.pi / length * torch.outer(torch.arange(length), torch.arange(taps)).double()
    symbol = run(kernels.symmetric_symbol, lags, torch.stack([angles.cos(), angles.sin()], 2))
    operator = torch.zeros(length, outputs, length, inputs, dtype=float64)
    for x in range(length):
        for d in range(taps):
            operator[(x + d) % length, :, x] += kernel[d]
    squares = torch.linalg.svdvals(operator.flatten(2).flatten(0, 1)).square()
    eigenvalues = torch.linalg.eigvalsh(symbol).flatten().sort().values
    torch.testing.assert_close(eigenvalues, squares.sort().values.repeat_interleave(2))


def test_error_of_a_symbol_is_as_stated(run: Run) -> None:
    size, count = 2, 25
    lags, twiddles = _lags(count, size), _twiddles(3, count)
    symbol = run(kernels.symmetric_symbol, lags, twiddles)
    gamma = (count + 1) * UNIT / (1 - (count + 1) * UNIT)
    for f, part, i, j in product(range(3), range(2), range(size), range(size)):
        factors = zip(twiddles[f, :, part].tolist(), lags[:, part, i, j].tolist(), strict=True)
        terms = [Fraction(a) * Fraction(b) for a, b in factors]
        error = abs(Fraction(float(symbol[f, part * size + i, j])) - sum(terms))
        assert error <= gamma * sum(map(abs, terms))


def test_nan_stays_in_its_entries_and_frequencies(run: Run) -> None:
    lags, twiddles = _lags(3, 5), _twiddles(4, 3)
    lags[1, 0, 2, 3] = torch.nan
    twiddles[2, 0, 1] = torch.inf
    bad = run(kernels.symmetric_symbol, lags, twiddles).isfinite().logical_not()
    expected = torch.zeros(4, 10, 10, dtype=torch.bool)
    expected[:, 2, 3] = expected[:, 7, 8] = True
    expected[2, :5, 5:] = expected[2, 5:, :5] = True  # inf times the zeros of the first Q
    assert torch.equal(bad, expected)


# --- eigenpairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17, 33])
def test_top_eigenpair(run: Run, size: int, dtype: torch.dtype) -> None:
    matrices = _gram(3, size).to(dtype)
    tol = 1e-3 if dtype is float32 else 1e-8
    found = run(kernels.top_eigenpair, matrices, tol=tol)
    top = torch.linalg.eigvalsh(matrices.double())[:, -1]
    exact = 1e-5 if dtype is float32 else 1e-13
    assert ((found.value - top).abs() <= exact * top).all()
    assert (found.residual <= tol * found.value).all()
    assert (found.steps < 200).all()
    x = found.vector.double()
    torch.testing.assert_close(x.norm(dim=1), torch.ones(3, dtype=float64), rtol=0, atol=exact)
    residual = (torch.einsum("fij,fj->fi", matrices.double(), x) - found.value[:, None] * x).norm(dim=1)
    assert ((found.residual - residual).abs() <= exact * top).all()


def _special() -> dict[str, Tensor]:
    direction = torch.tensor([1.0, -2, 3, 0, 5], dtype=float64)
    rotation = torch.linalg.qr(_normal(5, 5)).Q
    return {
        "zero": torch.zeros(5, 5, dtype=float64),
        "rank one": torch.outer(direction, direction),
        "identity": torch.eye(5, dtype=float64),
        "repeated": rotation @ torch.diag(torch.tensor([3.0, 3, 3, 1, 0], dtype=float64)) @ rotation.t(),
        "negative": -_gram(1, 5)[0],
        "larger below zero": torch.diag(torch.tensor([-9.0, 1, 2, 0, 1], dtype=float64)),
        "tiny": 1e-100 * _gram(1, 5)[0],
        "huge": 1e99 * _gram(1, 5)[0],
    }


@pytest.mark.parametrize("name", list(_special()))
def test_top_eigenpair_of_special_matrices(run: Run, name: str) -> None:
    matrix = _special()[name]
    matrix = (matrix + matrix.t()) / 2
    found = run(kernels.top_eigenpair, matrix[None], tol=1e-10)
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert float(found.value) == pytest.approx(top, rel=1e-13, abs=1e-14 * float(matrix.abs().max()))
    assert float(found.residual) <= 1e-10 * abs(top)
    assert float(found.vector.norm()) == pytest.approx(1, abs=1e-14)
    assert int(found.steps) <= 30


def test_top_eigenpair_from_a_start(run: Run) -> None:
    matrices = _gram(3, 9)
    values, vectors = torch.linalg.eigh(matrices)
    near = vectors[:, :, -1] + 1e-5 * _normal(3, 9)
    cold, warm = (run(kernels.top_eigenpair, matrices, start) for start in (None, near))
    assert (warm.steps < cold.steps).all()
    torch.testing.assert_close(warm.value, values[:, -1], rtol=1e-13, atol=0)
    start = _normal(9)
    none = run(kernels.top_eigenpair, matrices, start, steps=0)
    quotient = torch.einsum("i,fij,j->f", start, matrices, start) / start.square().sum()
    torch.testing.assert_close(none.value, quotient, rtol=1e-13, atol=0)
    assert none.steps.tolist() == [0, 0, 0]
    ones = run(kernels.top_eigenpair, matrices, torch.zeros(9, dtype=float64), steps=0)
    torch.testing.assert_close(ones.value, matrices.sum((1, 2)) / 9, rtol=1e-13, atol=0)


def test_top_eigenpair_of_nan(run: Run) -> None:
    matrices = _gram(3, 6)
    matrices[0, 2, 1] = torch.nan
    matrices[2, 5, 5] = torch.inf
    found = run(kernels.top_eigenpair, matrices)
    assert found.value.isfinite().tolist() == [False, True, False]
    assert found.steps.tolist()[::2] == [0, 0]


# --- the certificate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_positive_definite_to_a_hair(run: Run, size: int) -> None:
    matrices = _gram(3, size)
    before = matrices.clone()
    top = torch.linalg.eigvalsh(matrices)[:, -1]
    for factor in (0.5, 1 - 1e-10, 1 + 1e-10, 2):
        assert run(kernels.positive_definite, matrices, factor * top).tolist() == [factor > 1] * 3
    shifts = torch.tensor([0.9, 1.1, 0.999999], dtype=float64) * top
    assert run(kernels.positive_definite, matrices, shifts).tolist() == [False, True, False]
    assert torch.equal(matrices, before)
    single = run(kernels.positive_definite, matrices.float(), (1.0001 * top).float())
    assert single.tolist() == [True] * 3
    assert not run(kernels.positive_definite, matrices.float(), (0.9999 * top).float()).any()


@pytest.mark.parametrize("size", [1, 3, 8, 37])
def test_positive_definite_at_the_extremes(run: Run, size: int) -> None:
    gram = _gram(1, size)
    top = torch.linalg.eigvalsh(gram)[:, -1]
    for scale in (1e-150, 1e150):
        assert run(kernels.positive_definite, scale * gram, scale * top * 1.001).tolist() == [True]
        assert run(kernels.positive_definite, scale * gram, scale * top * 0.999).tolist() == [False]
    zeros = torch.zeros(4, size, size, dtype=float64)
    shifts = torch.tensor([0.0, 5e-324, -1.0, 1e308], dtype=float64)
    assert run(kernels.positive_definite, zeros, shifts).tolist() == [False, True, False, True]
    one = torch.ones(1, dtype=float64)
    assert run(kernels.positive_definite, torch.eye(size, dtype=float64)[None], one).tolist() == [False]
    assert run(kernels.positive_definite, -gram, 0 * one).tolist() == [True]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_positive_definite_of_what_is_not_finite(run: Run, bad: float) -> None:
    size = 11
    places = [(0, 0), (0, 10), (3, 4), (8, 9), (9, 9), (10, 10), (2, 8)]
    matrices = _gram(1, size).repeat(len(places), 1, 1)
    shift = torch.full((len(places),), 1e3, dtype=float64)
    assert run(kernels.positive_definite, matrices, shift).all()
    below = matrices.clone()
    for matrix, other, (i, j) in zip(matrices, below, places, strict=True):
        matrix[i, j] = bad
        other[j, i] = bad if i < j else other[j, i]
    assert not run(kernels.positive_definite, matrices, shift).any()
    assert run(kernels.positive_definite, below, shift).all()  # which is not read
    assert not run(kernels.positive_definite, below, torch.full_like(shift, bad)).any()


def _is_positive_definite(matrix: list[list[Fraction]]) -> bool:
    """By exact elimination."""
    rows = [list(row) for row in matrix]
    for k in range(len(rows)):
        if rows[k][k] <= 0:
            return False
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return True


@given(st.integers(1, 6), st.integers(0, 10**6), st.integers(-3, 3))
def test_certificate_is_a_proof(size: int, seed: int, hairs: int) -> None:
    """True means that the shift, with the terms for rounding, is above every eigenvalue: in exact arithmetic."""
    matrix = _normal(size, size, seed=seed)
    matrix = matrix + matrix.t()
    shift = torch.linalg.eigvalsh(matrix)[-1:] * (1 + hairs * 2.0**-52)
    definite = bool(kernels.positive_definite(matrix[None], shift))
    g = [[Fraction(x) for x in row] for row in matrix.tolist()]
    c = Fraction(float(shift))
    diagonal = [abs(c - g[i][i]) for i in range(size)]
    gamma = (size + 3) * UNIT / (1 - (size + 3) * UNIT)
    room = c + gamma / (1 - gamma) * (1 + UNIT) * sum(diagonal) + UNIT * max(diagonal)

    def shifted(by: Fraction) -> list[list[Fraction]]:
        return [[(by if i == j else 0) - g[i][j] for j in range(size)] for i in range(size)]

    if definite:
        assert _is_positive_definite(shifted(room))
    else:
        assert not _is_positive_definite(shifted(c - (room - c)))


def test_scratch_memory_is_used_in_turns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device some matrices at a time, where the memory does not do for all."""
    monkeypatch.setattr(kernels, "_SCRATCH", 3 * 1024 * 8)
    matrices = _gram(7, 5)
    factors = torch.tensor([0.9, 1.1, 1.1, 0.9, 0.9, 0.9, 1.1], dtype=float64)
    shift = factors * torch.linalg.eigvalsh(matrices)[:, -1]
    assert run(kernels.positive_definite, matrices, shift).tolist() == (factors > 1).tolist()


# --- sums for rounding errors -----------------------------------------------------------------------------------------


def _check_sums(run: Run, rows: Tensor) -> None:
    result = run(kernels.absolute_sums, rows)
    n = rows.shape[1]
    share = 1 + (4 * n + 40) * UNIT
    for row, sums, squares in zip(rows.tolist(), result.sums.tolist(), result.squares.tolist(), strict=True):
        exact = [abs(Fraction(x)) for x in row]
        assert sum(exact) <= Fraction(sums) <= share * sum(exact)
        total = sum(x * x for x in exact)
        assert total <= Fraction(squares) <= share * total + 2 * (n + 2) * SMALLEST


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 1), (2, 7), (4, 100), (1, 3000), (0, 5), (3, 0)])
def test_absolute_sums(run: Run, shape: tuple[int, int], dtype: torch.dtype) -> None:
    _check_sums(run, _normal(*shape).to(dtype))


@given(st.lists(st.floats(-1e150, 1e150, allow_subnormal=True), min_size=1, max_size=30))
def test_sums_are_bounds_of_any_numbers(numbers: list[float]) -> None:
    _check_sums(lambda kernel, rows: kernel(rows), torch.tensor([numbers], dtype=float64))


def test_sums_are_bounds_where_every_rounding_is_down(run: Run) -> None:
    """A large number first, then many that its sum rounds away; and squares that underflow."""
    _check_sums(run, torch.tensor([[1.0] + 999 * [2.0**-54]], dtype=float64))
    _check_sums(run, torch.tensor([[1.0] + 999 * [2.0**-27]], dtype=float64))
    _check_sums(run, torch.full((1, 1000), 1.4e-162, dtype=float64))
    _check_sums(run, torch.tensor([[1e-310, -5e-324, 1e-160]], dtype=float64))


def test_sums_of_what_is_not_finite(run: Run) -> None:
    rows = torch.ones(4, 40, dtype=float64)
    rows[0, 3], rows[1, 5], rows[2, 0] = torch.nan, -torch.inf, 1e200
    result = run(kernels.absolute_sums, rows)
    assert [str(x) for x in result.sums.tolist()[:2]] == ["nan", "inf"]
    assert [str(x) for x in result.squares.tolist()[:3]] == ["nan", "inf", "inf"]
    assert result.sums[3] >= 40


# --- all of them ------------------------------------------------------------------------------------------------------


def _everything() -> list[tuple[Any, ...]]:
    gram = _gram(3, 17)
    shift = torch.tensor([0.9, 1.1, 0.999], dtype=float64) * torch.linalg.eigvalsh(gram)[:, -1]
    return [
        (kernels.symmetric_symbol, _lags(4, 7), _twiddles(3, 4)),
        (kernels.top_eigenpair, gram, _normal(3, 17, seed=3)),
        (kernels.positive_definite, gram, shift),
        (kernels.absolute_sums, _normal(3, 300)),
    ]


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def test_bits_depend_on_neither_threads_nor_batch(run: Run) -> None:
    before = torch.get_num_threads()
    try:
        for kernel, first, *others in _everything():
            torch.set_num_threads(1)
            whole = _tensors(run(kernel, first, *others))
            torch.set_num_threads(3)
            assert all(map(torch.equal, whole, _tensors(run(kernel, first, *others))))
            for i in range(3):  # one frequency, matrix or row by itself
                alone = (
                    run(kernel, first, others[0][i : i + 1])
                    if kernel is kernels.symmetric_symbol
                    else run(kernel, first[i : i + 1], *(other[i : i + 1] for other in others))
                )
                assert all(torch.equal(a[i : i + 1], b) for a, b in zip(whole, _tensors(alone), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.simt
def test_every_lane_order_gives_the_same_bits() -> None:
    import simt

    orders = [simt.SimtOps(simt.load(), seed=seed) for seed in range(3)]
    large = (kernels.positive_definite, _gram(1, 40), torch.full((1,), 1e3, dtype=float64))
    for kernel, *args in [*_everything(), large]:
        first, *others = (_tensors(order.call(kernel, *args)) for order in orders)
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_strided_arguments(run: Run) -> None:
    for kernel, *args in _everything():
        spread = [torch.stack([arg, torch.zeros_like(arg)], -1)[..., 0] for arg in args]
        assert all(map(torch.equal, _tensors(run(kernel, *args)), _tensors(run(kernel, *spread))))


def test_nothing_of_nothing(run: Run) -> None:
    none = torch.zeros(0, 4, 4, dtype=float64)
    assert run(kernels.positive_definite, none, none[:, 0, 0]).shape == (0,)
    found = run(kernels.top_eigenpair, none)
    assert (found.value.shape, found.vector.shape) == ((0,), (0, 4))


M, S = torch.ones(2, 3, 3), torch.ones(2)
WRONG: list[tuple[Any, tuple[Any, ...], str]] = [
    (kernels.symmetric_symbol, (torch.ones(2, 2, 3), torch.ones(4, 2, 2)), r"lags must be float32 or float64 of shape"),
    (kernels.symmetric_symbol, (torch.ones(2, 3, 3, 3), torch.ones(4, 2, 2)), r"lags must have shape \(L, 2, n, n\)"),
    (kernels.symmetric_symbol, (torch.ones(2, 2, 3, 4), torch.ones(4, 2, 2)), r"got \(2, 2, 3, 4\)"),
    (kernels.symmetric_symbol, (torch.ones(2, 2, 0, 0), torch.ones(4, 2, 2)), "n >= 1"),
    (kernels.symmetric_symbol, (torch.ones(2, 2, 3, 3), torch.ones(4, 3, 2)), r"twiddles must have shape \(F, 2, 2\)"),
    (kernels.symmetric_symbol, (torch.ones(2, 2, 3, 3), torch.ones(4, 2, 2).double()), "twiddles is torch.float64"),
    (kernels.absolute_sums, (torch.ones(3),), r"matrix must be .* of shape \(rows, n\); got torch.float32 \(3,\)"),
    (kernels.absolute_sums, (torch.ones(3, 3, dtype=torch.int64),), "got torch.int64"),
    (kernels.absolute_sums, (torch.ones(3, 3, device="meta"),), "matrix is on device 'meta'"),
    (kernels.top_eigenpair, (torch.ones(3, 3),), r"matrices must be .* of shape \(F, m, m\)"),
    (kernels.top_eigenpair, (torch.ones(2, 3, 4),), r"matrices must have shape \(F, m, m\), m >= 1; got \(2, 3, 4\)"),
    (kernels.top_eigenpair, (torch.ones(2, 0, 0),), "m >= 1"),
    (kernels.top_eigenpair, (M, torch.ones(3, 2)), r"start must have shape \(2, 3\) or \(3,\); got \(3, 2\)"),
    (kernels.top_eigenpair, (M, torch.ones(3).double()), "start is torch.float64 on 'cpu', but matrices torch.float32"),
    (kernels.top_eigenpair, (M, None, -1), "steps and tol are -1 and 1e-09; accepted: numbers >= 0"),
    (kernels.top_eigenpair, (M, None, 9, math.nan), "steps and tol are 9 and nan"),
    (kernels.positive_definite, (M.half(), S.half()), "got torch.float16"),
    (kernels.positive_definite, (M, torch.ones(3)), r"shift must have shape \(2,\), one number a matrix; got \(3,\)"),
    (kernels.positive_definite, (M, S.double()), "shift is torch.float64"),
    (kernels.positive_definite, (M, S.to("meta")), "shift is torch.float32 on 'meta'"),
]


@pytest.mark.parametrize(("kernel", "args", "message"), WRONG)
def test_other_arguments_are_refused(kernel: Any, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel(*args)
