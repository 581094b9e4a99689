"""Gains of pooling and of reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparring.lipschitz import rounding
from sparring.lipschitz.gains.gain import Call, Gain, Refused, exactly, product, root
from sparring.lipschitz.gains.weighted import each
from sparring.lipschitz.spectral import spectral_norm


def windows(n: int, count: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> Tensor:
    """Whether window i has entry j, bool (count, n)."""
    reached = torch.arange(count)[:, None] * stride - padding + torch.arange(kernel) * dilation
    inside = (reached >= 0) & (reached < n)
    member = torch.zeros(count, n + 1, dtype=torch.bool)
    member.scatter_(1, reached.where(inside, n), True)
    return member[:, :n]


def adaptive_windows(n: int, count: int) -> Tensor:
    """The same for adaptive pooling: from floor(i n / count) to ceil((i + 1) n / count)."""
    steps, entries = torch.arange(count + 1) * n, torch.arange(n)
    starts, ends = steps[:-1] // count, -(-steps[1:] // count)
    return (entries >= starts[:, None]) & (entries < ends[:, None])


def _maxima(members: Sequence[Tensor]) -> Gain:
    """|max_w x - max_w y|^2 <= sum over the window of |x - y|^2, and an entry lies in so many windows at most."""
    overlap = math.prod(int(member.sum(0).max()) for member in members)
    return exactly(root(overlap), "disjoint windows" if overlap <= 1 else f"{overlap} windows overlap")


def max_pool(dims: int) -> Callable[..., Gain]:
    def rule(
        call: Call,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Gain:
        options = (each(option, dims) for option in (kernel_size, stride or kernel_size, padding, dilation))
        sizes = zip(call.x.shape[-dims:], call.out.shape[-dims:], *options, strict=True)
        return _maxima([windows(*of_dim) for of_dim in sizes])

    return rule


def adaptive_max_pool(dims: int) -> Callable[..., Gain]:
    def rule(call: Call, output_size: Any, return_indices: bool = False) -> Gain:
        sizes = zip(call.x.shape[-dims:], call.out.shape[-dims:], strict=True)
        return _maxima([adaptive_windows(*of_dim) for of_dim in sizes])

    return rule


def _means(call: Call, members: Sequence[Tensor], divisors: Sequence[Tensor]) -> Gain:
    """Means over windows work along one dimension after the other: the norm is a product of norms of small matrices."""
    lower, upper = 1.0, 1.0
    for member, divisor in zip(members, divisors, strict=True):
        matrix = member.to(torch.float64) / divisor.to(torch.float64)[:, None]
        norm = spectral_norm(matrix, "dense", tol=call.tol, certified=call.certified)
        # Entries are off by u, relatively, and none is negative: so the norm is off by u.
        lower *= norm.lower * (1 - 4 * rounding.UNIT)
        upper *= norm.upper * (1 + 4 * rounding.UNIT)
    return Gain(lower, upper, "product over dimensions", call.certified)


def avg_pool(dims: int) -> Callable[..., Gain]:
    def rule(
        call: Call,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Gain:
        options = (each(option, dims) for option in (kernel_size, stride or kernel_size, padding))
        members, divisors = [], []
        for n, count, kernel, step, pad in zip(call.x.shape[-dims:], call.out.shape[-dims:], *options, strict=True):
            member = windows(n, count, kernel, step, pad)
            starts = torch.arange(count) * step - pad
            padded = (starts + kernel).clamp(max=n + pad) - starts
            members.append(member)
            divisors.append(padded if count_include_pad else member.sum(1).clamp(min=1))
        if divisor_override:
            divisors = [torch.ones_like(divisor) for divisor in divisors]
            divisors[0] *= divisor_override
        return _means(call, members, divisors)

    return rule


def adaptive_avg_pool(dims: int) -> Callable[..., Gain]:
    def rule(call: Call, output_size: Any) -> Gain:
        sizes = zip(call.x.shape[-dims:], call.out.shape[-dims:], strict=True)
        members = [adaptive_windows(*of_dim) for of_dim in sizes]
        return _means(call, members, [member.sum(1) for member in members])

    return rule


def _reduced(call: Call) -> int:
    return call.x.numel() // max(1, call.out.numel())


def sum_(call: Call, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Gain:
    return exactly(root(_reduced(call)), f"sum of {_reduced(call)}")


def mean(call: Call, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Gain:
    count = _reduced(call)
    return exactly(product(root(count), rounding.up(1 / count)) if count > 1 else 1.0, f"mean of {count}")


def extreme(call: Call, dim: Any = (), keepdim: bool = False) -> Gain:
    return exactly(1.0, "disjoint windows")


def logsumexp(call: Call, dim: Any, keepdim: bool = False) -> Gain:
    return exactly(1.0)  # the gradient is a softmax, of length 1 at most


def softmax(call: Call, dim: int | None = None, _stacklevel: Any = 3, dtype: torch.dtype | None = None) -> Gain:
    # diag(p) - p p^T is positive semidefinite, and its rows sum up to 2 p (1 - p) <= 1/2 in absolute values.
    _has_dim(dim)
    return exactly(0.5)


def log_softmax(call: Call, dim: int | None = None, _stacklevel: Any = 3, dtype: torch.dtype | None = None) -> Gain:
    # I - 1 p^T is a projection of rank n - 1, and has the norm of its complement 1 p^T: sqrt(n) |p| <= sqrt(n).
    count = call.x.shape[_has_dim(dim)]
    return exactly(root(count), f"sqrt({count})")


def _has_dim(dim: int | None) -> int:
    if dim is None:
        raise Refused("without dim, which is then the batch for some numbers of dimensions")
    return dim
