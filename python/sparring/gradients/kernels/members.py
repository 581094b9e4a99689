"""How the members of an ensemble relate: cosines of their gradients, and on how many examples two are right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, float64

from sparring import _bridge as bridge
from sparring.gradients.kernels._arguments import supported

_GROUPS = {"cpu": 32, "cuda": 512}  # of examples, that are worked on at the same time


class CosineSums(NamedTuple):
    """Sums over examples, float64 (M, M), of members' cosines and of their squares; zero gradients of each, (M,)."""

    sum: Tensor
    square: Tensor
    zeros: Tensor


def pairwise_cosine(grads: Tensor) -> CosineSums:
    """Cosines of the gradients of every two members, summed over the examples; no (M, M, B) array is made.

    Parameters
    ----------
    grads : (M, B, D), float32 or float64
        D contiguous, else any strides.

    Returns
    -------
    CosineSums
        Symmetric. Where a gradient is zero its cosines count as 0, that with itself too; else that is exactly 1.

    Raises
    ------
    ValueError
        If a gradient has NaN or inf (or, in float64, a norm beyond the type); names the first example and a member.
    """
    if grads.ndim != 3 or not supported(grads):
        raise ValueError(f"grads must be float32 or float64 of shape (M, B, D); got {grads.dtype} {tuple(grads.shape)}")
    grads = grads if grads.shape[2] < 2 or grads.stride(2) == 1 else grads.contiguous()
    members, examples, features = grads.shape
    groups = max(1, min(examples, _GROUPS[grads.device.type]))
    norms = torch.empty(examples, members, dtype=float64, device=grads.device)
    sums = torch.zeros(2, groups, members, members, dtype=float64, device=grads.device)
    bridge.native.pairwise_cosine(
        grads.dtype is float64,
        *bridge.place_of(grads, "grads"),
        groups,
        members,
        examples,
        features,
        grads.data_ptr(),
        grads.stride(0),
        grads.stride(1),
        norms.data_ptr(),
        sums[0].data_ptr(),
        sums[1].data_ptr(),
    )
    finite = norms.isfinite()
    if not bool(finite.all()):
        example, member = (int(i) for i in (~finite).nonzero()[0])
        raise ValueError(f"grads has NaN or inf, first of member {member} at example {example}")
    total, square = sums.sum(1)
    used = (norms > 0).sum(0)
    for tensor in (total, square):
        tensor += tensor.t().clone()
        tensor.diagonal().copy_(used)
    return CosineSums(total, square, examples - used)


def agreement_counts(answers: Tensor) -> Tensor:
    """On how many examples every two members are both right, int64 (M, M), from bool (M, N); one bit an answer."""
    if answers.ndim != 2 or answers.dtype is not torch.bool:
        raise ValueError(f"answers must be bool of shape (M, N); got {answers.dtype} {tuple(answers.shape)}")
    members = len(answers)
    counts = torch.zeros(members, members, dtype=torch.int64, device=answers.device)
    bits = packed_bits(answers)
    bridge.native.agreement_counts(
        False, *bridge.place_of(counts, "answers"), members, bits.shape[1], bits.data_ptr(), counts.data_ptr()
    )
    return counts


def packed_bits(answers: Tensor) -> Tensor:
    """Bool (M, N) as int64 (M, ceil(N / 64)), example 64 w + i in bit i of word w, and zeros at the end."""
    answers = answers.contiguous()
    members, count = answers.shape
    bits = torch.empty(members, -(-count // 64), dtype=torch.int64, device=answers.device)
    bridge.native.pack_bits(
        False,
        *bridge.place_of(answers, "answers"),
        members,
        count,
        answers.data_ptr(),
        bits.shape[1],
        bits.data_ptr(),
    )
    return bits
