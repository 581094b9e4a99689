"""Arrays that are not torch's: NumPy, and anything that speaks DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checks import sample

from sparring import ops


class Capsule:
    """An array of some other library: all it has is DLPack."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    delta, x = sample((4, 3, 10), dtype)
    return delta, sample((4, 3, 10), dtype, seed=1)[0], x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numpy_in_numpy_out(dtype: torch.dtype) -> None:
    tensors = problem(dtype)
    delta, grad, x = (t.numpy().copy() for t in tensors)
    eps = np.array([0.5, 1.0, 2.0, 0.0])
    projected = ops.project_l1_box(delta, x, eps)
    assert isinstance(projected, np.ndarray)
    assert projected.dtype == delta.dtype
    want = ops.project_l1_box(tensors[0], tensors[2], torch.from_numpy(eps))
    np.testing.assert_array_equal(projected, want.numpy())

    sparse = ops.project_l0_box(delta, x, np.array([0, 1, 2, 30]), channels=3)
    assert isinstance(sparse, np.ndarray)
    want = ops.project_l0_box(tensors[0], tensors[2], torch.tensor([0, 1, 2, 30]), channels=3)
    np.testing.assert_array_equal(sparse, want.numpy())

    stepped = ops.l1_step(delta, grad, x, eps, np.full(4, 0.5), np.array([1, 2, 3, 4]))
    assert isinstance(stepped, np.ndarray)
    want = ops.l1_step(*tensors, torch.from_numpy(eps), 0.5, torch.tensor([1, 2, 3, 4]))
    np.testing.assert_array_equal(stepped, want.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numpy_output_given_and_in_place(dtype: torch.dtype) -> None:
    delta, grad, x = (t.numpy().copy() for t in problem(dtype))
    want = ops.project_l1_box(delta, x, 1.0)
    out = np.full_like(delta, 7.0)
    assert ops.project_l1_box(delta, x, 1.0, out=out) is out
    np.testing.assert_array_equal(out, want)
    assert ops.project_l1_box(delta, x, 1.0, out=delta) is delta
    np.testing.assert_array_equal(delta, want)
    stepped = ops.l1_step(delta, grad, x, 1.0, 0.5, 3)
    assert ops.l1_step(delta, grad, x, 1.0, 0.5, 3, out=delta) is delta
    np.testing.assert_array_equal(delta, stepped)
    sparse = ops.project_l0_box(delta, x, 3)
    assert ops.project_l0_box(delta, x, 3, out=delta) is delta
    np.testing.assert_array_equal(delta, sparse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numpy_recovery_step_in_place(dtype: torch.dtype) -> None:
    _, grad, image = problem(dtype)
    first, second = torch.zeros_like(image), torch.zeros_like(image)
    mask, frozen = (
        torch.rand(3, 10, generator=torch.Generator().manual_seed(0)) < 0.5,
        torch.tensor([False] * 3 + [True]),
    )
    arrays = [t.numpy().copy() for t in (image, grad, first, second, mask, frozen)]
    shared = {"lr": 0.1, "lam": 1.0, "penalty": "prox", "floor": 0.05}
    ops.recovery_step(image, grad, exp_avg=first, exp_avg_sq=second, mask=mask, frozen=frozen, **shared)
    names = ("exp_avg", "exp_avg_sq", "mask", "frozen")
    result = ops.recovery_step(arrays[0], arrays[1], **dict(zip(names, arrays[2:], strict=True)), **shared)
    assert result is arrays[0]
    for mine, theirs in zip(arrays[:4], (image, grad, first, second), strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())


def test_numpy_sparse_pgd_step_in_place() -> None:
    values, grad, x = problem()
    mask, unchanged = problem(torch.float32)[1][:, 0].contiguous(), torch.zeros(4, dtype=torch.int64)
    arrays = [t.numpy().copy() for t in (values, mask, grad, x, unchanged)]
    sizes = {"step_size": 0.25, "mask_step": 1.0, "channels": 3}
    want = ops.sparse_pgd_step(values, mask, grad, x, 2, unchanged=unchanged, **sizes)
    result = ops.sparse_pgd_step(*arrays[:4], 2, unchanged=arrays[4], **sizes)
    assert isinstance(result, np.ndarray)
    for mine, theirs in zip([result, *arrays], (want, values, mask, grad, x, unchanged), strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())
    arrays[1].flags.writeable = False
    with pytest.raises(ValueError, match=r"\bmask\b.*(read-only|writ)"):
        ops.sparse_pgd_step(*arrays[:4], 2, **sizes)


def test_read_only_numpy_inputs() -> None:
    delta, grad, x = (t.numpy().copy() for t in problem())
    want = ops.project_l1_box(delta, x, 1.0), ops.l1_step(delta, grad, x, 1.0, 0.5, 3), ops.project_l0_box(delta, x, 3)
    for a in (delta, grad, x):
        a.flags.writeable = False
    np.testing.assert_array_equal(ops.project_l1_box(delta, x, 1.0), want[0])
    np.testing.assert_array_equal(ops.l1_step(delta, grad, x, 1.0, 0.5, 3), want[1])
    np.testing.assert_array_equal(ops.project_l0_box(delta, x, 3), want[2])
    image = np.full((4, 3, 10), 0.5, dtype=np.float32)
    ops.recovery_step(image, grad, lr=0.1, lam=1.0)
    assert (image != 0.5).any()


def test_read_only_numpy_outputs_are_refused() -> None:
    delta, grad, x = (t.numpy().copy() for t in problem())
    image = np.full((4, 3, 10), 0.5, dtype=np.float32)
    image.flags.writeable = False
    with pytest.raises(ValueError, match=r"\bout\b.*(read-only|writ)"):
        ops.project_l1_box(delta, x, 1.0, out=image)
    with pytest.raises(ValueError, match=r"\bout\b.*(read-only|writ)"):
        ops.project_l0_box(delta, x, 3, out=image)
    with pytest.raises(ValueError, match=r"\bout\b.*(read-only|writ)"):
        ops.l1_step(delta, grad, x, 1.0, 0.5, 3, out=image)
    with pytest.raises(ValueError, match=r"\bimage\b.*(read-only|writ)"):
        ops.recovery_step(image, grad, lr=0.1, lam=1.0)
    assert (image == 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_anything_with_dlpack(dtype: torch.dtype) -> None:
    tensors = problem(dtype)
    delta, grad, x = map(Capsule, tensors)
    projected = torch.from_dlpack(ops.project_l1_box(delta, x, 1.0))
    assert torch.equal(projected, ops.project_l1_box(tensors[0], tensors[2], 1.0))
    sparse = torch.from_dlpack(ops.project_l0_box(delta, x, 3))
    assert torch.equal(sparse, ops.project_l0_box(tensors[0], tensors[2], 3))
    stepped = torch.from_dlpack(ops.l1_step(delta, grad, x, 1.0, 0.5, 3))
    assert torch.equal(stepped, ops.l1_step(*tensors, 1.0, 0.5, 3))
    image, same = tensors[2].clone(), tensors[2].clone()
    ops.recovery_step(Capsule(image), grad, lr=0.1, lam=1.0)
    ops.recovery_step(same, tensors[1], lr=0.1, lam=1.0)
    assert torch.equal(image, same)


def test_read_only_arrays_of_other_libraries() -> None:
    """Read; and not written, though what exports them says only by a flag that they are read-only."""

    class ReadOnly:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array
            array.flags.writeable = False

        def __dlpack__(self, **kwargs: Any) -> Any:
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    delta, grad, x = problem()
    zeros = ReadOnly(np.zeros((4, 3, 10), np.float32))
    with pytest.raises((TypeError, ValueError), match=r"\bout\b"):
        ops.project_l1_box(delta, x, 1.0, out=zeros)
    with pytest.raises((TypeError, ValueError), match=r"\bimage\b"):
        ops.recovery_step(zeros, grad, lr=0.1, lam=1.0)
    assert not zeros.array.any()
