"""How the members of an ensemble relate: cosines of their gradients, and on how many examples two are right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, float64

from sparring import _bridge as bridge
from sparring.gradients.kernels._arguments import supported

_GROUPS = {"cpu": 32, "cuda": 512}  # of examples, that are worked on at the same time


_PLAIN = (1e-15, 1e15)  # norms between which products of float32 numbers neither overflow nor vanish


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
        Symmetric. Where a gradient is zero, or too small to have an inverse norm, its cosines count as 0, that with
        itself too; else that is exactly 1.

    Raises
    ------
    ValueError
        If a gradient is NaN or infinite; names the member and the example.
    """
    if grads.ndim != 3 or not supported(grads):
        raise ValueError(f"grads must be float32 or float64 of shape (M, B, D); got {grads.dtype} {tuple(grads.shape)}")
    grads = grads if grads.shape[2] < 2 or grads.stride(2) == 1 else grads.contiguous()
    members, examples, features = grads.shape
    norms = torch.linalg.vector_norm(grads, dim=2, dtype=float64)
    if not bool(norms.isfinite().all()):
        member, example = (int(i) for i in (~norms.isfinite()).nonzero()[0])
        raise ValueError(f"grads has NaN or inf, first of member {member} at example {example}")
    inverse = norms.reciprocal().to(grads.dtype)
    inverse = torch.where(inverse.isfinite(), inverse, 0.0).contiguous()
    groups = max(1, min(examples, _GROUPS[grads.device.type]))
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
        bool(((norms < _PLAIN[0]) & (norms > 0) | (norms > _PLAIN[1])).any()),
        inverse.data_ptr(),
        sums[0].data_ptr(),
        sums[1].data_ptr(),
    )
    total, square = sums.sum(1)
    used = (inverse > 0).sum(1)
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
    members, count = answers.shape
    packed = np.packbits(answers.cpu().numpy(), axis=1, bitorder="little")
    words = np.zeros((members, 8 * -(-count // 64)), dtype=np.uint8)
    words[:, : packed.shape[1]] = packed
    return torch.from_numpy(words.view("<i8")).to(answers.device)
