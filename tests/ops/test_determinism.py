"""The same bits whatever the batch, the number of threads and the order of lanes; nearly the same on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import (
    DTYPES,
    assert_near,
    assert_projection,
    assert_sparse_projection,
    assert_step,
    same_bits,
    sample,
)
from torch import Tensor

from sparring import _core, ops


@pytest.fixture
def torch_threads() -> Iterator[Any]:
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def answers(ops: Any, delta: Tensor, grad: Tensor, x: Tensor) -> list[Tensor]:
    """One result of every operation."""
    image, first, second = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    ops.recovery_step(image, grad, lr=0.1, lam=1.0, penalty="prox", exp_avg=first, exp_avg_sq=second, floor=0.02)
    eps = 0.02 * x[:1].numel()
    values, mask = x - 0.5, grad.flip(1).contiguous()
    return [
        ops.project_l1_box(delta, x, eps),
        ops.project_l0_box(delta, x, 0.05),
        ops.l1_step(delta, grad, x, eps, 0.5 * eps, 0.05),
        image,
        first,
        second,
        ops.sparse_pgd_step(values, mask, grad, x, 0.05, step_size=0.25, mask_step=1.0, projected=True),
        values,
        mask,
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8, 63), (8, 784), (8, 1201), (33, 784), (5, 20000)], ids=str)
def test_a_row_alone_equals_the_row_in_its_batch(backend: Any, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    delta, x = sample(shape, dtype)
    grad, _ = sample(shape, dtype, seed=1)
    together = answers(backend, delta, grad, x)
    for row in range(0, shape[0], 1 + shape[0] // 8):
        one = slice(row, row + 1)
        for whole, alone in zip(together, answers(backend, delta[one], grad[one], x[one]), strict=True):
            assert same_bits(whole[one], alone)


@pytest.mark.simt
def test_every_lane_order_gives_the_same_bits() -> None:
    import simt

    orders = [simt.SimtOps(simt.load(), seed=seed) for seed in range(4)]
    for dtype in DTYPES:
        delta, x = sample((3, 500), dtype)
        grad, _ = sample((3, 500), dtype, seed=1)
        first, *others = (answers(order, delta, grad, x) for order in orders)
        for other in others:
            assert all(map(same_bits, first, other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 3072), (3, 100_000), (1000, 40)], ids=str)
def test_the_number_of_threads_does_not_matter(dtype: torch.dtype, shape: tuple[int, int], torch_threads: Any) -> None:
    delta, x = sample(shape, dtype)
    grad, _ = sample(shape, dtype, seed=1)
    torch_threads(1)
    single = answers(ops, delta, grad, x)
    for count in (2, 4):
        torch_threads(count)
        assert all(map(same_bits, single, answers(ops, delta, grad, x)))


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_every_instruction_set_agrees_with_the_reference(isa: str, tmp_path: Path) -> None:
    """Each is forced in a process of its own; what it may differ by is the operations' own tolerance."""
    script = """
import sys, torch
from checks import DTYPES, sample
from test_determinism import answers
from sparring import _core, ops
assert _core.isa() == sys.argv[1], _core.isa()
torch.save([answers(ops, *arguments) for arguments in torch.load(sys.argv[2])], sys.argv[3])
"""
    cases = []
    for dtype in DTYPES:
        for shape in ((4, 7), (4, 784), (2, 5000)):
            delta, x = sample(shape, dtype)
            cases.append((delta, sample(shape, dtype, seed=1)[0], x))
    torch.save(cases, tmp_path / "cases.pt")
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    subprocess.run(
        [sys.executable, "-c", script, isa, tmp_path / "cases.pt", tmp_path / "answers.pt"],
        env={**os.environ, "SPARRING_ISA": isa, "PYTHONPATH": paths},
        check=True,
        timeout=120,
    )
    for (delta, grad, x), (projected, sparse, stepped, image, *_) in zip(
        cases, torch.load(tmp_path / "answers.pt"), strict=True
    ):
        eps = 0.02 * x.shape[1]
        assert_projection(projected, delta, x, eps)
        assert_sparse_projection(sparse, delta, x, 0.05)
        assert_step(stepped, delta, grad, x, eps, 0.5 * eps, 0.05)
        assert_near(image, answers(ops, delta, grad, x)[3], units=16.0)
