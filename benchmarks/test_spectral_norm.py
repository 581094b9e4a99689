"""Certified norms of dense layers against torch's SVD, which is no bound, and against Gram iteration."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from norms import of_matrix, seeded
from sparring.lipschitz import spectral_norm

DENSE = [(4096, 9216), (4096, 4096), (1000, 4096)]
REQUIRED = {(4096, 9216): 6.0, (4096, 4096): 4.0}


def gram_iteration(matrix: Tensor, steps: int = 5) -> Tensor:
    """An upper bound in exact arithmetic (Delattre et al. 2023, algorithm 1, rescaled), in the matrix's type."""
    gram, log = matrix, matrix.new_zeros(())
    for _ in range(steps):
        size = torch.linalg.vector_norm(gram)
        log = 2 * log + 2 * size.log()
        gram = (
            (gram / size) @ (gram / size).t() if gram.shape[0] <= gram.shape[1] else (gram / size).t() @ (gram / size)
        )
    return ((torch.linalg.vector_norm(gram).log() + log) / 2**steps).exp()


@pytest.mark.parametrize("shape", DENSE, ids=lambda s: "x".join(map(str, s)))
def test_dense(versus: Callable[..., None], shape: tuple[int, int], device: torch.device) -> None:
    weight = seeded(shape).to(device)
    truth = of_matrix(weight)

    def judge(norm: Tensor) -> dict[str, float]:
        return {"error": abs(float(norm) / truth - 1)}

    versus(
        lambda: torch.tensor(spectral_norm(weight).upper, dtype=torch.float64),
        {
            "torch.linalg.matrix_norm": lambda: torch.linalg.matrix_norm(weight, 2),
            "five Gram iterations": lambda: gram_iteration(weight),
        },
        op="spectral_norm, certified to 1e-6",
        shape=shape,
        device=device,
        judge=judge,
        bytes_per_entry=8,
        required={"torch.linalg.matrix_norm": REQUIRED.get(shape, 1.0), "five Gram iterations": 1.0},
        weaker={"torch.linalg.matrix_norm": "not a bound", "five Gram iterations": "not a bound in float32"},
        tolerance=2e-6,
        rounds=3,
    )
