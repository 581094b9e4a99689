"""The fused step of the recovery of fooling images, against the float64 reference and torch's own Adam."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import DTYPES, SHAPES, flat, generator, same_bits, sample, unit
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparring import reference

PENALTIES = ("subgradient", "prox")


def moments_like(image: Tensor) -> dict[str, Tensor]:
    rng = generator(11)
    first = 0.1 * torch.randn(image.shape, generator=rng, dtype=torch.float64)
    second = 0.1 * torch.rand(image.shape, generator=rng, dtype=torch.float64)
    return {"exp_avg": first.to(image.dtype), "exp_avg_sq": second.to(image.dtype)}


def step_checked(backend: Any, image: Tensor, grad: Tensor, **options: Any) -> Tensor:
    """One step in place on copies, compared with the reference; returns the new image.

    Tolerance: 32 roundoffs of the largest quantity in the row's arithmetic, for about a dozen rounded operations.
    An entry within that distance of `floor` may fall on either side of it.
    """
    moments = {name: options.pop(name, None) for name in ("exp_avg", "exp_avg_sq")}
    want, *want_moments = reference.recovery_step(image, grad, **moments, **options)
    unfloored = reference.recovery_step(image, grad, **moments, **{**options, "floor": 0.0})[0]
    got = image.clone()
    held = {name: None if t is None else t.clone() for name, t in moments.items()}
    result = backend.recovery_step(got, grad.clone(), **held, **options)
    assert result is got, "it works in place and returns its image"
    assert got.dtype == image.dtype

    scale = max([1.0, *(t.abs().max().item() for t in (image, grad, unfloored) if t.numel())])
    slack = 32 * unit(image.dtype) * scale
    black, floor = options.get("black", 0.0), options.get("floor", 0.0)
    near_floor = ((unfloored - black).abs() - floor).abs() <= slack
    close = (got.double() - want).abs() <= slack
    either = near_floor & ((got == black) | ((got.double() - unfloored).abs() <= slack))
    assert bool((close | either).all()), f"off by {(got.double() - want).abs().max().item():.3g}, {slack:.3g} allowed"
    for mine, theirs in zip(held.values(), want_moments, strict=True):
        if mine is not None:
            assert bool(((mine.double() - theirs).abs() <= slack).all())
    return got


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_equals_reference_at_every_shape(
    backend: Any, shape: tuple[int, ...], dtype: torch.dtype, penalty: str
) -> None:
    grad, image = sample(shape, dtype)
    columns = image[:1].numel()
    options = {"lr": 0.3, "lam": 0.2 * columns, "penalty": penalty, "floor": 0.1}
    step_checked(backend, image, grad, **options)
    step_checked(backend, image, grad, **options, **moments_like(image), step=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("adam", [False, True], ids=["plain", "adam"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (-0.42, 2.82), (-math.inf, math.inf)], ids=str)
@pytest.mark.parametrize("black", [0.0, -0.4, 0.5])
def test_equals_reference_in_every_box(
    backend: Any, dtype: torch.dtype, penalty: str, adam: bool, bounds: tuple[float, float], black: float
) -> None:
    grad, image = sample((4, 70), dtype, bounds)
    image[:, ::5] = black
    options: dict[str, Any] = moments_like(image) if adam else {}
    for floor in (0.0, 0.25):
        new = step_checked(
            backend, image, grad, lr=0.2, lam=9.0, penalty=penalty, black=black, bounds=bounds, floor=floor, **options
        )
        lo, hi = torch.tensor(bounds, dtype=dtype)
        assert bool((((new >= lo) & (new <= hi)) | (new == torch.tensor(black, dtype=dtype))).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_numbers_per_row(backend: Any, dtype: torch.dtype, penalty: str) -> None:
    grad, image = sample((4, 33), dtype)
    lr = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=dtype)
    lam = torch.tensor([1.0, 0.0, 5.0, 30.0], dtype=torch.float64)
    for options in ({}, moments_like(image)):
        step_checked(backend, image, grad, lr=lr, lam=lam, penalty=penalty, **options)


@pytest.mark.parametrize("step", [1, 2, 10, 1000, 10_000_000])
def test_bias_correction(backend: Any, step: int) -> None:
    grad, image = sample((3, 20), torch.float32)
    step_checked(backend, image, grad, lr=0.05, lam=0.1, step=step, betas=(0.8, 0.99), **moments_like(image))
    step_checked(backend, image, grad, lr=0.05, lam=0.1, step=step, adam_eps=1e-8, **moments_like(image))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ten_steps_are_those_of_torch_adam(backend: Any, dtype: torch.dtype) -> None:
    target, image = sample((3, 40), dtype)
    theirs = image.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.05, eps=1e-4)
    first, second = torch.zeros_like(image), torch.zeros_like(image)
    for step in range(1, 11):
        adam.zero_grad()
        loss = 0.5 * (theirs - target).square().sum() + 0.1 * theirs.abs().sum() / 40
        loss.backward()
        adam.step()
        with torch.no_grad():
            theirs.clamp_(0, 1)
        backend.recovery_step(image, image - target, lr=0.05, lam=0.1, exp_avg=first, exp_avg_sq=second, step=step)
    torch.testing.assert_close(image, theirs.detach(), rtol=0, atol=1e3 * unit(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_threshold_reaches_black_exactly(backend: Any, dtype: torch.dtype) -> None:
    image = torch.tensor([[0.5, 0.25, 0.125, 0.0]], dtype=dtype)
    grad = torch.zeros_like(image)
    backend.recovery_step(image, grad, lr=1.0, lam=1.0, penalty="prox")
    assert image.tolist() == [[0.25, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_floor_keeps_what_equals_it(backend: Any, dtype: torch.dtype) -> None:
    image = torch.tensor([[0.125, 0.1171875, 0.5, 0.0, 1.0]], dtype=dtype)
    backend.recovery_step(image, torch.zeros_like(image), lr=1.0, lam=0.0, floor=0.125)
    assert image.tolist() == [[0.125, 0.0, 0.5, 0.0, 1.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("shape", [(4, 50), (3, 1, 6, 7)], ids=str)
def test_masked_entries_are_black_and_keep_their_moments(
    backend: Any, dtype: torch.dtype, batched: bool, shape: tuple[int, ...]
) -> None:
    grad, image = sample(shape, dtype)
    mask = torch.rand(shape if batched else shape[1:], generator=generator(2)) < 0.6
    held = (~mask).expand(shape)
    moments = moments_like(image)
    before = {name: t.clone() for name, t in moments.items()}
    step_checked(backend, image, grad, lr=0.1, lam=2.0, mask=mask, black=0.25, **moments)
    backend.recovery_step(image, grad, lr=0.1, lam=2.0, mask=mask, black=0.25, **moments)
    assert bool((image[held] == 0.25).all())
    for name, t in moments.items():
        assert same_bits(t[held], before[name][held])
        assert not torch.equal(t, before[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_rows_are_left_untouched(backend: Any, dtype: torch.dtype) -> None:
    grad, image = sample((5, 50), dtype)
    image[1, :5] = 7.0  # not even clamped
    moments = moments_like(image)
    frozen = torch.tensor([False, True, False, True, True])
    mask = torch.zeros(5, 50, dtype=torch.bool)
    before = [t.clone() for t in (image, *moments.values())]
    step_checked(backend, image, grad, lr=0.1, lam=2.0, frozen=frozen, **moments)
    backend.recovery_step(image, grad, lr=0.1, lam=2.0, frozen=frozen, mask=mask, floor=0.5, **moments)
    for now, then in zip((image, *moments.values()), before, strict=True):
        assert same_bits(now[frozen], then[frozen])
    assert not image[~frozen].any()


def test_the_gradient_is_not_written(backend: Any) -> None:
    grad, image = sample((2, 30), torch.float32)
    before = grad.clone()
    backend.recovery_step(image, grad, lr=0.1, lam=1.0)
    assert same_bits(grad, before)


@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 4),
    columns=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    penalty=st.sampled_from(PENALTIES),
    adam=st.booleans(),
    lr=st.floats(0, 2),
    lam=st.floats(0, 50),
    floor=st.sampled_from([0.0, 0.1, 0.3]),
    step=st.integers(1, 100),
    share_masked=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_property_equals_reference(
    backend: Any,
    seed: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    penalty: str,
    adam: bool,
    lr: float,
    lam: float,
    floor: float,
    step: int,
    share_masked: float,
) -> None:
    grad, image = sample((rows, columns), dtype, seed=seed)
    image = torch.where(image < 0.3, 0, image)
    rng = generator(seed)
    options: dict[str, Any] = {
        "mask": torch.rand(rows, columns, generator=rng) >= share_masked,
        "frozen": torch.rand(rows, generator=rng) < 0.2,
        **(moments_like(image) if adam else {}),
    }
    new = step_checked(backend, image, grad, lr=lr, lam=lam, penalty=penalty, floor=floor, step=step, **options)
    live = flat(new)[~options["frozen"]]
    assert bool(((live >= 0) & (live <= 1)).all())
