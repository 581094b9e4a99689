"""Augmentation: against SciPy and hand-made images, draw by draw, and the same in any batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from sparring.training.augment import AUGMENTATIONS, Affine, CropFlip, augmentation_for


def images(count: int, shape: tuple[int, int, int] = (2, 9, 12), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count), dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved_by_scipy(image: np.ndarray, draw: np.ndarray, fill: float) -> np.ndarray:
    """Rows and columns from the centre: `out = scale * rotation @ source + shift`, solved for the source."""
    angle, right, down, scale = draw
    size = np.array(image.shape)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    back = np.linalg.inv(scale * np.array([[c, -s], [s, c]]))  # of (row, column), rows downwards
    centre = (size - 1) / 2
    offset = centre - back @ (centre + np.array([down, right]) * size)
    return ndimage.affine_transform(image, back, offset, order=1, mode="grid-constant", cval=fill)


@pytest.mark.parametrize("fill", [0.0, 0.3])
def test_affine_is_scipys(fill: float) -> None:
    affine = Affine(degrees=60, shift=0.4, scale=(0.5, 2.0), fill=fill)
    before = images(20, dtype=torch.float64)
    draws = affine.draw(20, seeded())
    after = affine.apply(before, draws)
    for b in range(20):
        for channel in range(2):
            wanted = moved_by_scipy(before[b, channel].numpy(), draws[b].numpy(), fill)
            assert np.allclose(after[b, channel].numpy(), wanted, atol=1e-12)


def test_affine_by_hand() -> None:
    before = images(1, (1, 8, 8))
    turned = Affine().apply(before, torch.tensor([[90.0, 0.0, 0.0, 1.0]]))
    assert torch.allclose(turned, torch.rot90(before, dims=(2, 3)), atol=1e-5)  # counter-clockwise
    shifted = Affine(fill=0.5).apply(before, torch.tensor([[0.0, 0.25, -0.125, 1.0]]))
    assert torch.allclose(shifted[..., :7, 2:], before[..., 1:, :6], atol=1e-5)  # two to the right, one up
    assert (shifted[..., 7, :] == 0.5).all()
    assert (shifted[..., :, :2] == 0.5).all()
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 6] = 1
    assert Affine().apply(dot, torch.tensor([[0.0, 0.0, 0.0, 2.0]]))[0, 0, 4, 8] == pytest.approx(1, abs=1e-5)


def test_what_changes_nothing() -> None:
    before = images(3)
    assert torch.allclose(Affine().apply(before, torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 3)), before, atol=1e-5)
    assert torch.equal(CropFlip().apply(before, torch.tensor([[4, 4, 0]] * 3)), before)


def test_what_comes_in_is_as_dark_as_the_darkest_real_pixel() -> None:
    real = torch.full((2, 1, 6, 6), 0.3)
    real[1, 0, 3, 3] = 1.0
    chosen = augmentation_for("affine", real)
    assert chosen == Affine(fill=float(real.min()))
    assert torch.allclose(chosen(real[:1], seeded()), real[:1])
    assert augmentation_for("crop-flip", real) == CropFlip()


def test_crop_and_flip_by_hand() -> None:
    before = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]).expand(3, 1, 2, 3)
    after = CropFlip(padding=1).apply(before, torch.tensor([[0, 2, 0], [2, 1, 0], [1, 0, 1]]))
    assert after[:, 0].tolist() == [
        [[0.0, 0.0, 0.0], [2.0, 3.0, 0.0]],
        [[4.0, 5.0, 6.0], [0.0, 0.0, 0.0]],
        [[2.0, 1.0, 0.0], [5.0, 4.0, 0.0]],
    ]


def test_crops_are_windows_of_the_padded_image() -> None:
    before, augment = images(50, (3, 5, 7)), CropFlip(padding=3)
    draws = augment.draw(50, seeded())
    padded = torch.nn.functional.pad(before, (3, 3, 3, 3))
    for image, after, (top, left, mirrored) in zip(padded, augment.apply(before, draws), draws.tolist(), strict=True):
        window = image[:, top : top + 5, left : left + 7]
        assert torch.equal(after, window.flip(2) if mirrored else window)


def test_draws_are_uniform_over_what_is_promised() -> None:
    draws = Affine(degrees=5, shift=0.1, scale=(0.9, 1.2)).draw(4000, seeded())
    for values, low, high in zip(draws.unbind(1), (-5, -0.1, -0.1, 0.9), (5, 0.1, 0.1, 1.2), strict=True):
        counts = torch.histc(values, 10, low, high)
        assert values.min() >= low
        assert values.max() <= high
        assert (counts - 400).abs().max() < 100  # five standard deviations
    draws = CropFlip(padding=2).draw(4000, seeded())
    for values, number in zip(draws.unbind(1), (5, 5, 2), strict=True):
        counts = values.bincount()
        assert len(counts) == number
        assert (counts - 4000 / number).abs().max() < 160
    assert torch.corrcoef(draws.double().T).fill_diagonal_(0).abs().max() < 0.08


@pytest.mark.parametrize("name", AUGMENTATIONS)
@given(count=st.integers(0, 9), size=st.integers(1, 40), threads=st.sampled_from([1, 2]))
def test_an_image_and_its_draw_alone_decide(name: str, count: int, size: int, threads: int) -> None:
    augment = AUGMENTATIONS[name]
    before = images(9, (3, size, 11))
    draws = augment.draw(9, seeded(size))
    assert torch.equal(augment.draw(count, seeded(size)), draws[:count])
    whole = augment(before, seeded(size))
    assert torch.equal(whole, augment.apply(before, draws))
    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(augment.apply(before[:count], draws[:count]), whole[:count])
    finally:
        torch.set_num_threads(used)
    assert whole.dtype == before.dtype
    assert whole.min() >= 0
    assert whole.max() <= 1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_generators_decide_and_the_global_one_is_left_alone(name: str) -> None:
    augment, before = AUGMENTATIONS[name], images(20)
    copy, state = before.clone(), torch.get_rng_state()
    assert torch.equal(augment(before, seeded(1)), augment(before, seeded(1)))
    assert not torch.equal(augment(before, seeded(1)), augment(before, seeded(2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(before, copy)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Affine(degrees=181), "degrees must be from 0 to 180, got 181"),
        (lambda: Affine(shift=-0.1), "shift must be a share from 0 to 1"),
        (lambda: Affine(scale=(1.1, 0.9)), "scale must be two positive numbers in ascending order"),
        (lambda: Affine(scale=(0.0, 1.0)), "scale must be two positive numbers"),
        (lambda: CropFlip(padding=-1), "padding must not be negative"),
        (lambda: CropFlip()(torch.zeros(3, 8, 8), seeded()), r"images must be floating point \(B, C, H, W\)"),
        (lambda: Affine()(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), seeded()), "images must be floating point"),
        (lambda: Affine().apply(images(3), torch.zeros(2, 4)), r"draws must have shape \(3, 4\), got \(2, 4\)"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
