"""Cosines of gradients and counts of agreement between members, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparring.gradients import kernels

Run = Callable[..., Any]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _oracle(grads: Tensor) -> Tensor:
    """Cosines (M, M, B)."""
    unit = torch.nn.functional.normalize(grads.double(), dim=2, eps=1e-300)
    return torch.einsum("ibd,jbd->ijb", unit, unit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(1, 3, 5), (2, 1, 1), (5, 7, 33), (6, 40, 20), (3, 2, 9000), (4, 0, 8), (9, 3, 300), (19, 2, 40)]
)
def test_pairwise_cosine(run: Run, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    grads = _normal(*shape).to(dtype)
    result, right = run(kernels.pairwise_cosine, grads), _oracle(grads)
    tol = 1e-5 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(result.sum, right.sum(2), rtol=0, atol=tol * max(1, shape[1]))
    torch.testing.assert_close(result.square, (right**2).sum(2), rtol=0, atol=tol * max(1, shape[1]))
    assert torch.equal(result.sum, result.sum.t())
    assert result.sum.diagonal().tolist() == [shape[1]] * shape[0]
    assert result.zeros.tolist() == [0] * shape[0]


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(size, torch.float32) for size in (1e-42, 1e-30, 1e-20, 1.0, 1e18, 1e35)]
    + [(size, torch.float64) for size in (1e-310, 1e-200, 1e200)],
)
def test_cosines_do_not_depend_on_the_size_of_gradients(run: Run, size: float, dtype: torch.dtype) -> None:
    """Integers times the size, which is then exact enough even where it is subnormal."""
    directions = (10 * _normal(4, 3, 50)).round()
    size = float(torch.tensor(size, dtype=dtype))
    sizes = torch.tensor([size, 1.0, 1.0, min(1 / size, 1e35)], dtype=torch.float64)[:, None, None]
    result = run(kernels.pairwise_cosine, (sizes * directions).to(dtype))
    right = _oracle(directions)
    torch.testing.assert_close(result.sum, right.sum(2), rtol=0, atol=2e-6)
    torch.testing.assert_close(result.square, (right**2).sum(2), rtol=0, atol=2e-6)
    assert result.zeros.tolist() == [0] * 4


def test_constructed_gradients(run: Run) -> None:
    """The same, opposite, orthogonal and no gradients, and one that points equally along all axes, however small."""
    grads = torch.zeros(6, 2, 4)
    grads[0, :, 0] = grads[1, :, 0] = 3
    grads[1, 1] *= -2
    grads[2, :, 1] = 0.5
    grads[3, 0, 0] = 1
    grads[5] = torch.tensor([1e-42, 1e-3])[:, None]
    result = run(kernels.pairwise_cosine, grads)
    half = 0.5
    expected = torch.tensor(
        [
            [2, 0, 0, 1, 0, 1],
            [0, 2, 0, 1, 0, 0],
            [0, 0, 2, 0, 0, 1],
            [1, 1, 0, 1, 0, half],
            [0, 0, 0, 0, 0, 0],
            [1, 0, 1, half, 0, 2],
        ]
    )
    torch.testing.assert_close(result.sum, expected.double())
    squares = torch.tensor(
        [
            [2, 2, 0, 1, 0, half],
            [2, 2, 0, 1, 0, half],
            [0, 0, 2, 0, 0, half],
            [1, 1, 0, 1, 0, half**2],
            [0, 0, 0, 0, 0, 0],
            [half, half, half, half**2, 0, 2],
        ]
    )
    torch.testing.assert_close(result.square, squares.double())
    assert result.zeros.tolist() == [0, 0, 0, 1, 2, 0]
    assert run(kernels.pairwise_cosine, torch.zeros(3, 2, 0)).zeros.tolist() == [2] * 3


@pytest.mark.simt
def test_every_lane_order_gives_the_same_bits() -> None:
    import simt

    orders = [simt.SimtOps(simt.load(), seed=seed) for seed in range(4)]
    for size in (1.0, 1e-30):
        grads = (size * _normal(7, 3, 70)).float()
        first, *others = (order.call(kernels.pairwise_cosine, grads) for order in orders)
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_layouts_and_threads_give_the_same_bits() -> None:
    grads = _normal(6, 50, 40).float()
    plain = kernels.pairwise_cosine(grads)
    by_example = grads.transpose(0, 1).contiguous().transpose(0, 1)
    backwards = grads.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for other in (grads, by_example, backwards):
                assert all(torch.equal(a, b) for a, b in zip(plain, kernels.pairwise_cosine(other), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_are_named(bad: float) -> None:
    grads = torch.ones(3, 4, 5)
    grads[2, 1, 3] = bad
    with pytest.raises(ValueError, match="grads has NaN or inf, first of member 2 at example 1"):
        kernels.pairwise_cosine(grads)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"grads must be float32 or float64 of shape \(M, B, D\)"):
        kernels.pairwise_cosine(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"got torch\.float16"):
        kernels.pairwise_cosine(torch.ones(3, 4, 5, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"answers must be bool of shape \(M, N\); got torch.int64 \(2, 2\)"):
        kernels.agreement_counts(torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (4, 63), (4, 64), (5, 65), (7, 1000), (2, 20_000), (0, 5)])
def test_agreement_counts(run: Run, shape: tuple[int, int]) -> None:
    answers = _normal(*shape) > -0.5
    counts = run(kernels.agreement_counts, answers)
    assert counts.dtype is torch.int64
    assert torch.equal(counts, (answers.double() @ answers.double().t()).long())
    assert torch.equal(run(kernels.agreement_counts, answers.t().contiguous().t()), counts)


@given(st.integers(0, 4), st.integers(0, 200), st.integers(0, 99))
def test_packed_bits(members: int, count: int, seed: int) -> None:
    answers = _normal(members, count, seed=seed) > 0
    bits = kernels.packed_bits(answers)
    assert bits.shape == (members, -(-count // 64))
    whole = [[bool(word >> i & 1) for word in row.tolist() for i in range(64)] for row in bits.numpy().view(np.uint64)]
    assert [row[:count] for row in whole] == answers.tolist()
    assert not any(any(row[count:]) for row in whole)
