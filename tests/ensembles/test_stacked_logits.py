"""What a stacked network returns, as the logits of its members."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparring as sp

M, K = 3, 6


def test_what_stacked_members_return_is_taken_apart_only_where_it_is_logits() -> None:
    stack = sp.StackedEnsemble([nn.Linear(4, K) for _ in range(M)])
    flat = torch.arange(5 * M * K).view(5, M * K)
    apart = stack._apart(flat)
    assert apart.shape == (M, 5, K)
    assert torch.equal(apart[1, 2], flat[2, K : 2 * K])
    for wrong in ((5, M * K + 1), (5, M * K, 1), (5 * M * K,)):
        with pytest.raises(ValueError, match=r"a member must return logits \(B, K\); all 3 gave"):
            stack._apart(torch.zeros(wrong))
