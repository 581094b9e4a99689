"""Memory layouts: strided rows, views, broadcast inputs, outputs given, and in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import DTYPES, same_bits, sample
from torch import Tensor

EPS, SIZE, K = 1.5, 0.5, 7


def strided_rows(t: Tensor) -> Tensor:
    return t.repeat_interleave(2, 0)[::2]


def slice_of_wider(t: Tensor) -> Tensor:
    wide = torch.full((t.shape[0], t[:1].numel() + 5), 9.0, dtype=t.dtype)
    wide[:, 3:-2] = t.flatten(1)
    return wide[:, 3:-2]


def transposed(t: Tensor) -> Tensor:
    return t.flatten(1).T.contiguous().T


def strided_columns(t: Tensor) -> Tensor:
    return t.flatten(1).repeat_interleave(2, 1)[:, ::2]


def channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [strided_rows, slice_of_wider, transposed, strided_columns, channels_last]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("which", ["delta", "grad", "x", "all"])
def test_inputs_in_any_layout(backend: Any, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], which: str) -> None:
    delta, x = sample((4, 3, 5, 6), dtype)
    grad, _ = sample((4, 3, 5, 6), dtype, seed=1)
    shape = layout(delta).shape
    plain = {"delta": delta.reshape(shape), "grad": grad.reshape(shape), "x": x.reshape(shape)}
    laid = {name: layout(t.reshape(4, 3, 5, 6)) if which in (name, "all") else t for name, t in plain.items()}
    assert any(not t.is_contiguous() for t in laid.values())
    for name in laid:
        assert same_bits(laid[name], plain[name])
    d, g, p = laid.values()
    if which != "grad":
        v = backend.project_l1_box(d, p, EPS)
        assert same_bits(v, backend.project_l1_box(plain["delta"], plain["x"], EPS))
        v = backend.project_l0_box(d, p, K, channels=3)
        assert same_bits(v, backend.project_l0_box(plain["delta"], plain["x"], K, channels=3))
    v = backend.l1_step(d, g, p, EPS, SIZE, K)
    assert same_bits(v, backend.l1_step(plain["delta"], plain["grad"], plain["x"], EPS, SIZE, K))
    for name in laid:
        assert same_bits(laid[name], plain[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast_inputs(backend: Any, dtype: torch.dtype) -> None:
    delta, x = sample((4, 100), dtype)
    grad, _ = sample((4, 100), dtype, seed=1)
    one_point, one_number = x[:1].expand(4, 100), torch.tensor([[0.5]], dtype=dtype).expand(4, 100)
    for p in (one_point, one_number):
        v = backend.project_l1_box(delta, p, EPS)
        assert same_bits(v, backend.project_l1_box(delta, p.contiguous(), EPS))
        v = backend.project_l0_box(delta, p, K)
        assert same_bits(v, backend.project_l0_box(delta, p.contiguous(), K))
        v = backend.l1_step(delta, grad[:1].expand(4, 100), p, EPS, SIZE, K)
        assert same_bits(v, backend.l1_step(delta, grad[:1].repeat(4, 1), p.contiguous(), EPS, SIZE, K))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_given(backend: Any, dtype: torch.dtype) -> None:
    delta, x = sample((4, 1, 9, 9), dtype)
    grad, _ = sample((4, 1, 9, 9), dtype, seed=1)
    out = torch.full_like(delta, 7.0)
    assert backend.project_l1_box(delta, x, EPS, out=out) is out
    assert same_bits(out, backend.project_l1_box(delta, x, EPS))
    assert backend.project_l0_box(delta, x, K, out=out) is out
    assert same_bits(out, backend.project_l0_box(delta, x, K))
    assert backend.l1_step(delta, grad, x, EPS, SIZE, K, out=out) is out
    assert same_bits(out, backend.l1_step(delta, grad, x, EPS, SIZE, K))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 0.5, 1e6])
def test_in_place(backend: Any, dtype: torch.dtype, eps: float) -> None:
    delta, x = sample((4, 200), dtype)
    grad, _ = sample((4, 200), dtype, seed=1)
    projected, stepped = backend.project_l1_box(delta, x, eps), backend.l1_step(delta, grad, x, eps, SIZE, K)
    a, b = delta.clone(), delta.clone()
    assert backend.project_l1_box(a, x, eps, out=a) is a
    assert same_bits(a, projected)
    assert backend.l1_step(b, grad, x, eps, SIZE, K, out=b) is b
    assert same_bits(b, stepped)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 4])
def test_sparse_projection_in_place(backend: Any, dtype: torch.dtype, channels: int) -> None:
    delta, x = sample((4, 200), dtype)
    for k in (0, 7, 1000):
        projected, a = backend.project_l0_box(delta, x, k, channels=channels), delta.clone()
        assert backend.project_l0_box(a, x, k, channels=channels, out=a) is a
        assert same_bits(a, projected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [strided_rows, slice_of_wider], ids=lambda f: f.__name__)
def test_recovery_step_on_strided_rows(backend: Any, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    grad, image = sample((4, 60), dtype)
    a, b = image.clone(), layout(image)
    moments_a, moments_b = ([torch.zeros_like(image) for _ in range(2)] for _ in range(2))
    mask = torch.arange(60) % 3 > 0
    for step in (1, 2):
        shared = {"lr": 0.1, "lam": 3.0, "floor": 0.05, "step": step, "mask": mask}
        backend.recovery_step(a, grad, exp_avg=moments_a[0], exp_avg_sq=moments_a[1], **shared)
        backend.recovery_step(b, layout(grad), exp_avg=moments_b[0], exp_avg_sq=moments_b[1], **shared)
    for mine, theirs in zip([b, *moments_b], [a, *moments_a], strict=True):
        assert same_bits(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [strided_rows, slice_of_wider], ids=lambda f: f.__name__)
def test_sparse_pgd_step_on_strided_rows(backend: Any, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    grad, x = sample((4, 60), dtype)
    values, mask = x - 0.5, grad[:, :20].flip(1).contiguous()
    strided = [layout(t.clone()) for t in (values, mask)]
    for step in (1, 2):
        sizes = {"step_size": 0.2 * step, "mask_step": 1.0, "channels": 3}
        plain = backend.sparse_pgd_step(values, mask, grad, x, 4, **sizes)
        assert same_bits(backend.sparse_pgd_step(*strided, layout(grad), layout(x), 4, **sizes), plain)
    for mine, theirs in zip(strided, (values, mask), strict=True):
        assert same_bits(mine, theirs)


def test_what_lies_between_strided_rows_is_not_written(backend: Any) -> None:
    wide = torch.full((6, 40), 0.5)
    grad = torch.ones(3, 20)
    backend.recovery_step(wide[::2, 10:30], grad, lr=0.25, lam=0.0)
    written = torch.zeros(6, 40, dtype=torch.bool)
    written[::2, 10:30] = True
    assert bool((wide[written] == 0.25).all())
    assert bool((wide[~written] == 0.5).all())
