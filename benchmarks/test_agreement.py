"""On how many examples every two members are both right, against a product of matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparring.gradients import kernels

CASES = [(10, 10_000), (100, 10_000), (100, 60_000)]  # members, examples


@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c)))
def test_agreement_counts(versus: Callable[..., None], case: tuple[int, int], device: torch.device) -> None:
    answers = torch.rand(case, generator=torch.Generator().manual_seed(0)) > 0.3
    right = answers.double() @ answers.double().t()
    answers = answers.to(device)

    def product() -> Tensor:
        numbers = answers.float()
        return numbers @ numbers.t()

    versus(
        lambda: kernels.agreement_counts(answers),
        {"torch, float product": product},
        op="agreement_counts",
        shape=case,
        device=device,
        judge=lambda counts: {"error": float((counts.cpu().double() - right).abs().max())},
        bytes_per_entry=1,
        required={"torch, float product": 1},
        tolerance=0,
    )
