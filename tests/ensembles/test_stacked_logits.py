"""What a stacked network returns, as the logits of its members."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparring as sp
from sparring.gradients.members import OnDevice

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


def test_one_member_is_an_ensemble() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    stack = sp.StackedEnsemble([net], combine="logits")
    x = torch.rand(3, 4)
    torch.testing.assert_close(stack(x), net(x))
    torch.testing.assert_close(stack.member_logits(x), net(x)[None])
    torch.testing.assert_close(stack.member(0)(x), net(x))


@pytest.mark.parametrize("rows", [1, 2])
def test_on_a_device_members_go_side_by_side_to_the_same_numbers(rows: int) -> None:
    """The way that a CPU does not take for convolutions, taken on one."""
    nets = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, K)).double() for _ in range(M)]
    (step, _) = sp.lower(sp.StackedEnsemble(nets)).steps
    assert isinstance(step, OnDevice)
    x = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, saved = step.take(x, "float32").forward(x, "float32")
    flat, tape = step.side_by_side.take(x).forward(x)
    torch.testing.assert_close(flat.view(5, M, K).transpose(0, 1), logits)
    grad = torch.rand(M, 5 * rows, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = step.backward(grad.clone(), saved)
    torch.testing.assert_close(step.backward(grad.clone(), (flat.dtype, tape)), wanted)
